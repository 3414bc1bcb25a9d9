//! What the application gets of a validated token.

use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use http::HeaderName;
use http::header::{AUTHORIZATION, COOKIE, HeaderMap, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use serde_json::Value;

use super::claims::Claims;
use super::location::after_prefix;
use crate::model::JwtLocation;

impl Claims {
    /// Gives the application what the rule promises, payload and claims in headers, and takes the token
    /// away unless the rule forwards it. What clients sent in those headers has to be gone before
    /// ([`super::sanitize`]).
    pub fn apply(&self, parts: &mut Parts) {
        let rule = Arc::clone(&self.rule);
        if let Some(name) = &rule.payload_header
            && let Ok(value) = HeaderValue::from_str(&self.payload)
        {
            parts.headers.insert(name, value);
        }
        for (name, path) in &rule.claim_headers {
            let path: Vec<&str> = path.iter().map(AsRef::as_ref).collect();
            let text = self.find(&path).and_then(header_text);
            if let Some(value) = text.and_then(|text| HeaderValue::from_str(&text).ok()) {
                parts.headers.insert(name, value);
            }
        }
        if !rule.forward_original {
            for location in &rule.locations {
                remove(location, parts);
            }
        }
    }
}

/// Plain values as they read, lists and objects as base64url of their JSON (Envoy's `claim_to_headers`).
fn header_text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Array(_) | Value::Object(_) => {
            Some(BASE64URL_NOPAD.encode(value.to_string().as_bytes()))
        }
    }
}

fn remove(location: &JwtLocation, parts: &mut Parts) {
    match location {
        JwtLocation::Header { name, prefix } => {
            let has_case = *name != AUTHORIZATION;
            let is_token =
                |value: &HeaderValue| after_prefix(value.as_bytes(), prefix, has_case).is_some();
            keep_values(&mut parts.headers, name, |value| {
                (!is_token(value)).then(|| value.clone())
            });
        }
        JwtLocation::Cookie(wanted) => {
            keep_values(&mut parts.headers, &COOKIE, |value| {
                let text = value.to_str().ok()?;
                let others: Vec<&str> = text
                    .split(';')
                    .map(str::trim)
                    .filter(|pair| pair.split('=').next() != Some(wanted))
                    .collect();
                let rest = others.join("; ");
                (!rest.is_empty()).then(|| HeaderValue::from_str(&rest).ok())?
            });
        }
        JwtLocation::Parameter(wanted) => remove_parameter(wanted, parts),
    }
}

/// Replaces every value of a header by what `keep` makes of it.
fn keep_values(
    headers: &mut HeaderMap,
    name: &HeaderName,
    keep: impl Fn(&HeaderValue) -> Option<HeaderValue>,
) {
    let kept: Vec<HeaderValue> = headers.get_all(name).iter().filter_map(keep).collect();
    headers.remove(name);
    for value in kept {
        headers.append(name, value);
    }
}

/// The other parameters stay byte by byte as they were.
fn remove_parameter(wanted: &str, parts: &mut Parts) {
    let Some(query) = parts.uri.query() else {
        return;
    };
    let names = |pair: &&str| {
        let mut parsed = form_urlencoded::parse(pair.as_bytes());
        parsed.next().is_some_and(|(name, _)| *name == *wanted)
    };
    let others: Vec<&str> = query.split('&').filter(|pair| !names(pair)).collect();
    let path = parts.uri.path();
    let target = if others.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{}", others.join("&"))
    };
    let mut uri = parts.uri.clone().into_parts();
    // A part of a valid target is a valid target.
    if let Ok(target) = PathAndQuery::try_from(target) {
        uri.path_and_query = Some(target);
        if let Ok(uri) = http::Uri::from_parts(uri) {
            parts.uri = uri;
        }
    }
}
