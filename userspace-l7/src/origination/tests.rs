//! TLS with real servers over real sockets, and what is believed of them.

use std::future::poll_fn;
use std::io::{IoSlice, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use socket2::{Domain, Socket, Type};
use tokio::time::Instant;

use super::{Ends, Opened, OriginationError, Raw, Secured, Settings, begin, check};
use crate::model::{
    AppProtocol, Authorities, Credential, Encryption, Opening, PrivateKey, ProxyProtocol,
    UpstreamTls,
};
use crate::ring::{Backend, Tcp, run};

const SPIFFE: &str = "spiffe://td/ns/a/sa/b";

/// An authority, and what it has signed.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        // Each of its own name: one that merely shares a name is told apart by its signature, in other words.
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("authority {}", MADE.fetch_add(1, Ordering::Relaxed));
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    fn authorities(&self) -> Authorities {
        Authorities::Certificates([self.0.der().to_vec()].into())
    }

    /// A certificate for these names and its key, DER.
    fn leaf(&self, names: &[&str]) -> (Vec<u8>, Vec<u8>) {
        let (uris, others): (Vec<&str>, Vec<&str>) =
            names.iter().partition(|name| name.contains("://"));
        let others: Vec<String> = others.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(others).unwrap();
        for uri in uris {
            let name = SanType::URI(uri.try_into().unwrap());
            params.subject_alt_names.push(name);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.der().to_vec(), key.serialize_der())
    }

    fn credential(&self) -> Credential {
        let (certificate, key) = self.leaf(&["client.example"]);
        Credential {
            chain: [certificate].into(),
            key: PrivateKey::Pkcs8(key.into()),
        }
    }

    /// A server for these names, which asks for certificates of `clients` if there is somebody to sign them.
    fn server(&self, names: &[&str], clients: Option<&Self>, alpn: &[&str]) -> Arc<ServerConfig> {
        let (certificate, key) = self.leaf(names);
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(clients.0.der().clone()).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
                builder.with_client_cert_verifier(verifier.unwrap())
            }
        };
        let chain = vec![CertificateDer::from(certificate)];
        let key = PrivatePkcs8KeyDer::from(key).into();
        let mut config = builder.with_single_cert(chain, key).unwrap();
        config.alpn_protocols = alpn.iter().map(|one| one.as_bytes().to_vec()).collect();
        config.into()
    }
}

/// What a server has seen of a connection.
#[derive(Debug, Default, PartialEq, Eq)]
struct Served {
    before: Vec<u8>,
    name: Option<String>,
    alpn: Option<Vec<u8>>,
    received: Vec<u8>,
}

/// Serves one connection: takes `before` bytes in the clear, then in TLS sends back what comes until its end, and ends,
/// in order or not.
fn serve(
    config: Arc<ServerConfig>,
    before: usize,
    in_order: bool,
) -> (SocketAddr, JoinHandle<Served>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let served = thread::spawn(move || {
        let (mut tcp, _) = listener.accept().unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut served = Served {
            before: vec![0; before],
            ..Served::default()
        };
        tcp.read_exact(&mut served.before).unwrap();
        let mut tls = StreamOwned::new(ServerConnection::new(config).unwrap(), tcp);
        // A client that is refused, or refuses, is seen by its own end.
        drop(tls.read_to_end(&mut served.received));
        served.name = tls.conn.server_name().map(ToOwned::to_owned);
        served.alpn = tls.conn.alpn_protocol().map(ToOwned::to_owned);
        if tls.write_all(&served.received).is_ok() && in_order {
            tls.conn.send_close_notify();
        }
        drop(tls.flush());
        served
    });
    (address, served)
}

async fn open(
    to: SocketAddr,
    opening: &Opening,
    speaks: AppProtocol,
) -> Result<Opened, OriginationError> {
    let socket: OwnedFd = Socket::new(Domain::IPV4, Type::STREAM, None)
        .unwrap()
        .into();
    let patience = Duration::from_secs(20);
    let tcp = Tcp::connect(socket, to, patience).await.unwrap();
    let client = Some("10.0.0.1:4000".parse().unwrap());
    let ends = Ends::of(client, "10.0.0.2:443".parse().unwrap());
    let deadline = Instant::now() + patience;
    let what = (opening, speaks);
    begin(&Settings::default(), Raw::tcp(tcp), what, ends, deadline).await
}

