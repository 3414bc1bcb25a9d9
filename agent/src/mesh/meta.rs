//! What every object has: a name, labels, annotations, an age. Compact, because there may be 100,000 of them.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use userspace_l7::model::WorkloadLabels;

use super::field::{Faults, at};
use super::syntax;

/// `<namespace>/<name>` of an object; the namespace is empty for cluster-wide kinds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectName {
    /// Kubernetes namespace, or empty.
    pub namespace: Arc<str>,
    /// Object name.
    pub name: Arc<str>,
}

/// By namespace, then by name. Objects of one namespace share its text ([`Interner`]), which needs no reading then.
impl Ord for ObjectName {
    fn cmp(&self, other: &Self) -> Ordering {
        let namespace = if Arc::ptr_eq(&self.namespace, &other.namespace) {
            Ordering::Equal
        } else {
            self.namespace.cmp(&other.namespace)
        };
        namespace.then_with(|| self.name.cmp(&other.name))
    }
}

impl PartialOrd for ObjectName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// A sorted map of short texts.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl Labels {
    pub(crate) fn new(map: Option<BTreeMap<String, String>>, texts: &mut Interner) -> Self {
        let pairs = map.unwrap_or_default().into_iter();
        Self(
            pairs
                .map(|(key, value)| (texts.intern(&key), texts.intern(&value)))
                .collect(),
        )
    }

    /// As a workload has them.
    pub(crate) fn of_workload(&self) -> WorkloadLabels {
        WorkloadLabels::new(Arc::clone(&self.0))
    }

    /// The value under a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.shared(key).map(|value| &**value)
    }

    /// The value under a key, to keep.
    pub(crate) fn shared(&self, key: &str) -> Option<&Arc<str>> {
        let found = self.0.binary_search_by(|(own, _)| (**own).cmp(key)).ok()?;
        self.0.get(found).map(|(_, value)| value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn first(&self) -> Option<(&Arc<str>, &Arc<str>)> {
        self.iter().next()
    }

    /// Whether each pair of this selector is among `labels`. An empty selector selects everything.
    pub(crate) fn select(&self, labels: &Self) -> bool {
        self.iter()
            .all(|(key, value)| labels.get(key) == Some(&**value))
    }
}

/// The part of `metadata` that the mesh depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Namespace and name.
    pub name: ObjectName,
    /// Labels.
    pub labels: Labels,
    /// The annotations that mean something to the mesh.
    pub annotations: Labels,
    /// When it was created, if a cluster ever said so.
    pub created: Option<Timestamp>,
    /// How often its `spec` was changed, where a cluster counts that.
    pub generation: Option<i64>,
}

/// Annotations outside these domains are other tools' and may be large.
const KEPT_ANNOTATIONS: [&str; 4] = [
    "istio.io/",
    "culvert.dev/",
    "ambient.istio.io/",
    "kubernetes.io/",
];

impl Meta {
    pub(crate) fn read(meta: ObjectMeta, texts: &mut Interner, faults: &mut Faults) -> Self {
        let labels = at!["metadata", "labels"];
        for (key, value) in meta.labels.iter().flatten() {
            syntax::check_label(key, value, &labels, faults);
        }
        let kept = |key: &String| KEPT_ANNOTATIONS.iter().any(|domain| key.contains(domain));
        let annotations = meta.annotations.map(|mut map| {
            map.retain(|key, _| kept(key));
            map
        });
        Self {
            name: ObjectName {
                namespace: texts.intern(meta.namespace.as_deref().unwrap_or_default()),
                name: texts.intern(meta.name.as_deref().unwrap_or_default()),
            },
            labels: Labels::new(meta.labels, texts),
            annotations: Labels::new(annotations, texts),
            created: meta.creation_timestamp.map(|time| time.0),
            generation: meta.generation,
        }
    }

    /// Oldest first; an unknown age counts as old, the name decides between equals.
    pub(crate) fn age_order(&self) -> (Option<Timestamp>, ObjectName) {
        (self.created, self.name.clone())
    }
}

/// One allocation per distinct text: pods of one deployment share nearly all of theirs.
#[derive(Debug, Default)]
pub struct Interner {
    texts: HashSet<Arc<str>>,
    sweep_at: usize,
}

/// Below this many texts, looking for unused ones is not worth the time.
const SWEEP_FLOOR: usize = 4096;

impl Interner {
    /// The shared copy of a text.
    pub fn intern(&mut self, text: &str) -> Arc<str> {
        if let Some(found) = self.texts.get(text) {
            return Arc::clone(found);
        }
        if self.texts.len() >= self.sweep_at.max(SWEEP_FLOOR) {
            self.texts.retain(|text| Arc::strong_count(text) > 1);
            self.sweep_at = self.texts.len() * 2;
        }
        let shared: Arc<str> = text.into();
        self.texts.insert(Arc::clone(&shared));
        shared
    }
}
