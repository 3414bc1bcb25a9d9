//! Hosts outside the mesh that clients name: ServiceEntry with a wildcard and `resolution: DYNAMIC_DNS`, behind a waypoint;
//! and names with several addresses, of which some do not answer.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::echo::{Echo, EchoMesh, Seen};
use e2e::lab::{Pod, PodSpec, eventually};
use e2e::net::http::Ask;
use e2e::net::serve::{Server, UdpEcho, echo};
use e2e::net::service::Front;
use e2e::net::{self, dns};
use e2e::scenario::echoes;
use e2e::tls::Authority;

/// The entry, as routes and policies name it.
const TARGET: &str = "{group: networking.istio.io, kind: ServiceEntry, name: wild}";

/// What hosts of the entry are reached at: HTTP, the same in TLS that is begun for its clients, TLS of their own, and bytes.
const PORTS: &str = "[{number: 80, name: http, protocol: HTTP, targetPort: 8080}, {number: 81, name: http-secure, \
                     protocol: HTTP, targetPort: 8443}, {number: 443, name: tls, protocol: TLS, targetPort: 8443}, \
                     {number: 9090, name: tcp, protocol: TCP}]";

/// No host has this one's last byte.
const NOBODY: u8 = 250;

/// A shop, two hosts that the mesh has never heard of, and a resolver that knows them and some others.
struct World {
    // Dropped before the lab, which removes their namespaces.
    _echoes: Vec<Echo>,
    _resolver: UdpEcho,
    mesh: EchoMesh,
    authority: Authority,
    north: Pod,
    /// Names that the resolver was asked for.
    asked: Arc<Mutex<Vec<String>>>,
}

impl World {
    fn new() -> Result<Self> {
        let mut mesh = EchoMesh::shop()?;
        let authority = Authority::new("abroad")?;
        let mut echoes = Vec::new();
        let mut hosts = Vec::new();
        for name in ["north", "south"] {
            let spec = PodSpec::new("b", name).in_namespace("clients");
            let host = mesh.lab.place(&spec.uncaptured())?;
            echoes.push(Echo::start(&host, &[8080])?);
            let tls = Some(authority.server(&[&format!("{name}.wild.example")], None)?);
            let front = Front {
                tls,
                ..Front::default()
            };
            echoes.push(Echo::start_behind(front, &host, &[8443])?);
            mesh.lab.manifests().delete(&host.file())?;
            hosts.push(host);
        }
        let (north, south) = (hosts.remove(0), hosts.remove(0));
        let known = BTreeMap::from([
            ("north.wild.example", vec![north.v4()]),
            ("south.wild.example", vec![south.v4()]),
            ("loop.wild.example", vec![Ipv4Addr::LOCALHOST.into()]),
            ("pod.wild.example", vec![mesh.pod("echo-v1")?.v4()]),
            ("secret.wild.example", vec![north.v4()]),
            ("several.wild.example", vec![nobody(&north)?, north.v4()]),
            ("several.example", vec![nobody(&north)?, north.v4()]),
        ]);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&asked);
        let at = SocketAddr::new(north.v4(), 53);
        let resolver = UdpEcho::answer(&north, at, move |query| {
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.extend(dns::name(query));
            dns::answer_by(query, |name| known.get(name).cloned().unwrap_or_default())
        })?;
        mesh.lab.resolve_at(north.v4())?;
        for node in ["a", "b"] {
            mesh.lab.take_agent(node)?.stop()?;
            mesh.lab.start_agent(node)?;
            mesh.lab.agent(node)?.wait_ready()?;
        }
        Ok(Self {
            _echoes: echoes,
            _resolver: resolver,
            mesh,
            authority,
            north,
            asked,
        })
    }

    /// The same with the entry, and the address that stands for all of its names.
    fn with_entry() -> Result<(Self, IpAddr)> {
        let world = Self::new()?;
        world.mesh.apply("entry.yaml", &wild("{}"))?;
        let address = world.looked_up("north.wild.example")?;
        ensure!(address.to_string().starts_with("240.240."), "{address}");
        ensure!(world.looked_up("south.wild.example")? == address);
        Ok((world, address))
    }

    /// The address that the client's own DNS gives it.
    fn looked_up(&self, name: &str) -> Result<IpAddr> {
        let resolver = SocketAddr::new(self.north.v4(), 53);
        let what = format!("{name} has an address");
        eventually(&what, Duration::from_secs(5), || {
            let answer = self.mesh.pod("client")?.run(|| {
                let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
                socket.set_read_timeout(Some(Duration::from_secs(2)))?;
                socket.send_to(&dns::query(7, name, dns::Kind::A), resolver)?;
                let mut datagram = [0; 512];
                let length = socket.recv(&mut datagram)?;
                dns::parse(&datagram[..length])
            })?;
            let mesh = answer.addresses.into_iter();
            let mut mesh = mesh.filter(|address| address.to_string().starts_with("240.240."));
            mesh.next().context("no address of the mesh's own")
        })
    }

    /// How often the resolver was asked for a name.
    fn asked_for(&self, name: &str) -> usize {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().filter(|one| *one == name).count()
    }

    /// Waits until a request for a host is answered by a pod.
    fn soon_from(&self, pod: &str, to: SocketAddr, host: &str) -> Result<Seen> {
        let ask = Ask::get("/").host(host);
        let mesh = &self.mesh;
        mesh.soon(&format!("{host} is {pod}"), || {
            let seen = mesh.seen("client", to, &ask)?;
            ensure!(seen.pod == pod, "{seen:?}");
            ensure!(seen.header("x-request-id").is_some(), "{seen:?}");
            Ok(())
        })?;
        mesh.seen("client", to, &ask)
    }

    /// Waits until requests for a host find none.
    fn soon_nowhere(&self, to: SocketAddr, host: &str) -> Result<()> {
        let ask = Ask::get("/").host(host);
        let answer = self.mesh.soon_answers("client", to, &ask, 503)?;
        ensure!(answer.text() == "DNS resolution failure", "{answer:?}");
        Ok(())
    }

    /// A request in TLS from a pod, to a server that has to prove the name which is asked for.
    fn ask_in_tls(&self, from: &str, to: SocketAddr, name: &str) -> Result<Seen> {
        let answer = self.mesh.pod(from)?.run(|| {
            let ask = Ask::get("/").host(name);
            self.authority.ask(name, to, &ask)
        })?;
        Seen::in_answer(&answer)
    }

    /// Waits until a node's log says something.
    fn soon_logged(&self, words: &str) -> Result<()> {
        eventually(words, Duration::from_secs(5), || {
            let log = self.mesh.lab.agent("a")?.log()?;
            ensure!(log.contains(words), "it does not");
            Ok(())
        })
    }
}

