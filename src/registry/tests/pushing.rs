//! The client's writing against a registry in memory, as it should be and with faults.
#![allow(clippy::unwrap_used, reason = "a server or client that fails fails the test")]

use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use base::{Explain, Kind};
use fixture::memory_registry::{Fate, Features, MemoryRegistry, Seen};
use oci::{Digest, Document, Entries, Reference, media};
use registry::{Blob, Mount, Registry, RegistryError, Settings};

fn client() -> Registry {
    Registry::new(Settings::default())
}

fn in_parts(part_bytes: u64) -> Registry {
    Registry::new(Settings { part_bytes: Some(part_bytes), ..Settings::default() })
}

fn reference(server: &MemoryRegistry) -> Reference {
    format!("{}/team/app:1", server.address).parse().unwrap()
}

/// A blob in a file.
struct Here {
    file: File,
    digest: Digest,
    bytes: Vec<u8>,
}

fn here(size: usize) -> Here {
    let bytes: Vec<u8> = (0..size as u64).map(|i| (i * i % 251) as u8).collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    Here { file, digest: Digest::of(&bytes), bytes }
}

impl Here {
    fn blob(&self) -> Blob<'_> {
        Blob { digest: self.digest, size: self.bytes.len() as u64, file: &self.file }
    }

    fn send(&self, client: &Registry, server: &MemoryRegistry) -> Result<(), RegistryError> {
        client.upload(&reference(server), &self.blob(), None, &|_| {})
    }

    #[track_caller]
    fn arrived(&self, server: &MemoryRegistry) {
        let there = server.blob("team/app", &self.digest.to_string());
        assert!(there.as_deref() == Some(&self.bytes), "the blob is not there, or another");
    }
}

fn is(seen: &Seen, method: &str, part: &str) -> bool {
    seen.method == method && seen.path.contains(part)
}

#[test]
fn a_blob_goes_by_post_one_patch_and_put() {
    let server = MemoryRegistry::start(Features::default());
    for size in [0, 1, 3_000_000] {
        let (blob, told) = (here(size), AtomicU64::new(0));
        let client = client();
        assert!(!client.has_blob(&reference(&server), &blob.digest).unwrap());
        client.upload(&reference(&server), &blob.blob(), None, &|bytes| told.store(bytes, Ordering::Relaxed)).unwrap();
        blob.arrived(&server);
        assert_eq!(told.into_inner(), size as u64);
        assert!(client.has_blob(&reference(&server), &blob.digest).unwrap());
    }
    let patches: Vec<Seen> = server.seen().into_iter().filter(|seen| seen.method == "PATCH").collect();
    assert_eq!(patches.len(), 2);
    assert!(patches.iter().all(|seen| !seen.headers.contains_key("content-range")));
    assert_eq!(patches[1].headers["content-length"], "3000000");
    assert_eq!(server.count("PUT", "/uploads/"), 3);
}

#[test]
fn a_location_may_be_absolute_or_relative_and_with_or_without_a_query() {
    for form in ["{base}{path}?state=x", "{base}{path}", "{path}", "{id}?a=b&c=d"] {
        let server = MemoryRegistry::start_with(Features::default(), move |seen| {
            if !matches!(seen.method.as_str(), "POST" | "PATCH") {
                return Fate::Done;
            }
            let id = if seen.method == "POST" {
                seen.number.to_string()
            } else {
                seen.path.rsplit('/').next().unwrap().to_owned()
            };
            let path = format!("/v2/team/app/blobs/uploads/{id}");
            let base = format!("http://{}", seen.headers["host"]);
            let location = form.replace("{base}", &base).replace("{path}", &path).replace("{id}", &id);
            Fate::With(vec![format!("Location: {location}")])
        });
        let blob = here(1000);
        blob.send(&client(), &server).unwrap();
        blob.arrived(&server);
    }
}

#[test]
fn a_location_that_leads_nowhere_is_an_error() {
    for location in ["", "file:///etc/passwd", "gopher://x/"] {
        let server = MemoryRegistry::start_with(Features::default(), move |seen| {
            if seen.method == "POST" { Fate::With(vec![format!("Location: {location}")]) } else { Fate::Done }
        });
        let error = here(10).send(&client(), &server).unwrap_err();
        assert!(matches!(error, RegistryError::Target { .. }), "{location}: {error}");
    }
}

