//! Who a request's token says it is from (RequestAuthentication). Pure: rules, keys, a head and the time go
//! in, [`Claims`] come out. The order of checks and the words for what fails are Envoy's.

mod claims;
mod error;
mod keys;
mod location;
mod output;
mod token;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use claims::Claims;
pub use error::TokenError;
use http::Method;
use http::header::{ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, ORIGIN};
pub use keys::{InvalidKeySet, KeySet};
use token::Token;

use crate::model::{JwtKeys, JwtRule, RequestHead};

/// How far clocks may be apart (Envoy's default).
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Validates the tokens of a request.
///
/// One rule whose tokens are all valid is enough: tokens of different issuers may stand in different places.
/// Without such a rule no rule may find a token (Istio: "valid or missing"). A CORS preflight carries no
/// credentials and passes.
///
/// # Errors
/// [`TokenError`] if a token was found and no rule accepts it: the answer is 401.
pub fn authenticate(
    rules: &[Arc<JwtRule>],
    keys: &dyn Fn(&JwtKeys) -> Option<Arc<KeySet>>,
    head: &RequestHead<'_>,
    now: SystemTime,
) -> Result<Option<Claims>, TokenError> {
    if is_preflight(head) {
        return Ok(None);
    }
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut worst = None;
    for rule in rules {
        match accept(rule, keys, head, now) {
            Ok(Some(claims)) => return Ok(Some(claims)),
            // That another rule's token is not this rule's tells less than any other error.
            Err(error) if matches!(worst, None | Some(TokenError::UnknownIssuer)) => {
                worst = Some(error);
            }
            Ok(None) | Err(_) => {}
        }
    }
    match worst {
        Some(error) => Err(error),
        None => Ok(None),
    }
}

/// Takes away the headers that only a valid token may set, whoever sent them.
pub fn sanitize(rules: &[Arc<JwtRule>], headers: &mut HeaderMap) {
    for rule in rules {
        let claims = rule.claim_headers.iter().map(|(name, _)| name);
        for name in rule.payload_header.iter().chain(claims) {
            headers.remove(name);
        }
    }
}

fn is_preflight(head: &RequestHead<'_>) -> bool {
    *head.method == Method::OPTIONS
        && head.headers.contains_key(ORIGIN)
        && head.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// The claims of the first token that stands where the rule looks, if all that stand there are valid.
fn accept(
    rule: &Arc<JwtRule>,
    keys: &dyn Fn(&JwtKeys) -> Option<Arc<KeySet>>,
    head: &RequestHead<'_>,
    now: Duration,
) -> Result<Option<Claims>, TokenError> {
    let mut accepted = None;
    for text in location::tokens(&rule.locations, head) {
        let token = Token::parse(&text)?;
        check(&token, rule, keys, now)?;
        accepted.get_or_insert_with(|| Claims::new(token, rule));
    }
    Ok(accepted)
}

fn check(
    token: &Token,
    rule: &JwtRule,
    keys: &dyn Fn(&JwtKeys) -> Option<Arc<KeySet>>,
    now: Duration,
) -> Result<(), TokenError> {
    // Istio takes rules without an issuer: their keys alone decide.
    let is_theirs = rule.issuer.is_empty() || token.issuer.as_deref() == Some(&*rule.issuer);
    if !is_theirs {
        return Err(TokenError::UnknownIssuer);
    }
    if token.not_before.is_some_and(|at| now + CLOCK_SKEW < at) {
        return Err(TokenError::NotYetValid);
    }
    if token
        .expires
        .is_some_and(|at| now > at.saturating_add(CLOCK_SKEW))
    {
        return Err(TokenError::Expired);
    }
    let named = |audience: &String| {
        let is = |allowed: &Arc<str>| bare_audience(allowed) == bare_audience(audience);
        rule.audiences.iter().any(is)
    };
    if !rule.audiences.is_empty() && !token.audiences.iter().any(named) {
        return Err(TokenError::Audience);
    }
    let keys = keys(&rule.keys).ok_or(TokenError::NoKeys)?;
    keys.verify(token)
}

/// An audience is the same with and without the scheme of a web address and a slash at its end (Envoy).
fn bare_audience(audience: &str) -> &str {
    let bare = audience
        .strip_prefix("https://")
        .or_else(|| audience.strip_prefix("http://"))
        .unwrap_or(audience);
    bare.strip_suffix('/').unwrap_or(bare)
}

#[cfg(test)]
mod tests;
