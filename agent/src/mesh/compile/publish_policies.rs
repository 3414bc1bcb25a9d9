//! Policies into the snapshot, and marks on the workloads that may name another set of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use userspace_l7::model::{AuthorizationPolicy, PolicyKey, Scope};

use super::mark::Marks;
use super::peers::PeerRules;
use super::policies::policy_key;
use super::{Compiler, Notices, Unit};
use crate::mesh::authorization;
use crate::mesh::meta::{Interner, Labels, ObjectName};
use crate::mesh::object::{Kind, ObjectKey};

impl Compiler {
    pub(super) fn update_policies(&mut self, marks: &mut Marks) -> bool {
        let mut changed = false;
        for name in std::mem::take(&mut marks.authorizations) {
            changed |= self.update_authorization(&name, marks);
        }
        let peers = std::mem::take(&mut marks.peers);
        if !peers.is_empty() {
            changed |= self.update_peers(&peers, marks);
        }
        changed
    }

    fn update_authorization(&mut self, name: &ObjectName, marks: &mut Marks) -> bool {
        let key = ObjectKey {
            kind: Kind::AuthorizationPolicy,
            name: name.clone(),
        };
        let policy = self.store.authorizations.get(name).map(Arc::clone);
        let (compiled, verdict) = match &policy {
            Some(policy) => {
                let (compiled, verdict) = self.compile_authorization(policy);
                (compiled, Some(verdict))
            }
            None => (None, None),
        };
        self.update_http_policy(name, policy.as_deref(), marks);
        let mut notices = Notices::default();
        if let Some(verdict) = &verdict
            && !verdict.accepted
        {
            notices.warn(Kind::AuthorizationPolicy, name, verdict.notice.clone());
        }
        if let Some(provider) = policy.as_ref().and_then(|one| self.unknown_provider(one)) {
            let message = format!(
                "asks the extension provider `{provider}`, which the mesh's configuration does not have, so what its rules \
                 match is refused: add it to extensionProviders"
            );
            notices.warn(Kind::AuthorizationPolicy, name, message);
        }
        self.say(Unit::Policy(name.clone()), notices.0);
        match verdict {
            Some(verdict) => self.statuses.insert(key.clone(), verdict.of(key)),
            None => self.statuses.remove(&key),
        };
        self.reselect_policy(name, compiled.as_ref(), marks);
        self.publish_policy(&policy_key(name), compiled.map(Arc::new))
    }

