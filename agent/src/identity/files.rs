//! The CA's files, under the names of Istio's `cacerts` secret. They are read as they are, or created together
//! once, whoever comes first.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

/// The signing certificate.
pub const CERTIFICATE: &str = "ca-cert.pem";
/// Its key.
pub const KEY: &str = "ca-key.pem";
/// The roots that workloads trust: one, or a bundle during a rotation.
pub const ROOTS: &str = "root-cert.pem";
/// The certificates between a workload's and the root. Istio lets it be absent.
pub const CHAIN: &str = "cert-chain.pem";

/// Where a complete set waits while its files are moved into place.
const STAGE: &str = ".culvert-new";
/// Held while the set is created.
const LOCK: &str = ".culvert-lock";

/// Contents of a CA directory, in PEM. Holds the key: no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct CaFiles {
    /// The signing certificate.
    pub certificate: Vec<u8>,
    /// Its key.
    pub key: Vec<u8>,
    /// The roots that workloads trust.
    pub roots: Vec<u8>,
    /// What is between a workload's certificate and a root. Empty if the file is absent.
    pub chain: Vec<u8>,
}

/// The CA directory cannot be used as it is.
#[derive(Debug, thiserror::Error)]
pub enum CaFilesError {
    /// Only a part of the set is there: not ours to complete.
    #[error(
        "{} holds {present} but not {missing}: add what is missing, or empty the directory to have a new CA made",
        directory.display()
    )]
    Incomplete {
        /// The CA directory.
        directory: PathBuf,
        /// Names of the files that are there.
        present: String,
        /// Names of the files that are not.
        missing: String,
    },
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// A file or directory cannot be made.
    #[error("cannot create {}: let the agent write there, or put the CA's files there yourself", path.display())]
    Create {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

/// What is in `directory`; `None` if there is no file of the set.
///
/// # Errors
/// [`CaFilesError::Incomplete`] and [`CaFilesError::Read`].
pub(super) fn read(directory: &Path) -> Result<Option<CaFiles>, CaFilesError> {
    let file = |name: &str| read_file(&directory.join(name));
    // In this order: the certificate is the last to appear, so whoever sees it sees the others.
    let (certificate, key, roots, chain) =
        (file(CERTIFICATE)?, file(KEY)?, file(ROOTS)?, file(CHAIN)?);
    match (certificate, key, roots, chain) {
        (None, None, None, None) => Ok(None),
        (Some(certificate), Some(key), Some(roots), chain) => Ok(Some(CaFiles {
            certificate,
            key,
            roots,
            chain: chain.unwrap_or_default(),
        })),
        (certificate, key, roots, chain) => {
            let names = |wanted: bool| {
                let set = [
                    (CERTIFICATE, certificate.is_some()),
                    (KEY, key.is_some()),
                    (ROOTS, roots.is_some()),
                    // An absent chain is nothing missing.
                    (CHAIN, chain.is_some() && wanted),
                ];
                let names = set
                    .iter()
                    .filter(|(name, is_there)| *is_there == wanted && (wanted || *name != CHAIN));
                names
                    .map(|(name, _)| *name)
                    .collect::<Vec<_>>()
                    .join(" and ")
            };
            Err(CaFilesError::Incomplete {
                directory: directory.to_owned(),
                present: names(true),
                missing: names(false),
            })
        }
    }
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>, CaFilesError> {
    match fs::read(path) {
        Ok(contents) => Ok(Some(contents)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CaFilesError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// What is in `directory`, made by `make` if there is nothing. However many agents start at once, one set is
/// made and all of them get it; a crash in between leaves nothing or a set that the next one completes.
///
/// # Errors
/// [`CaFilesError`], or that of `make`.
pub(super) fn read_or_create<E: From<CaFilesError>>(
    directory: &Path,
    make: impl FnOnce() -> Result<CaFiles, E>,
) -> Result<CaFiles, E> {
    let found = read(directory);
    if let Ok(Some(files)) = found {
        return Ok(files);
    }
    let _lock = match (lock(directory), found) {
        (Ok(lock), _) => lock,
        // A mounted secret that is only half there: say that, not that it is read-only.
        (Err(_), Err(incomplete)) => return Err(incomplete.into()),
        (Err(error), Ok(_)) => return Err(error.into()),
    };
    // Another agent may have been faster, or have died between two moves.
    move_into_place(directory)?;
    if let Some(files) = read(directory)? {
        return Ok(files);
    }
    let files = make()?;
    stage(directory, &files)?;
    move_into_place(directory)?;
    Ok(files)
}

fn lock(directory: &Path) -> Result<Flock<File>, CaFilesError> {
    let create = |path: &Path, source| CaFilesError::Create {
        path: path.to_owned(),
        source,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|source| create(directory, source))?;
    let path = directory.join(LOCK);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|source| create(&path, source))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| create(&path, errno.into()))
}

/// Writes the set beside its place. The stage gets its name once it is complete and on disk.
fn stage(directory: &Path, files: &CaFiles) -> Result<(), CaFilesError> {
    let create = |path: &Path, source| CaFilesError::Create {
        path: path.to_owned(),
        source,
    };
    let unfinished = directory.join(".culvert-unfinished");
    match fs::remove_dir_all(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(create(&unfinished, error));
        }
        _ => {}
    }
    DirBuilder::new()
        .mode(0o700)
        .create(&unfinished)
        .map_err(|source| create(&unfinished, source))?;
    for (name, contents, mode) in [
        (KEY, &files.key, 0o600),
        (CHAIN, &files.chain, 0o644),
        (ROOTS, &files.roots, 0o644),
        (CERTIFICATE, &files.certificate, 0o644),
    ] {
        let path = unfinished.join(name);
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&path)?;
            file.write_all(contents)?;
            file.sync_all()
        };
        write().map_err(|source| create(&path, source))?;
    }
    let stage = directory.join(STAGE);
    sync(&unfinished)
        .and_then(|()| fs::rename(&unfinished, &stage))
        .and_then(|()| sync(directory))
        .map_err(|source| create(&stage, source))
}

/// Moves a staged set to its names, the certificate last. Goes on where an earlier move stopped; without a stage
/// there is nothing to do.
fn move_into_place(directory: &Path) -> Result<(), CaFilesError> {
    let stage = directory.join(STAGE);
    let create = |path: PathBuf, source| CaFilesError::Create { path, source };
    match fs::symlink_metadata(&stage) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(create(stage, source)),
        Ok(_) => {}
    }
    for name in [KEY, CHAIN, ROOTS, CERTIFICATE] {
        let path = directory.join(name);
        match fs::rename(stage.join(name), &path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(create(path, error));
            }
            _ => {}
        }
    }
    fs::remove_dir(&stage)
        .and_then(|()| sync(directory))
        .map_err(|source| create(stage, source))
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
