//! Debian's docker-registry as people meet it: behind TLS and a token service, over a line that fails.
//!
//! ```text
//! client ══TLS══▶ front ──▶ docker-registry, which opens nothing without a token of this service
//!                   └─────▶ the token service, which gives ME all that is asked for, and nobody else anything
//! ```
//!
//! The front ends TLS and passes one request after the other on. While it fails, what becomes of a request follows from the
//! seed, from what is asked for and from how often that was before, so that a seed fails in the same way again whatever
//! is asked for side by side. The first [`FAULTS_MAX`] requests of a kind may fail; who tries four times gets through.

use std::collections::HashMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use nix::sys::socket::{setsockopt, sockopt};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::support::{eventually, free_port, skip};

/// Who may do everything: user and password.
pub const ME: &str = "me:secret";
/// How many requests of a kind may fail.
const FAULTS_MAX: u64 = 3;
/// Longer than a client waits for a byte.
const STALL: Duration = Duration::from_secs(50);
const ISSUER: &str = "the bed";

/// The running registry and what is before it; all of it ends with this value but the front, which the process ends.
pub struct Bed {
    /// `127.0.0.1:port`.
    pub address: String,
    /// A directory with `ca.crt`, for `--cert-dir`.
    pub certificates: PathBuf,
    storage: PathBuf,
    registry: Child,
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = self.registry.kill();
        let _ = self.registry.wait();
    }
}

impl Bed {
    /// Starts it with its files in a directory, over a line that fails by a seed or, without one, does not; `None` (and the
    /// skip is noted) where it cannot be.
    pub fn start(directory: &Path, seed: Option<u64>) -> Option<Self> {
        for program in ["docker-registry", "openssl"] {
            if Command::new(program).arg("--help").output().is_err() {
                skip(&format!("{program} is not installed"));
                return None;
            }
        }
        let certificates = directory.join("certificates");
        fs::create_dir_all(&certificates).unwrap();
        certify(directory);
        fs::copy(directory.join("ca.crt"), certificates.join("ca.crt")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let behind = format!("127.0.0.1:{}", free_port());
        let storage = directory.join("storage");
        let config = json!({
            "version": "0.1", "log": { "level": "error", "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": storage } },
            "http": { "addr": behind, "host": format!("https://{address}") },
            "auth": { "token": {
                "realm": format!("https://{address}/token"), "service": "docker-registry", "issuer": ISSUER,
                "rootcertbundle": directory.join("ca.crt"),
            } },
        });
        // JSON is YAML.
        fs::write(directory.join("config.yml"), config.to_string()).unwrap();
        let log = File::create(directory.join("registry.log")).unwrap();
        let mut serve = Command::new("docker-registry");
        serve.arg("serve").arg(directory.join("config.yml")).stdin(Stdio::null());
        let registry = serve.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let bed = Bed { address, certificates, storage, registry };
        eventually("docker-registry listens", || TcpStream::connect(&behind).is_ok());
        let front =
            Front { behind, tls: tls(directory), tokens: Tokens::new(directory), seed, asked: Mutex::default() };
        let front = Arc::new(front);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let front = Arc::clone(&front);
                // A line that breaks is what it is for; the client's own result is checked.
                std::thread::spawn(move || front.serve(&stream).ok());
            }
        });
        Some(bed)
    }

    /// A name there.
    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// The options by which we trust it and it knows us.
    pub fn options(&self) -> [&str; 5] {
        ["--tls-verify", "--cert-dir", self.certificates.to_str().unwrap(), "--creds", ME]
    }

    /// The bytes of a blob or manifest, as they lie in its storage.
    pub fn stored(&self, digest: &str) -> Option<Vec<u8>> {
        let hex = digest.strip_prefix("sha256:")?;
        fs::read(self.path(&format!("blobs/sha256/{}/{hex}/data", &hex[..2]))).ok()
    }

    /// What a tag of a repository stands for.
    pub fn tagged(&self, repository: &str, tag: &str) -> Option<String> {
        let link = format!("repositories/{repository}/_manifests/tags/{tag}/current/link");
        fs::read_to_string(self.path(&link)).ok()
    }

    /// Whether a blob is one of a repository's.
    pub fn linked(&self, repository: &str, digest: &str) -> bool {
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        fs::read_to_string(self.path(&format!("repositories/{repository}/_layers/sha256/{hex}/link")))
            .is_ok_and(|link| link == digest)
    }

    fn path(&self, rest: &str) -> PathBuf {
        self.storage.join("docker/registry/v2").join(rest)
    }
}

