//! Which pod a process belongs to, by the cgroup that the kubelet has put it into.
//!
//! The kubelet names a pod's cgroup after the pod's UID, in one of two spellings (`pkg/kubelet/cm` of Kubernetes):
//!
//! ```text
//!  cgroupfs   /kubepods/burstable/pod<UID>/<container>
//!  systemd    /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<UID, `_` for `-`>.slice/cri-containerd-<container>.scope
//! ```
//!
//! Pods of the guaranteed class have no class in their path; `--cgroup-root` puts the whole below another directory and,
//! with systemd, its name before `kubepods`. What is below a pod's cgroup may be named by the pod, so the topmost
//! match counts.

/// The UID of the pod in whose cgroup a process is: `text` is `/proc/PID/cgroup`. `None` for a process of no pod, and for
/// one whose hierarchies disagree.
pub fn pod_of(text: &str) -> Option<String> {
    let mut found = None;
    for line in text.lines() {
        // `hierarchy:controllers:path`; the path may hold colons.
        let Some(uid) = line.splitn(3, ':').nth(2).and_then(pod_of_path) else {
            continue;
        };
        match &found {
            None => found = Some(uid),
            Some(other) if *other == uid => {}
            Some(_) => return None,
        }
    }
    found
}

/// Of the last three components of a path, from the root on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Above {
    Other,
    Kubepods,
    Class,
}

fn pod_of_path(path: &str) -> Option<String> {
    let mut above = Above::Other;
    // containerd without its own half of the systemd driver leaves `<slice>:cri-containerd:<container>` as one name.
    for part in path.split(['/', ':']) {
        if let Some(uid) = systemd_pod(part) {
            return Some(uid);
        }
        let own = part.strip_prefix("pod").and_then(read_uid);
        if let (Some(uid), Above::Kubepods | Above::Class) = (own, above) {
            return Some(uid);
        }
        above = match (part, above) {
            ("kubepods", _) => Above::Kubepods,
            ("burstable" | "besteffort", Above::Kubepods) => Above::Class,
            _ => Above::Other,
        };
    }
    None
}

/// `[<root>-]kubepods[-burstable|-besteffort]-pod<UID>.slice`.
fn systemd_pod(part: &str) -> Option<String> {
    let name = part.strip_suffix(".slice")?;
    let (before, uid) = name.rsplit_once("-pod")?;
    let before = before
        .strip_suffix("-burstable")
        .or_else(|| before.strip_suffix("-besteffort"))
        .unwrap_or(before);
    if before != "kubepods" && !before.ends_with("-kubepods") {
        return None;
    }
    // systemd takes `-` for a level of slices.
    if uid.contains('-') {
        return None;
    }
    read_uid(&uid.replace('_', "-"))
}

