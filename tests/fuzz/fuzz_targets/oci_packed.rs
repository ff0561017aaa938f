//! What says which images are in an archive: any bytes are Docker's list or a layout's, or an error.
#![no_main]

use oci::packed;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = packed::docker_entries(bytes);
    if let Ok(entries) = packed::layout_entries(bytes) {
        for entry in &entries.list {
            let _ = packed::name_of(entry);
        }
    }
});
