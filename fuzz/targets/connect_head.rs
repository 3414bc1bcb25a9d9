//! Header blocks as a peer compresses them, up to the request or answer that they mean.

#![no_main]

use libfuzzer_sys::fuzz_target;
use userspace_l7::hbone::fuzzing;

fuzz_target!(|bytes: &[u8]| fuzzing::header_blocks(bytes));
