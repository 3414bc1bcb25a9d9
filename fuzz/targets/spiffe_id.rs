//! A SPIFFE ID that is accepted prints as it was read, so that one identity has one spelling.

#![no_main]

use libfuzzer_sys::fuzz_target;
use userspace_l7::model::SpiffeId;

fuzz_target!(|text: &str| {
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.to_string(), text);
    }
});