#[test]
fn an_upload_elsewhere_gets_no_credential() {
    let storage = MemoryRegistry::start(Features::default());
    let elsewhere = storage.clone();
    let server = MemoryRegistry::start_with(Features { tokens: true, ..Features::default() }, move |seen| {
        if is(seen, "POST", "/uploads/") && seen.headers.contains_key("authorization") {
            // An upload that is open there.
            let client = client();
            let opened = client.mount_blob(&reference(&elsewhere), &Digest::of(b""), &reference(&elsewhere)).unwrap();
            assert!(matches!(opened, Mount::Opened(_)));
            let id = elsewhere.seen().len();
            return Fate::With(vec![format!("Location: http://{}/v2/team/app/blobs/uploads/{id}", elsewhere.address)]);
        }
        Fate::Done
    });
    let blob = here(1000);
    blob.send(&client(), &server).unwrap();
    blob.arrived(&storage);
    assert!(storage.seen().iter().all(|seen| !seen.headers.contains_key("authorization")));
    assert_eq!(server.count("PATCH", ""), 0);
}

#[test]
fn a_break_is_resumed_where_the_registry_got_to() {
    let server = MemoryRegistry::start_with(Features::default(), |seen| match seen.method.as_str() {
        "PATCH" if seen.before < 2 => Fate::CutAfter(300_000),
        _ => Fate::Done,
    });
    let blob = here(1_000_000);
    blob.send(&client(), &server).unwrap();
    blob.arrived(&server);
    let ranges: Vec<_> = server
        .seen()
        .into_iter()
        .filter(|seen| seen.method == "PATCH")
        .map(|seen| seen.headers.get("content-range").cloned())
        .collect();
    assert_eq!(ranges, [None, Some("300000-999999".to_owned()), Some("600000-999999".to_owned())]);
    assert_eq!(server.count("POST", ""), 1);
}

#[test]
fn an_upload_that_was_forgotten_begins_again() {
    let server = MemoryRegistry::start_with(Features::default(), |seen| match seen.method.as_str() {
        "PATCH" if seen.total == 0 => Fate::CutAfter(300_000),
        "GET" if seen.path.contains("/uploads/") => Fate::status(404),
        _ => Fate::Done,
    });
    let blob = here(1_000_000);
    blob.send(&client(), &server).unwrap();
    blob.arrived(&server);
    assert_eq!((server.count("POST", ""), server.count("PATCH", "")), (2, 2));
}

#[test]
fn an_upload_that_never_gets_further_ends_with_its_error() {
    let server = MemoryRegistry::start_with(Features::default(), |seen| match seen.method.as_str() {
        "PATCH" => Fate::CutAfter(0),
        _ => Fate::Done,
    });
    let error = here(1000).send(&client(), &server).unwrap_err();
    assert!(matches!(error, RegistryError::Transport { .. }), "{error}");
    assert_eq!(server.count("PATCH", ""), 5);
    let server = MemoryRegistry::start_with(Features::default(), |seen| match seen.method.as_str() {
        "PATCH" => Fate::status(403),
        _ => Fate::Done,
    });
    let error = here(1000).send(&client(), &server).unwrap_err();
    assert_eq!((error.kind(), server.count("PATCH", "")), (Kind::Denied, 1), "{error}");
}

#[test]
fn what_was_put_together_wrongly_is_sent_once_more() {
    // The registry says that it has more than it took.
    let server = MemoryRegistry::start_with(Features::default(), |seen| match seen.method.as_str() {
        "PATCH" if seen.total == 0 => Fate::CutAfter(300_000),
        "GET" if seen.path.contains("/uploads/") => Fate::With(vec!["Range: 0-399999".to_owned()]),
        "PATCH" if seen.headers.contains_key("content-range") => Fate::Unchecked,
        _ => Fate::Done,
    });
    let blob = here(1_000_000);
    blob.send(&client(), &server).unwrap();
    blob.arrived(&server);
    assert_eq!(server.count("POST", ""), 2);
}

#[test]
fn a_lost_answer_to_the_last_request_is_found_out() {
    let server = MemoryRegistry::start_with(Features::default(), |seen| {
        if is(seen, "PUT", "/uploads/") { Fate::AnswerLost } else { Fate::Done }
    });
    let blob = here(1000);
    blob.send(&client(), &server).unwrap();
    blob.arrived(&server);
    assert_eq!(server.count("POST", ""), 1);
}