/// Makes an authority (`ca.crt`, `ca.key`) and what it says of this host (`server.crt`, `server.key`).
fn certify(directory: &Path) {
    let run = |words: &str| {
        let done = Command::new("openssl").args(words.split(' ')).current_dir(directory).output().unwrap();
        assert!(done.status.success(), "openssl {words}: {done:?}");
    };
    let new = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    run(&format!("req -x509 {new} -keyout ca.key -out ca.crt -days 2 -subj /CN=authority"));
    run(&format!("req {new} -keyout server.key -out server.csr -subj /CN=registry"));
    fs::write(directory.join("san"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    run("x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 2 -extfile san");
}

fn certificate(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

fn tls(directory: &Path) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::from_pem_file(directory.join("server.key")).unwrap();
    let chain = vec![certificate(&directory.join("server.crt"))];
    Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap())
}

/// Signs tokens (distribution project, "Token Authentication Implementation") with the authority's key.
struct Tokens {
    key: EcdsaKeyPair,
    random: SystemRandom,
    /// The header of each token.
    header: Value,
}

impl Tokens {
    fn new(directory: &Path) -> Self {
        let random = SystemRandom::new();
        let key = PrivateKeyDer::from_pem_file(directory.join("ca.key")).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_der(), &random).unwrap();
        let certificate = BASE64_STANDARD.encode(certificate(&directory.join("ca.crt")));
        Tokens { key, random, header: json!({ "typ": "JWT", "alg": "ES256", "x5c": [certificate] }) }
    }

    /// The answer to `GET /token?query`: for ME all that is asked for, for others nothing.
    fn answer(&self, head: &Head, query: &str) -> Vec<u8> {
        let basic = format!("Basic {}", BASE64_STANDARD.encode(ME));
        let access: Vec<Value> = match head.header("authorization") {
            Some(given) if given == basic => {
                let scopes = query.split('&').filter_map(|pair| pair.strip_prefix("scope="));
                scopes.flat_map(|scope| access(&decoded(scope))).collect()
            }
            Some(_) => return whole(401, "", r#"{"details":"who is that?"}"#),
            None => Vec::new(),
        };
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let claims = json!({
            "iss": ISSUER, "sub": "me", "aud": "docker-registry", "exp": now + 300, "nbf": now - 60, "iat": now,
            "jti": format!("{now}"), "access": access,
        });
        let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&self.header), encode(&claims));
        let signature = self.key.sign(&self.random, signed.as_bytes()).unwrap();
        let token = format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature));
        whole(200, "", &json!({ "token": token, "expires_in": 300 }).to_string())
    }
}

/// What `repository:team/app:pull,push` asks for; a text of several such has spaces between.
fn access(scopes: &str) -> Vec<Value> {
    let one = |scope: &str| {
        let (kind, rest) = scope.split_once(':')?;
        let (name, actions) = rest.rsplit_once(':')?;
        Some(json!({ "type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>() }))
    };
    scopes.split(' ').filter_map(one).collect()
}

/// The text of a query's value.
fn decoded(value: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        let hex: Vec<u8> = if byte == b'%' { rest.by_ref().take(2).collect() } else { Vec::new() };
        let escaped = std::str::from_utf8(&hex).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(escaped.unwrap_or(if byte == b'+' { b' ' } else { byte }));
    }
    String::from_utf8(bytes).unwrap_or_default()
}

/// A whole answer with a body in JSON; `headers` are lines.
fn whole(status: u16, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{headers}\r\n");
    (head + body).into_bytes()
}

/// The head of a request or an answer.
struct Head {
    first: String,
    headers: Vec<(String, String)>,
}

impl Head {
    /// `None` at the end of the connection.
    fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut first = String::new();
        if from.read_line(&mut first)? == 0 {
            return Ok(None);
        }
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            from.read_line(&mut line)?;
            match line.trim_end().split_once(':') {
                Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
                None => return Ok(Some(Head { first: first.trim_end().to_owned(), headers })),
            }
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    fn without(&mut self, names: &[&str]) {
        self.headers.retain(|(name, _)| !names.contains(&name.as_str()));
    }

    fn length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    fn is_chunked(&self) -> bool {
        self.header("transfer-encoding") == Some("chunked")
    }

    fn bytes(&self) -> Vec<u8> {
        let lines = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        format!("{}\r\n{}\r\n", self.first, lines.collect::<String>()).into_bytes()
    }
}

/// What becomes of a request. Where a number is, it says where in the bytes that pass: of 2^32, which are all.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// The connection is reset when so much of the request has passed.
    ResetAsking(u32),
    /// The connection is reset when so much of the answer has passed.
    ResetAnswering(u32),
    /// The connection ends in order when so much of the answer has passed.
    Truncated(u32),
    /// Nothing more comes when so much of the answer has passed.
    Stalled(u32),
    /// The answer comes in twenty pieces with pauses between.
    Dripping,
    /// The registry has too much to do: nothing is passed on.
    Busy,
    /// Something is broken: nothing is passed on.
    Broken(u16),
    /// The registry has done what it was asked to, and the answer says that something is broken.
    BrokenAfterwards,
    /// The token is not passed on.
    Expired,
}

/// A writer that fails by plan.
struct Failing<'a> {
    to: &'a mut dyn Write,
    fault: Fault,
    /// How many bytes pass before it happens.
    left: u64,
    piece: usize,
}

