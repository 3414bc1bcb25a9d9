//! RequestAuthentication, sentence by sentence of Istio and RFC 7515 to 7519.

mod location;
mod output;
mod several;
mod signature;
mod signer;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, Method};
use serde_json::{Value, json};
use signer::{Signer, base64};

use super::{Claims, KeySet, TokenError, authenticate};
use crate::model::{JwtKeys, JwtLocation, JwtRule, RequestHead};

/// When all of it happens.
const NOW: u64 = 1_800_000_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

/// A rule about `https://idp`, whose keys are called `idp`.
fn rule() -> JwtRule {
    JwtRule {
        origin: "app/jwt".into(),
        issuer: "https://idp".into(),
        audiences: vec![],
        keys: JwtKeys::Inline("idp".into()),
        locations: vec![
            JwtLocation::Header {
                name: AUTHORIZATION,
                prefix: "Bearer ".into(),
            },
            JwtLocation::Parameter("access_token".into()),
        ],
        forward_original: false,
        payload_header: None,
        claim_headers: vec![],
        space_delimited_claims: vec![],
    }
}

fn claims() -> Value {
    json!({"iss": "https://idp", "sub": "alice"})
}

/// Key sets by the names that rules give them.
#[derive(Default)]
struct Issuers(Vec<(&'static str, Arc<KeySet>)>);

impl Issuers {
    fn with(mut self, name: &'static str, signers: &[&Signer]) -> Self {
        let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
        self.0.push((name, key_set(&json!({ "keys": keys }))));
        self
    }

    fn keys(&self, wanted: &JwtKeys) -> Option<Arc<KeySet>> {
        let JwtKeys::Inline(wanted) = wanted else {
            return None;
        };
        let found = self.0.iter().find(|(name, _)| **name == **wanted)?;
        Some(Arc::clone(&found.1))
    }
}

fn key_set(json: &Value) -> Arc<KeySet> {
    Arc::new(KeySet::parse(&json.to_string()).unwrap())
}

/// A GET with these headers and query.
fn ask(
    rules: Vec<JwtRule>,
    issuers: &Issuers,
    headers: &HeaderMap,
    query: Option<&str>,
) -> Result<Option<Claims>, TokenError> {
    let rules: Vec<_> = rules.into_iter().map(Arc::new).collect();
    let head = RequestHead {
        method: &Method::GET,
        scheme: "http",
        authority: "echo",
        path: "/",
        query,
        headers,
    };
    authenticate(&rules, &|keys| issuers.keys(keys), &head, now())
}

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let name: HeaderName = name.parse().unwrap();
        headers.append(name, value.parse().unwrap());
    }
    headers
}

fn bearer(token: &str) -> HeaderMap {
    headers(&[("authorization", &format!("Bearer {token}"))])
}

/// What one token is to one rule.
fn judge(rule: JwtRule, signer: &Signer, claims: &Value) -> Result<Option<Claims>, TokenError> {
    let issuers = Issuers::default().with("idp", &[signer]);
    ask(vec![rule], &issuers, &bearer(&signer.token(claims)), None)
}

/// Whom a token speaks for, or what is wrong with it.
#[track_caller]
fn check(claims: &Value, expected: Result<&str, TokenError>) {
    let signer = Signer::new("EdDSA", "k");
    let judged = judge(rule(), &signer, claims);
    let principal = judged.map(|claims| claims.and_then(|claims| claims.principal()));
    let expected = expected.map(|text| Some(text.to_owned()));
    assert_eq!(principal, expected, "{claims}");
}

#[test]
fn time_may_be_a_minute_off() {
    let alice = Ok("https://idp/alice");
    for (claim, at, expected) in [
        ("exp", NOW + 1, alice),
        ("exp", NOW - 60, alice),
        ("exp", NOW - 61, Err(TokenError::Expired)),
        ("exp", 0, Err(TokenError::Expired)),
        ("nbf", NOW, alice),
        ("nbf", NOW + 60, alice),
        ("nbf", NOW + 61, Err(TokenError::NotYetValid)),
        ("iat", NOW + 1_000, alice),
    ] {
        let mut claims = claims();
        claims[claim] = json!(at);
        check(&claims, expected);
    }
    check(&claims(), alice);
}

