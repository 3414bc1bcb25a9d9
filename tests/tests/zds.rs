//! In the place of ztunnel under istio-cni: it names the pods over its socket (ZDS), and its rules are in them.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::istio_cni::mesh::{Mesh, Pair, uid};
use e2e::istio_cni::{self, IstioCni, Tables};
use e2e::lab::{Pod, eventually};
use e2e::net::dns::{self, Kind};
use e2e::net::serve::{Server, UdpEcho, echo, tell_addresses};
use e2e::net::{self, sys};
use e2e::scenario::{echoes, errno_towards};

const PORT: u16 = 7000;
const SECRET: &str = "nobody on the link may read this";
/// How soon a change of the objects holds.
const AT_ONCE: Duration = Duration::from_secs(5);

fn at(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, PORT)
}

/// Whom a server that tells addresses sees.
fn seen_by(to: SocketAddr) -> Result<(SocketAddr, SocketAddr)> {
    let told = String::from_utf8(net::read_to_end(&net::connect(to)?)?)?;
    let (peer, own) = told.split_once(' ').context("two addresses")?;
    let canonical = |text: &str| -> Result<SocketAddr> {
        let address: SocketAddr = text.parse()?;
        Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
    };
    Ok((canonical(peer)?, canonical(own)?))
}

/// Runs a scenario that nobody on the link may read.
fn encrypted(mesh: &Mesh, scenario: impl FnOnce() -> Result<()>) -> Result<()> {
    let sniffer = mesh.lab.sniff()?;
    scenario()?;
    let traffic = sniffer.stop()?;
    ensure!(!traffic.contains(SECRET.as_bytes()), "it was plain text");
    ensure!(traffic.tls_records_to(15008) > 0, "nothing went as HBONE");
    Ok(())
}

fn carries_both_ways_with(tables: Tables) -> Result<()> {
    let pair = Pair::new(tables)?;
    pair.mesh.demand("STRICT")?;
    let pods = [&pair.client, &pair.server];
    let _servers = pods
        .map(|pod| Server::start(pod, Ipv6Addr::UNSPECIFIED, PORT, echo))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let _tellers = pods
        .map(|pod| Server::start(pod, Ipv6Addr::UNSPECIFIED, PORT + 1, tell_addresses))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    for (from, to) in [(pods[0], pods[1]), (pods[1], pods[0])] {
        for (own, far) in [(from.v4(), to.v4()), (from.v6(), to.v6())] {
            encrypted(&pair.mesh, || {
                from.run(|| echoes(&net::connect(at(far))?, SECRET))
            })?;
            let (peer, arrived) = from.run(|| seen_by(SocketAddr::new(far, PORT + 1)))?;
            ensure!(peer.ip() == own, "the server sees {peer}, not {own}");
            ensure!(arrived.ip() == far, "it thinks itself {arrived}");
        }
    }
    Ok(())
}

#[test]
fn mtls_is_carried_both_ways_with_true_addresses() -> Result<()> {
    carries_both_ways_with(Tables::Nft)
}

#[test]
fn legacy_rules_are_lived_with_as_well() -> Result<()> {
    carries_both_ways_with(Tables::Legacy)
}

#[test]
fn a_pod_is_captured_before_it_is_answered_for() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let client = mesh.pod("a", "client", Tables::Nft)?;
    let server = mesh.pod("b", "server", Tables::Nft)?;
    mesh.start("b")?;
    let _server = Server::start(&server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    // As the API server shows it until its sandbox is there: without an address.
    let (file, whole) = (client.file(), client.manifest());
    let early = whole.split("status:").next().context("a manifest")?;
    mesh.lab.manifests().apply(&file, early)?;
    mesh.lab.start_agent("a")?;
    mesh.cni_mut("a").meet()?;
    // The rules lead to nobody.
    let errno = client.run(|| errno_towards(at(server.v4())))?;
    ensure!(errno == libc::ECONNREFUSED, "errno {errno}");
    let ready = |path| mesh.lab.agent("a")?.get(15021, path);
    let answer = ready("/healthz/ready")?;
    ensure!(
        answer.status != 200 && answer.text().contains("istio-cni"),
        "{} {}",
        answer.status,
        answer.text()
    );
    mesh.cni("a").take(&client, &uid("client"))?;
    encrypted(&mesh, || {
        client.run(|| echoes(&net::connect(at(server.v4()))?, SECRET))
    })?;
    ensure!(ready("/healthz/ready")?.status != 200, "there may be more");
    mesh.cni("a").end_list()?;
    mesh.lab.agent("a")?.wait_ready()?;
    mesh.lab.manifests().apply(&file, &whole)?;
    encrypted(&mesh, || {
        client.run(|| echoes(&net::connect(at(server.v4()))?, SECRET))
    })
}

