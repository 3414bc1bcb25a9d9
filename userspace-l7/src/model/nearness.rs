//! What a DestinationRule makes of near and far endpoints (`localityLbSetting`).

use std::sync::Arc;

use super::workload::Locality;

/// How much it matters where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nearness {
    /// Each of the shares is for clients of a locality; of several the first that is meant for a client counts, and
    /// a client that none is meant for goes anywhere.
    Shares(Vec<LocalityShares>),
    /// The nearest first, as long as enough of them are well.
    Tiers {
        /// What is compared.
        by: Tiering,
        /// Asked for in so many words, and so before the Service's own `trafficDistribution`; otherwise it comes with
        /// outlier detection (Istio).
        is_explicit: bool,
    },
}

/// Where the requests of one locality go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalityShares {
    /// Whose.
    pub from: LocalityPattern,
    /// Whereto, in hundredths. What is not named gets nothing.
    pub to: Vec<(LocalityPattern, u32)>,
}

/// `region/zone/subzone`, cut off or ended by `*` where the rest is all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalityPattern(pub Arc<str>);

impl LocalityPattern {
    /// Whether a locality is meant.
    pub fn matches(&self, locality: &Locality) -> bool {
        let parts = [&locality.region, &locality.zone, &locality.subzone];
        let mut wanted = self.0.split('/').take_while(|part| *part != "*");
        let mut parts = parts.into_iter();
        wanted.all(|wanted| parts.next().is_some_and(|part| **part == *wanted))
    }
}

/// What endpoints are told apart by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tiering {
    /// Subzone, zone, region, and the region that each region falls back on before all others.
    Locality {
        /// From a region, to a region.
        failover: Vec<(Arc<str>, Arc<str>)>,
    },
    /// How many labels are the client's own, in a row from the first on (`failoverPriority`).
    Labels(Vec<PriorityLabel>),
}

/// One of `failoverPriority`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriorityLabel {
    /// Which.
    pub label: ComparedLabel,
    /// The value to prefer, in place of the client's own.
    pub value: Option<Arc<str>>,
}

/// A label that workloads are compared by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ComparedLabel {
    /// `topology.istio.io/network`.
    Network,
    /// `topology.kubernetes.io/region`.
    Region,
    /// `topology.kubernetes.io/zone`.
    Zone,
    /// `topology.istio.io/subzone`.
    Subzone,
    /// `topology.istio.io/cluster`.
    Cluster,
    /// `kubernetes.io/hostname`.
    Node,
    /// Any other, as the workload has it itself.
    Own(Arc<str>),
}

impl ComparedLabel {
    /// By its name. What says where a workload is comes from its node, as in Istio.
    pub fn named(name: &str) -> Self {
        match name {
            "topology.istio.io/network" => Self::Network,
            "topology.kubernetes.io/region" => Self::Region,
            "topology.kubernetes.io/zone" => Self::Zone,
            "topology.istio.io/subzone" => Self::Subzone,
            "topology.istio.io/cluster" => Self::Cluster,
            "kubernetes.io/hostname" => Self::Node,
            other => Self::Own(other.into()),
        }
    }
}
