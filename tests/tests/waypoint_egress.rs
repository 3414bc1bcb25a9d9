//! Hosts outside the mesh, behind a waypoint: ServiceEntry with routes and policies of its own.
//!
//! What is outside cannot judge requests, so the client's node does.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::echo::{Echo, EchoMesh, Seen};
use e2e::lab::{Pod, PodSpec, eventually};
use e2e::net::http::Ask;
use e2e::net::serve::{Server, UdpEcho, echo};
use e2e::net::{self, dns};
use e2e::scenario::echoes;

/// The address that the entry declares.
const ADDRESS: &str = "10.96.1.1";

/// A shop, and an echo workload outside the mesh that a ServiceEntry stands for.
struct Abroad {
    mesh: EchoMesh,
    host: Pod,
    echo: Echo,
    to: SocketAddr,
}

/// The entry, as routes and policies name it.
const TARGET: &str = "{group: networking.istio.io, kind: ServiceEntry, name: abroad}";

/// A ServiceEntry of namespace `shop`; `labels` and what follows the ports are the row's.
fn entry(labels: &str, more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: abroad\n  namespace: shop\n  labels: \
         {labels}\nspec:\n  hosts: [api.example.com]\n  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: \
         8080}}]\n{more}"
    )
}

impl Abroad {
    fn new() -> Result<Self> {
        Self::serving(&[8080])
    }

    fn serving(ports: &[u16]) -> Result<Self> {
        let mut mesh = EchoMesh::shop()?;
        let host = mesh.lab.place(
            &PodSpec::new("b", "abroad")
                .in_namespace("clients")
                .uncaptured(),
        )?;
        let echo = Echo::start(&host, ports)?;
        let to = SocketAddr::new(ADDRESS.parse()?, 80);
        Ok(Self {
            mesh,
            host,
            echo,
            to,
        })
    }

    /// The same with a host that the mesh has never heard of.
    fn unheard_of(ports: &[u16]) -> Result<Self> {
        let mut abroad = Self::serving(ports)?;
        abroad.mesh.lab.manifests().delete(&abroad.host.file())?;
        abroad.to = SocketAddr::new(abroad.host.v4(), 80);
        abroad.mesh.soon_at_layer7("client", abroad.to, false)?;
        Ok(abroad)
    }

    /// A route of the entry that says so, and a policy that lets only `client` leave, and only for `/api`.
    fn guard(&self) -> Result<()> {
        self.mesh.apply(
            "route.yaml",
            &format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: abroad, namespace: \
                 shop}}\nspec:\n  parentRefs: [{TARGET}]\n  rules:\n  - filters: [{{type: RequestHeaderModifier, \
                 requestHeaderModifier: {{set: [{{name: x-egress, value: 'yes'}}]}}}}]\n    backendRefs: [{{group: \
                 networking.istio.io, kind: Hostname, name: api.example.com, port: 80}}]\n"
            ),
        )?;
        self.mesh.apply(
            "policy.yaml",
            &format!(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: abroad, namespace: \
                 shop}}\nspec:\n  targetRefs: [{TARGET}]\n  rules: [{{from: [{{source: {{principals: \
                 [cluster.local/ns/clients/sa/client]}}}}], to: [{{operation: {{paths: [/api]}}}}]}}]\n"
            ),
        )
    }

    /// Waits until both are in force at an address, and the host abroad answers.
    fn is_guarded(&self, to: SocketAddr) -> Result<()> {
        let mesh = &self.mesh;
        let ask = Ask::get("/api").host("api.example.com");
        mesh.soon("the route is in force", || {
            let seen = mesh.seen("client", to, &ask)?;
            ensure!(
                seen.header("x-egress").as_deref() == Some("yes"),
                "{seen:?}"
            );
            ensure!(seen.pod == "abroad", "{seen:?}");
            ensure!(seen.host == "api.example.com", "{seen:?}");
            Ok(())
        })?;
        mesh.soon_answers("stranger", to, &ask, 403)?;
        mesh.soon_answers("client", to, &Ask::get("/other"), 403)
            .map(drop)
    }

    fn with_static_endpoint(labels: &str, location: &str) -> Result<Self> {
        let abroad = Self::new()?;
        let endpoint = format!(
            "  addresses: [{ADDRESS}]\n  resolution: STATIC\n  location: {location}\n  endpoints: [{{address: {}}}]\n",
            abroad.host.v4()
        );
        abroad.mesh.apply("entry.yaml", &entry(labels, &endpoint))?;
        Ok(abroad)
    }
}