/// An address beside a host's that nobody has.
fn nobody(host: &Pod) -> Result<IpAddr> {
    match host.v4() {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            Ok(Ipv4Addr::new(a, b, c, NOBODY).into())
        }
        IpAddr::V6(v6) => anyhow::bail!("{v6} is not IPv4"),
    }
}

/// The entry of namespace `shop`, which is bound to its waypoint.
fn wild(annotations: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: wild\n  namespace: shop\n  annotations: \
         {annotations}\nspec:\n  hosts: ['*.wild.example']\n  location: MESH_EXTERNAL\n  resolution: DYNAMIC_DNS\n  ports: \
         {PORTS}\n"
    )
}

const RACE: &str = "{istio.io/connect-strategy: RACE_FIRST_TCP_CONNECT}";

#[test]
fn requests_go_to_the_host_that_they_name() -> Result<()> {
    let (world, address) = World::with_entry()?;
    let (mesh, to) = (&world.mesh, SocketAddr::new(address, 80));
    let before = world.asked_for("north.wild.example");
    for pod in ["north", "south"] {
        world.soon_from(pod, to, &format!("{pod}.wild.example"))?;
    }
    // One name in many spellings; where it leads to is the entry's to say, not the client's.
    let seen = world.soon_from("north", to, "NORTH.Wild.example.:9999")?;
    ensure!(seen.host == "NORTH.Wild.example.:9999", "{seen:?}");
    // Both families once for all these, by an agent that kept what it heard.
    let questions = world.asked_for("north.wild.example") - before;
    ensure!(questions <= 2, "asked {questions} times");
    for outside in [
        "north.example",
        "wild.example",
        "north.wild.example.org",
        "192.0.2.1",
    ] {
        mesh.soon_answers("client", to, &Ask::get("/").host(outside), 404)?;
    }
    mesh.counts("404", "NR")?;
    for nowhere in [
        "nobody.wild.example",
        "loop.wild.example",
        "pod.wild.example",
    ] {
        world.soon_nowhere(to, nowhere)?;
    }
    mesh.counts("503", "DF")
}

