//! What comes over istio-cni's socket: a packet and how many descriptors came with it. It is taken or refused.

#![no_main]

use agent::zds::is_taken;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], u8)| {
    let (packet, descriptors) = input;
    let is_taken = is_taken(packet, descriptors.into());
    // One descriptor belongs to one kind of request, and none to the others.
    assert!(!is_taken || descriptors < 2);
});
