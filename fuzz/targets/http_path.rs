//! A path has one spelling, and what a prefix allows stays below it: for a server that takes the path apart
//! and then decodes, and for one that decodes first.

#![no_main]

use libfuzzer_sys::fuzz_target;
use userspace_l7::model::PathNormalization;
use userspace_l7::policy::path::normalize;

const HOW: [PathNormalization; 3] = [
    PathNormalization::Base,
    PathNormalization::MergeSlashes,
    PathNormalization::DecodeAndMergeSlashes,
];

fuzz_target!(|text: &str| {
    // As it is: accepted or refused, for good.
    for how in HOW.into_iter().chain([PathNormalization::None]) {
        if let Ok(once) = normalize(text, how) {
            assert!(once.as_str().starts_with('/'));
            assert!(!once.as_str().contains(['#', '\0', ' ']));
            assert_eq!(normalize(once.as_str(), how).as_ref(), Ok(&once));
        }
    }
    // Below a prefix that a policy allows.
    for how in HOW {
        let Ok(path) = normalize(&format!("/public/{text}"), how) else {
            continue;
        };
        if !path.as_str().starts_with("/public/") || path.hides_dot_segments() {
            continue;
        }
        let parts = path.as_str().split('/').map(|part| decode(part.as_bytes()));
        assert_eq!(resolve(parts).first().map(Vec::as_slice), Some(&b"public"[..]));
        let whole = decode(path.as_str().as_bytes());
        let parts = whole.split(|byte| matches!(byte, b'/' | b'\\'));
        let parts = parts.map(|part| cut(part).to_vec());
        assert_eq!(resolve(parts).first().map(Vec::as_slice), Some(&b"public"[..]));
    }
});

/// Where a server's dot segments lead.
fn resolve(parts: impl Iterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    let mut at = Vec::new();
    for part in parts {
        match part.as_slice() {
            b"" | b"." => {}
            b".." => drop(at.pop()),
            _ => at.push(part),
        }
    }
    at
}

/// A segment without its parameters.
fn cut(part: &[u8]) -> &[u8] {
    part.split(|byte| *byte == b';').next().unwrap_or_default()
}

fn decode(text: &[u8]) -> Vec<u8> {
    let digit = |at: usize| text.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).expect("two hex digits are a byte"));
                at += 3;
            }
            _ => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    out
}
