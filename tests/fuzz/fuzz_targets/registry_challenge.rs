//! What a registry asks for before it answers: any header gives challenges or none.
#![no_main]

libfuzzer_sys::fuzz_target!(|header: &str| {
    // Each challenge begins with a word of its own.
    assert!(registry::challenge::parse(header).len() <= header.len().div_ceil(2));
});
