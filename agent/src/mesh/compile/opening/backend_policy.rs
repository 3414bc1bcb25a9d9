//! BackendTLSPolicies about one service port: which counts, and what it comes to.

use std::cell::RefCell;
use std::sync::Arc;

use userspace_l7::model::{Authorities, Encryption, Service, UpstreamTls};

use super::{encryption, material};
use crate::mesh::backend_tls_policy::{BackendTlsPolicy, PolicyTarget};
use crate::mesh::compile::store::Owner;
use crate::mesh::compile::targets::Target;
use crate::mesh::compile::{Compiler, Notices};
use crate::mesh::meta::ObjectName;
use crate::mesh::object::{Kind, ObjectKey};

/// A reference to certificates that leads nowhere.
pub(in crate::mesh::compile) struct Unresolved {
    /// As conditions name it.
    pub(in crate::mesh::compile) reason: &'static str,
    pub(in crate::mesh::compile) message: String,
}

impl Compiler {
    /// The policy about a port of a service: one that names the port, else one about all of it; the oldest of several
    /// (GEP-713).
    pub(in crate::mesh::compile) fn backend_tls(
        &self,
        owner: &Owner,
        service: &Service,
        port: u16,
        notices: &RefCell<Notices>,
    ) -> Option<Encryption> {
        let name = &service.ports.get(&port)?.name;
        let policy = self.backend_policy(owner, Some(name))?;
        Some(self.backend_encryption(policy, notices))
    }

    /// The policy about a port of this name, or about what has no policy of its own.
    pub(in crate::mesh::compile) fn backend_policy(
        &self,
        owner: &Owner,
        port: Option<&str>,
    ) -> Option<&Arc<BackendTlsPolicy>> {
        let about = Target::Owner(owner.clone());
        let keys = self.store.policies_of_target.get(&about).iter();
        let keys = keys.filter(|key| key.kind == Kind::BackendTlsPolicy);
        let policies = keys.filter_map(|key| self.store.backend_tls.get(&key.name));
        let ranked = policies.filter_map(|policy| {
            let targets = policy.spec.target_refs.iter();
            let own = targets.filter(|target| self.is_about(policy, target, owner));
            // The port's own policy comes first.
            let rank = own.filter_map(|target| match target.section_name.as_deref() {
                Some(section) => (Some(section) == port).then_some(0),
                None => Some(1),
            });
            Some((rank.min()?, policy.meta.age_order(), policy))
        });
        let first =
            ranked.min_by(|(rank, age, _), (other, older, _)| (rank, age).cmp(&(other, older)));
        first.map(|(.., policy)| policy)
    }

    fn is_about(&self, policy: &BackendTlsPolicy, target: &PolicyTarget, owner: &Owner) -> bool {
        let root = &self.options.root_namespace;
        let meant = Target::of(&target.reference(), &policy.meta.name.namespace, root);
        meant == Some(Target::Owner(owner.clone()))
    }

    fn backend_encryption(
        &self,
        policy: &BackendTlsPolicy,
        notices: &RefCell<Notices>,
    ) -> Encryption {
        let validation = &policy.spec.validation;
        let (authorities, unresolved) = self.policy_authorities(policy);
        let names = validation.subject_alt_names.iter();
        let names = names.filter_map(|one| one.name());
        let upstream = match authorities {
            Some(authorities) => Ok(UpstreamTls {
                server_name: validation.hostname.as_str().into(),
                names: names.map(Arc::from).collect(),
                authorities,
                credential: None,
            }),
            None => Err(unresolved.into_iter().next().map_or_else(
                || "names no authority that could vouch for the server".to_owned(),
                |first| first.message,
            )),
        };
        let own = (Kind::BackendTlsPolicy, &policy.meta.name);
        encryption(own, upstream, notices)
    }

    /// Who may vouch for a policy's servers, as far as its references lead somewhere; and those that do not.
    pub(in crate::mesh::compile) fn policy_authorities(
        &self,
        policy: &BackendTlsPolicy,
    ) -> (Option<Authorities>, Vec<Unresolved>) {
        let validation = &policy.spec.validation;
        if validation.well_known_ca_certificates.is_some() {
            return (Some(Authorities::System), Vec::new());
        }
        let (mut all, mut unresolved) = (Vec::new(), Vec::new());
        for reference in &validation.ca_certificate_refs {
            let name = ObjectName {
                namespace: Arc::clone(&policy.meta.name.namespace),
                name: reference.name.as_str().into(),
            };
            let (kind, table) = match (reference.group.as_str(), reference.kind.as_str()) {
                ("", "ConfigMap") => (Kind::Authorities, &self.store.authorities),
                ("", "Secret") => (Kind::Secret, &self.store.secrets),
                (group, kind) => {
                    unresolved.push(Unresolved {
                        reason: "InvalidKind",
                        message: format!(
                            "names certificates in {kind} (group \"{group}\"): use ConfigMap or Secret"
                        ),
                    });
                    continue;
                }
            };
            let key = ObjectKey { kind, name };
            let found = match table.get(&key.name) {
                Some(source) => material::authorities(&key, source),
                None => Err(format!("names {key}, which is not there or has no ca.crt")),
            };
            match found {
                Ok(Authorities::Certificates(certificates)) => {
                    all.extend(certificates.iter().cloned());
                }
                Ok(_) => {}
                Err(message) => unresolved.push(Unresolved {
                    reason: "InvalidCACertificateRef",
                    message,
                }),
            }
        }
        let authorities = (!all.is_empty()).then(|| Authorities::Certificates(all.into()));
        (authorities, unresolved)
    }
}
