//! A stream that is cut and interrupted anywhere gives the same frames as the stream read at once.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::oracle::{read_at_once, read_cut, split_plan};

/// Small, so that a fuzzer soon makes a frame that is too long.
const PAYLOAD_BYTES_MAX: usize = 300;

fuzz_target!(|data: &[u8]| {
    let (arrivals, stream) = split_plan(data);
    let cut = read_cut(stream, &arrivals, PAYLOAD_BYTES_MAX);
    assert_eq!(cut, read_at_once(stream, PAYLOAD_BYTES_MAX));
});
