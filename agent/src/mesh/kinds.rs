//! Which kinds there are, which versions of them are read, and what the mesh makes of them.

use super::object::Kind;
use super::unheeded;

/// What an `apiVersion` and `kind` stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Classified {
    /// The mesh depends on it.
    Used(Kind),
    /// A known kind without effect on layer 4.
    Unused,
    /// A kind of somebody else's group.
    Foreign,
    /// Not a kind of its group; the kinds that are.
    NoSuchKind(Vec<&'static str>),
    /// A known kind in a version that is not read; the version that is.
    WrongVersion(&'static str),
}

struct Group {
    name: &'static str,
    /// Read versions, the preferred one first.
    versions: &'static [&'static str],
    used: &'static [(&'static str, Kind)],
    /// Known and without effect; empty where any other kind is.
    unused: &'static [&'static str],
}

static GROUPS: [Group; 8] = [
    Group {
        name: "",
        versions: &["v1"],
        used: &[
            ("Namespace", Kind::Namespace),
            ("Node", Kind::Node),
            ("Pod", Kind::Pod),
            ("Secret", Kind::Secret),
            ("Service", Kind::Service),
        ],
        unused: &[
            "ConfigMap",
            "Endpoints",
            "Event",
            "LimitRange",
            "PersistentVolume",
            "PersistentVolumeClaim",
            "PodTemplate",
            "ReplicationController",
            "ResourceQuota",
            "ServiceAccount",
        ],
    },
    Group {
        name: "discovery.k8s.io",
        versions: &["v1"],
        used: &[("EndpointSlice", Kind::EndpointSlice)],
        unused: &[],
    },
    Group {
        name: "networking.istio.io",
        versions: &["v1", "v1beta1", "v1alpha3"],
        used: &[
            ("DestinationRule", Kind::DestinationRule),
            ("ServiceEntry", Kind::ServiceEntry),
            ("VirtualService", Kind::VirtualService),
            ("WorkloadEntry", Kind::WorkloadEntry),
        ],
        unused: &[
            "EnvoyFilter",
            "Gateway",
            "ProxyConfig",
            "Sidecar",
            "WorkloadGroup",
        ],
    },
    Group {
        name: "security.istio.io",
        versions: &["v1", "v1beta1"],
        used: &[
            ("AuthorizationPolicy", Kind::AuthorizationPolicy),
            ("PeerAuthentication", Kind::PeerAuthentication),
            ("RequestAuthentication", Kind::RequestAuthentication),
        ],
        unused: &[],
    },
    Group {
        name: "gateway.networking.k8s.io",
        versions: &["v1", "v1beta1", "v1alpha2", "v1alpha3"],
        used: &[
            ("BackendTLSPolicy", Kind::BackendTlsPolicy),
            ("Gateway", Kind::Gateway),
            ("GatewayClass", Kind::GatewayClass),
            ("GRPCRoute", Kind::GrpcRoute),
            ("HTTPRoute", Kind::HttpRoute),
            ("TCPRoute", Kind::TcpRoute),
            ("TLSRoute", Kind::TlsRoute),
        ],
        unused: &["ListenerSet", "ReferenceGrant", "UDPRoute"],
    },
    Group {
        name: "telemetry.istio.io",
        versions: &["v1", "v1alpha1"],
        used: &[("Telemetry", Kind::Telemetry)],
        unused: &[],
    },
    Group {
        name: "culvert.dev",
        versions: &["v1alpha1"],
        used: &[("RateLimitPolicy", Kind::RateLimitPolicy)],
        unused: &[],
    },
    Group {
        name: "extensions.istio.io",
        versions: &["v1alpha1"],
        used: &[],
        unused: &["WasmPlugin"],
    },
];

/// Groups of Kubernetes itself: whatever is in them is someone else's business, and known.
const KUBERNETES_GROUPS: [&str; 9] = [
    "apps",
    "batch",
    "autoscaling",
    "policy",
    "networking.k8s.io",
    "rbac.authorization.k8s.io",
    "apiextensions.k8s.io",
    "admissionregistration.k8s.io",
    "scheduling.k8s.io",
];

/// Splits an `apiVersion` into group and version.
pub(crate) fn split_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// What this `apiVersion` and `kind` stand for.
pub(crate) fn classify(api_version: &str, kind: &str) -> Classified {
    let (name, version) = split_version(api_version);
    let Some(group) = GROUPS.iter().find(|group| group.name == name) else {
        return if KUBERNETES_GROUPS.contains(&name) {
            Classified::Unused
        } else {
            Classified::Foreign
        };
    };
    let used = group.used.iter().find(|(known, _)| *known == kind);
    if used.is_none() && !group.unused.contains(&kind) {
        let all = group
            .used
            .iter()
            .map(|(known, _)| *known)
            .chain(group.unused.iter().copied());
        let mut known: Vec<_> = all.collect();
        known.sort_unstable();
        known.dedup();
        return Classified::NoSuchKind(known);
    }
    match (used, group.versions.contains(&version)) {
        (_, false) => Classified::WrongVersion(group.versions.first().copied().unwrap_or_default()),
        (Some((_, kind)), true) => Classified::Used(kind.clone()),
        (None, true) => Classified::Unused,
    }
}

