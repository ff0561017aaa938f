//! A compressed archive of an image: any bytes give a stream of a bounded length or an error.
#![no_main]

use std::io;

libfuzzer_sys::fuzz_target!(|packed: &[u8]| {
    let limits = layer::Limits { base_bytes: 1 << 20, ratio: 1, ..layer::Limits::default() };
    let Ok(mut stream) = layer::unpacked(packed, &limits) else { return };
    let length = io::copy(&mut stream, &mut io::sink()).unwrap_or(0);
    assert!(length <= limits.stream_bytes(packed.len() as u64));
});
