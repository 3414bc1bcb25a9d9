//! Whom the agent asks, and what it makes of answers.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::HeaderMap;
use hyper::{Method, Uri};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use userspace_l7::model::{Health, Snapshot};

use super::{Ask, Client, FetchError, Place, To, Trust, Version, is_forbidden};
use crate::admin::fixture::{add_service, add_workload, empty, endpoint, key, service, workload};

/// `keys.auth` with one ready endpoint of two, and `gone.auth` with none.
fn mesh() -> Snapshot {
    let mut mesh = empty();
    let ready = add_workload(&mut mesh, workload("auth", "keys-1", &["10.1.0.5"]));
    let away = add_workload(&mut mesh, workload("auth", "keys-2", &["10.1.0.6"]));
    let endpoints = [(&ready, Health::Healthy), (&away, Health::Unhealthy)];
    let endpoints = endpoints.map(|(workload, health)| endpoint(workload, health));
    let hosts = [
        ("keys", "10.96.0.1", &endpoints[..]),
        ("gone", "10.96.0.2", &endpoints[1..]),
    ];
    for (name, vip, endpoints) in hosts {
        let host = format!("{name}.auth.svc.cluster.local");
        add_service(
            &mut mesh,
            service("auth", name, &host, &[vip]),
            endpoints.to_vec(),
        );
    }
    mesh
}

fn client(mesh: Snapshot) -> Client {
    let mesh = Arc::new(mesh);
    let trust = Trust::open(None).unwrap();
    Client::new(Arc::new(move || Arc::clone(&mesh)), trust, "istio-system")
}

