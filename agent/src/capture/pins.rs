//! Where capture leaves what outlives the agent: names in bpffs, and records of enrolled pods.
//!
//! Pins are under `/sys/fs/bpf`, not under the run directory: that is where a node's bpffs is, a
//! container only needs it as a plain host path, and a bpffs that an agent mounted for itself would
//! vanish with the container's mount namespace and with it all capture. The directory's name derives
//! from the run directory, so that agents side by side keep apart and a restarted one finds its own.

use std::{
    fs,
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use serde::{Deserialize, Serialize};
use tracing::warn;

const BPFFS: &str = "/sys/fs/bpf";

/// The directory for an agent's pins, made if missing, on a bpffs, mounted if missing.
pub(super) fn prepare(run_dir: &Path) -> io::Result<PathBuf> {
    if statfs(BPFFS)?.filesystem_type() != BPF_FS_MAGIC {
        mount(
            Some("bpf"),
            BPFFS,
            Some("bpf"),
            MsFlags::empty(),
            Some("mode=0700"),
        )?;
    }
    fs::create_dir_all(run_dir)?;
    let run_dir = run_dir.canonicalize()?;
    let pins = Path::new(BPFFS).join(directory(&run_dir));
    lay_out(&pins)?;
    Ok(pins)
}

/// Makes the directories below an agent's, where they are missing.
pub(super) fn lay_out(pins: &Path) -> io::Result<()> {
    ["maps", "hooks", "pods"]
        .iter()
        .try_for_each(|part| fs::create_dir_all(pins.join(part)))
}

/// The name of the directory for the pins of an agent.
pub(super) fn directory(run_dir: &Path) -> String {
    format!("culvert-{:016x}", fnv1a(run_dir.as_os_str().as_bytes()))
}

/// Removes an agent's directory with everything in it, which lets the kernel free the maps.
pub(super) fn remove(pins: &Path) -> io::Result<()> {
    fs::remove_dir_all(pins)
}

/// FNV-1a with 64 bits: the name has to be the same for every future version of this program, which
/// the standard library does not promise of its hashes.
fn fnv1a(bytes: &[u8]) -> u64 {
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix)
}

/// A pod that is captured: what a later agent needs to know to let it go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) uid: String,
    pub(super) netns: PathBuf,
    pub(super) cookie: u64,
}

/// The records of one agent, one file per pod in the run directory.
#[derive(Debug)]
pub(super) struct Records {
    directory: PathBuf,
}

impl Records {
    pub(super) fn open(run_dir: &Path) -> io::Result<Self> {
        let directory = run_dir.join("capture");
        fs::create_dir_all(&directory)?;
        Ok(Self { directory })
    }

    /// Writes a record, whole or not at all.
    pub(super) fn write(&self, record: &Record) -> io::Result<()> {
        let path = self.path(record.cookie);
        let unfinished = path.with_extension("new");
        let mut file = fs::File::create(&unfinished)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        fs::rename(unfinished, path)
    }

    /// Removes a record; it is no error if there is none.
    pub(super) fn remove(&self, cookie: u64) -> io::Result<()> {
        match fs::remove_file(self.path(cookie)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// All records. One that cannot be read any more is passed over: its pod's is written anew when the pod is enrolled.
    pub(super) fn all(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                match serde_json::from_slice(&fs::read(&path)?) {
                    Ok(record) => records.push(record),
                    Err(error) => {
                        warn!(path = %path.display(), %error, "the record of a captured pod is damaged");
                    }
                }
            }
        }
        Ok(records)
    }

    pub(super) fn remove_all(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.directory)
    }

    fn path(&self, cookie: u64) -> PathBuf {
        self.directory.join(format!("{cookie}.json"))
    }
}
