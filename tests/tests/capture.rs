//! Capture: what is captured, what is left alone, and how it fails.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::lab::{Lab, Manifests, Pod, PodSpec, eventually};
use e2e::net::serve::{Server, UdpEcho, echo, tell_addresses};
use e2e::net::{self, sys};
use e2e::scenario::{Pair, echoes, errno_towards, mapped};

const PORT: u16 = 7000;
const SECRET: &str = "nobody on the link may read this";

/// Where a pod connects to in vain, without a mesh and with one: different only for a service, which nothing serves
/// without a mesh.
struct InVain {
    direct: SocketAddr,
    meshed: SocketAddr,
}

impl InVain {
    /// Both families, and IPv4 through an IPv6 socket.
    fn at(v4: IpAddr, v6: IpAddr, port: u16) -> Vec<Self> {
        let addresses = [v4, v6, mapped(v4)].map(|address| SocketAddr::new(address, port));
        let same = |to| Self {
            direct: to,
            meshed: to,
        };
        addresses.map(same).into()
    }
}

/// `connect` itself fails, with the number that it has without a mesh, and as soon.
fn fails_as_without_a_mesh(prepare: impl Fn(&mut Lab) -> Result<Vec<InVain>>) -> Result<()> {
    let mut lab = Lab::two_nodes()?;
    let inside = lab.pod("a", "inside")?;
    let outside = lab.add(&PodSpec::new("a", "outside").uncaptured())?;
    let attempts = prepare(&mut lab)?;
    lab.start()?;
    for InVain { direct, meshed } in attempts {
        let failure = |pod: &Pod, to| -> Result<_> {
            let begun = Instant::now();
            let number = pod.run(|| errno_of_connect(to))?;
            Ok((number, begun.elapsed()))
        };
        let (expected, direct_took) = failure(&outside, direct)?;
        let (number, meshed_took) = failure(&inside, meshed)?;
        ensure!(
            number == expected,
            "{direct}: {} without a mesh; {meshed}: {} with it",
            errno(expected),
            errno(number)
        );
        let apart = direct_took.abs_diff(meshed_took);
        ensure!(
            apart < Duration::from_secs(2),
            "{meshed}: {direct_took:?} without a mesh, {meshed_took:?} with it"
        );
    }
    Ok(())
}

fn errno_of_connect(to: SocketAddr) -> Result<i32> {
    let error = net::connect(to).err().context("it answers")?;
    error
        .raw_os_error()
        .with_context(|| format!("{to}: {error}"))
}

fn errno(number: i32) -> std::io::Error {
    std::io::Error::from_raw_os_error(number)
}

#[test]
fn a_closed_port_of_a_pod_refuses_as_without_a_mesh() -> Result<()> {
    fails_as_without_a_mesh(|lab| {
        let far = lab.pod("b", "far")?;
        Ok(InVain::at(far.v4(), far.v6(), 4))
    })
}

#[test]
fn a_closed_port_outside_the_mesh_refuses_as_without_a_mesh() -> Result<()> {
    fails_as_without_a_mesh(|lab| {
        let far = lab.add(&PodSpec::new("b", "far").uncaptured())?;
        Ok(InVain::at(far.v4(), far.v6(), 4))
    })
}

#[test]
fn a_service_whose_only_endpoint_refuses_does_so_too() -> Result<()> {
    fails_as_without_a_mesh(|lab| {
        let shop = PodSpec::new("b", "shop").with_label("app", "shop");
        let shop = lab.add(&shop)?;
        let virtual_addresses = ["10.96.0.2", "fd00:96::2"];
        lab.service("shop", &virtual_addresses, &[(80, "8080")])?;
        let own = [shop.v4(), shop.v6()].into_iter().zip(virtual_addresses);
        own.map(|(own, address)| {
            Ok(InVain {
                direct: SocketAddr::new(own, 8080),
                meshed: SocketAddr::new(address.parse()?, 80),
            })
        })
        .collect()
    })
}

#[test]
fn an_unreachable_host_is_so_as_without_a_mesh() -> Result<()> {
    // Nobody has these addresses: the far node says so after it has asked for their MAC in vain. Each attempt has an
    // address of its own. At one address, the last SYN of the attempt before waits in front for the same answer, and
    // the kernel drops all that wait behind it without a word if one more comes while it tells the first
    // (`neigh_invalidate`): which one does, since SYNs and questions for a MAC are both repeated after 1.024 s.
    fails_as_without_a_mesh(|_| {
        let at = |last: &str| -> Result<_> {
            let v4 = format!("10.244.2.{last}").parse()?;
            Ok(InVain::at(v4, format!("fd00:244:2::{last}").parse()?, PORT))
        };
        let pairs = at("250")?.into_iter().zip(at("249")?);
        Ok(pairs
            .map(|(direct, meshed)| InVain {
                direct: direct.direct,
                meshed: meshed.meshed,
            })
            .collect())
    })
}

