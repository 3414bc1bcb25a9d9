//! The token buckets of all local limits, by the limit's name.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::route::rate_limit::{Buckets, Quota, Taken};

/// Limits at which the idle ones are looked for. More than this only if so many are in use at once.
const MANY: usize = 1_024;

#[derive(Debug, Default)]
pub(super) struct Quotas {
    by_limit: RwLock<HashMap<Arc<str>, Arc<Buckets>>>,
}

impl Quotas {
    pub(super) fn take(
        &self,
        limit: &Arc<str>,
        bucket: &str,
        quota: Quota,
        now: Duration,
    ) -> Taken {
        self.buckets(limit, now).take(bucket, quota, now)
    }

    fn buckets(&self, limit: &Arc<str>, now: Duration) -> Arc<Buckets> {
        // A panic elsewhere leaves the map as it was: nothing in here is half done.
        let known = self.by_limit.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(buckets) = known.get(limit) {
            return Arc::clone(buckets);
        }
        drop(known);
        let mut all = self
            .by_limit
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MANY {
            // A full bucket is as good as none, so a withdrawn limit is gone once its last period is over.
            all.retain(|_, buckets| !buckets.are_full(now));
        }
        Arc::clone(all.entry(Arc::clone(limit)).or_default())
    }
}
