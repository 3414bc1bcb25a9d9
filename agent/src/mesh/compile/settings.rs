//! What the mesh's configuration says, compiled once for all that depend on it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use userspace_l7::model::{
    ExternalAuthorizer, ExternalAuthorizerProtocol, HttpAuthorizer, NamespacedHostname,
    PathNormalization, RetryPolicy,
};

use super::Compiler;
use super::mark::Marks;
use super::policies::reading::patterns;
use crate::mesh::authorization::PolicyAction;
use crate::mesh::mesh_config::{CONFIG_MAP, ExtAuthz, MeshConfig, MeshConfigSpec, Normalization};
use crate::mesh::meta::ObjectName;
use crate::mesh::retries::HttpRetry;

/// Istio's limit on an answer of an external authorizer: 10 min, in effect none.
const AUTHORIZER_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// What is answered if it does not answer.
const STATUS_ON_ERROR: u16 = 403;

impl Compiler {
    pub(super) fn set_mesh_config(
        &mut self,
        name: &ObjectName,
        config: Option<&Arc<MeshConfig>>,
        marks: &mut Marks,
    ) {
        if *name.name != *CONFIG_MAP || name.namespace != self.options.root_namespace {
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
        marks.settings = true;
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

    /// The authorizer that the mesh's configuration calls so.
    pub(super) fn authorizer(&self, name: &str) -> Option<Arc<ExternalAuthorizer>> {
        let providers = &self.mesh_config()?.extension_providers;
        let provider = providers.iter().find(|provider| provider.name == name)?;
        let (settings, is_grpc) = match (
            &provider.envoy_ext_authz_grpc,
            &provider.envoy_ext_authz_http,
        ) {
            (Some(grpc), _) => (grpc, true),
            (None, Some(http)) => (http, false),
            (None, None) => return None,
        };
        let protocol = if is_grpc {
            ExternalAuthorizerProtocol::Grpc
        } else {
            ExternalAuthorizerProtocol::Http(http_authorizer(settings))
        };
        let status = settings
            .status_on_error
            .as_deref()
            .and_then(|text| text.parse().ok());
        Some(Arc::new(ExternalAuthorizer {
            name: name.into(),
            service: self.provider_service(&settings.service),
            port: settings.port,
            protocol,
            timeout: settings.timeout.map_or(AUTHORIZER_TIMEOUT, |one| one.0),
            fail_open: settings.fail_open,
            status_on_error: status.unwrap_or(STATUS_ON_ERROR),
        }))
    }

    /// `[<namespace>/]<hostname>`: without a namespace, that of the Service or of the ServiceEntry that has
    /// the host.
    pub(super) fn provider_service(&self, text: &str) -> NamespacedHostname {
        let (namespace, hostname) = match text.split_once('/') {
            Some((namespace, hostname)) => (Some(namespace), hostname),
            None => (None, text),
        };
        let hostname = hostname.to_ascii_lowercase();
        let suffix = format!(".svc.{}", self.options.mesh.cluster_domain);
        let of_service = || Some(hostname.strip_suffix(&suffix)?.split_once('.')?.1.into());
        let of_entry = || {
            let entries = self.store.service_entries.iter();
            let declaring = entries.filter(|entry| {
                let mut hosts = entry.spec.hosts.iter();
                hosts.any(|host| host.eq_ignore_ascii_case(&hostname))
            });
            declaring
                .map(|entry| Arc::clone(&entry.meta.name.namespace))
                .min()
        };
        let found = namespace.map(Arc::from).or_else(of_service);
        let found = found.or_else(of_entry);
        NamespacedHostname {
            namespace: found.unwrap_or_else(|| Arc::clone(&self.options.root_namespace)),
            hostname: hostname.into(),
        }
    }
}

fn http_authorizer(settings: &ExtAuthz) -> HttpAuthorizer {
    let mut request_headers = patterns(&settings.include_request_headers_in_check);
    request_headers.extend(patterns(&settings.include_headers_in_check));
    HttpAuthorizer {
        path_prefix: settings.path_prefix.as_str().into(),
        request_headers,
        additional_headers: headers(&settings.include_additional_headers_in_check),
        upstream_headers: patterns(&settings.headers_to_upstream_on_allow),
        downstream_headers: patterns(&settings.headers_to_downstream_on_deny),
    }
}

fn headers(list: &BTreeMap<String, String>) -> Vec<(HeaderName, Arc<str>)> {
    let pairs = list.iter().filter_map(|(name, value)| {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        Some((name, value.as_str().into()))
    });
    pairs.collect()
}
