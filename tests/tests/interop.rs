//! Interoperation: HBONE with a real Envoy at the other end, in both directions.

use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::echo::{Echo, EchoMesh, Seen, destination_rule};
use e2e::envoy::{Envoy, Fronted};
use e2e::lab::{Lab, PodSpec, eventually};
use e2e::net::http::Ask;
use e2e::net::serve::{Server, echo};
use e2e::net::service::Front;
use e2e::net::{self, pattern};
use e2e::scenario::{Pair, echoes};
use e2e::tls::Authority;

const PORT: u16 = 7000;
const LENGTH: u64 = 32 << 20;

/// Sends a pattern to an echo server and compares what comes back.
fn echoes_a_pattern(to: SocketAddr) -> Result<()> {
    let stream = net::connect(to)?;
    let sender = stream.try_clone()?;
    let sending = thread::spawn(move || {
        pattern::send(&sender, 11, LENGTH)?;
        sender.shutdown(Shutdown::Write).context("half close")
    });
    pattern::expect(&stream, 11, LENGTH)?;
    sending
        .join()
        .map_err(|_panic| anyhow::anyhow!("the sender panicked"))??;
    ensure!(
        net::read_to_end(&stream)?.is_empty(),
        "the half close came back"
    );
    Ok(())
}

#[test]
fn envoy_as_client_reaches_a_captured_pod() -> Result<()> {
    let mut pair = Pair::new()?;
    let envoy_pod = pair.lab.add(&PodSpec::new("a", "envoy").uncaptured())?;
    let server = Server::start(&pair.server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    let local = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 10_000);
    let target = SocketAddr::new(pair.server.v4(), PORT);
    let envoy = Envoy::client(
        &pair.lab,
        &envoy_pod,
        local,
        target,
        &pair.server.identity(),
    )?;
    envoy_pod
        .run(|| echoes(&net::connect(local)?, "hello").and_then(|()| echoes_a_pattern(local)))
        .with_context(|| envoy.log())?;
    ensure!(
        server.accepted() >= 2,
        "{} connections arrived",
        server.accepted()
    );
    eventually(
        "the access log names Envoy's identity",
        Duration::from_secs(5),
        || {
            let log = pair.lab.agent("b")?.log()?;
            let proven = format!("src.identity=\"{}\"", envoy_pod.identity());
            let named =
                |line: &str| line.contains(&proven) && line.contains("direction=\"inbound\"");
            ensure!(log.lines().any(named), "no line has {proven}:\n{log}");
            Ok(())
        },
    )
}

#[test]
fn envoy_as_client_is_judged_by_its_identity() -> Result<()> {
    let mut pair = Pair::new()?;
    let envoy_pod = pair.lab.add(&PodSpec::new("a", "envoy").uncaptured())?;
    let server = Server::start(&pair.server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    let local = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 10_000);
    let target = SocketAddr::new(pair.server.v4(), PORT);
    let envoy = Envoy::client(
        &pair.lab,
        &envoy_pod,
        local,
        target,
        &pair.server.identity(),
    )?;
    envoy_pod
        .run(|| echoes(&net::connect(local)?, "hello"))
        .with_context(|| envoy.log())?;
    pair.lab.manifests().apply(
        "policy.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: no-envoy\n  namespace: app\nspec:\n  \
         action: DENY\n  rules:\n  - from:\n    - source:\n        principals: [cluster.local/ns/app/sa/envoy]\n",
    )?;
    eventually("Envoy is refused", Duration::from_secs(5), || {
        let passes = envoy_pod.run(|| echoes(&net::connect(local)?, "hello"));
        ensure!(passes.is_err(), "it still passes");
        Ok(())
    })?;
    let before = server.accepted();
    let passes = envoy_pod.run(|| echoes(&net::connect(local)?, "hello"));
    ensure!(passes.is_err(), "a refusal stays one");
    ensure!(
        server.accepted() == before,
        "the application hears nothing of it"
    );
    pair.client.run(|| {
        echoes(
            &net::connect(SocketAddr::new(pair.server.v4(), PORT))?,
            "others pass",
        )
    })?;
    ensure!(server.accepted() == before + 1, "they do");
    Ok(())
}