#[test]
fn service_entry_inlined_workload_entry() -> Result<()> {
    for location in ["MESH_INTERNAL", "MESH_EXTERNAL"] {
        let abroad = Abroad::with_static_endpoint("{istio.io/use-waypoint: none}", location)?;
        // Bound to no waypoint: reached at layer 4.
        abroad.mesh.soon_at_layer7("client", abroad.to, false)?;
        let bound = Abroad::with_static_endpoint("{}", location)?;
        bound.mesh.soon_at_layer7("client", bound.to, true)?;
        ensure!(
            bound.echo.requests() > 0,
            "it is the host abroad that answers"
        );
    }
    Ok(())
}

#[test]
fn service_entry_selects_uncaptured_pod() -> Result<()> {
    let abroad = Abroad::new()?;
    // A selector is about pods of the entry's own namespace.
    let selector = format!(
        "  addresses: [{ADDRESS}]\n  resolution: STATIC\n  location: MESH_INTERNAL\n  workloadSelector: {{labels: {{app: \
         abroad}}}}\n"
    );
    let text = entry(
        "{istio.io/use-waypoint: waypoint, istio.io/use-waypoint-namespace: shop}",
        &selector,
    );
    let text = text.replace("namespace: shop\n  labels", "namespace: clients\n  labels");
    let mesh = &abroad.mesh;
    mesh.waypoint(
        "shop",
        "waypoint",
        "{}",
        "    allowedRoutes: {namespaces: {from: All}}\n",
    )?;
    mesh.apply("entry.yaml", &text)?;
    mesh.soon_at_layer7("client", abroad.to, true)?;
    ensure!(
        abroad.echo.requests() > 0,
        "it is the selected pod that answers"
    );
    Ok(())
}

#[test]
fn service_entry_selects_workload_entry() -> Result<()> {
    let abroad = Abroad::new()?;
    let selector = format!(
        "  addresses: [{ADDRESS}]\n  resolution: STATIC\n  location: MESH_INTERNAL\n  workloadSelector: {{labels: {{app: \
         far}}}}\n"
    );
    abroad.mesh.apply("entry.yaml", &entry("{}", &selector))?;
    abroad.mesh.apply(
        "workload.yaml",
        &format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: far\n  namespace: shop\nspec:\n  \
             address: {}\n  labels: {{app: far}}\n",
            abroad.host.v4()
        ),
    )?;
    abroad.mesh.soon_at_layer7("client", abroad.to, true)?;
    ensure!(
        abroad.echo.requests() > 0,
        "it is the workload entry that answers"
    );
    Ok(())
}

#[test]
fn service_entry_dns_with_auto_assign() -> Result<()> {
    let abroad = Abroad::new()?;
    let endpoint = format!(
        "  resolution: STATIC\n  location: MESH_EXTERNAL\n  endpoints: [{{address: {}}}]\n",
        abroad.host.v4()
    );
    abroad.mesh.apply("entry.yaml", &entry("{}", &endpoint))?;
    let client = abroad.mesh.pod("client")?;
    // Any address that a resolver could have: the agent answers in its place.
    let resolver = SocketAddr::new(abroad.host.v4(), 53);
    let address = eventually(
        "an address of the mesh's own",
        Duration::from_secs(5),
        || {
            let answer = client.run(|| {
                let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
                socket.set_read_timeout(Some(Duration::from_secs(2)))?;
                socket.send_to(&dns::query(7, "api.example.com", dns::Kind::A), resolver)?;
                let mut datagram = [0; 512];
                let length = socket.recv(&mut datagram)?;
                dns::parse(&datagram[..length])
            })?;
            answer.addresses.first().copied().context("no address")
        },
    )?;
    ensure!(address.to_string().starts_with("240.240."), "{address}");
    abroad
        .mesh
        .soon_at_layer7("client", SocketAddr::new(address, 80), true)
}

