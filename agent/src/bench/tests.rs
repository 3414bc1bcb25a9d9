//! The generator against its own server, and against one that stalls.

mod compare;
mod open_loop;

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use super::server::Running;
use super::{
    BenchError, Counters, Direction, Extent, Loop, Plan, Ports, Protocol, RunReport, Served,
    ServerPlan, Target, run,
};

const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A plan for the loopback interface: two connections, a short time.
fn plan(protocol: Protocol, port: u16) -> Plan {
    Plan {
        protocol,
        target: Target {
            host: HOST.to_string(),
            port: Some(port),
            path: None,
        },
        connections: NonZeroUsize::new(2).unwrap(),
        streams: NonZeroUsize::MIN,
        pace: Loop::Closed,
        extent: Extent::Time {
            warmup: Duration::from_millis(50),
            duration: Duration::from_millis(200),
        },
        payload: 100,
        response: 20_000,
        direction: Direction::Upload,
        headers: Vec::new(),
        timeout: Duration::from_secs(5),
        wait: Duration::ZERO,
        threads: NonZeroUsize::new(2).unwrap(),
        interval: Duration::from_millis(50),
        invocation: "test".to_owned(),
        plane: "loopback".to_owned(),
    }
}

/// A server on ports that nobody else has.
struct Server {
    running: Running,
    ports: Ports,
}

impl Server {
    fn start() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        loop {
            let number = NEXT.fetch_add(6, Ordering::Relaxed);
            let ports = Ports::from(20_000 + number).unwrap();
            // Listeners that share a port would share connections with the servers of other tests' processes.
            let is_free = |port| TcpListener::bind((HOST, port)).is_ok();
            let mut all = ports.http1()..=ports.stats();
            if !all.all(is_free) {
                continue;
            }
            let plan = ServerPlan {
                listen: Some(HOST),
                ports,
                threads: NonZeroUsize::new(2).unwrap(),
            };
            // Ports are opened within a runtime.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let running = runtime.block_on(async { Running::start(&plan) }).unwrap();
            return Self { running, ports };
        }
    }

    fn counters(&self, protocol: Protocol) -> Counters {
        let Served {
            http1,
            h2,
            grpc,
            tcp,
            bulk,
        } = self.running.served();
        match protocol {
            Protocol::Http1 => http1,
            Protocol::H2 => h2,
            Protocol::Grpc => grpc,
            Protocol::Tcp | Protocol::Connect | Protocol::Idle => tcp,
            Protocol::Bulk => bulk,
        }
    }
}

/// Runs a protocol and compares what the client says with what the server says.
#[track_caller]
fn agree(
    change: impl FnOnce(&mut Plan),
    protocol: Protocol,
    connections: impl Fn(&RunReport) -> u64,
) {
    let server = Server::start();
    let mut plan = plan(protocol, protocol.port(server.ports));
    change(&mut plan);
    let report = run(&plan, |_progress| {}).unwrap();
    assert!(report.is_clean(), "{}", report.text());
    let counters = server.counters(protocol);
    assert_eq!(
        report.requests.total,
        counters.requests,
        "{}",
        report.text()
    );
    assert_eq!(
        counters.bytes_received,
        counters.requests * plan.payload as u64
    );
    assert_eq!(
        counters.bytes_sent,
        counters.requests * plan.response as u64
    );
    assert_eq!(
        counters.connections,
        connections(&report),
        "{}",
        report.text()
    );
    // Idle connections are asked when the time that counts is over.
    assert_eq!(
        report.rate > 0.0,
        protocol != Protocol::Idle,
        "{}",
        report.text()
    );
    let latency = report.latency_us.unwrap();
    assert_eq!(latency.count, report.requests.succeeded);
    assert!(latency.min <= latency.p50 && latency.p50 <= latency.p99 && latency.p99 <= latency.max);
    server.running.stop().unwrap();
}

/// The first that tries the server, and those of the run.
fn kept(_report: &RunReport) -> u64 {
    3
}

