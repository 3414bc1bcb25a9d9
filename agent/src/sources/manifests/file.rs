//! One manifest: bytes → objects, each with its place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use crate::mesh::{Interner, Object, Standing, decode};
use crate::sources::mesh_config;
use crate::sources::problem::{OneLine, Place, Position, Problem, Severity, one_line};
use crate::sources::yaml::{self, Content, Node};
use nix::errno::Errno;
use nix::fcntl::OFlag;

/// Largest manifest that is read. A cluster's API server takes 1.5 MiB per object.
const MAX_BYTES: u64 = 8 * 1024 * 1024;
/// Most problems of one file that are reported.
const MAX_PROBLEMS: usize = 20;

/// What is known of one file.
#[derive(Debug)]
pub(super) struct FileState {
    pub(super) stamp: Option<Stamp>,
    pub(super) content: ReadFile,
}

/// What one file came to.
#[derive(Debug, Default)]
pub(super) struct ReadFile {
    pub(super) entries: Vec<Entry>,
    pub(super) problems: Vec<Problem>,
}

/// One object of a file.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) object: Object,
    pub(super) place: Place,
    pub(super) standing: Standing,
}

/// What changes when a file's content does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// The stamp of a file, links followed; none if it cannot be had.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            bytes: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

/// Reads a file; none if it is not there any more.
pub(super) fn read(path: &Path, texts: &mut Interner) -> Option<ReadFile> {
    let text = read_text(path);
    let is_gone = text
        .as_ref()
        .is_err_and(|refusal| *refusal == Refusal::Gone);
    (!is_gone).then(|| {
        let name = path.display().to_string();
        understand(&one_line(&name).into(), text, texts)
    })
}

/// What a file with these bytes would come to.
#[cfg(fuzzing)]
pub(super) fn read_bytes(bytes: &[u8], texts: &mut Interner) -> ReadFile {
    understand(&"fuzz.yaml".into(), to_text(bytes.to_vec()), texts)
}

fn understand(file: &Arc<str>, text: Result<String, Refusal>, texts: &mut Interner) -> ReadFile {
    let mut content = ReadFile::default();
    let place = |position| Place {
        file: Arc::clone(file),
        position,
    };
    match text {
        Err(refusal) => {
            content
                .problems
                .push(error(place(refusal.position()), "", refusal.to_string()));
        }
        Ok(text) => match yaml::parse(&text) {
            Err(found) => {
                content
                    .problems
                    .push(error(place(Some(found.position)), "", found.message));
            }
            Ok(documents) => {
                for document in &documents {
                    read_document(document, &place, &mut content, texts);
                }
            }
        },
    }
    // Errors first: the rest would be cut off before them.
    content.problems.sort_by_key(|problem| problem.severity);
    content.problems.truncate(MAX_PROBLEMS);
    content
}

fn error(place: Place, object: &str, message: String) -> Problem {
    Problem {
        severity: Severity::Error,
        place,
        object: object.into(),
        field: OneLine::default(),
        message: message.into(),
    }
}

/// One document: an object, or a list of them.
fn read_document(
    document: &Node,
    place: &impl Fn(Option<Position>) -> Place,
    content: &mut ReadFile,
    texts: &mut Interner,
) {
    let list = document
        .text("kind")
        .and_then(|kind| kind.strip_suffix("List"));
    let items = document
        .get("items")
        .filter(|_| list.is_some())
        .map(|items| &items.content);
    let Some(Content::List(items)) = items else {
        read_object(document, None, (place, content), texts);
        return;
    };
    // `kubectl get -o yaml` writes `kind: List` with whole objects; an API server's `PodList` leaves out
    // what its items are.
    let item_kind = list.filter(|kind| !kind.is_empty());
    let item_kind = item_kind.map(|kind| (document.text("apiVersion").unwrap_or_default(), kind));
    for item in items {
        read_object(item, item_kind, (place, content), texts);
    }
}

