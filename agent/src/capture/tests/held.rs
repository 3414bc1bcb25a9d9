//! Connections that are held until the agent answers for their destination.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::mpsc,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, Shutdown, SockFlag, SockType, SockaddrStorage, connect, shutdown, socket,
    },
};

use super::{
    super::{Answer, Openings, WorkerListeners},
    bench::{Bench, PATIENCE, at, call},
};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));
const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9));
/// [`V4`] through an IPv6 socket.
const MAPPED: IpAddr = IpAddr::V6(Ipv4Addr::new(203, 0, 113, 9).to_ipv6_mapped());

/// A connection that is being opened, for as long as it is held here.
fn begin(to: SocketAddr) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let socket = socket(family, SockType::Stream, flags, None)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) => Err(io::Error::other("connected at once")),
        Err(Errno::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

#[test]
fn connect_fails_with_the_answer() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let table = [
        (Answer::Refuse, libc::ECONNREFUSED),
        (Answer::HostUnreachable, libc::EHOSTUNREACH),
        (Answer::NetworkUnreachable, libc::ENETUNREACH),
    ];
    for (answer, expected) in table {
        for address in [V4, V6, MAPPED] {
            let to = at(address, 443);
            bench.clerk().answer(to, Some(answer));
            let begun = Instant::now();
            let failed = bench.a.run(|| call(to)).unwrap_err();
            assert_eq!(failed.raw_os_error(), Some(expected), "{answer:?} {to}");
            assert!(begun.elapsed() < Duration::from_secs(1), "{answer:?} {to}");
        }
    }
    assert_eq!(bench.openings(), 0);
}

#[test]
fn silence_leaves_the_client_to_its_own_patience() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let to = at(V4, 443);
    bench.clerk().answer(to, None);
    let failed = bench.a.run(|| {
        std::fs::write("/proc/sys/net/ipv4/tcp_syn_retries", "1")?;
        call(to)
    });
    assert_eq!(failed.unwrap_err().raw_os_error(), Some(libc::ETIMEDOUT));
    let seen = bench.clerk().seen();
    // How many depends on the kernel's linear timeouts.
    assert!(seen.len() > 1, "the SYN and at least one more: {seen:?}");
    assert!(seen.iter().all(|syn| syn.key == seen[0].key), "{seen:?}");
}

#[test]
fn a_client_that_was_not_answered_is_when_it_asks_again() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let to = at(V4, 443);
    bench.clerk().answer(to, None);
    std::thread::scope(|scope| {
        let (pod, clerk) = (&bench.a, bench.clerk());
        let calling = scope.spawn(move || pod.run(|| call(to)));
        let deadline = Instant::now() + PATIENCE;
        while clerk.seen().is_empty() {
            assert!(Instant::now() < deadline, "no SYN is held");
            std::thread::yield_now();
        }
        clerk.answer(to, Some(Answer::Release));
        let call = calling.join().unwrap().unwrap();
        assert_eq!(call.greeting.from, "outbound");
        assert_eq!(call.greeting.local, to);
    });
}

/// Pod `a` enrolled, and what its agent would hold: rings and listeners of the two workers, sockets.
struct Office {
    openings: Vec<Openings>,
    listeners: Vec<TcpListener>,
    rest: Vec<WorkerListeners>,
    bench: Bench,
}

impl Office {
    fn new() -> (Self, std::sync::Arc<super::super::Sockets>) {
        let mut bench = Bench::new();
        let openings = bench.dismiss_clerk();
        let spec = bench.a.spec();
        let mut enrolled = bench.try_enrol(spec).unwrap();
        let rest = std::mem::take(&mut enrolled.listeners);
        let listeners = rest
            .iter()
            .map(|worker| TcpListener::from(worker.outbound.try_clone().unwrap()))
            .collect();
        let office = Self {
            openings,
            listeners,
            rest,
            bench,
        };
        (office, enrolled.sockets)
    }

    /// The worker that hears of a connection, and what it hears.
    fn heard(&mut self) -> (usize, culvert_ebpf::HeldSyn) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for (worker, openings) in self.openings.iter_mut().enumerate() {
                if let Some(syn) = openings.next() {
                    return (worker, syn);
                }
            }
            assert!(Instant::now() < deadline, "no SYN is held");
        }
    }

    fn accepted(&self) -> Vec<(usize, TcpStream)> {
        let accept = |(worker, listener): (usize, &TcpListener)| {
            let (stream, _) = listener.accept().ok()?;
            Some((worker, stream))
        };
        self.listeners
            .iter()
            .enumerate()
            .filter_map(accept)
            .collect()
    }
}

#[test]
fn the_worker_that_was_told_accepts() {
    let (mut office, sockets) = Office::new();
    let to = at(V4, 443);
    let mut counts = [0; 2];
    let mut kept = Vec::new();
    for _ in 0..60 {
        kept.push(office.bench.a.run(|| begin(to)).unwrap());
        let (told, syn) = office.heard();
        assert!(office.accepted().is_empty(), "accepted before its answer");
        sockets
            .answer(syn.source(), to, syn.tcp_header(), Answer::Release)
            .unwrap();
        let accepted = office.accepted();
        let [(worker, stream)] = accepted.as_slice() else {
            panic!("{accepted:?}");
        };
        assert_eq!(
            (*worker, stream.peer_addr().unwrap().port()),
            (told, syn.key.remote_port)
        );
        counts[told] += 1;
    }
    assert!(counts.iter().all(|count| *count > 10), "{counts:?}");
    assert_eq!(office.bench.openings(), 0);
}