/// Sends all of it and the end, and reads to the end.
async fn converse(secured: &Secured, mut bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut back = Vec::new();
    while !bytes.is_empty() {
        let sent = poll_fn(|cx| secured.poll_send(cx, &[IoSlice::new(bytes)])).await?;
        bytes = &bytes[sent..];
    }
    secured.finish();
    loop {
        let received = poll_fn(|cx| secured.poll_recv(cx)).await?;
        if received.is_empty() {
            return Ok(back);
        }
        back.extend(received);
    }
}

fn tls(authorities: Authorities, names: &[&str]) -> UpstreamTls {
    UpstreamTls {
        server_name: "api.example".into(),
        names: names.iter().map(|name| (*name).into()).collect(),
        authorities,
        credential: None,
    }
}

fn opening(tls: UpstreamTls) -> Opening {
    Opening {
        encryption: Encryption::Tls(tls.into()),
        ..Opening::default()
    }
}

/// What comes of a handshake: nothing, or what is said of it.
#[track_caller]
fn shake(tls: UpstreamTls, config: Arc<ServerConfig>) -> String {
    let (to, served) = serve(config, 0, true);
    let mut said = String::new();
    run(Backend::Epoll, async {
        match open(to, &opening(tls), AppProtocol::Http1).await {
            Ok(Opened::Secured(secured)) => {
                // A server tells only afterwards whether it accepts the client.
                if let Err(error) = converse(&secured, b"x").await {
                    said = error.to_string();
                }
            }
            Ok(_) => said = "in the clear".to_owned(),
            Err(error) => said = error.to_string(),
        }
    })
    .unwrap();
    served.join().unwrap();
    said
}

#[test]
fn a_server_is_believed_by_its_authority_and_its_names() {
    let (own, other) = (Authority::new(), Authority::new());
    let unknown = "TLS_error: invalid peer certificate: UnknownIssuer";
    let none_of =
        |names: &str| format!("TLS_error: the server's certificate is for none of {names}");
    let wrong = "TLS_error: invalid peer certificate: certificate not valid for name";
    for (proven, wanted, expected) in [
        (&["api.example"][..], &[][..], String::new()),
        (&["*.b.example"], &["a.b.example"], String::new()),
        (&["other.example"], &[], wrong.to_owned()),
        // Names of the policy stand in the place of the server's own.
        (&["other.example"], &["other.example"], String::new()),
        (
            &["api.example"],
            &["other.example"],
            none_of("other.example"),
        ),
        (&["b.example"], &["a.example", "b.example"], String::new()),
        (&[SPIFFE], &[SPIFFE], String::new()),
        (
            &[SPIFFE],
            &["spiffe://td/ns/a/sa/c"],
            none_of("spiffe://td/ns/a/sa/c"),
        ),
        (&["10.0.0.1"], &["10.0.0.1"], String::new()),
    ] {
        let said = shake(
            tls(own.authorities(), wanted),
            own.server(proven, None, &[]),
        );
        assert!(
            said == expected || (!expected.is_empty() && said.starts_with(&expected)),
            "{proven:?} {wanted:?}: {said}"
        );
    }
    let server = || own.server(&["api.example"], None, &[]);
    assert_eq!(shake(tls(other.authorities(), &[]), server()), unknown);
    // Whom the system does not know is not believed, either.
    assert_eq!(shake(tls(Authorities::System, &[]), server()), unknown);
    let anyone = own.server(&["other.example"], None, &[]);
    assert_eq!(shake(tls(Authorities::Unverified, &[]), anyone), "");
}

#[test]
fn a_server_may_ask_who_we_are() {
    let (own, clients, others) = (Authority::new(), Authority::new(), Authority::new());
    let server = || own.server(&["api.example"], Some(&clients), &[]);
    let with = |credential| UpstreamTls {
        credential,
        ..tls(own.authorities(), &[])
    };
    assert_eq!(shake(with(Some(clients.credential())), server()), "");
    let alert = |said: String| said.contains("fatal alert");
    assert!(alert(shake(with(None), server())));
    assert!(alert(shake(with(Some(others.credential())), server())));
}

