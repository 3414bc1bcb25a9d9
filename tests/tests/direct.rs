//! The kernel-direct path: pods of one node that may, reach each other without the proxy, and nobody else does.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::lab::{Agent, Lab, Pod, PodSpec, eventually};
use e2e::net::serve::{Server, echo, page, tell_addresses};
use e2e::net::{self, sys};
use e2e::scenario::{echoes, mapped};

const PORT: u16 = 7000;
const OTHER_PORT: u16 = 7001;
/// How soon a change holds.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How soon the agent says what has happened.
const SOON: Duration = Duration::from_secs(5);
/// When nothing is left of a pod that leaves the mesh.
const DRAINED: Duration = Duration::from_secs(10);
/// The label of what the kernel has carried.
const BY_KERNEL: &str = "connection_security_policy=\"kernel\"";
const BY_TLS: &str = "connection_security_policy=\"mutual_tls\"";

/// A client and an echo server on node a.
struct Neighbours {
    client: Pod,
    server: Pod,
    _echo: Server,
    lab: Lab,
}

impl Neighbours {
    fn new() -> Result<Self> {
        Self::with(|_| Ok(()))
    }

    /// With what else is to be there from the start.
    fn with(prepare: impl FnOnce(&mut Lab) -> Result<()>) -> Result<Self> {
        let mut lab = Lab::two_nodes()?;
        let (client, server) = (lab.pod("a", "client")?, lab.pod("a", "server")?);
        prepare(&mut lab)?;
        lab.start()?;
        let echo = Server::start(&server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
        Ok(Self {
            client,
            server,
            _echo: echo,
            lab,
        })
    }

    fn agent(&self) -> Result<&Agent> {
        self.lab.agent("a")
    }

    /// The server's port in both families, and in IPv4 through an IPv6 socket.
    fn ways(&self) -> [SocketAddr; 3] {
        let addresses = [self.server.v4(), self.server.v6(), mapped(self.server.v4())];
        addresses.map(|address| SocketAddr::new(address, PORT))
    }

    /// Connects until the kernel carries it by itself: the first connection asks the agent.
    fn straight(&self, to: SocketAddr) -> Result<TcpStream> {
        eventually("the kernel carries it", SOON, || {
            let before = self.live()?;
            let stream = self.client.run(|| {
                let stream = net::connect(to)?;
                echoes(&stream, "hello")?;
                Ok(stream)
            })?;
            ensure!(self.live()? == before + 2, "the proxy carries it");
            Ok(stream)
        })
    }

    /// Ends of connections that the kernel carries now.
    fn live(&self) -> Result<usize> {
        let flows = self.agent()?.pins().join("maps").join("FLOWS");
        sys::map_keys(&flows)?.context("a map with keys")
    }

    fn policy(&self, spec: &str) -> Result<()> {
        self.lab.manifests().apply(
            "policy.yaml",
            &format!(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: rule\n  namespace: \
                 app\nspec:\n{spec}"
            ),
        )
    }
}

const DENY_THE_CLIENT: &str = "  action: DENY\n  rules:\n  - from:\n    - source:\n        principals: \
                               [cluster.local/ns/app/sa/client]\n";

#[test]
fn neighbours_reach_each_other_without_the_proxy_and_see_true_addresses() -> Result<()> {
    let pods = Neighbours::new()?;
    let _tell = Server::start(
        &pods.server,
        Ipv6Addr::UNSPECIFIED,
        OTHER_PORT,
        tell_addresses,
    )?;
    for to in pods.ways() {
        drop(pods.straight(to)?);
        let asked = SocketAddr::new(to.ip(), OTHER_PORT);
        for _twice in 0..2 {
            let (seen, own) = pods.client.run(|| {
                let stream = net::connect(asked)?;
                ensure!(stream.peer_addr()? == asked, "{:?}", stream.peer_addr());
                let own = stream.local_addr()?;
                Ok((String::from_utf8(net::read_to_end(&stream)?)?, own))
            })?;
            let peer: SocketAddr = seen.split(' ').next().context("an address")?.parse()?;
            let canonical = |one: SocketAddr| SocketAddr::new(one.ip().to_canonical(), one.port());
            ensure!(canonical(peer) == canonical(own), "{seen} sees {own}");
        }
    }
    // Nobody else's connections are any business of these verdicts.
    let denied = pods.agent()?.metric("culvert_direct_denied_total", &[])?;
    ensure!(denied < 1.0, "{denied} were refused");
    Ok(())
}

/// What the kernel has carried between client and server, as one of the two reports it: connections opened and closed,
/// bytes to the server and to the client.
fn counted(agent: &Agent, reporter: &str) -> Result<Vec<f64>> {
    let reporter = format!("reporter=\"{reporter}\"");
    let labels = [
        BY_KERNEL,
        &reporter,
        "source_principal=\"spiffe://cluster.local/ns/app/sa/client\"",
        "destination_principal=\"spiffe://cluster.local/ns/app/sa/server\"",
        "destination_workload=\"server\"",
    ];
    let names = [
        "istio_tcp_connections_opened_total",
        "istio_tcp_connections_closed_total",
        "istio_tcp_received_bytes_total",
        "istio_tcp_sent_bytes_total",
    ];
    let values = names.iter().map(|name| agent.metric(name, &labels));
    values.collect()
}

#[test]
fn every_byte_of_both_ends_is_in_metrics_and_log() -> Result<()> {
    const REQUEST: usize = 123_457;
    const ANSWER: usize = 2 * REQUEST;
    let pods = Neighbours::new()?;
    let _twice = Server::start(
        &pods.server,
        Ipv6Addr::UNSPECIFIED,
        OTHER_PORT,
        |mut stream| {
            let request = net::read_to_end(stream)?;
            stream.write_all(&request)?;
            Ok(stream.write_all(&request)?)
        },
    )?;
    // The first one in each family, which asks the agent, goes straight as well.
    for to in pods.ways() {
        pods.client.run(|| {
            let mut stream = net::connect(SocketAddr::new(to.ip(), OTHER_PORT))?;
            stream.write_all(&vec![7; REQUEST])?;
            stream.shutdown(Shutdown::Write)?;
            let back = net::read_to_end(&stream)?;
            ensure!(back.len() == ANSWER, "{} bytes came back", back.len());
            Ok(())
        })?;
    }
    let agent = pods.agent()?;
    for (reporter, direction, sent, received) in [
        ("source", "outbound", REQUEST, ANSWER),
        ("destination", "inbound", ANSWER, REQUEST),
    ] {
        eventually("they are counted to the byte", SOON, || {
            let counted = counted(agent, reporter)?;
            let expected = [3.0, 3.0, 370_371.0, 740_742.0];
            ensure!(counted == expected, "{reporter}: {counted:?}");
            Ok(())
        })?;
        let log = agent.log()?;
        let parts = [
            "connection complete".to_owned(),
            format!("direction=\"{direction}\""),
            format!("bytes_sent={sent} bytes_recv={received}"),
            "src.identity=\"spiffe://cluster.local/ns/app/sa/client\"".to_owned(),
        ];
        let lines = log
            .lines()
            .filter(|line| parts.iter().all(|part| line.contains(part)));
        ensure!(lines.count() == 3, "{direction}:\n{log}");
    }
    Ok(())
}

#[test]
fn long_connections_are_counted_while_they_last() -> Result<()> {
    const BYTES: usize = 54_321;
    let pods = Neighbours::new()?;
    let mut stream = pods.straight(pods.ways()[0])?;
    stream.write_all(&vec![7; BYTES])?;
    net::read_exactly(&stream, BYTES)?;
    eventually("its bytes are counted", Duration::from_secs(15), || {
        for reporter in ["source", "destination"] {
            let reporter = format!("reporter=\"{reporter}\"");
            for name in [
                "istio_tcp_received_bytes_total",
                "istio_tcp_sent_bytes_total",
            ] {
                let counted = pods.agent()?.metric(name, &[BY_KERNEL, &reporter])?;
                ensure!(counted > 50_000.0, "{reporter} {name}: {counted}");
            }
        }
        Ok(())
    })?;
    echoes(&stream, "it still lives")
}

#[test]
fn a_policy_refuses_at_connect_and_the_log_names_it() -> Result<()> {
    let pods = Neighbours::new()?;
    drop(pods.straight(pods.ways()[0])?);
    pods.policy(DENY_THE_CLIENT)?;
    for to in pods.ways() {
        // The proxy refuses first, then the kernel, with the same number.
        eventually("it is refused", AT_ONCE, || {
            let refused = pods.client.run(|| Ok(net::connect(to)))?;
            let error = refused.err().context("it connects")?;
            ensure!(error.raw_os_error() == Some(libc::ECONNREFUSED), "{error}");
            Ok(())
        })?;
        pods.client.run(|| {
            let error = net::connect(to).err().context("it connects")?;
            ensure!(error.raw_os_error() == Some(libc::ECONNREFUSED), "{error}");
            Ok(())
        })?;
    }
    eventually("the kernel has refused by itself", SOON, || {
        let denied = pods.agent()?.metric("culvert_direct_denied_total", &[])?;
        ensure!(denied >= 3.0, "{denied}");
        let log = pods.agent()?.log()?;
        ensure!(log.contains("explicitly denied by: app/rule"), "{log}");
        Ok(())
    })?;
    // And no longer than the policy.
    pods.lab.manifests().delete("policy.yaml")?;
    for to in pods.ways() {
        eventually("it connects again", AT_ONCE * 2, || {
            pods.client.run(|| echoes(&net::connect(to)?, "hello"))
        })?;
    }
    Ok(())
}

#[test]
fn a_thousand_live_connections_end_within_a_second_of_the_policy() -> Result<()> {
    const MANY: usize = 1000;
    let pods = Neighbours::new()?;
    let ways = pods.ways();
    for to in ways {
        drop(pods.straight(to)?);
    }
    eventually("those are gone", SOON, || {
        ensure!(pods.live()? == 0, "{} live", pods.live()?);
        Ok(())
    })?;
    let streams = pods.client.run(|| {
        let each = ways.iter().cycle().take(MANY);
        each.map(|to| Ok(net::connect(*to)?))
            .collect::<Result<Vec<_>>>()
    })?;
    ensure!(pods.live()? == 2 * MANY, "{} are direct", pods.live()?);
    // They connect all the time, too: none may slip through between verdicts and live connections.
    let begun = Instant::now();
    pods.policy(DENY_THE_CLIENT)?;
    let attempts = pods.client.run(|| {
        let mut attempts = Vec::new();
        while begun.elapsed() < AT_ONCE {
            attempts.extend(ways.iter().filter_map(|to| net::connect(*to).ok()));
        }
        Ok(attempts)
    })?;
    let survivors = streams.iter().chain(&attempts).filter(|stream| {
        let asked = stream.set_nonblocking(true);
        let mut stream = *stream;
        let read = asked.and_then(|()| stream.read(&mut [0]));
        matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    });
    let survivors = survivors.count();
    ensure!(survivors == 0, "{survivors} live on");
    ensure!(pods.live()? == 0, "{} live", pods.live()?);
    eventually("it is said", SOON, || {
        let log = pods.agent()?.log()?;
        let said = log
            .lines()
            .filter(|line| line.contains("policy change: explicitly denied by: app/rule"))
            .count();
        ensure!(said >= 2 * MANY, "{said} lines");
        let revoked = pods.agent()?.metric("culvert_direct_revoked_total", &[])?;
        ensure!(revoked >= 1000.0, "{revoked}");
        Ok(())
    })
}

#[test]
fn whoever_is_not_meant_does_not_get_in() -> Result<()> {
    let mut outside = None;
    let mut neighbour = None;
    let pods = Neighbours::with(|lab| {
        outside = Some(lab.add(&PodSpec::new("a", "outside").uncaptured())?);
        neighbour = Some(lab.pod("a", "neighbour")?);
        Ok(())
    })?;
    let (outside, neighbour) = (outside.context("outside")?, neighbour.context("neighbour")?);
    pods.policy(
        "  rules:\n  - from:\n    - source:\n        principals: [cluster.local/ns/app/sa/client]\n",
    )?;
    eventually("the policy holds", AT_ONCE * 2, || {
        let passes = outside.run(|| Ok(reaches(None, pods.ways()[0])))?;
        ensure!(!passes, "anybody gets in");
        Ok(())
    })?;
    for to in pods.ways() {
        let live = pods.straight(to)?;
        let port = live.local_addr()?.port();
        for stranger in [&outside, &neighbour] {
            for _twice in 0..2 {
                // Also from the port that a connection which is allowed comes from.
                for from in [None, Some(port)] {
                    let passes = stranger.run(|| Ok(reaches(from, to)))?;
                    let name = &stranger.spec().name;
                    ensure!(!passes, "{name} got in at {to} from {from:?}");
                }
            }
        }
        // A process of the node is as good as kubelet, and no more: it is not the pod either.
        echoes(&live, "undisturbed")?;
    }
    Ok(())
}

/// Whether an echo server answers, asked from a port of one's own choice.
fn reaches(from: Option<u16>, to: SocketAddr) -> bool {
    let connected = || -> Result<TcpStream> {
        let socket = sys::tcp_socket(to)?;
        if let Some(port) = from {
            let any: IpAddr = if to.is_ipv4() {
                std::net::Ipv4Addr::UNSPECIFIED.into()
            } else {
                Ipv6Addr::UNSPECIFIED.into()
            };
            sys::bind(&socket, SocketAddr::new(any, port))?;
        }
        Ok(sys::connect(socket, to)?)
    };
    connected().is_ok_and(|stream| echoes(&stream, "let me in").is_ok())
}

#[test]
fn ports_in_time_wait_are_served_again() -> Result<()> {
    let pods = Neighbours::new()?;
    let _first = Server::start(
        &pods.server,
        Ipv6Addr::UNSPECIFIED,
        OTHER_PORT,
        |mut stream| {
            // The server closes first, so its side keeps the connection in TIME_WAIT.
            Ok(stream.write_all(b"!")?)
        },
    )?;
    pods.client
        .netns()
        .sysctl(&[("net/ipv4/ip_local_port_range", "40000 40031")])?;
    for to in pods.ways() {
        let to = SocketAddr::new(to.ip(), OTHER_PORT);
        for number in 0..200 {
            let told = eventually("a port is free", SOON, || {
                pods.client.run(|| net::read_to_end(&net::connect(to)?))
            });
            let told = told.with_context(|| format!("connection {number} to {to}"))?;
            ensure!(told == b"!", "{told:?}");
        }
    }
    Ok(())
}

#[test]
fn the_death_of_the_agent_leaves_connections_alone_and_closes_the_node_after_its_lease()
-> Result<()> {
    const LEASE: Duration = Duration::from_secs(3);
    let mut lab = Lab::two_nodes()?;
    lab.agent_options(&["--lease", "3"]);
    let (client, server) = (lab.pod("a", "client")?, lab.pod("a", "server")?);
    lab.start()?;
    let echo = Server::start(&server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    let mut pods = Neighbours {
        client,
        server,
        _echo: echo,
        lab,
    };
    let to = pods.ways()[0];
    let live = pods.straight(to)?;
    pods.lab.take_agent("a")?.kill()?;
    let killed = Instant::now();
    // Until the lease ends the kernel does as it was told.
    let once = pods.client.run(|| echoes(&net::connect(to)?, "orphan"));
    ensure!(once.is_ok() || killed.elapsed() > LEASE / 2, "{once:?}");
    let refusal = eventually("the node closes", LEASE + SOON, || {
        let error = pods.client.run(|| Ok(net::connect(to).err()))?;
        error.context("it connects")
    })?;
    ensure!(
        refusal.raw_os_error() == Some(libc::ECONNREFUSED),
        "{refusal}"
    );
    ensure!(killed.elapsed() < LEASE + AT_ONCE, "{:?}", killed.elapsed());
    echoes(&live, "and yet it lives")?;
    pods.lab.start_agent("a")?;
    pods.agent()?.wait_ready()?;
    echoes(&live, "it outlives them all")?;
    drop(pods.straight(to)?);
    // Nor does the new agent forget the connection that it has found.
    pods.policy(DENY_THE_CLIENT)?;
    eventually("it ends", AT_ONCE * 2, || {
        ensure!(echoes(&live, "still").is_err(), "it lives on");
        Ok(())
    })
}

#[test]
fn bytes_within_the_node_are_encrypted_where_somebody_wants_it() -> Result<()> {
    let pods = Neighbours::new()?;
    let to = pods.ways()[0];
    let live = pods.straight(to)?;
    let namespace = |annotations: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: app\n  labels:\n    istio.io/dataplane-mode: \
             ambient\n{annotations}"
        )
    };
    let manifests = pods.lab.manifests();
    manifests.apply(
        "namespace-app.yaml",
        &namespace("  annotations:\n    culvert.dev/same-node: encrypted\n"),
    )?;
    eventually("what was straight ends", AT_ONCE * 2, || {
        ensure!(echoes(&live, "still").is_err(), "it lives on");
        Ok(())
    })?;
    let tunnelled = || {
        pods.agent()?
            .metric("istio_tcp_connections_opened_total", &[BY_TLS])
    };
    let by_tls = |what: &str| -> Result<()> {
        for to in pods.ways() {
            for _thrice in 0..3 {
                let before = tunnelled()?;
                pods.client.run(|| echoes(&net::connect(to)?, "secret"))?;
                ensure!(pods.live()? == 0, "{what}: the kernel carries it");
                ensure!(tunnelled()? > before, "{what}: no tunnel carries it");
            }
        }
        Ok(())
    };
    by_tls("of the namespace")?;
    // One of the two pods is enough.
    manifests.apply("namespace-app.yaml", &namespace(""))?;
    for pod in [&pods.client, &pods.server] {
        eventually("the kernel carries it again", SOON, || {
            drop(pods.straight(to)?);
            Ok(())
        })?;
        let annotated = pod.manifest().replace(
            "  annotations:\n",
            "  annotations:\n    culvert.dev/same-node: encrypted\n",
        );
        manifests.apply(&pod.file(), &annotated)?;
        eventually("a pod wants it encrypted", AT_ONCE * 2, || {
            by_tls(&pod.spec().name)
        })?;
        manifests.apply(&pod.file(), &pod.manifest())?;
    }
    Ok(())
}