#[test]
fn waypoint_as_egress_gateway() -> Result<()> {
    let abroad = Abroad::with_static_endpoint("{}", "MESH_EXTERNAL")?;
    let (mesh, to) = (&abroad.mesh, abroad.to);
    mesh.apply(
        "route.yaml",
        &format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: abroad\n  namespace: \
             shop\nspec:\n  parentRefs: [{TARGET}]\n  rules:\n  - matches: [{{path: {{value: /api}}}}]\n    filters: \
             [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-egress, value: 'yes'}}]}}}}]\n    \
             backendRefs: [{{group: networking.istio.io, kind: Hostname, name: api.example.com, port: 80}}]\n"
        ),
    )?;
    mesh.soon("the route is in force", || {
        let answer = mesh.ask("client", to, &Ask::get("/api").host("api.example.com"))?;
        let seen = Seen::in_answer(&answer)?;
        ensure!(
            seen.header("x-egress").as_deref() == Some("yes"),
            "{seen:?}"
        );
        ensure!(seen.host == "api.example.com", "{seen:?}");
        Ok(())
    })?;
    mesh.soon_answers("client", to, &Ask::get("/other"), 404)?;
    // Who may leave, and for what.
    mesh.apply(
        "policy.yaml",
        &format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: abroad\n  namespace: \
             shop\nspec:\n  targetRefs: [{TARGET}]\n  rules:\n  - from: [{{source: {{principals: \
             [cluster.local/ns/clients/sa/client]}}}}]\n    to: [{{operation: {{methods: [GET]}}}}]\n"
        ),
    )?;
    mesh.soon_answers("stranger", to, &Ask::get("/api"), 403)?;
    mesh.soon_answers("client", to, &Ask::new("POST", "/api"), 403)?;
    mesh.soon_answers("client", to, &Ask::get("/api"), 200)?;
    Ok(())
}

/// Ports of entries with resolution NONE: what is dialled is where it goes.
const DIALLED: &str =
    "ports: [{number: 80, name: http, protocol: HTTP}, {number: 9090, name: tcp, protocol: TCP}]";

/// An entry with resolution NONE for addresses.
fn described(addresses: &str) -> String {
    let entry = entry(
        "{}",
        &format!("  addresses: [{addresses}]\n  resolution: NONE\n"),
    );
    let declared = "ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]";
    entry.replace(declared, DIALLED)
}

#[test]
fn waypoint_as_egress_gateway_for_addresses() -> Result<()> {
    let abroad = Abroad::unheard_of(&[80, 81])?;
    let (mesh, to) = (&abroad.mesh, abroad.to);
    // One address, and a range that has it.
    let range = format!("{}/20", to.ip());
    for addresses in [to.ip().to_string(), range] {
        mesh.apply("entry.yaml", &described(&addresses))?;
        mesh.soon_at_layer7("client", to, true)?;
        abroad.guard()?;
        abroad.is_guarded(to)?;
        // What the entry does not declare is no way around.
        let undeclared = SocketAddr::new(to.ip(), 81);
        mesh.soon("a port that is not declared", || {
            let answer = mesh.ask("client", undeclared, &Ask::get("/api"));
            ensure!(answer.is_err(), "{answer:?}");
            Ok(())
        })?;
        for file in ["policy.yaml", "route.yaml"] {
            mesh.lab.manifests().delete(file)?;
        }
        mesh.soon_answers("stranger", to, &Ask::get("/other"), 200)?;
    }
    mesh.lab.manifests().delete("entry.yaml")?;
    mesh.soon_at_layer7("client", to, false)
}

