//! The client against servers that do not do what they should. Each server is a thread with a script.
#![allow(clippy::unwrap_used, reason = "a server or client that fails fails the test")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base::{Explain, Kind};
use oci::{Descriptor, Digest, Reference, media};
use registry::{AuthFile, Credentials, Registry, RegistryError, Settings, Source};

/// A server that answers each request by a function of the request's head and its number. It does not speak TLS, so
/// the client's first connection, which tries that, ends at once.
struct Server {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(answer: impl Fn(&str, usize) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (heads.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, answer) = (seen.clone(), answer.clone());
                std::thread::spawn(move || serve(stream.unwrap(), &seen, &*answer));
            }
        });
        Server { port, heads }
    }

    fn reference(&self) -> Reference {
        format!("127.0.0.1:{}/team/app:1", self.port).parse().unwrap()
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, seen: &Mutex<Vec<String>>, answer: &(dyn Fn(&str, usize) -> Vec<u8> + Send + Sync)) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            // The first byte of a TLS record: not for us.
            Ok(1) if head.is_empty() && byte[0] == 0x16 => return,
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let number = {
        let mut seen = seen.lock().unwrap();
        seen.push(head.clone());
        seen.len()
    };
    // The client may have gone on purpose.
    let _ = stream.write_all(&answer(&head, number));
}

fn reply(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = if headers.to_ascii_lowercase().contains("content-length") {
        String::new()
    } else {
        format!("Content-Length: {}\r\n", body.len())
    };
    let mut reply = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{length}{headers}\r\n").into_bytes();
    reply.extend(body);
    reply
}

fn client() -> Registry {
    Registry::new(Settings::default())
}

fn credentials(file: &str) -> Credentials {
    Credentials(vec![Source::File(AuthFile::parse(file.as_bytes()).unwrap())])
}

fn blob(content: &[u8]) -> Descriptor {
    Descriptor {
        media_type: "application/octet-stream".to_owned(),
        digest: Digest::of(content),
        size: content.len() as u64,
        platform: None,
        urls: Vec::new(),
    }
}

fn content() -> Vec<u8> {
    (0..200_000_u32).flat_map(u32::to_le_bytes).collect()
}

/// The offset that a request asks to begin at.
fn range_of(head: &str) -> Option<usize> {
    let after = head.split("range: bytes=").nth(1)?;
    after.split('-').next()?.parse().ok()
}

fn read_all(
    client: &Registry,
    reference: &Reference,
    descriptor: &Descriptor,
    offset: u64,
) -> Result<Vec<u8>, RegistryError> {
    let mut all = Vec::new();
    client.blob(reference, descriptor, offset)?.read_to_end(&mut all).map_err(RegistryError::from_io)?;
    Ok(all)
}

fn manifest() -> String {
    let digest = Digest::of(b"{}");
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"{}","digest":"{digest}","size":2}},"layers":[]}}"#,
        media::OCI_MANIFEST,
        media::OCI_CONFIG
    )
}

#[test]
fn a_document_of_another_digest_is_refused() {
    let server = Server::start(|_, _| reply("200 OK", "", manifest().as_bytes()));
    let right = server.reference().at(Digest::of(manifest().as_bytes()));
    assert_eq!(client().document(&right).unwrap().digest(), right.digest().unwrap());
    let wrong = server.reference().at(Digest::of(b"something else"));
    let error = client().document(&wrong).unwrap_err();
    assert!(matches!(error, RegistryError::Document(oci::DocumentError::Mismatch { .. })), "{error}");
    let config = blob(b"{} ");
    let server = Server::start(|_, _| reply("200 OK", "", b"{ }"));
    assert!(client().content(&server.reference(), &config).is_err());
}

