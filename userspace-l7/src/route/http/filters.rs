//! What a rule makes of a request before its backend gets it.

use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;

use super::{InvalidTarget, modify, rewrite};
use crate::model::{HeaderModifier, HttpMatch, HttpRule};

/// The filters that a request passes on one of its ways.
#[derive(Clone, Copy, Debug)]
pub struct Filters<'a> {
    /// What it matched.
    pub matched: &'a HttpMatch,
    /// The rule.
    pub rule: &'a HttpRule,
    /// What its backend's reference says besides.
    pub backend: Option<&'a HeaderModifier>,
    /// Whether its host says that it is a copy.
    pub is_shadow: bool,
}

impl Filters<'_> {
    /// Changes a request's head; its authority is in `Host`.
    ///
    /// # Errors
    /// [`InvalidTarget`] when what comes out is no URI.
    pub fn apply(&self, parts: &mut Parts) -> Result<(), InvalidTarget> {
        self.apply_rule(parts)?;
        self.apply_backend(parts);
        if self.is_shadow {
            shadow(&mut parts.headers);
        }
        Ok(())
    }

    /// As far as the rule changes it, for backends and mirrors alike.
    ///
    /// # Errors
    /// [`InvalidTarget`] when what comes out is no URI.
    pub fn apply_rule(&self, parts: &mut Parts) -> Result<(), InvalidTarget> {
        modify_head(&self.rule.request_headers, &mut parts.headers);
        match &self.rule.rewrite {
            Some(change) => rewrite(change, self.matched, parts),
            None => Ok(()),
        }
    }

    /// As far as the backend's reference changes it, after the rule.
    pub fn apply_backend(&self, parts: &mut Parts) {
        if let Some(backend) = self.backend {
            modify_head(backend, &mut parts.headers);
        }
    }

    /// Whether they change anything that policies look at.
    pub(super) fn change_anything(&self) -> bool {
        let nothing = HeaderModifier::default();
        self.is_shadow
            || self.rule.rewrite.is_some()
            || self.modifiers().any(|modifier| *modifier != nothing)
            || self.rule.mirrors.iter().any(|mirror| mirror.shadow_host)
    }

    /// Names of the headers that they change, with `Host` left out.
    pub(super) fn names(&self) -> impl Iterator<Item = &HeaderName> {
        let names = self.modifiers().flat_map(|modifier| {
            let put = modifier.set.iter().chain(&modifier.add);
            put.map(|(name, _)| name).chain(&modifier.remove)
        });
        names.filter(|name| *name != HOST)
    }

    fn modifiers(&self) -> impl Iterator<Item = &HeaderModifier> {
        std::iter::once(&self.rule.request_headers).chain(self.backend)
    }
}

fn modify_head(modifier: &HeaderModifier, headers: &mut HeaderMap) {
    modify(modifier, headers);
    if let Some(authority) = &modifier.authority {
        drop(headers.insert(HOST, authority.clone()));
    }
}

/// Appends `-shadow` to the host, before its port (Envoy does so, for logs to tell copies apart).
pub fn shadow(headers: &mut HeaderMap) {
    let Some(host) = headers.get(HOST).and_then(|host| host.to_str().ok()) else {
        return;
    };
    let shadow = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => format!("{name}-shadow:{port}"),
        _ => format!("{host}-shadow"),
    };
    if let Ok(shadow) = HeaderValue::from_str(&shadow) {
        drop(headers.insert(HOST, shadow));
    }
}
