//! Which signature counts, and which key may have made it.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Issuers, Signer, TokenError, ask, base64, bearer, claims, key_set, rule};
use crate::policy::jwt::KeySet;

const ALGORITHMS: [&str; 13] = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
    "HS256", "HS384", "HS512",
];

fn verify(issuers: &Issuers, token: &str) -> Result<(), TokenError> {
    let judged = ask(vec![rule()], issuers, &bearer(token), None);
    judged.map(|claims| assert!(claims.is_some(), "a token was there"))
}

#[test]
fn every_algorithm_verifies_what_its_key_signed_and_nothing_else() {
    for algorithm in ALGORITHMS {
        let signer = Signer::new(algorithm, "k");
        let issuers = Issuers::default().with("idp", &[&signer]);
        let token = signer.token(&claims());
        assert_eq!(verify(&issuers, &token), Ok(()), "{algorithm}");

        let (text, signature) = token.rsplit_once('.').unwrap();
        let other = base64(json!({"iss": "https://idp", "sub": "mallory"}).to_string());
        let header = text.split_once('.').unwrap().0;
        let forged = format!("{header}.{other}.{signature}");
        assert_eq!(
            verify(&issuers, &forged),
            Err(TokenError::Signature),
            "{algorithm}"
        );
        assert_eq!(
            verify(&issuers, &format!("{text}.")),
            Err(TokenError::Signature),
            "{algorithm}: no signature"
        );
    }
}

#[test]
fn none_is_no_algorithm() {
    let signer = Signer::new("RS256", "k");
    let issuers = Issuers::default().with("idp", &[&signer]);
    for name in ["none", "None", "NONE", "", "rs256", "RS255", "ES256K"] {
        let header = json!({"alg": name, "kid": "k"});
        let token = signer.token_with(&header, &claims());
        assert_eq!(
            verify(&issuers, &token),
            Err(TokenError::Algorithm),
            "{name}"
        );
        let (text, _) = token.rsplit_once('.').unwrap();
        let unsigned = format!("{text}.");
        assert_eq!(verify(&issuers, &unsigned), Err(TokenError::Algorithm));
    }
}

#[test]
fn a_public_key_is_no_secret() {
    // The token's `alg` asks for a MAC, with what everybody knows as its secret.
    let rsa = Signer::new("RS256", "k");
    let issuers = Issuers::default().with("idp", &[&rsa]);
    let mac = Signer::new("HS256", "k");
    let token = mac.token(&claims());
    assert_eq!(verify(&issuers, &token), Err(TokenError::NoSuchKey));
    // And a secret verifies no public-key signature.
    let issuers = Issuers::default().with("idp", &[&mac]);
    let token = rsa.token(&claims());
    assert_eq!(verify(&issuers, &token), Err(TokenError::NoSuchKey));
}

#[test]
fn an_algorithm_needs_a_key_of_its_kind_and_curve() {
    for (signs, published) in [
        ("ES256", "ES384"),
        ("ES384", "ES512"),
        ("EdDSA", "ES256"),
        ("RS256", "EdDSA"),
        ("ES256", "RS256"),
    ] {
        let issuers = Issuers::default().with("idp", &[&Signer::new(published, "k")]);
        let token = Signer::new(signs, "k").token(&claims());
        assert_eq!(verify(&issuers, &token), Err(TokenError::NoSuchKey));
    }
}

#[test]
fn a_key_id_chooses_and_none_tries_all() {
    let (first, second) = (Signer::new("EdDSA", "1"), Signer::new("EdDSA", "2"));
    let issuers = Issuers::default().with("idp", &[&first, &second]);
    assert_eq!(verify(&issuers, &second.token(&claims())), Ok(()));
    let with_id = |id: Value| second.token_with(&json!({"alg": "EdDSA", "kid": id}), &claims());
    let without = second.token_with(&json!({"alg": "EdDSA"}), &claims());
    for (token, expected) in [
        (without, Ok(())),
        (with_id(json!("1")), Err(TokenError::Signature)),
        (with_id(json!("3")), Err(TokenError::NoSuchKey)),
        (
            with_id(json!(2)),
            Err(TokenError::Header("[kid] field must be a string")),
        ),
    ] {
        assert_eq!(verify(&issuers, &token), expected);
    }
}

