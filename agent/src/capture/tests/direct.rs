//! The kernel-direct path: who gets through, what is counted, and what ends it.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use culvert_ebpf::{
    EVENT_DENIED, EVENT_ENDED, FLOW_CLIENT, FLOW_EVENTS_BYTES, FLOW_SERVER, FlowEvent,
};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
    sockopt::Linger,
};

use super::{
    super::{DirectPath, FlowEvents},
    bench::{Bench, PATIENCE, TestPod, at, call, finish},
};

const PORT: u16 = 7000;

/// A bench with both pods enrolled and an application in `b`.
fn bench() -> (Bench, DirectPath) {
    let mut bench = Bench::new();
    bench.enrol_a();
    bench.enrol_b();
    let path = bench.capture_ref().direct_path().unwrap();
    (bench, path)
}

/// Both families of a pod, and IPv4 through an IPv6 socket.
fn ways(pod: &TestPod, port: u16) -> [SocketAddr; 3] {
    let mapped: IpAddr = pod.v4.to_ipv6_mapped().into();
    [pod.v4.into(), pod.v6.into(), mapped].map(|address: IpAddr| at(address, port))
}

fn allow(bench: &Bench, path: &DirectPath, port: u16) {
    let (client, server) = (bench.a.netns.cookie(), bench.b.netns.cookie());
    for address in [IpAddr::from(bench.b.v4), bench.b.v6.into()] {
        path.allow(client, at(address, port), server).unwrap();
    }
}

fn reached(pod: &TestPod, to: SocketAddr) -> String {
    pod.run(|| call(to)).unwrap().greeting.from
}

/// Waits for events until there are as many.
fn events(from: &mut FlowEvents, count: usize) -> Vec<FlowEvent> {
    let deadline = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    while seen.len() < count {
        match from.next() {
            Some(event) => seen.push(event),
            None => assert!(Instant::now() < deadline, "{count} expected: {seen:?}"),
        }
    }
    seen
}

#[test]
fn allowed_connections_reach_the_application_with_true_addresses() {
    let (bench, path) = bench();
    let _app = bench.b.serve(PORT);
    for to in ways(&bench.b, PORT) {
        assert_eq!(reached(&bench.a, to), "outbound", "{to} before");
    }
    allow(&bench, &path, PORT);
    for to in ways(&bench.b, PORT) {
        let call = bench.a.run(|| call(to)).unwrap();
        assert_eq!(call.greeting.from, "app", "{to}");
        assert_eq!(call.greeting.accepted, call.local, "{to}");
        assert_eq!(call.greeting.peer, call.local, "{to}");
        assert_eq!(call.peer.ip(), to.ip().to_canonical(), "{to}");
    }
    // Nobody else, nowhere else, and not for ever.
    assert_eq!(reached(&bench.b, at(bench.a.v4, PORT)), "outbound");
    let _other = bench.b.serve(PORT + 1);
    assert_eq!(reached(&bench.a, at(bench.b.v4, PORT + 1)), "outbound");
    for address in [IpAddr::from(bench.b.v4), bench.b.v6.into()] {
        path.revoke(bench.a.netns.cookie(), at(address, PORT))
            .unwrap();
    }
    for to in ways(&bench.b, PORT) {
        assert_eq!(reached(&bench.a, to), "outbound", "{to} afterwards");
    }
    assert_eq!(bench.openings(), 0);
    assert!(path.flows().unwrap().is_empty());
}

#[test]
fn denied_connections_are_refused_at_once_and_told() {
    let (bench, path) = bench();
    let _app = bench.b.serve(PORT);
    let client = bench.a.netns.cookie();
    let mut told = path.events().unwrap();
    for address in [IpAddr::from(bench.b.v4), bench.b.v6.into()] {
        path.deny(client, at(address, PORT)).unwrap();
    }
    for to in ways(&bench.b, PORT) {
        let refusal = bench.a.run(|| TcpStream::connect(to)).unwrap_err();
        assert_eq!(refusal.raw_os_error(), Some(libc::ECONNREFUSED), "{to}");
        let event = events(&mut told, 1)[0];
        assert_eq!(event.kind, EVENT_DENIED);
        assert_eq!(event.flow.client_netns, client);
        assert_eq!(event.flow.server().ip(), to.ip().to_canonical());
        assert_eq!(event.flow.server().port(), PORT);
    }
}

