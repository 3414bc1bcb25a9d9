//! PeerAuthentication as Istio defines it: who must come with mTLS.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::field::{Faults, at};
use super::meta::Meta;
use super::selector::WorkloadSelector;
use super::syntax::read_port_text;

/// A PeerAuthentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// What it says.
    pub spec: PeerAuthenticationSpec,
}

/// `spec` of a PeerAuthentication.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerAuthenticationSpec {
    /// Workloads it is about; absent: its namespace, or in the root namespace the mesh.
    pub selector: Option<WorkloadSelector>,
    /// For all ports.
    pub mtls: Option<Mtls>,
    /// For single ports of the workload.
    #[serde(default)]
    pub port_level_mtls: BTreeMap<String, Mtls>,
}

/// `mtls`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
pub struct Mtls {
    /// How strict.
    #[serde(default)]
    pub mode: MtlsMode,
}

/// `mtls.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MtlsMode {
    /// As the wider level says.
    #[default]
    Unset,
    /// Treated as PERMISSIVE: peers that speak HBONE always do.
    Disable,
    /// Plaintext passes too.
    Permissive,
    /// Only mTLS passes.
    Strict,
}

impl MtlsMode {
    /// Whether plaintext is refused; nothing if the wider level decides.
    pub(crate) fn is_strict(self) -> Option<bool> {
        match self {
            Self::Unset => None,
            Self::Disable | Self::Permissive => Some(false),
            Self::Strict => Some(true),
        }
    }
}

impl PeerAuthenticationSpec {
    /// Labels it selects by, unless it is about a whole namespace. An empty selector selects nothing in
    /// particular, as no selector.
    pub(crate) fn labels(&self) -> Option<&BTreeMap<String, String>> {
        self.selector
            .as_ref()
            .map(|one| &one.match_labels)
            .filter(|labels| !labels.is_empty())
    }

    /// Mode for all ports.
    pub(crate) fn mode(&self) -> MtlsMode {
        self.mtls.unwrap_or_default().mode
    }

    /// Ports with a mode of their own.
    pub(crate) fn port_modes(&self) -> impl Iterator<Item = (u16, MtlsMode)> {
        let ports = self.port_level_mtls.iter();
        ports.filter_map(|(port, mtls)| Some((port.parse().ok()?, mtls.mode)))
    }
}

impl PeerAuthentication {
    pub(crate) fn check(&self, faults: &mut Faults) {
        if let Some(selector) = &self.spec.selector {
            selector.check(&at!["spec", "selector", "matchLabels"], faults);
        }
        let place = at!["spec", "portLevelMtls"];
        if !self.spec.port_level_mtls.is_empty() && self.spec.labels().is_none() {
            faults.add(
                place.clone(),
                "needs a selector: ports are those of particular workloads",
            );
        }
        for port in self.spec.port_level_mtls.keys() {
            let _checked = read_port_text(port, place.join(port.as_str()), faults);
        }
    }
}
