//! Manifests of registries and archives: any bytes are one or an error; and what refers to another one is listed once.
#![no_main]

use oci::{Document, entries, media};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(document) = Document::read(bytes.to_vec(), Some(media::OCI_MANIFEST)) {
        assert_eq!(document.raw(), bytes);
        if let Document::Manifest(manifest) = document {
            let _ = manifest.require_image();
        }
    }
    if let Ok(Some((_, entry))) = entries::referrer(bytes, media::OCI_MANIFEST) {
        let listed = entries::with_referrer(None, &entry).expect("a list of one").expect("that was not there");
        assert!(matches!(entries::with_referrer(Some(&listed), &entry), Ok(None)));
        // What lists a referrer once lists it for good.
        if let Ok(Some(index)) = entries::with_referrer(Some(bytes), &entry) {
            assert!(matches!(entries::with_referrer(Some(&index), &entry), Ok(None)));
        }
    }
});
