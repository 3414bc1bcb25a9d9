//! The proxy between a client and a resolver, over loopback.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::{Dns, DnsMetrics, PodDns, PodNetwork, Transport, upstream, wire};
use crate::admin::fixture;

const PATIENCE: Duration = Duration::from_secs(20);

/// Where a resolver takes queries.
#[derive(Clone, Copy)]
struct Resolver {
    udp: SocketAddr,
    tcp: SocketAddr,
}

/// Leads every query to one resolver.
struct Network {
    resolver: Option<Resolver>,
    sockets: AtomicUsize,
}

impl PodNetwork for Network {
    fn resolver(&self, transport: Transport, client: SocketAddr) -> Option<SocketAddr> {
        assert!(client.ip().is_loopback());
        self.resolver.map(|found| match transport {
            Transport::Udp => found.udp,
            Transport::Tcp => found.tcp,
        })
    }

    fn socket(&self, transport: Transport, resolver: SocketAddr) -> io::Result<OwnedFd> {
        self.sockets.fetch_add(1, Ordering::SeqCst);
        let family = if resolver.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let kind = match transport {
            Transport::Udp => SockType::Datagram,
            Transport::Tcp => SockType::Stream,
        };
        Ok(socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?)
    }
}

struct Proxy {
    udp: SocketAddr,
    tcp: SocketAddr,
    metrics: DnsMetrics,
    network: Arc<Network>,
}

/// Serves the Bookinfo mesh's `reviews-v1-abc` on free ports while `act` runs.
fn serve<F: Future<Output = ()>>(
    resolver: impl AsyncFnOnce() -> Option<Resolver>,
    workload: &str,
    act: impl FnOnce(Proxy) -> F,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let network = Arc::new(Network {
            resolver: resolver().await,
            sockets: AtomicUsize::new(0),
        });
        let metrics = DnsMetrics::new();
        let proxy = Proxy {
            udp: udp.local_addr().unwrap(),
            tcp: tcp.local_addr().unwrap(),
            metrics: metrics.clone(),
            network: Arc::<Network>::clone(&network),
        };
        let mut mesh = fixture::bookinfo();
        let mut outside =
            fixture::service("bookinfo", "out", "out.bookinfo.svc.cluster.local", &[]);
        outside.alias = Some("db.example.org".into());
        fixture::add_service(&mut mesh, outside, Vec::new());
        let mesh = Arc::new(mesh);
        let dns = Dns::new(Arc::new(move || Arc::clone(&mesh)), metrics);
        let uid = userspace_l7::model::WorkloadUid::new(workload);
        let pod = PodDns {
            workload: uid,
            udp: vec![udp.into()],
            tcp: vec![tcp.into()],
            network,
        };
        tokio::select! {
            ended = dns.serve(pod) => panic!("the proxy ended: {ended:?}"),
            done = tokio::time::timeout(PATIENCE, act(proxy)) => done.expect("in time"),
        }
    });
}

const POD: &str = "Kubernetes//Pod/bookinfo/reviews-v1-abc";

fn query(id: u16, name: &str) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message
}

/// A resolver that answers every address question with 192.0.2.1, after a forged reply.
async fn resolver() -> Option<Resolver> {
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let found = Resolver {
        udp: udp.local_addr().unwrap(),
        tcp: tcp.local_addr().unwrap(),
    };
    tokio::task::spawn_local(async move {
        let mut buffer = [0; 1500];
        loop {
            let (length, peer) = udp.recv_from(&mut buffer).await.unwrap();
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            for forgery in forgeries(&asked) {
                udp.send_to(&forgery, peer).await.unwrap();
            }
            udp.send_to(&authentic(&asked), peer).await.unwrap();
        }
    });
    tokio::task::spawn_local(async move {
        loop {
            let (mut stream, _peer) = tcp.accept().await.unwrap();
            let asked = upstream::read(&mut stream).await.unwrap().unwrap();
            let reply = authentic(&Message::from_vec(&asked).unwrap());
            upstream::write(&mut stream, &reply).await.unwrap();
        }
    });
    Some(found)
}

fn authentic(asked: &Message) -> Vec<u8> {
    reply_with(asked, "192.0.2.1").to_vec().unwrap()
}

fn reply_with(asked: &Message, address: &str) -> Message {
    let mut reply = wire::failure(asked, ResponseCode::NoError);
    let data = RData::A(A(address.parse().unwrap()));
    reply.add_answer(Record::from_rdata(asked.queries[0].name().clone(), 5, data));
    reply
}

/// What an attacker who cannot see the query may send: another number, another question, no reply.
fn forgeries(asked: &Message) -> [Vec<u8>; 3] {
    let mut other_id = reply_with(asked, "203.0.113.6");
    other_id.metadata.id = asked.metadata.id.wrapping_add(1);
    let mut other_name = query(asked.metadata.id, "other.example.");
    other_name = reply_with(&other_name, "203.0.113.6");
    let mut not_a_reply = reply_with(asked, "203.0.113.6");
    not_a_reply.metadata.message_type = MessageType::Query;
    [other_id, other_name, not_a_reply].map(|message| message.to_vec().unwrap())
}

async fn ask_bytes(proxy: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(proxy).await.unwrap();
    socket.send(bytes).await.unwrap();
    let mut buffer = vec![0; 4096];
    let length = socket.recv(&mut buffer).await.unwrap();
    buffer.truncate(length);
    buffer
}

async fn ask(proxy: SocketAddr, query: &Message) -> Message {
    Message::from_vec(&ask_bytes(proxy, &query.to_vec().unwrap()).await).unwrap()
}