/// Two declarations lead to the same tunnel: the pod is captured on a node whose agent is another's, or it says
/// by Istio's label that it terminates HBONE itself.
#[track_caller]
fn envoy_as_server(spec: &PodSpec) -> Result<()> {
    let mut lab = Lab::two_nodes()?;
    let client = lab.pod("a", "client")?;
    let envoy_pod = lab.add(spec)?;
    lab.start_agent("a")?;
    lab.agent("a")?.wait_ready()?;
    let application = Server::start(&envoy_pod, Ipv4Addr::LOCALHOST, PORT, echo)?;
    let envoy = Envoy::server(&lab, &envoy_pod, application.address(), &client.identity())?;
    let to = SocketAddr::new(envoy_pod.v4(), PORT);
    let sniffer = lab.sniff()?;
    client
        .run(|| echoes(&net::connect(to)?, "hello").and_then(|()| echoes_a_pattern(to)))
        .with_context(|| envoy.log())?;
    ensure!(
        sniffer.stop()?.tls_records_to(15008) > 0,
        "it went through HBONE"
    );
    ensure!(
        application.accepted() == 2,
        "{} connections arrived",
        application.accepted()
    );
    Ok(())
}

#[test]
fn envoy_as_server_is_reached_by_a_captured_pod() -> Result<()> {
    envoy_as_server(&PodSpec::new("b", "envoy"))
}

#[test]
fn envoy_as_server_is_reached_where_its_pod_says_that_it_terminates_hbone() -> Result<()> {
    let spec = PodSpec::new("b", "envoy").uncaptured();
    envoy_as_server(&spec.with_label("networking.istio.io/tunnel", "http"))
}

#[test]
fn culvert_as_waypoint_serves_an_hbone_client_that_dials_a_services_address() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    let (waypoint, envoy_pod) = mesh.waypoint_pod()?;
    // And something that it is not the waypoint of.
    mesh.service(
        "shop",
        "unbound",
        "{istio.io/use-waypoint: none}",
        "{app: echo}",
    )?;
    let local = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 10_000);
    let dial = |to: SocketAddr| {
        let through = (to.to_string(), waypoint.v4());
        Envoy::client_through(&mesh.lab, &envoy_pod, local, through, &waypoint.identity())
    };
    let envoy = dial(mesh.at("echo", 80)?)?;
    let seen = |ask: &Ask| {
        let answer = mesh.ask("envoy", local, ask)?;
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
        Seen::in_answer(&answer)
    };
    mesh.soon("requests are seen", || {
        let seen = seen(&Ask::get("/"))?;
        ensure!(seen.header("x-request-id").is_some(), "{seen:?}");
        Ok(())
    })
    .with_context(|| envoy.log())?;
    // Both endpoints answer: it is the waypoint that chooses, request by request.
    let pods = (0..32).map(|_| Ok(seen(&Ask::get("/"))?.pod));
    let pods = pods.collect::<Result<std::collections::BTreeSet<_>>>()?;
    ensure!(pods.len() == 2, "{pods:?}");
    // Who asks is the client, not the waypoint in whose name the endpoints are reached.
    mesh.apply(
        "policy.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: who\n  namespace: \
         shop\nspec:\n  targetRefs: [{kind: Service, group: \"\", name: echo}]\n  rules:\n  - from: [{source: \
         {principals: [cluster.local/ns/clients/sa/envoy]}}]\n    to: [{operation: {paths: [/allowed]}}]\n",
    )?;
    mesh.soon_answers("envoy", local, &Ask::get("/denied"), 403)?;
    mesh.soon_answers("envoy", local, &Ask::get("/allowed"), 200)?;
    // Nobody else gets around the waypoint, which goes on to come in.
    mesh.namespace(
        "shop",
        &[
            ("istio.io/use-waypoint", "waypoint"),
            ("culvert.dev/strict-waypoint", "true"),
        ],
    )?;
    let around = SocketAddr::new(mesh.pod("echo-v1")?.v4(), 8080);
    mesh.soon("the pod's own address is closed", || {
        let answer = mesh.ask("client", around, &Ask::get("/"));
        ensure!(answer.is_err(), "it is answered: {answer:?}");
        Ok(())
    })?;
    mesh.soon_answers("envoy", local, &Ask::get("/allowed"), 200)?;
    drop(envoy);
    // Ports that the service lacks, what is bound to no waypoint, what is nobody's, and the mesh's own.
    let unserved = [
        mesh.at("echo", 81)?,
        mesh.at("unbound", 80)?,
        "10.96.77.77:80".parse()?,
        SocketAddr::new(waypoint.v4(), 15008),
    ];
    for to in unserved {
        let _envoy = dial(to)?;
        let answer = mesh.ask("envoy", local, &Ask::get("/"));
        ensure!(answer.is_err(), "{to} answers {answer:?}");
    }
    Ok(())
}