#[test]
fn http1_is_counted_alike_on_both_sides() {
    agree(|_plan| {}, Protocol::Http1, kept);
}

#[test]
fn h2_is_counted_alike_on_both_sides() {
    let several = |plan: &mut Plan| plan.streams = NonZeroUsize::new(5).unwrap();
    agree(several, Protocol::H2, kept);
}

#[test]
fn grpc_is_counted_alike_on_both_sides() {
    let several = |plan: &mut Plan| plan.streams = NonZeroUsize::new(5).unwrap();
    agree(several, Protocol::Grpc, kept);
}

#[test]
fn plain_requests_are_counted_alike_on_both_sides() {
    let large = |plan: &mut Plan| (plan.payload, plan.response) = (200_000, 100_000);
    agree(large, Protocol::Tcp, kept);
}

#[test]
fn each_request_of_connect_has_its_connection() {
    agree(
        |_plan| {},
        Protocol::Connect,
        |report| report.requests.total,
    );
}

#[test]
fn a_number_of_requests_is_made_and_no_more() {
    let number = |plan: &mut Plan| {
        plan.extent = Extent::Requests(17.try_into().unwrap());
        plan.pace = Loop::Open { rate: 1000.0 };
    };
    agree(number, Protocol::Http1, |report| {
        assert_eq!(report.requests.succeeded, 17);
        assert_eq!(report.requests.total, 18);
        3
    });
}

#[test]
fn idle_connections_are_asked_before_and_after() {
    let many = |plan: &mut Plan| plan.connections = NonZeroUsize::new(50).unwrap();
    agree(many, Protocol::Idle, |report| {
        assert_eq!(report.requests.succeeded, 50);
        assert_eq!(report.requests.total, 101);
        51
    });
}

#[test]
fn bulk_is_counted_by_the_receiver() {
    let server = Server::start();
    let mut plan = plan(Protocol::Bulk, server.ports.bulk());
    (plan.payload, plan.response) = (0, 0);
    plan.direction = Direction::Both;
    // Long enough for some of the server's words on what it has.
    plan.extent = Extent::Time {
        warmup: Duration::from_millis(50),
        duration: Duration::from_millis(400),
    };
    let report = run(&plan, |_progress| {}).unwrap();
    let bulk = report.bulk.unwrap();
    assert!(
        bulk.upload_gbit_s > 0.0 && bulk.download_gbit_s > 0.0,
        "{bulk:?}"
    );
    assert!(report.is_clean(), "{}", report.text());
    let counters = server.counters(Protocol::Bulk);
    assert_eq!(counters.requests, 4, "two connections each way");
    assert_eq!(bulk.uploaded_bytes, counters.bytes_received);
    server.running.stop().unwrap();
}

#[test]
fn failures_are_counted_by_cause_and_are_no_latency() {
    let server = Server::start();
    // The plain port does not know HTTP, the stats port has no such path.
    let mut plan = plan(Protocol::Http1, server.ports.stats());
    plan.target.path = Some("/nothing".to_owned());
    assert!(matches!(
        run(&plan, |_| {}),
        Err(BenchError::Unreachable { why, .. }) if why == "status 404"
    ));
    server.running.stop().unwrap();
    plan.target.port = Some(server.ports.http1());
    let refused = run(&plan, |_| {}).unwrap_err().to_string();
    assert!(refused.contains("connection refused"), "{refused}");
}

#[test]
fn progress_is_told_while_a_run_goes_on() {
    let server = Server::start();
    let plan = plan(Protocol::Http1, server.ports.http1());
    let completed = Arc::new(AtomicU64::new(0));
    let report = run(&plan, |progress| {
        if let super::Progress::Interval(interval) = progress {
            completed.fetch_add(interval.completed, Ordering::Relaxed);
        }
    })
    .unwrap();
    assert!(completed.load(Ordering::Relaxed) > 0);
    assert_eq!(
        report
            .intervals
            .iter()
            .map(|interval| interval.completed)
            .sum::<u64>(),
        completed.load(Ordering::Relaxed)
    );
    server.running.stop().unwrap();
}
