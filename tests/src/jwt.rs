//! Issuers of JSON Web Tokens, signed with ES256 (RFC 7515, RFC 7518 §3.4).

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use data_encoding::BASE64URL_NOPAD;
use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};
use serde_json::{Value, json};

/// How long a token of [`Issuer::token`] holds, in seconds.
const LIFE: i64 = 600;

/// Somebody who signs tokens.
pub struct Issuer {
    name: String,
    key: KeyPair,
}

impl Issuer {
    /// With a key of its own.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn new(name: &str) -> Result<Self> {
        // P-256 is rcgen's own choice.
        let key = KeyPair::generate().context("a key")?;
        Ok(Self {
            name: name.to_owned(),
            key,
        })
    }

    /// What stands in `iss`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its public key as a JWK set (RFC 7517).
    ///
    /// # Errors
    /// If the key is no point of P-256.
    pub fn jwks(&self) -> Result<String> {
        let point = self.key.der_bytes();
        ensure!(point.len() == 65 && point[0] == 4, "no uncompressed point");
        let [x, y] = [&point[1..33], &point[33..]].map(|half| BASE64URL_NOPAD.encode(half));
        Ok(json!({"keys": [{
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.name, "x": x, "y": y,
        }]})
        .to_string())
    }

    /// A token for a subject that holds now, with claims besides `iss`, `sub`, `iat` and `exp`.
    ///
    /// # Errors
    /// If it cannot be signed.
    pub fn token(&self, subject: &str, more: &Value) -> Result<String> {
        let now = now()?;
        let mut claims = json!({"iss": self.name, "sub": subject, "iat": now, "exp": now + LIFE});
        if let (Some(claims), Some(more)) = (claims.as_object_mut(), more.as_object()) {
            claims.extend(more.clone());
        }
        self.sign(&claims)
    }

    /// A token for a subject that has expired, by more than clocks may differ.
    ///
    /// # Errors
    /// If it cannot be signed.
    pub fn expired_token(&self, subject: &str) -> Result<String> {
        self.token(subject, &json!({"exp": now()? - LIFE}))
    }

    fn sign(&self, claims: &Value) -> Result<String> {
        let header = json!({"alg": "ES256", "typ": "JWT", "kid": self.name});
        let parts =
            [&header, claims].map(|part| BASE64URL_NOPAD.encode(part.to_string().as_bytes()));
        let signed = parts.join(".");
        let der = self.key.sign(signed.as_bytes()).context("a signature")?;
        let signature = fixed_length(&der).context("no signature of P-256")?;
        Ok(format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature)))
    }
}

fn now() -> Result<i64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(i64::try_from(now.as_secs())?)
}

/// `SEQUENCE { r INTEGER, s INTEGER }` as two numbers of 32 bytes (RFC 7518 §3.4).
fn fixed_length(der: &[u8]) -> Option<[u8; 64]> {
    let [0x30, _, rest @ ..] = der else {
        return None;
    };
    let mut signature = [0; 64];
    let mut rest = rest;
    for half in signature.chunks_mut(32) {
        let [0x02, length, tail @ ..] = rest else {
            return None;
        };
        let (number, tail) = tail.split_at_checked(usize::from(*length))?;
        // A leading zero keeps a number positive.
        let number = number.strip_prefix(&[0]).unwrap_or(number);
        let start = 32_usize.checked_sub(number.len())?;
        half[start..].copy_from_slice(number);
        rest = tail;
    }
    Some(signature)
}

#[cfg(test)]
mod tests {
    use super::fixed_length;

    #[test]
    fn numbers_of_a_signature_get_their_length() {
        let mut der = vec![0x30, 8, 0x02, 3, 0, 0x80, 1, 0x02, 1, 7];
        let signature = fixed_length(&der).unwrap();
        assert_eq!(signature[30..32], [0x80, 1]);
        assert_eq!(signature[63], 7);
        der[0] = 0;
        assert!(fixed_length(&der).is_none());
    }
}