#[test]
fn waypoint_as_egress_gateway_for_a_name() -> Result<()> {
    let mut abroad = Abroad::unheard_of(&[80, 8080])?;
    // Both agents ask a DNS server that knows the name.
    let (server, answer) = (abroad.host.v4(), abroad.host.v4());
    let at = SocketAddr::new(server, 53);
    let _resolver = UdpEcho::answer(&abroad.host, at, move |query| dns::answer(query, answer))?;
    let lab = &mut abroad.mesh.lab;
    lab.resolve_at(server)?;
    for node in ["a", "b"] {
        lab.take_agent(node)?.stop()?;
        lab.start_agent(node)?;
        lab.agent(node)?.wait_ready()?;
    }
    let mesh = &abroad.mesh;
    let to = SocketAddr::new(ADDRESS.parse()?, 80);
    let endpoint = "  endpoints: [{address: real.example.com}]\n";
    for more in ["", endpoint] {
        let more = format!("  addresses: [{ADDRESS}]\n  resolution: DNS\n{more}");
        mesh.apply("entry.yaml", &entry("{}", &more))?;
        mesh.soon_at_layer7("client", to, true)?;
        abroad.guard()?;
        abroad.is_guarded(to)?;
        for file in ["policy.yaml", "route.yaml", "entry.yaml"] {
            mesh.lab.manifests().delete(file)?;
        }
        mesh.soon("the entry is gone", || {
            let answer = mesh.ask("client", to, &Ask::get("/api"));
            ensure!(answer.is_err(), "{answer:?}");
            Ok(())
        })?;
    }
    // Without a waypoint it is connections that get there.
    let more = format!("  addresses: [{ADDRESS}]\n  resolution: DNS\n");
    mesh.apply("entry.yaml", &entry("{istio.io/use-waypoint: none}", &more))?;
    mesh.soon_at_layer7("client", to, false)
}

#[test]
fn bytes_leave_only_for_who_may() -> Result<()> {
    let abroad = Abroad::unheard_of(&[80])?;
    let mesh = &abroad.mesh;
    let host = abroad.host.v4();
    let served = Server::start(&abroad.host, std::net::Ipv4Addr::UNSPECIFIED, 9090, echo)?;
    let endpoints = format!(
        "  addresses: [{ADDRESS}]\n  resolution: STATIC\n  endpoints: [{{address: {host}}}]\n"
    );
    let declared = "ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]";
    let entries = [
        (described(&host.to_string()), SocketAddr::new(host, 9090)),
        (
            entry("{}", &endpoints).replace(declared, DIALLED),
            SocketAddr::new(ADDRESS.parse()?, 9090),
        ),
    ];
    for (entry, to) in entries {
        mesh.apply("entry.yaml", &entry)?;
        let carried = |from: &str| {
            mesh.pod(from)?
                .run(|| echoes(&net::connect(to)?, "\u{1}bytes"))
        };
        // The entry is in force; what was carried before it is nobody's.
        mesh.soon_at_layer7("client", SocketAddr::new(to.ip(), 80), true)?;
        mesh.soon("bytes get there", || carried("stranger"))?;
        let live = mesh.pod("stranger")?.run(|| Ok(net::connect(to)?))?;
        echoes(&live, "before")?;
        mesh.apply(
            "policy.yaml",
            &format!(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: abroad, namespace: \
                 shop}}\nspec:\n  targetRefs: [{TARGET}]\n  rules: [{{from: [{{source: {{principals: \
                 [cluster.local/ns/clients/sa/client]}}}}]}}]\n"
            ),
        )?;
        mesh.soon("what is carried ends", || {
            ensure!(echoes(&live, "after").is_err(), "it goes on");
            Ok(())
        })?;
        mesh.soon("others are refused", || {
            ensure!(carried("stranger").is_err(), "they are not");
            Ok(())
        })?;
        let before = served.accepted();
        ensure!(carried("stranger").is_err(), "a refusal stays one");
        ensure!(served.accepted() == before, "the host hears nothing of it");
        carried("client")?;
        // A rule about requests allows no bytes.
        abroad.guard()?;
        mesh.soon("no request can be seen", || {
            ensure!(carried("client").is_err(), "bytes pass");
            Ok(())
        })?;
        for file in ["policy.yaml", "route.yaml"] {
            mesh.lab.manifests().delete(file)?;
        }
    }
    Ok(())
}