#[test]
fn what_the_ring_has_no_room_for_is_added_up_until_it_is_forgotten() {
    // Refusals are told while half of the ring is free.
    let told = FLOW_EVENTS_BYTES as usize / 2 / size_of::<FlowEvent>();
    let (bench, path) = bench();
    let client = bench.a.netns.cookie();
    let to = at(bench.b.v4, PORT);
    path.deny(client, to).unwrap();
    let deny = |count: usize| {
        bench.a.run(|| {
            for _ in 0..count {
                TcpStream::connect(to).unwrap_err();
            }
        });
    };
    let sums = || path.lost().unwrap();
    deny(told);
    let before = sums().first().map_or(0, |(_, sum)| sum.ended);
    deny(3);
    let [(ends, sum)] = <[_; 1]>::try_from(sums()).unwrap();
    assert_eq!((ends.own_netns(), sum.ended), (client, before + 3));
    path.forget_lost(&ends).unwrap();
    assert!(sums().is_empty());
    deny(1);
    let [(again, sum)] = <[_; 1]>::try_from(sums()).unwrap();
    assert_eq!((again, sum.ended), (ends, 1));
}

#[test]
fn a_closed_port_refuses_and_leaves_nothing_behind() {
    let (bench, path) = bench();
    allow(&bench, &path, PORT);
    let mut told = path.events().unwrap();
    for to in ways(&bench.b, PORT) {
        let refusal = bench.a.run(|| TcpStream::connect(to)).unwrap_err();
        assert_eq!(refusal.raw_os_error(), Some(libc::ECONNREFUSED), "{to}");
        let event = events(&mut told, 1)[0];
        assert_eq!(i32::from(event.error), libc::ECONNREFUSED);
        assert_eq!((event.sent, event.received), (0, 0));
    }
    assert_eq!(bench.openings(), 0);
    assert!(path.flows().unwrap().is_empty());
}

#[test]
fn an_address_that_another_pod_has_taken_over_is_not_meant() {
    let (bench, path) = bench();
    let _app = bench.b.serve(PORT);
    // As if the pod for which it was allowed had been another one.
    path.allow(bench.a.netns.cookie(), at(bench.b.v4, PORT), u64::MAX)
        .unwrap();
    assert_eq!(reached(&bench.a, at(bench.b.v4, PORT)), "inbound");
}

#[test]
fn an_address_that_is_not_the_pods_own_goes_to_the_agent() {
    let (bench, path) = bench();
    let _app = bench.b.serve(PORT);
    allow(&bench, &path, PORT);
    // Not recorded yet, as any that a pod gives itself.
    bench.a.ip("addr add 10.88.0.99/32 dev lo");
    let from = |address: &str| {
        let from: SocketAddr = format!("{address}:0").parse().unwrap();
        let to = at(bench.b.v4, PORT);
        bench.a.run(|| -> io::Result<_> {
            let flags = SockFlag::SOCK_CLOEXEC;
            let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
            bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
            connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
            finish(socket.into())
        })
    };
    assert_eq!(from("10.88.0.11").unwrap().greeting.from, "app");
    assert_eq!(from("10.88.0.99").unwrap().greeting.from, "outbound");
}

#[test]
fn the_agents_own_ports_are_no_application() {
    let (bench, path) = bench();
    for port in [15001, 15006, 15008] {
        allow(&bench, &path, port);
        let to = at(bench.b.v4, port);
        let outcome = bench.a.run(|| call(to));
        assert!(outcome.is_err(), "{port}: {outcome:?}");
    }
}

/// Ports that were used a moment ago are free again only in `TIME_WAIT`.
#[test]
fn ports_still_in_time_wait_are_let_through_again() {
    let (bench, path) = bench();
    let _app = bench.b.serve(PORT);
    allow(&bench, &path, PORT);
    bench.a.run(|| {
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40063").unwrap();
    });
    for to in ways(&bench.b, PORT) {
        for _again in 0..200 {
            let call = loop {
                match bench.a.run(|| call(to)) {
                    Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
                    call => break call.unwrap(),
                }
            };
            assert_eq!(call.greeting.from, "app", "{to}");
        }
    }
    assert_eq!(bench.openings(), 0);
}

#[test]
fn syn_cookies_change_nothing() {
    let (bench, path) = bench();
    let _app = bench.b.serve(PORT);
    allow(&bench, &path, PORT);
    bench.b.run(|| {
        std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2").unwrap();
    });
    for to in ways(&bench.b, PORT) {
        for _again in 0..50 {
            assert_eq!(reached(&bench.a, to), "app", "{to}");
        }
    }
    assert_eq!(bench.openings(), 0);
}

/// How a connection ends.
#[derive(Clone, Copy, Debug)]
enum Close {
    ClientFirst,
    ServerFirst,
    ClientResets,
}

