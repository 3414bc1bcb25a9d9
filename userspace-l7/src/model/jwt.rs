//! What RequestAuthentication demands of tokens.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

/// One `jwtRules` entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtRule {
    /// The object that it is from, `<namespace>/<name>`.
    pub origin: Arc<str>,
    /// `iss` that it is about; empty takes any that the keys have signed.
    pub issuer: Arc<str>,
    /// One of these has to be in `aud`; empty takes any.
    pub audiences: Vec<Arc<str>>,
    /// Where its keys are.
    pub keys: JwtKeys,
    /// Where tokens are looked for, in this order.
    pub locations: Vec<JwtLocation>,
    /// Whether the application gets the token.
    pub forward_original: bool,
    /// The payload, base64url, goes to the application in this header.
    pub payload_header: Option<HeaderName>,
    /// Claims that go to the application in headers.
    pub claim_headers: Vec<(HeaderName, Vec<Arc<str>>)>,
    /// Claims that are lists in one text, besides `scope`.
    pub space_delimited_claims: Vec<Arc<str>>,
}

/// Where keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwtKeys {
    /// In the object: a JWK set, JSON (RFC 7517).
    Inline(Arc<str>),
    /// At an address; the agent fetches and refreshes them.
    Remote {
        /// `jwksUri`, or the issuer where OpenID discovery has to find it.
        source: JwksSource,
        /// How long one fetch may take.
        timeout: Duration,
    },
}

/// From where keys are fetched.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum JwksSource {
    /// The key set itself.
    Uri(Arc<str>),
    /// `<issuer>/.well-known/openid-configuration` names it.
    Discovery(Arc<str>),
}

/// Where a token is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwtLocation {
    /// A header, after a prefix such as `Bearer `.
    Header {
        /// Its name.
        name: HeaderName,
        /// What stands before the token; may be empty.
        prefix: Arc<str>,
    },
    /// A query parameter.
    Parameter(Arc<str>),
    /// A cookie.
    Cookie(Arc<str>),
}