#[test]
fn a_blob_that_is_too_large_goes_in_parts() {
    const LIMIT: u64 = 1 << 20;
    let too_large =
        |seen: &Seen| seen.headers.get("content-length").is_some_and(|text| text.parse::<u64>().unwrap() > LIMIT);
    let server = MemoryRegistry::start_with(Features::default(), move |seen| {
        if seen.method == "PATCH" && too_large(seen) { Fate::status(413) } else { Fate::Done }
    });
    let blob = here(6 << 20);
    blob.send(&client(), &server).unwrap();
    blob.arrived(&server);
    assert!(server.count("PATCH", "") > 6);
    // Where even the smallest part is too large, that is the error.
    let server = MemoryRegistry::start_with(Features::default(), |seen| {
        if seen.method == "PATCH" { Fate::status(413) } else { Fate::Done }
    });
    let error = blob.send(&client(), &server).unwrap_err();
    assert!(matches!(error, RegistryError::Status { status: 413, .. }), "{error}");
}

#[test]
fn parts_are_as_large_as_was_said_and_as_the_registry_wants() {
    let sizes = |server: &MemoryRegistry| -> Vec<String> {
        let patches = server.seen().into_iter().filter(|seen| seen.method == "PATCH");
        patches.map(|seen| seen.headers["content-range"].clone()).collect()
    };
    let blob = here(250);
    let server = MemoryRegistry::start(Features::default());
    blob.send(&in_parts(100), &server).unwrap();
    blob.arrived(&server);
    assert_eq!(sizes(&server), ["0-99", "100-199", "200-249"]);
    let server = MemoryRegistry::start(Features { part_min_bytes: 200, ..Features::default() });
    blob.send(&in_parts(100), &server).unwrap();
    blob.arrived(&server);
    assert_eq!(sizes(&server), ["0-199", "200-249"]);
}

#[test]
fn a_registry_that_drops_parts_is_told_of() {
    let server = MemoryRegistry::start_with(Features::default(), |seen| match seen.method.as_str() {
        "PATCH" if seen.total > 0 => Fate::With(vec!["Range: 0-99".to_owned()]),
        _ => Fate::Done,
    });
    let error = here(250).send(&in_parts(100), &server).unwrap_err();
    assert!(matches!(error, RegistryError::Upload { .. }), "{error}");
    assert!(error.hint().unwrap().contains("--chunk-size"));
}

#[test]
fn a_registry_that_takes_a_byte_a_time_is_left() {
    let server = MemoryRegistry::start_with(Features::default(), |seen| match seen.method.as_str() {
        "PATCH" => Fate::With(vec![format!("Range: 0-{}", seen.total + 1)]),
        "GET" if seen.path.contains("/uploads/") => Fate::With(vec![format!("Range: 0-{}", seen.total + 1)]),
        _ => Fate::Done,
    });
    let error = here(2_000_000).send(&in_parts(1_000_000), &server).unwrap_err();
    assert_eq!(error.kind(), Kind::Remote, "{error}");
    assert!(server.count("PATCH", "") <= 5, "{} times", server.count("PATCH", ""));
}

#[test]
fn a_busy_registry_is_given_the_time_that_it_asks_for() {
    let server = MemoryRegistry::start_with(Features::default(), |seen| match seen.method.as_str() {
        "PATCH" if seen.total == 0 => {
            Fate::Answered { status: 503, headers: vec!["Retry-After: 1".to_owned()], body: String::new() }
        }
        _ => Fate::Done,
    });
    let (blob, began) = (here(1000), std::time::Instant::now());
    blob.send(&client(), &server).unwrap();
    blob.arrived(&server);
    assert!(began.elapsed() >= std::time::Duration::from_secs(1));
}

#[test]
fn a_token_that_ends_in_the_middle_is_renewed() {
    let features = Features { tokens: true, ..Features::default() };
    // A large body waits for the registry's word, a small one is sent and lost.
    for (fails, size) in [("PATCH", 1000), ("PATCH", 2_000_000), ("PUT", 1000)] {
        let server = MemoryRegistry::start_with(features, move |seen| {
            if seen.method == fails && seen.total == 0 { Fate::Revoked } else { Fate::Done }
        });
        let blob = here(size);
        blob.send(&client(), &server).unwrap();
        blob.arrived(&server);
        assert_eq!((server.count("GET", "/token"), server.count("POST", "")), (2, 2), "{fails} {size}");
    }
}

