//! The decoders accept and reject the same payloads as prost, with the same values: as a request, as a response
//! and as the positions of an authentication.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::oracle::{check_request, check_response, check_resume};

fuzz_target!(|payload: &[u8]| {
    check_request(payload);
    check_response(payload);
    check_resume(payload);
});
