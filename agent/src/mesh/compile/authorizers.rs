//! Extension providers that authorize → whom CUSTOM policies ask.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use userspace_l7::model::{
    CheckedBody, ExternalAuthorizer, ExternalAuthorizerProtocol, HttpAuthorizer,
    NamespacedHostname, StringMatch,
};

use super::Compiler;
use super::policies::reading::patterns;
use crate::mesh::ext_authz::{ExtAuthz, IncludedBody};

/// Istio's limit on an answer of an external authorizer: 10 min, in effect none.
const AUTHORIZER_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// What is answered if it does not answer.
const STATUS_ON_ERROR: StatusCode = StatusCode::FORBIDDEN;

impl Compiler {
    /// The authorizer that the mesh's configuration calls so.
    pub(super) fn authorizer(&self, name: &str) -> Option<Arc<ExternalAuthorizer>> {
        let providers = &self.mesh_config()?.extension_providers;
        let provider = providers.iter().find(|provider| provider.name == name)?;
        let (settings, protocol) = match (
            &provider.envoy_ext_authz_grpc,
            &provider.envoy_ext_authz_http,
        ) {
            (Some(grpc), _) => (grpc, ExternalAuthorizerProtocol::Grpc),
            (None, Some(http)) => {
                let protocol = ExternalAuthorizerProtocol::Http(http_authorizer(http));
                (http, protocol)
            }
            (None, None) => return None,
        };
        // What follows was checked when the object was read.
        let status = settings.status_on_error.as_deref();
        let status = status.and_then(|text| text.parse().ok());
        Some(Arc::new(ExternalAuthorizer {
            name: name.into(),
            service: self.provider_service(&settings.service),
            port: u16::try_from(settings.port).unwrap_or_default(),
            protocol,
            timeout: settings.timeout.map_or(AUTHORIZER_TIMEOUT, |one| one.0),
            fail_open: settings.fail_open,
            status_on_error: status.unwrap_or(STATUS_ON_ERROR),
            body: settings.include_request_body_in_check.map(checked_body),
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
    let mut request_headers = names(&settings.include_request_headers_in_check);
    request_headers.extend(names(&settings.include_headers_in_check));
    HttpAuthorizer {
        path_prefix: settings.path_prefix.as_str().into(),
        request_headers,
        additional_headers: headers(&settings.include_additional_headers_in_check),
        upstream_headers: names(&settings.headers_to_upstream_on_allow),
        downstream_headers_on_allow: names(&settings.headers_to_downstream_on_allow),
        downstream_headers_on_deny: names(&settings.headers_to_downstream_on_deny),
    }
}

/// Header names have no case.
fn names(list: &[String]) -> Vec<StringMatch> {
    let lower: Vec<_> = list.iter().map(|name| name.to_ascii_lowercase()).collect();
    patterns(&lower)
}

fn headers(list: &BTreeMap<String, String>) -> Vec<(HeaderName, HeaderValue)> {
    let pairs = list.iter().filter_map(|(name, value)| {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        Some((name, HeaderValue::from_str(value).ok()?))
    });
    pairs.collect()
}

fn checked_body(body: IncludedBody) -> CheckedBody {
    CheckedBody {
        max_bytes: usize::try_from(body.max_request_bytes).unwrap_or(usize::MAX),
        allow_partial: body.allow_partial_message,
        as_bytes: body.pack_as_bytes,
    }
}
