//! The ways in which one path can be spelled to be taken for another, and what becomes of each.

use proptest::prelude::*;

use super::{InvalidPath, NormalizedPath, normalize};
use crate::model::PathNormalization;

const BASE: PathNormalization = PathNormalization::Base;
const MERGE: PathNormalization = PathNormalization::MergeSlashes;
const DECODE: PathNormalization = PathNormalization::DecodeAndMergeSlashes;
const NONE: PathNormalization = PathNormalization::None;

#[track_caller]
fn check(how: PathNormalization, path: &str, expected: Result<&str, InvalidPath>) {
    let normalized = normalize(path, how);
    let spelled = normalized.as_ref().map(NormalizedPath::as_str);
    assert_eq!(spelled, expected.as_ref().copied(), "{how:?} {path}");
}

/// The rows of Envoy's own tests for its canonical path.
#[test]
fn base_is_envoys_canonical_path() {
    for (path, expected) in [
        ("/xyz", "/xyz"),
        ("/x/y/z", "/x/y/z"),
        ("/a/b/../c", "/a/c"),
        ("/a/b/./c", "/a/b/c"),
        ("/a/b/../../../../c", "/c"),
        ("/a/..\\c", "/c"),
        ("/%c0%af", "/%c0%af"),
        ("/%5c%25", "/%5c%25"),
        ("/a/b/%2E%2E/c", "/a/c"),
    ] {
        check(BASE, path, Ok(expected));
    }
    for path in [
        "/xyz/.%00../abc",
        "/xyz/%00.%00./abc",
        "/xyz/AAAAA%%0000/abc",
    ] {
        check(BASE, path, Err(InvalidPath::Nul));
    }
}

#[test]
fn dot_segments_are_resolved_however_they_are_spelled() {
    for (path, expected) in [
        ("/public/../admin", "/admin"),
        ("/public/%2e%2e/admin", "/admin"),
        ("/public/%2E%2e/admin", "/admin"),
        ("/public/.%2e/admin", "/admin"),
        ("/public/%2e./admin", "/admin"),
        ("/public\\..\\admin", "/admin"),
        ("/public/..\\admin", "/admin"),
        ("/./admin", "/admin"),
        ("/%2e/admin", "/admin"),
        ("/admin/.", "/admin/"),
        ("/admin/./", "/admin/"),
        ("/admin/x/..", "/admin/"),
        ("/admin/x/../", "/admin/"),
        ("/admin/%2e", "/admin/"),
        ("/..", "/"),
        ("/../", "/"),
        ("/../../etc", "/etc"),
        ("/.", "/"),
        ("/...", "/..."),
        ("/.a/..b/c..", "/.a/..b/c.."),
        // An empty segment is a segment, which `..` takes away.
        ("/a//../b", "/a/b"),
        ("//../a", "/a"),
    ] {
        check(BASE, path, Ok(expected));
    }
}

#[test]
fn slashes_are_merged_and_decoded_only_where_the_mesh_says_so() {
    for (path, base, merged, decoded) in [
        ("//admin", "//admin", "/admin", "/admin"),
        ("/a//b///c", "/a//b///c", "/a/b/c", "/a/b/c"),
        ("/a//", "/a//", "/a/", "/a/"),
        ("\\\\admin", "//admin", "/admin", "/admin"),
        ("/\\admin", "//admin", "/admin", "/admin"),
        ("/a%2Fb", "/a%2Fb", "/a%2Fb", "/a/b"),
        ("/a%2fb", "/a%2fb", "/a%2fb", "/a/b"),
        ("/a%5Cb", "/a%5Cb", "/a%5Cb", "/a/b"),
        ("/a%5cb", "/a%5cb", "/a%5cb", "/a/b"),
        ("/a%2F%2Fb", "/a%2F%2Fb", "/a%2F%2Fb", "/a/b"),
        (
            "/p%2f..%2fadmin",
            "/p%2f..%2fadmin",
            "/p%2f..%2fadmin",
            "/admin",
        ),
        ("/p/..%2fadmin", "/p/..%2fadmin", "/p/..%2fadmin", "/admin"),
        ("/p/..%5cadmin", "/p/..%5cadmin", "/p/..%5cadmin", "/admin"),
        (
            "/p/%2e%2e%2fadmin",
            "/p/..%2fadmin",
            "/p/..%2fadmin",
            "/admin",
        ),
        // Twice encoded stays encoded: it is decoded once at most.
        ("/a%252Fb", "/a%252Fb", "/a%252Fb", "/a%252Fb"),
        (
            "/%252e%252e/a",
            "/%252e%252e/a",
            "/%252e%252e/a",
            "/%252e%252e/a",
        ),
    ] {
        if path.starts_with('/') {
            check(NONE, path, Ok(path));
            check(BASE, path, Ok(base));
            check(MERGE, path, Ok(merged));
            check(DECODE, path, Ok(decoded));
        } else {
            for how in [NONE, BASE, MERGE, DECODE] {
                check(how, path, Err(InvalidPath::NotAbsolute));
            }
        }
    }
}

