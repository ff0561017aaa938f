//! The socket of a network's role: any bytes give a message or an error, and a table of names goes on in messages that fit.
#![no_main]

use net::control::{Message, names_in_parts, parse, take_names};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(Message::Names { first, names }) = parse(bytes) else { return };
    let mut table = Vec::new();
    take_names(&mut table, first, names);
    let mut again = Vec::new();
    for part in names_in_parts(&table) {
        let written = serde_json::to_vec(&part).unwrap_or_default();
        assert!((1..=64 << 10).contains(&written.len()));
        if let Ok(Message::Names { first, names }) = parse(&written) {
            take_names(&mut again, first, names);
        }
    }
    assert_eq!(table.len(), again.len());
});