#[test]
fn plain_text_is_judged_by_the_port_that_was_dialled() -> Result<()> {
    let pair = Pair::new(Tables::Nft)?;
    let (outside, server) = (&pair.outside, &pair.server);
    let _server = Server::start(server, Ipv6Addr::UNSPECIFIED, PORT, tell_addresses)?;
    let _other = Server::start(server, Ipv6Addr::UNSPECIFIED, PORT + 1, echo)?;
    for (own, far) in [(outside.v4(), server.v4()), (outside.v6(), server.v6())] {
        let (peer, arrived) = outside.run(|| seen_by(at(far)))?;
        ensure!(peer.ip() == own && arrived == at(far), "{peer} {arrived}");
        for port in [15001, 15006, 4] {
            outside.run(|| errno_towards(SocketAddr::new(far, port)))?;
        }
    }
    let spec = format!(
        "mtls:\n    mode: STRICT\n  selector:\n    matchLabels:\n      app: server\n  portLevelMtls:\n    {}:\n      mode: PERMISSIVE",
        PORT + 1
    );
    pair.mesh.decree("PeerAuthentication", &spec, "server")?;
    for far in [server.v4(), server.v6()] {
        outside.run(|| errno_towards(at(far)))?;
        outside.run(|| echoes(&net::connect(SocketAddr::new(far, PORT + 1))?, "open"))?;
    }
    Ok(())
}