/// A UID as an API server makes them, or the hash that the kubelet gives to pods of its own files.
fn read_uid(text: &str) -> Option<String> {
    let is_hex = |part: &str, length: usize| {
        part.len() == length
            && part
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_hash = is_hex(text, 32);
    let mut parts = text.split('-');
    let is_uuid = [8, 4, 4, 4, 12]
        .into_iter()
        .all(|length| parts.next().is_some_and(|part| is_hex(part, length)))
        && parts.next().is_none();
    (is_hash || is_uuid).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::pod_of;

    const UID: &str = "5a2a1b3c-0f6d-4e8b-9c7a-112233445566";
    const SLICE: &str = "pod5a2a1b3c_0f6d_4e8b_9c7a_112233445566.slice";
    const HASH: &str = "0123456789abcdef0123456789abcdef";

    #[track_caller]
    fn belongs(text: &str, expected: Option<&str>) {
        assert_eq!(pod_of(text).as_deref(), expected, "{text}");
    }

    #[test]
    fn both_spellings_of_every_class() {
        for path in [
            format!("0::/kubepods/pod{UID}/0123"),
            format!("0::/kubepods/burstable/pod{UID}/0123"),
            format!("0::/kubepods/besteffort/pod{UID}/crio-0123"),
            format!("0::/kubepods/besteffort/pod{UID}"),
            format!("0::/kubepods.slice/kubepods-{SLICE}/cri-containerd-0123.scope"),
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-{SLICE}/crio-0123.scope"
            ),
            format!(
                "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-{SLICE}/docker-0123.scope"
            ),
        ] {
            belongs(&path, Some(UID));
        }
        belongs(&format!("0::/kubepods/pod{HASH}/0123"), Some(HASH));
    }

    #[test]
    fn wherever_the_root_is() {
        for path in [
            // --cgroup-root=/kubelet, as kind has it, from the node's own point of view and from the host's.
            format!("0::/kubelet/kubepods/burstable/pod{UID}/0123"),
            format!(
                "0::/docker/77aa/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-{SLICE}/cri-containerd-0123.scope"
            ),
            // Out of the agent's own cgroup namespace.
            format!(
                "0::/../../kubepods-besteffort.slice/kubepods-besteffort-{SLICE}/cri-containerd-0123.scope"
            ),
            format!("0::/../kubepods-besteffort-{SLICE}/cri-containerd-0123.scope"),
            // containerd with one half of the systemd driver.
            format!(
                "0::/system.slice/containerd.service/kubepods-burstable-{SLICE}:cri-containerd:0123"
            ),
        ] {
            belongs(&path, Some(UID));
        }
    }

    #[test]
    fn hierarchies_agree_or_say_nothing() {
        let other = "6a2a1b3c-0f6d-4e8b-9c7a-112233445566";
        belongs(
            &format!(
                "12:memory:/kubepods/pod{UID}/c\n3:cpu,cpuacct:/kubepods/pod{UID}/c\n1:name=systemd:/\n0::/\n"
            ),
            Some(UID),
        );
        belongs(
            &format!("12:memory:/kubepods/pod{UID}/c\n0::/kubepods/pod{other}/c\n"),
            None,
        );
    }

    #[test]
    fn what_a_pod_names_below_its_own_cgroup_changes_nothing() {
        let other = "6a2a1b3c-0f6d-4e8b-9c7a-112233445566";
        let forged = "kubepods-pod6a2a1b3c_0f6d_4e8b_9c7a_112233445566.slice";
        belongs(
            &format!("0::/kubepods/pod{UID}/c/kubepods/pod{other}/c"),
            Some(UID),
        );
        belongs(
            &format!("0::/kubepods.slice/kubepods-{SLICE}/c.scope/{forged}/c.scope"),
            Some(UID),
        );
    }

    #[test]
    fn processes_of_no_pod() {
        for text in [
            "",
            "0::/",
            "0::/system.slice/kubelet.service",
            "0::/kubepods.slice",
            "0::/kubepods/burstable",
            "0::/kubepods/podx/c",
            // No kubepods above it.
            "0::/user.slice/pod5a2a1b3c-0f6d-4e8b-9c7a-112233445566",
            "0::/burstable/pod5a2a1b3c-0f6d-4e8b-9c7a-112233445566",
            // The spelling of the other driver.
            "0::/kubepods/pod5a2a1b3c_0f6d_4e8b_9c7a_112233445566",
            "0::/kubepods.slice/kubepods-pod5a2a1b3c-0f6d-4e8b-9c7a-112233445566.slice",
            // Not hexadecimal, too short, too long.
            "0::/kubepods/pod5a2a1b3g-0f6d-4e8b-9c7a-112233445566/c",
            "0::/kubepods/pod5a2a1b3c-0f6d-4e8b-9c7a-11223344556/c",
            "0::/kubepods/pod5a2a1b3c-0f6d-4e8b-9c7a-112233445566-7/c",
            "no line of three parts",
        ] {
            belongs(text, None);
        }
    }
}
