//! A bundle's `config.json`, which may come from anybody: any bytes are a configuration or are refused.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = ociruntime::verify(bytes);
    // What `verify` refuses may be fine on another host.
    if let Ok(spec) = serde_json::from_slice(bytes) {
        let _ = runtime::bundle::take_apart(&spec);
        // What is kept of a container, and handed to its stage, must be readable again.
        let kept = serde_json::to_vec(&spec).expect("a specification is JSON");
        let again = serde_json::from_slice(&kept).expect("and that JSON is a specification");
        let _ = runtime::bundle::take_apart(&again);
    }
});
