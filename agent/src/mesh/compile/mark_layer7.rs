//! Takes a change of what only layer 7 depends on into the store, and marks what depends on it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Compiler;
use super::authentication::jwt_rules;
use super::mark::Marks;
use super::routes::Route;
use super::targets::Target;
use crate::mesh::gateway::GatewayClass;
use crate::mesh::meta::ObjectName;
use crate::mesh::object::ObjectKey;
use crate::mesh::request_authentication::RequestAuthentication;
use crate::mesh::selector::TargetReference;

impl Compiler {
    pub(super) fn set_class(
        &mut self,
        name: &ObjectName,
        class: Option<&Arc<GatewayClass>>,
        marks: &mut Marks,
    ) {
        let old = match class {
            Some(class) => self
                .store
                .classes
                .insert(Arc::clone(&name.name), Arc::clone(class)),
            None => self.store.classes.remove(&name.name),
        };
        if old.as_ref() == class {
            return;
        }
        let of_class = self
            .store
            .gateways
            .iter()
            .filter(|gateway| *gateway.spec.gateway_class_name == *name.name);
        let gateways: Vec<_> = of_class.map(|one| one.meta.name.clone()).collect();
        for gateway in gateways {
            self.mark_gateway(&gateway, marks);
        }
    }

    pub(super) fn set_route(&mut self, key: &ObjectKey, route: Option<&Route>, marks: &mut Marks) {
        let old = match route {
            Some(route) => self.store.routes.insert(key.clone(), route.clone()),
            None => self.store.routes.remove(key),
        };
        if old.as_ref() == route {
            return;
        }
        if let Some(old) = &old {
            for attachment in old.attachments() {
                self.store.routes_of_parent.remove(attachment.parent, key);
            }
            for host in self.backend_hosts(old) {
                self.store.routes_of_backend.remove(host, key);
            }
            for delegate in old.delegates() {
                self.store.routes_of_delegate.remove(delegate, key);
            }
        }
        if let Some(new) = route {
            for attachment in new.attachments() {
                self.store
                    .routes_of_parent
                    .insert(attachment.parent, key.clone());
            }
            for host in self.backend_hosts(new) {
                self.store.routes_of_backend.insert(host, key.clone());
            }
            for delegate in new.delegates() {
                let delegates = &mut self.store.routes_of_delegate;
                delegates.insert(delegate, key.clone());
            }
        }
        marks.routes.insert(key.clone());
    }

    /// The hosts that a route's backends name.
    fn backend_hosts(&self, route: &Route) -> Vec<Arc<str>> {
        let namespace = &route.meta().name.namespace;
        let backends = route.backends().into_iter();
        let hosts = backends.filter_map(|one| self.backend_hostname(namespace, one));
        let named = route.hosts().into_iter();
        let named = named.map(|host| self.host_of(&route.meta().name, host));
        let mut all: Vec<_> = hosts.chain(named).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    pub(super) fn set_authentication(
        &mut self,
        key: &ObjectKey,
        policy: Option<&Arc<RequestAuthentication>>,
        marks: &mut Marks,
    ) {
        let name = &key.name;
        let old = self.store.authentications.set(name, policy.cloned());
        if old.as_ref() == policy {
            return;
        }
        let targets = |policy: &Arc<RequestAuthentication>| {
            self.targets(&policy.meta.name, policy.spec.targets())
        };
        let targets = (
            old.as_ref().map(targets).unwrap_or_default(),
            policy.map(targets).unwrap_or_default(),
        );
        match policy {
            Some(policy) => self.jwt_rules.insert(name.clone(), jwt_rules(policy)),
            None => self.jwt_rules.remove(name),
        };
        self.index_targets(key, targets, marks);
    }

    /// Replaces a policy in the index of targets, and marks the old and the new ones.
    pub(super) fn index_targets(
        &mut self,
        key: &ObjectKey,
        (old, new): (BTreeSet<Target>, BTreeSet<Target>),
        marks: &mut Marks,
    ) {
        for target in old {
            self.store.policies_of_target.remove(target.clone(), key);
            marks.layer7_targets.insert(target);
        }
        for target in new {
            self.store
                .policies_of_target
                .insert(target.clone(), key.clone());
            marks.layer7_targets.insert(target);
        }
    }

    /// What a policy's references mean.
    pub(super) fn targets<'a>(
        &self,
        policy: &ObjectName,
        references: impl Iterator<Item = &'a TargetReference>,
    ) -> BTreeSet<Target> {
        let root = &self.options.root_namespace;
        references
            .filter_map(|one| Target::of(one, &policy.namespace, root))
            .collect()
    }
}