impl<'a> Failing<'a> {
    /// For so many bytes, in one direction.
    fn new(to: &'a mut dyn Write, fault: Fault, asking: bool, length: u64) -> Self {
        let at = match fault {
            Fault::ResetAsking(at) if asking => at,
            Fault::ResetAnswering(at) | Fault::Truncated(at) | Fault::Stalled(at) if !asking => at,
            Fault::Dripping if !asking => {
                return Failing { to, fault, left: u64::MAX, piece: (length / 20).max(1) as usize };
            }
            _ => return Failing { to, fault: Fault::None, left: u64::MAX, piece: usize::MAX },
        };
        Failing { to, fault, left: ((u128::from(length) * u128::from(at)) >> 32) as u64, piece: usize::MAX }
    }
}

impl Write for Failing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.left == 0 {
            self.to.flush()?;
            return Err(io::Error::other("as planned"));
        }
        let room = bytes.len().min(self.piece).min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.to.write(&bytes[..room])?;
        self.left -= count as u64;
        if self.fault == Fault::Dripping {
            self.to.flush()?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

type Client = BufReader<StreamOwned<ServerConnection, TcpStream>>;

struct Front {
    /// The address of the registry.
    behind: String,
    tls: Arc<ServerConfig>,
    tokens: Tokens,
    seed: Option<u64>,
    /// How often each kind of request came.
    asked: Mutex<HashMap<String, u64>>,
}

impl Front {
    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        let connection = ServerConnection::new(Arc::clone(&self.tls)).map_err(io::Error::other)?;
        let mut client = BufReader::new(StreamOwned::new(connection, stream.try_clone()?));
        while let Some(head) = Head::read(&mut client)? {
            let fault = self.fault(&head);
            match (self.pass(head, &mut client, fault), fault) {
                (Ok(true), _) => {}
                (Ok(false), _) => break,
                (Err(_), Fault::ResetAsking(_) | Fault::ResetAnswering(_)) => {
                    let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
                    setsockopt(stream, sockopt::Linger, &at_once)?;
                    return Ok(());
                }
                (Err(_), Fault::Stalled(_)) => {
                    // Until the client has had enough.
                    stream.set_read_timeout(Some(STALL))?;
                    let _ = (&*stream).read(&mut [0]);
                    return Ok(());
                }
                (Err(error), _) => {
                    // An orderly end: what is missing is told by nothing but the announced length.
                    if matches!(fault, Fault::Truncated(_)) {
                        client.get_mut().conn.send_close_notify();
                        client.get_mut().flush()?;
                    }
                    stream.shutdown(Shutdown::Both)?;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// What a request's fate is.
    fn fault(&self, head: &Head) -> Fault {
        let Some(seed) = self.seed else { return Fault::None };
        let mut words = head.first.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = target.split('?').next().unwrap_or_default();
        // Uploads have names by chance.
        let kind = match path.find("/blobs/uploads/") {
            Some(at) => format!("{method} {}/blobs/uploads/*", &path[..at]),
            None => format!("{method} {path}"),
        };
        let before = {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            let count = asked.entry(kind.clone()).or_default();
            *count += 1;
            *count - 1
        };
        if before >= FAULTS_MAX {
            return Fault::None;
        }
        let mut hasher = DefaultHasher::new();
        // Not by the address, whose port is another one each time.
        (seed, &kind, before).hash(&mut hasher);
        let chance = hasher.finish();
        let at = (chance >> 32) as u32;
        let fault = match chance % 32 {
            0..3 => Fault::ResetAsking(at),
            3..6 => Fault::ResetAnswering(at),
            6..9 => Fault::Truncated(at),
            9..11 => Fault::Dripping,
            11..13 => Fault::Busy,
            13..15 => Fault::Broken([500, 502, 503][at as usize % 3]),
            15..16 => Fault::BrokenAfterwards,
            // Who has bought a new one and is refused once more has no right to what it asks for.
            16..18 if before == 0 => Fault::Expired,
            // A client waits half a minute for it.
            18 if at.is_multiple_of(8) => Fault::Stalled(at),
            _ => Fault::None,
        };
        println!("seed {seed}: {kind}, number {before}: {fault:?}");
        fault
    }

    /// Passes a request on and its answer back; whether the connection can be used further.
    fn pass(&self, mut head: Head, client: &mut Client, fault: Fault) -> io::Result<bool> {
        let refused = match fault {
            Fault::Busy => Some(whole(429, "Retry-After: 1\r\n", "{}")),
            Fault::Broken(status) => Some(whole(status, "", "<html>broken</html>")),
            _ => None,
        };
        if let Some(answer) = refused {
            client.get_mut().write_all(&answer)?;
            client.get_mut().flush()?;
            // What the client sends has no taker.
            return Ok(head.length().unwrap_or(0) == 0 && !head.is_chunked());
        }
        if head.header("expect").is_some() {
            client.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            client.get_mut().flush()?;
        }
        let query = head.first.split(' ').nth(1).and_then(|target| target.strip_prefix("/token?")).map(str::to_owned);
        if let Some(query) = query {
            let answer = self.tokens.answer(&head, &query);
            let to = client.get_mut();
            let mut failing = Failing::new(to, fault, false, answer.len() as u64);
            failing.write_all(&answer)?;
            failing.flush()?;
            return Ok(true);
        }
        let is_head = head.first.starts_with("HEAD ");
        head.without(&["connection", "expect"]);
        if fault == Fault::Expired {
            head.without(&["authorization"]);
        }
        head.headers.push(("connection".to_owned(), "close".to_owned()));
        let mut registry = TcpStream::connect(&self.behind)?;
        let asked = head.bytes();
        // The length of what comes in chunks is not known; most of it is more than this.
        let length = asked.len() as u64 + head.length().unwrap_or(if head.is_chunked() { 1 << 20 } else { 0 });
        let mut failing = Failing::new(&mut registry, fault, true, length);
        failing.write_all(&asked)?;
        let sent = if head.is_chunked() {
            pass_chunks(client, &mut failing)
        } else {
            pass_bytes(client, &mut failing, head.length().unwrap_or(0))
        };
        sent?;
        let mut registry = BufReader::new(registry);
        let Some(mut answer) = Head::read(&mut registry)? else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        answer.without(&["connection"]);
        let status: u16 = answer.first.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        let bare = is_head || matches!(status, 204 | 304);
        let body = if bare { Some(0) } else { answer.length() };
        let to = client.get_mut();
        if fault == Fault::BrokenAfterwards {
            io::copy(&mut registry, &mut io::sink())?;
            to.write_all(&whole(500, "", if is_head { "" } else { "<html>broken</html>" }))?;
            to.flush()?;
            return Ok(true);
        }
        let said = answer.bytes();
        let mut failing = Failing::new(to, fault, false, said.len() as u64 + body.unwrap_or(1 << 10));
        failing.write_all(&said)?;
        match body {
            Some(length) => pass_bytes(&mut registry, &mut failing, length)?,
            None => drop(io::copy(&mut registry, &mut failing)?),
        }
        failing.flush()?;
        // An end that nothing announced is that of the connection.
        if body.is_none() {
            to.conn.send_close_notify();
            to.flush()?;
        }
        Ok(body.is_some())
    }
}

fn pass_bytes(from: &mut impl Read, to: &mut impl Write, length: u64) -> io::Result<()> {
    let count = io::copy(&mut from.take(length), to)?;
    if count == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Passes a body in chunks on as it comes (RFC 9112, section 7.1).
fn pass_chunks(from: &mut impl BufRead, to: &mut impl Write) -> io::Result<()> {
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        to.write_all(line.as_bytes())?;
        let size = u64::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        // With the end of the line behind it.
        pass_bytes(from, to, size + 2)?;
        if size == 0 {
            return Ok(());
        }
    }
}