/// The `apiVersion` of a kind that the mesh depends on: the one that its API prefers.
pub(crate) fn api_version(kind: &Kind) -> String {
    let of_kind = |group: &&Group| group.used.iter().any(|(_, own)| own == kind);
    let Some(group) = GROUPS.iter().find(of_kind) else {
        return "v1".to_owned();
    };
    let version = match kind {
        // It has no other yet.
        Kind::TcpRoute => "v1alpha2",
        _ => group.versions.first().copied().unwrap_or_default(),
    };
    if group.name.is_empty() {
        version.to_owned()
    } else {
        format!("{}/{version}", group.name)
    }
}

/// A kind as an API offers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedKind {
    /// Which.
    pub kind: Kind,
    /// Its API group; empty for Kubernetes' core.
    pub group: &'static str,
    /// Versions of the group that are read, the preferred one first.
    pub versions: &'static [&'static str],
    /// The name of its collection, `httproutes`.
    pub plural: String,
}

/// The kinds of which only those objects are used that others name: nobody needs to see the rest of them.
pub fn named_kinds() -> Vec<UsedKind> {
    let core = |kind: Kind, name| UsedKind {
        kind,
        group: "",
        versions: &["v1"],
        plural: plural(name),
    };
    vec![
        core(Kind::Secret, "Secret"),
        core(Kind::Authorities, "ConfigMap"),
    ]
}

/// Every kind that the mesh depends on, less [`named_kinds`].
pub fn used_kinds() -> Vec<UsedKind> {
    let of_group = |group: &'static Group| {
        let all = group.used.iter().filter(|(_, kind)| *kind != Kind::Secret);
        all.map(|(name, kind)| UsedKind {
            kind: kind.clone(),
            group: group.name,
            versions: group.versions,
            plural: plural(name),
        })
    };
    let config = UsedKind {
        kind: Kind::MeshConfig,
        group: "",
        versions: &["v1"],
        plural: plural("ConfigMap"),
    };
    GROUPS.iter().flat_map(of_group).chain([config]).collect()
}

/// Kinds that somebody may expect something of, and that have no effect here: of their objects it is worth knowing that they
/// are there.
pub fn idle_kinds() -> Vec<UsedKind> {
    let of_group = |group: &'static Group| {
        let all = group.unused.iter();
        all.map(|name| UsedKind {
            kind: Kind::Other(group.name.into(), (*name).into()),
            group: group.name,
            versions: group.versions,
            plural: plural(name),
        })
    };
    let all = GROUPS.iter().flat_map(of_group);
    all.filter(|idle| unheeded::of_kind(&idle.kind).is_some())
        .collect()
}

/// English, as those who named the resources speak it.
fn plural(kind: &str) -> String {
    let singular = kind.to_lowercase();
    match singular.strip_suffix('y') {
        // A vowel before it: gateways.
        Some(stem) if !stem.ends_with('a') => format!("{stem}ies"),
        _ if singular.ends_with('s') => format!("{singular}es"),
        _ => format!("{singular}s"),
    }
}

/// Whether objects of this kind live outside namespaces.
pub(crate) fn is_cluster_wide(kind: &str) -> bool {
    matches!(
        kind,
        "Namespace"
            | "Node"
            | "GatewayClass"
            | "PersistentVolume"
            | "ClusterRole"
            | "ClusterRoleBinding"
            | "CustomResourceDefinition"
            | "PriorityClass"
            | "MutatingWebhookConfiguration"
            | "ValidatingWebhookConfiguration"
            | "ValidatingAdmissionPolicy"
            | "ValidatingAdmissionPolicyBinding"
            | "IngressClass"
    )
}

#[cfg(test)]
mod tests {
    use super::{Classified, classify, idle_kinds, plural, used_kinds};
    use crate::mesh::Kind;

    #[test]
    fn collections_have_the_names_that_the_apis_give_them() {
        for (kind, expected) in [
            ("Gateway", "gateways"),
            ("GatewayClass", "gatewayclasses"),
            ("GRPCRoute", "grpcroutes"),
            ("AuthorizationPolicy", "authorizationpolicies"),
            ("ServiceEntry", "serviceentries"),
            ("Telemetry", "telemetries"),
            ("EndpointSlice", "endpointslices"),
        ] {
            assert_eq!(plural(kind), expected);
        }
        assert_eq!(used_kinds().len(), 22);
        let idle = idle_kinds().into_iter();
        assert_eq!(
            idle.map(|idle| idle.plural).collect::<Vec<_>>(),
            [
                "envoyfilters",
                "proxyconfigs",
                "sidecars",
                "workloadgroups",
                "listenersets",
                "udproutes",
                "wasmplugins",
            ]
        );
    }

    #[test]
    fn each_kind_has_one_standing() {
        for (version, kind, expected) in [
            ("v1", "Pod", Classified::Used(Kind::Pod)),
            ("v1", "ConfigMap", Classified::Unused),
            ("v2", "Pod", Classified::WrongVersion("v1")),
            (
                "security.istio.io/v1beta1",
                "PeerAuthentication",
                Classified::Used(Kind::PeerAuthentication),
            ),
            (
                "security.istio.io/v1alpha1",
                "PeerAuthentication",
                Classified::WrongVersion("v1"),
            ),
            (
                "gateway.networking.k8s.io/v1",
                "HTTPRoute",
                Classified::Used(Kind::HttpRoute),
            ),
            ("apps/v1", "Deployment", Classified::Unused),
            ("cert-manager.io/v1", "Certificate", Classified::Foreign),
        ] {
            assert_eq!(classify(version, kind), expected, "{version} {kind}");
        }
        assert!(
            matches!(classify("v1", "Pods"), Classified::NoSuchKind(known) if known.contains(&"Pod"))
        );
    }
}
