//! Issuers of tokens, with fresh keys of every kind.

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

/// A key, and the algorithm that it signs with.
pub(super) struct Signer {
    pub(super) algorithm: &'static str,
    pub(super) id: &'static str,
    key: Key,
}

enum Key {
    Rsa(RsaKeyPair, &'static dyn signature::RsaEncoding),
    Ecdsa(EcdsaKeyPair, &'static str),
    Ed25519(Ed25519KeyPair),
    Hmac(hmac::Algorithm),
}

const SECRET: &[u8] = b"a secret that is long enough for everybody";

pub(super) fn base64(bytes: impl AsRef<[u8]>) -> String {
    BASE64URL_NOPAD.encode(bytes.as_ref())
}

impl Signer {
    pub(super) fn new(algorithm: &'static str, id: &'static str) -> Self {
        let rsa = |how| Key::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap(), how);
        let ecdsa = |how, curve| Key::Ecdsa(EcdsaKeyPair::generate(how).unwrap(), curve);
        let key = match algorithm {
            "RS256" => rsa(&signature::RSA_PKCS1_SHA256),
            "RS384" => rsa(&signature::RSA_PKCS1_SHA384),
            "RS512" => rsa(&signature::RSA_PKCS1_SHA512),
            "PS256" => rsa(&signature::RSA_PSS_SHA256),
            "PS384" => rsa(&signature::RSA_PSS_SHA384),
            "PS512" => rsa(&signature::RSA_PSS_SHA512),
            "ES256" => ecdsa(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256"),
            "ES384" => ecdsa(&signature::ECDSA_P384_SHA384_FIXED_SIGNING, "P-384"),
            "ES512" => ecdsa(&signature::ECDSA_P521_SHA512_FIXED_SIGNING, "P-521"),
            "EdDSA" => Key::Ed25519(Ed25519KeyPair::generate().unwrap()),
            "HS256" => Key::Hmac(hmac::HMAC_SHA256),
            "HS384" => Key::Hmac(hmac::HMAC_SHA384),
            "HS512" => Key::Hmac(hmac::HMAC_SHA512),
            other => panic!("no such algorithm: {other}"),
        };
        Self { algorithm, id, key }
    }

    /// What its issuer publishes.
    pub(super) fn jwk(&self) -> Value {
        let mut jwk = match &self.key {
            Key::Rsa(pair, _) => {
                let (n, e) = rsa_numbers(pair.public_key().as_ref());
                json!({"kty": "RSA", "n": base64(n), "e": base64(e)})
            }
            Key::Ecdsa(pair, curve) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                json!({"kty": "EC", "crv": curve, "x": base64(x), "y": base64(y)})
            }
            Key::Ed25519(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": base64(pair.public_key().as_ref())})
            }
            Key::Hmac(_) => json!({"kty": "oct", "k": base64(SECRET)}),
        };
        jwk["kid"] = json!(self.id);
        jwk
    }

    pub(super) fn token(&self, claims: &Value) -> String {
        self.token_with(&json!({"alg": self.algorithm, "kid": self.id}), claims)
    }

    pub(super) fn token_with(&self, header: &Value, claims: &Value) -> String {
        let signed = format!(
            "{}.{}",
            base64(header.to_string()),
            base64(claims.to_string())
        );
        format!("{signed}.{}", base64(self.sign(signed.as_bytes())))
    }

    fn sign(&self, text: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.key {
            Key::Rsa(pair, how) => {
                let mut made = vec![0; pair.public_modulus_len()];
                pair.sign(*how, &random, text, &mut made).unwrap();
                made
            }
            Key::Ecdsa(pair, _) => pair.sign(&random, text).unwrap().as_ref().to_vec(),
            Key::Ed25519(pair) => pair.sign(text).as_ref().to_vec(),
            Key::Hmac(how) => {
                let key = hmac::Key::new(*how, SECRET);
                hmac::sign(&key, text).as_ref().to_vec()
            }
        }
    }
}

/// Modulus and exponent of an `RSAPublicKey` (RFC 8017 A.1.1): a sequence of two integers.
fn rsa_numbers(der: &[u8]) -> (&[u8], &[u8]) {
    let (inside, _) = element(der);
    let (modulus, rest) = element(inside);
    let (exponent, _) = element(rest);
    // The sign's zero byte is not part of the number.
    (modulus.strip_prefix(&[0]).unwrap_or(modulus), exponent)
}

/// The content of the first DER element, and what follows it.
fn element(der: &[u8]) -> (&[u8], &[u8]) {
    let (length, start) = match der[1] {
        short @ ..0x80 => (usize::from(short), 2),
        long => {
            let count = usize::from(long & 0x7f);
            let bytes = &der[2..2 + count];
            let length = bytes
                .iter()
                .fold(0, |sum, byte| sum * 256 + usize::from(*byte));
            (length, 2 + count)
        }
    };
    der[start..].split_at(length)
}
