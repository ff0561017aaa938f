//! Registries that are busy, broken or hostile (see also `tests/bad_input/remote.rs` and the tests of crate `registry`).

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use fixture::image::{Image, LayerBuilder, Meta};
use serde_json::json;

use crate::serving;
use crate::support::http::{Answer, Asked, Server, find, primary_address, registry_of};
use crate::support::{Home, assert_sound, noise, skip};

const MANIFEST: &str = "/v2/app/manifests/latest";

/// A registry with `app` whose first answers to a request for the manifest are these.
fn at_first(answers: Vec<Answer>) -> Server {
    let (table, first) = (serving("app"), Mutex::new(answers.into_iter()));
    Server::answering(move |asked: &Asked| {
        let next = if asked.path == MANIFEST { first.lock().unwrap().next() } else { None };
        next.unwrap_or_else(|| find(&table, &asked.path))
    })
}

fn name(server: &Server) -> String {
    format!("{}/app", server.address)
}

fn manifest() -> Answer {
    find(&serving("app"), MANIFEST)
}

#[test]
fn what_is_temporary_is_tried_again() {
    let Some(home) = Home::new(&[]) else { return };
    let mut short = manifest();
    short.send_bytes /= 2;
    let busy = Answer::refused(429, "").with("Retry-After", "1");
    // A date that is past.
    let dated = Answer::refused(503, "").with("Retry-After", "Sun, 06 Nov 1994 08:49:37 GMT");
    let server = at_first(vec![busy, dated, Answer::refused(500, "<html>"), short]);
    let began = Instant::now();
    home.ok(&["pull", &name(&server)]);
    assert!(began.elapsed().as_secs_f64() > 1.0);
    assert_eq!(server.count(MANIFEST), 5);
}

#[test]
fn a_registry_that_stays_broken_is_an_error_with_its_words() {
    let Some(home) = Home::new(&[]) else { return };
    let broken = Answer::refused(500, r#"{"errors":[{"code":"UNKNOWN","message":"the disk is full"}]}"#);
    let server = at_first(vec![broken; 100]);
    let said = home.fails(1, &["pull", &name(&server)]);
    assert!(said.contains("status 500: the disk is full"), "{said}");
    assert_eq!(server.count(MANIFEST), 5);
}

#[test]
fn a_quota_and_warnings_are_told_once() {
    let Some(home) = Home::new(&[]) else { return };
    let table = serving("app");
    let server = Server::answering(move |asked: &Asked| {
        let answer = find(&table, &asked.path).with("Warning", "299 - \"closes\u{9b}31m in May\"");
        answer.with("RateLimit-Limit", "100;w=21600").with("RateLimit-Remaining", "4;w=21600")
    });
    let done = home.run(&["pull", &name(&server)]);
    assert_eq!(done.code, 0, "{done:#?}");
    let host = server.address;
    let warning = format!("note: {host} warns: closes31m in May\n");
    let quota = format!("note: {host} lets us fetch 4 of 100 more images in 6 hours\n");
    for line in [&warning, &quota] {
        assert_eq!(done.stderr.matches(line.as_str()).count(), 1, "{done:#?}");
    }

    let message = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"you have reached your limit"}]}"#;
    let spent = Answer::refused(429, message).with("Retry-After", "7000").with("RateLimit-Remaining", "0;w=21600");
    let server = at_first(vec![spent; 100]);
    let said = home.fails(1, &["pull", &name(&server)]);
    assert!(said.contains("asks to wait 7000 s: too many requests: you have reached your limit"), "{said}");
    assert!(said.contains("lets us fetch 0 more images in 6 hours"), "{said}");
    assert_eq!(server.count(MANIFEST), 1);
}

