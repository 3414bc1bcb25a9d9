//! What is captured leaves a pod by no device, whatever the pod does about its routes.

use std::{
    fs,
    io::{self, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::AsFd,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::BindToDevice};

use super::{
    super::repair::Repair,
    bench::{Bench, PATIENCE, TestPod, at, call},
};

/// How many TCP segments a pod has received, from whomever.
fn segments_received(pod: &TestPod) -> u64 {
    counted(pod, "InSegs")
}

/// How many TCP segments a pod has refused, with nobody to take them: whatever of a connection comes, but for its reset,
/// which is answered by none. On a busy machine one segment has been seen to come that nobody has traced, perhaps such a
/// reset. An application's bytes would be refused, so none of them comes unseen.
fn resets_sent(pod: &TestPod) -> u64 {
    counted(pod, "OutRsts")
}

/// What a pod's kernel has counted of TCP.
fn counted(pod: &TestPod, what: &str) -> u64 {
    let read = |path: &'static str| pod.run(move || fs::read_to_string(path)).unwrap();
    // Two lines, of names and of numbers; both families count here.
    let counters = read("/proc/thread-self/net/snmp");
    let mut tcp = counters.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, numbers) = (tcp.next().unwrap(), tcp.next().unwrap());
    let position = names.split(' ').position(|name| name == what);
    let number = numbers.split(' ').nth(position.unwrap());
    number.unwrap().parse().unwrap()
}

/// A bench whose pod `a` is captured, and knows pod `b` to be on its link: what it sends there comes at once.
fn bench() -> (Bench, [SocketAddr; 2]) {
    let mut bench = Bench::new();
    let targets = [at(bench.b.v4, 8080), at(bench.b.v6, 8080)];
    for to in targets {
        let answer = bench.a.run(|| {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(to)?;
            socket.send(b"who is there")?;
            socket.recv(&mut [0])
        });
        let refused = answer.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
    bench.enrol_a();
    (bench, targets)
}

#[test]
fn socket_that_is_bound_to_a_device_later_sends_nothing_there() {
    let (bench, targets) = bench();
    for to in targets {
        let before = resets_sent(&bench.b);
        bench.a.run(|| {
            let mut captured = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
            setsockopt(&captured.as_fd(), BindToDevice, &"eth0".into()).unwrap();
            // Whether the kernel takes it does not matter; where it goes does.
            let _outcome = captured.write_all(b"for the mesh only");
        });
        assert_eq!(resets_sent(&bench.b), before, "{to}");
    }
}

#[test]
fn pod_without_its_rules_sends_nothing_past_the_agent() {
    let (mut bench, targets) = bench();
    let _app = bench.b.serve(8080);
    for family in ["", "-6 "] {
        for priority in [10, 11] {
            bench.a.ip(&format!("{family}rule del pref {priority}"));
        }
    }
    let before = segments_received(&bench.b);
    for to in targets {
        let reached = bench
            .a
            .run(|| TcpStream::connect_timeout(&to, Duration::from_millis(200)));
        assert!(reached.is_err(), "{to}");
    }
    assert_eq!(segments_received(&bench.b), before);
    let repairs = bench.capture().reconcile().repairs;
    assert_eq!(repairs, [Repair::Rule; 4]);
    let greeting = bench.a.run(|| call(targets[0])).unwrap().greeting;
    assert_eq!(greeting.from, "outbound");
}
