//! What policies speak about by `targetRefs`.

use std::sync::Arc;

use super::Compiler;
use super::mark::Marks;
use super::store::Owner;
use crate::mesh::meta::ObjectName;
use crate::mesh::object::{Kind, ObjectKey};
use crate::mesh::selector::TargetReference;

/// What a policy may be attached to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Target {
    /// A Service or ServiceEntry.
    Owner(Owner),
    /// All that is bound to a waypoint.
    Gateway(ObjectName),
    /// All that is bound to a waypoint of a class.
    Class(Arc<str>),
    /// What a route is attached to.
    Route(ObjectKey),
}

impl Target {
    /// What a reference of a policy in `namespace` means; none if the policy may not speak about it.
    pub(super) fn of(
        reference: &TargetReference,
        namespace: &Arc<str>,
        root_namespace: &str,
    ) -> Option<Self> {
        let name = || ObjectName {
            namespace: Arc::clone(namespace),
            name: reference.name.as_str().into(),
        };
        match reference.kind.as_str() {
            "Service" => Some(Self::Owner(Owner::Service(name()))),
            "ServiceEntry" => Some(Self::Owner(Owner::Entry(name()))),
            "Gateway" => Some(Self::Gateway(name())),
            "HTTPRoute" => Some(Self::Route(ObjectKey {
                kind: Kind::HttpRoute,
                name: name(),
            })),
            // Only who speaks for the whole mesh may speak about all waypoints of a class.
            "GatewayClass" if **namespace == *root_namespace => {
                Some(Self::Class(reference.name.as_str().into()))
            }
            _ => None,
        }
    }
}

impl Compiler {
    /// Marks the services and workloads that marked targets stand for.
    pub(super) fn spread_targets(&self, marks: &mut Marks) {
        for target in std::mem::take(&mut marks.layer7_targets) {
            match target {
                Target::Owner(owner) => marks.layer7.extend(self.owner_keys(&owner)),
                Target::Route(route) => {
                    let compiled = self.routes.get(&route);
                    let attachments = compiled.into_iter().flat_map(|one| &one.attachments);
                    for attachment in attachments {
                        marks.layer7.extend(self.owner_keys(&attachment.parent));
                    }
                }
                Target::Gateway(name) => self.mark_bound(&|gateway| *gateway == name, marks),
                Target::Class(class) => {
                    let of_class = |gateway: &ObjectName| {
                        let gateway = self.store.gateways.get(gateway);
                        gateway.is_some_and(|one| *one.spec.gateway_class_name == *class)
                    };
                    self.mark_bound(&of_class, marks);
                }
            }
        }
    }

    /// Marks everything that is bound to such a waypoint.
    fn mark_bound(&self, wanted: &dyn Fn(&ObjectName) -> bool, marks: &mut Marks) {
        for output in self.outputs.values() {
            let bound = output.waypoint.as_ref();
            if bound.is_some_and(|bound| bound.gateways().any(wanted)) {
                let services = output.services.iter();
                marks
                    .layer7
                    .extend(services.map(|(service, _)| service.key.clone()));
            }
        }
        let bound = self.bindings.iter().filter(|(_, gateway)| wanted(gateway));
        marks
            .layer7_workloads
            .extend(bound.map(|(uid, _)| uid.clone()));
    }
}
