//! Debian's docker-registry over TLS with a certificate of an authority of our own, at the machine's primary address:
//! loopback hosts are trusted without.
#![allow(clippy::unwrap_used, reason = "a server or client that fails fails the test")]

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use base::Explain;
use oci::Reference;
use registry::{RegistriesConf, Registry, RegistryError, Settings};

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(directory: &Path, words: &str) {
    let done = Command::new("openssl").args(words.split(' ')).current_dir(directory).output().unwrap();
    assert!(done.status.success(), "openssl {words}: {done:?}");
}

/// What the test needs of the machine; the reason, when it is not there.
fn needs() -> Result<(&'static str, IpAddr), &'static str> {
    let programs = ["/usr/bin/docker-registry", "/usr/sbin/docker-registry"];
    let program =
        programs.into_iter().find(|path| Path::new(path).exists()).ok_or("docker-registry is not installed")?;
    Command::new("openssl").arg("version").output().map_err(|_| "openssl is not installed")?;
    // The address asks the routing table; no packet is sent.
    let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
    probe.connect("192.0.2.1:9").map_err(|_| "this machine has no route out")?;
    Ok((program, probe.local_addr().unwrap().ip()))
}

/// How a registry is reached.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speaks {
    Plain,
    Tls,
    /// TLS with those only who show a certificate of the authority.
    TlsWithTheKnown,
}

