//! Restart, repair and removal.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use culvert_ebpf::DNS_PROXY_PORT;

use super::{
    super::{
        Capture, CaptureError, Netns, Pod, Report,
        changes::Changes,
        pins,
        programs::{CGROUP_HOOKS, Loader, Variant},
        repair::Repair,
        sys,
    },
    bench::{Bench, PATIENCE, TestPod, at, call, finish},
};

const FOREIGN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

/// Everything capture may change in a pod.
fn traces(pod: &TestPod) -> String {
    let routing = [
        "rule",
        "-6 rule",
        "route show table all",
        "-6 route show table all",
        "addr",
    ];
    let mut traces: String = routing.iter().map(|show| pod.ip(show)).collect();
    for sysctl in [
        "ipv4/tcp_tw_reuse",
        "ipv4/fwmark_reflect",
        "ipv4/conf/all/rp_filter",
    ] {
        let path = format!("/proc/sys/net/{sysctl}");
        traces += &pod.run(|| fs::read_to_string(path)).unwrap();
    }
    traces
}

#[test]
fn nothing_is_left_after_removal() {
    let mut bench = Bench::new();
    let before = [traces(&bench.a), traces(&bench.b)];
    bench.enrol_a();
    bench.enrol_b();
    assert_ne!(traces(&bench.a), before[0]);
    let pins = bench.capture().shared.pins.clone();
    let (capture, bench) = bench.into_capture();
    capture.remove_everything().unwrap();
    assert_eq!([traces(&bench.a), traces(&bench.b)], before);
    assert!(!pins.exists());
    assert!(!bench.settings.run_dir.join("capture").exists());
    let _app = bench.b.serve(8080);
    let address = at(bench.b.v4, 8080);
    assert_eq!(bench.a.run(|| call(address)).unwrap().greeting.from, "app");
    fs::remove_dir_all(&bench.settings.run_dir).unwrap();
}

#[test]
fn release_leaves_the_pod_as_it_was() {
    let mut bench = Bench::new();
    let before = traces(&bench.a);
    bench.enrol_a();
    let uid = bench.a.name.clone();
    bench.capture().release(&uid).unwrap();
    assert_eq!(traces(&bench.a), before);
    let again = bench.capture().release(&uid);
    assert!(
        matches!(again, Err(CaptureError::NotEnrolled { .. })),
        "{again:?}"
    );
    let _app = bench.b.serve(8080);
    let address = at(bench.b.v4, 8080);
    assert_eq!(bench.a.run(|| call(address)).unwrap().greeting.from, "app");
}

#[test]
fn release_ends_captured_connections() {
    let mut bench = Bench::new();
    let enrolled = {
        let spec = bench.a.spec();
        bench.try_enrol(spec).unwrap()
    };
    bench.clerk().serve(Arc::clone(&enrolled.sockets));
    let mut clients = [
        at(FOREIGN, 443),
        at("2001:db8::9".parse::<Ipv6Addr>().unwrap(), 443),
    ]
    .map(|to| bench.a.run(|| TcpStream::connect(to)).unwrap());
    let untouched = bench
        .a
        .run(|| TcpListener::bind(at(Ipv4Addr::LOCALHOST, 0)))
        .unwrap();
    let uid = bench.a.name.clone();
    bench.capture().release(&uid).unwrap();
    for client in &mut clients {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let ended = client.read(&mut [0]).unwrap_err();
        assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionAborted);
    }
    assert!(sys::is_listening(untouched.as_fd()).unwrap());
    drop(enrolled);
}

#[test]
fn a_pod_that_is_let_pass_keeps_what_was_captured_and_has_the_rest_to_itself() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let (v4, v6) = (bench.a.v4, bench.a.v6);
    let captured = bench
        .a
        .run(|| TcpStream::connect(at(FOREIGN, 443)))
        .unwrap();
    let uid = bench.a.name.clone();
    bench.capture().let_pass(&uid).unwrap();
    assert_eq!(kinds_of(&mut bench), [""; 0], "it is meant to be so");
    let call_from = |pod: &TestPod, to| pod.run(|| call(to)).unwrap().greeting.from;
    let (_own, _other) = (bench.a.serve(8080), bench.b.serve(8080));
    for to in [at(bench.b.v4, 8080), at(bench.b.v6, 8080)] {
        assert_eq!(call_from(&bench.a, to), "app", "its own connections");
    }
    for to in [at(v4, 8080), at(v6, 8080)] {
        assert_eq!(call_from(&bench.b, to), "app", "connections to it");
    }
    let hbone = at(v4, 15008);
    assert_eq!(call_from(&bench.b, hbone), "hbone", "who has not heard yet");
    assert_eq!(finish(captured).unwrap().greeting.from, "outbound");
    bench.enrol_a();
    assert_eq!(call_from(&bench.a, at(FOREIGN, 443)), "outbound");
    assert_eq!(call_from(&bench.b, at(v4, 8080)), "inbound");
}

