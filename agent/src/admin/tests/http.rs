//! Every path of every server, over loopback.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use userspace_l7::key_sets::KeySets;
use userspace_l7::model::Snapshot;

use super::dump;
use crate::admin::logging::LogControl;
use crate::admin::{
    AdminServer, AdminState, AgentStatus, BindError, BoxFuture, CertificateStatus, Endpoints,
    LiveConnection, ManifestProblem, PodState, PodStatus, Released, Services, register,
};
use crate::mesh::status::ObjectStatus;

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Agent {
    pending: bool,
    stopped: AtomicBool,
    unenrolled: AtomicUsize,
    leaves_something_behind: bool,
}

impl AdminState for Agent {
    fn snapshot(&self) -> Arc<Snapshot> {
        dump::sources().snapshot
    }

    fn key_sets(&self) -> Arc<KeySets> {
        Arc::default()
    }

    fn certificates(&self) -> Vec<CertificateStatus> {
        dump::sources().certificates
    }

    fn connections(&self) -> BoxFuture<'_, Vec<LiveConnection>> {
        Box::pin(async { dump::sources().connections })
    }

    fn objects(&self) -> Arc<[ObjectStatus]> {
        Arc::default()
    }

    fn status(&self) -> AgentStatus {
        let waiting = PodStatus {
            uid: "Kubernetes//Pod/bookinfo/late".to_owned(),
            name: "late".to_owned(),
            namespace: "bookinfo".to_owned(),
            service_account: "default".to_owned(),
            state: PodState::Pending,
            reason: Some("its network namespace is gone".to_owned()),
            encrypted_within_node: false,
        };
        let mut pods = dump::sources().pods;
        pods.push(waiting);
        AgentStatus {
            node: "node-a".to_owned(),
            generation: 7,
            pods,
            pods_hindered: 1,
            pending: if self.pending {
                vec!["proxy".to_owned(), "dns proxy".to_owned()]
            } else {
                Vec::new()
            },
            problems: vec![ManifestProblem {
                path: "reviews.yaml".to_owned(),
                line: Some(3),
                object: None,
                field: None,
                message: "no such kind".to_owned(),
            }],
            repairs: BTreeMap::from([("route".to_owned(), 2)]),
            pods_started: 5,
            pods_stopped: 4,
            ..AgentStatus::default()
        }
    }

    fn config(&self) -> Value {
        serde_json::json!({"node": "node-a"})
    }

    fn shut_down(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    fn unenrol(&self) -> BoxFuture<'_, Released> {
        self.unenrolled.fetch_add(1, Ordering::SeqCst);
        let failures = if self.leaves_something_behind {
            vec!["pin /run/x: busy".to_owned()]
        } else {
            Vec::new()
        };
        Box::pin(async {
            Released {
                pods: vec!["a".to_owned()],
                failures,
            }
        })
    }
}

/// Runs `act` against servers on free ports, then stops them and sees them end.
fn serve<F: Future<Output = ()>>(agent: Arc<Agent>, act: impl FnOnce(Endpoints) -> F) {
    serve_with(agent, None, act);
}

fn serve_with<F: Future<Output = ()>>(
    agent: Arc<Agent>,
    socket: Option<PathBuf>,
    act: impl FnOnce(Endpoints) -> F,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let any = || vec!["127.0.0.1:0".parse().unwrap()];
        let endpoints = Endpoints {
            socket,
            admin: any(),
            metrics: any(),
            readiness: any(),
        };
        let server = AdminServer::bind(&endpoints).unwrap();
        let addresses = server.addresses().unwrap();
        let mut registry = Registry::default();
        register(&mut registry, Arc::<Agent>::clone(&agent));
        let services = Services {
            state: agent,
            registry: Arc::new(registry),
            log: LogControl::for_test("info"),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(server.run(services, async {
            let _told = stopped.await;
        }));
        tokio::time::timeout(PATIENCE, act(addresses))
            .await
            .expect("in time");
        stop.send(()).unwrap();
        tokio::time::timeout(PATIENCE, running)
            .await
            .expect("servers stop")
            .unwrap();
    });
}

