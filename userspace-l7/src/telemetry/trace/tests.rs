//! Contexts that come in and go on.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Sampler, TraceContext, propagate};
use crate::model::{Propagation, TracingSettings};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SHORT: &str = "8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";
/// The first number that the test's sampler draws: the new span.
const OURS: &str = "0000000000000007";

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let parsed = lines.iter().map(|(name, value)| {
        let name: HeaderName = name.parse().unwrap();
        (name, HeaderValue::from_str(value).unwrap())
    });
    let mut headers = HeaderMap::new();
    parsed.for_each(|(name, value)| {
        let _more = headers.append(name, value);
    });
    headers
}

/// Passes the headers on; numbers are 7, 8, 9 and so on, and `sampled_per_million` is 0 or everything.
fn pass(lines: &[(&str, &str)], settings: &TracingSettings) -> (TraceContext, Vec<String>) {
    let received = headers(lines);
    let mut number = 6;
    let mut random = || {
        number += 1;
        number
    };
    let mut sent = received.clone();
    let context = propagate(
        &received,
        &mut Sampler::new(settings, &mut random),
        &mut sent,
    );
    let mut lines: Vec<String> = sent
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    lines.sort_unstable();
    (context, lines)
}

fn sampling(sampled_per_million: u32, propagation: Propagation) -> TracingSettings {
    TracingSettings {
        sampled_per_million,
        propagation,
        ..TracingSettings::default()
    }
}

#[track_caller]
fn check(received: &[(&str, &str)], sent: &[String]) {
    let (_context, lines) = pass(received, &sampling(0, Propagation::W3c));
    assert_eq!(lines, sent);
}

#[test]
fn a_w3c_context_goes_on_with_a_span_of_ours() {
    let received = format!("00-{TRACE}-{SPAN}-01");
    check(
        &[("traceparent", &received), ("tracestate", "a=1,b=2")],
        &[
            format!("traceparent: 00-{TRACE}-{OURS}-01"),
            "tracestate: a=1,b=2".to_owned(),
        ],
    );
    let newer = format!("cc-{TRACE}-{SPAN}-00-what-comes-later");
    check(
        &[("traceparent", &newer)],
        &[format!("traceparent: 00-{TRACE}-{OURS}-00")],
    );
}

#[test]
fn b3_goes_on_in_the_form_that_it_came_in() {
    check(
        &[("b3", &format!("{TRACE}-{SPAN}-1"))],
        &[format!("b3: {TRACE}-{OURS}-1-{SPAN}")],
    );
    check(
        &[("b3", &format!("{SHORT}-{SPAN}-d-{SPAN}"))],
        &[format!("b3: {SHORT}-{OURS}-1-{SPAN}")],
    );
    check(
        &[
            ("x-b3-traceid", SHORT),
            ("x-b3-spanid", SPAN),
            ("x-b3-parentspanid", "00000000000000aa"),
            ("x-b3-flags", "1"),
        ],
        &[
            format!("x-b3-parentspanid: {SPAN}"),
            "x-b3-sampled: 1".to_owned(),
            format!("x-b3-spanid: {OURS}"),
            format!("x-b3-traceid: {SHORT}"),
        ],
    );
}

#[test]
fn a_context_in_two_forms_goes_on_in_both_as_one_trace() {
    check(
        &[
            ("traceparent", &format!("00-{TRACE}-{SPAN}-01")),
            ("b3", "00000000000000aa-00000000000000bb-0"),
        ],
        &[
            format!("b3: {TRACE}-{OURS}-1-{SPAN}"),
            format!("traceparent: 00-{TRACE}-{OURS}-01"),
        ],
    );
}

