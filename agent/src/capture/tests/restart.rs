//! What an agent finds of an earlier one, and of one beside it.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::symlink,
    path::Path,
    sync::Arc,
};

use culvert_ebpf::HBONE_PORT;

use super::bench::{Bench, at, call};

const FOREIGN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

/// The pods of an earlier agent that this one releases.
fn released(bench: &mut Bench) -> Vec<String> {
    let (released, failures) = bench.capture().release_unclaimed(|_| false).unwrap();
    assert!(failures.is_empty(), "{failures:?}");
    released
}

#[test]
fn restarted_agent_takes_over_what_it_finds() {
    let mut bench = Bench::new();
    bench.enrol_a();
    bench.enrol_b();
    bench.kill_agent();
    bench.load();
    // Closed until the new agent has enrolled the pod again.
    let refused = bench.a.run(|| call(at(FOREIGN, 443))).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    bench.enrol_a();
    let answered = bench.a.run(|| call(at(FOREIGN, 443))).unwrap();
    assert_eq!(answered.greeting.from, "outbound");
    let forgotten = bench.b.name.clone();
    assert_eq!(released(&mut bench), [forgotten]);
    assert_eq!(released(&mut bench), [""; 0]);
    let _app = bench.node.serve(8080);
    let to = at(bench.node.v4, 8080);
    assert_eq!(bench.b.run(|| call(to)).unwrap().greeting.from, "app");
}

#[test]
fn agent_that_did_not_count_openings_is_taken_over() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let maps = bench.capture().shared.map_pins();
    bench.kill_agent();
    for missing in ["OPENINGS", "OPENINGS_ALL"] {
        fs::remove_file(maps.join(missing)).unwrap();
    }
    bench.load();
    let maps = Arc::clone(&bench.capture().shared.maps);
    let cookie = bench.a.netns.cookie();
    assert_eq!(maps.opening_count(cookie).unwrap(), None);
    bench.enrol_a();
    assert_eq!(maps.opening_count(cookie).unwrap(), Some(0));
    let answered = bench.a.run(|| call(at(FOREIGN, 443))).unwrap();
    assert_eq!(answered.greeting.from, "outbound");
    assert_eq!(bench.openings(), 0);
}

#[test]
fn pod_whose_namespace_is_gone_is_forgotten() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let cookie = bench.a.netns.cookie();
    bench.kill_agent();
    let record = bench
        .settings
        .run_dir
        .join("capture")
        .join(format!("{cookie}.json"));
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, text.replace("/run/netns/", "/run/netns/gone-")).unwrap();
    bench.load();
    assert_eq!(released(&mut bench), [bench.a.name.clone()]);
    assert_eq!(bench.capture().shared.maps.pod(cookie).unwrap(), None);
    assert!(!bench.capture().shared.pod_pins(cookie).exists());
}

#[test]
fn pod_whose_namespace_cannot_be_looked_at_is_not_forgotten() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let cookie = bench.a.netns.cookie();
    bench.kill_agent();
    let records = bench.settings.run_dir.join("capture");
    let record = records.join(format!("{cookie}.json"));
    let before = fs::read_to_string(&record).unwrap();
    let [empty, endless] = ["empty", "endless"].map(|name| bench.settings.run_dir.join(name));
    fs::write(&empty, "").unwrap();
    symlink(&endless, &endless).unwrap();
    let path_before = bench.a.path().display().to_string();
    let instead = |path: &Path| {
        let text = before.replace(&path_before, path.to_str().unwrap());
        fs::write(&record, text).unwrap();
    };
    instead(&endless);
    bench.load();
    for _ in 0..2 {
        let (released, failures) = bench.capture().release_unclaimed(|_| false).unwrap();
        assert_eq!(released, [""; 0]);
        let told = failures.iter().map(ToString::to_string);
        let expected = format!("cannot remove capture of pod {}", bench.a.name);
        assert_eq!(told.collect::<Vec<_>>(), [expected]);
    }
    assert!(bench.capture().shared.maps.pod(cookie).unwrap().is_some());
    // What a runtime mounts a namespace on, and leaves behind.
    instead(&empty);
    assert_eq!(released(&mut bench), [bench.a.name.clone()]);
    assert_eq!(bench.capture().shared.maps.pod(cookie).unwrap(), None);
}

#[test]
fn damaged_record_hinders_nobody() {
    let mut bench = Bench::new();
    bench.enrol_a();
    bench.kill_agent();
    let records = bench.settings.run_dir.join("capture");
    fs::write(records.join("7.json"), "{").unwrap();
    bench.load();
    assert_eq!(released(&mut bench), [bench.a.name.clone()]);
}

#[test]
fn pod_that_takes_a_port_of_the_agent_stays_closed() {
    let mut bench = Bench::new();
    bench.enrol_a();
    let to = at(bench.node.v4, 8080);
    let _app = bench.node.serve(8080);
    bench.kill_agent();
    let hbone = (Ipv4Addr::UNSPECIFIED, HBONE_PORT);
    let squatter = bench.a.run(|| TcpListener::bind(hbone)).unwrap();
    bench.load();
    let spec = bench.a.spec();
    let error = bench.try_enrol(spec).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot put the listener in place of pod {}", bench.a.name)
    );
    let refused = bench.a.run(|| call(to)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    drop(squatter);
    bench.enrol_a();
    let greeting = bench.a.run(|| call(to)).unwrap().greeting;
    assert_eq!(greeting.from, "outbound");
}

#[test]
fn two_agents_side_by_side_leave_each_others_pods_alone() {
    let (mut one, mut other) = (Bench::new(), Bench::new());
    one.enrol_a();
    let other_call = other.a.run(|| call(at(FOREIGN, 443)));
    assert!(other_call.is_err(), "{other_call:?}");
    other.enrol_a();
    for bench in [&one, &other] {
        let call = bench.a.run(|| call(at(FOREIGN, 443))).unwrap();
        assert_eq!(call.greeting.from, "outbound");
    }
    assert_ne!(one.capture().shared.pins, other.capture().shared.pins);
    drop(one);
    let call = other.a.run(|| call(at(FOREIGN, 443))).unwrap();
    assert_eq!(call.greeting.from, "outbound");
}