#[test]
fn a_network_without_route_is_so_as_without_a_mesh() -> Result<()> {
    fails_as_without_a_mesh(|_| {
        Ok(InVain::at(
            "203.0.113.9".parse()?,
            "2001:db8::9".parse()?,
            PORT,
        ))
    })
}

#[test]
fn a_silent_host_is_waited_for_as_without_a_mesh() -> Result<()> {
    fails_as_without_a_mesh(|lab| {
        // SYNs vanish on node b, and pods give up after three seconds instead of two minutes.
        let node = lab.node("b")?.netns();
        node.ip(&["route", "add", "blackhole", "10.244.2.251/32"])?;
        node.ip(&["-6", "route", "add", "blackhole", "fd00:244:2::251/128"])?;
        for pod in lab.pods() {
            pod.netns().sysctl(&[("net/ipv4/tcp_syn_retries", "1")])?;
        }
        Ok(InVain::at(
            "10.244.2.251".parse()?,
            "fd00:244:2::251".parse()?,
            PORT,
        ))
    })
}

#[test]
fn pods_of_one_node_reach_each_other() -> Result<()> {
    let mut lab = Lab::two_nodes()?;
    let (client, server) = (lab.pod("a", "client")?, lab.pod("a", "server")?);
    lab.start()?;
    let _server = Server::start(&server, Ipv6Addr::UNSPECIFIED, PORT, tell_addresses)?;
    for (from, to) in [(client.v4(), server.v4()), (client.v6(), server.v6())] {
        let seen = client.run(|| {
            let stream = net::connect(SocketAddr::new(to, PORT))?;
            Ok(String::from_utf8(net::read_to_end(&stream)?)?)
        })?;
        let peer: SocketAddr = seen.split(' ').next().context("an address")?.parse()?;
        ensure!(peer.ip().to_canonical() == from, "the server sees {peer}");
    }
    Ok(())
}

