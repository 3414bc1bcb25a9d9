//! `loadBalancer.localityLbSetting`: which endpoints are near, and what that is worth.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::mesh::field::{Faults, FieldPath};

/// `localityLbSetting`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct LocalityLbSetting {
    pub distribute: Vec<Distribute>,
    pub failover: Vec<Failover>,
    pub failover_priority: Vec<String>,
    pub enabled: Option<bool>,
}

/// `distribute[]`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Distribute {
    /// Whose requests: `region/zone/*`.
    pub from: String,
    /// Hundredths by locality.
    pub to: BTreeMap<String, u32>,
}

/// `failover[]`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Failover {
    /// A region.
    pub from: String,
    /// The region that it falls back on.
    pub to: String,
}

impl LocalityLbSetting {
    pub(in crate::mesh) fn check(&self, place: &FieldPath, faults: &mut Faults) {
        let has_priorities = !self.failover.is_empty() || !self.failover_priority.is_empty();
        if !self.distribute.is_empty() && has_priorities {
            let rule = "has shares and priorities: write `distribute`, or `failover` and `failoverPriority`";
            faults.add(place.clone(), rule);
        }
        for (index, shares) in self.distribute.iter().enumerate() {
            let place = place.join("distribute").join(index);
            if shares.from.is_empty() {
                let rule = "is missing: write a locality, such as region/zone/*";
                faults.add(place.join("from"), rule);
            }
            let sum: u64 = shares.to.values().map(|share| u64::from(*share)).sum();
            if sum != 100 {
                let problem = format!("adds up to {sum}: write shares of 100");
                faults.add(place.join("to"), problem);
            }
        }
        for (index, way) in self.failover.iter().enumerate() {
            let place = place.join("failover").join(index);
            if way.from.is_empty() || way.to.is_empty() {
                faults.add(place, "names no region: write `from` and `to`");
            } else if way.from == way.to {
                faults.add(place.join("to"), "is the region itself: name another");
            }
        }
    }
}