#[test]
fn nodes_own_namespace_is_never_enrolled() {
    let mut bench = Bench::new();
    let spec = bench.node.spec();
    let refused = bench.try_enrol(spec);
    assert!(
        matches!(refused, Err(CaptureError::HostNetwork { .. })),
        "{refused:?}"
    );
}

#[test]
fn pods_are_enrolled_together_and_each_has_its_own_outcome() {
    let mut bench = Bench::new();
    let (a, node, b) = (bench.a.spec(), bench.node.spec(), bench.b.spec());
    let names = [&a, &node, &b].map(|spec| spec.uid.clone());
    let mut outcomes = Vec::new();
    let pods = [a, node, b].map(|spec| (spec, None));
    let told = |uid: &str, enrolled: Result<_, CaptureError>| {
        outcomes.push((uid.to_owned(), enrolled.is_ok()));
    };
    bench.capture().enrol(pods.into(), told).unwrap();
    let [a, node, b] = names;
    assert_eq!(outcomes, [(a, true), (node, false), (b, true)]);
    for pod in [&bench.a, &bench.b].map(|pod| pod.netns.cookie()) {
        let entry = bench.capture().shared.maps.pod(pod).unwrap();
        assert!(entry.is_some());
    }
    assert!(bench.capture().guard().is_empty());
    assert_eq!(kinds_of(&mut bench), [""; 0]);
}

#[test]
fn failed_enrolment_leaves_nothing() {
    let mut bench = Bench::new();
    let before = traces(&bench.a);
    // The pod does not have this address, so the route cannot name it as source.
    let spec = Pod {
        addresses: vec![FOREIGN.into()],
        ..bench.a.spec()
    };
    let error = bench.try_enrol(spec).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot put the route in place of pod {}", bench.a.name)
    );
    assert_eq!(traces(&bench.a), before);
}

#[test]
fn pod_that_cannot_be_captured_anew_goes_on_as_it_was() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let resolver = (Ipv4Addr::LOCALHOST, DNS_PROXY_PORT);
    let _resolver = bench.a.run(|| UdpSocket::bind(resolver)).unwrap();
    let spec = Pod {
        dns: true,
        ..bench.a.spec()
    };
    let error = bench.try_enrol(spec).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot open the DNS proxy's sockets on port 15053 of pod {}",
            bench.a.name
        )
    );
    // Its entry and its slots are those of the attempt until somebody looks.
    assert_eq!(kinds_of(&mut bench), ["slot", "entry"]);
    let greeting = bench.a.run(|| call(at(FOREIGN, 443))).unwrap().greeting;
    assert_eq!(greeting.from, "outbound");
}

#[test]
fn pod_is_not_found_by_an_address_that_it_gives_itself() {
    let mut bench = Bench::new();
    bench.enrol_a();
    bench.enrol_b();
    let (to, neighbour) = (at(bench.b.v4, 8080), bench.b.v4);
    let _app = bench.b.serve(to.port());
    bench.a.ip(&format!("addr add {neighbour}/32 dev eth0"));
    assert_eq!(kinds_of(&mut bench), ["address"]);
    // The node's probe is recognised, which it is in the pod where it arrives.
    assert_eq!(bench.node.run(|| call(to)).unwrap().greeting.from, "app");
    // Whoever has it in truth is found again, even if the map says otherwise.
    let (a, b) = (bench.a.netns.cookie(), bench.b.netns.cookie());
    let maps = Arc::clone(&bench.capture().shared.maps);
    maps.find_by(a, neighbour.into()).unwrap();
    assert_eq!(kinds_of(&mut bench), ["address"]);
    assert!(maps.finds(b, neighbour.into()).unwrap());
}