#[test]
fn a_blob_goes_on_where_the_connection_broke() {
    let all = content();
    let served = all.clone();
    let server = Server::start(move |head, number| {
        let from = range_of(head).unwrap_or(0);
        // Says all, sends a third, twice.
        let end = if number <= 2 { from + served.len() / 3 } else { served.len() };
        let length = served.len() - from;
        let headers = match from {
            0 => format!("Content-Length: {length}\r\n"),
            _ => format!(
                "Content-Length: {length}\r\nContent-Range: bytes {from}-{}/{}\r\n",
                served.len() - 1,
                served.len()
            ),
        };
        reply(if from == 0 { "200 OK" } else { "206 Partial Content" }, &headers, &served[from..end])
    });
    let got = read_all(&client(), &server.reference(), &blob(&all), 0).unwrap();
    assert_eq!(Digest::of(&got), Digest::of(&all));
    let offsets: Vec<_> = server.heads().iter().map(|head| range_of(head)).collect();
    assert_eq!(offsets[0], None);
    assert!(offsets.len() == 3 && offsets[1] > Some(0) && offsets[2] > offsets[1], "{offsets:?}");
}

#[test]
fn a_blob_that_never_comes_whole_is_an_error_with_the_position() {
    let server = Server::start(|head, _| {
        let from = range_of(head).unwrap_or(0);
        let headers = format!("Content-Length: {}\r\nContent-Range: bytes {from}-99/100\r\n", 100 - from);
        reply(
            if from == 0 { "200 OK" } else { "206 Partial Content" },
            &headers,
            if from == 0 { b"0123456789" } else { b"" },
        )
    });
    let descriptor = Descriptor { size: 100, ..blob(b"") };
    let error = read_all(&client(), &server.reference(), &descriptor, 0).unwrap_err();
    assert!(error.to_string().contains("broke off at byte 10 of 100"), "{error}");
    assert_eq!(error.kind(), Kind::Remote);
}

#[test]
fn a_server_that_ignores_ranges_is_read_past() {
    let all = content();
    let served = all.clone();
    let server = Server::start(move |_, _| reply("200 OK", "", &served));
    let got = read_all(&client(), &server.reference(), &blob(&all), 1000).unwrap();
    assert_eq!(got, all[1000..]);
    assert_eq!(range_of(&server.heads()[0]), Some(1000));
}

#[test]
fn a_break_before_the_missing_part_is_one_of_the_breaks() {
    let all = content();
    let served = all.clone();
    let server = Server::start(move |_, number| {
        let sent = if number <= 2 { 500 } else { served.len() };
        reply("200 OK", &format!("Content-Length: {}\r\n", served.len()), &served[..sent])
    });
    let got = read_all(&client(), &server.reference(), &blob(&all), 1000).unwrap();
    assert_eq!(got, all[1000..]);
    assert_eq!(server.heads().len(), 3);
    let server = Server::start(|_, _| reply("200 OK", "Content-Length: 800000\r\n", &[0; 500]));
    let error = read_all(&client(), &server.reference(), &blob(&all), 1000).unwrap_err();
    assert!(error.to_string().contains("broke off at byte 1000 of 800000"), "{error}");
    assert_eq!(server.heads().len(), 5);
}

#[test]
fn who_gives_no_part_or_a_wrong_one_is_asked_for_all() {
    let all = content();
    for (status, headers) in [
        ("416 Range Not Satisfiable", "Content-Range: bytes */800000\r\n"),
        ("416 Range Not Satisfiable", ""),
        ("206 Partial Content", "Content-Range: bytes 5-9/800000\r\n"),
        ("206 Partial Content", "Content-Range: bytes 2000-2004/800000\r\n"),
        ("206 Partial Content", "Content-Range: lines\r\n"),
        ("206 Partial Content", ""),
    ] {
        let served = all.clone();
        let server = Server::start(move |head, number| match range_of(head) {
            Some(_) => reply(status, headers, b"56789"),
            // Breaks off behind the position once, so that it is asked for a part twice.
            None if number == 2 => {
                reply("200 OK", &format!("Content-Length: {}\r\n", served.len()), &served[..served.len() / 2])
            }
            None => reply("200 OK", "", &served),
        });
        let got = read_all(&client(), &server.reference(), &blob(&all), 1000).unwrap();
        assert_eq!(Digest::of(&got), Digest::of(&all[1000..]), "{status} {headers}");
        let offsets: Vec<_> = server.heads().iter().map(|head| range_of(head)).collect();
        assert_eq!(offsets, [Some(1000), None, Some(400_000), None], "{status} {headers}");
    }
}