#[test]
fn every_byte_is_counted_at_both_ends() {
    let (bench, path) = bench();
    allow(&bench, &path, PORT);
    let mut told = path.events().unwrap();
    let listener = bench
        .b
        .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)))
        .unwrap();
    for close in [Close::ClientFirst, Close::ServerFirst, Close::ClientResets] {
        for (to, request, answer) in [
            (ways(&bench.b, PORT)[0], 1, 0),
            (ways(&bench.b, PORT)[1], 70_001, 333),
            (ways(&bench.b, PORT)[2], 5, 1_000_003),
        ] {
            exchange(&bench, &listener, to, (request, answer), close);
            let seen = events(&mut told, 2);
            for (end, sent, received) in [
                (FLOW_CLIENT, request, answer),
                (FLOW_SERVER, answer, request),
            ] {
                let event = seen.iter().find(|event| event.flow.end == end).unwrap();
                assert_eq!(event.kind, EVENT_ENDED);
                let counted = (event.sent, event.received);
                let expected = (sent as u64, received as u64);
                assert_eq!(counted, expected, "{close:?} {to} {end}");
                let ends = [event.flow.client_netns, event.flow.server_netns];
                assert_eq!(ends, [bench.a.netns.cookie(), bench.b.netns.cookie()]);
            }
        }
    }
}

/// One connection that carries so many bytes each way.
fn exchange(
    bench: &Bench,
    listener: &TcpListener,
    to: SocketAddr,
    (request, answer): (usize, usize),
    close: Close,
) {
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut vec![0; request]).unwrap();
            stream.write_all(&vec![1; answer]).unwrap();
            if matches!(close, Close::ServerFirst) {
                stream.shutdown(Shutdown::Write).unwrap();
            }
            let _reset = stream.read_to_end(&mut Vec::new());
        });
        bench.a.run(|| {
            let mut stream = TcpStream::connect(to).unwrap();
            stream.write_all(&vec![2; request]).unwrap();
            stream.read_exact(&mut vec![0; answer]).unwrap();
            match close {
                Close::ClientFirst => {}
                Close::ServerFirst => {
                    stream.read_to_end(&mut Vec::new()).unwrap();
                }
                Close::ClientResets => {
                    let at_once = libc::linger {
                        l_onoff: 1,
                        l_linger: 0,
                    };
                    setsockopt(&stream, Linger, &at_once).unwrap();
                }
            }
        });
        server.join().unwrap();
    });
}

#[test]
fn live_connections_are_known_and_end_on_demand() {
    const EACH: usize = 40;
    let (mut bench, path) = bench();
    allow(&bench, &path, PORT);
    let sockets = bench.enrol_a().sockets;
    let listener = bench
        .b
        .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)))
        .unwrap();
    let mut streams = Vec::new();
    for to in ways(&bench.b, PORT) {
        for _ in 0..EACH {
            let client = bench.a.run(|| TcpStream::connect(to)).unwrap();
            streams.push((client, listener.accept().unwrap().0));
        }
    }
    let flows = path.flows().unwrap();
    assert_eq!(flows.len(), 2 * streams.len());
    let carried = sockets.carried().unwrap();
    let clients: Vec<_> = flows
        .into_iter()
        .filter(|(_, flow)| flow.end == FLOW_CLIENT)
        .collect();
    assert!(
        clients
            .iter()
            .all(|(cookie, _)| carried.contains_key(cookie))
    );
    assert_eq!(sockets.end_flows(&clients).unwrap(), streams.len());
    for (mut client, mut server) in streams {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let ended = client.read(&mut [0]).unwrap_err();
        assert_eq!(ended.raw_os_error(), Some(libc::ECONNABORTED));
        let reset = server.read(&mut [0]).unwrap_err();
        assert_eq!(reset.raw_os_error(), Some(libc::ECONNRESET));
    }
    assert!(path.flows().unwrap().is_empty());
}

#[test]
fn bytes_of_live_connections_can_be_asked_for() {
    let (mut bench, path) = bench();
    allow(&bench, &path, PORT);
    let sockets = bench.enrol_a().sockets;
    let listener = bench
        .b
        .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)))
        .unwrap();
    let mut client = bench
        .a
        .run(|| TcpStream::connect(at(bench.b.v4, PORT)))
        .unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(&[1; 12_345]).unwrap();
    server.read_exact(&mut [0; 12_345]).unwrap();
    server.write_all(&[1; 678]).unwrap();
    client.read_exact(&mut [0; 678]).unwrap();
    let (cookie, _) = path.flows().unwrap()[0];
    let (other, _) = path.flows().unwrap()[1];
    let carried = sockets.carried().unwrap();
    let carried = carried
        .get(&cookie)
        .or_else(|| carried.get(&other))
        .unwrap();
    assert_eq!((carried.sent, carried.received), (12_345, 678));
}

