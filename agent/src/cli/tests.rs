//! Commands as people type them, against a saved dump and against a server.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::thread::JoinHandle;

use clap::Parser;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, socket};

use super::{CliError, Command, status};
use crate::admin::{
    AgentStatus, ClusterStatus, ClusterTrouble, IstioCniStatus, IstiodStatus, KeySetStatus,
    ManifestProblem, PodState, PodStatus, sample_dump,
};
use crate::mesh::status::ObjectStatus;

#[derive(Debug, Parser)]
#[command(name = "culvert")]
struct Program {
    #[command(subcommand)]
    command: Command,
}

fn parse(line: &str) -> Result<Command, clap::Error> {
    Program::try_parse_from(line.split_whitespace()).map(|program| program.command)
}

/// A file that goes with its value.
struct Saved(PathBuf);

impl Saved {
    fn new(name: &str, content: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("culvert-cli-{}-{name}", std::process::id()));
        std::fs::write(&path, content).unwrap();
        Self(path)
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

#[track_caller]
fn get(name: &str, arguments: &str) -> String {
    let saved = Saved::new(name, &sample_dump());
    let command = parse(&format!("culvert get {arguments} -f {}", saved.0.display())).unwrap();
    let mut out = Vec::new();
    command.run(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn services_have_the_columns_that_people_know() {
    assert_eq!(
        get("services", "services"),
        "NAMESPACE SERVICE NAME SERVICE VIP   WAYPOINT ENDPOINTS\n\
         bookinfo  reviews      172.30.48.169 waypoint 1/2\n\
         bookinfo  waypoint     172.30.27.85  None     0/0\n\
         default   lost         None          gone     0/0\n"
    );
    assert_eq!(
        get("services-name", "svc -n bookinfo waypoint"),
        "NAMESPACE SERVICE NAME SERVICE VIP  WAYPOINT ENDPOINTS\n\
         bookinfo  waypoint     172.30.27.85 None     0/0\n"
    );
    let wide = get("services-wide", "s -o wide -n bookinfo reviews");
    assert!(wide.starts_with("NAMESPACE SERVICE NAME SERVICE VIP   WAYPOINT ENDPOINTS HOSTNAME"));
    assert!(
        wide.ends_with("80:8080 172.30.48.169,fd00:1::9\n"),
        "{wide}"
    );
}

#[test]
fn workloads_are_found_by_namespace_name_node_and_address() {
    assert_eq!(
        get("workloads", "workloads -A"),
        "NAMESPACE POD NAME       ADDRESS          NODE   WAYPOINT PROTOCOL\n\
         bookinfo  reviews-v1-abc 10.1.0.5,fd00::5 node-a None     HBONE\n\
         bookinfo  reviews-v2-def 10.1.0.6         node-b None     HBONE\n\
         default   vm             10.9.0.1         -      gone     TCP\n"
    );
    let count = |name: &str, arguments: &str| get(name, arguments).lines().count() - 1;
    assert_eq!(count("w1", "workload --node node-b"), 1);
    assert_eq!(count("w2", "w --address fd00:0::5"), 1);
    assert_eq!(count("w3", "w -n default"), 1);
    assert_eq!(count("w4", "w vm reviews-v1-abc"), 2);
    assert_eq!(count("w5", "w -n default reviews-v1-abc"), 0);
}

#[test]
fn policies_and_certificates_are_listed() {
    assert_eq!(
        get("policies", "policies"),
        "NAMESPACE POLICY NAME ACTION SCOPE\nbookinfo  callers     Deny   WorkloadSelector\n"
    );
    let text = get("certificates", "certificates");
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split("     ").collect())
        .collect();
    assert_eq!(rows.len(), 5, "{text}");
    let cells = |row: usize| -> Vec<&str> {
        rows[row]
            .iter()
            .map(|cell| cell.trim())
            .filter(|cell| !cell.is_empty())
            .collect()
    };
    assert_eq!(
        cells(0),
        [
            "CERTIFICATE NAME",
            "TYPE",
            "STATUS",
            "VALID CERT",
            "SERIAL NUMBER",
            "NOT AFTER",
            "NOT BEFORE"
        ]
    );
    let identity = "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-reviews";
    assert_eq!(cells(1)[..3], [identity, "Leaf", "Available"]);
    assert_eq!(
        cells(1)[4..],
        ["ff", "2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z"]
    );
    assert_eq!(cells(2)[1..3], ["Intermediate", "Available"]);
    assert_eq!(cells(3)[1..3], ["Root", "Available"]);
    let other = "spiffe://cluster.local/ns/default/sa/default";
    assert_eq!(
        cells(4),
        [other, "NA", "Unavailable", "false", "-", "-", "-"]
    );
    assert_eq!(get("certs-ns", "certs -n default").lines().count(), 2);
}

#[test]
fn connections_name_what_is_behind_addresses() {
    let text = get("connections", "connections");
    let cells =
        |row: usize| -> Vec<&str> { text.lines().nth(row).unwrap().split_whitespace().collect() };
    assert!(
        text.starts_with("WORKLOAD                DIRECTION LOCAL "),
        "{text}"
    );
    let heading = text.lines().next().unwrap();
    assert!(
        heading.contains(" REMOTE TARGET ") && heading.ends_with(" PROTOCOL"),
        "{text}"
    );
    let (pod, client) = ("reviews-v1-abc.bookinfo", "reviews-v1-abc.bookinfo:40000");
    let service = "reviews.bookinfo.svc.cluster.local";
    assert_eq!(
        cells(1),
        [pod, "Inbound", "10.1.0.9:15008", client, service, "TCP"]
    );
    assert_eq!(
        cells(2),
        [
            pod,
            "Outbound",
            client,
            "10.1.0.9:15008",
            "172.30.1.1:9080",
            "HBONE"
        ]
    );
    let raw = get("connections-raw", "cons --raw --direction outbound");
    assert_eq!(raw.lines().count(), 2);
    assert!(
        raw.contains("Outbound  10.1.0.5:40000 10.1.0.9:15008"),
        "{raw}"
    );
}

#[test]
fn all_is_every_table_in_istioctls_order() {
    let text = get("all", "all --with-headers");
    let headers: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("------"))
        .collect();
    assert_eq!(
        headers,
        [
            "------ WORKLOAD INFO ------",
            "------ SERVICE INFO ------",
            "------ POLICY INFO ------",
            "------ SECRET INFO ------",
            "------ CONNECTIONS INFO ------"
        ]
    );
    assert_eq!(get("all-plain", "all").split("\n\n").count(), 5);
}

#[test]
fn json_and_yaml_carry_the_dumps_own_keys() {
    let json: serde_json::Value =
        serde_json::from_str(&get("json", "services -o json -n bookinfo")).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 2);
    assert_eq!(json[0]["loadBalancer"]["mode"], "Failover");
    let yaml = get("yaml", "policies -o yaml");
    assert!(
        yaml.contains("  name: callers\n") && yaml.contains("- Exact: default\n"),
        "{yaml}"
    );
}