#[test]
fn whatever_is_removed_comes_back() {
    let mut bench = Bench::new();
    bench.enrol_a();
    assert_eq!(kinds(bench.capture().reconcile()), Vec::<&str>::new());
    let cookie = bench.a.netns.cookie();
    let pins = bench.capture().shared.pins.clone();
    let pod_pins = bench.capture().shared.pod_pins(cookie);
    let address = bench.a.v4;

    bench.a.ip("rule del pref 10");
    bench.a.ip("-6 rule del pref 11");
    assert_eq!(repaired(&mut bench), ["rule", "rule"]);
    bench.a.ip("route flush table 15001");
    assert_eq!(repaired(&mut bench), ["route"]);
    bench.a.ip("link set lo down");
    assert_eq!(repaired(&mut bench), ["loopback", "route", "route"]);
    fs::remove_file(pod_pins.join("sk_lookup")).unwrap();
    assert_eq!(repaired(&mut bench), ["sk_lookup"]);
    let device = fs::read_dir(&pod_pins)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let device: Vec<PathBuf> = device.filter(|pin| !pin.ends_with("sk_lookup")).collect();
    fs::remove_file(&device[0]).unwrap();
    assert_eq!(repaired(&mut bench), ["tcx"]);
    fs::remove_file(pins.join("hooks/connect4")).unwrap();
    assert_eq!(repaired(&mut bench), ["cgroup"]);
    bench.capture().shared.maps.remove_pod(cookie).unwrap();
    assert_eq!(repaired(&mut bench), ["entry"]);
    bench
        .capture()
        .shared
        .maps
        .remove_listeners(cookie)
        .unwrap();
    assert_eq!(repaired(&mut bench), ["slot"]);
    bench
        .capture()
        .shared
        .maps
        .remove_address(cookie, address.into())
        .unwrap();
    assert_eq!(repaired(&mut bench), ["address", "address"]);
    assert_eq!(kinds(bench.capture().reconcile()), Vec::<&str>::new());
}

#[test]
fn lost_pins_come_back() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let pins = bench.capture().shared.pins.clone();
    fs::remove_dir_all(&pins).unwrap();
    let mut kinds = repaired(&mut bench);
    kinds.dedup();
    assert_eq!(kinds, ["map", "cgroup", "sk_lookup", "tcx"]);
    // What came back holds when the agent goes.
    bench.kill_agent();
    let refused = bench.a.run(|| call(at(FOREIGN, 443))).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

/// Repairs, and finds that capture works again.
#[track_caller]
fn repaired(bench: &mut Bench) -> Vec<&'static str> {
    let kinds = kinds(bench.capture().reconcile());
    let call = bench.a.run(|| call(at(FOREIGN, 443))).unwrap();
    assert_eq!(call.greeting.from, "outbound");
    kinds
}

#[track_caller]
fn kinds(report: Report) -> Vec<&'static str> {
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    report.repairs.into_iter().map(Repair::label).collect()
}

#[test]
fn closed_listener_is_replaced_and_reported() {
    let mut bench = Bench::new();
    let mut enrolled = {
        let spec = bench.a.spec();
        bench.try_enrol(spec).unwrap()
    };
    bench.clerk().serve(Arc::clone(&enrolled.sockets));
    let outbound = enrolled.listeners.remove(0).outbound;
    let listener = TcpListener::from(outbound);
    nix::sys::socket::shutdown(
        std::os::fd::AsRawFd::as_raw_fd(&listener),
        nix::sys::socket::Shutdown::Both,
    )
    .unwrap();
    drop((listener, enrolled));
    let report = bench.capture().reconcile();
    let opened = [Repair::Listener, Repair::Slot, Repair::Entry];
    assert_eq!(report.repairs, opened);
    serve_new(&mut bench, report);
}

/// Serves the listeners that a look has opened anew, and finds that capture works.
#[track_caller]
fn serve_new(bench: &mut Bench, report: Report) {
    let [(uid, listeners)] = <[_; 1]>::try_from(report.listeners).unwrap();
    assert_eq!(uid, bench.a.name);
    assert_eq!(listeners.len(), bench.settings.workers.get());
    bench.serve(listeners);
    let call = bench.a.run(|| call(at(FOREIGN, 443))).unwrap();
    assert_eq!(call.greeting.from, "outbound");
}