struct Reply {
    status: u16,
    head: String,
    body: String,
}

async fn request(to: SocketAddr, head: &str) -> Reply {
    request_over(TcpStream::connect(to).await.unwrap(), head).await
}

async fn request_over(mut stream: impl AsyncRead + AsyncWrite + Unpin, head: &str) -> Reply {
    let text = format!("{head}\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Reply {
        status,
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}

#[test]
fn each_path_answers_its_method_only() {
    serve(Arc::default(), |at| async move {
        let (admin, metrics, ready) = (at.admin[0], at.metrics[0], at.readiness[0]);
        for (to, head, status) in [
            (admin, "GET / HTTP/1.1", 200),
            (admin, "HEAD / HTTP/1.1", 200),
            (admin, "GET /config_dump HTTP/1.1", 200),
            (admin, "GET /status HTTP/1.1", 200),
            (admin, "POST /logging HTTP/1.1", 200),
            (admin, "GET /logging HTTP/1.1", 405),
            (admin, "GET /quitquitquit HTTP/1.1", 405),
            (admin, "GET /unenrol HTTP/1.1", 405),
            (admin, "POST /config_dump HTTP/1.1", 405),
            (admin, "GET /metrics HTTP/1.1", 404),
            (admin, "GET /config_dump/ HTTP/1.1", 404),
            (metrics, "GET /metrics HTTP/1.1", 200),
            (metrics, "GET /stats/prometheus HTTP/1.1", 200),
            (metrics, "POST /metrics HTTP/1.1", 405),
            (metrics, "GET /config_dump HTTP/1.1", 404),
            (metrics, "POST /quitquitquit HTTP/1.1", 404),
            (ready, "GET /healthz/ready HTTP/1.1", 200),
            (ready, "DELETE /healthz/ready HTTP/1.1", 405),
            (ready, "GET / HTTP/1.1", 404),
        ] {
            let reply = request(to, head).await;
            assert_eq!(reply.status, status, "{head}: {}", reply.body);
            assert_eq!(reply.head.contains("\r\nallow: "), status == 405, "{head}");
        }
    });
}

#[test]
fn the_dump_is_json() {
    serve(Arc::default(), |at| async move {
        let reply = request(at.admin[0], "GET /config_dump HTTP/1.1").await;
        assert!(
            reply.head.contains("content-type: application/json"),
            "{}",
            reply.head
        );
        let dump: Value = serde_json::from_str(&reply.body).unwrap();
        assert_eq!(dump["services"].as_array().unwrap().len(), 3);
        assert_eq!(
            dump["workloadState"].as_object().unwrap().len(),
            2,
            "with the pending pod"
        );
    });
}

#[test]
fn readiness_names_what_is_missing() {
    serve(Arc::default(), |at| async move {
        assert_eq!(
            request(at.readiness[0], "GET /healthz/ready HTTP/1.1")
                .await
                .body,
            "ready\n"
        );
    });
    let starting = Agent {
        pending: true,
        ..Agent::default()
    };
    serve(Arc::new(starting), |at| async move {
        let reply = request(at.readiness[0], "GET /healthz/ready HTTP/1.1").await;
        assert_eq!(reply.status, 500);
        assert_eq!(reply.body, "not ready, pending: proxy, dns proxy\n");
    });
}

#[test]
fn the_level_is_changed_and_a_bad_one_refused() {
    serve(Arc::default(), |at| async move {
        let admin = at.admin[0];
        let set = |query: &'static str| async move {
            let reply = request(admin, &format!("POST /logging{query} HTTP/1.1")).await;
            (reply.status, reply.body)
        };
        assert_eq!(
            set("").await,
            (200, "current log level is info\n".to_owned())
        );
        assert_eq!(
            set("?level=access=debug").await,
            (200, "current log level is access=debug,info\n".to_owned())
        );
        let (status, why) = set("?level=loud").await;
        assert!(status == 400 && why.contains("`loud`"), "{status} {why}");
        assert_eq!(
            set("?reset").await,
            (200, "current log level is info\n".to_owned())
        );
    });
}

