//! The rules of a VirtualService, those of its delegates in their places.

use std::borrow::Cow;
use std::sync::Arc;

use super::{Route, RouteFaults};
use crate::mesh::compile::Compiler;
use crate::mesh::compile::backends::Unresolved;
use crate::mesh::meta::ObjectName;
use crate::mesh::object::{Kind, ObjectKey};
use crate::mesh::virtual_service::{Delegate, VirtualHttpRoute, VirtualService};

/// One of `http`.
pub(super) struct VirtualRule<'a> {
    /// Its place, or that of the rule that delegates to it.
    pub(super) index: usize,
    /// Where its short names are of.
    pub(super) home: &'a ObjectName,
    pub(super) http: Cow<'a, VirtualHttpRoute>,
}

/// The VirtualServices that one delegates to.
pub(in crate::mesh::compile) fn delegates(
    route: &VirtualService,
) -> impl Iterator<Item = ObjectName> {
    let rules = route.spec.http.iter();
    let delegates = rules.filter_map(|rule| rule.delegate.as_ref());
    delegates.map(|delegate| full_name(&route.meta.name, delegate))
}

fn full_name(root: &ObjectName, delegate: &Delegate) -> ObjectName {
    let namespace = match &*delegate.namespace {
        "" => Arc::clone(&root.namespace),
        other => other.into(),
    };
    ObjectName {
        namespace,
        name: delegate.name.as_str().into(),
    }
}

impl Compiler {
    /// Rules that cannot be put in their place are left out, as Istio does, and told.
    pub(super) fn http_rules<'a>(
        &'a self,
        route: &'a VirtualService,
        faults: &mut RouteFaults,
    ) -> Vec<VirtualRule<'a>> {
        let root = &route.meta.name;
        let mut rules = Vec::new();
        for (index, http) in route.spec.http.iter().enumerate() {
            let Some(delegate) = &http.delegate else {
                let (home, http) = (root, Cow::Borrowed(http));
                rules.push(VirtualRule { index, home, http });
                continue;
            };
            let name = full_name(root, delegate);
            let Some(delegate) = self.delegate(&name) else {
                faults.unresolved.get_or_insert_with(|| Unresolved {
                    reason: "DelegateNotFound",
                    message: format!(
                        "there is no VirtualService {name} without hosts to delegate to"
                    ),
                });
                continue;
            };
            let around = self.qualified(root, http);
            let home = &delegate.meta.name;
            for own in &delegate.spec.http {
                match around.delegated(own) {
                    Some(merged) => rules.push(VirtualRule {
                        index,
                        home,
                        http: Cow::Owned(merged),
                    }),
                    None => faults.refuse(
                        "UnsupportedValue",
                        format!("a match of {name} lies within none of those that delegate to it: its rule is left out"),
                    ),
                }
            }
        }
        rules
    }

    fn delegate(&self, name: &ObjectName) -> Option<&VirtualService> {
        let key = ObjectKey {
            kind: Kind::VirtualService,
            name: name.clone(),
        };
        match self.store.routes.get(&key)? {
            Route::Virtual(route) if route.spec.is_delegate() => Some(route),
            _ => None,
        }
    }

    /// The rule with the hosts of its mirrors in full: in a delegate's place they would be of another namespace.
    fn qualified(&self, root: &ObjectName, http: &VirtualHttpRoute) -> VirtualHttpRoute {
        let mut http = http.clone();
        let several = http.mirrors.iter_mut().map(|one| &mut one.destination);
        for destination in http.mirror.iter_mut().chain(several) {
            destination.host = String::from(&*self.host_of(root, &destination.host));
        }
        http
    }
}