#[test]
fn tls_goes_to_the_host_that_it_names() -> Result<()> {
    let (world, address) = World::with_entry()?;
    let (mesh, to) = (&world.mesh, SocketAddr::new(address, 443));
    for pod in ["north", "south"] {
        let name = format!("{pod}.wild.example");
        mesh.soon(&format!("{name} is {pod}"), || {
            let seen = world.ask_in_tls("client", to, &name)?;
            ensure!(seen.pod == pod, "{seen:?}");
            // Nobody has looked into it.
            ensure!(seen.header("x-request-id").is_none(), "{seen:?}");
            Ok(())
        })?;
    }
    for (name, why) in [
        (
            "north.example",
            "the client says no name that *.wild.example stands for",
        ),
        (
            "loop.wild.example",
            "loop.wild.example leads to 127.0.0.1, a loopback address",
        ),
        (
            "pod.wild.example",
            "an address that the mesh knows by another name",
        ),
        (
            "nobody.wild.example",
            "nobody.wild.example cannot be looked up: it does not exist",
        ),
    ] {
        let answer = world.ask_in_tls("client", to, name);
        ensure!(answer.is_err(), "{name}: {answer:?}");
        world.soon_logged(why)?;
    }
    // What names nobody goes nowhere, on a port for TLS as on one for bytes.
    for port in [443, 9090] {
        let to = SocketAddr::new(address, port);
        let carried = mesh
            .pod("client")?
            .run(|| echoes(&net::connect(to)?, "\u{1}bytes"));
        ensure!(carried.is_err(), "bytes are carried to port {port}");
    }
    Ok(())
}

#[test]
fn what_the_entry_demands_holds_for_every_name() -> Result<()> {
    let (world, address) = World::with_entry()?;
    let (mesh, to) = (&world.mesh, SocketAddr::new(address, 80));
    world.soon_from("north", to, "north.wild.example")?;
    mesh.apply(
        "route.yaml",
        &format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: wild, namespace: shop}}\nspec:\n  \
             parentRefs: [{}]\n  rules:\n  - filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: \
             [{{name: x-egress, value: 'yes'}}]}}}}]\n    backendRefs: [{{group: networking.istio.io, kind: Hostname, name: \
             '*.wild.example', port: 80}}]\n",
            TARGET.replace("name: wild", "name: wild, port: 80")
        ),
    )?;
    mesh.apply(
        "policy.yaml",
        &format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: wild, namespace: shop}}\nspec:\n  \
             targetRefs: [{TARGET}]\n  action: DENY\n  rules: [{{to: [{{operation: {{paths: [/admin]}}}}]}}, {{from: \
             [{{source: {{principals: [cluster.local/ns/clients/sa/stranger]}}}}]}}]\n"
        ),
    )?;
    let admin = Ask::get("/admin").host("secret.wild.example");
    mesh.soon_answers(
        "client",
        to,
        &Ask::get("/admin").host("north.wild.example"),
        403,
    )?;
    mesh.soon_answers("client", to, &admin, 403)?;
    mesh.soon_answers(
        "stranger",
        to,
        &Ask::get("/").host("secret.wild.example"),
        403,
    )?;
    mesh.soon("the route is in force", || {
        let seen = mesh.seen("client", to, &Ask::get("/").host("south.wild.example"))?;
        ensure!(
            seen.header("x-egress").as_deref() == Some("yes"),
            "{seen:?}"
        );
        ensure!(seen.pod == "south", "{seen:?}");
        Ok(())
    })?;
    // Bytes, too; and a name that may not be called is not even looked up.
    let secure = SocketAddr::new(address, 443);
    mesh.soon("a stranger's TLS is refused", || {
        let answer = world.ask_in_tls("stranger", secure, "secret.wild.example");
        ensure!(answer.is_err(), "{answer:?}");
        Ok(())
    })?;
    ensure!(
        world.asked_for("secret.wild.example") == 0,
        "it was looked up"
    );
    // TLS that is begun for clients is in the name that they ask for.
    mesh.apply("secret.yaml", &world.authority.secret("ca", None)?)?;
    mesh.apply(
        "rule.yaml",
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: wild, namespace: shop}\nspec:\n  host: \
         '*.wild.example'\n  trafficPolicy:\n    portLevelSettings: [{port: {number: 81}, tls: {mode: SIMPLE, credentialName: \
         ca}}]\n",
    )?;
    for pod in ["north", "south"] {
        let name = format!("{pod}.wild.example");
        let seen = world.soon_from(pod, SocketAddr::new(address, 81), &name)?;
        let tls = seen.tls.context("no TLS")?;
        ensure!(tls.server_name.as_deref() == Some(&*name), "{tls:?}");
    }
    Ok(())
}

