//! The manifests directory, as these commands change it: one document at a time. A file appears whole or not
//! at all, for the agent may read it at any moment.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::WaypointError;
use super::gateway::Waypoint;
use crate::cli::yaml;
use crate::sources::documents;

/// The directory.
pub(super) struct Directory(PathBuf);

/// A waypoint and the file that it stands in.
pub(super) struct Stored {
    pub(super) waypoint: Waypoint,
    pub(super) path: PathBuf,
}

/// One file, cut into its documents.
struct File {
    path: PathBuf,
    documents: Vec<String>,
}

impl Directory {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// All waypoints, by namespace and name.
    pub(super) fn waypoints(&self) -> Result<Vec<Stored>, WaypointError> {
        let mut found = Vec::new();
        for file in self.files()? {
            let waypoints = file
                .documents
                .iter()
                .filter_map(|text| Waypoint::read(&object(text)?));
            found.extend(waypoints.map(|waypoint| Stored {
                waypoint,
                path: file.path.clone(),
            }));
        }
        found.sort_by(|a, b| {
            let key = |it: &Stored| (it.waypoint.namespace.clone(), it.waypoint.name.clone());
            key(a).cmp(&key(b))
        });
        Ok(found)
    }

    /// In place of one of the same name, wherever that stands, else to a file of its own.
    pub(super) fn write_waypoint(&self, waypoint: &Waypoint) -> Result<(), WaypointError> {
        let is_same = |object: &Value| is_waypoint(object, waypoint);
        let manifest = yaml::document(&waypoint.manifest());
        let own = format!("waypoint-{}-{}.yaml", waypoint.namespace, waypoint.name);
        self.replace(is_same, &manifest, &own)
    }

    /// The document goes; a file that holds nothing else goes with it.
    pub(super) fn remove_waypoint(&self, waypoint: &Waypoint) -> Result<(), WaypointError> {
        for mut file in self.files()? {
            let before = file.documents.len();
            file.documents
                .retain(|text| !object(text).is_some_and(|it| is_waypoint(&it, waypoint)));
            if file.documents.len() == before {
                continue;
            }
            if file.documents.iter().all(|text| object(text).is_none()) {
                fs::remove_file(&file.path).map_err(|source| WaypointError::File {
                    what: "remove",
                    path: file.path.clone(),
                    source,
                })?;
            } else {
                write(&file.path, &file.documents.join("---\n"))?;
            }
        }
        Ok(())
    }

    /// Labels of a Namespace; empty if it has no manifest.
    pub(super) fn namespace_labels(
        &self,
        namespace: &str,
    ) -> Result<BTreeMap<String, String>, WaypointError> {
        let found = self.namespace(namespace)?;
        let labels = found.as_ref().and_then(|it| it.pointer("/metadata/labels"));
        let pairs = labels.and_then(Value::as_object).into_iter().flatten();
        Ok(pairs
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
            .collect())
    }

    /// Binds a namespace to a waypoint of its own.
    pub(super) fn label_namespace(
        &self,
        namespace: &str,
        waypoint: &str,
    ) -> Result<(), WaypointError> {
        let mut object = self.namespace(namespace)?.unwrap_or_else(|| {
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace } })
        });
        object["metadata"]["labels"]["istio.io/use-waypoint"] = json!(waypoint);
        let own = format!("namespace-{namespace}.yaml");
        let is_same = |object: &Value| is_namespace(object, namespace);
        self.replace(is_same, &yaml::document(&object), &own)
    }

    fn namespace(&self, namespace: &str) -> Result<Option<Value>, WaypointError> {
        let files = self.files()?;
        let mut objects = files.iter().flat_map(|file| &file.documents);
        Ok(objects.find_map(|text| object(text).filter(|it| is_namespace(it, namespace))))
    }

    fn replace(
        &self,
        is_same: impl Fn(&Value) -> bool,
        manifest: &str,
        own: &str,
    ) -> Result<(), WaypointError> {
        for mut file in self.files()? {
            let mut documents = file.documents.iter_mut();
            let found = documents.find(|text| object(text).is_some_and(|it| is_same(&it)));
            if let Some(found) = found {
                manifest.clone_into(found);
                return write(&file.path, &file.documents.join("---\n"));
            }
        }
        write(&self.0.join(own), manifest)
    }

    /// Every `*.yaml` and `*.yml`, in the order of their names.
    fn files(&self) -> Result<Vec<File>, WaypointError> {
        let unreadable = |path: &Path| {
            let path = path.to_owned();
            move |source| WaypointError::File {
                what: "read",
                path,
                source,
            }
        };
        let mut paths = Vec::new();
        for entry in fs::read_dir(&self.0).map_err(unreadable(&self.0))? {
            let path = entry.map_err(unreadable(&self.0))?.path();
            let is_hidden = path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with('.'));
            let extension = path.extension().and_then(|it| it.to_str());
            if !is_hidden && matches!(extension, Some("yaml" | "yml")) {
                paths.push(path);
            }
        }
        paths.sort();
        let read = |path: PathBuf| {
            let text = fs::read_to_string(&path).map_err(unreadable(&path))?;
            Ok(File {
                documents: cut(&text),
                path,
            })
        };
        paths.into_iter().map(read).collect()
    }
}

fn is_waypoint(object: &Value, wanted: &Waypoint) -> bool {
    Waypoint::read(object)
        .is_some_and(|it| it.namespace == wanted.namespace && it.name == wanted.name)
}

fn is_namespace(object: &Value, name: &str) -> bool {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    text("/kind") == Some("Namespace") && text("/metadata/name") == Some(name)
}

/// Cut at document markers, which stand at a line's beginning and nowhere else (YAML 1.2.2 §9.1.4).
fn cut(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.split_inclusive('\n') {
        let word = line.trim_end();
        let is_marker = word == "---" || word.starts_with("--- ");
        match documents.last_mut() {
            Some(last) if !is_marker => last.push_str(line),
            _ => documents.push(String::new()),
        }
    }
    for document in &mut documents {
        if !document.is_empty() && !document.ends_with('\n') {
            document.push('\n');
        }
    }
    documents.retain(|document| !document.trim().is_empty());
    documents
}

/// The object in a document; `None` for a comment, or for what the agent itself reports as broken.
fn object(text: &str) -> Option<Value> {
    let objects = documents(text)?;
    objects.into_iter().find(Value::is_object)
}

/// Writes beside the file and renames: the name does not end like a manifest's until it is whole.
fn write(path: &Path, text: &str) -> Result<(), WaypointError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    fs::write(&beside, text)
        .and_then(|()| fs::rename(&beside, path))
        .map_err(|source| WaypointError::File {
            what: "write",
            path: path.to_owned(),
            source,
        })
}