#[test]
fn a_service_keeps_its_weights_between_here_and_there() -> Result<()> {
    const CALLS: usize = 600;
    let mut lab = Lab::two_nodes()?;
    let client = lab.pod("a", "client")?;
    let shop = |node: &str, name: &str| PodSpec::new(node, name).with_label("app", "shop");
    let near = [lab.add(&shop("a", "near"))?, lab.add(&shop("a", "nearer"))?];
    let far = lab.add(&shop("b", "far"))?;
    let virtual_addresses = ["10.96.0.2", "fd00:96::2"];
    lab.service("shop", &virtual_addresses, &[(80, "8080")])?;
    lab.start()?;
    let serve = |pod: &Pod| Server::start(pod, Ipv6Addr::UNSPECIFIED, 8080, echo);
    let servers = [serve(&near[0])?, serve(&near[1])?, serve(&far)?];
    for address in virtual_addresses {
        let to = SocketAddr::new(address.parse()?, 80);
        for to in [to, SocketAddr::new(mapped(to.ip()), 80)] {
            let before = servers.each_ref().map(Server::accepted);
            client.run(|| {
                for _ in 0..CALLS {
                    let stream = net::connect(to)?;
                    // The application talks to the service, whoever answers.
                    ensure!(stream.peer_addr()? == to, "{:?}", stream.peer_addr());
                    echoes(&stream, "hello")?;
                }
                Ok(())
            })?;
            let after = servers.each_ref().map(Server::accepted);
            for (after, before) in after.iter().zip(before) {
                let visits = after - before;
                // Six standard deviations are 69.
                ensure!(
                    visits.abs_diff(CALLS / 3) < 70,
                    "{visits} of {CALLS} at {to}"
                );
            }
        }
    }
    let labels = [
        BY_KERNEL,
        "reporter=\"source\"",
        "destination_service_name=\"shop\"",
    ];
    eventually("the kernel's part is counted", SOON, || {
        let agent = lab.agent("a")?;
        let counted = agent.metric("istio_tcp_connections_closed_total", &labels)?;
        // Of four times 600, two thirds less what asked first and what chance takes.
        ensure!(counted > 1300.0, "{counted}");
        Ok(())
    })
}

