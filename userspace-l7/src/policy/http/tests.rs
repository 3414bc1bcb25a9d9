//! One row per sentence of Istio's rules for authorization with HTTP conditions.

mod operation;
mod order;
mod properties;
mod source;
mod when;

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::{Map, Value, json};

use super::{HttpDecision, HttpDenial, HttpRequest, HttpVerdict, RuleName, judge_http};
use crate::model::{
    Demands, HttpPolicy, HttpPolicyAction, HttpPolicyRule, OperationMatch, PathNormalization,
    PolicyKey, RequestHead, SourceMatch, SpiffeId, StringMatch,
};
use crate::policy::jwt::Claims;

/// A request of a test, owned: from 10.0.0.1, in front of which 203.0.113.9 stands, to 10.0.0.2:8080 by
/// way of service port 80.
#[derive(Clone, Debug)]
struct Request {
    method: Method,
    authority: String,
    path: String,
    headers: HeaderMap,
    identity: Option<SpiffeId>,
    token: Option<Claims>,
    normalization: PathNormalization,
}

impl Request {
    fn get(path: &str) -> Self {
        Self {
            method: Method::GET,
            authority: "echo.app".to_owned(),
            path: path.to_owned(),
            headers: HeaderMap::new(),
            identity: Some("spiffe://td/ns/web/sa/client".parse().unwrap()),
            token: None,
            normalization: PathNormalization::Base,
        }
    }

    fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    fn authority(mut self, authority: &str) -> Self {
        authority.clone_into(&mut self.authority);
        self
    }

    fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let name: HeaderName = name.parse().unwrap();
        let value = HeaderValue::from_bytes(value.as_ref()).unwrap();
        self.headers.append(name, value);
        self
    }

    fn identity(mut self, text: &str) -> Self {
        self.identity = Some(text.parse().unwrap());
        self
    }

    fn anonymous(mut self) -> Self {
        self.identity = None;
        self
    }

    fn token(mut self, claims: &Value) -> Self {
        let claims: Map<String, Value> = claims.as_object().unwrap().clone();
        self.token = Some(Claims::for_test(claims));
        self
    }

    fn judge(&self, demands: &Demands) -> HttpVerdict {
        judge_http(demands, &self.facts())
    }

    fn facts(&self) -> HttpRequest<'_> {
        HttpRequest {
            head: RequestHead {
                method: &self.method,
                scheme: "http",
                authority: &self.authority,
                path: &self.path,
                query: Some("path=/query"),
                headers: &self.headers,
            },
            normalization: self.normalization,
            identity: self.identity.as_ref(),
            source: "::ffff:10.0.0.1".parse().unwrap(),
            destination: "10.0.0.2:8080".parse().unwrap(),
            service_port: 80,
            token: self.token.as_ref(),
        }
    }

    fn decide(&self, policies: &[HttpPolicy]) -> Result<(), HttpDenial> {
        match self.judge(&demands(policies)).decision {
            HttpDecision::Allowed(_) => Ok(()),
            HttpDecision::Denied(denial) => Err(denial),
            HttpDecision::Ask(ask) => panic!("nobody to ask: {ask:?}"),
        }
    }
}

fn demands(policies: &[HttpPolicy]) -> Demands {
    Demands {
        authorization: policies.iter().cloned().map(Arc::new).collect(),
        ..Demands::default()
    }
}

fn key(name: &str) -> PolicyKey {
    PolicyKey {
        namespace: "app".into(),
        name: name.into(),
    }
}

fn rule_name(policy: &str, rule: usize) -> RuleName {
    RuleName {
        policy: key(policy),
        rule,
    }
}

fn policy(name: &str, action: HttpPolicyAction, rules: Vec<HttpPolicyRule>) -> HttpPolicy {
    HttpPolicy {
        key: key(name),
        action,
        dry_run: false,
        rules,
    }
}

fn from(source: SourceMatch) -> HttpPolicyRule {
    HttpPolicyRule {
        from: vec![source],
        ..HttpPolicyRule::default()
    }
}

fn to(operation: OperationMatch) -> HttpPolicyRule {
    HttpPolicyRule {
        to: vec![operation],
        ..HttpPolicyRule::default()
    }
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

/// Istio's notation.
fn pattern(text: &str) -> StringMatch {
    match (text.strip_suffix('*'), text.strip_prefix('*')) {
        (Some(""), _) => StringMatch::Presence,
        (Some(prefix), _) => StringMatch::Prefix(prefix.into()),
        (None, Some(suffix)) => StringMatch::Suffix(suffix.into()),
        (None, None) => exact(text),
    }
}

/// The same rule under ALLOW and DENY: both follow from whether it holds.
#[track_caller]
fn check(rule: &HttpPolicyRule, request: &Request, holds: bool) {
    let under = |action| request.decide(&[policy("p", action, vec![rule.clone()])]);
    let allow = under(HttpPolicyAction::Allow);
    assert_eq!(
        allow.is_ok(),
        holds,
        "ALLOW {rule:?} {request:?}: {allow:?}"
    );
    let deny = under(HttpPolicyAction::Deny);
    let expected = holds.then(|| HttpDenial::Explicit(rule_name("p", 0)));
    assert_eq!(deny.err(), expected, "DENY {rule:?} {request:?}");
}

fn alice() -> Value {
    json!({"iss": "https://idp.example/realms/one", "sub": "alice"})
}