/// The handshake runs on one CPU, and its client, which waits for nothing but that, on another.
#[test]
fn a_client_that_speaks_the_moment_it_is_connected_is_heard() {
    const CLIENTS: u16 = 5000;
    let (mut office, sockets) = Office::new();
    let (clients, speaking) = mpsc::channel::<OwnedFd>();
    let speaker = std::thread::spawn(move || {
        for client in speaking {
            let mut watched = [PollFd::new(client.as_fd(), PollFlags::POLLOUT)];
            let begun = Instant::now();
            while poll(&mut watched, PollTimeout::ZERO) == Ok(0) {
                assert!(begun.elapsed() < PATIENCE, "not connected");
            }
            let mut client = TcpStream::from(client);
            client.write_all(b"first").unwrap();
            // Until it is reset, or the server has heard it.
            let _end = client.read(&mut [0]);
        }
    });
    // Each goes to another port: none is a busy one.
    for port in 1..=CLIENTS {
        let address = if port % 2 == 0 { V4 } else { V6 };
        let to = at(address, port);
        clients
            .send(office.bench.a.run(|| begin(to)).unwrap())
            .unwrap();
        let (_worker, syn) = office.heard();
        sockets
            .answer(syn.source(), to, syn.tcp_header(), Answer::Release)
            .unwrap();
        let accepted = office.accepted();
        let [(_worker, stream)] = accepted.as_slice() else {
            panic!("{accepted:?}");
        };
        let mut stream = stream;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut heard = [0; 5];
        let read = stream.read_exact(&mut heard);
        assert!(read.is_ok(), "of client {port} nothing is heard: {read:?}");
    }
    drop(clients);
    speaker.join().unwrap();
}

#[test]
fn a_client_that_has_given_up_is_not_accepted() {
    let (mut office, sockets) = Office::new();
    let to = at(V4, 443);
    let client = office.bench.a.run(|| begin(to)).unwrap();
    let (_worker, syn) = office.heard();
    // More than closed: a child that another test forks just now holds a copy until it executes its program.
    shutdown(client.as_raw_fd(), Shutdown::Both).unwrap();
    drop(client);
    sockets
        .answer(syn.source(), to, syn.tcp_header(), Answer::Release)
        .unwrap();
    assert!(office.accepted().is_empty());
    assert_eq!(office.bench.openings(), 0);
    let inbound = office.rest.iter().map(|worker| &worker.inbound);
    for listener in inbound {
        let listener = TcpListener::from(listener.try_clone().unwrap());
        assert!(
            listener.accept().is_err(),
            "taken for a connection from outside"
        );
    }
}

#[test]
fn a_full_ring_costs_a_retransmission() {
    let (mut office, sockets) = Office::new();
    // Each record takes 120 bytes of a ring of 256 KiB. Each goes to another port: none is a busy one.
    let many = u16::try_from(2 * culvert_ebpf::RING_BYTES / 120 + 200).unwrap();
    let begin_all = || (1..=many).map(|port| begin(at(V4, port)));
    let clients: io::Result<Vec<OwnedFd>> = office.bench.a.run(|| begin_all().collect());
    let clients = clients.unwrap();
    let mut released = std::collections::BTreeSet::new();
    let deadline = Instant::now() + PATIENCE;
    while released.len() < clients.len() {
        let (_worker, syn) = office.heard();
        if released.insert(syn.key.local_port) {
            let to = syn.destination();
            sockets
                .answer(syn.source(), to, syn.tcp_header(), Answer::Release)
                .unwrap();
        }
        drop(office.accepted());
        assert!(Instant::now() < deadline, "{} of {many}", released.len());
    }
}

#[test]
fn a_held_connection_of_a_dead_agent_is_refused() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let to = at(V4, 443);
    bench.clerk().answer(to, None);
    let client = bench.a.run(|| begin(to)).unwrap();
    bench.kill_agent();
    // Its SYN goes out once more after a second, and finds no listener.
    let mut watched = [PollFd::new(client.as_fd(), PollFlags::POLLOUT)];
    let patience = u16::try_from(PATIENCE.as_millis()).unwrap();
    assert_eq!(poll(&mut watched, patience), Ok(1));
    let error = nix::sys::socket::getsockopt(&client, nix::sys::socket::sockopt::SocketError);
    assert_eq!(error, Ok(libc::ECONNREFUSED));
}

#[test]
fn a_busy_destination_is_relied_on_for_a_moment_and_until_it_fails() {
    let mut bench = Bench::new();
    let enrolled = bench.enrol_a();
    let (busy, idle) = (at(V4, 443), at(V4, 444));
    let clerk = bench.clerk();
    let is_held = |to| {
        let before = clerk.seen().len();
        drop(bench.a.run(|| call(to)));
        clerk.seen().len() > before
    };
    let until_held = |held| {
        let (begun, mut calls) = (Instant::now(), 0);
        while is_held(busy) != held {
            calls += 1;
            assert!(begun.elapsed() < PATIENCE, "after {calls} connections");
        }
        calls
    };
    let calls = until_held(false);
    assert!(calls >= culvert_ebpf::ANSWERS_OF_THE_BUSY, "{calls}");
    assert!(is_held(idle), "a destination is an address and a port");

    enrolled.sockets.hold_again(busy).unwrap();
    assert!(is_held(busy), "after a failure");

    until_held(false);
    clerk.answer(busy, Some(Answer::Refuse));
    assert!(bench.a.run(|| call(busy)).is_ok(), "relied on");
    until_held(true);
    let refused = bench.a.run(|| call(busy)).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}
