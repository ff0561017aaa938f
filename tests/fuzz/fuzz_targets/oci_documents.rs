//! What registries and archives hold: any bytes give a manifest, an index, a configuration, a list of images, or an error.
#![no_main]

use oci::{Document, Entries, ImageConfig, entries};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = Document::read(bytes.to_vec(), None);
    let _ = ImageConfig::read(bytes.to_vec());
    let _ = (oci::packed::docker_entries(bytes), oci::packed::layout_entries(bytes));
    if let Ok(entries) = Entries::read(bytes) {
        let written = entries::write(oci::media::OCI_INDEX, &entries.list);
        assert_eq!(Entries::read(&written).map(|again| again.list).ok(), Some(entries.list));
    }
    if let Ok(Some((_, entry))) = entries::referrer(bytes, oci::media::OCI_MANIFEST) {
        // What lists a referrer once lists it for good.
        if let Ok(Some(index)) = entries::with_referrer(Some(bytes), &entry) {
            assert!(matches!(entries::with_referrer(Some(&index), &entry), Ok(None)));
        }
    }
});
