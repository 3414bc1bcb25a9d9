//! What applications' own connections meet.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use culvert_ebpf::MARK_OUTBOUND;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt,
        sendto, setsockopt, socket,
        sockopt::{BindToDevice, Mark, ReuseAddr, SocketError},
    },
};

use super::{
    super::{Family, sys},
    bench::{Bench, Call, PATIENCE, at, call, canonical, finish},
};

/// Addresses that no one has: only capture can answer for them.
const FOREIGN_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const FOREIGN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);

/// The agent took the connection, knows where it was to go, and the client sees nothing of it.
#[track_caller]
fn assert_captured(call: &Call, destination: SocketAddr) {
    assert_eq!(call.greeting.from, "outbound");
    assert_eq!(call.greeting.local, destination);
    assert_eq!(call.greeting.accepted, call.local);
    assert_eq!(call.greeting.peer, call.local);
    assert_eq!(call.peer, destination);
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: io::Result<T>) {
    let error = result.expect_err("the connection is refused");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
}

fn tcp(family: AddressFamily) -> OwnedFd {
    socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap()
}

fn connect_to(socket: &OwnedFd, to: SocketAddr) -> io::Result<()> {
    Ok(connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?)
}

fn call_with(socket: OwnedFd, to: SocketAddr) -> io::Result<Call> {
    connect_to(&socket, to)?;
    finish(TcpStream::from(socket))
}

#[test]
fn agent_gets_v4_connections_with_their_original_destination() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let call = bench.a.run(|| call(at(FOREIGN_V4, 443))).unwrap();
    assert_captured(&call, at(FOREIGN_V4, 443));
    assert_eq!(call.local.ip(), bench.a.v4);
}

#[test]
fn agent_gets_v6_connections_with_their_original_destination() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let call = bench.a.run(|| call(at(FOREIGN_V6, 443))).unwrap();
    assert_captured(&call, at(FOREIGN_V6, 443));
    assert_eq!(call.local.ip(), bench.a.v6);
}

#[test]
fn agent_gets_v4_connections_of_v6_sockets() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let mapped = at(FOREIGN_V4.to_ipv6_mapped(), 443);
    let call = bench
        .a
        .run(|| call_with(tcp(AddressFamily::Inet6), mapped))
        .unwrap();
    assert_captured(&call, canonical(mapped));
}

#[test]
fn agent_gets_connections_to_ports_on_which_the_application_listens_itself() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let _app = bench.a.serve(8080);
    let call = bench.a.run(|| call(at(FOREIGN_V4, 8080))).unwrap();
    assert_captured(&call, at(FOREIGN_V4, 8080));
}

#[test]
fn agent_gets_mptcp_connections() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let to = at(FOREIGN_V4, 443);
    let call = bench
        .a
        .run(|| call_with(sys::mptcp_socket().unwrap(), to))
        .unwrap();
    assert_captured(&call, to);
}

#[test]
fn agent_gets_fast_open_connections() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let to = at(FOREIGN_V4, 443);
    let send_with_syn = || {
        let socket = tcp(AddressFamily::Inet);
        let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
        sendto(
            socket.as_raw_fd(),
            b"early",
            &SockaddrStorage::from(to),
            flags,
        )?;
        finish(TcpStream::from(socket))
    };
    assert_captured(&bench.a.run(send_with_syn).unwrap(), to);
    let connect_lazily = || {
        let socket = tcp(AddressFamily::Inet);
        sys::set_option(
            socket.as_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_FASTOPEN_CONNECT,
            1,
        )?;
        call_with(socket, to)
    };
    assert_captured(&bench.a.run(connect_lazily).unwrap(), to);
}

#[test]
fn agent_gets_non_blocking_connections() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let to = at(FOREIGN_V4, 443);
    let call = bench.a.run(|| {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        match connect_to(&socket, to) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
        poll(&mut ready, u16::try_from(PATIENCE.as_millis()).unwrap())?;
        assert_eq!(getsockopt(&socket, SocketError)?, 0);
        let stream = TcpStream::from(socket);
        stream.set_nonblocking(false)?;
        finish(stream)
    });
    assert_captured(&call.unwrap(), to);
}

#[test]
fn pod_talks_to_itself_untouched() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let _app = bench.a.serve(8080);
    let (v4, v6) = (bench.a.v4, bench.a.v6);
    let own: [IpAddr; 4] = [
        v4.into(),
        v6.into(),
        Ipv4Addr::LOCALHOST.into(),
        Ipv6Addr::LOCALHOST.into(),
    ];
    for address in own {
        let to = at(address, 8080);
        let call = bench.a.run(|| call(to)).unwrap();
        assert_eq!(call.greeting.from, "app", "{to}");
        assert_eq!((call.peer, call.greeting.local), (to, to));
        assert_eq!(call.greeting.accepted, call.local);
    }
}