/// A registry of our own; `None` (and the skip is noted) where it cannot be.
fn start(directory: &Path, speaks: Speaks) -> Option<(Server, String)> {
    let (program, ip) = match needs() {
        Ok(found) => found,
        Err(reason) => {
            fixture::skip(reason);
            return None;
        }
    };
    let host = TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap().to_string();
    let mut config =
        format!("version: 0.1\nlog: {{level: error}}\nstorage: {{inmemory: {{}}}}\nhttp:\n  addr: {host}\n");
    if speaks != Speaks::Plain {
        let new = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        run(directory, &format!("req -x509 {new} -keyout ca.key -out ca.crt -days 2 -subj /CN=authority"));
        run(directory, &format!("req {new} -keyout server.key -out server.csr -subj /CN=registry"));
        std::fs::write(directory.join("san"), format!("subjectAltName=IP:{ip}\n")).unwrap();
        run(
            directory,
            "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 2 -extfile san",
        );
        let at = directory.display();
        let asked =
            if speaks == Speaks::TlsWithTheKnown { format!(", clientcas: [{at}/ca.crt]") } else { String::new() };
        writeln!(config, "  tls: {{certificate: {at}/server.crt, key: {at}/server.key{asked}}}").unwrap();
    }
    std::fs::write(directory.join("config.yml"), config).unwrap();
    let mut serve = Command::new(program);
    serve.arg("serve").arg(directory.join("config.yml")).stdout(Stdio::null()).stderr(Stdio::null());
    let server = Server(serve.spawn().unwrap());
    let began = Instant::now();
    while TcpStream::connect(&host).is_err() {
        assert!(began.elapsed() < Duration::from_secs(20), "the registry does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Some((server, host))
}

/// What an empty registry answers when it was reached; the error of the way to it otherwise.
fn ask(host: &str, settings: Settings) -> RegistryError {
    let reference: Reference = format!("{host}/team/app:1").parse().unwrap();
    Registry::new(settings).document(&reference).unwrap_err()
}

fn reached(error: &RegistryError) -> bool {
    matches!(error, RegistryError::ManifestUnknown { .. } | RegistryError::NameUnknown { .. })
}

#[test]
fn an_authority_is_trusted_where_it_was_put() {
    let directory = tempfile::tempdir().unwrap();
    let Some((_server, host)) = start(directory.path(), Speaks::Tls) else { return };
    let error = ask(&host, Settings::default());
    assert!(matches!(error, RegistryError::Untrusted { .. }), "{error:?}");
    let hint = error.hint().unwrap();
    assert!(hint.contains(&format!("certs.d/{host}/ca.crt")) && hint.contains("SSL_CERT_FILE"), "{hint}");

    let certs = directory.path().join("certs.d");
    let by_host = Settings { certificates: vec![directory.path().join("none"), certs.clone()], ..Settings::default() };
    std::fs::create_dir_all(certs.join("other:5000")).unwrap();
    std::fs::copy(directory.path().join("ca.crt"), certs.join("other:5000/ca.crt")).unwrap();
    let error = ask(&host, by_host.clone());
    assert!(matches!(error, RegistryError::Untrusted { .. }), "it is for another host: {error:?}");
    std::fs::create_dir_all(certs.join(&host)).unwrap();
    std::fs::copy(directory.path().join("ca.crt"), certs.join(&host).join("ca.crt")).unwrap();
    let error = ask(&host, by_host);
    assert!(reached(&error), "{error:?}");

    let for_all = |name: &str| Some(directory.path().join(name));
    let directly = Settings { certificates_for_all: for_all("certs.d/other:5000"), ..Settings::default() };
    let error = ask(&host, directly);
    assert!(reached(&error), "{error:?}");
    let none =
        Settings { certificates_for_all: for_all("none"), certificates: vec![certs.clone()], ..Settings::default() };
    let error = ask(&host, none);
    assert!(matches!(error, RegistryError::Untrusted { .. }), "it stands in place of the others: {error:?}");

    let roots = Settings { roots: Some(directory.path().join("ca.crt")), ..Settings::default() };
    let error = ask(&host, roots);
    assert!(reached(&error), "{error:?}");
    let empty = Settings { roots: Some(directory.path().join("none")), ..Settings::default() };
    let error = ask(&host, empty);
    assert!(matches!(error, RegistryError::Untrusted { .. }), "{error:?}");
    let insecure = Settings { insecure: vec![host.clone()], ..Settings::default() };
    let error = ask(&host, insecure.clone());
    assert!(reached(&error), "{error:?}");
    let error = ask(&host, Settings { tls_verify: Some(true), ..insecure });
    assert!(matches!(error, RegistryError::Untrusted { .. }), "it must prove who it is all the same: {error:?}");
    let error = ask(&host, Settings { tls_verify: Some(false), ..Settings::default() });
    assert!(reached(&error), "{error:?}");
}

#[test]
fn plain_http_is_refused_but_on_request() {
    let directory = tempfile::tempdir().unwrap();
    let Some((_server, host)) = start(directory.path(), Speaks::Plain) else { return };
    let error = ask(&host, Settings::default());
    assert!(matches!(error, RegistryError::NotTls { .. }), "{error:?}");
    assert!(error.hint().unwrap().contains(&format!("SUBLET_INSECURE_REGISTRIES={host}")));
    let error = ask(&host, Settings { insecure: vec![host.clone()], ..Settings::default() });
    assert!(reached(&error), "{error:?}");
}

#[test]
fn a_certificate_of_ours_is_shown_to_who_asks_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let Some((_server, host)) = start(directory.path(), Speaks::TlsWithTheKnown) else { return };
    let certs = directory.path().join("certs.d");
    let of_host = certs.join(&host);
    let put = |from: &str, to: &str| std::fs::copy(directory.path().join(from), of_host.join(to)).map(drop).unwrap();
    std::fs::create_dir_all(&of_host).unwrap();
    put("ca.crt", "ca.crt");
    let settings = Settings { certificates: vec![certs], ..Settings::default() };
    let error = ask(&host, settings.clone());
    assert!(matches!(error, RegistryError::Transport { .. }), "nothing is shown: {error:?}");
    put("server.crt", "client.cert");
    let error = ask(&host, settings.clone());
    assert!(
        matches!(&error, RegistryError::ClientCertificate { path, .. } if path.ends_with("client.key")),
        "{error:?}"
    );
    put("server.key", "client.key");
    let error = ask(&host, settings.clone());
    assert!(reached(&error), "{error:?}");
    let insecure = Settings { insecure: vec![host.clone()], ..settings.clone() };
    let error = ask(&host, insecure);
    assert!(reached(&error), "also where its own is not looked at: {error:?}");
    put("san", "client.key");
    let error = ask(&host, settings);
    assert!(matches!(error, RegistryError::ClientCertificate { .. }), "{error:?}");
}

#[test]
fn a_certificate_for_the_registry_is_not_shown_to_others() {
    let directory = tempfile::tempdir().unwrap();
    let Some((_server, host)) = start(directory.path(), Speaks::TlsWithTheKnown) else { return };
    let certs = directory.path().join("certs");
    std::fs::create_dir_all(&certs).unwrap();
    for (from, to) in [("ca.crt", "ca.crt"), ("server.crt", "client.cert"), ("server.key", "client.key")] {
        std::fs::copy(directory.path().join(from), certs.join(to)).unwrap();
    }
    let settings = Settings { certificates_for_all: Some(certs), ..Settings::default() };
    let error = ask(&host, settings.clone());
    assert!(reached(&error), "{error:?}");

    // One that sends us there for all it is asked, and one of which it is a mirror.
    let sends = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = sends.local_addr().unwrap().to_string();
    let answer = format!(
        "HTTP/1.1 307 x\r\nConnection: close\r\nContent-Length: 0\r\nLocation: https://{host}/v2/a/manifests/1\r\n\r\n"
    );
    std::thread::spawn(move || {
        for stream in sends.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 1 << 12];
            let count = stream.read(&mut head).unwrap();
            // A TLS record's first byte: not for us.
            if count > 0 && head[0] != 0x16 {
                stream.write_all(answer.as_bytes()).unwrap();
            }
        }
    });
    let error = ask(&at, settings.clone());
    assert!(matches!(&error, RegistryError::Transport { url, .. } if url.contains(&host)), "{error:?}");

    let mut registries = RegistriesConf::default();
    let text = format!("[[registry]]\nlocation = \"127.0.0.1:1\"\n[[registry.mirror]]\nlocation = \"{host}\"\n");
    registries.add("conf", &text).unwrap();
    let client = Registry::new(Settings { registries, ..settings });
    client.document(&"127.0.0.1:1/team/app:1".parse().unwrap()).unwrap_err();
    let notes = client.notes();
    assert!(notes.iter().any(|note| note.contains(&host) && note.contains("the request to")), "{notes:?}");
}

