//! Indexes of registries and archives: any bytes are one or an error, a choice for a platform ends, and what was written of
//! its entries is read again as the same.
#![no_main]

use oci::{Document, Entries, Platform, entries, media};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(document) = Document::read(bytes.to_vec(), Some(media::OCI_INDEX)) {
        assert_eq!(document.raw(), bytes);
        // Each of its entries leads to itself, as far as digests go.
        let _ = oci::select_manifest(document, &Platform::host(), |_| Ok::<_, ()>(bytes.to_vec()));
    }
    if let Ok(entries) = Entries::read(bytes) {
        let written = entries::write(media::OCI_INDEX, &entries.list);
        assert_eq!(Entries::read(&written).map(|again| again.list).ok(), Some(entries.list));
    }
});
