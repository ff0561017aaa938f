//! Credentials as other engines and their helpers write them: any bytes give a file or an error, and a question to it an
//! answer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = registry::AuthFile::parse(bytes) else { return };
    let _ = (file.credential("host:5000", "team/app"), file.credential("docker.io", "library/app"));
    let _ = (file.helper("host:5000"), file.has("host:5000"));
    // What a login writes it can read, and a logout undoes it.
    let Ok(with) = registry::auth::with_credential(bytes, "host:5000", "user", "password") else { return };
    assert!(registry::AuthFile::parse(&with).is_ok_and(|file| file.has("host:5000")));
    assert!(registry::auth::without_credential(&with, "host:5000").is_ok_and(|without| without.is_some()));
});