#[test]
fn metrics_come_in_the_format_that_is_accepted() {
    serve(Arc::default(), |at| async move {
        let plain = request(at.metrics[0], "GET /stats/prometheus HTTP/1.1").await;
        let first = &dump::sources().certificates[0].chain[0];
        let earliest = first.not_after.as_second();
        assert!(
            plain
                .head
                .contains("content-type: text/plain; version=0.0.4"),
            "{}",
            plain.head
        );
        for line in [
            "workload_manager_active_proxy_count 1",
            "workload_manager_pending_proxy_count 1",
            "culvert_pods_hindered 1",
            "culvert_certificates{state=\"available\"} 1",
            "culvert_certificates{state=\"initializing\"} 0",
            "culvert_certificates{state=\"unavailable\"} 1",
            &format!("culvert_certificate_expiry_seconds {earliest}"),
            "# TYPE workload_manager_proxies_started_total counter",
            "workload_manager_proxies_started_total 5",
            "workload_manager_proxies_stopped_total 4",
            "culvert_manifest_problems 1",
            "culvert_manifest_warnings 0",
            "culvert_snapshot_generation 7",
            "culvert_capture_repairs_total{kind=\"route\"} 2",
            concat!(
                "istio_build{component=\"ztunnel\",tag=\"",
                env!("CARGO_PKG_VERSION"),
                "\"} 1"
            ),
        ] {
            assert!(
                plain.body.lines().any(|found| found == line),
                "{line} in {}",
                plain.body
            );
        }
        let value = |name: &str| -> u64 {
            let line = plain
                .body
                .lines()
                .find(|line| line.starts_with(name))
                .unwrap();
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        assert!(value("process_open_fds ") > 3 && value("process_max_fds ") > 3);
        let accepts = "GET /metrics HTTP/1.1\r\naccept: application/openmetrics-text;version=1.0.0";
        let open = request(at.metrics[0], accepts).await;
        assert!(
            open.head.contains("application/openmetrics-text"),
            "{}",
            open.head
        );
        assert!(open.body.ends_with("# EOF\n"));
        assert!(
            open.body
                .contains("# TYPE workload_manager_proxies_started counter\n")
        );
    });
}

#[test]
fn stopping_and_removal_are_passed_on_but_not_from_web_pages() {
    let agent = Arc::new(Agent::default());
    serve(Arc::clone(&agent), |at| async move {
        for path in ["quitquitquit", "unenrol"] {
            let from_page = format!("POST /{path} HTTP/1.1\r\norigin: https://evil.example");
            assert_eq!(request(at.admin[0], &from_page).await.status, 403);
        }
    });
    assert!(!agent.stopped.load(Ordering::SeqCst));
    assert_eq!(agent.unenrolled.load(Ordering::SeqCst), 0);
    serve(Arc::clone(&agent), |at| async move {
        assert_eq!(
            request(at.admin[0], "POST /quitquitquit HTTP/1.1")
                .await
                .status,
            200
        );
        let reply = request(at.admin[0], "POST /unenrol HTTP/1.1").await;
        let released: Released = serde_json::from_str(&reply.body).unwrap();
        assert_eq!((reply.status, released.pods), (200, vec!["a".to_owned()]));
    });
    assert!(agent.stopped.load(Ordering::SeqCst));
    assert_eq!(agent.unenrolled.load(Ordering::SeqCst), 1);
    let stubborn = Agent {
        leaves_something_behind: true,
        ..Agent::default()
    };
    serve(Arc::new(stubborn), |at| async move {
        let reply = request(at.admin[0], "POST /unenrol HTTP/1.1").await;
        assert!(
            reply.status == 500 && reply.body.contains("busy"),
            "{}",
            reply.body
        );
    });
}

#[test]
fn an_agent_is_changed_over_its_socket_only() {
    let agent = Arc::new(Agent::default());
    let name = format!("culvert-admin-{}.sock", std::process::id());
    let path = std::env::temp_dir().join(name);
    // What an agent that died has left.
    std::fs::write(&path, "").unwrap();
    serve_with(Arc::clone(&agent), Some(path.clone()), |at| async move {
        for (page, command) in [
            ("logging?level=debug", "`culvert log`"),
            ("quitquitquit", "`culvert stop`"),
            ("unenrol", "`culvert stop --unenrol`"),
        ] {
            let reply = request(at.admin[0], &format!("POST /{page} HTTP/1.1")).await;
            assert_eq!(reply.status, 403, "{page}");
            assert!(reply.body.contains(command), "{}", reply.body);
        }
        assert_eq!(
            request(at.admin[0], "GET /status HTTP/1.1").await.status,
            200
        );
        let path = at.socket.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        for head in ["GET /status HTTP/1.1", "POST /quitquitquit HTTP/1.1"] {
            let stream = UnixStream::connect(&path).await.unwrap();
            assert_eq!(request_over(stream, head).await.status, 200, "{head}");
        }
    });
    std::fs::remove_file(path).unwrap();
    assert!(agent.stopped.load(Ordering::SeqCst));
    assert_eq!(agent.unenrolled.load(Ordering::SeqCst), 0);
}

#[test]
fn a_client_that_says_nothing_or_too_much_is_cut_off() {
    serve(Arc::default(), |at| async move {
        let mut silent = TcpStream::connect(at.readiness[0]).await.unwrap();
        silent.write_all(b"GET /healthz/ready HT").await.unwrap();
        let mut left = Vec::new();
        silent.read_to_end(&mut left).await.unwrap();
        let long = format!("GET /healthz/ready HTTP/1.1\r\nx: {}", "y".repeat(20_000));
        assert_eq!(request(at.readiness[0], &long).await.status, 431);
    });
}

/// Binds with these metrics addresses and free ports otherwise.
fn bind_metrics(metrics: Vec<SocketAddr>) -> Result<Endpoints, BindError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _within = runtime.enter();
    let any = || vec!["127.0.0.1:0".parse().unwrap()];
    let endpoints = Endpoints {
        socket: None,
        admin: any(),
        metrics,
        readiness: any(),
    };
    AdminServer::bind(&endpoints).map(|bound| bound.addresses().unwrap())
}

