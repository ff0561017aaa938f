//! Credentials as other engines and their helpers write them: any bytes give a file or an error, and a question to it an
//! answer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = registry::AuthFile::parse(bytes) else { return };
    let _ = (file.credential("host:5000", "team/app"), file.credential("docker.io", "library/app"));
    let _ = file.helper("host:5000");
});