#[test]
fn a_registry_that_never_has_enough_tokens_is_left() {
    let Some(home) = Home::new(&[]) else { return };
    let server = Server::answering(|asked: &Asked| {
        if asked.path.starts_with("/token") {
            return Answer::ok("application/json", br#"{"token":"one-more"}"#);
        }
        let host = asked.header("host");
        let many = format!(r#"Bearer realm="http://{host}/token""#);
        Answer::refused(401, "").with("WWW-Authenticate", &[many.as_str(); 50].join(", "))
    });
    let said = home.fails(1, &["pull", &name(&server)]);
    assert!(said.contains("pull access denied"), "{said}");
    let asked = server.asked.lock().unwrap().len();
    assert!(asked < 15, "{asked} requests");
}

#[test]
fn a_challenge_at_the_front_door_alone_is_found() {
    let Some(home) = Home::new(&[]) else { return };
    let table = serving("app");
    let server = Server::answering(move |asked: &Asked| {
        if asked.path.starts_with("/token?scope=") {
            return Answer::ok("application/json", br#"{"token":"good"}"#);
        }
        if asked.header("authorization") == "Bearer good" {
            return find(&table, &asked.path);
        }
        let refused = Answer::refused(401, "");
        let challenge = format!(r#"Bearer realm="http://{}/token""#, asked.header("host"));
        if asked.path == "/v2/" { refused.with("WWW-Authenticate", &challenge) } else { refused }
    });
    home.ok(&["pull", &name(&server)]);
}

#[test]
fn a_token_that_does_not_come_whole_is_bought_again() {
    let Some(home) = Home::new(&[]) else { return };
    let (table, is_first) = (serving("app"), AtomicBool::new(true));
    let server = Server::answering(move |asked: &Asked| {
        if asked.path.starts_with("/token?") {
            let whole = Answer::ok("application/json", br#"{"token":"good"}"#);
            return Answer { send_bytes: if is_first.swap(false, Ordering::Relaxed) { 5 } else { 16 }, ..whole };
        }
        if asked.header("authorization") == "Bearer good" {
            return find(&table, &asked.path);
        }
        let challenge = format!(r#"Bearer realm="http://{}/token""#, asked.header("host"));
        Answer::refused(401, "").with("WWW-Authenticate", &challenge)
    });
    home.ok(&["pull", &name(&server)]);
}

#[test]
fn who_stores_for_a_registry_gets_no_password() {
    let Some(home) = Home::new(&[]) else { return };
    // The storage behind the registry asks for a token of its own.
    let storage = Server::answering(|asked: &Asked| {
        let challenge = format!(r#"Bearer realm="http://{}/token", Basic realm="x""#, asked.header("host"));
        Answer::refused(401, "").with("WWW-Authenticate", &challenge)
    });
    let (table, elsewhere) = (serving("app"), storage.address);
    let server = Server::answering(move |asked: &Asked| {
        if asked.path.contains("/blobs/") {
            return Answer::refused(307, "").with("Location", &format!("http://{elsewhere}/data"));
        }
        find(&table, &asked.path)
    });
    let auth = format!(r#"{{"auths":{{"{}":{{"username":"me","password":"secret"}}}}}}"#, server.address);
    let done = crate::run_with(&home, &[("DOCKER_AUTH_CONFIG", &auth)], &["pull", &name(&server)]);
    assert_eq!(done.code, 1, "{done:#?}");
    let asked = storage.asked.lock().unwrap().clone();
    assert!(!asked.is_empty() && asked.iter().all(|path| path == "/data"), "{asked:?}");
    assert!(done.stderr.contains(&format!("http://{elsewhere}/data answered with status 401")), "{done:#?}");
}

#[test]
fn who_fails_for_a_registry_is_named() {
    let Some(home) = Home::new(&[]) else { return };
    let Some(primary) = primary_address() else { return skip("no address that other machines see") };
    let storage = TcpListener::bind((primary, 0)).unwrap();
    let (table, elsewhere) = (serving("app"), storage.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in storage.incoming().flatten() {
            // To whatever was said.
            stream.write_all(b"HTTP/1.1 400 x\r\n\r\n").unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    let server = Server::answering(move |asked: &Asked| {
        if asked.path.contains("/blobs/") {
            return Answer::refused(307, "").with("Location", &format!("https://{elsewhere}/data"));
        }
        find(&table, &asked.path)
    });
    let said = home.fails(1, &["pull", &name(&server)]);
    assert!(said.contains(&format!("{elsewhere} does not speak HTTPS")), "{said}");
    assert!(said.contains(&format!("SUBLET_INSECURE_REGISTRIES={elsewhere}")), "{said}");
}

/// A registry of which every request for the rest of a layer gets other bytes, and one for the whole of it gets `whole`.
fn torn(whole: fn(Vec<u8>) -> Vec<u8>) -> (Server, String) {
    let image = Image::new(
        vec![LayerBuilder::default().file("noise", Meta::root(0o644), &noise(1 << 20)).unwrap().finish().unwrap()],
        &json!({}),
    );
    let (path, size) = (format!("/v2/app/blobs/{}", image.blobs[0].0), image.blobs[0].1.len());
    let (table, layer, is_first) = (registry_of("app", &image), path.clone(), AtomicBool::new(true));
    let server = Server::answering(move |asked: &Asked| {
        let mut answer = find(&table, &asked.path);
        if asked.path != path {
            return answer;
        }
        match asked
            .header("range")
            .strip_prefix("bytes=")
            .and_then(|range| range.trim_end_matches('-').parse::<usize>().ok())
        {
            None if is_first.swap(false, Ordering::Relaxed) => answer.send_bytes = size / 2,
            None => answer.body = whole(answer.body),
            Some(first) => {
                answer = answer.with("Content-Range", &format!("bytes {first}-{}/{size}", size - 1));
                (answer.status, answer.body) = (206, vec![0; size - first]);
                answer.send_bytes = answer.body.len();
            }
        }
        answer
    });
    (server, layer)
}

#[test]
fn parts_that_do_not_fit_are_fetched_once_more_as_a_whole() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, layer) = torn(|bytes| bytes);
    let done = home.run(&["pull", &name(&server)]);
    assert!(done.code == 0 && done.stderr.contains("do not fit together"), "{done:#?}");
    assert_eq!(server.count(&layer), 3, "one that broke off, the rest, the whole");
    assert_sound(&home, "after parts that did not fit");
}

#[test]
fn what_is_wrong_as_a_whole_is_not_fetched_again() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, layer) = torn(|bytes| vec![0; bytes.len()]);
    let said = home.fails(1, &["pull", &name(&server)]);
    assert!(said.contains("digest"), "{said}");
    assert_eq!(server.count(&layer), 3);
    let again = home.fails(1, &["pull", &name(&server)]);
    assert!(again.contains("digest"), "{again}");
    assert_eq!(server.count(&layer), 4, "nothing of it was kept");
}

#[test]
fn documents_that_are_none_are_refused() {
    let Some(home) = Home::new(&[]) else { return };
    let schema1 = r#"{"schemaVersion":1,"name":"app","tag":"latest","fsLayers":[{"blobSum":"x"}],"history":[]}"#;
    for (answer, wanted) in [
        (
            Answer::ok("application/vnd.docker.distribution.manifest.v1+prettyjws", schema1.as_bytes()),
            "manifest version 1",
        ),
        (Answer::ok("text/html", b"<html>log in to the hotel's network</html>"), "the document is malformed"),
        (Answer::ok("application/json", b"{}"), "the document is malformed"),
        (Answer::refused(302, "").with("Location", MANIFEST), "ten redirects"),
        (Answer::refused(302, "").with("Location", "ftp://x/y"), "no web address"),
        (Answer::refused(418, ""), "status 418"),
    ] {
        let server = at_first(vec![answer; 100]);
        let said = home.fails(1, &["pull", &name(&server)]);
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
}
