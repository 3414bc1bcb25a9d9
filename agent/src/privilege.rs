//! The capabilities that a running agent keeps, each with its reason. Everything else is dropped before the
//! first thread starts, from the bounding set too, so that nothing started later can have it back.

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};

/// What the agent needs for as long as it runs, and why. The README lists the same.
pub const KEPT: [(Capability, &str); 5] = [
    (
        Capability::CAP_BPF,
        "load a pod's sk_lookup program when the pod appears, read and write the capture maps",
    ),
    (
        Capability::CAP_NET_ADMIN,
        "attach programs, keep the capture rule and routes in pod namespaces, open transparent listeners",
    ),
    (
        Capability::CAP_NET_RAW,
        "answer held connections inside pods: let the SYN through, or refuse it as the destination did",
    ),
    (
        Capability::CAP_SYS_ADMIN,
        "enter pod network namespaces (setns), attach to the root cgroup, repair a lost bpffs mount",
    ),
    (
        Capability::CAP_PERFMON,
        "load programs that compute with socket addresses (the verifier asks for it)",
    ),
];

/// What it needs besides where it finds pods by their processes.
pub const KEPT_IN_CLUSTERS: (Capability, &str) = (
    Capability::CAP_SYS_PTRACE,
    "open the network namespaces of processes of pods that run already (in a cluster only)",
);

fn kept(in_cluster: bool) -> impl Iterator<Item = (Capability, &'static str)> {
    KEPT.into_iter()
        .chain(in_cluster.then_some(KEPT_IN_CLUSTERS))
}

/// The names of those of [`KEPT`] that this process cannot use now.
///
/// # Errors
/// The kernel does not say.
pub(crate) fn lacking() -> Result<Vec<String>, CapsError> {
    let usable = caps::read(None, CapSet::Effective)?;
    let kept = KEPT.iter().map(|(capability, _)| capability);
    let lacking = kept.filter(|capability| !usable.contains(capability));
    Ok(lacking.map(ToString::to_string).collect())
}

/// The names of the capabilities that this process holds, in order. None if the kernel does not say.
pub(crate) fn held() -> Vec<String> {
    let held = caps::read(None, CapSet::Permitted).unwrap_or_default();
    let mut names: Vec<_> = held.iter().map(ToString::to_string).collect();
    names.sort();
    names
}

/// Drops every capability but [`KEPT`] and, in a cluster, [`KEPT_IN_CLUSTERS`], for this thread and all that it will
/// start.
///
/// # Errors
/// A kept capability is missing to begin with, or the kernel refused the change.
pub fn drop_to_kept(in_cluster: bool) -> anyhow::Result<()> {
    let capabilities: CapsHashSet = kept(in_cluster).map(|(capability, _)| capability).collect();
    let permitted = caps::read(None, CapSet::Permitted)?;
    if let Some((missing, why)) = kept(in_cluster).find(|(one, _)| !permitted.contains(one)) {
        anyhow::bail!(
            "the agent needs {missing} to {why}: run it as root, or grant that capability"
        );
    }
    // The bounding set needs CAP_SETPCAP, so it goes first.
    for capability in caps::read(None, CapSet::Bounding)?.difference(&capabilities) {
        caps::drop(None, CapSet::Bounding, *capability)?;
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &capabilities)?;
    caps::set(None, CapSet::Permitted, &capabilities)?;
    // A core dump would hold private keys.
    nix::sys::prctl::set_dumpable(false)?;
    nix::sys::prctl::set_no_new_privs()?;
    Ok(())
}
