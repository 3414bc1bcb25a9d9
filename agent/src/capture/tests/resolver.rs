//! What DNS queries meet.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::OwnedFd,
};

use super::{
    super::{Enrolled, Pod},
    bench::{Bench, PATIENCE, at, canonical},
};

const RESOLVER_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 53);
const RESOLVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53);

fn bench() -> (Bench, Vec<UdpSocket>) {
    let mut bench = Bench::new();
    let spec = Pod {
        dns: true,
        ..bench.a.spec()
    };
    let Enrolled { dns, .. } = bench.enrol(spec);
    let proxies = dns.unwrap().udp.into_iter().map(blocking).collect();
    (bench, proxies)
}

fn blocking(socket: OwnedFd) -> UdpSocket {
    let socket = UdpSocket::from(socket);
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn client(bench: &Bench, any: IpAddr) -> UdpSocket {
    let socket = bench.a.run(|| UdpSocket::bind(at(any, 0))).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// The proxy takes a query, learns whom it was meant for, and answers.
#[track_caller]
fn answer(bench: &mut Bench, proxy: &UdpSocket, meant_for: SocketAddr) {
    let mut query = [0; 64];
    let (length, source) = proxy.recv_from(&mut query).unwrap();
    assert_eq!(&query[..length], b"query");
    let uid = bench.a.name.clone();
    let sockets = bench.capture().sockets(&uid).unwrap();
    let resolver = sockets.original_resolver(source).unwrap();
    assert_eq!(resolver, Some(meant_for));
    proxy.send_to(b"answer", source).unwrap();
}

#[track_caller]
fn assert_answered_by(client: &UdpSocket, resolver: SocketAddr) {
    let mut buffer = [0; 64];
    let (length, from) = client.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"answer");
    assert_eq!(canonical(from), resolver);
}

#[test]
fn unconnected_queries_go_to_the_proxy_and_answers_come_from_the_resolver() {
    let (mut bench, proxies) = bench();
    let [proxy_v4, proxy_v6] = proxies.as_slice() else {
        panic!("one socket per family")
    };
    let any_v4 = IpAddr::from(Ipv4Addr::UNSPECIFIED);
    let any_v6 = IpAddr::from(Ipv6Addr::UNSPECIFIED);
    let mapped = at(RESOLVER_V4.to_ipv6_mapped(), 53);
    for (any, resolver, proxy) in [
        (any_v4, at(RESOLVER_V4, 53), proxy_v4),
        (any_v6, at(RESOLVER_V6, 53), proxy_v6),
        (any_v6, mapped, proxy_v4),
    ] {
        let client = client(&bench, any);
        client.send_to(b"query", resolver).unwrap();
        answer(&mut bench, proxy, canonical(resolver));
        assert_answered_by(&client, canonical(resolver));
    }
}

#[test]
fn connected_queries_go_to_the_proxy_and_answers_come_from_the_resolver() {
    let (mut bench, proxies) = bench();
    let [proxy_v4, proxy_v6] = proxies.as_slice() else {
        panic!("one socket per family")
    };
    for (any, resolver, proxy) in [
        (
            IpAddr::from(Ipv4Addr::UNSPECIFIED),
            at(RESOLVER_V4, 53),
            proxy_v4,
        ),
        (
            IpAddr::from(Ipv6Addr::UNSPECIFIED),
            at(RESOLVER_V6, 53),
            proxy_v6,
        ),
    ] {
        let client = client(&bench, any);
        client.connect(resolver).unwrap();
        assert_eq!(client.peer_addr().unwrap(), resolver);
        client.send(b"query").unwrap();
        answer(&mut bench, proxy, resolver);
        assert_answered_by(&client, resolver);
    }
}

#[test]
fn resolver_of_an_unbound_connected_socket_is_known() {
    let (mut bench, proxies) = bench();
    let resolver = at(RESOLVER_V4, 53);
    let client = bench.a.run(|| {
        use nix::sys::socket::{
            AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket,
        };
        use std::os::fd::AsRawFd;
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None).unwrap();
        connect(socket.as_raw_fd(), &SockaddrStorage::from(resolver)).unwrap();
        blocking(socket)
    });
    client.send(b"query").unwrap();
    answer(&mut bench, &proxies[0], resolver);
    assert_answered_by(&client, resolver);
}

#[test]
fn pod_that_opted_out_asks_its_resolver_itself() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let resolver = bench
        .node
        .run(|| UdpSocket::bind(at(bench.node.v4, 53)))
        .unwrap();
    resolver.set_read_timeout(Some(PATIENCE)).unwrap();
    let client = client(&bench, Ipv4Addr::UNSPECIFIED.into());
    client.send_to(b"query", at(bench.node.v4, 53)).unwrap();
    let (_, source) = resolver.recv_from(&mut [0; 64]).unwrap();
    assert_eq!(source.ip(), bench.a.v4);
}

#[test]
fn agents_own_queries_and_other_datagrams_are_left_alone() {
    let (bench, _proxies) = bench();
    let dns = bench
        .node
        .run(|| UdpSocket::bind(at(bench.node.v4, 53)))
        .unwrap();
    let other = bench
        .node
        .run(|| UdpSocket::bind(at(bench.node.v4, 5353)))
        .unwrap();
    for socket in [&dns, &other] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let capture = bench.capture_ref();
    let sockets = &capture.pods.values().next().unwrap().sockets;
    let own = UdpSocket::from(sockets.datagram(super::super::Family::V4).unwrap());
    own.send_to(b"query", at(bench.node.v4, 53)).unwrap();
    assert_eq!(dns.recv_from(&mut [0; 64]).unwrap().1.ip(), bench.a.v4);
    let client = client(&bench, Ipv4Addr::UNSPECIFIED.into());
    client.send_to(b"other", at(bench.node.v4, 5353)).unwrap();
    assert_eq!(other.recv_from(&mut [0; 64]).unwrap().1.ip(), bench.a.v4);
}