#[test]
fn without_a_context_one_starts_in_the_providers_form() {
    let start = |share, propagation| pass(&[], &sampling(share, propagation)).1;
    let trace = format!("{:016x}{:016x}", 8, 9);
    assert_eq!(
        start(0, Propagation::W3c),
        [format!("traceparent: 00-{trace}-{OURS}-00")]
    );
    assert_eq!(
        start(1_000_000, Propagation::W3c),
        [format!("traceparent: 00-{trace}-{OURS}-01")]
    );
    assert_eq!(
        start(0, Propagation::B3),
        [
            "x-b3-sampled: 0".to_owned(),
            format!("x-b3-spanid: {OURS}"),
            format!("x-b3-traceid: {trace}"),
        ]
    );
}

#[test]
fn what_does_not_parse_is_replaced_and_its_state_forgotten() {
    let good = format!("00-{TRACE}-{SPAN}-01");
    for received in [
        vec![("traceparent", "nonsense"), ("tracestate", "a=1")],
        vec![(
            "traceparent",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )],
        vec![("traceparent", &good), ("traceparent", &good)],
        vec![("b3", "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-x")],
        vec![("b3", "00000000000000000000000000000000-b7ad6b7169203331-1")],
        vec![("x-b3-traceid", SHORT)],
        vec![("tracestate", "a=1")],
    ] {
        let (context, lines) = pass(&received, &sampling(0, Propagation::W3c));
        assert_eq!(context.parent_id(), None, "{received:?}");
        assert_eq!(lines.len(), 1, "{received:?} became {lines:?}");
        assert!(lines[0].starts_with("traceparent: 00-"), "{lines:?}");
    }
}

#[test]
fn the_senders_decision_to_sample_holds_also_without_a_trace() {
    let decided = |lines: &[(&str, &str)], share| {
        pass(lines, &sampling(share, Propagation::W3c))
            .0
            .is_sampled()
    };
    assert!(!decided(&[("b3", "0")], 1_000_000));
    assert!(decided(&[("b3", "1")], 0));
    assert!(decided(&[("b3", "d")], 0));
    assert!(!decided(&[("x-b3-sampled", "0")], 1_000_000));
    assert!(decided(&[("x-b3-sampled", "true")], 0));
    let deferred = format!("{TRACE}-{SPAN}");
    assert!(
        decided(&[("b3", &deferred)], 1_000_000),
        "a decision that is left to us is drawn"
    );
    assert!(!decided(&[("b3", &deferred)], 0));
}

#[test]
fn the_share_of_sampled_traces_is_what_the_settings_say() {
    let settings = sampling(100_000, Propagation::W3c);
    let mut state = 1_u64;
    let mut random = || {
        // A full-period generator (Knuth's MMIX) is even enough, and the same in every run.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state >> 11
    };
    let sampled = (0..20_000)
        .filter(|_| {
            TraceContext::of(&HeaderMap::new(), &mut Sampler::new(&settings, &mut random))
                .is_sampled()
        })
        .count();
    assert!(
        (1_873..=2_127).contains(&sampled),
        "a tenth within three standard deviations: {sampled}"
    );
}

#[test]
fn who_sees_a_request_by_its_name_decides_as_all_who_see_it() {
    let half = sampling(500_000, Propagation::W3c);
    let by_lot = TracingSettings {
        by_request_id: false,
        ..half.clone()
    };
    let parent = format!("00-{TRACE}-{SPAN}-01");
    for (id, settings, sampled) in [
        ("00000000-3a52-4d0e-9d0f-3f5f0a0e3a52", &half, true),
        // 999,999 of a million.
        ("000f423f-3a52-4d0e-9d0f-3f5f0a0e3a52", &half, false),
        // The lot is a small number here, so that it samples.
        ("000f423f-3a52-4d0e-9d0f-3f5f0a0e3a52", &by_lot, true),
        ("not-a-name-of-that-kind", &half, true),
        ("short", &half, true),
    ] {
        let (context, _) = pass(&[("x-request-id", id)], settings);
        assert_eq!(context.is_sampled(), sampled, "{id}");
        let continued = [("x-request-id", id), ("traceparent", &*parent)];
        assert!(
            pass(&continued, settings).0.is_sampled(),
            "the sender decides"
        );
    }
}
