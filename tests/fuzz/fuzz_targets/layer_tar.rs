//! The archive of a layer: any bytes give a tree or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|archive: &[u8]| {
    let _ = layer::check(archive, &layer::Limits::default());
});