fn get(url: &Uri) -> Ask {
    Ask {
        version: Version::Http1,
        method: Method::GET,
        url: url.clone(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
        most_bytes: 8,
    }
}

#[test]
fn hosts_of_the_mesh_are_their_ready_endpoints_and_others_stay_themselves() {
    let client = client(mesh());
    let endpoint = vec![Place::Address("10.1.0.5:8080".parse().unwrap())];
    let check = |url: &str, expected: Result<&[Place], &str>| {
        let url = url.parse::<Uri>().unwrap();
        let found = client
            .places(To::Url(&url))
            .map_err(|error| error.to_string());
        assert_eq!(found.as_deref().map_err(String::as_str), expected, "{url}");
    };
    for url in [
        "http://keys.auth:80/jwks",
        "http://keys.auth.svc/jwks",
        "http://KEYS.auth.svc.cluster.local./jwks",
        "http://10.96.0.1/jwks",
    ] {
        check(url, Ok(&endpoint));
    }
    check("http://keys.auth:81/", Err("the service has no port 81"));
    check(
        "http://gone.auth/",
        Err("the service has no ready endpoint"),
    );
    check(
        "https://example.com/keys",
        Ok(&[Place::Name("example.com".to_owned(), 443)]),
    );
    check(
        "http://[fd00::9]:81/",
        Ok(&[Place::Address("[fd00::9]:81".parse().unwrap())]),
    );
    check(
        "ftp://example.com/keys",
        Err(
            "`ftp://example.com/keys` is no address of the web: write one like https://example.com/keys",
        ),
    );
    let service = key("auth", "keys.auth.svc.cluster.local");
    assert_eq!(client.places(To::Service(&service, 80)).unwrap(), endpoint);
    let nobody = key("auth", "nobody");
    assert_eq!(
        client
            .places(To::Service(&nobody, 80))
            .unwrap_err()
            .to_string(),
        "the mesh knows no service auth/nobody"
    );
}

#[test]
fn a_service_entry_of_any_namespace_takes_no_host_for_others() {
    let mut mesh = mesh();
    let evil = add_workload(&mut mesh, workload("evil", "evil-1", &["10.1.6.6"]));
    let own = add_workload(&mut mesh, workload("istio-system", "own-1", &["10.1.0.7"]));
    let hosts = [
        ("evil", "issuer.example", "203.0.113.5", &evil),
        ("evil", "*.example.org", "203.0.113.6", &evil),
        // Before the search domains are tried, and in front of a Kubernetes Service.
        ("evil", "keys.auth", "203.0.113.7", &evil),
        ("istio-system", "idp.example", "203.0.113.8", &own),
    ];
    for (namespace, host, vip, server) in hosts {
        let mut entry = service(namespace, host, host, &[vip]);
        entry.canonical = false;
        let endpoints = vec![endpoint(server, Health::Healthy)];
        add_service(&mut mesh, entry, endpoints);
    }
    let client = client(mesh);
    let name = |host: &str| Place::Name(host.to_owned(), 80);
    let at = |address: &str| Place::Address(address.parse().unwrap());
    for (host, expected) in [
        ("issuer.example", name("issuer.example")),
        ("keys.example.org", name("keys.example.org")),
        ("203.0.113.5", at("203.0.113.5:80")),
        ("keys.auth", at("10.1.0.5:8080")),
        ("idp.example", at("10.1.0.7:8080")),
        ("203.0.113.8", at("10.1.0.7:8080")),
    ] {
        let url = format!("http://{host}/jwks").parse::<Uri>().unwrap();
        let found = client.places(To::Url(&url)).unwrap();
        assert_eq!(found, [expected], "{host}");
    }
}

#[test]
fn what_only_the_node_may_ask_is_forbidden() {
    for (address, forbidden) in [
        ("127.0.0.1", true),
        ("::1", true),
        ("::ffff:127.0.0.1", true),
        ("169.254.169.254", true),
        ("fe80::1", true),
        ("0.0.0.0", true),
        ("224.0.0.1", true),
        ("10.1.0.5", false),
        ("203.0.113.9", false),
        ("fd00::9", false),
    ] {
        assert_eq!(
            is_forbidden(address.parse().unwrap()),
            forbidden,
            "{address}"
        );
    }
}

/// What a server's answer, byte for byte, comes to. The client and the server are this process.
async fn answered(raw: &'static str) -> Result<super::Answer, FetchError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let server = async move {
        let (mut stream, _) = listener.accept().await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        stream.write_all(raw.as_bytes()).await?;
        stream.shutdown().await?;
        io::Result::Ok(String::from_utf8(head).unwrap())
    };
    let ask = get(&"http://keys.auth:8000/jwks?a=b".parse().unwrap());
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (head, answer) = tokio::join!(server, super::exchange::exchange(stream, ask));
    let head = head.unwrap();
    assert!(head.starts_with("GET /jwks?a=b HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("host: keys.auth:8000\r\n"), "{head}");
    answer
}

#[tokio::test]
async fn answers_are_read_whole_or_not_at_all() {
    let answer = answered("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await;
    let answer = answer.unwrap();
    assert_eq!(
        (answer.status.as_u16(), &answer.body[..]),
        (200, &b"{}"[..])
    );
    let elsewhere =
        "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(answered(elsewhere).await.unwrap().status.as_u16(), 302);
    for (raw, expected) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123456789",
            "the answer is larger than 8 bytes",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n12345",
            "the answer broke off",
        ),
        ("SSH-2.0-OpenSSH\r\n\r\n", "no answer in HTTP"),
    ] {
        let error = answered(raw).await.unwrap_err();
        assert_eq!(error.to_string(), expected, "{raw}");
    }
}

/// Asks a server that proves itself by an authority of its own.
async fn asked_in_tls(trusted: bool) -> Result<super::Answer, FetchError> {
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let file = std::env::temp_dir().join(format!("culvert-fetch-{}-{trusted}", std::process::id()));
    std::fs::write(&file, authority.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = rcgen::Issuer::new(authority, key);
    let own = rcgen::KeyPair::generate().unwrap();
    let server = rcgen::CertificateParams::new(["keys.example".to_owned()]).unwrap();
    let chain = vec![server.signed_by(&own, &issuer).unwrap().der().clone()];
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(own.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key.into())
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = async move {
        let (stream, _) = listener.accept().await?;
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let mut stream = acceptor.accept(stream).await?;
        stream.read_u8().await?;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            .await?;
        stream.shutdown().await
    };
    let trust = Trust::open(trusted.then_some(&*file)).unwrap();
    std::fs::remove_file(&file).unwrap();
    let client = Client::new(Arc::new(|| Arc::new(empty())), trust, "istio-system");
    let url: Uri = "https://keys.example/set".parse().unwrap();
    let ask = get(&url);
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    // A client that does not trust the server leaves it with an error, too.
    let (_server, answer) = tokio::join!(server, client.converse(To::Url(&url), stream, ask));
    answer
}

#[tokio::test]
async fn a_server_has_to_prove_itself_by_a_trusted_authority() {
    let answer = asked_in_tls(true).await.unwrap();
    assert_eq!(&answer.body[..], b"{}");
    let error = asked_in_tls(false).await.unwrap_err();
    assert_eq!(error.to_string(), "keys.example cannot be trusted");
    assert!(
        crate::sentence::sentence(&error).contains("UnknownIssuer"),
        "{}",
        crate::sentence::sentence(&error)
    );
    let missing = Trust::open(Some(std::path::Path::new("/nowhere.pem")));
    let error = missing.err().unwrap().to_string();
    assert_eq!(error, "cannot read the authorities in /nowhere.pem");
}

#[tokio::test]
async fn a_url_of_the_node_itself_is_not_asked() {
    let client = client(mesh());
    let url: Uri = "http://127.0.0.1:1/".parse().unwrap();
    let ask = get(&url);
    let sent = client
        .send(To::Url(&url), ask, Duration::from_secs(1))
        .await;
    assert!(matches!(sent, Err(FetchError::Forbidden(_))), "{sent:?}");
}