#[test]
fn a_wrong_part_is_refused() {
    let server = Server::start(|_, _| reply("206 Partial Content", "Content-Range: bytes 5-9/10\r\n", b"56789"));
    let error = read_all(&client(), &server.reference(), &blob(b"0123456789"), 3).unwrap_err();
    assert!(base::Report::from(error).to_string().contains("bytes 5-9/10"));
    assert_eq!(server.heads().len(), 2, "all was asked for as well");
}

#[test]
fn more_than_was_announced_is_not_read() {
    let server = Server::start(|_, _| reply("200 OK", "", &content()));
    let got = read_all(&client(), &server.reference(), &blob(b"abc"), 0).unwrap();
    assert_eq!(got.len(), 3);
    let server = Server::start(|_, _| reply("200 OK", "", &vec![b' '; 5 << 20]));
    assert!(matches!(client().document(&server.reference()), Err(RegistryError::TooLong { .. })));
}

#[test]
fn a_token_is_fetched_once_and_for_pull_only() {
    let port = Arc::new(Mutex::new(0));
    let known = port.clone();
    let server = Server::start(move |head, _| {
        let realm = format!("http://127.0.0.1:{}/token", known.lock().unwrap());
        if head.starts_with("get /token") {
            return reply("200 OK", "", br#"{"token":"secret-token","expires_in":300}"#);
        }
        if !head.contains("authorization: bearer secret-token") {
            let challenge = format!(
                "WWW-Authenticate: Negotiate\r\nWWW-Authenticate: Bearer realm=\"{realm}\",service=\"the reg\",scope=\"repository:team/app:pull,push\"\r\n"
            );
            return reply("401 Unauthorized", &challenge, b"");
        }
        reply("200 OK", "", manifest().as_bytes())
    });
    *port.lock().unwrap() = server.port;
    let auth = format!(r#"{{"auths":{{"127.0.0.1:{}":{{"username":"me","password":"pw"}}}}}}"#, server.port);
    let settings = Settings { credentials: credentials(&auth), ..Settings::default() };
    let client = Registry::new(settings);
    client.document(&server.reference()).unwrap();
    client.document(&server.reference()).unwrap();
    let tokens: Vec<String> = server.heads().into_iter().filter(|head| head.starts_with("get /token")).collect();
    assert_eq!(tokens.len(), 1, "the second document uses the cached token");
    assert!(
        tokens[0].contains("scope=repository%3ateam%2fapp%3apull&")
            || tokens[0].contains("scope=repository:team/app:pull&")
    );
    assert!(!tokens[0].contains("push"));
    assert!(tokens[0].contains("authorization: basic bwu6chc="), "{}", tokens[0]);
}

#[test]
fn a_refusal_reads_as_dockers() {
    let server = Server::start(|_, _| {
        let body = br#"{"errors":[{"code":"DENIED","message":"requested access\u001b[31m is denied"}]}"#;
        reply("403 Forbidden", "", body)
    });
    let error = client().document(&server.reference()).unwrap_err();
    let name = server.reference().familiar_name();
    assert_eq!(
        error.to_string(),
        format!(
            "pull access denied for {name}, repository does not exist or may require 'docker login': requested access[31m is denied"
        )
    );
    assert_eq!(error.kind(), Kind::Denied);
    let server = Server::start(|_, _| reply("401 Unauthorized", "WWW-Authenticate: Basic realm=\"x\"\r\n", b""));
    assert!(matches!(client().document(&server.reference()), Err(RegistryError::Denied { .. })));
    assert_eq!(server.heads().len(), 1, "without a credential there is nothing to try");
}

#[test]
fn too_many_requests_waits_as_told() {
    let server = Server::start(|_, number| match number {
        1 => reply("429 Too Many Requests", "Retry-After: 1\r\n", b""),
        _ => reply("200 OK", "", manifest().as_bytes()),
    });
    let began = Instant::now();
    client().document(&server.reference()).unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1));
    let server = Server::start(|_, _| reply("429 Too Many Requests", "Retry-After: 3600\r\n", b""));
    let error = client().document(&server.reference()).unwrap_err();
    assert!(error.to_string().contains("3600 s: too many requests"), "{error}");
}

