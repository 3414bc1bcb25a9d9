//! RequestAuthentication as Istio defines it.

use serde::Deserialize;

use super::duration::IstioDuration;
use super::field::{Faults, FieldPath, at};
use super::meta::Meta;
use super::route::check_header_name;
use super::selector::{TargetReference, WorkloadSelector, check_targets};

/// A RequestAuthentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestAuthentication {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// What it says.
    pub spec: RequestAuthenticationSpec,
}

/// `spec` of a RequestAuthentication.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestAuthenticationSpec {
    /// Workloads it is about: of sidecars only.
    pub selector: Option<WorkloadSelector>,
    /// Old form of `targetRefs`.
    pub target_ref: Option<TargetReference>,
    /// Objects it is about.
    pub target_refs: Vec<TargetReference>,
    /// Whose tokens are taken.
    pub jwt_rules: Vec<JwtRule>,
}

/// One of `jwtRules`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "each field is Istio's own, by its own name")]
pub struct JwtRule {
    pub issuer: String,
    pub audiences: Vec<String>,
    #[serde(alias = "jwks_uri")]
    pub jwks_uri: String,
    pub jwks: String,
    pub from_headers: Vec<JwtHeader>,
    pub from_params: Vec<String>,
    pub from_cookies: Vec<String>,
    pub output_payload_to_header: String,
    pub forward_original_token: bool,
    pub output_claim_to_headers: Vec<ClaimToHeader>,
    pub timeout: Option<IstioDuration>,
    pub space_delimited_claims: Vec<String>,
}

/// One of `fromHeaders`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct JwtHeader {
    /// Which header.
    pub name: String,
    /// What stands before the token.
    #[serde(default)]
    pub prefix: String,
}

/// One of `outputClaimToHeaders`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ClaimToHeader {
    /// Which header.
    pub header: String,
    /// Which claim; a dot leads into it.
    pub claim: String,
}

impl RequestAuthenticationSpec {
    /// All targets, whichever field names them.
    pub(crate) fn targets(&self) -> impl Iterator<Item = &TargetReference> {
        self.target_ref.iter().chain(&self.target_refs)
    }
}

impl RequestAuthentication {
    pub(crate) fn check(&self, faults: &mut Faults) {
        let spec = &self.spec;
        let targets = (spec.target_ref.as_ref(), &spec.target_refs[..]);
        let namespace = &self.meta.name.namespace;
        check_targets(namespace, spec.selector.as_ref(), targets, faults);
        for (index, rule) in spec.jwt_rules.iter().enumerate() {
            rule.check(&at!["spec", "jwtRules", index], faults);
        }
    }
}

impl JwtRule {
    fn check(&self, place: &FieldPath, faults: &mut Faults) {
        if self.issuer.is_empty() {
            faults.add(
                place.join("issuer"),
                "is missing: name the issuer, as the tokens' iss has it",
            );
        }
        if !self.jwks.is_empty() && !self.jwks_uri.is_empty() {
            let rule = "the keys are written down or fetched: remove jwks or jwksUri";
            faults.add(place.join("jwks"), rule);
        }
        let is_http = |uri: &str| {
            let uri = uri.parse::<http::Uri>().ok();
            uri.is_some_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")))
        };
        if !self.jwks_uri.is_empty() && !is_http(&self.jwks_uri) {
            let rule = "write one like https://example.com/jwks.json";
            let problem = format!("`{}` is not an address of keys: {rule}", self.jwks_uri);
            faults.add(place.join("jwksUri"), problem);
        }
        let is_set = |text: &String| {
            let read = serde_json::from_str::<serde_json::Value>(text);
            read.is_ok_and(|set| set.get("keys").is_some_and(serde_json::Value::is_array))
        };
        if !self.jwks.is_empty() && !is_set(&self.jwks) {
            let rule = "write JSON with a list `keys` (RFC 7517)";
            faults.add(place.join("jwks"), format!("is not a set of keys: {rule}"));
        }
        for (index, header) in self.from_headers.iter().enumerate() {
            let place = place.join("fromHeaders").join(index).join("name");
            check_header_name(&header.name, place, faults);
        }
        for (index, output) in self.output_claim_to_headers.iter().enumerate() {
            let place = place.join("outputClaimToHeaders").join(index);
            check_header_name(&output.header, place.join("header"), faults);
            if output.claim.is_empty() {
                faults.add(place.join("claim"), "is missing: name the claim");
            }
        }
        if !self.output_payload_to_header.is_empty() {
            let place = place.join("outputPayloadToHeader");
            check_header_name(&self.output_payload_to_header, place, faults);
        }
    }
}
