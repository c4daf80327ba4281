//! The decoders accept and reject the same payloads as prost, with the same values: as a request and as a response.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::oracle::{check_request, check_response};

fuzz_target!(|payload: &[u8]| {
    check_request(payload);
    check_response(payload);
});