#[test]
fn bytes_pass_both_ways_and_end_in_order() {
    let own = Authority::new();
    let large: Vec<u8> = (0..=u8::MAX).cycle().take(700_000).collect();
    for backend in [Backend::Uring, Backend::Epoll] {
        for (speaks, alpn) in [
            (AppProtocol::Http1, Some(b"http/1.1".to_vec())),
            (AppProtocol::Http2, Some(b"h2".to_vec())),
            (AppProtocol::Tcp, None),
        ] {
            let config = own.server(&["api.example"], None, &["h2", "http/1.1"]);
            let (to, served) = serve(config, 0, true);
            run(backend, async {
                let opened = open(to, &opening(tls(own.authorities(), &[])), speaks).await;
                let Ok(Opened::Secured(secured)) = opened else {
                    panic!("no TLS");
                };
                let back = converse(&secured, &large).await.unwrap();
                assert!(back == large, "{} bytes came back", back.len());
            })
            .unwrap();
            let served = served.join().unwrap();
            assert!(served.received == large);
            assert_eq!(served.name.as_deref(), Some("api.example"));
            assert_eq!(served.alpn, alpn);
        }
    }
}

#[test]
fn an_end_that_nobody_announced_is_no_end() {
    let own = Authority::new();
    let (to, served) = serve(own.server(&["api.example"], None, &[]), 0, false);
    run(Backend::Epoll, async {
        let opened = open(to, &opening(tls(own.authorities(), &[])), AppProtocol::Tcp).await;
        let Ok(Opened::Secured(secured)) = opened else {
            panic!("no TLS");
        };
        let cut = converse(&secured, b"half of it").await.unwrap_err();
        assert_eq!(cut.kind(), std::io::ErrorKind::UnexpectedEof);
    })
    .unwrap();
    served.join().unwrap();
}

#[test]
fn the_header_goes_before_the_handshake() {
    let own = Authority::new();
    let line = b"PROXY TCP4 10.0.0.1 10.0.0.2 4000 443\r\n";
    let (to, served) = serve(own.server(&["api.example"], None, &[]), line.len(), true);
    run(Backend::Epoll, async {
        let opening = Opening {
            proxy_protocol: Some(ProxyProtocol::V1),
            ..opening(tls(own.authorities(), &[]))
        };
        let Ok(Opened::Secured(secured)) = open(to, &opening, AppProtocol::Http1).await else {
            panic!("no TLS");
        };
        assert_eq!(converse(&secured, b"hello").await.unwrap(), b"hello");
    })
    .unwrap();
    let served = served.join().unwrap();
    assert_eq!(
        (&served.before[..], &served.received[..]),
        (&line[..], &b"hello"[..])
    );
}

#[test]
fn what_cannot_be_used_is_said_before_anything_is_sent() {
    let own = Authority::new();
    let said = |tls: &UpstreamTls| check(tls).map_err(|error| error.to_string());
    assert_eq!(said(&tls(own.authorities(), &[])), Ok(()));
    assert_eq!(said(&tls(Authorities::System, &[])), Ok(()));
    let nobody = Authorities::Certificates([].into());
    let expected = "there is no authority that could vouch for the server";
    assert_eq!(said(&tls(nobody, &[])), Err(expected.to_owned()));
    let broken = Authorities::Certificates([b"no certificate".to_vec()].into());
    assert!(said(&tls(broken, &[])).unwrap_err().contains("authority"));
    let nameless = UpstreamTls {
        server_name: "*.example".into(),
        ..tls(own.authorities(), &[])
    };
    assert!(said(&nameless).unwrap_err().contains("`*.example`"));
    let Credential { chain, .. } = own.credential();
    let Credential { key, .. } = own.credential();
    let mixed = UpstreamTls {
        credential: Some(Credential { chain, key }),
        ..tls(own.authorities(), &[])
    };
    assert!(said(&mixed).unwrap_err().contains("certificate and key"));
}
