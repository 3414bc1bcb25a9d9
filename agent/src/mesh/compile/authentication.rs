//! RequestAuthentications → rules about tokens.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use http::header::AUTHORIZATION;
use userspace_l7::model::{JwksSource, JwtKeys, JwtLocation, JwtRule};

use crate::mesh::request_authentication::{self as istio, RequestAuthentication};

/// How long fetching keys may take if the rule does not say (Istio).
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// The rules of a RequestAuthentication.
pub(super) fn jwt_rules(policy: &RequestAuthentication) -> Vec<Arc<JwtRule>> {
    let origin: Arc<str> = policy.meta.name.to_string().into();
    let rules = policy.spec.jwt_rules.iter();
    rules.map(|rule| Arc::new(read(rule, &origin))).collect()
}

fn read(rule: &istio::JwtRule, origin: &Arc<str>) -> JwtRule {
    let texts = |list: &[String]| list.iter().map(|one| one.as_str().into()).collect();
    let payload = HeaderName::from_bytes(rule.output_payload_to_header.as_bytes());
    JwtRule {
        origin: Arc::clone(origin),
        issuer: rule.issuer.as_str().into(),
        audiences: texts(&rule.audiences),
        keys: keys(rule),
        locations: locations(rule),
        forward_original: rule.forward_original_token,
        payload_header: payload.ok(),
        claim_headers: claim_headers(rule),
        space_delimited_claims: texts(&rule.space_delimited_claims),
    }
}

fn keys(rule: &istio::JwtRule) -> JwtKeys {
    if !rule.jwks.is_empty() {
        return JwtKeys::Inline(rule.jwks.as_str().into());
    }
    let source = if rule.jwks_uri.is_empty() {
        JwksSource::Discovery(rule.issuer.as_str().into())
    } else {
        JwksSource::Uri(rule.jwks_uri.as_str().into())
    };
    JwtKeys::Remote {
        source,
        timeout: rule.timeout.map_or(FETCH_TIMEOUT, |one| one.0),
    }
}

/// Where tokens are looked for: what the rule says takes the place of the usual ones (Istio).
fn locations(rule: &istio::JwtRule) -> Vec<JwtLocation> {
    let headers = rule.from_headers.iter().filter_map(|header| {
        Some(JwtLocation::Header {
            name: HeaderName::from_bytes(header.name.as_bytes()).ok()?,
            prefix: header.prefix.as_str().into(),
        })
    });
    let parameters = rule.from_params.iter();
    let parameters = parameters.map(|name| JwtLocation::Parameter(name.as_str().into()));
    let cookies = rule.from_cookies.iter();
    let cookies = cookies.map(|name| JwtLocation::Cookie(name.as_str().into()));
    let own: Vec<_> = headers.chain(parameters).chain(cookies).collect();
    if !own.is_empty() {
        return own;
    }
    vec![
        JwtLocation::Header {
            name: AUTHORIZATION,
            prefix: "Bearer ".into(),
        },
        JwtLocation::Parameter("access_token".into()),
    ]
}

fn claim_headers(rule: &istio::JwtRule) -> Vec<(HeaderName, Vec<Arc<str>>)> {
    let outputs = rule.output_claim_to_headers.iter();
    let output = |one: &istio::ClaimToHeader| {
        let name = HeaderName::from_bytes(one.header.as_bytes()).ok()?;
        Some((name, one.claim.split('.').map(Arc::from).collect()))
    };
    outputs.filter_map(output).collect()
}
