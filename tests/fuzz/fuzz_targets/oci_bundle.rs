//! A bundle's `config.json`, which may come from anybody: any bytes are a configuration or are refused.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = ociruntime::verify(bytes);
});