#[test]
fn an_authority_that_cannot_be_read_is_told() {
    let directory = tempfile::tempdir().unwrap();
    // Nobody listens there: what is trusted is read before.
    let reference: Reference = "127.0.0.1:1/team/app:1".parse().unwrap();
    let of_host = directory.path().join("127.0.0.1:1");
    std::fs::create_dir(&of_host).unwrap();
    let file = of_host.join("ca.crt");
    for (content, why) in [(Some("no PEM"), "holds no certificate"), (None, "No such file")] {
        if let Some(text) = content {
            std::fs::write(&file, text).unwrap();
        } else {
            std::fs::remove_file(&file).unwrap();
            std::os::unix::fs::symlink("nowhere", &file).unwrap();
        }
        let named = Settings { certificates_for_all: Some(of_host.clone()), ..Settings::default() };
        let error = Registry::new(named).document(&reference).unwrap_err();
        assert!(matches!(&error, RegistryError::Authority { path, .. } if *path == file), "{error:?}");
        assert!(base::Report::from(error).to_string().contains(why));

        let by_host = Settings { certificates: vec![directory.path().to_path_buf()], ..Settings::default() };
        let client = Registry::new(by_host);
        let error = client.document(&reference).unwrap_err();
        assert!(matches!(error, RegistryError::Transport { .. }), "{error:?}");
        let notes = client.notes();
        assert!(notes.len() == 1 && notes[0].contains("ca.crt") && notes[0].contains(why), "{notes:?}");
    }
}

/// Passes bytes on until one side ends.
fn pass(mut from: TcpStream, mut to: TcpStream) {
    // Whoever hangs up, the other side hears of it.
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
}

#[test]
fn a_connection_that_breaks_after_the_handshake_is_no_reason_for_plain_http() {
    let directory = tempfile::tempdir().unwrap();
    let Some((_server, host)) = start(directory.path(), Speaks::Tls) else { return };
    let relay = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = relay.local_addr().unwrap().to_string();
    let (tell, hear) = mpsc::channel();
    std::thread::spawn(move || {
        for (number, stream) in relay.incoming().enumerate() {
            let (mut client, server) = (stream.unwrap(), TcpStream::connect(&host).unwrap());
            let mut first = [0];
            client.read_exact(&mut first).unwrap();
            tell.send(first[0]).unwrap();
            (&server).write_all(&first).unwrap();
            let (from, to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || pass(from, to));
            if number == 0 {
                // The first message is the client's hello; with what comes next its handshake is done.
                let mut buffer = [0; 1 << 14];
                let count = client.read(&mut buffer).unwrap();
                (&server).write_all(&buffer[..count]).unwrap();
                assert!(client.read(&mut buffer).unwrap() > 0);
                client.shutdown(Shutdown::Both).unwrap();
                continue;
            }
            std::thread::spawn(move || pass(client, server));
        }
    });
    let error = ask(&at, Settings::default());
    assert!(reached(&error), "{error:?}");
    let begun: Vec<u8> = hear.try_iter().collect();
    // 0x16: a TLS handshake's first byte.
    assert!(begun.len() >= 2 && begun.iter().all(|byte| *byte == 0x16), "{begun:?}");
}
