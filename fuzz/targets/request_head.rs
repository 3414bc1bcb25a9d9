//! The first bytes of a client of HTTP/1: what it speaks, where its requests end, and what they are for.

#![no_main]

use libfuzzer_sys::fuzz_target;
use userspace_l7::http_fuzzing;

fuzz_target!(|bytes: &[u8]| http_fuzzing::request_head(bytes));