#[test]
fn escapes_have_one_spelling_where_they_mean_the_same() {
    for (path, expected) in [
        ("/%61dmin", "/admin"),
        ("/%41dmin", "/Admin"),
        ("/%7euser/%2d%5f", "/~user/-_"),
        ("/a%20b", "/a%20b"),
        ("/a%3Fb", "/a%3Fb"),
        ("/a%3fb", "/a%3fb"),
        ("/a%23b", "/a%23b"),
        ("/a%3Bb", "/a%3Bb"),
        ("/ü", "/%C3%BC"),
        ("/%c3%bc", "/%c3%bc"),
        ("/a\"b<c>d^e`f{g|h}i", "/a%22b%3Cc%3Ed%5Ee%60f%7Bg%7Ch%7Di"),
        ("/a!$&'()*+,;=:@[]", "/a!$&'()*+,;=:@[]"),
        // A `?` that still is in the path was not the query's: it may not become it.
        ("/a?b", "/a%3Fb"),
    ] {
        check(BASE, path, Ok(expected));
    }
}

#[test]
fn a_bad_escape_stays_and_never_becomes_a_good_one() {
    for (path, expected) in [
        ("/100%", "/100%"),
        ("/%zz", "/%zz"),
        ("/%2", "/%2"),
        ("/%%", "/%%"),
        ("/%%34%31", "/%2541"),
        ("/%%341", "/%2541"),
        ("/%4%31", "/%2541"),
        ("/%2%46..%2%46x", "/%252F..%252Fx"),
        ("/%%32%65%%32%65/x", "/%252e%252e/x"),
        ("/%%300", "/%2500"),
        ("/%%%34%31", "/%%2541"),
    ] {
        check(BASE, path, Ok(expected));
    }
    check(DECODE, "/a%%32Fb", Ok("/a%252Fb"));
}

#[test]
fn what_has_no_one_meaning_is_refused_in_every_mode() {
    for (path, why) in [
        ("*", InvalidPath::NotAbsolute),
        ("", InvalidPath::NotAbsolute),
        ("admin", InvalidPath::NotAbsolute),
        ("http://echo/admin", InvalidPath::NotAbsolute),
        ("?/admin", InvalidPath::NotAbsolute),
        ("#/admin", InvalidPath::NotAbsolute),
        ("/admin#", InvalidPath::Fragment),
        ("/public#/../admin", InvalidPath::Fragment),
        ("/#", InvalidPath::Fragment),
        ("/a b", InvalidPath::Control),
        ("/a\tb", InvalidPath::Control),
        ("/a\r\nHost: x", InvalidPath::Control),
        ("/a\u{7f}", InvalidPath::Control),
        ("/a\0b", InvalidPath::Nul),
    ] {
        for how in [NONE, BASE, MERGE, DECODE] {
            check(how, path, Err(why));
        }
    }
    for how in [BASE, MERGE, DECODE] {
        check(how, "/admin%00.png", Err(InvalidPath::Nul));
    }
    // As it came: nobody looks at escapes (Envoy with `normalize_path: false`).
    check(NONE, "/admin%00.png", Ok("/admin%00.png"));
}