#[test]
fn usage_errors_are_told_from_failures() {
    for line in [
        "culvert get",
        "culvert get pods",
        "culvert get services -o xml",
        "culvert get services -n a -A",
        "culvert get services --node x",
        "culvert get workloads --address x",
        "culvert status extra",
        "culvert log a b",
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[test]
fn a_dump_of_something_else_is_refused_in_one_sentence() {
    let saved = Saved::new("broken", b"<html>");
    let run = |path: &str| {
        let command = parse(&format!("culvert get services -f {path}")).unwrap();
        command
            .run(&mut Vec::new())
            .expect_err("no dump")
            .sentence()
    };
    let said = run(saved.0.to_str().unwrap());
    assert!(
        said.contains("is no config dump") && said.contains("line 1 column 1"),
        "{said}"
    );
    let said = run("/nonexistent/dump.json");
    assert!(
        said.starts_with("cannot read the dump /nonexistent/dump.json (No such file"),
        "{said}"
    );
}

/// A port that refuses connections, and that nobody else gets meanwhile: bound, but not listening.
fn refusing() -> (OwnedFd, SockaddrIn) {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    let address = getsockname(socket.as_raw_fd()).unwrap();
    (socket, address)
}

#[test]
fn an_agent_that_does_not_run_is_said_so() {
    let (_held, address) = refusing();
    for line in ["get services", "status", "log debug", "stop"] {
        let command = parse(&format!("culvert {line} --admin {address}")).unwrap();
        let error = command.run(&mut Vec::new()).expect_err(line);
        assert!(matches!(error, CliError::Unreachable { .. }), "{error:?}");
        let said = error.sentence();
        assert!(said.starts_with(&format!(
            "cannot reach the agent's admin server at {address}: is"
        )));
        assert!(said.contains("Connection refused"), "{said}");
    }
}

/// Answers one request with `reply`, then is gone; gives back the request line.
fn answer_once(reply: String) -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        let (stream, _peer) = listener.accept().unwrap();
        drop(listener);
        let mut reader = BufReader::new(stream);
        let mut first = String::new();
        reader.read_line(&mut first).unwrap();
        let mut line = String::new();
        while reader.read_line(&mut line).unwrap() > 2 {
            line.clear();
        }
        reader.get_mut().write_all(reply.as_bytes()).unwrap();
        first.trim_end().to_owned()
    });
    (address, server)
}

