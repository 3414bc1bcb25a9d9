//! What may be wrong with a token.

/// Why a token is not accepted. Printed, it is the body of the 401: Envoy's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not three parts with two dots.
    #[error("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections")]
    Form,
    /// The header cannot be read, or a field of it has the wrong kind: what is wrong.
    #[error("Jwt header {0}")]
    Header(&'static str),
    /// The payload cannot be read, or a field of it has the wrong kind: what is wrong.
    #[error("Jwt payload {0}")]
    Payload(&'static str),
    /// The signature is no base64url.
    #[error("Jwt signature is an invalid Base64url encoded")]
    SignatureEncoding,
    /// `none`, or an algorithm that nobody here verifies.
    #[error("Jwt header [alg] is not supported")]
    Algorithm,
    /// `iss` is none of the rule's.
    #[error("Jwt issuer is not configured")]
    UnknownIssuer,
    /// `nbf` lies ahead.
    #[error("Jwt not yet valid")]
    NotYetValid,
    /// `exp` is over.
    #[error("Jwt is expired")]
    Expired,
    /// `aud` names none of the rule's.
    #[error("Audiences in Jwt are not allowed")]
    Audience,
    /// The issuer's keys are not here.
    #[error("Jwks remote fetch is failed")]
    NoKeys,
    /// No key has the token's `kid` and suits its `alg`.
    #[error("Jwks doesn't have key to match kid or alg from Jwt")]
    NoSuchKey,
    /// The signature is not by any of the keys that could have made it.
    #[error("Jwt verification fails")]
    Signature,
}

impl TokenError {
    /// The answer's `WWW-Authenticate` (RFC 6750 §3). `realm` is the URL that was asked for, as Envoy's is.
    pub fn challenge(self, realm: &str) -> String {
        let realm: String = realm
            .chars()
            .filter(|c| !matches!(c, '"' | '\\') && !c.is_control())
            .collect();
        format!("Bearer realm=\"{realm}\", error=\"invalid_token\"")
    }
}
