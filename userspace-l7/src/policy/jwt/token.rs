//! A token taken apart (RFC 7515 compact serialization, RFC 7519 claims), not verified yet.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Map, Value};

use super::error::TokenError;

/// Signature algorithms (RFC 7518 §3.1, RFC 8037). There is no `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    EdDsa,
}

impl Algorithm {
    pub(super) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "HS256" => Self::Hs256,
            "HS384" => Self::Hs384,
            "HS512" => Self::Hs512,
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }
}

/// What a token says.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) algorithm: Algorithm,
    pub(super) key_id: Option<String>,
    /// The token itself, for whoever takes it out of the request.
    pub(super) text: String,
    /// What was signed: header and payload as they came.
    pub(super) signed_length: usize,
    pub(super) signature: Vec<u8>,
    pub(super) issuer: Option<String>,
    pub(super) audiences: Vec<String>,
    pub(super) not_before: Option<Duration>,
    pub(super) expires: Option<Duration>,
    pub(super) claims: Map<String, Value>,
}

impl Token {
    pub(super) fn parse(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Form);
        };
        let signed_length = header.len() + 1 + payload.len();
        let header = object(header).map_err(TokenError::Header)?;
        let algorithm = match header.get("alg") {
            Some(Value::String(name)) => Algorithm::of(name).ok_or(TokenError::Algorithm)?,
            _ => {
                return Err(TokenError::Header(
                    "[alg] field is required and must be a string",
                ));
            }
        };
        let key_id = match header.get("kid") {
            None => None,
            Some(Value::String(id)) => Some(id.clone()),
            Some(_) => return Err(TokenError::Header("[kid] field must be a string")),
        };
        // RFC 7515 §4.1.11: a token with an extension that is not understood is invalid.
        if header.contains_key("crit") {
            return Err(TokenError::Header(
                "[crit] field names an unknown extension",
            ));
        }
        let claims = object(payload).map_err(TokenError::Payload)?;
        let signature = BASE64URL_NOPAD
            .decode(signature.as_bytes())
            .map_err(|_why| TokenError::SignatureEncoding)?;
        let issuer = match claims.get("iss") {
            None => None,
            Some(Value::String(issuer)) => Some(issuer.clone()),
            Some(_) => return Err(TokenError::Payload("[iss] field must be a string")),
        };
        Ok(Self {
            algorithm,
            key_id,
            text: text.to_owned(),
            signed_length,
            signature,
            issuer,
            audiences: audiences(&claims)?,
            not_before: time(&claims, "nbf", "[nbf] field must be a positive number")?,
            expires: time(&claims, "exp", "[exp] field must be a positive number")?,
            claims,
        })
    }

    pub(super) fn signed(&self) -> &[u8] {
        let bytes = self.text.as_bytes();
        bytes.get(..self.signed_length).unwrap_or_default()
    }

    /// The payload as it came: base64url.
    pub(super) fn payload(&self) -> &str {
        self.text.split('.').nth(1).unwrap_or_default()
    }
}

fn object(encoded: &str) -> Result<Map<String, Value>, &'static str> {
    let bytes = BASE64URL_NOPAD
        .decode(encoded.as_bytes())
        .map_err(|_why| "is an invalid Base64url encoded")?;
    serde_json::from_slice(&bytes).map_err(|_why| "is an invalid JSON")
}

/// RFC 7519 §4.1.3: one text or a list of them.
fn audiences(claims: &Map<String, Value>) -> Result<Vec<String>, TokenError> {
    const WRONG: TokenError = TokenError::Payload("[aud] field must be a string or string list");
    match claims.get("aud") {
        None => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(many)) => many
            .iter()
            .map(|one| one.as_str().map(str::to_owned).ok_or(WRONG))
            .collect(),
        Some(_) => Err(WRONG),
    }
}

/// RFC 7519 §2, `NumericDate`: seconds since 1970, maybe with a fraction.
fn time(
    claims: &Map<String, Value>,
    name: &str,
    wrong: &'static str,
) -> Result<Option<Duration>, TokenError> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    let seconds = value.as_f64().ok_or(TokenError::Payload(wrong))?;
    let time = Duration::try_from_secs_f64(seconds).map_err(|_why| TokenError::Payload(wrong))?;
    Ok(Some(time))
}
