//! Gateway API's filters → what they do to requests and answers. Pure.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use userspace_l7::model::{
    Cors, HeaderModifier, OriginMatch, PathChange, Redirect, RedirectPort, Rewrite, SessionCarrier,
    SessionPersistence,
};

use crate::mesh::http_route::{
    CorsFilter, PathModifier, PathModifierType, RedirectFilter, RewriteFilter,
};
use crate::mesh::route::{self, CookieLifetime, Header, HeaderFilter, SessionType};

/// What a redirect answers if it does not say.
const DEFAULT_REDIRECT: StatusCode = StatusCode::FOUND;
/// How long a preflight's answer holds if the filter does not say (Gateway API: 5 s).
const DEFAULT_MAX_AGE: u32 = 5;
/// Cookie or header of a session without a name.
const SESSION_NAME: &str = "culvert-session";

/// Adds a filter's changes to those that are there. None if a name or value could not be a header's.
pub(super) fn modify(modifier: &mut HeaderModifier, filter: &HeaderFilter) -> Option<()> {
    for header in &filter.set {
        let value = HeaderValue::from_str(&header.value).ok()?;
        if is_authority(&header.name) {
            modifier.authority = Some(value);
        } else {
            modifier.set.push((name(&header.name)?, value));
        }
    }
    for Header { name: text, value } in &filter.add {
        let value = HeaderValue::from_str(value).ok()?;
        if is_authority(text) {
            // A request has one authority: there is nothing to append to.
            modifier.authority = Some(value);
        } else {
            modifier.add.push((name(text)?, value));
        }
    }
    for text in &filter.remove {
        if !is_authority(text) {
            modifier.remove.push(name(text)?);
        }
    }
    Some(())
}

fn is_authority(name: &str) -> bool {
    name == ":authority" || name.eq_ignore_ascii_case("host")
}

fn name(text: &str) -> Option<HeaderName> {
    HeaderName::from_bytes(text.as_bytes()).ok()
}

fn path_change(path: &PathModifier) -> Option<PathChange> {
    match path.kind {
        PathModifierType::ReplaceFullPath => {
            Some(PathChange::Full(path.replace_full_path.as_deref()?.into()))
        }
        PathModifierType::ReplacePrefixMatch => {
            let text = path.replace_prefix_match.as_deref()?;
            Some(PathChange::Prefix(text.into()))
        }
    }
}

pub(super) fn redirect(filter: &RedirectFilter) -> Redirect {
    let status = filter
        .status_code
        .and_then(|code| StatusCode::from_u16(code).ok());
    Redirect {
        scheme: filter.scheme.as_deref().map(Arc::from),
        hostname: filter.hostname.as_deref().map(Arc::from),
        path: filter.path.as_ref().and_then(path_change),
        port: match filter.port.map(u16::try_from) {
            Some(Ok(port)) => RedirectPort::Number(port),
            Some(Err(_)) | None => RedirectPort::Derived,
        },
        status: status.unwrap_or(DEFAULT_REDIRECT),
    }
}

pub(super) fn rewrite(filter: &RewriteFilter) -> Rewrite {
    let hostname = filter.hostname.as_deref();
    Rewrite {
        hostname: hostname.and_then(|name| HeaderValue::from_str(name).ok()),
        path: filter.path.as_ref().and_then(path_change),
    }
}

pub(super) fn cors(filter: &CorsFilter) -> Cors {
    let texts = |list: &[String]| list.iter().map(|one| one.as_str().into()).collect();
    let max_age = filter.max_age.unwrap_or(DEFAULT_MAX_AGE);
    Cors {
        allow_origins: filter.allow_origins.iter().map(|one| origin(one)).collect(),
        allow_methods: texts(&filter.allow_methods),
        allow_headers: texts(&filter.allow_headers),
        expose_headers: texts(&filter.expose_headers),
        allow_credentials: filter.allow_credentials == Some(true),
        max_age: Some(Duration::from_secs(max_age.into())),
        forward_unmatched: false,
    }
}

/// `*`, an origin, or one with `*.` before its host.
fn origin(text: &str) -> OriginMatch {
    if text == "*" {
        return OriginMatch::Any;
    }
    let wildcard = text
        .split_once("://")
        .and_then(|(scheme, host)| Some((scheme, host.strip_prefix('*')?)));
    match wildcard {
        Some((scheme, suffix)) => OriginMatch::Wildcard {
            scheme: format!("{scheme}://").into(),
            suffix: suffix.into(),
        },
        None => OriginMatch::Exact(text.into()),
    }
}

pub(super) fn session(persistence: &route::SessionPersistence) -> SessionPersistence {
    let lifetime = persistence
        .cookie_config
        .map(|config| config.lifetime_type)
        .unwrap_or_default();
    let carrier = match (persistence.carrier, lifetime) {
        (SessionType::Header, _) => SessionCarrier::Header,
        (SessionType::Cookie, CookieLifetime::Session) => SessionCarrier::SessionCookie,
        (SessionType::Cookie, CookieLifetime::Permanent) => SessionCarrier::PermanentCookie,
    };
    let name = persistence.session_name.as_deref();
    SessionPersistence {
        name: name.unwrap_or(SESSION_NAME).into(),
        carrier,
        absolute_timeout: persistence.absolute_timeout.map(|one| one.0),
        idle_timeout: persistence.idle_timeout.map(|one| one.0),
    }
}

#[cfg(test)]
mod tests {
    use userspace_l7::model::OriginMatch;

    use super::origin;

    #[test]
    fn origins_are_exact_or_have_a_wildcard_before_the_host() {
        let wildcard = |scheme: &str, suffix: &str| OriginMatch::Wildcard {
            scheme: scheme.into(),
            suffix: suffix.into(),
        };
        for (text, expected) in [
            ("*", OriginMatch::Any),
            ("https://a.b", OriginMatch::Exact("https://a.b".into())),
            ("https://*.a.b:8443", wildcard("https://", ".a.b:8443")),
            ("http://*", wildcard("http://", "")),
        ] {
            assert_eq!(origin(text), expected, "{text}");
        }
    }
}