#[test]
fn a_redirect_elsewhere_carries_no_credential() {
    let storage = Server::start(|_, _| reply("200 OK", "", b"abc"));
    let target = format!("http://127.0.0.1:{}/data", storage.port);
    let server = Server::start(move |head, _| {
        if head.contains("authorization: basic") {
            return reply("307 Temporary Redirect", &format!("Location: {target}\r\n"), b"");
        }
        reply("401 Unauthorized", "WWW-Authenticate: Basic realm=\"x\"\r\n", b"")
    });
    let auth = format!(r#"{{"auths":{{"127.0.0.1:{}":{{"username":"me","password":"pw"}}}}}}"#, server.port);
    let settings = Settings { credentials: credentials(&auth), ..Settings::default() };
    let got = read_all(&Registry::new(settings), &server.reference(), &blob(b"abc"), 0).unwrap();
    assert_eq!(got, b"abc");
    assert_eq!(storage.heads().len(), 1);
    assert!(!storage.heads()[0].contains("authorization"), "{}", storage.heads()[0]);
}

#[test]
fn redirects_end() {
    let server = Server::start(|_, _| reply("302 Found", "Location: /v2/again\r\n", b""));
    let error = client().document(&server.reference()).unwrap_err();
    assert!(matches!(error, RegistryError::Target { .. }), "{error}");
    assert_eq!(server.heads().len(), 11);
    let server = Server::start(|_, _| reply("302 Found", "Location: file:///etc/passwd\r\n", b""));
    assert!(matches!(client().document(&server.reference()), Err(RegistryError::Target { .. })));
}

#[test]
fn what_is_missing_is_named() {
    let server = Server::start(|head, _| {
        if head.contains("/blobs/") {
            reply("404 Not Found", "", b"<html>")
        } else {
            reply("404 Not Found", "", br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"x"}]}"#)
        }
    });
    let error = client().document(&server.reference()).unwrap_err();
    let name = server.reference().familiar();
    assert_eq!(error.to_string(), format!("manifest for {name} not found: manifest unknown"));
    assert_eq!(error.kind(), Kind::NotFound);
    let error = read_all(&client(), &server.reference(), &blob(b"abc"), 0).unwrap_err();
    assert!(matches!(error, RegistryError::BlobUnknown { .. }), "{error}");
    assert!(matches!(client().resolve(&server.reference()), Err(RegistryError::ManifestUnknown { .. })));
}

#[test]
fn nobody_listening_fails_at_once() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let began = Instant::now();
    let error = client().document(&format!("127.0.0.1:{port}/x").parse().unwrap()).unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(error.kind(), Kind::Remote);
    assert!(base::Report::from(error).to_string().to_lowercase().contains("refused"));
}

#[test]
fn a_registry_that_is_down_for_a_moment_is_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, is_down) = std::sync::mpsc::channel();
    let server = std::thread::spawn(move || {
        let seen = Mutex::new(Vec::new());
        let answer_one = |listener: TcpListener, wanted: usize| {
            while seen.lock().unwrap().len() < wanted {
                serve(listener.accept().unwrap().0, &seen, &|_, _| reply("200 OK", "", manifest().as_bytes()));
            }
        };
        answer_one(listener, 1);
        tell.send(()).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        answer_one(TcpListener::bind(address).unwrap(), 2);
    });
    let (client, reference) = (client(), format!("{address}/x").parse().unwrap());
    client.document(&reference).unwrap();
    is_down.recv().unwrap();
    client.document(&reference).unwrap();
    server.join().unwrap();
}

