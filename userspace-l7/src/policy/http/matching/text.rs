//! Where Istio's string patterns mean something of their own.

use crate::model::{PathPattern, PathTemplate, StringMatch, TemplateSegment};
use crate::policy::jwt::Claims;
use crate::policy::pattern::match_text;

/// Hosts compare without regard to case; a port belongs to the host if the request carries one.
pub(super) fn match_host(wanted: &StringMatch, authority: &str) -> bool {
    let bytes = authority.as_bytes();
    match wanted {
        StringMatch::Exact(exact) => exact.eq_ignore_ascii_case(authority),
        StringMatch::Prefix(prefix) => bytes
            .get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes())),
        StringMatch::Suffix(suffix) => bytes
            .len()
            .checked_sub(suffix.len())
            .and_then(|at| bytes.get(at..))
            .is_some_and(|end| end.eq_ignore_ascii_case(suffix.as_bytes())),
        StringMatch::Presence => !authority.is_empty(),
    }
}

pub(super) fn match_path(wanted: &PathPattern, path: &str) -> bool {
    match wanted {
        PathPattern::Text(wanted) => match_text(wanted, path),
        PathPattern::Template(template) => match_template(template, path),
    }
}

/// `{*}` is one segment that is not empty. `{**}` is any text between the slashes around it, slashes
/// included, so `/a/{**}` takes `/a/` but not `/a` (Envoy's URI templates).
fn match_template(template: &PathTemplate, path: &str) -> bool {
    let Some(path) = path.strip_prefix('/') else {
        return false;
    };
    let rest = template
        .segments
        .iter()
        .position(|segment| *segment == TemplateSegment::Rest);
    let segments: Vec<&str> = path.split('/').collect();
    let one = |(wanted, segment): (&TemplateSegment, &&str)| match wanted {
        TemplateSegment::Literal(literal) => **literal == **segment,
        TemplateSegment::One => !segment.is_empty(),
        // Only one operator may be the rest; a template with two matches nothing.
        TemplateSegment::Rest => false,
    };
    let Some(rest) = rest else {
        return segments.len() == template.segments.len()
            && template.segments.iter().zip(&segments).all(one);
    };
    let (before, from_rest) = template.segments.split_at(rest);
    let after = from_rest.get(1..).unwrap_or_default();
    // The rest takes at least one segment, which may be empty.
    segments.len() > before.len() + after.len()
        && before.iter().zip(&segments).all(one)
        && after.iter().rev().zip(segments.iter().rev()).all(one)
}

/// `<iss>/<sub>`, split at the last slash, because an issuer is often a URL. A `*` at one end belongs to the
/// half that it stands in, and the other half has to be as written; without a slash the other half is any.
pub(super) fn match_request_principal(wanted: &StringMatch, token: &Claims) -> bool {
    let (Some(issuer), Some(subject)) = (token.issuer(), token.subject()) else {
        return false;
    };
    match wanted {
        StringMatch::Presence => !issuer.is_empty() && !subject.is_empty(),
        StringMatch::Exact(exact) => {
            let (wanted_issuer, wanted_subject) = exact.rsplit_once('/').unwrap_or((exact, ""));
            issuer == wanted_issuer && subject == wanted_subject
        }
        StringMatch::Prefix(prefix) => match prefix.rsplit_once('/') {
            Some((wanted, start)) => {
                issuer == wanted && !subject.is_empty() && subject.starts_with(start)
            }
            None => issuer.starts_with(&**prefix) && !subject.is_empty(),
        },
        StringMatch::Suffix(suffix) => match suffix.rsplit_once('/') {
            Some((end, wanted)) => subject == wanted && !issuer.is_empty() && issuer.ends_with(end),
            None => subject.ends_with(&**suffix) && !issuer.is_empty(),
        },
    }
}
