//! Durations as Gateway API writes them (GEP-2257) and as Istio does (Go's `time.ParseDuration`).

use std::time::Duration;

use serde::Deserialize;

/// Nanoseconds of each unit, the longer names before those that they begin with.
const UNITS: [(&str, u64); 5] = [
    ("ms", 1_000_000),
    ("us", 1_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
];
/// GEP-2257: at most four numbers.
const MAX_PARTS: usize = 4;
/// GEP-2257: of at most five digits each.
const MAX_DIGITS: usize = 5;

/// `1h2m3s4ms` (GEP-2257).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct GatewayDuration(pub Duration);

/// A text that is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a duration: {rule}")]
pub struct InvalidDuration {
    text: String,
    rule: &'static str,
}

impl TryFrom<String> for GatewayDuration {
    type Error = InvalidDuration;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match parse_gateway(&text) {
            Some(duration) => Ok(Self(duration)),
            None => Err(InvalidDuration {
                text,
                rule: "write up to four whole numbers with h, m, s or ms, such as 10s or 1m500ms",
            }),
        }
    }
}

/// `1.5s`, `300ms` (Istio). Seconds with a fraction, as protobuf writes them, are among these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct IstioDuration(pub Duration);

impl TryFrom<String> for IstioDuration {
    type Error = InvalidDuration;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match parse_istio(&text) {
            Some(duration) => Ok(Self(duration)),
            None => Err(InvalidDuration {
                text,
                rule: "write numbers with h, m, s, ms or us, such as 10s or 1.5s",
            }),
        }
    }
}

/// Splits `12ms…` into its digits, its unit's nanoseconds and the rest.
fn part(text: &str, allowed: impl Fn(char) -> bool) -> Option<(&str, u64, &str)> {
    let end = text.find(|c| !allowed(c))?;
    let (digits, rest) = text.split_at(end);
    let (unit, scale) = UNITS.iter().find(|(unit, _)| rest.starts_with(unit))?;
    Some((digits, *scale, rest.get(unit.len()..)?))
}

fn parse_gateway(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    let mut parts = 0;
    while !rest.is_empty() {
        let (digits, scale, next) = part(rest, |c| c.is_ascii_digit())?;
        parts += 1;
        let is_micro = scale == 1_000;
        if digits.is_empty() || digits.len() > MAX_DIGITS || parts > MAX_PARTS || is_micro {
            return None;
        }
        let number: u64 = digits.parse().ok()?;
        total = total.checked_add(Duration::from_nanos(number.checked_mul(scale)?))?;
        rest = next;
    }
    (parts > 0).then_some(total)
}

fn parse_istio(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (digits, scale, next) = part(rest, |c| c.is_ascii_digit() || c == '.')?;
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let whole: u64 = if whole.is_empty() {
            0
        } else {
            whole.parse().ok()?
        };
        let mut nanoseconds = whole.checked_mul(scale)?;
        let mut place = scale;
        for digit in fraction.chars() {
            place /= 10;
            let digit = u64::from(digit.to_digit(10)?);
            nanoseconds = nanoseconds.checked_add(digit.checked_mul(place)?)?;
        }
        total = total.checked_add(Duration::from_nanos(nanoseconds))?;
        rest = next;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{parse_gateway, parse_istio};

    #[test]
    fn gateway_durations_follow_gep_2257() {
        for (text, milliseconds) in [
            ("0s", Some(0)),
            ("10s", Some(10_000)),
            ("1h2m3s4ms", Some(3_723_004)),
            ("1m500ms", Some(60_500)),
            ("", None),
            ("10", None),
            ("s", None),
            ("1.5s", None),
            ("-1s", None),
            ("100000s", None),
            ("1us", None),
            ("1s1s1s1s1s", None),
            ("1d", None),
            ("1 s", None),
            ("१s", None),
        ] {
            let expected = milliseconds.map(Duration::from_millis);
            assert_eq!(parse_gateway(text), expected, "{text}");
        }
    }

    #[test]
    fn istio_durations_are_those_of_go() {
        for (text, microseconds) in [
            ("0s", Some(0)),
            ("0", Some(0)),
            ("1.5s", Some(1_500_000)),
            (".5s", Some(500_000)),
            ("1h", Some(3_600_000_000)),
            ("2m30s", Some(150_000_000)),
            ("0.000001s", Some(1)),
            ("", None),
            (".s", None),
            ("1.2.3s", None),
            ("-1s", None),
            ("1", None),
            ("99999999999999999999h", None),
        ] {
            let expected = microseconds.map(Duration::from_micros);
            assert_eq!(parse_istio(text), expected, "{text}");
        }
    }
}
