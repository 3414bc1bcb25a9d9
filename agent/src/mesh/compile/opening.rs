//! What DestinationRules and BackendTLSPolicies say of TLS and PROXY headers → what connections to endpoints begin with.

mod backend_policy;
mod material;
mod rule;

use std::cell::RefCell;
use std::sync::Arc;

use userspace_l7::model::{Encryption, UpstreamTls};
use userspace_l7::origination;

use super::mark::Marks;
use super::targets::Target;
use super::{Compiler, Notices};
use crate::mesh::backend_tls_policy::{BackendTlsPolicy, PolicyTarget};
use crate::mesh::credential::{AUTHORITIES_SUFFIX, CredentialSource};
use crate::mesh::meta::ObjectName;
use crate::mesh::object::{Kind, ObjectKey};

pub(super) use rule::{OfRule, Rules};

/// Why a policy's TLS cannot be had, to be read after the policy's name: "… names Secret a/b, which is not there".
type Unusable = String;

/// TLS as a policy asks for it, or why there is none. What would fail on every connection is found out here.
fn encryption(
    (kind, name): (Kind, &ObjectName),
    found: Result<UpstreamTls, Unusable>,
    notices: &RefCell<Notices>,
) -> Encryption {
    let checked = found.and_then(|tls| match origination::check(&tls) {
        Ok(()) => Ok(tls),
        Err(error) => Err(format!("asks for TLS that cannot be had: {error}")),
    });
    match checked {
        Ok(tls) => Encryption::Tls(Arc::new(tls)),
        Err(why) => {
            let said = format!("{kind} {name} {why}");
            let notice = format!("{why}: nobody is connected by it");
            notices.borrow_mut().warn(kind, name, notice);
            Encryption::Unusable(said.into())
        }
    }
}

impl Compiler {
    pub(super) fn set_credentials(
        &mut self,
        key: &ObjectKey,
        source: Option<&Arc<CredentialSource>>,
        marks: &mut Marks,
    ) {
        let table = if key.kind == Kind::Secret {
            &mut self.store.secrets
        } else {
            &mut self.store.authorities
        };
        let old = table.set(&key.name, source.cloned());
        if old.as_ref() != source {
            self.mark_dependents(key, marks);
        }
    }

    /// Marks whatever names a Secret or `ConfigMap`: it changes rarely, so they are searched.
    fn mark_dependents(&self, key: &ObjectKey, marks: &mut Marks) {
        let ObjectName { namespace, name } = &key.name;
        let rules = self.store.destination_rules.in_namespace(namespace);
        let rules = rules.filter(|rule| {
            let mut names = rule.spec.credentials();
            let of_authorities = name.strip_suffix(AUTHORITIES_SUFFIX);
            key.kind == Kind::Secret
                && names.any(|one| *one == **name || Some(one) == of_authorities)
        });
        for rule in rules {
            let host = self.host_of(&rule.meta.name, &rule.spec.host);
            self.mark_host(&host, marks);
        }
        let kind = key.kind.to_string();
        let policies = self.store.backend_tls.in_namespace(namespace);
        for policy in policies.filter(|policy| {
            let mut refs = policy.spec.validation.ca_certificate_refs.iter();
            refs.any(|one| one.kind == kind && *one.name == **name)
        }) {
            self.mark_backend_tls(policy, marks);
        }
    }

    pub(super) fn set_backend_tls(
        &mut self,
        key: &ObjectKey,
        policy: Option<&Arc<BackendTlsPolicy>>,
        marks: &mut Marks,
    ) {
        let old = self.store.backend_tls.set(&key.name, policy.cloned());
        if old.as_ref() == policy {
            return;
        }
        for policy in [old.as_ref(), policy].into_iter().flatten() {
            self.mark_backend_tls(policy, marks);
        }
        let targets = |policy: &Arc<BackendTlsPolicy>| {
            let references: Vec<_> = policy
                .spec
                .target_refs
                .iter()
                .map(PolicyTarget::reference)
                .collect();
            self.targets(&policy.meta.name, references.iter())
        };
        let targets = (
            old.as_ref().map(targets).unwrap_or_default(),
            policy.map(targets).unwrap_or_default(),
        );
        for target in targets.0 {
            self.store.policies_of_target.remove(target, key);
        }
        for target in targets.1 {
            self.store.policies_of_target.insert(target, key.clone());
        }
    }

    fn mark_backend_tls(&self, policy: &BackendTlsPolicy, marks: &mut Marks) {
        let root = &self.options.root_namespace;
        for target in &policy.spec.target_refs {
            let target = Target::of(&target.reference(), &policy.meta.name.namespace, root);
            if let Some(Target::Owner(owner)) = target {
                marks.traffic.extend(self.owner_keys(&owner));
            }
        }
    }
}
