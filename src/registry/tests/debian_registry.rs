//! The client against the distribution project's registry, as Debian packages it (`docker-registry`).
#![allow(clippy::unwrap_used, reason = "a server or client that fails fails the test")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use oci::{Descriptor, Digest, Document, Reference, media};
use registry::{Registry, RegistryError, Settings};

/// The running server; ended when dropped.
struct Server {
    process: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start() -> Option<Server> {
    let program =
        ["/usr/bin/docker-registry", "/usr/sbin/docker-registry"].into_iter().find(|path| Path::new(path).exists())?;
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n",
        dir.path().display()
    );
    let file = dir.path().join("config.yml");
    std::fs::write(&file, config).unwrap();
    let process =
        Command::new(program).arg("serve").arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let server = Server { process, port, _dir: dir };
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(began.elapsed() < Duration::from_secs(20), "the registry does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Some(server)
}

impl Server {
    /// Sends one request and returns the answer's head.
    fn send(&self, request: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let head = format!("{request} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n", self.port);
        let kind = if request.contains("/manifests/") { media::OCI_MANIFEST } else { "application/octet-stream" };
        write!(stream, "{head}Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn push_blob(&self, content: &[u8]) -> Descriptor {
        let answer = self.send("POST /v2/team/app/blobs/uploads/", b"");
        let location = answer.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap().to_owned();
        let path = location.splitn(4, '/').nth(3).unwrap();
        let digest = Digest::of(content);
        let answer = self.send(&format!("PUT /{path}&digest={digest}"), content);
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
        Descriptor {
            media_type: media::OCI_CONFIG.to_owned(),
            digest,
            size: content.len() as u64,
            platform: None,
            urls: Vec::new(),
        }
    }
}

#[test]
fn documents_and_blobs_come_as_they_were_pushed() {
    let Some(server) = start() else {
        return fixture::skip("docker-registry is not installed");
    };
    let config = server.push_blob(b"{\"os\":\"linux\"}");
    let layer_content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let layer = server.push_blob(&layer_content);
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"{}","digest":"{}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":{}}}]}}"#,
        media::OCI_MANIFEST,
        media::OCI_CONFIG,
        config.digest,
        config.size,
        layer.digest,
        layer.size
    );
    let answer = server.send("PUT /v2/team/app/manifests/1", manifest.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");

    let client = Registry::new(Settings::default());
    let reference: Reference = format!("127.0.0.1:{}/team/app:1", server.port).parse().unwrap();
    let resolved = client.resolve(&reference).unwrap().unwrap();
    assert_eq!(resolved.digest, Digest::of(manifest.as_bytes()));
    assert_eq!(resolved.media_type, media::OCI_MANIFEST);
    let Document::Manifest(found) = client.document(&reference).unwrap() else { panic!("not an index") };
    assert_eq!(found.raw, manifest.as_bytes());
    assert_eq!(client.content(&reference, &found.config).unwrap(), b"{\"os\":\"linux\"}");
    for offset in [0, 1, 399_999, 400_000] {
        let mut got = Vec::new();
        let mut reader = client.blob(&reference, &found.layers[0], offset).unwrap();
        reader.read_to_end(&mut got).unwrap();
        assert_eq!(got, layer_content[offset as usize..], "from {offset}");
    }
    let missing: Reference = format!("127.0.0.1:{}/team/app:2", server.port).parse().unwrap();
    assert!(matches!(client.document(&missing), Err(RegistryError::ManifestUnknown { .. })));
    let nowhere: Reference = format!("127.0.0.1:{}/no/such", server.port).parse().unwrap();
    let error = client.document(&nowhere).unwrap_err();
    assert!(matches!(error, RegistryError::ManifestUnknown { .. } | RegistryError::NameUnknown { .. }), "{error}");
}
