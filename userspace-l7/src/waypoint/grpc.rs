//! `grpc-timeout`: the time that a gRPC client gives its call (gRPC over HTTP/2, "Timeout"). Pure.

use std::time::Duration;

use ::http::{HeaderMap, HeaderName};

const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// How long a request may take: what its rule grants, and of that no more than its gRPC client waits for.
pub(super) fn timeout(headers: &HeaderMap, granted: Option<Duration>) -> Option<Duration> {
    let wanted = headers.get(TIMEOUT);
    let wanted = wanted.and_then(|value| parse(value.to_str().ok()?));
    match (wanted, granted) {
        (Some(wanted), Some(granted)) => Some(wanted.min(granted)),
        (wanted, granted) => wanted.or(granted),
    }
}

/// At most eight digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let sound = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = sound.then(|| digits.parse().ok())??;
    Some(match unit {
        "H" => Duration::from_secs(number * 60 * 60),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderMap;
    use proptest::prelude::*;

    use super::{TIMEOUT, parse, timeout};
    use crate::tests::any_head;

    #[test]
    fn a_timeout_is_a_number_and_a_unit() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (text, expected) in [
            ("1H", seconds(3600)),
            ("2M", seconds(120)),
            ("3S", seconds(3)),
            ("4000m", seconds(4)),
            ("5000000u", seconds(5)),
            ("60000000n", Some(Duration::from_millis(60))),
            ("123456789S", None),
            ("S", None),
            ("1", None),
            ("", None),
            ("-1S", None),
            ("1s", None),
            ("1ü", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_a_client_says_no_more_is_granted_than_its_rule_does(
            head in any_head(),
            granted in proptest::option::of(0..100_000_u64),
        ) {
            let granted = granted.map(Duration::from_millis);
            let found = timeout(&head.headers, granted);
            if let Some(granted) = granted {
                prop_assert!(found.is_some_and(|found| found <= granted));
            }
            let says_nothing = head.headers.get(TIMEOUT).is_none();
            prop_assert!(!says_nothing || found == timeout(&HeaderMap::new(), granted));
        }
    }
}
