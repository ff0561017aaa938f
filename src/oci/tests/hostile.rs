//! The parsers on arbitrary input: they end, they do not panic, and what they take they write back the same.

use oci::{Digest, Document, ImageConfig, ImageName, Platform, Reference};
use proptest::prelude::*;

/// Text that often gets past the first checks of a reference.
fn reference_like() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        "[a-zA-Z0-9._:@/\\[\\]%-]{0,40}",
        "[a-z0-9]{1,8}((\\.|_|__|-+)[a-z0-9]{1,8}){0,3}(/[a-z0-9]{1,8}){0,3}(:[a-z0-9.]{1,9})?",
        "sha256:[0-9a-f]{62,66}",
        any::<String>(),
    ];
    proptest::collection::vec(part, 0..3).prop_map(|parts| parts.join("@"))
}

/// JSON of the members that documents have, with values of all kinds.
fn json() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        Just("schemaVersion"),
        Just("mediaType"),
        Just("config"),
        Just("layers"),
        Just("manifests"),
        Just("digest"),
        Just("size"),
        Just("platform"),
        Just("os"),
        Just("architecture"),
        Just("rootfs"),
        Just("diff_ids"),
        Just("type"),
        Just("annotations"),
    ];
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        proptest::sample::select(oci::media::DOCUMENTS.to_vec()).prop_map(|text| format!("\"{text}\"")),
        Just(format!("\"{}\"", Digest::of(b"x"))),
        "[a-z/:.]{0,20}".prop_map(|text| format!("\"{text}\"")),
    ];
    leaf.prop_recursive(4, 64, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            proptest::collection::vec((key.clone(), inner), 0..6).prop_map(|members| {
                let members: Vec<String> = members.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    })
}

proptest! {
    #[test]
    fn references_read_back_as_they_are_written(text in reference_like()) {
        if let Ok(reference) = text.parse::<Reference>() {
            prop_assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference.clone()));
            prop_assert_eq!(reference.familiar().parse::<Reference>(), Ok(reference.clone()));
            prop_assert!(reference.repository().len() <= 255);
            prop_assert!(!reference.repository().split('/').any(|part| part.is_empty() || part == ".."));
        }
        let _ = text.parse::<ImageName>();
    }

    #[test]
    fn digests_have_one_spelling(text in "(sha256|sha512|x)?:?[0-9a-fA-F]{0,70}", bytes in any::<[u8; 32]>()) {
        if let Ok(digest) = text.parse::<Digest>() {
            prop_assert_eq!(digest.to_string(), text);
        }
        let digest = Digest::from_bytes(bytes);
        prop_assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
    }

    #[test]
    fn platforms_read_back_as_they_are_written(text in "[a-zA-Z0-9._/-]{0,24}|linux/(arm|arm64|amd64)/v?[0-9.]{0,4}") {
        if let Ok(platform) = text.parse::<Platform>() {
            prop_assert!(platform.runs().len() <= 32);
            prop_assert_eq!(platform.to_string().parse::<Platform>(), Ok(platform));
        }
    }

    #[test]
    fn documents_never_panic(bytes in any::<Vec<u8>>(), text in json()) {
        for raw in [bytes, text.into_bytes()] {
            if let Ok(document) = Document::read(raw.clone(), None) {
                prop_assert_eq!(document.raw(), &raw[..]);
                prop_assert_eq!(document.digest(), Digest::of(&raw));
            }
            let _ = ImageConfig::read(raw);
        }
    }
}