#[test]
fn the_client_is_told_what_envoy_tells() {
    assert_eq!(InvalidPath::NotAbsolute.status(), 404);
    assert_eq!(InvalidPath::Fragment.status(), 400);
    assert_eq!(InvalidPath::Nul.status(), 400);
    assert_eq!(InvalidPath::Control.status(), 400);
}

#[test]
fn dot_segments_that_only_a_server_would_see_are_found() {
    for (path, expected) in [
        ("/p/..%2fadmin", true),
        ("/p%2f..%2fadmin", true),
        ("/p/..%5Cadmin", true),
        ("/p/..;/admin", true),
        ("/p/..;x=y/admin", true),
        ("/p/.;/admin", true),
        ("/p/%2e%2e;/admin", true),
        ("/p/..%3b/admin", true),
        ("/p/%252e%252e/admin", true),
        ("/p/%25252e%25252e/admin", true),
        ("/p/%252e%252e%252fadmin", true),
        ("/p%252f..%252fadmin", true),
        ("/p/%25252525252525252e", true),
        ("/p;x=../admin", false),
        ("/p;/admin", false),
        ("/p/a..;/b", false),
        ("/p/...;/b", false),
        ("/p/a%2fb", false),
        ("/p/a%252fb", false),
        ("/p/100%25", false),
        ("/p/%C3%BC", false),
        ("/", false),
    ] {
        let path = normalize(path, BASE).unwrap();
        assert_eq!(path.hides_dot_segments(), expected, "{}", path.as_str());
    }
}

/// What attackers are made of.
fn hostile() -> impl Strategy<Value = String> {
    let pieces = vec![
        "/", "\\", ".", "..", "%2e", "%2E", "%2f", "%5c", "%", "%25", "2", "e", "f", ";", "a",
        "%61", "%32", "%65", "%46", "//", "%c3%bc", "ü", "?", "%00",
    ];
    let many = prop::collection::vec(prop::sample::select(pieces), 0..16);
    many.prop_map(|pieces| format!("/{}", pieces.concat()))
}

/// A server that takes the path apart, then decodes each segment once and resolves dots.
fn resolve(path: &str) -> Vec<Vec<u8>> {
    let mut at = Vec::new();
    for segment in path.split('/').skip(1) {
        let name = super::decode_once(segment.as_bytes()).unwrap_or_else(|| segment.into());
        match name.as_slice() {
            b"" | b"." => {}
            b".." => {
                at.pop();
            }
            _ => at.push(name),
        }
    }
    at
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn normalizing_again_changes_nothing(path in hostile(), how in 0..4_usize) {
        let how = [NONE, BASE, MERGE, DECODE][how];
        if let Ok(once) = normalize(&path, how) {
            let twice = normalize(once.as_str(), how);
            prop_assert_eq!(twice.as_ref(), Ok(&once));
        }
    }

    #[test]
    fn no_server_leaves_the_directory_that_a_path_is_in(path in hostile(), how in 1..4_usize) {
        let how = [NONE, BASE, MERGE, DECODE][how];
        let Ok(normalized) = normalize(&format!("/public{path}"), how) else {
            return Ok(());
        };
        if normalized.as_str().starts_with("/public/") && !normalized.hides_dot_segments() {
            let place = resolve(normalized.as_str());
            prop_assert_eq!(place.first().map(Vec::as_slice), Some(&b"public"[..]));
        }
    }

    #[test]
    fn any_text_is_normalized_or_refused(path in "\\PC*", how in 0..4_usize) {
        let how = [NONE, BASE, MERGE, DECODE][how];
        if let Ok(normalized) = normalize(&path, how) {
            prop_assert!(normalized.as_str().starts_with('/'));
            prop_assert!(!normalized.as_str().contains('#'));
        }
    }
}
