//! BackendTLSPolicies: whether each target has the policy, and whether its certificates are there.

use std::sync::Arc;

use super::policy::Unbound;
use super::{ROUTE_CONTROLLER, object, observed};
use crate::mesh::backend_tls_policy::{BackendTlsPolicy, PolicyTarget};
use crate::mesh::compile::Compiler;
use crate::mesh::compile::targets::Target;
use crate::mesh::object::Kind;
use crate::mesh::status::{
    AncestorStatus, Condition, ObjectStatus, Reference, Status, fails, holds,
};

impl Compiler {
    pub(super) fn backend_tls_statuses(&self, all: &mut Vec<ObjectStatus>) {
        for policy in self.store.backend_tls.iter() {
            let resolved = self.resolved_certificates(policy);
            let targets = policy.spec.target_refs.iter();
            let ancestors = targets.map(|target| {
                let conditions = vec![self.backend_tls_accepted(policy, target), resolved.clone()];
                AncestorStatus {
                    ancestor_ref: Reference {
                        group: target.group.clone(),
                        kind: target.kind.clone(),
                        namespace: None,
                        name: target.name.clone(),
                        section_name: target.section_name.clone(),
                        port: None,
                    },
                    controller_name: ROUTE_CONTROLLER.to_owned(),
                    conditions: observed(conditions, &policy.meta),
                }
            });
            let status = Status {
                ancestors: ancestors.collect(),
                ..Status::default()
            };
            all.push(object(&Kind::BackendTlsPolicy, &policy.meta.name, status));
        }
    }

    fn resolved_certificates(&self, policy: &BackendTlsPolicy) -> Condition {
        let (_, unresolved) = self.policy_authorities(policy);
        let Some(first) = unresolved.first() else {
            let message = "all certificates are there";
            return holds("ResolvedRefs", "ResolvedRefs", message);
        };
        let messages: Vec<_> = unresolved.iter().map(|one| one.message.as_str()).collect();
        fails("ResolvedRefs", first.reason, messages.join("; "))
    }

    fn backend_tls_accepted(
        &self,
        policy: &Arc<BackendTlsPolicy>,
        target: &PolicyTarget,
    ) -> Condition {
        let namespace = &policy.meta.name.namespace;
        let refuse = |reason: &str, message: String| fails("Accepted", reason, message);
        let (authorities, _) = self.policy_authorities(policy);
        if authorities.is_none() {
            let message = "no certificate of an authority is there: nobody is connected by it";
            return refuse("NoValidCACertificate", message.to_owned());
        }
        let reference = target.reference();
        let waypoint = match self.bound_to(&reference, namespace) {
            Ok(waypoint) => waypoint,
            Err(Unbound { reason, message }) => return refuse(reason, message),
        };
        let root = &self.options.root_namespace;
        if let Some(Target::Owner(owner)) = Target::of(&reference, namespace, root) {
            let section = target.section_name.as_deref();
            let services = self.outputs.get(&owner).into_iter();
            let services = services.flat_map(|output| &output.services);
            let mut ports = services.flat_map(|(service, _)| service.ports.values());
            if let Some(section) = section
                && !ports.any(|port| *port.name == *section)
            {
                let message = format!("{} {} has no port {section}", target.kind, target.name);
                return refuse("TargetNotFound", message);
            }
            let first = self.backend_policy(&owner, section);
            if let Some(first) = first
                && !Arc::ptr_eq(first, policy)
            {
                let message = format!("{} is older, and about the same", first.meta.name);
                return refuse("Conflicted", message);
            }
        }
        holds("Accepted", "Accepted", format!("bound to {waypoint}"))
    }
}