#[test]
fn a_mount_asks_for_both_repositories_and_falls_back() {
    let features = Features { tokens: true, ..Features::default() };
    let server = MemoryRegistry::start(features);
    let digest: Digest = server.put_blob("base/image", b"content").parse().unwrap();
    let from: Reference = format!("{}/base/image:1", server.address).parse().unwrap();
    let client = client();
    assert!(matches!(client.mount_blob(&reference(&server), &digest, &from), Ok(Mount::Done)));
    assert_eq!(server.blob("team/app", &digest.to_string()).unwrap(), b"content");
    let tokens: Vec<Seen> = server.seen().into_iter().filter(|seen| seen.path == "/token").collect();
    let asked = "scope=repository%3Abase%2Fimage%3Apull&scope=repository%3Ateam%2Fapp%3Apull%2Cpush";
    let plain = tokens[0].query.replace(':', "%3A").replace('/', "%2F").replace(',', "%2C");
    assert!(tokens.len() == 1 && plain.contains(asked), "{tokens:?}");

    let missing = here(5000);
    let Mount::Opened(session) = client.mount_blob(&reference(&server), &missing.digest, &from).unwrap() else {
        panic!("the registry opens an upload");
    };
    client.upload(&reference(&server), &missing.blob(), Some(session), &|_| {}).unwrap();
    missing.arrived(&server);

    for status in [401, 403, 404, 405] {
        let server = MemoryRegistry::start_with(Features::default(), move |seen| {
            if seen.parameter("mount").is_some() { Fate::status(status) } else { Fate::Done }
        });
        let from: Reference = format!("{}/base/image:1", server.address).parse().unwrap();
        let refused = client.mount_blob(&reference(&server), &digest, &from).unwrap();
        assert!(matches!(refused, Mount::Refused), "{status}");
    }
    let other: Reference = "other.example/base/image".parse().unwrap();
    assert!(matches!(client.mount_blob(&reference(&server), &digest, &other), Ok(Mount::Refused)));
}

#[test]
fn a_denied_push_reads_as_dockers() {
    let server = MemoryRegistry::start_with(Features::default(), |_| Fate::status(401));
    let error = here(10).send(&client(), &server).unwrap_err();
    assert_eq!(error.to_string(), "denied: requested access to the resource is denied");
    assert_eq!(error.kind(), Kind::Denied);
    assert!(error.hint().unwrap().contains("log in"));
}

fn manifest(server: &MemoryRegistry, more: &str) -> Vec<u8> {
    let config = server.put_blob("team/app", b"{}");
    let (kind, config_kind) = (media::OCI_MANIFEST, media::OCI_EMPTY);
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{kind}","config":{{"mediaType":"{config_kind}","digest":"{config}","size":2}},"layers":[]{more}}}"#
    )
    .into_bytes()
}

