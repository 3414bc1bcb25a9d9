//! JSON Web Key sets (RFC 7517, RFC 7518 §6, RFC 8037), and signatures by them.

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;

use super::error::TokenError;
use super::token::{Algorithm, Token};

/// The text is no JWK set.
#[derive(Debug, thiserror::Error)]
#[error("not a JSON Web Key set")]
pub struct InvalidKeySet(#[source] serde_json::Error);

/// The keys of an issuer.
#[derive(Debug)]
pub struct KeySet {
    keys: Vec<Key>,
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithm: Option<Algorithm>,
    material: Material,
}

enum Material {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// An uncompressed point.
    P256(Vec<u8>),
    P384(Vec<u8>),
    P521(Vec<u8>),
    Ed25519(Vec<u8>),
    Secret(Vec<u8>),
}

/// Names the kind only: a secret is for no log.
impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rsa { .. } => "Rsa",
            Self::P256(_) => "P256",
            Self::P384(_) => "P384",
            Self::P521(_) => "P521",
            Self::Ed25519(_) => "Ed25519",
            Self::Secret(_) => "Secret",
        })
    }
}

#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    k: Option<String>,
}

impl KeySet {
    /// Reads a JWK set. Keys of kinds that are not known, or not for signatures, are left out
    /// (RFC 7517 §5: "implementations SHOULD ignore" them).
    ///
    /// # Errors
    /// The text is no JSON, or no set.
    pub fn parse(json: &str) -> Result<Self, InvalidKeySet> {
        let set: JwkSet = serde_json::from_str(json).map_err(InvalidKeySet)?;
        let keys = set.keys.into_iter().filter_map(|value| {
            let key: Jwk = serde_json::from_value(value).ok()?;
            Key::of(key)
        });
        Ok(Self {
            keys: keys.collect(),
        })
    }

    /// How many keys could verify something.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no key that could verify anything.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Verifies by every key that the token could mean: its `kid`, or a key without one, whose kind and
    /// `alg` suit the token's `alg`.
    pub(super) fn verify(&self, token: &Token) -> Result<(), TokenError> {
        let mut suiting = self.keys.iter().filter(|key| key.suits(token)).peekable();
        if suiting.peek().is_none() {
            return Err(TokenError::NoSuchKey);
        }
        if suiting.any(|key| key.has_signed(token)) {
            Ok(())
        } else {
            Err(TokenError::Signature)
        }
    }
}

impl Key {
    fn of(jwk: Jwk) -> Option<Self> {
        if jwk.usage.is_some_and(|usage| usage != "sig") {
            return None;
        }
        let bytes = |text: &Option<String>| {
            let text = text.as_deref()?.trim_end_matches('=');
            BASE64URL_NOPAD.decode(text.as_bytes()).ok()
        };
        let material = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", _) => Material::Rsa {
                n: bytes(&jwk.n)?,
                e: bytes(&jwk.e)?,
            },
            ("EC", Some("P-256")) => Material::P256(point(&bytes(&jwk.x)?, &bytes(&jwk.y)?, 32)?),
            ("EC", Some("P-384")) => Material::P384(point(&bytes(&jwk.x)?, &bytes(&jwk.y)?, 48)?),
            ("EC", Some("P-521")) => Material::P521(point(&bytes(&jwk.x)?, &bytes(&jwk.y)?, 66)?),
            ("OKP", Some("Ed25519")) => Material::Ed25519(bytes(&jwk.x)?),
            ("oct", _) => Material::Secret(bytes(&jwk.k)?),
            _ => return None,
        };
        let algorithm = match jwk.alg {
            // A key for an algorithm that nobody here verifies is of no use.
            Some(name) => Some(Algorithm::of(&name)?),
            None => None,
        };
        Some(Self {
            id: jwk.kid,
            algorithm,
            material,
        })
    }

    /// The key's kind decides with the token's `alg`, never the token alone: a public key is no HMAC secret.
    fn suits(&self, token: &Token) -> bool {
        let same_id = match (&token.key_id, &self.id) {
            (Some(wanted), Some(own)) => wanted == own,
            _ => true,
        };
        let same_algorithm = self.algorithm.is_none_or(|own| own == token.algorithm);
        let same_kind = matches!(
            (&self.material, token.algorithm),
            (
                Material::Rsa { .. },
                Algorithm::Rs256
                    | Algorithm::Rs384
                    | Algorithm::Rs512
                    | Algorithm::Ps256
                    | Algorithm::Ps384
                    | Algorithm::Ps512
            ) | (Material::P256(_), Algorithm::Es256)
                | (Material::P384(_), Algorithm::Es384)
                | (Material::P521(_), Algorithm::Es512)
                | (Material::Ed25519(_), Algorithm::EdDsa)
                | (
                    Material::Secret(_),
                    Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512
                )
        );
        same_id && same_algorithm && same_kind
    }

    fn has_signed(&self, token: &Token) -> bool {
        let (signed, made) = (token.signed(), token.signature.as_slice());
        match &self.material {
            Material::Rsa { n, e } => {
                let Some(how) = rsa(token.algorithm) else {
                    return false;
                };
                RsaPublicKeyComponents { n, e }
                    .verify(how, signed, made)
                    .is_ok()
            }
            Material::P256(key) => verifies(&signature::ECDSA_P256_SHA256_FIXED, key, token),
            Material::P384(key) => verifies(&signature::ECDSA_P384_SHA384_FIXED, key, token),
            Material::P521(key) => verifies(&signature::ECDSA_P521_SHA512_FIXED, key, token),
            Material::Ed25519(key) => verifies(&signature::ED25519, key, token),
            Material::Secret(secret) => {
                let Some(how) = mac(token.algorithm) else {
                    return false;
                };
                hmac::verify(&hmac::Key::new(how, secret), signed, made).is_ok()
            }
        }
    }
}

fn verifies(how: &'static dyn signature::VerificationAlgorithm, key: &[u8], token: &Token) -> bool {
    UnparsedPublicKey::new(how, key)
        .verify(token.signed(), &token.signature)
        .is_ok()
}

fn rsa(algorithm: Algorithm) -> Option<&'static signature::RsaParameters> {
    Some(match algorithm {
        Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        Algorithm::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
        Algorithm::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
        Algorithm::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

fn mac(algorithm: Algorithm) -> Option<hmac::Algorithm> {
    Some(match algorithm {
        Algorithm::Hs256 => hmac::HMAC_SHA256,
        Algorithm::Hs384 => hmac::HMAC_SHA384,
        Algorithm::Hs512 => hmac::HMAC_SHA512,
        _ => return None,
    })
}

/// SEC 1 §2.3.3: 4, then both coordinates in full length.
fn point(x: &[u8], y: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut point = vec![4];
    for coordinate in [x, y] {
        let missing = length.checked_sub(coordinate.len())?;
        point.resize(point.len() + missing, 0);
        point.extend_from_slice(coordinate);
    }
    Some(point)
}