#[test]
fn policies_know_who_comes() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let far = mesh.pod("a", "far", Tables::Nft)?;
    let near = mesh.pod("b", "near", Tables::Nft)?;
    let server = mesh.pod("b", "server", Tables::Nft)?;
    mesh.start("a")?;
    mesh.start("b")?;
    let _server = Server::start(&server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    for denied in ["far", "near"] {
        let principal = format!("cluster.local/ns/app/sa/{denied}");
        let spec = format!(
            "action: DENY\n  rules:\n  - from:\n    - source:\n        principals: [{principal}]"
        );
        mesh.decree("AuthorizationPolicy", &spec, denied)?;
        for pod in [&far, &near] {
            let outcome = pod.run(|| echoes(&net::connect(at(server.v4()))?, "me"));
            let name = &pod.spec().name;
            ensure!(
                outcome.is_err() == (name == denied),
                "{name}, {denied} denied: {outcome:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn marks_that_the_rules_know_get_nobody_past_capture() -> Result<()> {
    let pair = Pair::new(Tables::Nft)?;
    pair.mesh.demand("STRICT")?;
    let _server = Server::start(&pair.server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    for mark in [0x539, 0x111] {
        for far in [pair.server.v4(), pair.server.v6()] {
            encrypted(&pair.mesh, || {
                pair.client.run(|| {
                    let socket = sys::tcp_socket(at(far))?;
                    sys::set_mark(&socket, mark)?;
                    let stream = sys::connect(socket, at(far))?;
                    net::patient(&stream)?;
                    echoes(&stream, SECRET)
                })
            })?;
        }
    }
    Ok(())
}

#[test]
fn an_agent_that_is_started_again_hears_who_is_there() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let names = ["named", "kept", "forgotten"];
    let pods = names.map(|name| mesh.pod("b", name, Tables::Nft));
    let pods = pods.into_iter().collect::<Result<Vec<_>>>()?;
    let client = mesh.pod("a", "client", Tables::Nft)?;
    mesh.start("a")?;
    mesh.start("b")?;
    let servers = pods.iter();
    let servers = servers.map(|pod| Server::start(pod, Ipv6Addr::UNSPECIFIED, PORT, echo));
    let _servers = servers.collect::<Result<Vec<_>>>()?;
    mesh.lab.take_agent("b")?.stop()?;
    istio_cni::take_out_of(&pods[2], Tables::Nft)?;
    mesh.lab.start_agent("b")?;
    mesh.cni_mut("b").meet()?;
    let cni = mesh.cni("b");
    cni.take(&pods[0], &uid("named"))?;
    cni.keep(&uid("kept"))?;
    ensure!(is_looped(&pods[2])?, "released before the list has ended");
    cni.end_list()?;
    mesh.lab.agent("b")?.wait_ready()?;
    for pod in &pods[..2] {
        encrypted(&mesh, || {
            client.run(|| echoes(&net::connect(at(pod.v4()))?, SECRET))
        })?;
    }
    eventually("who was not named is released", AT_ONCE, || {
        ensure!(!is_looped(&pods[2])?, "it is not");
        Ok(())
    })
}

/// Whether capture's own rule is in a pod.
fn is_looped(pod: &Pod) -> Result<bool> {
    Ok(pod.netns().ip(&["rule", "show"])?.contains("lookup 15001"))
}

#[test]
fn a_pod_that_is_taken_out_drains() -> Result<()> {
    let pair = Pair::new(Tables::Nft)?;
    let _server = Server::start(&pair.server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    let stream = pair
        .client
        .run(|| Ok(net::connect(at(pair.server.v4()))?))?;
    echoes(&stream, "before")?;
    istio_cni::take_out_of(&pair.client, Tables::Nft)?;
    pair.mesh.cni("a").del(&uid("client"))?;
    // What there was goes on for a moment; what is new goes by itself.
    echoes(&stream, "after")?;
    pair.client.run(|| {
        let mut fresh = net::connect(at(pair.server.v4()))?;
        fresh.write_all(b"x")?;
        let mut byte = [0];
        fresh.read_exact(&mut byte)?;
        Ok(())
    })?;
    eventually("it is released", Duration::from_secs(12), || {
        ensure!(!is_looped(&pair.client)?, "it is not");
        Ok(())
    })?;
    ensure!(echoes(&stream, "late").is_err(), "it goes on unprotected");
    // Taken in again, it is as before.
    istio_cni::put_into(&pair.client, Tables::Nft)?;
    pair.mesh.cni("a").take(&pair.client, &uid("client"))?;
    encrypted(&pair.mesh, || {
        let to = at(pair.server.v4());
        pair.client.run(|| echoes(&net::connect(to)?, SECRET))
    })
}

#[test]
fn the_same_namespace_changes_nothing_and_another_one_replaces_it() -> Result<()> {
    let mut pair = Pair::new(Tables::Nft)?;
    let _server = Server::start(&pair.server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    let stream = pair
        .client
        .run(|| Ok(net::connect(at(pair.server.v4()))?))?;
    pair.mesh.cni("a").take(&pair.client, &uid("client"))?;
    echoes(&stream, "still here")?;
    let other = pair.mesh.outsider("a", "other")?;
    istio_cni::put_into(&other, Tables::Nft)?;
    let netns = File::open(other.netns().path())?;
    let cni = pair.mesh.cni("a");
    let words = IstioCni::words_for(&pair.client, &uid("client"));
    cni.send(&words, &[netns.as_raw_fd()])?;
    let answer = cni.answer()?;
    ensure!(answer.is_none(), "{answer:?}");
    ensure!(is_looped(&other)?, "the new one is not captured");
    ensure!(!is_looped(&pair.client)?, "the old one still is");
    ensure!(echoes(&stream, "gone").is_err(), "its connections go on");
    Ok(())
}

#[test]
fn what_is_none_of_the_protocol_is_refused_and_costs_nobody_anything() -> Result<()> {
    let mut pair = Pair::new(Tables::Nft)?;
    let _server = Server::start(&pair.server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    let words = IstioCni::words_for(&pair.client, &uid("client"));
    for packet in [vec![0xff; 8], vec![0; 1025], words, vec![0x22, 0]] {
        pair.mesh.cni("a").send(&packet, &[])?;
        let cni = pair.mesh.cni_mut("a");
        ensure!(cni.answer()?.is_some(), "{packet:?} is taken");
        cni.is_left()?;
        // The whole list again, lest somebody be missing in it.
        cni.meet()?;
        cni.keep(&uid("client"))?;
        cni.end_list()?;
    }
    // No namespace at all, and a pod of which nobody knows.
    let null = File::open("/dev/null")?;
    let cni = pair.mesh.cni("a");
    for (name, netns, why) in [
        ("client", null, ""),
        (
            "nobody",
            File::open(pair.outside.netns().path())?,
            "API server",
        ),
    ] {
        let words = IstioCni::words_for(&pair.client, &uid(name));
        cni.send(&words, &[netns.as_raw_fd()])?;
        let refused = cni.answer()?.context("it is taken")?;
        ensure!(refused.contains(why), "{refused}");
    }
    cni.take(&pair.client, &uid("client"))?;
    let to = at(pair.server.v4());
    pair.client.run(|| echoes(&net::connect(to)?, "well"))
}

#[test]
fn probes_of_the_node_reach_a_pod_that_demands_mtls() -> Result<()> {
    let pair = Pair::new(Tables::Nft)?;
    pair.mesh.demand("STRICT")?;
    let server = &pair.server;
    let _server = Server::start(server, Ipv6Addr::UNSPECIFIED, PORT, tell_addresses)?;
    let node = pair.mesh.lab.node("b")?.netns();
    istio_cni::rewrite_probes(node, server)?;
    let sources: [IpAddr; 2] = [
        Ipv4Addr::new(169, 254, 7, 127).into(),
        "fd16:9254:7127:1337:ffff:ffff:ffff:ffff".parse()?,
    ];
    for (far, source) in [server.v4(), server.v6()].into_iter().zip(sources) {
        let (peer, _own) = node.run(|| seen_by(at(far)))?;
        ensure!(peer.ip() == source, "the probe comes from {peer}");
        pair.outside.run(|| errno_towards(at(far)))?;
    }
    Ok(())
}

#[test]
fn a_dead_agent_opens_nothing() -> Result<()> {
    let mut pair = Pair::new(Tables::Nft)?;
    pair.mesh.demand("STRICT")?;
    let server = Server::start(&pair.server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    pair.mesh.lab.take_agent("a")?.kill()?;
    pair.mesh.lab.take_agent("b")?.kill()?;
    let to = at(pair.server.v4());
    let errno = pair.client.run(|| errno_towards(to))?;
    ensure!(errno == libc::ECONNREFUSED, "errno {errno}");
    // The kernel closes a dead agent's listeners when it gets to it. Whoever was taken before then has come to nobody.
    eventually("nobody listens any more", AT_ONCE, || {
        let entered = pair
            .outside
            .run(|| Ok(TcpStream::connect_timeout(&to, Duration::from_secs(2)).is_ok()))?;
        ensure!(!entered, "somebody takes the connection");
        Ok(())
    })?;
    ensure!(server.accepted() == 0, "plain text gets in");
    Ok(())
}

/// DNS over TCP (RFC 1035 §4.2.2).
fn ask_tcp(pod: &Pod, server: SocketAddr, name: &str) -> Result<dns::Answer> {
    pod.run(|| {
        let mut stream = net::connect(server)?;
        let query = dns::query(9, name, Kind::A);
        stream.write_all(&u16::try_from(query.len())?.to_be_bytes())?;
        stream.write_all(&query)?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let length = u16::from_be_bytes(length);
        dns::parse(&net::read_exactly(&stream, length.into())?)
    })
}

fn ask_udp(pod: &Pod, server: SocketAddr, name: &str) -> Result<dns::Answer> {
    pod.run(|| {
        let any = if server.is_ipv4() { "0.0.0.0" } else { "::" };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send_to(&dns::query(7, name, Kind::A), server)?;
        let mut datagram = [0; 4096];
        let (length, from) = socket.recv_from(&mut datagram).context("no answer")?;
        ensure!(from == server, "the answer comes from {from}");
        dns::parse(&datagram[..length])
    })
}

#[test]
fn names_are_answered_and_others_asked_of_whom_the_pod_meant() -> Result<()> {
    let mut pair = Pair::new(Tables::Nft)?;
    let (service, known): (IpAddr, IpAddr) = ("10.96.0.1".parse()?, "192.0.2.7".parse()?);
    pair.mesh
        .lab
        .service("server", &["10.96.0.1"], &[(80, "8080")])?;
    let resolver = pair.mesh.outsider("b", "resolver")?;
    for address in [resolver.v4(), resolver.v6()].map(|address| SocketAddr::new(address, 53)) {
        let _udp = UdpEcho::answer(&resolver, address, move |query| dns::answer(query, known))?;
        let _tcp = Server::start(&resolver, address.ip(), 53, move |mut stream| {
            let length = u16::from_be_bytes(net::read_exactly(stream, 2)?.as_slice().try_into()?);
            let query = net::read_exactly(stream, length.into())?;
            let answer = dns::answer(&query, known).context("a query")?;
            stream.write_all(&u16::try_from(answer.len())?.to_be_bytes())?;
            Ok(stream.write_all(&answer)?)
        })?;
        for ask in [ask_udp, ask_tcp] {
            for (name, expected) in [
                ("www.example.org", known),
                ("server.app.svc.cluster.local", service),
            ] {
                let answer = ask(&pair.client, address, name)?;
                ensure!(answer.addresses == [expected], "{name}: {answer:?}");
            }
        }
    }
    Ok(())
}