/// What a command prints, and what it asks, when an agent answers so.
fn run_against(status: u16, body: &str, line: &str) -> (Result<String, CliError>, String) {
    let length = body.len();
    run_against_text(
        format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n{body}"),
        line,
    )
}

fn run_against_text(reply: String, line: &str) -> (Result<String, CliError>, String) {
    let (address, server) = answer_once(reply);
    let command = parse(&format!("culvert {line} --admin {address}")).unwrap();
    let mut out = Vec::new();
    let done = command
        .run(&mut out)
        .map(|_code| String::from_utf8(out).unwrap());
    (done, server.join().unwrap())
}

#[test]
fn the_log_level_is_sent_encoded() {
    let (said, asked) = run_against(
        200,
        "level x\n",
        "log access=debug,info --reset --run-dir /not-there",
    );
    assert_eq!(said.unwrap(), "level x\n");
    assert_eq!(
        asked,
        "POST /logging?level=access%3Ddebug%2Cinfo&reset=true HTTP/1.1"
    );
    let (said, asked) = run_against(400, "no!\n", "log loud --run-dir /not-there");
    let said = said.expect_err("refused").sentence();
    assert!(
        said.ends_with("refused /logging?level=loud (400): no!"),
        "{said}"
    );
    assert_eq!(asked, "POST /logging?level=loud HTTP/1.1");
}

#[test]
fn stopping_waits_and_reports_what_was_released() {
    let released = "{\"pods\":[\"p1\"],\"failures\":[]}";
    let (said, asked) = run_against(200, released, "stop --unenrol --run-dir /not-there");
    assert_eq!(said.unwrap(), "released p1\nthe agent has stopped\n");
    assert_eq!(asked, "POST /unenrol HTTP/1.1");
    let stuck = "{\"pods\":[],\"failures\":[\"route: busy\"]}";
    let (said, _asked) = run_against(500, stuck, "stop --unenrol --run-dir /not-there");
    let said = said.expect_err("incomplete").sentence();
    assert_eq!(said, "the agent could not remove everything: route: busy");
}

#[test]
fn an_answer_that_breaks_off_is_an_error() {
    let (said, _asked) = run_against_text(
        "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{".to_owned(),
        "get services",
    );
    assert!(matches!(said, Err(CliError::Broken { .. })), "{said:?}");
}

fn istio_cni_away() -> IstioCniStatus {
    IstioCniStatus {
        socket: "/run/z.sock".to_owned(),
        reason: Some("/run/z.sock: the connection has ended".to_owned()),
    }
}

fn istiod_away() -> IstiodStatus {
    IstiodStatus {
        address: "https://istiod:15012".to_owned(),
        connected: false,
        since: Some("2026-01-01T00:00:00Z".to_owned()),
        message: Some("cannot be reached: connection refused".to_owned()),
        resources: [("istio.workload.Address".to_owned(), 3)].into(),
        waiting: vec!["istio.security.Authorization".to_owned()],
        refused: vec!["app/p has action 7, which is unknown".to_owned()],
        failures: 1,
        refusals: 1,
    }
}