/// A policy of namespace `shop` for what goes through its waypoint.
fn deny(rules: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: deny, namespace: shop}}\nspec:\n  \
         targetRefs: [{{kind: Gateway, group: gateway.networking.k8s.io, name: waypoint}}]\n  action: DENY\n  rules: \
         [{{from: [{{source: {{principals: [cluster.local/ns/clients/sa/envoy]}}}}]{rules}}}]\n"
    )
}

#[test]
fn culvert_as_waypoint_serves_names_workloads_and_ports_without_http() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    let (waypoint, envoy_pod) = mesh.waypoint_pod()?;
    mesh.waypoint("shop", "waypoint", "{istio.io/waypoint-for: all}", "")?;
    let _bytes = Server::start(mesh.pod("echo-v1")?, Ipv6Addr::UNSPECIFIED, 9090, echo)?;
    let ports = "  - {name: tcp, port: 9090}\n  - {name: some, port: 9091, targetPort: 9090}\n";
    mesh.service_with("shop", "bytes", "{}", "{app: echo, version: v1}", ports)?;
    let local = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 10_000);
    let dial = |to: String| {
        let through = (to, waypoint.v4());
        Envoy::client_through(&mesh.lab, &envoy_pod, local, through, &waypoint.identity())
    };
    let secret = Ask::get("/secret");
    let no_secrets = deny(", to: [{operation: {paths: [/secret]}}]");
    let server = mesh.pod("echo-v1")?.v4();
    // By name, which is how gateways of other networks ask; and a pod's own address.
    for to in [
        "echo.shop.svc.cluster.local:80".to_owned(),
        SocketAddr::new(server, 8080).to_string(),
    ] {
        let envoy = dial(to)?;
        let passes = mesh.soon_answers("envoy", local, &secret, 200);
        let _answer = passes.with_context(|| envoy.log())?;
        mesh.apply("policy.yaml", &no_secrets)?;
        mesh.soon_answers("envoy", local, &secret, 403)?;
        // It is the client whom the policy is about, and the request.
        mesh.soon_answers("envoy", local, &Ask::get("/"), 200)?;
        mesh.lab.manifests().delete("policy.yaml")?;
    }
    // Bytes: to a service's port that is declared so, to one that turns out so, and to a pod.
    for to in [
        mesh.at("bytes", 9090)?,
        mesh.at("bytes", 9091)?,
        SocketAddr::new(server, 9090),
    ] {
        let envoy = dial(to.to_string())?;
        let carried = || envoy_pod.run(|| echoes(&net::connect(local)?, "\u{1}bytes"));
        mesh.soon("bytes are carried", carried)
            .with_context(|| envoy.log())?;
        envoy_pod.run(|| echoes_a_pattern(local))?;
        let live = envoy_pod.run(|| Ok(net::connect(local)?))?;
        echoes(&live, "before")?;
        mesh.apply("policy.yaml", &deny(""))?;
        mesh.soon("what is carried ends", || {
            ensure!(echoes(&live, "after").is_err(), "{to} is still carried");
            Ok(())
        })?;
        mesh.soon("they are refused", || {
            ensure!(carried().is_err(), "they are carried");
            Ok(())
        })?;
        mesh.lab.manifests().delete("policy.yaml")?;
    }
    Ok(())
}

