//! Interoperation: HBONE with a real Envoy at the other end, in both directions.

use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::echo::Echo;
use e2e::envoy::Envoy;
use e2e::lab::{Lab, PodSpec, eventually};
use e2e::net::http::Ask;
use e2e::net::serve::{Server, echo};
use e2e::net::{self, pattern};
use e2e::scenario::{Pair, echoes};

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
