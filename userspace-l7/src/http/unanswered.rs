//! What the server's node tells the client's about a request that no application answered. Without it the
//! node's own answer would pass for the application's, and nobody would try another endpoint.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::refusal::Refusal;

/// Between two agents only: neither applications nor their clients get to see it.
const UNANSWERED: HeaderName = HeaderName::from_static("x-culvert-unanswered");

/// The refusals that are told, by their names on the wire.
const TOLD: [(&str, Refusal); 3] = [
    ("connect-failure", Refusal::ConnectFailure),
    ("reset", Refusal::UpstreamReset),
    ("nonsense", Refusal::UpstreamNonsense),
];

/// What a connection that could not begin is told by: why stands behind it.
const UNBEGUN: &str = "unbegun: ";
/// As much of that as is told.
const MAX_WORDS: usize = 512;

/// Says in the answer to a request that it is not the application's.
pub(crate) fn tell(refusal: &Refusal, headers: &mut HeaderMap) {
    if let Refusal::Unbegun(why) = refusal {
        let words = why.chars().filter(|c| matches!(c, ' '..='~'));
        let words: String = words.take(MAX_WORDS).collect();
        if let Ok(words) = HeaderValue::from_str(&format!("{UNBEGUN}{words}")) {
            drop(headers.insert(UNANSWERED, words));
        }
    }
    let told = TOLD.iter().find(|(_, one)| one == refusal);
    if let Some((name, _)) = told {
        drop(headers.insert(UNANSWERED, HeaderValue::from_static(name)));
    }
}

/// Takes out what a response says of this, which only another agent may be believed. A cause that a later
/// version may know is as good as none.
pub(crate) fn take_told(headers: &mut HeaderMap) -> Option<Refusal> {
    let name = headers.remove(UNANSWERED)?;
    let words = name
        .to_str()
        .ok()
        .and_then(|name| name.strip_prefix(UNBEGUN));
    if let Some(words) = words {
        return Some(Refusal::Unbegun(words.into()));
    }
    let told = TOLD
        .iter()
        .find(|(one, _)| name.as_bytes() == one.as_bytes());
    told.map(|(_, refusal)| refusal.clone())
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::{Refusal, TOLD, UNANSWERED, take_told, tell};

    #[test]
    fn what_is_told_is_heard_once() {
        let unbegun = Refusal::Unbegun("TLS_error: no such name".into());
        for (_, refusal) in TOLD.into_iter().chain([("", unbegun)]) {
            let mut headers = HeaderMap::new();
            tell(&refusal, &mut headers);
            assert_eq!(take_told(&mut headers), Some(refusal));
            assert!(headers.is_empty(), "{headers:?}");
        }
    }

    #[test]
    fn everything_else_is_an_answer() {
        let mut headers = HeaderMap::new();
        tell(&Refusal::NoRoute, &mut headers);
        assert!(headers.is_empty(), "{headers:?}");
        for unknown in ["", "Reset", "a later one"] {
            headers.insert(UNANSWERED, unknown.parse().unwrap());
            assert_eq!(take_told(&mut headers), None, "{unknown}");
            assert!(headers.is_empty(), "{headers:?}");
        }
    }
}
