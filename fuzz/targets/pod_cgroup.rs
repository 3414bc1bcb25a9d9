//! What the kernel says of a process's cgroups, in which containers may have named any: a pod's UID or nothing, and what is
//! below a pod's cgroup changes neither.

#![no_main]

use agent::discovery::pod_of;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let found = pod_of(text);
    if let Some(uid) = &found {
        assert!(matches!(uid.len(), 32 | 36), "{uid:?}");
        assert!(uid.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-')), "{uid:?}");
    }
    // Only paths of one line: what a pod names below its own cgroup.
    let mut lines = text.lines();
    if let (Some(line), None, Some(uid)) = (lines.next(), lines.next(), found) {
        let below = format!("{line}/kubepods/pod00000000-0000-0000-0000-000000000000/c");
        assert_eq!(pod_of(&below), Some(uid));
    }
});
