//! Where tokens stand in a request.

use http::header::{AUTHORIZATION, COOKIE};

use crate::model::{JwtLocation, RequestHead};

/// Every token that stands in one of the places, in the places' order.
pub(super) fn tokens(locations: &[JwtLocation], head: &RequestHead<'_>) -> Vec<String> {
    locations
        .iter()
        .flat_map(|location| tokens_at(location, head))
        .collect()
}

fn tokens_at(location: &JwtLocation, head: &RequestHead<'_>) -> Vec<String> {
    match location {
        JwtLocation::Header { name, prefix } => {
            let values = head.headers.get_all(name).iter();
            // The scheme of `Authorization` has no case (RFC 9110 §11.1): an application may take what Envoy
            // would overlook.
            let has_case = *name != AUTHORIZATION;
            values
                .filter_map(|value| after_prefix(value.as_bytes(), prefix, has_case))
                .collect()
        }
        JwtLocation::Parameter(name) => {
            let query = head.query.unwrap_or_default().as_bytes();
            form_urlencoded::parse(query)
                .filter(|(key, _)| **key == **name)
                .map(|(_, value)| value.into_owned())
                .collect()
        }
        JwtLocation::Cookie(name) => {
            let lists = head.headers.get_all(COOKIE).iter();
            lists
                .filter_map(|list| list.to_str().ok())
                .flat_map(|list| list.split(';'))
                .filter_map(|pair| pair.trim().split_once('='))
                .filter(|(key, _)| *key == &**name)
                .map(|(_, value)| value.trim_matches('"').to_owned())
                .collect()
        }
    }
}

/// What stands behind a prefix; bytes that are no text become a token that has no form.
pub(super) fn after_prefix(value: &[u8], prefix: &str, has_case: bool) -> Option<String> {
    let (start, rest) = value.split_at_checked(prefix.len())?;
    let same = if has_case {
        start == prefix.as_bytes()
    } else {
        start.eq_ignore_ascii_case(prefix.as_bytes())
    };
    same.then(|| String::from_utf8_lossy(rest.trim_ascii()).into_owned())
}
