//! A trace context that is accepted prints as it was read; whatever stands in the headers of a request, what
//! is passed on is a context that can be read again and is the same trace.

#![no_main]

use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use userspace_l7::model::TracingSettings;
use userspace_l7::telemetry::trace::{Sampler, TraceContext, Traceparent, propagate};

/// Every header that carries a part of a context.
const HEADERS: [&str; 6] = [
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-sampled",
];

fuzz_target!(|text: &str| {
    if let Some(context) = Traceparent::parse(text) {
        assert_eq!(context.to_string(), text);
    }
    let mut received = HeaderMap::new();
    for (name, line) in HEADERS.into_iter().zip(text.lines()) {
        if let Ok(value) = HeaderValue::from_str(line) {
            received.append(name, value);
        }
    }
    let settings = TracingSettings::default();
    let mut count = 0;
    let mut random = || {
        count += 1;
        count
    };
    let mut sent = received.clone();
    let passed = propagate(&received, &mut Sampler::new(&settings, &mut random), &mut sent);
    let again = TraceContext::of(&sent, &mut Sampler::new(&settings, &mut random));
    assert_eq!(again.trace_id(), passed.trace_id());
    assert_eq!(again.parent_id(), Some(passed.span_id()));
    assert_eq!(again.is_sampled(), passed.is_sampled());
});
