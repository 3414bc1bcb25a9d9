//! What the mesh's configuration says, compiled once for all that depend on it.

use std::sync::Arc;

use userspace_l7::model::{PathNormalization, RetryPolicy};

use super::mark::Marks;
use super::{Compiler, MeshOptions, Notices, Unit};
use crate::mesh::authorization::PolicyAction;
use crate::mesh::mesh_config::{MeshConfig, MeshConfigSpec, Normalization};
use crate::mesh::meta::ObjectName;
use crate::mesh::object::Kind;
use crate::mesh::retries::HttpRetry;

impl Compiler {
    pub(super) fn set_mesh_config(
        &mut self,
        name: &ObjectName,
        config: Option<&Arc<MeshConfig>>,
        marks: &mut Marks,
    ) {
        let MeshOptions {
            mesh_config,
            root_namespace,
            ..
        } = &self.options;
        if name.name != *mesh_config || name.namespace != *root_namespace {
            return;
        }
        let old = std::mem::replace(&mut self.store.mesh_config, config.cloned());
        if old.as_ref() == config {
            return;
        }
        // Nearly everything of layer 7 may depend on it, and it hardly ever changes.
        let policies = self.store.authorizations.iter();
        marks
            .authorizations
            .extend(policies.map(|policy| policy.meta.name.clone()));
        marks.routes.extend(self.store.routes.keys().cloned());
        marks
            .layer7
            .extend(self.current.services_layer7.keys().cloned());
        marks.traffic.extend(self.current.services.keys().cloned());
        let telemetries = self.store.telemetries.iter();
        marks
            .telemetries
            .extend(telemetries.map(|one| one.meta.name.clone()));
        marks.settings = true;
        self.say_trust_domain(name);
    }

    /// Says so if Istio's identities are of another trust domain than ours: neither side lets the other in.
    fn say_trust_domain(&mut self, name: &ObjectName) {
        let mut notices = Notices::default();
        let own = self.options.mesh.trust_domain.as_str();
        let said = self.mesh_config().map(|config| &config.trust_domain);
        if let Some(said) = said.filter(|said| !said.is_empty() && *said != own) {
            let said = said.escape_debug();
            let what = format!(
                "says trustDomain {said}, and identities are of {own} here: start agents and controllers with --trust-domain {said}"
            );
            notices.warn(Kind::MeshConfig, name, what);
        }
        self.say(Unit::MeshConfig, notices.0);
    }

    /// Marks the policies that ask somebody: who that is may have changed.
    pub(super) fn mark_askers(&self, marks: &mut Marks) {
        let policies = self.store.authorizations.iter();
        let asking = policies.filter(|policy| policy.spec.action == PolicyAction::Custom);
        marks
            .authorizations
            .extend(asking.map(|policy| policy.meta.name.clone()));
    }

    /// Brings the settings that hold for all requests into the snapshot.
    pub(super) fn update_settings(&mut self, marks: &mut Marks) -> bool {
        if !std::mem::take(&mut marks.settings) {
            return false;
        }
        let normalization = self
            .mesh_config()
            .map(|config| config.path_normalization.normalization);
        let normalization = match normalization.unwrap_or_default() {
            Normalization::Default | Normalization::Base => PathNormalization::Base,
            Normalization::None => PathNormalization::None,
            Normalization::MergeSlashes => PathNormalization::MergeSlashes,
            Normalization::DecodeAndMergeSlashes => PathNormalization::DecodeAndMergeSlashes,
        };
        let changed = self.current.path_normalization != normalization;
        self.current.path_normalization = normalization;
        changed
    }

    pub(super) fn mesh_config(&self) -> Option<&MeshConfigSpec> {
        self.store.mesh_config.as_ref().map(|config| &config.spec)
    }

    /// The mesh's own trust domain, then its aliases.
    pub(super) fn trust_domains(&self) -> Vec<Arc<str>> {
        let own = self.options.mesh.trust_domain.as_str();
        let aliases = self.mesh_config();
        let aliases = aliases
            .into_iter()
            .flat_map(|config| &config.trust_domain_aliases);
        let mut all = vec![Arc::from(own)];
        for alias in aliases {
            if !all.iter().any(|known| **known == **alias) {
                all.push(alias.as_str().into());
            }
        }
        all
    }

    /// How requests are retried that no route speaks about.
    pub(super) fn default_retry(&self) -> RetryPolicy {
        let own = self
            .mesh_config()
            .and_then(|config| config.default_http_retry_policy.as_ref());
        own.map_or_else(RetryPolicy::default, HttpRetry::compile)
    }
}
