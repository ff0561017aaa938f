//! A seccomp profile that a user or another engine hands in, in the specification's form or in Docker's: any profile
//! compiles or is refused.
#![no_main]

use runtime::seccomp::document::{Host, read};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(profile) = serde_json::from_slice(bytes) {
        let _ = runtime::seccomp::compile(&profile);
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(Some(profile)) = read(text, Host::here(0))
    {
        let _ = runtime::seccomp::compile(&profile);
    }
});
