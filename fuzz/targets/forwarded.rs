//! What was read of a `forwarded` header prints as something equal, and its host cannot end a quoted string.

#![no_main]

use libfuzzer_sys::fuzz_target;
use userspace_l7::hbone::Forwarded;

fuzz_target!(|text: &str| {
    let forwarded = Forwarded::parse(text);
    if let Some(host) = &forwarded.host {
        assert!((1..=253).contains(&host.len()));
        assert!(!host.contains(['"', '\\', ' ', ';']));
    }
    assert_eq!(Forwarded::parse(&forwarded.to_string()), forwarded);
});