#[test]
fn a_pod_reaches_itself_without_the_mesh() -> Result<()> {
    let pair = Pair::new()?;
    let pod = &pair.client;
    let _server = Server::start(pod, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    let own = [
        Ipv4Addr::LOCALHOST.into(),
        Ipv6Addr::LOCALHOST.into(),
        pod.v4(),
        pod.v6(),
    ];
    for address in own {
        pod.run(|| echoes(&net::connect(SocketAddr::new(address, PORT))?, "myself"))?;
    }
    let opened = pair
        .lab
        .agent("a")?
        .metric("istio_tcp_connections_opened_total", &[])?;
    ensure!(opened == 0.0, "the mesh carried {opened} of them");
    Ok(())
}

#[test]
fn a_destination_outside_the_mesh_is_reached_plainly() -> Result<()> {
    let mut lab = Lab::two_nodes()?;
    let client = lab.pod("a", "client")?;
    let outside = lab.add(&PodSpec::new("b", "outside").uncaptured())?;
    lab.start()?;
    let _server = Server::start(&outside, Ipv6Addr::UNSPECIFIED, PORT, tell_addresses)?;
    let sniffer = lab.sniff()?;
    for (from, to) in [(client.v4(), outside.v4()), (client.v6(), outside.v6())] {
        let seen = client.run(|| {
            let stream = net::connect(SocketAddr::new(to, PORT))?;
            Ok(String::from_utf8(net::read_to_end(&stream)?)?)
        })?;
        ensure!(
            seen.contains(&from.to_string()),
            "the client is {from}, the server sees {seen}"
        );
    }
    let traffic = sniffer.stop()?;
    let plain = traffic
        .flows()
        .any(|(flow, bytes)| flow.source.1 == PORT && !bytes.is_empty());
    ensure!(plain, "nothing came from port {PORT}");
    Ok(())
}

#[test]
fn a_client_outside_the_mesh_reaches_a_pod_inside() -> Result<()> {
    let mut lab = Lab::two_nodes()?;
    let outside = lab.add(&PodSpec::new("a", "outside").uncaptured())?;
    let server = lab.pod("b", "server")?;
    lab.start()?;
    let _server = Server::start(&server, Ipv6Addr::UNSPECIFIED, PORT, tell_addresses)?;
    for (from, to) in [(outside.v4(), server.v4()), (outside.v6(), server.v6())] {
        let seen = outside.run(|| {
            let stream = net::connect(SocketAddr::new(to, PORT))?;
            Ok(String::from_utf8(net::read_to_end(&stream)?)?)
        })?;
        let peer: SocketAddr = seen.split(' ').next().context("an address")?.parse()?;
        ensure!(peer.ip().to_canonical() == from, "the server sees {peer}");
    }
    // And a closed port refuses a client outside as it always did.
    let refused = outside.run(|| errno_towards(SocketAddr::new(server.v4(), 4)))?;
    ensure!(refused == libc::ECONNREFUSED, "{}", errno(refused));
    Ok(())
}

/// Never in the clear: carried encrypted, or refused.
fn fails_closed(pair: &Pair, attempt: impl FnOnce(SocketAddr) -> Result<()> + Send) -> Result<()> {
    let _server = Server::start(&pair.server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    let to = SocketAddr::new(pair.server.v4(), PORT);
    let sniffer = pair.lab.sniff()?;
    // Whether it is carried or refused is the agent's choice; what is not, is to let it out in the clear.
    drop(pair.client.run(|| attempt(to)));
    let traffic = sniffer.stop()?;
    ensure!(!traffic.contains(SECRET.as_bytes()), "it left in the clear");
    let leaked = traffic
        .flows()
        .any(|(flow, _)| flow.destination.1 == PORT || flow.source.1 == PORT);
    ensure!(!leaked, "packets of the connection itself crossed the link");
    Ok(())
}

#[test]
fn a_socket_bound_to_the_interface_fails_closed() -> Result<()> {
    let pair = Pair::new()?;
    fails_closed(&pair, |to| {
        let socket = sys::tcp_socket(to)?;
        sys::bind_to_device(&socket, "eth0")?;
        echoes(&sys::connect(socket, to)?, SECRET)
    })
}

#[test]
fn a_forged_mark_fails_closed() -> Result<()> {
    let pair = Pair::new()?;
    let mut marks = BTreeSet::from([1, 2, 0x539, 0x53a, u32::MAX]);
    for family in ["-4", "-6"] {
        let rules = pair.client.netns().ip(&[family, "rule", "show"])?;
        for word in rules
            .split_whitespace()
            .skip_while(|word| *word != "fwmark")
        {
            // `0x100/0xf00`: the mark, the mask, and both together are all worth trying.
            let parts = word.split('/').filter_map(|part| part.strip_prefix("0x"));
            marks.extend(parts.filter_map(|digits| u32::from_str_radix(digits, 16).ok()));
        }
    }
    ensure!(
        marks.len() > 5,
        "capture works by a marked route, so there is a mark to forge: {marks:?}"
    );
    for mark in marks {
        fails_closed(&pair, |to| {
            let socket = sys::tcp_socket(to)?;
            sys::set_mark(&socket, mark)?;
            echoes(&sys::connect(socket, to)?, SECRET)
        })
        .with_context(|| format!("mark {mark:#x}"))?;
    }
    Ok(())
}

#[test]
fn udp_is_left_alone() -> Result<()> {
    let pair = Pair::new()?;
    let sniffer = pair.lab.sniff()?;
    for (own, far) in [
        (pair.client.v4(), pair.server.v4()),
        (pair.client.v6(), pair.server.v6()),
    ] {
        let to = SocketAddr::new(far, PORT);
        let _echo = UdpEcho::start(&pair.server, to)?;
        pair.client.run(|| {
            let socket = UdpSocket::bind((own, 0))?;
            socket.set_read_timeout(Some(net::PATIENCE))?;
            let datagram = [b'u'; 1200];
            socket.send_to(&datagram, to)?;
            let mut back = [0; 2048];
            let (length, from) = socket.recv_from(&mut back)?;
            ensure!(
                from == to && back[..length] == datagram,
                "{length} bytes from {from}"
            );
            Ok(())
        })?;
    }
    let traffic = sniffer.stop()?;
    let datagrams = traffic
        .flows()
        .filter(|(flow, _)| flow.protocol == 17 && flow.destination.1 == PORT);
    ensure!(
        datagrams.count() == 2,
        "both datagrams crossed the link as they were"
    );
    Ok(())
}

#[test]
fn a_service_spreads_connections_over_ready_pods_only() -> Result<()> {
    let mut lab = Lab::two_nodes()?;
    let client = lab.pod("a", "client")?;
    let shop = |name: &str| {
        PodSpec::new("b", name)
            .with_label("app", "shop")
            .with_port("web", 8080)
    };
    let (one, two, lazy) = (
        lab.add(&shop("one"))?,
        lab.add(&shop("two"))?,
        lab.add(&shop("lazy"))?,
    );
    lab.service("shop", &["10.96.0.2"], &[(80, "web")])?;
    lab.manifests()
        .apply(&lazy.file(), &lazy.manifest_as(true, false))?;
    lab.start()?;
    let servers = [&one, &two, &lazy].map(|pod| Server::start(pod, pod.v4(), 8080, echo));
    let [one, two, lazy] = servers;
    let (one, two, lazy) = (one?, two?, lazy?);
    client.run(|| {
        for _ in 0..40 {
            echoes(&net::connect("10.96.0.2:80".parse()?)?, "shop")?;
        }
        Ok(())
    })?;
    let counts = [one.accepted(), two.accepted(), lazy.accepted()];
    ensure!(
        counts[0] >= 5 && counts[1] >= 5,
        "both ready pods serve: {counts:?}"
    );
    ensure!(
        counts[2] == 0,
        "a pod that is not ready does not: {counts:?}"
    );
    Ok(())
}

#[test]
fn a_failed_connect_is_tried_on_another_endpoint() -> Result<()> {
    let mut lab = Lab::two_nodes()?;
    let client = lab.pod("a", "client")?;
    let shop = |name: &str| PodSpec::new("b", name).with_label("app", "shop");
    // Ready by its word, but nothing listens in `broken`.
    let (_broken, sound) = (lab.add(&shop("broken"))?, lab.add(&shop("sound"))?);
    lab.service("shop", &["10.96.0.2"], &[(80, "8080")])?;
    lab.start()?;
    let _server = Server::start(&sound, sound.v4(), 8080, echo)?;
    client.run(|| {
        for attempt in 0..20 {
            let stream = net::connect("10.96.0.2:80".parse()?)?;
            echoes(&stream, "shop").with_context(|| format!("connection {attempt}"))?;
        }
        Ok(())
    })
}

/// Everything of a pod's namespace that capture may touch.
fn kernel_state(pod: &Pod) -> Result<String> {
    const SYSCTLS: [&str; 6] = [
        "ipv4/fwmark_reflect",
        "ipv6/fwmark_reflect",
        "ipv4/tcp_fwmark_accept",
        "ipv4/conf/all/route_localnet",
        "ipv4/conf/lo/rp_filter",
        "ipv4/conf/lo/accept_local",
    ];
    let mut state = Vec::new();
    for family in ["-4", "-6"] {
        state.push(pod.netns().ip(&[family, "rule", "show"])?);
        let routes = pod
            .netns()
            .ip(&[family, "route", "show", "table", "all", "dev", "lo"])?;
        // Neighbours' routes come and go; those that capture adds are defaults.
        state.extend(
            routes
                .lines()
                .filter(|line| line.contains("default"))
                .map(str::to_owned),
        );
    }
    pod.run(|| {
        for name in SYSCTLS {
            let value = std::fs::read_to_string(format!("/proc/sys/net/{name}"))?;
            state.push(format!("{name} = {value}"));
        }
        for port in [15001, 15006, 15008, 15053] {
            let taken = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).is_err();
            state.push(format!("port {port} is taken: {taken}"));
        }
        Ok(())
    })?;
    Ok(state.join("\n"))
}

#[test]
fn a_pod_that_leaves_the_mesh_is_as_it_was() -> Result<()> {
    let mut lab = Lab::two_nodes()?;
    let (client, server) = (lab.pod("a", "client")?, lab.pod("b", "server")?);
    let pristine = kernel_state(&client)?;
    lab.start()?;
    let server = Server::start(&server, server.v4(), PORT, echo)?;
    client.run(|| echoes(&net::connect(server.address())?, "captured"))?;
    ensure!(
        kernel_state(&client)? != pristine,
        "capture leaves traces while it lasts"
    );

    lab.manifests().apply(
        "namespace-app.yaml",
        &Manifests::namespace_manifest("app", false),
    )?;
    eventually("the pod is as before", Duration::from_secs(5), || {
        let now = kernel_state(&client)?;
        ensure!(now == pristine, "before:\n{pristine}\nnow:\n{now}");
        Ok(())
    })?;
    let sniffer = lab.sniff()?;
    client.run(|| echoes(&net::connect(server.address())?, "direct again"))?;
    ensure!(
        sniffer.stop()?.contains(b"direct again"),
        "it goes directly"
    );

    lab.manifests().apply(
        "namespace-app.yaml",
        &Manifests::namespace_manifest("app", true),
    )?;
    eventually("the pod is captured again", Duration::from_secs(5), || {
        ensure!(kernel_state(&client)? != pristine, "not yet");
        client.run(|| echoes(&net::connect(server.address())?, "captured again"))
    })
}

#[test]
fn a_pod_that_appears_is_captured() -> Result<()> {
    let mut pair = Pair::new()?;
    let server = Server::start(&pair.server, pair.server.v4(), PORT, echo)?;
    let late = pair.lab.pod("a", "late")?;
    eventually("the pod is known", Duration::from_secs(5), || {
        let dump = pair.lab.agent("a")?.config_dump()?;
        let known = dump["workloadState"].to_string().contains("\"late\"");
        ensure!(known, "{}", dump["workloadState"]);
        pair.lab.agent("a")?.wait_ready()
    })?;
    eventually("its traffic is captured", Duration::from_secs(5), || {
        pair.encrypted(SECRET, || {
            late.run(|| echoes(&net::connect(server.address())?, SECRET))
        })
    })
}

#[test]
fn unenrolling_a_node_leaves_nothing_behind() -> Result<()> {
    let mut lab = Lab::two_nodes()?;
    let (client, server) = (lab.pod("a", "client")?, lab.pod("b", "server")?);
    let pristine = kernel_state(&client)?;
    lab.start()?;
    let server = Server::start(&server, server.v4(), PORT, echo)?;
    client.run(|| echoes(&net::connect(server.address())?, "captured"))?;

    let agent = lab.take_agent("a")?;
    let pins = agent.pins();
    ensure!(
        pins.exists(),
        "links and maps are pinned, for a restart to find them"
    );
    let output = agent.command(&["stop", "--unenrol"])?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    agent.ended()?;
    ensure!(
        kernel_state(&client)? == pristine,
        "before:\n{pristine}\nnow:\n{}",
        kernel_state(&client)?
    );
    ensure!(!pins.exists(), "{} is still there", pins.display());
    client.run(|| echoes(&net::connect(server.address())?, "direct again"))
}

#[test]
fn stopping_an_agent_keeps_its_pods_closed_until_the_next_one() -> Result<()> {
    let mut pair = Pair::new()?;
    let server = Server::start(&pair.server, pair.server.v4(), PORT, echo)?;
    let reach = |client: &Pod| client.run(|| echoes(&net::connect(server.address())?, SECRET));
    reach(&pair.client)?;
    let sniffer = pair.lab.sniff()?;
    pair.lab.take_agent("a")?.stop()?;
    ensure!(
        reach(&pair.client).is_err(),
        "a connection got through without an agent"
    );
    ensure!(
        !sniffer.stop()?.contains(SECRET.as_bytes()),
        "plaintext crossed the link"
    );
    pair.lab.start_agent("a")?;
    pair.lab.agent("a")?.wait_ready()?;
    reach(&pair.client)
}

#[test]
fn a_thousand_connections_at_once_are_carried() -> Result<()> {
    let pair = Pair::new()?;
    let server = Server::start(&pair.server, pair.server.v4(), PORT, echo)?;
    pair.client.run(|| {
        let mut streams = Vec::new();
        for _ in 0..1000 {
            streams.push(net::connect(server.address())?);
        }
        for (index, mut stream) in streams.iter().enumerate() {
            write!(stream, "{index:08}")?;
        }
        for (index, mut stream) in streams.iter().enumerate() {
            let mut back = [0; 8];
            stream.read_exact(&mut back)?;
            ensure!(
                back == *format!("{index:08}").as_bytes(),
                "connection {index} got another's bytes"
            );
        }
        Ok(())
    })
}

#[test]
fn addresses_of_both_families_are_captured_at_a_headless_service() -> Result<()> {
    let pair = Pair::new()?;
    let _server = Server::start(&pair.server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    let text = "apiVersion: v1\nkind: Service\nmetadata:\n  name: server\n  namespace: app\nspec:\n  clusterIP: None\n  \
                selector:\n    app: server\n  ports:\n  - port: 7000\n";
    pair.lab.manifests().apply("service-server.yaml", text)?;
    let addresses: [IpAddr; 2] = [pair.server.v4(), pair.server.v6()];
    for address in addresses {
        let to = SocketAddr::new(address, PORT);
        pair.encrypted(SECRET, || {
            pair.client.run(|| echoes(&net::connect(to)?, SECRET))
        })?;
    }
    Ok(())
}