/// A pod with a sidecar that terminates HBONE, behind a service that is bound to a waypoint of ours: the client's node
/// does all that a waypoint does, and TLS for the application is inside of the sidecar's tunnel.
#[test]
fn waypoint_with_sidecar_backend() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    let spec = PodSpec::new("b", "sidecar").in_namespace("shop");
    let spec = spec.as_account("sidecar").with_label("app", "sidecar");
    let spec = spec.with_label("networking.istio.io/tunnel", "http");
    let sidecar = mesh.lab.place(&spec.uncaptured())?;
    let ports = "  - {name: http, port: 80, targetPort: 8080, appProtocol: http}\n";
    mesh.service_with("shop", "sidecar", "{}", "{app: sidecar}", ports)?;
    mesh.apply(
        "policy.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: sidecar, namespace: \
         shop}\nspec:\n  targetRefs: [{group: \"\", kind: Service, name: sidecar}]\n  rules: [{to: [{operation: {methods: \
         [GET]}}]}]\n",
    )?;
    let authority = Authority::new("shop")?;
    let name = "sidecar.shop.svc.cluster.local";
    let sealed = Front {
        tls: Some(authority.server(&[name], None)?),
        ..Front::default()
    };
    let to = mesh.at("sidecar", 80)?;
    let client = mesh.pod("client")?.identity();
    let application = SocketAddr::new(sidecar.v4(), 8080);
    let envoy = Envoy::server(&mesh.lab, &sidecar, application, &client)?;
    for front in [Front::default(), sealed] {
        let has_tls = front.tls.is_some();
        if has_tls {
            let rule = "tls: {mode: SIMPLE, credentialName: ca}";
            mesh.apply("secret.yaml", &authority.secret("ca", None)?)?;
            mesh.apply("rule.yaml", &destination_rule("sidecar", rule))?;
        }
        let _application = Echo::start_behind(front, &sidecar, &[8080])?;
        mesh.soon("requests are answered", || {
            let seen = mesh.seen("client", to, &Ask::get("/"))?;
            ensure!(seen.header("x-request-id").is_some(), "{seen:?}");
            ensure!(seen.tls.is_some() == has_tls, "{seen:?}");
            Ok(())
        })
        .with_context(|| envoy.log())?;
        mesh.soon_answers("client", to, &Ask::new("POST", "/"), 403)?;
    }
    Ok(())
}

/// A service `echo` whose pods are on node b, bound to a waypoint of another controller's: an Envoy in the pod `wp`.
fn behind_an_envoy() -> Result<(EchoMesh, Envoy)> {
    let mut mesh = EchoMesh::new()?;
    mesh.namespace("shop", &[("istio.io/use-waypoint", "wp")])?;
    mesh.namespace("clients", &[])?;
    let spec = PodSpec::new("b", "echo").in_namespace("shop");
    let server = mesh.echo(&spec.with_label("app", "echo").as_account("echo"))?;
    mesh.service("shop", "echo", "{}", "{app: echo}")?;
    let spec = PodSpec::new("b", "wp").in_namespace("shop").uncaptured();
    let spec = spec.with_label("networking.istio.io/tunnel", "http");
    let waypoint = mesh.lab.place(&spec.with_label("app", "wp"))?;
    let labels = "{gateway.istio.io/managed: other}";
    let ports = "  - {name: mesh, port: 15008, targetPort: 15008, appProtocol: hbone}\n";
    mesh.service_with("shop", "wp", labels, "{app: wp}", ports)?;
    mesh.apply(
        "wp.yaml",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: wp\n  namespace: shop\nspec:\n  \
         gatewayClassName: other-waypoint\n  listeners:\n  - {name: mesh, port: 15008, protocol: HBONE}\nstatus:\n  \
         addresses: [{type: Hostname, value: wp.shop.svc.cluster.local}]\n",
    )?;
    let spec = PodSpec::new("a", "client").in_namespace("clients");
    let client = mesh.lab.place(&spec)?;
    mesh.start()?;
    let identity = server.identity();
    let fronted = Fronted {
        service: mesh.at("echo", 80)?,
        endpoint: SocketAddr::new(server.v4(), 8080),
        identity: &identity,
    };
    let envoy = Envoy::waypoint(&mesh.lab, &waypoint, &client.identity(), fronted)?;
    Ok((mesh, envoy))
}