#[test]
fn administration_is_never_offered_to_the_network() {
    let admin = vec!["127.0.0.1:0".parse().unwrap(), "0.0.0.0:0".parse().unwrap()];
    let refused = AdminServer::bind(&Endpoints {
        admin,
        ..Endpoints::default()
    });
    assert!(
        matches!(refused, Err(BindError::NotLoopback { .. })),
        "{refused:?}"
    );
}

#[test]
fn an_address_that_is_missing_is_left_out_and_one_that_is_taken_an_error() {
    // TEST-NET-1: no interface here has it.
    let missing: SocketAddr = "192.0.2.1:0".parse().unwrap();
    let free: SocketAddr = "127.0.0.1:0".parse().unwrap();
    assert_eq!(bind_metrics(vec![missing, free]).unwrap().metrics.len(), 1);
    let failed = bind_metrics(vec![missing]);
    assert!(
        matches!(
            failed,
            Err(BindError::Listen {
                purpose: "metrics",
                ..
            })
        ),
        "{failed:?}"
    );
    let holder = std::net::TcpListener::bind(free).unwrap();
    let taken = holder.local_addr().unwrap();
    let failed = bind_metrics(vec![free, taken]);
    assert!(matches!(failed, Err(BindError::Listen { address, .. }) if address == taken));
    assert!(matches!(
        bind_metrics(Vec::new()),
        Err(BindError::NoAddress { purpose: "metrics" })
    ));
}

#[test]
fn both_families_share_a_port() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _within = runtime.enter();
    let free = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let every = |host: &str| format!("{host}:{port}").parse().unwrap();
    match bind_metrics(vec![every("0.0.0.0"), every("[::]")]) {
        Ok(bound) => assert!(!bound.metrics.is_empty()),
        // Somebody took the port in between; a family in the way of the other would say [::] here.
        Err(BindError::Listen { address, .. }) => assert_eq!(address, every("0.0.0.0")),
        Err(other) => panic!("{other}"),
    }
}
