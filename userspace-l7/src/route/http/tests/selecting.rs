//! Which entry and which backend a request gets.

use http::Method;

use super::{Request, backend, exactly, header, path, prefix, query, table};
use crate::model::{FullRegex, HttpMatch, PathMatch, TextMatch};
use crate::route::http::{choose_backend, select};

/// Whether a table of one entry takes the request.
#[track_caller]
fn check(matches: &HttpMatch, request: &Request, expected: bool) {
    let table = table([(matches.clone(), "it")]);
    let found = select(&table, &request.head()).is_some();
    assert_eq!(found, expected, "{matches:?} {}", request.target);
}

fn regex(pattern: &str) -> FullRegex {
    FullRegex::new(pattern).unwrap()
}

#[test]
fn paths_match_by_their_kind() {
    let exact = path(PathMatch::Exact("/v2".into()));
    let v2 = prefix("/v2/");
    let text = path(PathMatch::TextPrefix("/v2".into()));
    let pattern = path(PathMatch::Regex(regex("/v[0-9]+|/x")));
    let mut any_case = exact.clone();
    any_case.ignore_path_case = true;
    for (matches, target, expected) in [
        (&exact, "/v2", true),
        (&exact, "/v2?q=1", true),
        (&exact, "/v2/", false),
        (&exact, "/V2", false),
        (&v2, "/v2", true),
        (&v2, "/v2/", true),
        (&v2, "/v2/example", true),
        (&v2, "/v2example", false),
        (&v2, "/foo/v2/example", false),
        (&v2, "/V2", false),
        (&v2, "/v2?q=/v3", true),
        (&text, "/v2example", true),
        (&text, "/v", false),
        (&pattern, "/v17", true),
        (&pattern, "/x", true),
        (&pattern, "/v17/a", false),
        (&pattern, "/a/v17", false),
        (&pattern, "/v17\n", false),
        (&any_case, "/V2", true),
        (&any_case, "/V3", false),
        (&prefix("/"), "/", true),
        (&prefix("/"), "/anything", true),
        (&prefix("/"), "*", false),
        (&HttpMatch::default(), "*", true),
    ] {
        check(matches, &Request::get(target), expected);
    }
}

#[test]
fn methods_headers_hosts_and_parameters_are_anded() {
    let post = HttpMatch {
        method: Some(Method::POST.into()),
        ..HttpMatch::default()
    };
    check(&post, &Request::get("/").method(Method::POST), true);
    check(&post, &Request::get("/"), false);

    let version = HttpMatch {
        headers: vec![header("version", exactly("one"))],
        ..HttpMatch::default()
    };
    let one = || Request::get("/").header("Version", "one");
    check(&version, &one(), true);
    check(&version, &Request::get("/").header("version", "ONE"), false);
    check(&version, &Request::get("/"), false);
    check(&version, &one().header("version", "two"), false);

    let both = HttpMatch {
        headers: vec![header("version", exactly("one,two"))],
        ..HttpMatch::default()
    };
    check(&both, &one().header("version", "two"), true);

    let there = HttpMatch {
        headers: vec![header("x", TextMatch::Present)],
        without_headers: vec![header("y", TextMatch::Prefix("a".into()))],
        ..HttpMatch::default()
    };
    check(&there, &Request::get("/").header("x", ""), true);
    check(
        &there,
        &Request::get("/").header("x", "").header("y", "b"),
        true,
    );
    check(
        &there,
        &Request::get("/").header("x", "").header("y", "ab"),
        false,
    );
    check(&there, &Request::get("/"), false);

    let host = HttpMatch {
        authority: Some(exactly("echo:80")),
        ..HttpMatch::default()
    };
    check(&host, &Request::get("/"), true);

    let animal = HttpMatch {
        query: vec![query("animal", exactly("whale"))],
        ..HttpMatch::default()
    };
    for (target, expected) in [
        ("/?animal=whale", true),
        ("/?color=blue&animal=whale", true),
        ("/?animal=%77hale", true),
        ("/?animal=whale&animal=dog", true),
        ("/?animal=dog&animal=whale", false),
        ("/?Animal=whale", false),
        ("/?animal=whaledolphin", false),
        ("/?animal", false),
        ("/", false),
    ] {
        check(&animal, &Request::get(target), expected);
    }
}

#[test]
fn the_first_entry_that_matches_is_the_one() {
    // The mesh conformance suite's query table: a path beats a parameter.
    let whale = query("animal", exactly("whale"));
    let on_path = HttpMatch {
        query: vec![whale.clone()],
        ..prefix("/path1")
    };
    let with_header = HttpMatch {
        headers: vec![header("version", exactly("one"))],
        query: vec![whale.clone()],
        ..HttpMatch::default()
    };
    let alone = HttpMatch {
        query: vec![whale],
        ..HttpMatch::default()
    };
    let table = table([(on_path, "path"), (with_header, "both"), (alone, "query")]);
    let name = |request: &Request| {
        select(&table, &request.head()).map(|entry| entry.rule.name.to_string())
    };
    let whale = |path: &str| Request::get(&format!("{path}?animal=whale"));
    assert_eq!(name(&whale("/")).as_deref(), Some("query"));
    assert_eq!(
        name(&whale("/").header("version", "one")).as_deref(),
        Some("both")
    );
    assert_eq!(
        name(&whale("/path1").header("version", "one")).as_deref(),
        Some("path")
    );
    assert_eq!(name(&Request::get("/path1")), None);
}

#[test]
fn backends_are_drawn_by_weight() {
    let backends = [backend("a", 70), backend("never", 0), backend("b", 30)];
    let draw = |point: u32| {
        let mut choose = |bound: u32| {
            assert_eq!(bound, 100, "of the sum of all weights");
            point
        };
        let chosen = choose_backend(&backends, &mut choose).unwrap();
        chosen.weight
    };
    assert_eq!([0, 69, 70, 99].map(draw), [70, 70, 30, 30]);
}

#[test]
fn nothing_to_choose_is_no_choice() {
    let mut never = |_| panic!("nothing to draw for");
    assert_eq!(choose_backend(&[], &mut never), None);
    let unweighted = [backend("a", 0), backend("b", 0)];
    assert_eq!(choose_backend(&unweighted, &mut never), None);
}

#[test]
fn shares_come_out_within_three_standard_deviations() {
    const DRAWS: u32 = 100_000;
    let weights = [700, 250, 49, 1, 0];
    let backends = weights.map(|weight| backend(&weight.to_string(), weight));
    // A fixed linear congruential sequence (Knuth's MMIX constants): the test says the same each time.
    let mut state = 7_u64;
    let mut choose = |bound: u32| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((state >> 33) % u64::from(bound)).unwrap()
    };
    let mut hits = [0_u32; 5];
    for _ in 0..DRAWS {
        let chosen = choose_backend(&backends, &mut choose).unwrap();
        let place = weights.iter().position(|weight| *weight == chosen.weight);
        hits[place.unwrap()] += 1;
    }
    for (weight, hits) in weights.into_iter().zip(hits) {
        let share = f64::from(weight) / 1000.0;
        let expected = f64::from(DRAWS) * share;
        let deviation = (f64::from(DRAWS) * share * (1.0 - share)).sqrt();
        let off = (f64::from(hits) - expected).abs();
        assert!(
            off <= 3.0 * deviation,
            "{weight}: {hits} instead of {expected}"
        );
    }
}