#[test]
fn envoy_as_waypoint_is_where_a_captured_pods_connections_go() -> Result<()> {
    let (mesh, envoy) = behind_an_envoy()?;
    let to = mesh.at("echo", 80)?;
    // Only the waypoint may call, as Istio advises, so that nobody goes around it.
    mesh.apply(
        "policy.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: waypoint-only\n  namespace: \
         shop\nspec:\n  selector: {matchLabels: {app: echo}}\n  rules: [{from: [{source: {principals: \
         [cluster.local/ns/shop/sa/wp]}}]}]\n",
    )?;
    let sniffer = mesh.lab.sniff()?;
    mesh.soon("requests come through the waypoint", || {
        let seen = mesh.seen("client", to, &Ask::get("/secret-path"))?;
        ensure!(
            seen.header("x-waypoint").as_deref() == Some("envoy"),
            "{seen:?}"
        );
        Ok(())
    })
    .with_context(|| envoy.log())?;
    let traffic = sniffer.stop()?;
    ensure!(traffic.tls_records_to(15008) > 0, "it went through HBONE");
    ensure!(
        !traffic.contains(b"/secret-path"),
        "a request crossed the link in the clear"
    );
    let server = SocketAddr::new(mesh.pod("echo")?.v4(), 8080);
    mesh.soon("nobody goes around the waypoint", || {
        let answer = mesh.ask("client", server, &Ask::get("/"));
        ensure!(answer.is_err(), "it is answered: {answer:?}");
        Ok(())
    })?;
    let told = mesh.lab.node("a")?.culvert(&[
        "explain",
        "--from",
        "clients/client",
        "--to",
        "echo.shop:80",
        "GET",
        "/",
    ])?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    ensure!(told.contains("a waypoint of another controller"), "{told}");
    Ok(())
}

#[test]
fn nobody_goes_around_an_envoy_that_is_the_waypoint_and_is_away() -> Result<()> {
    let (mesh, envoy) = behind_an_envoy()?;
    let to = mesh.at("echo", 80)?;
    mesh.soon("requests come through the waypoint", || {
        mesh.seen("client", to, &Ask::get("/")).map(drop)
    })?;
    drop(envoy);
    let served = mesh.workload("echo")?.requests();
    mesh.soon("it is refused", || {
        let answer = mesh.ask("client", to, &Ask::get("/"));
        ensure!(answer.is_err(), "{answer:?}");
        Ok(())
    })?;
    ensure!(
        mesh.workload("echo")?.requests() == served,
        "the application hears of it"
    );
    Ok(())
}

#[test]
fn a_pair_of_envoys_splits_and_authorizes_as_the_benchmark_asks_of_it() -> Result<()> {
    let mut lab = Lab::two_nodes()?;
    let client = lab.add(&PodSpec::new("a", "client").uncaptured())?;
    let far = lab.add(&PodSpec::new("b", "envoy").uncaptured())?;
    let backends = ["one", "two"].map(|name| lab.add(&PodSpec::new("b", name).uncaptured()));
    let backends = backends.into_iter().collect::<Result<Vec<_>>>()?;
    let start = |pod| Echo::start(pod, &[PORT]);
    let echoes = backends.iter().map(start).collect::<Result<Vec<_>>>()?;
    // Only for the authority, which agents share.
    lab.start_agent("a")?;
    lab.agent("a")?.wait_ready()?;
    let addresses: Vec<SocketAddr> = backends
        .iter()
        .map(|pod| SocketAddr::new(pod.v4(), PORT))
        .collect();
    let _authorizer = Envoy::authorizer(&lab, &far, &client.identity(), (&addresses, 1))?;
    let local = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 10_000);
    let router = Envoy::router(&lab, &client, local, &far, (&[90, 10], 1))?;
    client
        .run(|| {
            for _ in 0..200 {
                ensure!(Ask::get("/").send(local)?.status == 200, "a GET passes");
            }
            ensure!(Ask::new("POST", "/").send(local)?.status == 403);
            Ok(())
        })
        .with_context(|| router.log())?;
    let second = echoes[1].requests();
    // Four and a half standard deviations of 200 draws: 4.5 · √(200 · 0.1 · 0.9) = 19.
    ensure!((1..=39).contains(&second), "{second} of 200 for a tenth");
    Ok(())
}