#[test]
fn connections_to_a_pod_of_a_waypoint_go_through_the_proxy() -> Result<()> {
    let pods = Neighbours::new()?;
    let live = pods.straight(pods.ways()[0])?;
    pods.lab.manifests().apply(
        "waypoint.yaml",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: waypoint\n  namespace: app\n  labels:\n    \
         istio.io/waypoint-for: workload\nspec:\n  gatewayClassName: istio-waypoint\n  listeners:\n  - name: mesh\n    \
         port: 15008\n    protocol: HBONE\n",
    )?;
    let manifest = pods.server.manifest();
    let bound = manifest.replace(
        "  labels:\n",
        "  labels:\n    istio.io/use-waypoint: waypoint\n",
    );
    pods.lab.manifests().apply(&pods.server.file(), &bound)?;
    eventually("what was straight ends", AT_ONCE * 2, || {
        ensure!(echoes(&live, "still").is_err(), "it lives on");
        Ok(())
    })?;
    let _pages = Server::start(
        &pods.server,
        Ipv6Addr::UNSPECIFIED,
        OTHER_PORT,
        page("hello"),
    )?;
    for to in pods.ways() {
        let to = SocketAddr::new(to.ip(), OTHER_PORT);
        for _thrice in 0..3 {
            let answer = pods.client.run(|| net::http::get(to, "server", "/"))?;
            ensure!(answer.text() == "hello", "{answer:?}");
            ensure!(pods.live()? == 0, "the kernel carries it");
        }
    }
    Ok(())
}

