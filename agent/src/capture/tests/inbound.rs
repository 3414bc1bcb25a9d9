//! What connections to an enrolled pod meet.

use std::{
    fs,
    io::{self, Read},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    process::{Command, Stdio},
};

use nix::sys::socket::{Backlog, SockaddrStorage, bind, connect, listen};

use super::{
    super::{Enrolled, Family, Pod, control::find_cgroup2, sys},
    bench::{Bench, Call, TestServer, at, call, finish},
};

fn leg(enrolled: &Enrolled, family: Family, client: SocketAddr, to: SocketAddr) -> Call {
    let leg = TcpStream::from(enrolled.sockets.leg(family, client).unwrap());
    leg.set_nonblocking(false).unwrap();
    connect(leg.as_raw_fd(), &SockaddrStorage::from(to)).unwrap();
    finish(leg).unwrap()
}

#[test]
fn connections_from_outside_go_to_the_agent() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let _app = bench.a.serve(8080);
    for address in [at(bench.a.v4, 8080), at(bench.a.v6, 8080)] {
        let call = bench.b.run(|| call(address)).unwrap();
        assert_eq!(call.greeting.from, "inbound");
        assert_eq!(call.greeting.local, address);
        assert_eq!(call.greeting.accepted, call.local);
    }
}

#[test]
fn hbone_goes_to_its_listener() {
    let mut bench = Bench::new();
    bench.enrol_a();
    for address in [at(bench.a.v4, 15008), at(bench.a.v6, 15008)] {
        assert_eq!(
            bench.b.run(|| call(address)).unwrap().greeting.from,
            "hbone"
        );
    }
}

#[test]
fn pod_with_open_inbound_is_reached_directly() {
    let mut bench = Bench::new();
    let spec = Pod {
        inbound: false,
        ..bench.a.spec()
    };
    bench.enrol(spec);
    let _app = bench.a.serve(8080);
    let address = at(bench.a.v4, 8080);
    assert_eq!(bench.b.run(|| call(address)).unwrap().greeting.from, "app");
}

#[test]
fn application_sees_the_client_of_a_leg() {
    let mut bench = Bench::new();
    let enrolled = bench.enrol_a();
    let _app = bench.a.serve(8080);
    let (v4, v6) = (bench.a.v4, bench.a.v6);
    let client: SocketAddr = "198.51.100.7:40001".parse().unwrap();
    let seen = leg(&enrolled, Family::V4, client, at(v4, 8080)).greeting;
    assert_eq!(
        (seen.from.as_str(), seen.accepted, seen.peer),
        ("app", client, client)
    );
    assert_eq!(seen.local, at(v4, 8080));
    let client: SocketAddr = "[2001:db8::7]:40001".parse().unwrap();
    let seen = leg(&enrolled, Family::V6, client, at(v6, 8080)).greeting;
    assert_eq!(
        (seen.from.as_str(), seen.accepted, seen.peer),
        ("app", client, client)
    );
    assert_eq!(bench.openings(), 0);
}

#[test]
fn application_that_listens_with_mptcp_sees_the_client_of_a_leg() {
    let mut bench = Bench::new();
    let enrolled = bench.enrol_a();
    let to = at(bench.a.v4, 8080);
    let listener = bench.a.run(|| {
        let listener = sys::mptcp_socket().unwrap();
        bind(listener.as_raw_fd(), &SockaddrStorage::from(to)).unwrap();
        listen(&listener, Backlog::new(8).unwrap()).unwrap();
        TcpListener::from(listener)
    });
    let _app = TestServer::start_as("app", listener);
    let client: SocketAddr = "198.51.100.7:40001".parse().unwrap();
    let seen = leg(&enrolled, Family::V4, client, to).greeting;
    assert_eq!(
        (seen.from.as_str(), seen.accepted, seen.peer),
        ("app", client, client)
    );
}

#[test]
fn leg_to_a_closed_port_is_refused() {
    let mut bench = Bench::new();
    let enrolled = bench.enrol_a();
    let client: SocketAddr = "198.51.100.7:40001".parse().unwrap();
    let leg = TcpStream::from(enrolled.sockets.leg(Family::V4, client).unwrap());
    leg.set_nonblocking(false).unwrap();
    let to = SockaddrStorage::from(at(bench.a.v4, 8081));
    assert_eq!(
        connect(leg.as_raw_fd(), &to),
        Err(nix::errno::Errno::ECONNREFUSED)
    );
    drop(leg);
    assert_eq!(bench.openings(), 0);
}

#[test]
fn closed_ports_refuse() {
    let mut bench = Bench::new();
    bench.enrol_a();
    for address in [at(bench.a.v4, 8081), at(bench.a.v6, 8081)] {
        let refused = bench.b.run(|| call(address)).unwrap_err();
        assert_eq!(
            refused.kind(),
            io::ErrorKind::ConnectionRefused,
            "{address}: {refused}"
        );
    }
    // A port that opens is captured, refused before or not.
    let _app = bench.a.serve(8081);
    let address = at(bench.a.v4, 8081);
    assert_eq!(
        bench.b.run(|| call(address)).unwrap().greeting.from,
        "inbound"
    );
}

#[test]
fn dead_agent_means_inbound_refused() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let _app = bench.a.serve(8080);
    bench.kill_agent();
    let address = at(bench.a.v4, 8080);
    let refused = bench.b.run(|| call(address)).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn probes_of_the_node_reach_the_application_and_nobody_elses() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let _app = bench.a.serve(8080);
    for address in [at(bench.a.v4, 8080), at(bench.a.v6, 8080)] {
        let probe = bench.node.run(|| call(address)).unwrap();
        assert_eq!(probe.greeting.from, "app");
        assert_eq!(probe.greeting.accepted, probe.local);
        assert_eq!(
            bench.b.run(|| call(address)).unwrap().greeting.from,
            "inbound"
        );
    }
    assert_eq!(bench.openings(), 0);
}

#[test]
fn probe_of_a_closed_port_is_refused() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let address = at(bench.a.v4, 8081);
    let refused = bench.node.run(|| call(address)).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(bench.openings(), 0);
}

#[test]
fn host_network_pod_is_not_taken_for_kubelet() {
    let mut bench = Bench::new();
    let name = format!("cvcap{}", std::process::id());
    let pods = TestCgroup::new(find_cgroup2(None).unwrap().join(&name));
    let pod = TestCgroup::new(pods.0.join("pod"));
    bench.settings.pods_cgroup = Some(pods.0.clone());
    bench.load();
    bench.enrol_a();
    let _app = bench.a.serve(8080);
    let address = at(bench.a.v4, 8080);
    let from_cgroup = bench.node.run(|| {
        let script = format!(
            "echo $$ > {}/cgroup.procs; exec 3<>/dev/tcp/{}/{}; cat <&3",
            pod.0.display(),
            address.ip(),
            address.port()
        );
        let mut child = Command::new("bash")
            .args(["-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert!(child.wait().unwrap().success());
        said
    });
    assert!(from_cgroup.starts_with("inbound "), "{from_cgroup}");
    assert_eq!(
        bench.node.run(|| call(address)).unwrap().greeting.from,
        "app"
    );
}

/// A cgroup that is removed when dropped.
struct TestCgroup(std::path::PathBuf);

impl TestCgroup {
    fn new(path: std::path::PathBuf) -> Self {
        fs::create_dir(&path).unwrap();
        assert!(fs::metadata(&path).unwrap().ino() > 0);
        Self(path)
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        let _busy = fs::remove_dir(&self.0);
    }
}