#[test]
fn a_keys_own_words_bind_it() {
    let signer = Signer::new("RS256", "k");
    let token = signer.token(&claims());
    for (change, expected) in [
        (json!({}), Ok(())),
        (json!({"alg": "RS256"}), Ok(())),
        (json!({"use": "sig"}), Ok(())),
        (json!({"kid": null}), Ok(())),
        (json!({"alg": "RS512"}), Err(TokenError::NoSuchKey)),
        (json!({"alg": "RSA-OAEP"}), Err(TokenError::NoSuchKey)),
        (json!({"use": "enc"}), Err(TokenError::NoSuchKey)),
        (json!({"kty": "rsa"}), Err(TokenError::NoSuchKey)),
        (json!({"n": "!"}), Err(TokenError::NoSuchKey)),
        (json!({"n": "AQAB"}), Err(TokenError::Signature)),
    ] {
        let mut key = signer.jwk();
        for (name, value) in change.as_object().unwrap() {
            key[name] = value.clone();
        }
        let issuers = Issuers(vec![(
            "idp",
            key_set(&json!({"keys": [{"kty": "?"}, key]})),
        )]);
        assert_eq!(verify(&issuers, &token), expected, "{change}");
    }
}

#[test]
fn what_is_no_key_set_is_told_apart_from_an_empty_one() {
    assert!(KeySet::parse("").is_err());
    assert!(KeySet::parse("[]").is_err());
    assert!(KeySet::parse("{}").is_err());
    assert!(KeySet::parse("{\"keys\": {}}").is_err());
    assert!(KeySet::parse("{\"keys\": [{}, 7]}").unwrap().is_empty());
}

#[test]
fn a_token_has_three_parts_that_can_be_read() {
    let signer = Signer::new("EdDSA", "k");
    let issuers = Issuers::default().with("idp", &[&signer]);
    let good = signer.token(&claims());
    let header = base64("{\"alg\":\"EdDSA\"}");
    for (token, error) in [
        (String::new(), TokenError::Form),
        ("a.b".to_owned(), TokenError::Form),
        (format!("{good}.x"), TokenError::Form),
        (
            "!.e30.AA".to_owned(),
            TokenError::Header("is an invalid Base64url encoded"),
        ),
        (
            format!("{}.e30.AA", base64("[]")),
            TokenError::Header("is an invalid JSON"),
        ),
        (
            "e30.e30.AA".to_owned(),
            TokenError::Header("[alg] field is required and must be a string"),
        ),
        (
            format!("{header}.!.AA"),
            TokenError::Payload("is an invalid Base64url encoded"),
        ),
        (
            format!("{header}.AA.AA"),
            TokenError::Payload("is an invalid JSON"),
        ),
        (format!("{header}.e30.+"), TokenError::SignatureEncoding),
        (format!("{good}="), TokenError::SignatureEncoding),
        (
            signer.token_with(&json!({"alg": "EdDSA", "crit": ["b64"]}), &claims()),
            TokenError::Header("[crit] field names an unknown extension"),
        ),
    ] {
        assert_eq!(verify(&issuers, &token), Err(error), "{token}");
    }
}

proptest! {
    #[test]
    fn no_change_of_a_token_verifies(at in any::<prop::sample::Index>(), by in 1..=255_u8) {
        let signer = Signer::new("ES256", "k");
        let issuers = Issuers::default().with("idp", &[&signer]);
        let mut token = signer.token(&claims()).into_bytes();
        let at = at.index(token.len());
        token[at] = token[at].wrapping_add(by);
        if let Ok(changed) = String::from_utf8(token)
            && changed.bytes().all(|byte| (0x21..0x7f).contains(&byte))
        {
            prop_assert!(verify(&issuers, &changed).is_err());
        }
    }

    #[test]
    fn any_text_is_refused_without_a_panic(text in "[ -~]{0,200}") {
        let signer = Signer::new("EdDSA", "k");
        let issuers = Issuers::default().with("idp", &[&signer]);
        prop_assert!(ask(vec![rule()], &issuers, &bearer(&text), None).is_err());
    }
}
