//! Names as users type them and documents carry them: any text gives a reference, an image's name, a platform, or an error,
//! and what was written of a reference is the same reference.
#![no_main]

use oci::{ImageName, Platform, Reference};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(reference.to_string().parse::<Reference>().as_ref(), Ok(&reference));
    }
    let _ = (text.parse::<ImageName>(), text.parse::<Platform>());
});
