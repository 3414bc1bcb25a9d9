//! How many connections in their opening a pod may have, and that each is counted for as long as it is one.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    time::Instant,
};

use culvert_ebpf::OPENINGS_MOST;
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
        sockopt::Linger,
    },
};

use super::{
    super::Answer,
    bench::{Bench, PATIENCE, TestPod, at, call},
};

const FOREIGN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
/// From here nobody answers.
const SILENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);
const PORT: u16 = 7000;

/// What one pod gets of the places for all, which are as many again for all others.
const SHARE: u64 = OPENINGS_MOST / 2;

fn begin(from: Option<SocketAddr>, to: SocketAddr) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    if let Some(from) = from {
        bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
    }
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// Connects, and ends that with a reset: thousands of sockets in `TIME_WAIT` would exhaust the ports.
fn connect_and_reset(from: Option<SocketAddr>, to: SocketAddr) -> nix::Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&socket, Linger, &linger)?;
    if let Some(from) = from {
        bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
    }
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))
}

fn reached(pod: &TestPod, to: SocketAddr) -> io::Result<String> {
    Ok(pod.run(|| call(to))?.greeting.from)
}

/// A bench with both pods enrolled, in which nobody answers for [`SILENT`].
fn bench() -> Bench {
    let mut bench = Bench::new();
    bench.a.ip("addr add 10.88.0.111/24 dev eth0");
    bench.enrol_a();
    bench.enrol_b();
    bench.clerk().answer(at(SILENT, 443), None);
    bench
}

#[test]
fn a_pod_that_has_its_share_is_refused_and_nobody_else() {
    let bench = bench();
    let maps = Arc::clone(&bench.capture_ref().shared.maps);
    let a = bench.a.netns.cookie();
    let (_own, _other) = (bench.a.serve(PORT), bench.b.serve(PORT));
    maps.set_opening_count(a, SHARE - 3).unwrap();
    let begun: Vec<_> = (0..5)
        .map(|_| bench.a.run(|| begin(None, at(SILENT, 443))))
        .collect();
    let errors = begun.iter().map(|one| one.as_ref().err().copied());
    let refused = Some(Errno::ECONNREFUSED);
    let expected = [None, None, None, refused, refused];
    assert_eq!(errors.collect::<Vec<_>>(), expected);
    assert_eq!(bench.counted(&bench.a), SHARE);
    let own = (at(bench.a.v4, 0), at(Ipv4Addr::new(10, 88, 0, 111), PORT));
    let to_itself = bench.a.run(|| begin(Some(own.0), own.1));
    assert_eq!(to_itself.err(), refused);

    // Its neighbour's, the node's probes, and what needs no place.
    assert_eq!(reached(&bench.b, at(FOREIGN, 443)).unwrap(), "outbound");
    assert_eq!(reached(&bench.node, at(bench.a.v4, PORT)).unwrap(), "app");
    let local = at(Ipv4Addr::LOCALHOST, PORT);
    assert_eq!(reached(&bench.a, local).unwrap(), "app");

    drop(begun);
    assert_eq!(bench.counted(&bench.a), SHARE - 3);
    assert_eq!(reached(&bench.a, at(FOREIGN, 443)).unwrap(), "outbound");
    // Of what the neighbour has there is less for it.
    maps.set_opening_count(bench.b.netns.cookie(), SHARE)
        .unwrap();
    let refused = reached(&bench.a, at(FOREIGN, 443)).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_count_below_zero_is_none_and_a_pod_that_is_gone_has_none() {
    let mut bench = bench();
    let maps = Arc::clone(&bench.capture_ref().shared.maps);
    let [a, b] = [&bench.a, &bench.b].map(|pod| pod.netns.cookie());
    maps.set_opening_count(a, 5_u64.wrapping_neg()).unwrap();
    assert_eq!(maps.opening_sum().unwrap(), Some(0));
    assert_eq!(reached(&bench.a, at(FOREIGN, 443)).unwrap(), "outbound");
    maps.set_opening_count(a, 7).unwrap();
    maps.set_opening_count(b, 9).unwrap();
    let uid = bench.a.name.clone();
    bench.capture().release(&uid).unwrap();
    assert_eq!(maps.opening_count(a).unwrap(), None);
    assert_eq!(maps.opening_sum().unwrap(), Some(9));
    maps.set_opening_count(b, 0).unwrap();
    bench.enrol_a();
    assert_eq!(maps.opening_count(a).unwrap(), Some(0));
    // What is still under way is counted on when the pod is enrolled anew.
    let begun = bench.a.run(|| begin(None, at(SILENT, 443))).unwrap();
    bench.enrol_a();
    assert_eq!(maps.opening_count(a).unwrap(), Some(1));
    drop(begun);
    assert_eq!(bench.openings(), 0);
}

#[test]
fn nothing_is_counted_after_thousands_of_connections_of_every_kind() {
    const EACH: usize = 2000;
    let bench = bench();
    let path = bench.capture_ref().direct_path().unwrap();
    let (_own, _other) = (bench.a.serve(PORT), bench.b.serve(PORT));
    let (client, server) = (bench.a.netns.cookie(), bench.b.netns.cookie());
    let to_b = at(bench.b.v4, PORT);
    path.allow(client, to_b, server).unwrap();
    bench.clerk().answer(at(FOREIGN, 80), Some(Answer::Refuse));
    bench.a.ip("addr add 10.88.0.99/32 dev lo");
    let (main, other) = (at(bench.a.v4, 0), at(Ipv4Addr::new(10, 88, 0, 111), PORT));
    // Not recorded yet, so that none of its connections may go straight.
    let foreign_to_itself = at(Ipv4Addr::new(10, 88, 0, 99), 0);
    bench.a.run(|| {
        for _ in 0..EACH {
            connect_and_reset(None, at(FOREIGN, 443)).unwrap();
            let refused = connect_and_reset(None, at(FOREIGN, 80));
            assert_eq!(refused, Err(Errno::ECONNREFUSED));
            drop(begin(None, at(SILENT, 443)).unwrap());
            connect_and_reset(Some(main), other).unwrap();
            connect_and_reset(None, to_b).unwrap();
            connect_and_reset(Some(foreign_to_itself), to_b).unwrap();
        }
    });
    let deadline = Instant::now() + PATIENCE;
    // The application's end of the last one may have yet to begin.
    while bench.openings() > 0 {
        assert!(Instant::now() < deadline, "connections are left behind");
    }
}