#[test]
fn listeners_of_which_a_worker_has_lost_one_are_opened_anew() {
    let mut bench = Bench::new();
    let enrolled = {
        let spec = bench.a.spec();
        bench.try_enrol(spec).unwrap()
    };
    bench.clerk().serve(Arc::clone(&enrolled.sockets));
    // What is left of it, the copies by which it is watched, listens still: no look sees anything.
    drop(enrolled);
    let report = bench.capture().reconcile();
    assert!(report.listeners.is_empty());
    let uid = bench.a.name.clone();
    bench.capture().lose_listeners(&uid);
    let report = bench.capture().reconcile_some();
    serve_new(&mut bench, report);
    // One that is let go takes nothing more.
    bench.capture().let_pass(&uid).unwrap();
    bench.capture().lose_listeners(&uid);
    assert!(bench.capture().reconcile().listeners.is_empty());
    let hbone = at(bench.a.v4, 15008);
    let greeting = bench.b.run(|| call(hbone)).unwrap().greeting;
    assert_eq!(greeting.from, "hbone", "who has not heard yet");
}

#[test]
fn listeners_that_something_else_has_opened_are_handed_over_by_the_next_look() {
    let mut bench = Bench::new();
    let enrolled = {
        let spec = bench.a.spec();
        bench.try_enrol(spec).unwrap()
    };
    bench.clerk().serve(Arc::clone(&enrolled.sockets));
    drop(enrolled);
    let uid = bench.a.name.clone();
    bench.capture().lose_listeners(&uid);
    bench.capture().pods.get_mut(&uid).unwrap().guarded = false;
    assert!(bench.capture().guard().is_empty());
    let report = bench.capture().reconcile_some();
    assert!(report.repairs.is_empty(), "{:?}", report.repairs);
    serve_new(&mut bench, report);
    assert!(bench.capture().reconcile().listeners.is_empty());
}

#[test]
fn late_device_and_address_are_taken_in() {
    let mut bench = Bench::new();
    bench.enrol_a();
    bench.a.ip("link add late type veth peer name late-peer");
    bench.a.ip("addr add 10.99.0.1/24 dev late");
    let kinds = kinds(bench.capture().reconcile());
    assert_eq!(kinds, ["tcx", "tcx", "tcx", "tcx", "address"]);
    let _app = bench.a.serve(8080);
    let own = at(Ipv4Addr::new(10, 99, 0, 1), 8080);
    assert_eq!(bench.a.run(|| call(own)).unwrap().greeting.from, "app");
    bench.a.ip("link del late");
    let kinds = kinds_of(&mut bench);
    assert_eq!(kinds, ["tcx", "tcx", "address"]);
}

#[test]
fn a_change_is_repaired_although_it_is_another_pods_turn() {
    let mut bench = Bench::new();
    bench.enrol_a();
    bench.enrol_b();
    assert_eq!(kinds_of(&mut bench), [""; 0]);
    let a = bench.a.name.clone();
    // Its own change is all that makes it due.
    let repair = |bench: &mut Bench| {
        let report = bench
            .capture()
            .reconcile_those(|_, pod| pod.pod.uid == a && pod.has_changed());
        kinds(report)
    };
    assert_eq!(repair(&mut bench), [""; 0]);
    bench.a.ip("rule del priority 10");
    assert_eq!(repair(&mut bench), ["rule"]);
    // The repair is a change as well: looked at once more, and then no more.
    assert_eq!(repair(&mut bench), [""; 0]);
    let armed = bench.capture().pods.get_mut(&a).unwrap();
    assert!(!armed.has_changed());
}

#[test]
fn a_change_in_a_pod_is_heard_once() {
    let bench = Bench::new();
    let mut changes = bench.a.run(|| Changes::open().unwrap());
    assert!(!changes.any().unwrap());
    for change in [
        "link set lo mtu 4000",
        "addr add 10.99.0.1/24 dev lo",
        "rule add priority 99 table 99",
        "-6 rule add priority 99 table 99",
        "route add 10.98.0.0/24 dev lo",
        "-6 route add fd98::/64 dev lo",
    ] {
        bench.a.ip(change);
        assert!(changes.any().unwrap(), "{change}");
        assert!(!changes.any().unwrap(), "{change}");
    }
}

fn kinds_of(bench: &mut Bench) -> Vec<&'static str> {
    kinds(bench.capture().reconcile())
}

