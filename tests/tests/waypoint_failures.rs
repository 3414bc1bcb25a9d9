//! Backends that are absent, late, deaf or broken: what their clients get, and what is tried for them first.
//!
//! Names follow Istio's ambient integration tests, or the Gateway API's, where there is one.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use e2e::echo::{EchoMesh, Seen};
use e2e::lab::eventually;
use e2e::net::http::{Ask, Conversation};
use e2e::net::serve::Server;
use e2e::net::{self, h2c};

#[test]
fn a_service_without_ready_endpoints_is_unavailable() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    mesh.service("shop", "empty", "{}", "{app: nobody}")?;
    let to = mesh.at("empty", 80)?;
    let answer = mesh.soon_answers("client", to, &Ask::get("/"), 503)?;
    ensure!(answer.text() == "no healthy upstream", "{}", answer.text());
    // Endpoints that do not listen.
    mesh.service_with(
        "shop",
        "closed",
        "{}",
        "{app: echo}",
        "  - {name: http, port: 80, targetPort: 1}\n",
    )?;
    mesh.soon_answers("client", mesh.at("closed", 80)?, &Ask::get("/"), 503)
        .map(drop)
}

/// Each way to give a request 300 ms.
const TIMEOUTS: [&str; 3] = [
    "timeouts: {request: 300ms}",
    // Without a policy of retries there is one attempt, and its time is the request's.
    "timeouts: {request: 10s, backendRequest: 300ms}",
    // An attempt that takes too long is no code that is worth another.
    "timeouts: {request: 10s, backendRequest: 300ms}\n    retry: {attempts: 2, codes: [500]}",
];

#[test]
fn http_route_timeouts() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let to = mesh.at("echo", 80)?;
    for (row, timeouts) in TIMEOUTS.iter().enumerate() {
        mesh.apply(
            "routes.yaml",
            &format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: patience\n  namespace: \
                 shop\nspec:\n  parentRefs: [{{group: \"\", kind: Service, name: echo}}]\n  rules:\n  - {timeouts}\n    \
                 filters: [{{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: x-row, value: \
                 '{row}'}}]}}}}]\n    backendRefs: [{{name: echo-v1, port: 80}}]\n"
            ),
        )?;
        mesh.soon("the route is in force", || {
            let answer = mesh.ask("client", to, &Ask::get("/"))?;
            let row = row.to_string();
            ensure!(answer.header("x-row") == Some(row.as_str()), "{answer:?}");
            Ok(())
        })?;
        let begun = Instant::now();
        let answer = mesh.ask("client", to, &Ask::get("/").wishing("delay=10000"))?;
        let taken = begun.elapsed();
        ensure!(answer.status == 504, "{timeouts}: {answer:?}");
        ensure!(
            answer.text() == "upstream request timeout",
            "{timeouts}: {answer:?}"
        );
        let expected = Duration::from_millis(300)..Duration::from_secs(3);
        ensure!(expected.contains(&taken), "{timeouts}: {taken:?}");
    }
    Ok(())
}

#[test]
fn http_route_retry_connection_error() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    let to = mesh.at("echo", 80)?;
    mesh.soon_at_layer7("client", to, true)?;
    // One of two endpoints stops to listen, and nobody has told the mesh yet.
    mesh.end_workload("echo-v2");
    let statuses = mesh.statuses("client", to, &Ask::get("/"), 60)?;
    ensure!(statuses == BTreeMap::from([(200, 60)]), "{statuses:?}");
    Ok(())
}

#[test]
fn what_no_byte_of_has_come_to_an_application_is_tried_again_whatever_its_method() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    let to = mesh.at("echo", 80)?;
    mesh.soon_at_layer7("client", to, true)?;
    let post = Ask::new("POST", "/");
    // Both endpoints are known, and connections to their nodes are kept.
    let statuses = mesh.statuses("client", to, &post, 30)?;
    ensure!(statuses == BTreeMap::from([(200, 30)]), "{statuses:?}");
    mesh.end_workload("echo-v2");
    let statuses = mesh.statuses("client", to, &post, 60)?;
    ensure!(statuses == BTreeMap::from([(200, 60)]), "{statuses:?}");
    Ok(())
}

/// All that comes before a connection ends, in whichever way.
fn until_cut(mut stream: &TcpStream) -> Result<String> {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => return Err(error).context("the connection does not end"),
    }
    Ok(String::from_utf8_lossy(&all).into_owned())
}

/// A service of what a server in `echo-v1`'s pod answers, whatever is asked.
fn answering(
    mesh: &mut EchoMesh,
    wire: &'static [u8],
    protocol: &str,
) -> Result<(Server, SocketAddr)> {
    let answer = move |mut stream: &TcpStream| {
        net::read_exactly(stream, 4)?;
        Ok(stream.write_all(wire)?)
    };
    let server = Server::start(mesh.pod("echo-v1")?, Ipv6Addr::UNSPECIFIED, 8081, answer)?;
    let ports = format!("  - {{name: {protocol}, port: 8081, targetPort: 8081}}\n");
    mesh.service_with("shop", "odd", "{}", "{app: echo, version: v1}", &ports)?;
    let to = mesh.at("odd", 8081)?;
    Ok((server, to))
}