#[test]
fn pod_talks_between_its_own_addresses_untouched() {
    let mut bench = Bench::new();
    bench.a.ip("addr add 10.88.0.111/24 dev eth0");
    bench.enrol_a();
    let _app = bench.a.serve(8080);
    let (from, to) = (at(bench.a.v4, 0), at(Ipv4Addr::new(10, 88, 0, 111), 8080));
    let call = bench.a.run(|| {
        let socket = tcp(AddressFamily::Inet);
        bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
        call_with(socket, to)
    });
    assert_eq!(call.unwrap().greeting.from, "app");
}

#[test]
fn agents_own_ports_refuse_connections_by_name() {
    let mut bench = Bench::new();
    bench.enrol_a();
    for port in [15001, 15006] {
        assert_refused(bench.a.run(|| call(at(Ipv4Addr::LOCALHOST, port))));
        let (v4, v6) = (bench.a.v4, bench.a.v6);
        assert_refused(bench.a.run(|| call(at(v4, port))));
        assert_refused(bench.a.run(|| call(at(v6, port))));
        assert_refused(bench.b.run(|| call(at(v4, port))));
    }
}

#[test]
fn forged_mark_does_not_escape() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let to = at(FOREIGN_V4, 443);
    for mark in [MARK_OUTBOUND, 0x0f00_0000, 0x0539] {
        let call = bench.a.run(|| {
            let socket = tcp(AddressFamily::Inet);
            setsockopt(&socket, Mark, &mark)?;
            call_with(socket, to)
        });
        assert_captured(&call.unwrap(), to);
    }
}

#[test]
fn forged_mark_does_not_misdirect_connections_to_oneself() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let _app = bench.a.serve(8080);
    let to = at(bench.a.v4, 8080);
    let call = bench.a.run(|| {
        let socket = tcp(AddressFamily::Inet);
        setsockopt(&socket, Mark, &MARK_OUTBOUND)?;
        call_with(socket, to)
    });
    assert_eq!(call.unwrap().greeting.from, "app");
}

#[test]
fn applications_mark_is_kept_outside_the_mask() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let mark = bench.a.run(|| {
        let socket = tcp(AddressFamily::Inet);
        setsockopt(&socket, Mark, &0x0000_0042)?;
        connect_to(&socket, at(FOREIGN_V4, 443))?;
        io::Result::Ok(getsockopt(&socket, Mark)?)
    });
    assert_eq!(mark.unwrap(), MARK_OUTBOUND | 0x42);
}

#[test]
fn what_would_bypass_the_route_is_refused() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let _peer = bench.b.serve(8080);
    let to = at(bench.b.v4, 8080);
    assert_refused(bench.a.run(|| {
        let socket = tcp(AddressFamily::Inet);
        setsockopt(&socket, BindToDevice, &"eth0".into())?;
        call_with(socket, to)
    }));
    let link_local: SocketAddr = "[fe80::1%2]:8080".parse().unwrap();
    assert_refused(
        bench
            .a
            .run(|| call_with(tcp(AddressFamily::Inet6), link_local)),
    );
}

#[test]
fn dead_agent_means_refused_at_once() {
    let mut bench = Bench::new();
    bench.enrol_a();
    bench.kill_agent();
    for to in [at(FOREIGN_V4, 443), at(FOREIGN_V6, 443)] {
        let started = Instant::now();
        assert_refused(bench.a.run(|| call(to)));
        assert!(
            started.elapsed() < Duration::from_secs(1),
            "{:?}",
            started.elapsed()
        );
    }
}

#[test]
fn applications_listener_on_the_agents_port_does_not_stand_in_for_a_dead_agent() {
    let mut bench = Bench::new();
    bench.enrol_a();
    bench.kill_agent();
    let _app = bench.a.serve(15001);
    assert_refused(bench.a.run(|| call(at(FOREIGN_V4, 443))));
}

#[test]
fn hung_agent_means_refused_until_it_is_well_again() {
    let mut bench = Bench::with_lease(Duration::from_nanos(1));
    bench.enrol_a();
    assert_refused(bench.a.run(|| call(at(FOREIGN_V4, 443))));
    bench.capture().control.lease_ns = u64::MAX;
    bench.capture().beat().unwrap();
    assert_captured(
        &bench.a.run(|| call(at(FOREIGN_V4, 443))).unwrap(),
        at(FOREIGN_V4, 443),
    );
}

#[test]
fn pods_that_are_not_enrolled_are_left_alone() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let _app = bench.node.serve(8080);
    let to = at(bench.node.v4, 8080);
    let call = bench.b.run(|| call(to)).unwrap();
    assert_eq!(
        (call.greeting.from.as_str(), call.greeting.local),
        ("app", to)
    );
}

