//! Whom a CONNECT asks for, and which service it claims: what is accepted has one spelling, and a host never
//! turns into an address on the next hop.

#![no_main]

use libfuzzer_sys::fuzz_target;
use userspace_l7::hbone::{Authority, ServiceClaim};

fuzz_target!(|text: &str| {
    if let Some(authority) = Authority::parse(text) {
        if let Authority::Host { host, .. } = &authority {
            assert!((1..=253).contains(&host.len()));
            assert_eq!(*host, host.to_ascii_lowercase());
        }
        assert_eq!(Authority::parse(&authority.to_string()), Some(authority));
    }
    if let Some(claim) = ServiceClaim::parse(text) {
        assert!((1..=63).contains(&claim.namespace.len()));
        assert!((1..=253).contains(&claim.host.len()));
        assert_eq!(ServiceClaim::parse(&claim.to_string()), Some(claim));
    }
});