/// An agent with something of everything that can be wrong.
fn ailing() -> AgentStatus {
    let pod = |name: &str, state, reason: Option<&str>| PodStatus {
        uid: name.to_owned(),
        name: name.to_owned(),
        namespace: "bookinfo".to_owned(),
        service_account: "default".to_owned(),
        state,
        reason: reason.map(str::to_owned),
        encrypted_within_node: false,
    };
    AgentStatus {
        node: "node-a".to_owned(),
        generation: 3,
        ring_backend: "io_uring".to_owned(),
        workers: 2,
        capabilities: vec!["CAP_BPF".to_owned()],
        pending: vec!["capture".to_owned()],
        pods: vec![
            pod("b", PodState::Pending, Some("no namespace")),
            pod("a", PodState::Up, None),
        ],
        pods_hindered: 0,
        problems: vec![ManifestProblem {
            path: "x.yaml".to_owned(),
            line: Some(4),
            object: Some("Service app/x".to_owned()),
            field: Some("spec.ports[0]".to_owned()),
            message: "is no port".to_owned(),
        }],
        warnings: vec![ManifestProblem {
            path: "y.yaml".to_owned(),
            line: None,
            object: None,
            field: None,
            message: "names nobody".to_owned(),
        }],
        key_sets: vec![
            KeySetStatus {
                source: "http://a/keys".to_owned(),
                keys: Some(2),
                fetched: Some("2026-01-01T00:00:00Z".to_owned()),
                error: Some("it is away".to_owned()),
                next: None,
            },
            KeySetStatus {
                source: "http://b/keys".to_owned(),
                error: Some("it answers 404".to_owned()),
                ..KeySetStatus::default()
            },
        ],
        cluster: Some(ClusterStatus {
            server: "https://10.96.0.1".to_owned(),
            reachable: false,
            objects: [("pods".to_owned(), 3), ("nodes".to_owned(), 2)].into(),
            waiting: vec!["pods".to_owned()],
            not_installed: vec!["tcproutes.gateway.networking.k8s.io".to_owned()],
            troubles: vec![ClusterTrouble {
                since: "2026-01-01T00:00:00Z".to_owned(),
                message: "cannot be reached: connection refused".to_owned(),
                resources: vec!["nodes".to_owned(), "pods".to_owned()],
            }],
            refusals: 4,
        }),
        istiod: Some(istiod_away()),
        cni_plugin: None,
        istio_cni: Some(istio_cni_away()),
        repairs: [("route".to_owned(), 2), ("rule".to_owned(), 1)].into(),
        pods_started: 2,
        pods_stopped: 0,
    }
}

/// A route to nobody.
fn unresolved() -> ObjectStatus {
    let object = serde_json::json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": { "name": "r", "namespace": "app" },
        "status": { "parents": [{
            "parentRef": { "group": "", "kind": "Service", "name": "x", "port": 80 },
            "controllerName": "istio.io/gateway-controller",
            "conditions": [
                { "type": "Accepted", "status": "True", "reason": "Accepted", "message": "fine" },
                { "type": "ResolvedRefs", "status": "False", "reason": "BackendNotFound", "message": "nobody" },
            ],
        }] },
    });
    serde_json::from_value(object).unwrap()
}

#[test]
fn status_tells_what_is_wrong() {
    assert_eq!(
        status::text(&ailing(), &[unresolved()], true),
        "node      node-a\n\
         state     not ready, pending: capture\n\
         pods      1 of 2 captured\n\
         snapshot  generation 3\n\
         workers   2 on io_uring\n\
         repairs   3\n          route: 2\n          rule: 1\n\
         holds     CAP_BPF\n\
         cluster   https://10.96.0.1 cannot be reached, 5 objects\n\
         \x20         since 2026-01-01T00:00:00Z the API server cannot be reached: connection refused\n\
         \x20         the last state stays in force: nodes\n\
         \x20         nothing is in force before: pods\n\
         \x20         not installed, waited for: tcproutes.gateway.networking.k8s.io\n\
         \x20         nodes: 2\n          pods: 3\n\
         istiod    https://istiod:15012 is not connected, 3 resources\n\
         \x20         since 2026-01-01T00:00:00Z istiod cannot be reached: connection refused\n\
         \x20         nothing is in force before: istio.security.Authorization\n\
         \x20         not taken over: app/p has action 7, which is unknown\n\
         \x20         istio.workload.Address: 3\n\
         istio-cni /run/z.sock: the connection has ended\n\
         \x20         pods that it has named stay captured\n\
         keys      1 of 2 sets fetched\n\
         \x20         http://a/keys: it is away: those of 2026-01-01T00:00:00Z stay in force\n\
         \x20         http://b/keys: it answers 404: tokens of its issuer are refused\n\
         problems  1\n          x.yaml:4: Service app/x: spec.ports[0]: is no port\n\
         warnings  1\n          y.yaml: names nobody\n\
         conditions  1\n          HTTPRoute app/r at Service x:80: ResolvedRefs is False, BackendNotFound: nobody\n\
         \n\
         NAMESPACE POD NAME STATE    REASON\n\
         bookinfo  a        captured -\n\
         bookinfo  b        pending  no namespace\n"
    );
}