#[test]
fn cancelling_ends_a_wait() {
    let server = Server::start(|_, _| reply("503 Service Unavailable", "Retry-After: 60\r\n", b""));
    let cancelled = Arc::new(AtomicBool::new(false));
    let client = Registry::new(Settings { cancelled: cancelled.clone(), ..Settings::default() });
    let reference = server.reference();
    let began = Instant::now();
    std::thread::scope(|scope| {
        let fetch = scope.spawn(|| client.document(&reference));
        std::thread::sleep(Duration::from_millis(300));
        cancelled.store(true, Ordering::Relaxed);
        assert!(matches!(fetch.join().unwrap(), Err(RegistryError::Cancelled)));
    });
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[test]
fn the_next_challenge_is_met_when_one_fails() {
    let server = Server::start(|head, _| {
        if head.starts_with("get /token") {
            return reply("403 Forbidden", "", b"");
        }
        if head.contains("authorization: basic bwu6chc=") {
            return reply("200 OK", "", manifest().as_bytes());
        }
        let host = head.split("host: ").nth(1).and_then(|rest| rest.split("\r\n").next()).unwrap_or_default();
        let challenge = format!("WWW-Authenticate: Basic realm=\"x\", Bearer realm=\"http://{host}/token\"\r\n");
        reply("401 Unauthorized", &challenge, b"")
    });
    let auth = format!(r#"{{"auths":{{"127.0.0.1:{}":{{"username":"me","password":"pw"}}}}}}"#, server.port);
    let settings = Settings { credentials: credentials(&auth), ..Settings::default() };
    Registry::new(settings).document(&server.reference()).unwrap();
    let paths: Vec<String> =
        server.heads().iter().map(|head| head.split(' ').nth(1).unwrap_or_default().to_owned()).collect();
    assert!(paths.len() == 3 && paths[1].starts_with("/token?"), "a token is tried before a password: {paths:?}");
}

#[test]
fn a_token_service_without_tls_elsewhere_gets_nothing() {
    for (realm, why) in [
        ("http://192.0.2.1/token", "a token service must use HTTPS"),
        ("http://localhost:x@192.0.2.1/token", "it names a user"),
        ("http://127.0.0.1@192.0.2.1/token", "it names a user"),
        ("https://localhost@192.0.2.1/token", "it names a user"),
    ] {
        let challenge = format!("WWW-Authenticate: Bearer realm=\"{realm}\"\r\n");
        let server = Server::start(move |_, _| reply("401 Unauthorized", &challenge, b""));
        let error = Registry::new(Settings::default()).document(&server.reference()).unwrap_err();
        assert!(error.to_string().contains(why), "{realm}: {error}");
    }
}

#[test]
fn a_token_service_may_move_at_its_own_origin_only() {
    let elsewhere = Server::start(|_, _| reply("200 OK", "", br#"{"token":"bad"}"#));
    let other = format!("http://127.0.0.1:{}/t", elsewhere.port);
    for (location, works) in [("/v2/token?scope=x", true), (other.as_str(), false)] {
        let headers = format!("Location: {location}\r\n");
        let server = Server::start(move |head, _| {
            if head.starts_with("get /token") {
                return reply("301 Moved Permanently", &headers, b"");
            }
            if head.starts_with("get /v2/token?scope=x ") {
                return reply("200 OK", "", br#"{"token":"good"}"#);
            }
            if head.contains("authorization: bearer good") {
                return reply("200 OK", "", manifest().as_bytes());
            }
            let host = head.split("host: ").nth(1).and_then(|rest| rest.split("\r\n").next()).unwrap_or_default();
            let challenge = format!("WWW-Authenticate: Bearer realm=\"http://{host}/token\"\r\n");
            reply("401 Unauthorized", &challenge, b"")
        });
        let answer = client().document(&server.reference());
        assert_eq!(answer.is_ok(), works, "{location}: {answer:?}");
    }
    assert!(elsewhere.heads().is_empty());
}

#[test]
fn an_address_with_a_user_is_not_followed() {
    for location in ["http://localhost:x@192.0.2.1/data", "//127.0.0.1@192.0.2.1/data"] {
        let headers = format!("Location: {location}\r\n");
        let server = Server::start(move |_, _| reply("307 Temporary Redirect", &headers, b""));
        let error = client().document(&server.reference()).unwrap_err();
        assert!(error.to_string().contains("it names a user"), "{location}: {error}");
    }
}
