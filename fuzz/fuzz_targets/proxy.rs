//! A PROXY header is found as soon as it is whole, and never before; what is none stays none.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::wire::proxy::{HEADER_BYTES_MAX, Parsed, parse};

fuzz_target!(|data: &[u8]| {
    let data = &data[..data.len().min(2 * HEADER_BYTES_MAX)];
    let whole = parse(data);
    match whole {
        Parsed::Header { bytes, .. } => {
            assert!(bytes <= data.len() && bytes <= HEADER_BYTES_MAX);
            assert_eq!(parse(&data[..bytes]), whole, "what follows has no effect");
            for cut in 0..bytes {
                assert_eq!(parse(&data[..cut]), Parsed::Incomplete);
            }
        }
        Parsed::Incomplete => {
            assert!(data.len() < HEADER_BYTES_MAX);
            for cut in 0..data.len() {
                assert_eq!(parse(&data[..cut]), Parsed::Incomplete);
            }
        }
        Parsed::Invalid => assert_eq!(parse(&[data, b"\r\n"].concat()), Parsed::Invalid),
    }
});
