//! Baggage that was read can be sent on, and says the same there.

#![no_main]

use libfuzzer_sys::fuzz_target;
use userspace_l7::hbone::Baggage;

fuzz_target!(|text: &str| {
    let baggage = Baggage::parse(text);
    for value in [
        &baggage.cluster,
        &baggage.namespace,
        &baggage.workload_type,
        &baggage.workload,
        &baggage.service,
        &baggage.revision,
        &baggage.region,
        &baggage.zone,
    ] {
        assert!(value.len() <= 253, "longer than any name");
    }
    assert_eq!(Baggage::parse(&baggage.text()), baggage);
});
