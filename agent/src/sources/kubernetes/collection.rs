//! What is followed: the collection of each kind, and how much of its objects.

use crate::mesh::{Kind, UsedKind, used_kinds};

/// What news are about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Topic {
    /// Objects of a kind.
    Kind(Kind),
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
    /// Only objects with these fields, as the API server selects them.
    pub(super) field_selector: Option<&'static str>,
    /// Whether a `CustomResourceDefinition` has to be there first.
    pub(super) is_custom: bool,
}

impl Collection {
    fn of(used: UsedKind) -> Self {
        let extent = match used.kind {
            Kind::Namespace | Kind::Node => Extent::Metadata,
            _ => Extent::Whole,
        };
        Self {
            extent,
            kind: used.kind.to_string(),
            group: used.group,
            versions: used.versions,
            plural: used.plural,
            field_selector: (used.kind == Kind::MeshConfig).then_some("metadata.name=istio"),
            is_custom: !used.kind.is_kubernetes_own(),
            topic: Topic::Kind(used.kind),
        }
    }

    fn definitions() -> Self {
        Self {
            topic: Topic::Definitions,
            kind: "CustomResourceDefinition".to_owned(),
            group: "apiextensions.k8s.io",
            versions: &["v1"],
            plural: "customresourcedefinitions".to_owned(),
            extent: Extent::Metadata,
            field_selector: None,
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

/// Everything that is followed.
pub(super) fn all() -> Vec<Collection> {
    let kinds = used_kinds().into_iter().map(Collection::of);
    kinds.chain([Collection::definitions()]).collect()
}
