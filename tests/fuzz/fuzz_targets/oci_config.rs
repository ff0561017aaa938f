//! Configurations of images: any bytes are one or an error, whose layers have a chain unless there are none.
#![no_main]

use oci::ImageConfig;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(config) = ImageConfig::read(bytes.to_vec()) {
        assert_eq!(config.raw, bytes);
        assert_eq!(config.chain_id().is_none(), config.diff_ids.is_empty());
    }
});