#[test]
fn a_released_pod_takes_its_verdicts_and_connections_with_it() {
    let (mut bench, path) = bench();
    let _app = bench.b.serve(PORT);
    allow(&bench, &path, PORT);
    let listener = bench
        .b
        .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT + 1)))
        .unwrap();
    allow(&bench, &path, PORT + 1);
    let mut client = bench
        .a
        .run(|| TcpStream::connect(at(bench.b.v4, PORT + 1)))
        .unwrap();
    let _server = listener.accept().unwrap();
    let uid = bench.b.name.clone();
    bench.capture().release(&uid).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(client.read(&mut [0]).is_err(), "it goes on");
    assert!(path.flows().unwrap().is_empty());
    assert_eq!(reached(&bench.a, at(bench.b.v4, PORT)), "outbound");
}

#[test]
fn without_an_agent_verdicts_hold_for_the_lease_and_connections_for_ever() {
    let lease = Duration::from_millis(1500);
    let mut bench = Bench::with_lease(lease);
    bench.enrol_a();
    bench.enrol_b();
    let path = bench.capture_ref().direct_path().unwrap();
    let _app = bench.b.serve(PORT);
    allow(&bench, &path, PORT);
    let listener = bench
        .b
        .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT + 1)))
        .unwrap();
    allow(&bench, &path, PORT + 1);
    let mut client = bench
        .a
        .run(|| TcpStream::connect(at(bench.b.v4, PORT + 1)))
        .unwrap();
    let (mut server, _) = listener.accept().unwrap();
    bench.capture().beat().unwrap();
    bench.kill_agent();
    assert_eq!(reached(&bench.a, at(bench.b.v4, PORT)), "app");
    let deadline = Instant::now() + lease + PATIENCE;
    let refusal = loop {
        match bench.a.run(|| call(at(bench.b.v4, PORT))) {
            Ok(call) => {
                assert_eq!(call.greeting.from, "app");
                assert!(Instant::now() < deadline, "the lease does not end");
            }
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal.raw_os_error(), Some(libc::ECONNREFUSED));
    client.write_all(b"still").unwrap();
    server.read_exact(&mut [0; 5]).unwrap();
    // The next agent does not know what its predecessor allowed.
    bench.load();
    bench.enrol_a();
    bench.enrol_b();
    assert_eq!(reached(&bench.a, at(bench.b.v4, PORT)), "outbound");
    client.write_all(b"still").unwrap();
    server.read_exact(&mut [0; 5]).unwrap();
}

#[test]
fn a_service_is_spread_by_weight_and_shows_its_own_address() {
    const CALLS: usize = 400;
    let (bench, path) = bench();
    let _app = bench.b.serve(PORT);
    allow(&bench, &path, PORT);
    let client = bench.a.netns.cookie();
    for (service, endpoint) in [
        ("10.96.0.1", IpAddr::from(bench.b.v4)),
        ("fd96::1", bench.b.v6.into()),
    ] {
        let service: SocketAddr = at(service.parse::<IpAddr>().unwrap(), 80);
        // Three quarters of it are elsewhere.
        path.spread(client, service, &[(at(endpoint, PORT), 1)], 4)
            .unwrap();
        let mut straight = 0;
        for _ in 0..CALLS {
            let call = bench.a.run(|| call(service)).unwrap();
            assert_eq!(call.peer, service);
            straight += usize::from(call.greeting.from == "app");
        }
        // Five standard deviations are 43.
        assert!(straight.abs_diff(CALLS / 4) < 44, "{straight} of {CALLS}");
    }
}

#[test]
fn nothing_is_left_of_thousands_of_connections() {
    let (bench, path) = bench();
    let _app = bench.b.serve(PORT);
    allow(&bench, &path, PORT);
    let mut told = path.events().unwrap();
    let to = at(bench.b.v4, PORT);
    let mut ended = 0;
    bench.a.run(|| {
        for _ in 0..2000 {
            assert_eq!(call(to).unwrap().greeting.from, "app");
        }
    });
    let deadline = Instant::now() + PATIENCE;
    while ended < 4000 {
        ended += usize::from(told.next().is_some());
        assert!(Instant::now() < deadline, "{ended} ends of 4000 were told");
    }
    assert!(path.lost().unwrap().is_empty());
    assert_eq!(bench.openings(), 0);
    assert!(path.flows().unwrap().is_empty());
}