fn read_object(
    node: &Node,
    item_kind: Option<(&str, &str)>,
    (place, content): (&impl Fn(Option<Position>) -> Place, &mut ReadFile),
    texts: &mut Interner,
) {
    let mut value = node.to_json();
    if let Err((path, message)) = mesh_config::expand(&mut value) {
        content.problems.push(Problem {
            severity: Severity::Error,
            place: place(Some(node.locate(&path))),
            object: describe(node).into(),
            field: path.to_string().into(),
            message: message.into(),
        });
        return;
    }
    if let (Some((version, kind)), Some(map)) = (item_kind, value.as_object_mut()) {
        map.entry("apiVersion").or_insert_with(|| version.into());
        map.entry("kind").or_insert_with(|| kind.into());
    }
    match decode(value, texts) {
        Ok(decoded) => {
            let object = OneLine::from(decoded.object.key().to_string());
            let remarks = decoded.remarks.into_iter();
            content.problems.extend(remarks.map(|remark| Problem {
                severity: Severity::Warning,
                place: place(Some(node.locate(&remark.path))),
                object: object.clone(),
                field: remark.path.to_string().into(),
                message: remark.problem.into(),
            }));
            content.entries.push(Entry {
                object: decoded.object,
                standing: decoded.standing,
                place: place(Some(node.position)),
            });
        }
        Err(faults) => {
            let object = OneLine::from(describe(node));
            for fault in faults {
                content.problems.push(Problem {
                    severity: Severity::Error,
                    place: place(Some(node.locate(&fault.path))),
                    object: object.clone(),
                    field: fault.path.to_string().into(),
                    message: fault.problem.into(),
                });
            }
        }
    }
}

/// Kind and name of an object that could not be read, as far as it says.
fn describe(node: &Node) -> String {
    let Some(kind) = node.text("kind") else {
        return String::new();
    };
    let metadata = node.get("metadata");
    let name = metadata.and_then(|metadata| metadata.text("name"));
    let namespace = metadata.and_then(|metadata| metadata.text("namespace"));
    match (namespace, name) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) => format!("{kind} {name}"),
        (_, None) => kind.to_owned(),
    }
}

/// Why a file's text cannot be had.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("is gone")]
    Gone,
    #[error("cannot be read (permission denied): make it readable for the agent's user")]
    Denied,
    #[error("is a symbolic link that leads back to itself: remove or correct it")]
    Loop,
    #[error("is a symbolic link to a file that is not there: remove or correct it")]
    Dangling,
    #[error("is not a regular file: give it another name or move it elsewhere")]
    NotAFile,
    #[error("is larger than {} MiB, the most that is read: split it", MAX_BYTES / 1024 / 1024)]
    TooLarge,
    #[error("is not UTF-8 text: save it as UTF-8, or remove it if it is no manifest")]
    NotUtf8 { line: u32 },
    #[error(
        "has a control character that no text has: remove it, or the file if it is no manifest"
    )]
    NotText { line: u32 },
    #[error("cannot be read ({0}): check its disk")]
    Io(String),
}

impl Refusal {
    fn position(&self) -> Option<Position> {
        match self {
            Self::NotUtf8 { line } | Self::NotText { line } => Some(Position {
                line: *line,
                column: 1,
            }),
            _ => None,
        }
    }

    pub(super) fn of(error: &io::Error, is_link: bool) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT) if is_link => Self::Dangling,
            Some(Errno::ENOENT) => Self::Gone,
            Some(Errno::EACCES | Errno::EPERM) => Self::Denied,
            Some(Errno::ELOOP) => Self::Loop,
            _ => Self::Io(error.to_string()),
        }
    }
}

fn read_text(path: &Path) -> Result<String, Refusal> {
    let is_link = || fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
    let refused = |error: io::Error| Refusal::of(&error, is_link());
    let file = open(path).map_err(refused)?;
    let found = file.metadata().map_err(refused)?;
    if !found.is_file() {
        return Err(Refusal::NotAFile);
    }
    if found.len() > MAX_BYTES {
        return Err(Refusal::TooLarge);
    }
    let mut bytes = Vec::with_capacity(usize::try_from(found.len()).unwrap_or_default());
    // It may grow while it is read.
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(refused)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Refusal::TooLarge);
    }
    to_text(bytes)
}

/// Opens without waiting: a FIFO of that name has no writer.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
}

fn to_text(bytes: Vec<u8>) -> Result<String, Refusal> {
    let line_of = |bytes: &[u8], at: usize| {
        let lines = bytes
            .get(..at)
            .unwrap_or_default()
            .split(|byte| *byte == b'\n');
        u32::try_from(lines.count()).unwrap_or(u32::MAX)
    };
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        Refusal::NotUtf8 {
            line: line_of(error.as_bytes(), valid),
        }
    })?;
    let control = |c: char| c.is_control() && !"\t\n\r\u{85}".contains(c);
    if let Some(at) = text.find(control) {
        return Err(Refusal::NotText {
            line: line_of(text.as_bytes(), at),
        });
    }
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}
