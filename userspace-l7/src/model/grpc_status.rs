//! gRPC's statuses by number and by name (gRPC's `statuscodes.md`).

/// Names in the order of their numbers.
const NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// A status's name, if the number has a meaning.
pub fn name(number: u16) -> Option<&'static str> {
    NAMES.get(usize::from(number)).copied()
}

/// The number that a text names or is, if it has a meaning.
pub fn number(text: &str) -> Option<u16> {
    let named = NAMES.iter().position(|name| *name == text);
    let named = named.and_then(|place| u16::try_from(place).ok());
    named.or_else(|| text.parse().ok().filter(|number| name(*number).is_some()))
}

#[cfg(test)]
mod tests {
    use super::{name, number};

    #[test]
    fn numbers_have_names_and_names_have_numbers() {
        for known in 0..17 {
            assert_eq!(name(known).and_then(number), Some(known));
        }
        assert_eq!(number("UNAVAILABLE"), Some(14));
        assert_eq!(number("7"), Some(7));
        for unknown in ["17", "-1", "unavailable", ""] {
            assert_eq!(number(unknown), None, "{unknown}");
        }
        assert_eq!(name(17), None);
    }
}
