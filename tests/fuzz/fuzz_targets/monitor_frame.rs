//! The monitor's socket: any bytes give a frame or nothing, and a frame reads back as it was written.
#![no_main]

use monitor::protocol::Frame;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some(frame) = Frame::decode(bytes) {
        assert!(Frame::decode(&frame.encode()).is_some());
    }
});
