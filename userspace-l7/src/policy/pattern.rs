//! Istio's string patterns.

use crate::model::StringMatch;

pub(super) fn match_text(wanted: &StringMatch, text: &str) -> bool {
    match wanted {
        StringMatch::Exact(exact) => **exact == *text,
        StringMatch::Prefix(prefix) => text.starts_with(&**prefix),
        StringMatch::Suffix(suffix) => text.ends_with(&**suffix),
        StringMatch::Presence => !text.is_empty(),
    }
}

/// A namespace pattern, in which `*` may stand anywhere and stands for any text.
pub(super) fn glob(wanted: &StringMatch, text: &str) -> bool {
    let (start, pattern, end) = match wanted {
        StringMatch::Exact(exact) => ("", exact, ""),
        StringMatch::Prefix(prefix) => ("", prefix, "*"),
        StringMatch::Suffix(suffix) => ("*", suffix, ""),
        StringMatch::Presence => return !text.is_empty(),
    };
    let pattern = format!("{start}{pattern}{end}");
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    // Each part as early as it can be: what is left is then the most there can be.
    for part in parts {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = rest.get(at + part.len()..).unwrap_or_default();
    }
    rest.ends_with(last)
}
