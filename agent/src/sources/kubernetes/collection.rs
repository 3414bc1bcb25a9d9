//! What is followed: the collection of each kind, and how much of its objects.

use std::sync::Arc;

use crate::mesh::{Kind, ObjectKey, UsedKind, idle_kinds, named_kinds, used_kinds};

/// What news are about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Topic {
    /// Objects of a kind.
    Kind(Kind),
    /// One object that others name.
    Named(ObjectKey),
    /// Which custom kinds are installed.
    Definitions,
}

/// How much of each object is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// All of it, less what [`super::trim`] leaves out.
    Whole,
    /// Name, labels and annotations: the mesh depends on nothing else.
    Metadata,
}

/// Objects of one kind in one API.
#[derive(Clone, Debug)]
pub(super) struct Collection {
    pub(super) topic: Topic,
    /// As objects of it say: `HTTPRoute`.
    pub(super) kind: String,
    pub(super) group: &'static str,
    /// Versions that are read, the preferred one first.
    pub(super) versions: &'static [&'static str],
    pub(super) plural: String,
    pub(super) extent: Extent,
    /// Only objects of this namespace.
    pub(super) namespace: Option<Arc<str>>,
    /// Only the object of this name.
    pub(super) name: Option<Arc<str>>,
    /// Whether a `CustomResourceDefinition` has to be there first.
    pub(super) is_custom: bool,
}

impl Collection {
    fn of(used: UsedKind) -> Self {
        let extent = match used.kind {
            Kind::Namespace | Kind::Node | Kind::Other(..) => Extent::Metadata,
            _ => Extent::Whole,
        };
        Self {
            extent,
            kind: used.kind.to_string(),
            group: used.group,
            versions: used.versions,
            plural: used.plural,
            namespace: None,
            name: None,
            is_custom: !used.kind.is_kubernetes_own(),
            topic: Topic::Kind(used.kind),
        }
    }

    /// One object that others name. Who may read that one object need not be able to read any other.
    pub(super) fn of_one(key: &ObjectKey) -> Option<Self> {
        let used = named_kinds()
            .into_iter()
            .find(|used| used.kind == key.kind)?;
        Some(Self {
            topic: Topic::Named(key.clone()),
            namespace: Some(Arc::clone(&key.name.namespace)),
            name: Some(Arc::clone(&key.name.name)),
            ..Self::of(used)
        })
    }

    fn definitions() -> Self {
        Self {
            topic: Topic::Definitions,
            kind: "CustomResourceDefinition".to_owned(),
            group: "apiextensions.k8s.io",
            versions: &["v1"],
            plural: "customresourcedefinitions".to_owned(),
            extent: Extent::Metadata,
            namespace: None,
            name: None,
            is_custom: false,
        }
    }

    /// `httproutes.gateway.networking.k8s.io`: as the API, RBAC and `CustomResourceDefinition`s name it.
    pub(super) fn resource(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// What its objects say as their `apiVersion`.
    pub(super) fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() {
            version.to_owned()
        } else {
            format!("{}/{version}", self.group)
        }
    }
}

/// Everything that the mesh depends on; its configuration is the `ConfigMap` of this name.
pub(super) fn all(mesh_config: &str) -> Vec<Collection> {
    let kinds = used_kinds().into_iter().map(|used| Collection {
        name: (used.kind == Kind::MeshConfig).then(|| mesh_config.into()),
        ..Collection::of(used)
    });
    kinds.chain([Collection::definitions()]).collect()
}

/// What is followed besides by who tells people that it has no effect.
pub(super) fn idle() -> Vec<Collection> {
    idle_kinds().into_iter().map(Collection::of).collect()
}
