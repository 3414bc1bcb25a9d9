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

/// The programs' view of an agent that is well now. What is held for it since an earlier one ended stays so until its pods
/// are enrolled.
pub(super) fn first(settings: &Settings, earlier: Option<Control>) -> io::Result<Control> {
    let (pods_cgroup, pods_cgroup_level) = match &settings.pods_cgroup {
        Some(path) => cgroup_id_and_level(path, settings.cgroup.as_deref())?,
        None => (0, 0),
    };
    Ok(Control {
        beat_ns: monotonic_ns()?,
        lease_ns: u64::try_from(settings.heartbeat_lease.as_nanos()).unwrap_or(u64::MAX),
        node_netns_cookie: netns::current_cookie()?,
        pods_cgroup,
        pods_cgroup_level,
        rings: 0,
        awaited_until_ns: earlier.map_or(0, |control| control.awaited_until_ns),
    })
}

/// A cgroup's id is the inode number of its directory (cgroup v2 on kernfs); its level is counted from
/// the root of the hierarchy, which is 0.
fn cgroup_id_and_level(path: &Path, within: Option<&Path>) -> io::Result<(u64, u32)> {
    let path = path.canonicalize()?;
    let root = find_cgroup2(within)?.canonicalize()?;
    let below = path.strip_prefix(&root).map_err(|_outside| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "the pods' cgroup is not in the cgroup2 hierarchy",
        )
    })?;
    let level = u32::try_from(below.components().count()).map_err(io::Error::other)?;
    Ok((fs::metadata(&path)?.ino(), level))
}

/// The mount point of the cgroup2 hierarchy, at or below `within` if that is given: a container sees its own part of the
/// hierarchy, too. It is found by its type: on hybrid systems it is not at the usual place.
pub(super) fn find_cgroup2(within: Option<&Path>) -> io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut fields = mounts.lines().map(|line| line.split(' '));
    let found = fields.find_map(|mut fields| {
        let (_device, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        let path = Path::new(path);
        let is_within = within.is_none_or(|within| path.starts_with(within));
        (kind == "cgroup2" && is_within).then(|| path.to_owned())
    });
    found
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no cgroup2 file system is mounted"))
}

/// How deep the kubelet's cgroup is looked for: `--cgroup-root` puts it one below the top.
const KUBEPODS_DEPTH: usize = 2;

/// The cgroup that the kubelet puts all pods of the node into; `None` if there is none.
pub(crate) fn find_kubepods(within: Option<&Path>) -> Option<PathBuf> {
    below(&find_cgroup2(within).ok()?, KUBEPODS_DEPTH)
}

fn below(directory: &Path, depth: usize) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).ok()?;
    let mut directories: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    directories.sort();
    let is_kubepods = |path: &&PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| {
            matches!(name, "kubepods" | "kubepods.slice") || name.ends_with("-kubepods.slice")
        })
    };
    let found = directories.iter().find(is_kubepods).cloned();
    found.or_else(|| {
        let deeper = depth.checked_sub(1).filter(|depth| *depth > 0)?;
        directories.iter().find_map(|path| below(path, deeper))
    })
}

pub(super) fn monotonic_ns() -> io::Result<u64> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    u64::try_from(now.as_nanos()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{KUBEPODS_DEPTH, below};

    #[test]
    fn the_kubelets_cgroup_is_found_where_drivers_and_roots_put_it() {
        for (path, expected) in [
            (
                "kubepods.slice/kubepods-burstable.slice",
                Some("kubepods.slice"),
            ),
            ("kubepods/besteffort", Some("kubepods")),
            (
                "kubelet.slice/kubelet-kubepods.slice/x",
                Some("kubelet.slice/kubelet-kubepods.slice"),
            ),
            ("kubelet/kubepods", Some("kubelet/kubepods")),
            ("system.slice/a/kubepods", None),
            ("user.slice", None),
        ] {
            let name = path.replace('/', "-");
            let root = std::env::temp_dir().join(format!("cvcap{}-{name}", std::process::id()));
            fs::create_dir_all(root.join(path)).unwrap();
            let found = below(&root, KUBEPODS_DEPTH);
            fs::remove_dir_all(&root).unwrap();
            assert_eq!(found, expected.map(|path| root.join(path)), "{path}");
        }
    }
}
