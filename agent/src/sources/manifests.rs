//! A directory of manifests as one state: it holds only if every file in it does. Otherwise the last state
//! that held stays, and what is wrong is reported.

mod file;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::file::{Entry, FileState, ReadFile, Stamp};
use super::problem::{OneLine, Place, Problem, Problems, Severity, one_line};
use super::update::{Input, Update};
use crate::mesh::{Change, Interner, Kind, Object, ObjectKey, Standing, without_effect};

/// Most files that are read: a directory with more is not one of manifests.
const MAX_FILES: usize = 10_000;

/// The objects and problems of a manifest with these bytes, for fuzz targets: what the agent does with a file
/// once it has been read.
#[cfg(fuzzing)]
pub fn read_bytes(bytes: &[u8]) -> (Vec<Object>, Vec<Problem>) {
    let content = file::read_bytes(bytes, &mut Interner::default());
    let objects = content.entries.into_iter().map(|entry| entry.object);
    (objects.collect(), content.problems)
}

/// The manifests of one directory.
#[derive(Debug)]
pub struct Manifests {
    directory: PathBuf,
    files: BTreeMap<OsString, FileState>,
    /// The last state that held.
    objects: HashMap<ObjectKey, (Object, Place)>,
    problems: Arc<Problems>,
    texts: Interner,
}

impl Manifests {
    /// The manifests of `directory`, none of which is read yet.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            files: BTreeMap::new(),
            objects: HashMap::new(),
            problems: Arc::default(),
            texts: Interner::default(),
        }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// How many objects of each kind are in use.
    pub fn counts(&self) -> BTreeMap<Kind, usize> {
        let mut counts = BTreeMap::new();
        for key in self.objects.keys() {
            *counts.entry(key.kind.clone()).or_default() += 1;
        }
        counts
    }

    /// Looks at the directory, and reads anew what changed in it: by its metadata, or because `touched`
    /// names it. Nothing, if there is nothing new to say.
    pub fn scan(&mut self, touched: &BTreeSet<OsString>) -> Option<Update> {
        let mut problems = Vec::new();
        if let Err(problem) = self.read_changed(touched) {
            problems.push(problem);
        }
        problems.extend(
            self.files
                .values()
                .flat_map(|file| file.content.problems.iter().cloned()),
        );
        let state = combine(&self.files, &mut problems);
        let problems = Problems::new(problems);
        let changes = if problems.stale {
            Vec::new()
        } else {
            self.replace(state)
        };
        let news = !changes.is_empty() || *self.problems != problems;
        self.problems = Arc::new(problems);
        news.then(|| Update {
            changes,
            problems: Arc::clone(&self.problems),
            noticed: None,
        })
    }

    fn read_changed(&mut self, touched: &BTreeSet<OsString>) -> Result<(), Problem> {
        let names = self.list()?;
        self.files.retain(|name, _| names.contains(name));
        for name in names {
            let path = self.directory.join(&name);
            let stamp = Stamp::of(&path);
            let known = self.files.get(&name);
            let same = known.is_some_and(|file| file.stamp.is_some() && file.stamp == stamp);
            if same && !touched.contains(&name) {
                continue;
            }
            match file::read(&path, &mut self.texts) {
                Some(content) => {
                    self.files.insert(name, FileState { stamp, content });
                }
                // It went away in the meantime.
                None => {
                    self.files.remove(&name);
                }
            }
        }
        Ok(())
    }

    /// Names of the files that count. Hidden ones are editors' and mounts' own business.
    fn list(&self) -> Result<BTreeSet<OsString>, Problem> {
        let problem = |message: String| Problem {
            severity: Severity::Error,
            place: Place {
                file: one_line(&self.directory.display().to_string()).into(),
                position: None,
            },
            object: OneLine::default(),
            field: OneLine::default(),
            message: message.into(),
        };
        let refused = |error: std::io::Error| {
            problem(format!(
                "cannot be listed ({error}): create the directory or name another one"
            ))
        };
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&self.directory).map_err(refused)? {
            let name = entry.map_err(refused)?.file_name();
            let path = Path::new(&name);
            let manifest = path
                .extension()
                .is_some_and(|ext| ext == "yaml" || ext == "yml");
            if manifest && !name.as_encoded_bytes().starts_with(b".") {
                names.insert(name);
            }
            if names.len() > MAX_FILES {
                let message = format!(
                    "has more than {MAX_FILES} manifests: put several objects into one file"
                );
                return Err(problem(message));
            }
        }
        Ok(names)
    }

    /// Makes `state` the one in use.
    fn replace(&mut self, state: BTreeMap<ObjectKey, (Object, Place)>) -> Vec<Change> {
        let gone = self.objects.keys().filter(|key| !state.contains_key(*key));
        let mut gone: Vec<_> = gone.cloned().collect();
        gone.sort_unstable();
        let mut changes: Vec<_> = gone.into_iter().map(Change::Remove).collect();
        for (key, (object, _)) in &state {
            if self.objects.get(key).is_none_or(|(old, _)| old != object) {
                changes.push(Change::Upsert(object.clone()));
            }
        }
        self.objects = state.into_iter().collect();
        changes
    }
}

impl Input for Manifests {
    fn place(&self, object: &ObjectKey) -> Option<Place> {
        self.objects.get(object).map(|(_, place)| place.clone())
    }

    fn own_problems(&self) -> &Problems {
        &self.problems
    }
}

/// All files' objects as one state; complains about objects that are there twice.
fn combine(
    files: &BTreeMap<OsString, FileState>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<ObjectKey, (Object, Place)> {
    let mut state: BTreeMap<ObjectKey, (Object, Place)> = BTreeMap::new();
    for file in files.values() {
        let ReadFile { entries, .. } = &file.content;
        for Entry {
            object,
            place,
            standing,
        } in entries
        {
            let key = object.key();
            problems.extend(remark(&key, place, *standing));
            if let Some((_, first)) = state.get(&key) {
                problems.push(Problem {
                    severity: Severity::Error,
                    place: place.clone(),
                    object: key.to_string().into(),
                    field: OneLine::default(),
                    message: format!("is also declared at {first}: remove one of the two").into(),
                });
                continue;
            }
            state.insert(key, (object.clone(), place.clone()));
        }
    }
    state
}

/// What there is to say about an object that the mesh does not depend on.
fn remark(key: &ObjectKey, place: &Place, standing: Standing) -> Option<Problem> {
    let (severity, message) = match standing {
        Standing::Used => return None,
        Standing::Unused => match without_effect(&key.kind) {
            Some(message) => (Severity::Warning, message),
            None => (
                Severity::Info,
                "is kept, but not used: the mesh does not depend on it",
            ),
        },
        Standing::Foreign => (
            Severity::Warning,
            "is of an API group that the mesh does not know: it has no effect",
        ),
    };
    Some(Problem {
        severity,
        place: place.clone(),
        object: key.to_string().into(),
        field: OneLine::default(),
        message: message.into(),
    })
}