    /// Whom a policy with targets wants to ask, if that is nobody.
    fn unknown_provider<'p>(
        &self,
        policy: &'p authorization::AuthorizationPolicy,
    ) -> Option<&'p str> {
        let provider = policy.spec.provider.as_ref()?;
        let _target = policy.spec.targets().next()?;
        let is_known = self.authorizer(&provider.name).is_some();
        (!is_known).then_some(&*provider.name)
    }

    /// Keeps what a policy demands of requests, and marks its targets if that changed.
    fn update_http_policy(
        &mut self,
        name: &ObjectName,
        policy: Option<&authorization::AuthorizationPolicy>,
        marks: &mut Marks,
    ) {
        let targeting = policy.filter(|policy| policy.spec.targets().next().is_some());
        let compiled = targeting.map(|policy| self.http_policy(policy));
        if self.http_policies.get(name).map(|old| &**old) == compiled.as_ref() {
            return;
        }
        match compiled {
            Some(compiled) => self.http_policies.insert(name.clone(), Arc::new(compiled)),
            None => self.http_policies.remove(name),
        };
        if let Some(policy) = targeting {
            let targets = self.targets(name, policy.spec.targets());
            marks.layer7_targets.extend(targets);
        }
    }

    /// Keeps the list of policies that select by label, and marks the workloads that may name another set.
    fn reselect_policy(
        &mut self,
        name: &ObjectName,
        compiled: Option<&AuthorizationPolicy>,
        marks: &mut Marks,
    ) {
        let selecting = compiled.filter(|policy| policy.scope == Scope::WorkloadSelector);
        let selector = selecting.and_then(|_| {
            let policy = self.store.authorizations.get(name)?;
            policy
                .spec
                .selector
                .as_ref()
                .map(|one| one.match_labels.clone())
        });
        let selector = selector.map(|map| Labels::new(Some(map), &mut Interner::default()));
        let key = policy_key(name);
        let list = self
            .selecting_policies
            .entry(Arc::clone(&name.namespace))
            .or_default();
        let place = list.binary_search_by(|(_, other)| other.cmp(&key));
        let touched = match (place, selector) {
            (Ok(place), Some(selector)) => match list.get_mut(place) {
                Some(entry) if entry.0 != selector => {
                    entry.0 = selector;
                    true
                }
                _ => false,
            },
            (Ok(place), None) => {
                list.remove(place);
                true
            }
            (Err(place), Some(selector)) => {
                list.insert(place, (selector, key));
                true
            }
            (Err(_), None) => false,
        };
        if list.is_empty() {
            self.selecting_policies.remove(&name.namespace);
        }
        if touched && name.namespace == self.options.root_namespace {
            marks.everything();
        } else if touched {
            marks.namespace(&name.namespace);
        }
    }

    fn update_peers(&mut self, names: &BTreeSet<ObjectName>, marks: &mut Marks) -> bool {
        for name in names {
            let key = ObjectKey {
                kind: Kind::PeerAuthentication,
                name: name.clone(),
            };
            let verdict = self
                .store
                .peers
                .get(name)
                .map(|policy| self.peer_verdict(policy));
            match verdict {
                Some(verdict) => self.statuses.insert(key.clone(), verdict.of(key)),
                None => self.statuses.remove(&key),
            };
        }
        let root = &self.options.root_namespace;
        let mut spaces: BTreeSet<_> = names
            .iter()
            .map(|name| Arc::clone(&name.namespace))
            .collect();
        if spaces.contains(root) {
            // Every namespace inherits from it.
            spaces.extend(self.peer_rules.keys().cloned());
            marks.everything();
        }
        let mut changed = false;
        for namespace in spaces {
            let there = self.store.peers.in_namespace(&namespace).next().is_some();
            let rules = if there {
                self.compile_peers(&namespace)
            } else {
                PeerRules::default()
            };
            let old = self.peer_rules.remove(&namespace).unwrap_or_default();
            for key in old
                .policies
                .keys()
                .filter(|key| !rules.policies.contains_key(*key))
            {
                changed |= self.publish_policy(key, None);
            }
            for (key, policy) in &rules.policies {
                changed |= self.publish_policy(key, Some(Arc::clone(policy)));
            }
            if there {
                self.peer_rules.insert(Arc::clone(&namespace), rules);
            }
            marks.namespace(&namespace);
        }
        let key = self.static_strict_key();
        let strict = self.static_strict().map(Arc::new);
        changed | self.publish_policy(&key, strict)
    }

    /// Puts, replaces or removes a policy that objects come to; none of those holds where policies are announced.
    fn publish_policy(
        &mut self,
        key: &PolicyKey,
        policy: Option<Arc<AuthorizationPolicy>>,
    ) -> bool {
        self.announced.is_none() && self.put_policy(key, policy)
    }

    /// Puts, replaces or removes a policy.
    pub(super) fn put_policy(
        &mut self,
        key: &PolicyKey,
        policy: Option<Arc<AuthorizationPolicy>>,
    ) -> bool {
        let old = self.current.policies.get(key).cloned();
        if old == policy {
            return false;
        }
        let scopes = [&old, &policy].map(|one| one.as_ref().map(|policy| policy.scope));
        match policy {
            Some(policy) => self.current.policies.insert(key.clone(), policy),
            None => self.current.policies.remove(key),
        };
        if scopes.contains(&Some(Scope::Global)) {
            self.current.global_policies = self.policies_in(None).into();
        }
        if scopes.contains(&Some(Scope::Namespace)) {
            let policies = self.policies_in(Some(&key.namespace));
            let namespaces = &mut self.current.namespace_policies;
            if policies.is_empty() {
                namespaces.remove(&key.namespace);
            } else {
                namespaces.insert(Arc::clone(&key.namespace), policies.into());
            }
        }
        true
    }

    /// Policies of scope Global, or of scope Namespace in one namespace, sorted by name.
    fn policies_in(&self, namespace: Option<&str>) -> Vec<Arc<AuthorizationPolicy>> {
        if let Some(announced) = &self.announced {
            return announced.policies_in(namespace);
        }
        let space = namespace.unwrap_or(&self.options.root_namespace);
        let scope = if namespace.is_some() {
            Scope::Namespace
        } else {
            Scope::Global
        };
        let names = self
            .store
            .authorizations
            .in_namespace(space)
            .map(|policy| policy_key(&policy.meta.name));
        let compiled = names.filter_map(|key| self.current.policies.get(&key));
        compiled
            .filter(|policy| policy.scope == scope)
            .cloned()
            .collect()
    }
}