#[test]
fn pin_directory_of_a_run_directory_never_changes() {
    assert_eq!(
        pins::directory("/run/culvert".as_ref()),
        "culvert-cb3e688a59cb2dd3"
    );
}

#[test]
fn nothing_gets_past_a_restart() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let _inside = bench.a.serve(8080);
    let _outside = bench.b.serve(8080);
    let (inside, outside) = (at(bench.a.v4, 8080), at(bench.b.v4, 8080));
    let stop = AtomicBool::new(false);
    let paths = [bench.a.path(), bench.b.path()];
    let [outbound, inbound] = thread::scope(|scope| {
        let callers = [(&paths[0], outside), (&paths[1], inside)].map(|(path, to)| {
            let stop = &stop;
            scope.spawn(move || {
                Netns::open(path)
                    .unwrap()
                    .run(|| call_until(stop, to))
                    .unwrap()
            })
        });
        for _ in 0..5 {
            bench.kill_agent();
            bench.load();
            bench.enrol_a();
        }
        stop.store(true, Ordering::Relaxed);
        callers.map(|caller| caller.join().unwrap())
    });
    assert_eq!(
        outbound.keys().copied().collect::<Vec<_>>(),
        ["outbound"],
        "{outbound:?}"
    );
    assert_eq!(
        inbound.keys().copied().collect::<Vec<_>>(),
        ["inbound"],
        "{inbound:?}"
    );
}

/// Calls again and again; returns who answered how often. Refused calls count for nobody.
fn call_until(stop: &AtomicBool, to: SocketAddr) -> BTreeMap<&'static str, usize> {
    let mut answers = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok(call) = call(to) else { continue };
        let from = ["app", "inbound", "outbound", "hbone"];
        let from = from
            .into_iter()
            .find(|from| *from == call.greeting.from)
            .unwrap();
        *answers.entry(from).or_default() += 1;
    }
    answers
}

#[test]
fn pod_without_v6_is_captured_and_leaks_nothing() {
    let mut bench = Bench::new();
    for device in ["all", "default", "lo"] {
        let path = format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6");
        bench.a.run(|| fs::write(path, "1")).unwrap();
    }
    let spec = Pod {
        addresses: vec![bench.a.v4.into()],
        ..bench.a.spec()
    };
    bench.enrol(spec);
    let answered = bench.a.run(|| call(at(FOREIGN, 443))).unwrap();
    assert_eq!(answered.greeting.from, "outbound");
    let v6 = at(bench.b.v6, 8080);
    let _app = bench.b.serve(8080);
    assert!(bench.a.run(|| call(v6)).is_err());
    assert_eq!(kinds_of(&mut bench), Vec::<&str>::new());
}

#[test]
fn connections_of_a_family_that_was_not_announced_do_not_leak() {
    let mut bench = Bench::new();
    let spec = Pod {
        addresses: vec![bench.a.v6.into()],
        ..bench.a.spec()
    };
    bench.enrol(spec);
    let _app = bench.b.serve(8080);
    let v4 = at(bench.b.v4, 8080);
    let unreachable = bench.a.run(|| call(v4)).unwrap_err();
    assert_eq!(
        unreachable.kind(),
        std::io::ErrorKind::NetworkUnreachable,
        "{unreachable}"
    );
}

#[test]
fn kernel_without_set_retval_gets_programs_without_it() {
    let oldest = Variant {
        has_set_retval: false,
        has_tcx: false,
        tcp: None,
    };
    let mut programs = Loader::new().unwrap().load(oldest, None).unwrap();
    for (name, _) in CGROUP_HOOKS {
        programs.load(name).unwrap();
    }
}

#[test]
fn maps_of_another_version_are_refused_by_name() {
    let mut bench = Bench::new();
    let maps = bench.capture().shared.map_pins();
    let (pods, control) = (maps.join("PODS"), maps.join("CONTROL"));
    let other = sys::open_pin(&control).unwrap();
    fs::remove_file(&pods).unwrap();
    sys::pin(other.as_fd(), &pods).unwrap();
    let settings = bench.settings.clone();
    let error = bench.node.run(|| Capture::load(&settings)).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(
        cause,
        "the pinned map PODS was made by an incompatible version: run `culvert uninstall` of that version first"
    );
    fs::remove_file(&pods).unwrap();
}
