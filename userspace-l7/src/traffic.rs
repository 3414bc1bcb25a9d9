//! L2: what traffic policies remember between requests: who is busy, who is left alone, how much is in use, which
//! tokens are left. One for all workers of a node, so that a limit is a limit of the node.
//!
//! Locks are held for one decision and never across an `await`. Everything here is forgotten with the service or
//! the limit that it belongs to.

mod group;
mod quotas;

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use hashbrown::HashMap;
use tokio::time::Instant;

pub use group::{Attended, Group, Place, Wish};
use quotas::Quotas;

use crate::model::{NamespacedHostname, RateLimit, Snapshot};
use crate::route::rate_limit::{Quota, Taken};

/// What a group's policy is written for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GroupKey {
    /// The service.
    pub service: NamespacedHostname,
    /// Its port.
    pub port: u16,
    /// The subset, if one is asked for.
    pub subset: Option<Arc<str>>,
}

/// A node's memory of its traffic.
#[derive(Debug)]
pub struct Traffic {
    began: Instant,
    groups: RwLock<HashMap<GroupKey, Arc<Group>>>,
    quotas: Quotas,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            groups: RwLock::default(),
            quotas: Quotas::default(),
        }
    }
}

impl Traffic {
    /// What is remembered of a group of endpoints.
    pub fn group(&self, key: &GroupKey) -> Arc<Group> {
        // A panic elsewhere leaves the map as it was: nothing in here is half done.
        let known = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = known.get(key) {
            return Arc::clone(group);
        }
        drop(known);
        let mut all = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Arc::new(Group::new(self.began));
        Arc::clone(all.entry(key.clone()).or_insert_with(fresh))
    }

    /// Takes a token from the bucket of a local limit that is called `bucket`.
    pub fn take(&self, limit: &RateLimit, bucket: &str, quota: Quota) -> Taken {
        self.quotas
            .take(&limit.key, bucket, quota, self.began.elapsed())
    }

    /// Forgets what the mesh has no more: services, subsets, endpoints.
    pub fn retain(&self, snapshot: &Snapshot) {
        let mut all = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|key, group| {
            let traffic = snapshot.traffic.get(&key.service);
            let has_subset = key.subset.as_ref().is_none_or(|name| {
                traffic.is_some_and(|traffic| traffic.subsets.contains_key(name))
            });
            let exists = snapshot.services.contains_key(&key.service) && has_subset;
            if exists && group.remembers_endpoints() {
                let addresses = addresses(snapshot, &key.service);
                group.retain(|endpoint| addresses.contains(&endpoint.ip()));
            }
            exists
        });
    }
}

fn addresses(snapshot: &Snapshot, service: &NamespacedHostname) -> HashSet<IpAddr> {
    let endpoints = snapshot.endpoints_of(service).iter();
    let workloads = endpoints.filter_map(|endpoint| snapshot.workloads.get(&endpoint.workload));
    let addresses = workloads.flat_map(|workload| workload.addresses.iter().copied());
    addresses.collect()
}

#[cfg(test)]
mod tests;