#[test]
fn agents_own_connections_leave_the_pod() {
    let mut bench = Bench::new();
    let enrolled = bench.enrol_a();
    let _app = bench.b.serve(8080);
    for (family, to) in [
        (Family::V4, at(bench.b.v4, 8080)),
        (Family::V6, at(bench.b.v6, 8080)),
    ] {
        let stream = TcpStream::from(enrolled.sockets.outbound(family).unwrap());
        stream.set_nonblocking(false).unwrap();
        connect(stream.as_raw_fd(), &SockaddrStorage::from(to)).unwrap();
        let call = finish(stream).unwrap();
        assert_eq!(call.greeting.from, "app");
        assert_eq!(call.local.ip(), bench.a.spec().addresses[family as usize]);
    }
}

#[test]
fn stock_of_sockets_never_runs_out() {
    let mut bench = Bench::new();
    let enrolled = bench.enrol_a();
    let sockets: Vec<OwnedFd> = (0..200)
        .map(|_| enrolled.sockets.outbound(Family::V4).unwrap())
        .collect();
    for socket in &sockets {
        let cookie = sys::netns_cookie(socket.as_fd()).unwrap();
        assert_eq!(cookie, bench.a.netns.cookie());
    }
}

#[test]
fn nothing_is_left_of_ten_thousand_connections() {
    let mut bench = Bench::new();
    bench.enrol_a();
    bench.a.ip("link set eth0 up");
    bench.a.run(|| {
        let to = at(FOREIGN_V4, 443);
        for _ in 0..10_000 {
            let socket = tcp(AddressFamily::Inet);
            // RST on close: thousands of sockets in TIME_WAIT would exhaust the ports.
            let linger = libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            setsockopt(&socket, nix::sys::socket::sockopt::Linger, &linger).unwrap();
            connect_to(&socket, to).unwrap();
        }
    });
    assert_eq!(bench.openings(), 0);
}

#[test]
fn nothing_is_left_of_connections_that_never_open() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let (listeners, _rest) = (bench.capture().pods.values().next().unwrap(), ());
    let cookie = listeners.netns.cookie();
    // Captured, but with an empty slot: `sk_lookup` drops the SYN and the client gives up.
    bench
        .capture()
        .shared
        .maps
        .remove_listeners(cookie)
        .unwrap();
    bench.a.run(|| {
        for _ in 0..100 {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
            let pending = connect(
                socket.as_raw_fd(),
                &SockaddrStorage::from(at(FOREIGN_V4, 443)),
            );
            assert_eq!(pending, Err(Errno::EINPROGRESS));
        }
    });
    assert_eq!(bench.openings(), 0);
}

#[test]
fn syn_cookies_change_nothing() {
    let mut bench = Bench::new();
    let enrolled = bench.enrol_a();
    let _app = bench.a.serve(8080);
    bench
        .a
        .run(|| std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2"))
        .unwrap();
    let to = at(FOREIGN_V4, 443);
    assert_captured(&bench.a.run(|| call(to)).unwrap(), to);
    let (own, client) = (at(bench.a.v4, 8080), at(FOREIGN_V4, 1234));
    let leg = enrolled.sockets.leg(Family::V4, client).unwrap();
    let leg = TcpStream::from(leg);
    leg.set_nonblocking(false).unwrap();
    connect(leg.as_raw_fd(), &SockaddrStorage::from(own)).unwrap();
    assert_eq!(finish(leg).unwrap().greeting.peer, client);
    assert_eq!(bench.b.run(|| call(own)).unwrap().greeting.from, "inbound");
    assert_eq!(bench.openings(), 0);
}

#[test]
fn ports_still_in_time_wait_are_captured_again() {
    let mut bench = Bench::new();
    bench.enrol_a();
    // The application would answer if a reopened connection were looked up without the program.
    let _app = bench.a.serve(8080);
    let call_from = |from: SocketAddr, to: SocketAddr| {
        let socket = tcp(AddressFamily::Inet);
        setsockopt(&socket, ReuseAddr, &true)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
        // The agent closes first and keeps the tuple in TIME_WAIT.
        call_with(socket, to)
    };
    let calls = |from: SocketAddr, to: SocketAddr| {
        let deadline = Instant::now() + PATIENCE;
        for _ in 0..3 {
            let call = loop {
                match call_from(from, to) {
                    // The client's end of the last connection still waits for its last ACK.
                    Err(error)
                        if error.kind() == io::ErrorKind::AddrNotAvailable
                            && Instant::now() < deadline => {}
                    call => break call.unwrap(),
                }
            };
            assert_eq!(call.local.port(), from.port());
            assert_ne!(call.greeting.from, "app");
        }
    };
    bench
        .a
        .run(|| calls(at(Ipv4Addr::UNSPECIFIED, 40_001), at(FOREIGN_V4, 8080)));
    let to = at(bench.a.v4, 8080);
    bench.b.run(|| calls(at(Ipv4Addr::UNSPECIFIED, 40_002), to));
}
