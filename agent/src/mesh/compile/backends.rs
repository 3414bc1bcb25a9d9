//! Backend references → services, or why they are none.

use std::sync::Arc;

use userspace_l7::model::{BackendTarget, NamespacedHostname};

use super::Compiler;
use super::store::Owner;
use crate::mesh::meta::ObjectName;
use crate::mesh::route::Backend;

/// Why a reference of a route does not resolve, in the manner of its condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unresolved {
    /// One word.
    pub(super) reason: &'static str,
    /// One sentence.
    pub(super) message: String,
}

impl Unresolved {
    fn new(reason: &'static str, message: String) -> Self {
        Self { reason, message }
    }

    /// The target that answers 500 for its share.
    pub(super) fn target(&self) -> BackendTarget {
        BackendTarget::Invalid {
            why: self.message.as_str().into(),
        }
    }
}

/// The group of Istio's own backends.
const ISTIO: &str = "networking.istio.io";

impl Compiler {
    /// The hostname that a reference asks for, whether it is there or not.
    pub(super) fn backend_hostname(
        &self,
        namespace: &Arc<str>,
        reference: Backend<'_>,
    ) -> Option<Arc<str>> {
        match (reference.group, reference.kind) {
            ("" | "core", "Service") => {
                let known = self.known_service(namespace, reference);
                let unknown = || self.service_key(&backend_name(namespace, reference));
                Some(known.unwrap_or_else(unknown).hostname)
            }
            (ISTIO, "Hostname") => Some(reference.name.to_ascii_lowercase().into()),
            _ => None,
        }
    }

    /// What a backend reference of a route in `namespace` stands for.
    pub(super) fn backend(
        &self,
        namespace: &Arc<str>,
        reference: Backend<'_>,
    ) -> Result<(NamespacedHostname, u16), Unresolved> {
        let key = match (reference.group, reference.kind) {
            ("" | "core", "Service") => self.service_backend(namespace, reference)?,
            (ISTIO, "Hostname") => self.hostname_backend(namespace, reference)?,
            (group, kind) => {
                let group = if group.is_empty() { "core" } else { group };
                let message = format!("backend kind {kind} of group {group} is not supported");
                return Err(Unresolved::new("InvalidKind", message));
            }
        };
        let port = reference.port.and_then(|port| u16::try_from(port).ok());
        let Some(port) = port else {
            let message = format!("backend {} needs a port", reference.name);
            return Err(Unresolved::new("InvalidDestination", message));
        };
        let service = self.current.services.get(&key);
        if service.is_none_or(|service| !service.ports.contains_key(&port)) {
            let message = format!("backend {} has no port {port}", key.hostname);
            return Err(Unresolved::new("InvalidDestination", message));
        }
        Ok((key, port))
    }

    /// The key of a Service that is there and was compiled: what the reference names, without writing it anew.
    fn known_service(
        &self,
        namespace: &Arc<str>,
        reference: Backend<'_>,
    ) -> Option<NamespacedHostname> {
        let space = reference.namespace.unwrap_or(namespace);
        let service = self.store.services.named(space, reference.name)?;
        let output = self
            .outputs
            .get(&Owner::Service(service.meta.name.clone()))?;
        let (compiled, _) = output.services.first()?;
        Some(compiled.key.clone())
    }

    fn service_backend(
        &self,
        namespace: &Arc<str>,
        reference: Backend<'_>,
    ) -> Result<NamespacedHostname, Unresolved> {
        if let Some(key) = self.known_service(namespace, reference) {
            return Ok(key);
        }
        if reference.name.contains('.') {
            let message = format!(
                "backend name {} is a hostname: write the Service's name",
                reference.name
            );
            return Err(Unresolved::new("InvalidDestination", message));
        }
        let name = backend_name(namespace, reference);
        let key = self.service_key(&name);
        if self.store.services.get(&name).is_none() {
            let message = format!("backend({}) not found", key.hostname);
            return Err(Unresolved::new("BackendNotFound", message));
        }
        Ok(key)
    }

    /// A host that the mesh knows, whoever declares it.
    fn hostname_backend(
        &self,
        namespace: &Arc<str>,
        reference: Backend<'_>,
    ) -> Result<NamespacedHostname, Unresolved> {
        if reference.namespace.is_some() {
            let message = "a backend of kind Hostname has no namespace".to_owned();
            return Err(Unresolved::new("InvalidDestination", message));
        }
        let hostname = reference.name.to_ascii_lowercase();
        let found = self.current.service_named(&hostname, namespace);
        found.map(|service| service.key.clone()).ok_or_else(|| {
            let message = format!("backend({hostname}) not found");
            Unresolved::new("BackendNotFound", message)
        })
    }
}

fn backend_name(namespace: &Arc<str>, reference: Backend<'_>) -> ObjectName {
    let other = reference.namespace.map(Arc::from);
    ObjectName {
        namespace: other.unwrap_or_else(|| Arc::clone(namespace)),
        name: reference.name.into(),
    }
}
