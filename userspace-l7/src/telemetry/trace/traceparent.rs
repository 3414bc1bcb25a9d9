//! The `traceparent` header (W3C Trace Context §3.2).

use std::cell::Cell;
use std::fmt;
use std::hash::{BuildHasher, RandomState};

use data_encoding::HEXLOWER;

/// A trace and the span within it that a connection belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traceparent {
    trace: [u8; 16],
    parent: [u8; 8],
    flags: u8,
}

impl Traceparent {
    /// A context that is not sampled, as ztunnel makes one for each connection.
    pub fn new(trace: [u8; 16], parent: [u8; 8]) -> Self {
        Self {
            trace,
            parent,
            flags: 0,
        }
    }

    /// A context of a request, sampled or not.
    pub(super) fn with_sampling(trace: [u8; 16], parent: [u8; 8], is_sampled: bool) -> Self {
        Self {
            trace,
            parent,
            flags: if is_sampled { SAMPLED } else { 0 },
        }
    }

    /// A fresh context. Unguessable only as far as a keyed hash is: it joins logs and guards nothing.
    pub fn random() -> Self {
        thread_local! {
            static RANDOM: (RandomState, Cell<u64>) = (RandomState::new(), Cell::new(0));
        }
        RANDOM.with(|(keys, count)| {
            let next = || {
                count.set(count.get().wrapping_add(1));
                keys.hash_one(count.get()).to_be_bytes()
            };
            let mut trace = [0; 16];
            trace[..8].copy_from_slice(&next());
            trace[8..].copy_from_slice(&next());
            Self::new(trace, next())
        })
    }

    /// Reads version 00: 55 characters, lower-case hexadecimal, neither identifier all zero.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: &[u8; 55] = text.as_bytes().try_into().ok()?;
        let dashes = [2, 35, 52].iter().all(|at| bytes[*at] == b'-');
        if !dashes || bytes[..2] != *b"00" {
            return None;
        }
        let context = Self {
            trace: hex(&bytes[3..35])?,
            parent: hex(&bytes[36..52])?,
            flags: hex::<1>(&bytes[53..])?[0],
        };
        (context.trace != [0; 16] && context.parent != [0; 8]).then_some(context)
    }

    /// Reads a later version too, as far as version 00 goes: "if a higher version is detected, the
    /// implementation SHOULD try to parse it" (W3C Trace Context §3.2.4). Version ff does not exist.
    pub(super) fn parse_any_version(text: &str) -> Option<Self> {
        if text.starts_with("00") {
            return Self::parse(text);
        }
        let version = hex::<1>(text.as_bytes().get(..2)?)?;
        let (known, rest) = text.split_at_checked(55)?;
        let goes_on = rest.is_empty() || rest.starts_with('-');
        if version == [0xff] || !goes_on {
            return None;
        }
        Self::parse(&format!("00{}", known.get(2..)?))
    }

    pub(super) fn trace_id(&self) -> [u8; 16] {
        self.trace
    }

    pub(super) fn parent_id(&self) -> [u8; 8] {
        self.parent
    }

    pub(super) fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }
}

/// The one flag that has a meaning (W3C Trace Context §3.2.2.5).
const SAMPLED: u8 = 1;

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [b'-'; 55];
        text[..2].copy_from_slice(b"00");
        HEXLOWER.encode_mut(&self.trace, &mut text[3..35]);
        HEXLOWER.encode_mut(&self.parent, &mut text[36..52]);
        HEXLOWER.encode_mut(&[self.flags], &mut text[53..]);
        // Digits and dashes are text.
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

/// Lower-case digits, exactly as many as the bytes need.
pub(super) fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    let (pairs, []) = text.as_chunks::<2>() else {
        return None;
    };
    if pairs.len() != N {
        return None;
    }
    for (to, [high, low]) in out.iter_mut().zip(pairs) {
        *to = digit(*high)? << 4 | digit(*low)?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Traceparent;

    #[test]
    fn only_the_standard_form_is_read() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(Traceparent::parse(good).unwrap().to_string(), good);
        for bad in [
            "",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0x",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(Traceparent::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn fresh_contexts_are_valid_and_differ() {
        let [one, other] = [Traceparent::random(), Traceparent::random()];
        assert_ne!(one, other);
        assert_eq!(Traceparent::parse(&one.to_string()), Some(one));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_accepted_prints_as_it_was_read(
            text in "00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-g]{2}|\\PC{0,60}",
        ) {
            if let Some(context) = Traceparent::parse(&text) {
                prop_assert_eq!(context.to_string(), text);
            }
        }
    }
}
