//! What registries send and users write: any bytes give a document, a configuration, a name, a platform, or an error.
#![no_main]

use oci::{Document, ImageConfig, ImageName, Platform, Reference};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = Document::read(bytes.to_vec(), None);
    let _ = ImageConfig::read(bytes.to_vec());
    let _ = (oci::packed::docker_entries(bytes), oci::packed::layout_entries(bytes));
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(reference.to_string().parse::<Reference>().as_ref(), Ok(&reference));
    }
    let _ = (text.parse::<ImageName>(), text.parse::<Platform>());
});
