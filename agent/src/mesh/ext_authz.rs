//! An external authorizer of the mesh's configuration (`extensionProviders[].envoyExtAuthzGrpc` and
//! `envoyExtAuthzHttp`).

use std::collections::BTreeMap;

use http::HeaderValue;
use serde::Deserialize;

use super::duration::IstioDuration;
use super::field::{Faults, FieldPath};
use super::route::check_header_name;
use super::syntax::read_port;

/// `envoyExtAuthzGrpc` and `envoyExtAuthzHttp`; some fields are of the latter only.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "Istio's own fields, by their own names")]
pub struct ExtAuthz {
    pub service: String,
    pub port: u32,
    pub timeout: Option<IstioDuration>,
    pub fail_open: bool,
    pub status_on_error: Option<String>,
    pub path_prefix: String,
    pub include_request_headers_in_check: Vec<String>,
    /// Old name of the former.
    pub include_headers_in_check: Vec<String>,
    pub include_additional_headers_in_check: BTreeMap<String, String>,
    pub include_request_body_in_check: Option<IncludedBody>,
    pub headers_to_upstream_on_allow: Vec<String>,
    pub headers_to_downstream_on_allow: Vec<String>,
    pub headers_to_downstream_on_deny: Vec<String>,
}

/// `includeRequestBodyInCheck`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "Istio's own fields, by their own names")]
pub struct IncludedBody {
    pub max_request_bytes: u32,
    pub allow_partial_message: bool,
    pub pack_as_bytes: bool,
}

impl ExtAuthz {
    pub(crate) fn check(&self, place: &FieldPath, faults: &mut Faults) {
        if self.service.is_empty() {
            let rule =
                "is missing: name the authorizer's host, such as authz.example.svc.cluster.local";
            faults.add(place.join("service"), rule);
        }
        let _checked = read_port(self.port.into(), place.join("port"), faults);
        if let Some(text) = &self.status_on_error
            && !text
                .parse()
                .is_ok_and(|code: u16| (200..600).contains(&code))
        {
            let problem = format!("`{text}` is not a status to answer with: use 200 to 599");
            faults.add(place.join("statusOnError"), problem);
        }
        if !self.path_prefix.is_empty() && !self.path_prefix.starts_with('/') {
            let rule = "does not begin with `/`: no path does without";
            faults.add(place.join("pathPrefix"), rule);
        }
        for (name, value) in &self.include_additional_headers_in_check {
            let place = place.join("includeAdditionalHeadersInCheck").join(&**name);
            check_header_name(name, place.clone(), faults);
            if HeaderValue::from_str(value).is_err() {
                let rule = "is not a header value: use printable characters without line breaks";
                faults.add(place, rule);
            }
        }
        if self
            .include_request_body_in_check
            .is_some_and(|body| body.max_request_bytes == 0)
        {
            let place = place.join("includeRequestBodyInCheck");
            let rule = "is missing: say how many bytes of a body the authorizer may see";
            faults.add(place.join("maxRequestBytes"), rule);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ExtAuthz;
    use crate::mesh::field::{Faults, FieldPath};

    #[track_caller]
    fn faults(json: &str) -> Vec<String> {
        let settings: ExtAuthz = serde_json::from_str(json).unwrap();
        let mut faults = Faults::default();
        settings.check(&FieldPath::default(), &mut faults);
        let errors = faults.into_errors().into_iter();
        errors.map(|error| error.to_string()).collect()
    }

    #[test]
    fn each_setting_that_cannot_be_is_named() {
        let sound = r#"{"service": "a.b", "port": 80, "statusOnError": "503", "pathPrefix": "/x",
            "includeAdditionalHeadersInCheck": {"x-a": "b"}, "includeRequestBodyInCheck": {"maxRequestBytes": 1}}"#;
        assert_eq!(faults(sound), [""; 0]);
        let unsound = r#"{"statusOnError": "0", "pathPrefix": "x",
            "includeAdditionalHeadersInCheck": {"x a": "b", "x-b": "\n"}, "includeRequestBodyInCheck": {}}"#;
        let found = faults(unsound);
        for (place, fault) in [
            "service",
            "port",
            "statusOnError",
            "pathPrefix",
            "includeAdditionalHeadersInCheck.x a",
            "includeAdditionalHeadersInCheck.x-b",
            "includeRequestBodyInCheck.maxRequestBytes",
        ]
        .into_iter()
        .zip(&found)
        {
            assert!(
                fault.starts_with(&format!("{place}: ")),
                "{place}: {found:?}"
            );
        }
        assert_eq!(found.len(), 7, "{found:?}");
    }
}