fn values(reply: &Message) -> Vec<String> {
    reply
        .answers
        .iter()
        .map(|record| record.data.to_string())
        .collect()
}

#[test]
fn mesh_names_are_answered_without_a_resolver() {
    serve(
        async || None,
        POD,
        |proxy| async move {
            let reply = ask(proxy.udp, &query(77, "reviews.")).await;
            assert_eq!(
                (reply.metadata.id, values(&reply)),
                (77, vec!["172.30.48.169".to_owned()])
            );
            assert_eq!(proxy.network.sockets.load(Ordering::SeqCst), 0);
        },
    );
}

#[test]
fn other_names_go_to_the_resolver_that_was_meant_and_forgeries_are_ignored() {
    serve(resolver, POD, |proxy| async move {
        let reply = ask(proxy.udp, &query(5, "WWW.Example.org.")).await;
        assert_eq!(
            (reply.metadata.id, values(&reply)),
            (5, vec!["192.0.2.1".to_owned()])
        );
        assert_eq!(reply.queries[0].name().to_string(), "WWW.Example.org.");
        let mut registry = Registry::default();
        proxy.metrics.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let labels = "{request_query_type=\"A\",request_protocol=\"udp\",\
             source_canonical_service=\"reviews-v1-abc\",source_canonical_revision=\"latest\"";
        for line in [
            format!("istio_dns_requests_total{labels}}} 1"),
            format!("istio_dns_upstream_requests_total{labels}}} 1"),
            format!("istio_dns_upstream_request_duration_seconds_count{labels}}} 1"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert!(!text.contains("failures_total{"), "{text}");
    });
}

#[test]
fn an_external_name_is_followed_at_the_resolver() {
    serve(resolver, POD, |proxy| async move {
        let reply = ask(proxy.udp, &query(6, "out.")).await;
        assert_eq!(values(&reply), ["db.example.org.", "192.0.2.1"]);
        assert_eq!(reply.queries[0].name().to_string(), "out.");
        assert!(!reply.metadata.authoritative);
    });
}

#[test]
fn tcp_clients_may_ask_more_than_once() {
    serve(resolver, POD, |proxy| async move {
        let mut stream = TcpStream::connect(proxy.tcp).await.unwrap();
        for (name, expected) in [
            ("reviews.", "172.30.48.169"),
            ("www.example.org.", "192.0.2.1"),
        ] {
            upstream::write(&mut stream, &query(9, name).to_vec().unwrap())
                .await
                .unwrap();
            let reply = upstream::read(&mut stream).await.unwrap().unwrap();
            assert_eq!(values(&Message::from_vec(&reply).unwrap()), [expected]);
        }
    });
}

#[test]
fn a_resolver_that_refuses_or_is_not_known_is_a_server_failure() {
    let closed = async || {
        // Connected elsewhere, it keeps the port and takes nothing from the proxy.
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        socket.connect("127.0.0.1:1").await.unwrap();
        tokio::task::spawn_local(async move {
            let _held = socket;
            std::future::pending::<()>().await;
        });
        Some(Resolver {
            udp: address,
            tcp: address,
        })
    };
    serve(closed, POD, |proxy| async move {
        let reply = ask(proxy.udp, &query(1, "www.example.org.")).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    });
    serve(
        async || None,
        POD,
        |proxy| async move {
            let reply = ask(proxy.udp, &query(2, "www.example.org.")).await;
            assert_eq!(
                (reply.metadata.id, reply.metadata.response_code),
                (2, ResponseCode::ServFail)
            );
        },
    );
}

#[test]
fn a_pod_that_the_mesh_does_not_know_is_not_served() {
    serve(
        resolver,
        "Kubernetes//Pod/bookinfo/stranger",
        |proxy| async move {
            let reply = ask(proxy.udp, &query(3, "reviews.")).await;
            assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
        },
    );
}

#[test]
fn garbage_is_refused_or_dropped_and_service_goes_on() {
    serve(resolver, POD, |proxy| async move {
        let mut cut = query(8, "www.example.org.").to_vec().unwrap();
        cut.truncate(14);
        let reply = Message::from_vec(&ask_bytes(proxy.udp, &cut).await).unwrap();
        assert_eq!(
            (reply.metadata.id, reply.metadata.response_code),
            (8, ResponseCode::FormErr)
        );
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(b"short", proxy.udp).await.unwrap();
        let reply = ask(proxy.udp, &query(9, "reviews.")).await;
        assert_eq!(reply.answers.len(), 1);
    });
}

#[test]
fn a_silent_resolver_is_a_server_failure_when_its_time_is_up() {
    let silent = async || {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            let mut buffer = [0; 1500];
            loop {
                socket.recv_from(&mut buffer).await.unwrap();
            }
        });
        Some(Resolver {
            udp: address,
            tcp: address,
        })
    };
    serve(silent, POD, |proxy| async move {
        let start = std::time::Instant::now();
        let waiting = query(1, "www.example.org.");
        let meanwhile = query(2, "reviews.");
        let (late, soon) = tokio::join!(ask(proxy.udp, &waiting), async {
            let reply = ask(proxy.udp, &meanwhile).await;
            (reply, start.elapsed())
        });
        assert_eq!(late.metadata.response_code, ResponseCode::ServFail);
        let (reply, after) = soon;
        assert!(
            reply.answers.len() == 1 && after < Duration::from_secs(4),
            "{after:?}"
        );
    });
}