#[test]
fn service_entry_visibility() -> Result<()> {
    let mut abroad = Abroad::new()?;
    let other = abroad.mesh.lab.place(
        &PodSpec::new("b", "other")
            .in_namespace("clients")
            .uncaptured(),
    )?;
    let _other = Echo::start(&other, &[8080])?;
    let spec = PodSpec::new("a", "insider").in_namespace("shop");
    abroad.mesh.lab.place(&spec)?;
    abroad.mesh.lab.agent("a")?.wait_ready()?;
    let (mesh, to) = (&abroad.mesh, abroad.to);
    let private = |namespace: &str, host: std::net::IpAddr| {
        let more = format!(
            "  addresses: [{ADDRESS}]\n  resolution: STATIC\n  exportTo: ['.']\n  endpoints: [{{address: {host}}}]\n"
        );
        entry("{}", &more).replace("namespace: shop", &format!("namespace: {namespace}"))
    };
    let resolver = SocketAddr::new(abroad.host.v4(), 53);
    let knows = |pod: &str| {
        mesh.pod(pod)?.run(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(Duration::from_millis(300)))?;
            socket.send_to(&dns::query(7, "api.example.com", dns::Kind::A), resolver)?;
            let mut datagram = [0; 512];
            // Nobody else knows the name: what the mesh does not answer, nobody does.
            let answered = socket.recv(&mut datagram).ok();
            let answer = answered.map(|length| dns::parse(&datagram[..length]));
            Ok(answer
                .transpose()?
                .is_some_and(|one| !one.addresses.is_empty()))
        })
    };
    mesh.apply("entry.yaml", &private("shop", abroad.host.v4()))?;
    // Its own namespace sees it, by address and by name, and others see nothing.
    mesh.soon_at_layer7("insider", to, true)?;
    ensure!(knows("insider")?, "its own namespace cannot look it up");
    ensure!(!knows("client")?, "another namespace looks it up");
    let answer = mesh.ask("client", to, &Ask::get("/"));
    ensure!(answer.is_err(), "another namespace reaches it: {answer:?}");
    // What two namespaces call so is each one's own.
    mesh.apply("entry-clients.yaml", &private("clients", other.v4()))?;
    for (from, pod) in [("insider", "abroad"), ("client", "other")] {
        mesh.soon(&format!("{from} reaches {pod}"), || {
            let seen = mesh.seen(from, to, &Ask::get("/"))?;
            ensure!(seen.pod == pod, "{seen:?}");
            Ok(())
        })?;
    }
    ensure!(knows("client")?, "its own namespace cannot look it up");
    // For all.
    mesh.lab.manifests().delete("entry-clients.yaml")?;
    let public = private("shop", abroad.host.v4()).replace("['.']", "['*']");
    mesh.apply("entry.yaml", &public)?;
    mesh.soon_at_layer7("client", to, true)
}

#[test]
fn outbound_policy_allow_any() -> Result<()> {
    let abroad = Abroad::new()?;
    // What nobody declared is passed through.
    let itself = SocketAddr::new(abroad.host.v4(), 8080);
    abroad.mesh.soon_at_layer7("client", itself, false)
}
