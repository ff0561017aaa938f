//! A seccomp profile that a user or another engine hands in: any profile compiles or is refused.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(profile) = serde_json::from_slice(bytes) {
        let _ = runtime::seccomp::compile(&profile);
    }
});