#[test]
fn fields_have_their_kind() {
    let exp = TokenError::Payload("[exp] field must be a positive number");
    let aud = TokenError::Payload("[aud] field must be a string or string list");
    let iss = TokenError::Payload("[iss] field must be a string");
    for (claim, value, error) in [
        ("exp", json!("1800000000"), exp),
        ("exp", json!(-1), exp),
        ("exp", json!(1e300), exp),
        ("exp", json!(null), exp),
        ("aud", json!(7), aud),
        ("aud", json!(["a", 7]), aud),
        ("iss", json!(["https://idp"]), iss),
    ] {
        let mut claims = claims();
        claims[claim] = value;
        check(&claims, Err(error));
    }
    let mut half = claims();
    half["exp"] = json!(1_800_000_000.5);
    check(&half, Ok("https://idp/alice"));
}

#[test]
fn the_issuer_has_to_be_the_rules() {
    for issuer in [
        json!({"sub": "alice"}),
        json!({"iss": "https://other", "sub": "alice"}),
        json!({"iss": "https://idp/", "sub": "alice"}),
        json!({"iss": "HTTPS://IDP", "sub": "alice"}),
    ] {
        check(&issuer, Err(TokenError::UnknownIssuer));
    }
    let signer = Signer::new("EdDSA", "k");
    let any = JwtRule {
        issuer: "".into(),
        ..rule()
    };
    let other = json!({"iss": "https://other", "sub": "alice"});
    let accepted = judge(any, &signer, &other).unwrap().unwrap();
    assert_eq!(accepted.principal().as_deref(), Some("https://other/alice"));
}

#[test]
fn one_audience_has_to_be_allowed() {
    let signer = Signer::new("EdDSA", "k");
    for (allowed, named, expected) in [
        (&[][..], json!("anything"), true),
        (&["a"], json!("a"), true),
        (&["a", "b"], json!(["x", "b"]), true),
        (&["a"], json!(["x", "y"]), false),
        (&["a"], json!([]), false),
        (&["a"], json!("A"), false),
        (&["https://a"], json!("a/"), true),
        (&["a"], json!("http://a"), true),
        (&["https://a/b"], json!("https://a"), false),
    ] {
        let rule = JwtRule {
            audiences: allowed.iter().map(|text| (*text).into()).collect(),
            ..rule()
        };
        let mut claims = claims();
        claims["aud"] = named.clone();
        let judged = judge(rule, &signer, &claims).map(|_claims| ());
        let wanted = if expected {
            Ok(())
        } else {
            Err(TokenError::Audience)
        };
        assert_eq!(judged, wanted, "{allowed:?} {named}");
    }
    let rule = JwtRule {
        audiences: vec!["a".into()],
        ..rule()
    };
    let without = judge(rule, &signer, &claims()).map(|_claims| ());
    assert_eq!(without, Err(TokenError::Audience), "no aud at all");
}

#[test]
fn what_fails_is_said_in_envoys_words() {
    for (error, text) in [
        (
            TokenError::Form,
            "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
        ),
        (TokenError::Expired, "Jwt is expired"),
        (TokenError::NotYetValid, "Jwt not yet valid"),
        (TokenError::UnknownIssuer, "Jwt issuer is not configured"),
        (TokenError::Audience, "Audiences in Jwt are not allowed"),
        (TokenError::Signature, "Jwt verification fails"),
        (TokenError::NoKeys, "Jwks remote fetch is failed"),
        (TokenError::Algorithm, "Jwt header [alg] is not supported"),
        (
            TokenError::NoSuchKey,
            "Jwks doesn't have key to match kid or alg from Jwt",
        ),
    ] {
        assert_eq!(error.to_string(), text);
    }
    assert_eq!(
        TokenError::Expired.challenge("http://echo/a\"b\\\r\n"),
        "Bearer realm=\"http://echo/ab\", error=\"invalid_token\""
    );
}

#[test]
fn the_first_check_that_fails_is_named() {
    // Envoy looks at issuer, times and audiences before it verifies anything.
    let signer = Signer::new("EdDSA", "k");
    let impostor = Signer::new("EdDSA", "k");
    let issuers = Issuers::default().with("idp", &[&signer]);
    let mut expired = claims();
    expired["exp"] = json!(NOW - 1_000);
    for (claims, error) in [
        (&expired, TokenError::Expired),
        (&claims(), TokenError::Signature),
    ] {
        let headers = bearer(&impostor.token(claims));
        let judged = ask(vec![rule()], &issuers, &headers, None).map(|_claims| ());
        assert_eq!(judged, Err(error));
    }
    let headers = bearer(&signer.token(&claims()));
    let judged = ask(vec![rule()], &Issuers::default(), &headers, None).map(|_claims| ());
    assert_eq!(judged, Err(TokenError::NoKeys));
}
