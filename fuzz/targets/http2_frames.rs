//! Frames into either side of an HTTP/2 connection, whole and in pieces.

#![no_main]

use libfuzzer_sys::fuzz_target;
use userspace_l7::hbone::fuzzing;

fuzz_target!(|bytes: &[u8]| fuzzing::frames(bytes));