#[test]
fn a_backend_that_breaks_off_amid_the_body_is_not_taken_for_complete() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    let to = mesh.at("echo-v1", 80)?;
    mesh.soon_at_layer7("client", to, true)?;
    let half = Ask::get("/").wishing("bytes=100000, reset=body");
    let answer = mesh.ask("client", to, &half);
    ensure!(answer.is_err(), "half a body passes for a whole one");
    // In HTTP/2 it is the stream that breaks, and nothing else of its connection.
    let http2 = mesh.at("echo-v1", 7070)?;
    mesh.pod("client")?.run(|| {
        let mut connection = h2c::Connection::open(http2)?;
        let answer = connection.ask(&half);
        ensure!(answer.is_err(), "half a body passes for a whole one");
        let answer = connection.ask(&Ask::get("/"))?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })?;
    // Without a length it is the chunks that do not end.
    let chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let (_server, to) = answering(&mut mesh, chunks, "http")?;
    let ask = Ask::get("/").with("Connection", "close").wire();
    mesh.soon("chunks that do not end", || {
        mesh.pod("client")?.run(|| {
            let conversation = Conversation::open(to)?;
            conversation.write(&ask)?;
            let text = until_cut(conversation.stream())?;
            // In a tunnel the cut overtakes what was sent before it, as a reset of TCP may: then there is no answer.
            let is_cut = text.starts_with("HTTP/1.1 200 ") && !text.ends_with("0\r\n\r\n");
            ensure!(is_cut || text.starts_with("HTTP/1.1 503 "), "{text:?}");
            Ok(())
        })
    })?;
    mesh.soon_answers("client", mesh.at("echo-v1", 80)?, &Ask::get("/"), 200)
        .map(drop)
}

#[test]
fn an_answer_that_is_no_http_is_a_bad_gateway() -> Result<()> {
    for protocol in ["http", "http2"] {
        let mut mesh = EchoMesh::shop()?;
        let (_server, to) = answering(&mut mesh, b"what is HTTP?\r\n\r\n", protocol)?;
        let answer = mesh.soon_answers("client", to, &Ask::get("/"), 502)?;
        ensure!(answer.text().ends_with("protocol error"), "{answer:?}");
        // What the agents tell each other stays between them.
        ensure!(
            answer.header("x-culvert-unanswered").is_none(),
            "{answer:?}"
        );
        let flagged = ["reporter=\"waypoint\"", "response_flags=\"UPE\""];
        let counted = mesh
            .lab
            .agent("a")?
            .metric("istio_requests_total", &flagged)?;
        ensure!(counted >= 1.0, "{protocol}: {counted} are counted");
    }
    Ok(())
}

/// Whether somebody in a pod waits for an answer from `10.96.3.1:80`, and gets none.
fn is_unanswered(table: &str) -> bool {
    // Remote address and state of proc_pid_net(5), in the order of a little-endian machine; 02 is SYN_SENT.
    table
        .lines()
        .any(|line| line.contains(" 0103600A:0050 02 "))
}

#[test]
fn a_connection_that_was_too_early_reaches_its_service_once_it_is_declared() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let client = mesh.pod("client")?;
    // What nobody has is silent, as in most networks.
    let node = mesh.lab.node(&client.spec().node)?.netns();
    node.ip(&["route", "add", "blackhole", "10.96.0.0/16"])?;
    let to = SocketAddr::from(([10, 96, 3, 1], 80));
    std::thread::scope(|scope| {
        let early = scope.spawn(|| client.run(|| Ask::get("/").send(to)));
        eventually("a SYN goes unanswered", Duration::from_secs(5), || {
            let table = client.run(|| Ok(fs::read_to_string("/proc/thread-self/net/tcp")?))?;
            ensure!(is_unanswered(&table), "{table}");
            Ok(())
        })?;
        let declared = Instant::now();
        mesh.apply(
            "late.yaml",
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: late\n  namespace: shop\nspec:\n  selector: {app: echo}\n  \
             clusterIP: 10.96.3.1\n  ports: [{name: http, port: 80, targetPort: 8080}]\n",
        )?;
        let answer = early
            .join()
            .map_err(|_panic| anyhow!("the client panicked"))?;
        let seen = Seen::in_answer(&answer?)?;
        ensure!(seen.header("x-request-id").is_some(), "{seen:?}");
        let taken = declared.elapsed();
        ensure!(taken < Duration::from_secs(5), "{taken:?}");
        Ok(())
    })
}
