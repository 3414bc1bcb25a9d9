//! What the programs are told of the agent: its heartbeat, the node's namespace, the pods' cgroup.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use culvert_ebpf::Control;
use nix::time::{ClockId, clock_gettime};

use super::{Settings, netns};

/// The programs' view of an agent that is well now.
pub(super) fn first(settings: &Settings) -> io::Result<Control> {
    let (pods_cgroup, pods_cgroup_level) = match &settings.pods_cgroup {
        Some(path) => cgroup_id_and_level(path)?,
        None => (0, 0),
    };
    Ok(Control {
        beat_ns: monotonic_ns()?,
        lease_ns: u64::try_from(settings.heartbeat_lease.as_nanos()).unwrap_or(u64::MAX),
        node_netns_cookie: netns::current_cookie()?,
        pods_cgroup,
        pods_cgroup_level,
        rings: 0,
    })
}

/// A cgroup's id is the inode number of its directory (cgroup v2 on kernfs); its level is counted from
/// the root of the hierarchy, which is 0.
pub(super) fn cgroup_id_and_level(path: &Path) -> io::Result<(u64, u32)> {
    let path = path.canonicalize()?;
    let root = find_cgroup2()?.canonicalize()?;
    let below = path.strip_prefix(&root).map_err(|_outside| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "the pods' cgroup is not in the cgroup2 hierarchy",
        )
    })?;
    let level = u32::try_from(below.components().count()).map_err(io::Error::other)?;
    Ok((fs::metadata(&path)?.ino(), level))
}

/// The mount point of the cgroup2 hierarchy. It is found by its type: on hybrid systems it is not at
/// the usual place.
pub(super) fn find_cgroup2() -> io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut fields = mounts.lines().map(|line| line.split(' '));
    let found = fields.find_map(|mut fields| {
        let (_device, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    });
    found
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no cgroup2 file system is mounted"))
}

pub(super) fn monotonic_ns() -> io::Result<u64> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    u64::try_from(now.as_nanos()).map_err(io::Error::other)
}