#[test]
fn without_a_waypoint_an_entry_for_names_has_no_effect() -> Result<()> {
    let (world, _address) = World::with_entry()?;
    let mesh = &world.mesh;
    let unbound = wild("{}").replace(
        "  annotations: {}\n",
        "  labels: {istio.io/use-waypoint: none}\n",
    );
    mesh.apply("entry.yaml", &unbound)?;
    // The name is a name like any other.
    mesh.soon("its host is called by its own address", || {
        let resolver = SocketAddr::new(world.north.v4(), 53);
        let answer = mesh.pod("client")?.run(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
            socket.send_to(&dns::query(7, "north.wild.example", dns::Kind::A), resolver)?;
            let mut datagram = [0; 512];
            let length = socket.recv(&mut datagram)?;
            dns::parse(&datagram[..length])
        })?;
        ensure!(answer.addresses == [world.north.v4()], "{answer:?}");
        Ok(())
    })?;
    world.soon_logged("resolution DYNAMIC_DNS takes a waypoint")
}

/// How long a connection takes to carry bytes.
fn carried_within(mesh: &EchoMesh, to: SocketAddr) -> Result<Duration> {
    let start = Instant::now();
    mesh.pod("client")?
        .run(|| echoes(&net::connect(to)?, "\u{1}bytes"))?;
    Ok(start.elapsed())
}

#[test]
fn the_first_address_that_answers_is_the_one() -> Result<()> {
    let world = World::new()?;
    let mesh = &world.mesh;
    let _served = Server::start(&world.north, Ipv4Addr::UNSPECIFIED, 9090, echo)?;
    let entry = |annotations: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: several\n  namespace: shop\n  \
             annotations: {annotations}\nspec:\n  hosts: [several.example]\n  addresses: [10.96.1.1]\n  resolution: DNS\n  \
             ports: [{{number: 9090, name: tcp, protocol: TCP}}]\n"
        )
    };
    let to: SocketAddr = "10.96.1.1:9090".parse()?;
    let at_once = Duration::from_secs(1);
    // One after the other: whoever begins with the address that nobody has waits for its silence.
    mesh.apply("entry.yaml", &entry("{}"))?;
    eventually("bytes get there", Duration::from_secs(20), || {
        carried_within(mesh, to)
    })?;
    let mut slowest = Duration::ZERO;
    for _ in 0..16 {
        slowest = slowest.max(carried_within(mesh, to)?);
        if slowest > at_once {
            break;
        }
    }
    ensure!(slowest > at_once, "nobody answers there, and none waited");
    // All at once.
    mesh.apply("entry.yaml", &entry(RACE))?;
    mesh.soon("connections race", || {
        let taken = carried_within(mesh, to)?;
        ensure!(taken < at_once, "{taken:?}");
        Ok(())
    })?;
    // The same for names that clients say.
    mesh.apply("wild.yaml", &wild(RACE))?;
    let address = world.looked_up("several.wild.example")?;
    let to = SocketAddr::new(address, 80);
    mesh.soon("a request is answered at once", || {
        let start = Instant::now();
        let seen = mesh.seen("client", to, &Ask::get("/").host("several.wild.example"))?;
        ensure!(seen.pod == "north", "{seen:?}");
        ensure!(start.elapsed() < at_once, "{:?}", start.elapsed());
        Ok(())
    })
}
