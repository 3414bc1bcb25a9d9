//! Nobody without the key is believed: the first line is a key set, the second what stands in
//! `Authorization`. Tokens that verify come from the seeds' issuer, which has no private key here.

#![no_main]

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Method};
use libfuzzer_sys::fuzz_target;
use userspace_l7::model::{JwtKeys, JwtLocation, JwtRule, RequestHead};
use userspace_l7::policy::jwt::{KeySet, authenticate};

/// The public key of RFC 8037 A.2, and an RSA key of nobody's.
const KEYS: &str = r#"{"keys": [
    {"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
    {"kty": "EC", "crv": "P-256", "kid": "e",
     "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}
]}"#;

fuzz_target!(|text: &str| {
    let (set, value) = text.split_once('\n').unwrap_or(("", text));
    if let Ok(keys) = KeySet::parse(set) {
        // Whatever the keys are: no panic.
        std::hint::black_box(judge(&Arc::new(keys), value));
    }
    let keys = Arc::new(KeySet::parse(KEYS).expect("it is a key set"));
    if let Some(accepted) = judge(&keys, value) {
        assert!(!accepted, "a token that nobody signed is accepted");
    }
});

/// Whether a token was found and accepted; `None` if it was refused.
fn judge(keys: &Arc<KeySet>, value: &str) -> Option<bool> {
    let rule = JwtRule {
        origin: "app/jwt".into(),
        issuer: "".into(),
        audiences: vec![],
        keys: JwtKeys::Inline("".into()),
        locations: vec![JwtLocation::Header {
            name: AUTHORIZATION,
            prefix: "Bearer ".into(),
        }],
        forward_original: false,
        payload_header: None,
        claim_headers: vec![],
        space_delimited_claims: vec![],
    };
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, HeaderValue::from_str(value).ok()?);
    let head = RequestHead {
        method: &Method::GET,
        scheme: "http",
        authority: "echo",
        path: "/",
        query: None,
        headers: &headers,
    };
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let found = authenticate(&[Arc::new(rule)], &|_| Some(Arc::clone(keys)), &head, now);
    found.ok().map(|claims| claims.is_some())
}
