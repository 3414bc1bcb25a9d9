//! RateLimitPolicies → limits.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use userspace_l7::model::{RateLimit, RateLimitKey, RateLimiter};

use super::Compiler;
use super::mark::Marks;
use super::routes::RouteBody;
use super::store::Owner;
use super::targets::Target;
use crate::mesh::gateway::Gateway;
use crate::mesh::meta::ObjectName;
use crate::mesh::object::{Kind, ObjectKey};
use crate::mesh::rate_limit_policy::{GlobalLimiter, Limit, LimitKey, LimitWord, RateLimitPolicy};

/// The period of a limit that does not say.
const PERIOD: Duration = Duration::from_secs(1);
/// Descriptor domain of a global limiter that does not say.
const DOMAIN: &str = "culvert";
/// How long a global limiter may take (Envoy's default).
const LIMITER_TIMEOUT: Duration = Duration::from_millis(20);

impl Compiler {
    pub(super) fn set_rate_limits(
        &mut self,
        key: &ObjectKey,
        policy: Option<&Arc<RateLimitPolicy>>,
        marks: &mut Marks,
    ) {
        let old = self.store.rate_limits.set(&key.name, policy.cloned());
        if old.as_ref() == policy {
            return;
        }
        let targets = |policy: &Arc<RateLimitPolicy>| {
            self.targets(&policy.meta.name, policy.spec.target_refs.iter())
        };
        let targets = (
            old.as_ref().map(targets).unwrap_or_default(),
            policy.map(targets).unwrap_or_default(),
        );
        self.index_targets(key, targets, marks);
    }

    /// The limits on one port of an owner's services, to which these routes are attached.
    pub(super) fn rate_limits<'a>(
        &self,
        gateway: &Gateway,
        owner: &Owner,
        routes: impl Iterator<Item = &'a ObjectKey>,
    ) -> Vec<Arc<RateLimit>> {
        // The ordinary case, and a service may have thousands of routes.
        if self.store.rate_limits.iter().next().is_none() {
            return Vec::new();
        }
        let mut found = Vec::new();
        for target in [
            Target::Owner(owner.clone()),
            Target::Gateway(gateway.meta.name.clone()),
        ] {
            for policy in self.limiting(&target) {
                let limits = policy.spec.limits.iter().enumerate();
                found.extend(limits.map(|limit| self.rate_limit(policy, limit)));
            }
        }
        for route in routes {
            for policy in self.limiting(&Target::Route(route.clone())) {
                for (index, limit) in policy.spec.limits.iter().enumerate() {
                    let compiled = self.rate_limit(policy, (index, limit));
                    // A route is known by the names of its rules; they share the limit's buckets.
                    for name in self.rule_names(route) {
                        if compiled.route.as_ref().is_none_or(|own| *own == name) {
                            found.push(RateLimit {
                                route: Some(name),
                                ..compiled.clone()
                            });
                        }
                    }
                }
            }
        }
        found.into_iter().map(Arc::new).collect()
    }

    fn limiting(&self, target: &Target) -> impl Iterator<Item = &Arc<RateLimitPolicy>> {
        let keys = self.store.policies_of_target.get(target).iter();
        let keys = keys.filter(|key| key.kind == Kind::RateLimitPolicy);
        keys.filter_map(|key| self.store.rate_limits.get(&key.name))
    }

    fn rule_names(&self, route: &ObjectKey) -> Vec<Arc<str>> {
        let compiled = self.routes.get(route);
        let Some(RouteBody::Requests { entries, .. }) = compiled.map(|route| &route.body) else {
            return Vec::new();
        };
        let names = entries
            .iter()
            .map(|(_, entry)| Arc::clone(&entry.rule.name));
        let mut names: Vec<_> = names.collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    fn rate_limit(&self, policy: &RateLimitPolicy, (index, limit): (usize, &Limit)) -> RateLimit {
        let name = &policy.meta.name;
        let by = if let Some(global) = &policy.spec.global {
            self.global_limiter(name, global)
        } else {
            let requests = limit.requests.unwrap_or(1);
            RateLimiter::Local {
                requests,
                period: limit.period.map_or(PERIOD, |one| one.0),
                burst: limit.burst.unwrap_or(requests),
            }
        };
        RateLimit {
            key: format!("{name}[{index}]").into(),
            route: limit.route.as_deref().map(Arc::from),
            per: limit.per.iter().filter_map(limit_key).collect(),
            by,
        }
    }

    fn global_limiter(&self, policy: &ObjectName, global: &GlobalLimiter) -> RateLimiter {
        let namespace = global.service.namespace.as_deref().map(Arc::from);
        let service = self.service_key(&ObjectName {
            namespace: namespace.unwrap_or_else(|| Arc::clone(&policy.namespace)),
            name: global.service.name.as_str().into(),
        });
        RateLimiter::Global {
            service,
            // Checked when the object was read.
            port: u16::try_from(global.service.port).unwrap_or_default(),
            domain: global.domain.as_deref().unwrap_or(DOMAIN).into(),
            timeout: global.timeout.map_or(LIMITER_TIMEOUT, |one| one.0),
            fail_closed: global.fail_closed,
        }
    }
}

fn limit_key(key: &LimitKey) -> Option<RateLimitKey> {
    Some(match key {
        LimitKey::Word(LimitWord::ClientIdentity) => RateLimitKey::ClientIdentity,
        LimitKey::Word(LimitWord::ClientAddress) => RateLimitKey::ClientAddress,
        LimitKey::Word(LimitWord::Path) => RateLimitKey::Path,
        LimitKey::Word(LimitWord::Method) => RateLimitKey::Method,
        LimitKey::Header { header } => {
            RateLimitKey::Header(HeaderName::from_bytes(header.as_bytes()).ok()?)
        }
        LimitKey::Fixed { key, value } => RateLimitKey::Fixed {
            key: key.as_str().into(),
            value: value.as_str().into(),
        },
    })
}
