//! Changes of a request's host and path.

use std::borrow::Cow;

use http::header::HOST;
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};

use crate::model::{HttpMatch, PathChange, PathMatch, Rewrite};

/// A rewrite makes a target that is no URI: the request cannot be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rewritten request target is no URI")]
pub struct InvalidTarget;

/// Gives a request the host and path that its rule wants. The query stays.
///
/// # Errors
/// [`InvalidTarget`] when what comes out is no URI; the request is then as it was.
pub fn rewrite(
    rewrite: &Rewrite,
    matched: &HttpMatch,
    parts: &mut Parts,
) -> Result<(), InvalidTarget> {
    let mut uri = parts.uri.clone().into_parts();
    if let Some(change) = &rewrite.path {
        let path = changed_path(change, matched, parts.uri.path());
        let target = match parts.uri.query().filter(|_| !path.contains('?')) {
            Some(query) => format!("{path}?{query}"),
            None => path.into_owned(),
        };
        let target = PathAndQuery::try_from(target).map_err(|_why| InvalidTarget)?;
        uri.path_and_query = Some(target);
    }
    if let Some(host) = &rewrite.hostname {
        let authority = Authority::try_from(host.as_bytes()).map_err(|_why| InvalidTarget)?;
        if uri.authority.is_some() {
            uri.authority = Some(authority);
        }
    }
    parts.uri = http::Uri::from_parts(uri).map_err(|_why| InvalidTarget)?;
    if let Some(host) = &rewrite.hostname {
        // HTTP/1.1 names the host in the header alone; where both stand they have to agree (RFC 9113 §8.3.1).
        if parts.uri.authority().is_none() || parts.headers.contains_key(HOST) {
            parts.headers.insert(HOST, host.clone());
        }
    }
    Ok(())
}

/// The path after a change. It always begins with `/`.
pub(super) fn changed_path<'a>(
    change: &'a PathChange,
    matched: &HttpMatch,
    path: &'a str,
) -> Cow<'a, str> {
    let changed: Cow<'_, str> = match change {
        PathChange::Full(full) => Cow::Borrowed(full),
        PathChange::Prefix(replacement) => match &matched.path {
            PathMatch::Prefix(prefix) => replace_elements(path, prefix, replacement),
            // A VirtualService replaces the text that it matched, whether prefix or whole.
            PathMatch::TextPrefix(prefix) | PathMatch::Exact(prefix) => {
                let rest = path.get(prefix.len()..).unwrap_or_default();
                Cow::Owned(format!("{replacement}{rest}"))
            }
            // Nothing says what the prefix is: Gateway API demands a PathPrefix match beside it.
            PathMatch::Any | PathMatch::Regex(_) => replace_elements(path, "", replacement),
        },
        PathChange::Regex {
            pattern,
            replacement,
        } => pattern.0.replace_all(path, &**replacement),
    };
    if changed.starts_with('/') {
        changed
    } else {
        Cow::Owned(format!("/{changed}"))
    }
}

/// Replaces a prefix of path elements, as the table of Gateway API's `ReplacePrefixMatch` says: slashes at
/// the end of prefix and replacement do not count.
fn replace_elements<'a>(path: &str, prefix: &str, replacement: &str) -> Cow<'a, str> {
    let rest = path
        .get(prefix.trim_end_matches('/').len()..)
        .unwrap_or_default();
    let replacement = replacement.trim_end_matches('/');
    Cow::Owned(format!("{replacement}{rest}"))
}