#[test]
fn documents_go_as_they_are() {
    let server = MemoryRegistry::start(Features::default());
    let (client, reference) = (client(), reference(&server));
    let raw = manifest(&server, r#", "odd"  :1"#);
    let digest = Digest::of(&raw);
    assert!(!client.has_document(&reference, &digest).unwrap());
    client.put_document(&reference, &raw, media::OCI_MANIFEST).unwrap();
    client.put_document(&reference.at(digest), &raw, media::OCI_MANIFEST).unwrap();
    assert!(client.has_document(&reference, &digest).unwrap());
    let Document::Manifest(found) = client.document(&reference).unwrap() else { panic!("no manifest") };
    assert_eq!(found.raw, raw);
    // What the registry says that it has stored is compared.
    let other = Digest::of(b"other");
    let server = MemoryRegistry::start_with(Features::default(), move |seen| {
        if seen.method == "PUT" { Fate::With(vec![format!("Docker-Content-Digest: {other}")]) } else { Fate::Done }
    });
    let raw = manifest(&server, "");
    let reference: Reference = format!("{}/team/app:1", server.address).parse().unwrap();
    let error = client.put_document(&reference, &raw, media::OCI_MANIFEST).unwrap_err();
    assert!(matches!(error, RegistryError::Document(oci::DocumentError::Mismatch { .. })), "{error}");
}

#[test]
fn referrers_are_found_with_the_interface_and_without() {
    for referrers in [true, false] {
        let server = MemoryRegistry::start(Features { referrers, ..Features::default() });
        let (client, reference) = (client(), reference(&server));
        let subject = manifest(&server, "");
        let subject_digest = Digest::of(&subject);
        client.put_document(&reference, &subject, media::OCI_MANIFEST).unwrap();
        assert!(client.referrers(&reference, &subject_digest, None).unwrap().is_empty());
        for kind in ["text/signature", "text/note"] {
            let more = format!(r#","artifactType":"{kind}","subject":{{"digest":"{subject_digest}"}}"#);
            let raw = manifest(&server, &more);
            for _ in 0..2 {
                client.put_document(&reference.at(Digest::of(&raw)), &raw, media::OCI_MANIFEST).unwrap();
            }
        }
        let found = client.referrers(&reference, &subject_digest, None).unwrap();
        assert_eq!(found.len(), 2, "referrers: {referrers}");
        let found = client.referrers(&reference, &subject_digest, Some("text/note")).unwrap();
        let kinds: Vec<_> = found.iter().map(|entry| entry.artifact_type.as_deref()).collect();
        assert_eq!(kinds, [Some("text/note")], "referrers: {referrers}");
        let fallback = server.manifest("team/app", &format!("sha256-{}", subject_digest.hex()));
        assert_eq!(fallback.is_some(), !referrers);
        assert!(fallback.is_none_or(|raw| Entries::read(&raw).unwrap().list.len() == 2));
    }
}

#[test]
fn referrers_come_in_pages_and_a_page_for_humans_is_none() {
    let page = |entry: char| {
        let digest = Digest::of(&[entry as u8]);
        format!(r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"x","digest":"{digest}","size":1}}]}}"#)
    };
    let server = MemoryRegistry::start_with(Features::default(), move |seen| {
        if !seen.path.contains("/referrers/") {
            return Fate::Done;
        }
        let mut headers = vec![format!("Content-Type: {}", media::OCI_INDEX)];
        let (next, body) = match seen.parameter("p").as_deref() {
            None => (Some("?p=2"), page('a')),
            Some("2") => (Some("?p=3"), page('b')),
            _ => (None, page('c')),
        };
        headers.extend(next.map(|next| format!("Link: <{}{next}>; rel=\"next\"", seen.path)));
        Fate::Answered { status: 200, headers, body }
    });
    let subject = Digest::of(b"subject");
    assert_eq!(client().referrers(&reference(&server), &subject, None).unwrap().len(), 3);

    let server = MemoryRegistry::start_with(Features::default(), |seen| {
        if !seen.path.contains("/referrers/") {
            return Fate::Done;
        }
        Fate::Answered { status: 200, headers: vec!["Content-Type: text/html".to_owned()], body: "<p>".to_owned() }
    });
    assert!(client().referrers(&reference(&server), &subject, None).unwrap().is_empty());
    assert_eq!(server.count("GET", "/manifests/sha256-"), 1);
}

#[test]
fn a_catalog_is_searched_page_by_page() {
    let server = MemoryRegistry::start(Features::default());
    for name in ["a/one", "b/two", "c/one-more", "d/three", "e/one"] {
        server.put_manifest(name, "1", media::OCI_MANIFEST, b"{}");
    }
    let host = server.address.to_string();
    let names = |term: &str, limit: usize| -> Vec<String> {
        let found = client().search(&host, term, limit).unwrap();
        found.into_iter().map(|found| found.name.strip_prefix(&format!("{host}/")).unwrap().to_owned()).collect()
    };
    assert_eq!(names("one", 25), ["a/one", "c/one-more", "e/one"]);
    assert_eq!(names("one", 2), ["a/one", "c/one-more"]);
    assert_eq!(names("none", 25), Vec::<String>::new());
    let server = MemoryRegistry::start_with(Features::default(), |_| Fate::status(404));
    let error = client().search(&server.address.to_string(), "x", 25).unwrap_err();
    assert!(matches!(error, RegistryError::Status { status: 404, .. }), "{error}");
}