#[test]
fn a_policy_that_is_only_watched_sees_each_connection() -> Result<()> {
    let pods = Neighbours::new()?;
    let to = pods.ways()[0];
    drop(pods.straight(to)?);
    pods.lab.manifests().apply(
        "policy.yaml",
        &format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: watched\n  namespace: app\n  \
             annotations:\n    istio.io/dry-run: \"true\"\nspec:\n{DENY_THE_CLIENT}"
        ),
    )?;
    eventually("the policy is there", AT_ONCE * 2, || {
        let policies = pods.agent()?.config_dump()?["policies"].to_string();
        ensure!(policies.contains("watched"), "{policies}");
        Ok(())
    })?;
    let seen = || -> Result<usize> { Ok(pods.agent()?.log()?.matches("dry-run").count()) };
    let before = seen()?;
    for _ in 0..5 {
        pods.client.run(|| echoes(&net::connect(to)?, "hello"))?;
    }
    eventually("each is logged", SOON, || {
        ensure!(seen()? >= before + 5, "{} of 5", seen()? - before);
        Ok(())
    })
}

#[test]
fn a_server_that_leaves_the_mesh_takes_its_verdicts_with_it() -> Result<()> {
    let pods = Neighbours::new()?;
    let to = pods.ways()[0];
    let live = pods.straight(to)?;
    pods.lab
        .manifests()
        .apply(&pods.server.file(), &pods.server.manifest_as(false, true))?;
    eventually("it drains", SOON, || {
        let dump = pods.agent()?.config_dump()?["workloadState"].to_string();
        ensure!(dump.contains("Draining"), "{dump}");
        Ok(())
    })?;
    echoes(&live, "it has its time")?;
    eventually("what was straight ends", DRAINED, || {
        ensure!(echoes(&live, "still").is_err(), "it lives on");
        Ok(())
    })?;
    eventually("the proxy goes on", SOON, || {
        pods.client.run(|| echoes(&net::connect(to)?, "hello"))
    })?;
    ensure!(pods.live()? == 0, "the kernel carries it");
    Ok(())
}

#[test]
fn live_connections_are_shown() -> Result<()> {
    let pods = Neighbours::new()?;
    let live = pods.straight(pods.ways()[0])?;
    let local = live.local_addr()?.to_string();
    let dump = pods.agent()?.config_dump()?["workloadState"].to_string();
    ensure!(dump.matches(&local).count() == 2, "{local} in {dump}");
    Ok(())
}
