//! A registry in memory for tests: the distribution specification as far as clients use it, and the faults that a test wants.
//!
//! It is strict where a lax one would hide a mistake of a client: a manifest is refused while something that it names is
//! missing, a part of a blob that does not begin where the last one ended is 416, a digest is checked. A test sees every
//! request, and may answer one itself, lose its body or its answer.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::image::{Image, MANIFEST, digest};

/// A request that the registry has got.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// `GET`, …
    pub method: String,
    /// The path without the query.
    pub path: String,
    /// The query.
    pub query: String,
    /// The headers, their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// How many requests with this method and path there were before.
    pub before: usize,
    /// How many requests with this method there were before, whatever their path.
    pub total: usize,
    /// The number of the request, from 1 on.
    pub number: usize,
}

impl Seen {
    /// A parameter of the query, decoded; the first of that name.
    pub fn parameter(&self, name: &str) -> Option<String> {
        self.parameters(name).into_iter().next()
    }

    fn parameters(&self, name: &str) -> Vec<String> {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(key, _)| *key == name).map(|(_, value)| decoded(value)).collect()
    }
}

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum Fate {
    /// It is answered as it should be.
    Done,
    /// It is answered so at once, its body unread, with nothing done.
    Answered {
        /// The status.
        status: u16,
        /// Headers, each `Name: value`.
        headers: Vec<String>,
        /// The body.
        body: String,
    },
    /// The connection ends after so many bytes of its body, which are kept.
    CutAfter(usize),
    /// All tokens so far are worthless, beginning with the one that it has.
    Revoked,
    /// A part of a blob is taken wherever it says that it belongs.
    Unchecked,
    /// It is done, and the connection ends without an answer.
    AnswerLost,
    /// It is done, and answered with these headers in place of its own of the same name.
    With(Vec<String>),
}

impl Fate {
    /// An answer without headers and body.
    pub fn status(status: u16) -> Self {
        Fate::Answered { status, headers: Vec::new(), body: String::new() }
    }
}

/// Which parts of the specification the registry has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Features {
    /// The interface of referrers.
    pub referrers: bool,
    /// Tokens are wanted: `/token` gives them for the asking, each for what it was asked for.
    pub tokens: bool,
    /// The smallest part of a blob that it takes.
    pub part_min_bytes: usize,
}

type Rule = Box<dyn Fn(&Seen) -> Fate + Send + Sync>;

/// A running registry; it ends with the test's process.
#[derive(Clone)]
pub struct MemoryRegistry {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    address: SocketAddr,
    features: Features,
    rule: Rule,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    blobs: BTreeMap<(String, String), Arc<Vec<u8>>>,
    /// By repository and tag or digest: media type and bytes.
    manifests: BTreeMap<(String, String), (String, Vec<u8>)>,
    uploads: BTreeMap<String, (String, Vec<u8>)>,
    seen: Vec<Seen>,
    /// Tokens of an older generation are worth nothing.
    generation: usize,
}

impl MemoryRegistry {
    /// A registry that does all requests as it should.
    pub fn start(features: Features) -> Self {
        MemoryRegistry::start_with(features, |_| Fate::Done)
    }

    /// A registry whose requests have the fate that `rule` says.
    pub fn start_with(features: Features, rule: impl Fn(&Seen) -> Fate + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let shared = Arc::new(Shared { address, features, rule: Box::new(rule), state: Mutex::default() });
        let registry = MemoryRegistry { address, shared: Arc::clone(&shared) };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                // A client that goes away is no failure of the test; the client's own result is checked.
                std::thread::spawn(move || shared.serve(stream).ok());
            }
        });
        registry
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All requests so far, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    /// How many requests with this method had a path with this in it.
    pub fn count(&self, method: &str, part: &str) -> usize {
        self.state().seen.iter().filter(|seen| seen.method == method && seen.path.contains(part)).count()
    }

    /// Gives a repository a blob; its digest.
    pub fn put_blob(&self, repository: &str, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        self.state().blobs.insert((repository.to_owned(), digest.clone()), Arc::new(bytes.to_vec()));
        digest
    }

    /// Gives a repository a manifest or an index, under its digest and this tag; its digest.
    pub fn put_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        for name in [tag, &digest] {
            let content = (media_type.to_owned(), bytes.to_vec());
            self.state().manifests.insert((repository.to_owned(), name.to_owned()), content);
        }
        digest
    }

    /// Gives a repository an image under this tag.
    pub fn put_image(&self, repository: &str, tag: &str, image: &Image) {
        for (_, bytes) in &image.blobs {
            self.put_blob(repository, bytes);
        }
        self.put_manifest(repository, tag, MANIFEST, &image.manifest);
    }

    /// A repository's blob.
    pub fn blob(&self, repository: &str, digest: &str) -> Option<Vec<u8>> {
        self.state().blobs.get(&(repository.to_owned(), digest.to_owned())).map(|bytes| bytes.to_vec())
    }

    /// A repository's manifest or index by tag or digest.
    pub fn manifest(&self, repository: &str, name: &str) -> Option<Vec<u8>> {
        self.state().manifests.get(&(repository.to_owned(), name.to_owned())).map(|(_, bytes)| bytes.clone())
    }

    /// Forgets all content, and the requests so far.
    pub fn clear(&self) {
        let generation = self.state().generation;
        *self.state() = State { generation, ..State::default() };
    }

    /// Makes all tokens so far worthless.
    pub fn revoke_tokens(&self) {
        self.state().generation += 1;
    }
}

/// What is sent back.
struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Reply {
    fn new(status: u16) -> Self {
        Reply { status, headers: Vec::new(), body: Vec::new() }
    }

    fn error(status: u16, code: &str) -> Self {
        let body = format!(r#"{{"errors":[{{"code":"{code}","message":"{code}"}}]}}"#).into_bytes();
        Reply { body, ..Reply::new(status).with("Content-Type", "application/json") }
    }

    fn told(status: u16, headers: &[String], body: &str) -> Self {
        let split = |line: &String| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()));
        Reply { status, headers: headers.iter().filter_map(split).collect(), body: body.to_owned().into_bytes() }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// An answer before the body, which ends the connection; as servers do, what still comes is read.
fn early_answer(
    writer: &mut TcpStream,
    reader: &mut BufReader<TcpStream>,
    seen: &Seen,
    length: usize,
    reply: &Reply,
) -> io::Result<()> {
    send(writer, seen, reply, false)?;
    if !seen.headers.contains_key("expect") {
        io::copy(&mut reader.take(length as u64), &mut io::sink())?;
    }
    Ok(())
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut writer = stream.try_clone()?;
        let mut reader = BufReader::new(stream);
        // The first byte of a TLS record: not for us.
        if reader.fill_buf()?.first() == Some(&0x16) {
            return Ok(());
        }
        while let Some(mut seen) = self.next(&mut reader)? {
            let length = seen.headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0_usize);
            let fate = (self.rule)(&seen);
            if matches!(fate, Fate::Revoked) {
                self.state().generation += 1;
            }
            let early = match &fate {
                Fate::Answered { status, headers, body } => Some(Reply::told(*status, headers, body)),
                _ => self.refuse(&seen),
            };
            if let Some(reply) = early {
                return early_answer(&mut writer, &mut reader, &seen, length, &reply);
            }
            if seen.headers.get("expect").is_some_and(|expect| expect == "100-continue") {
                writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            let taken = if let Fate::CutAfter(bytes) = fate { bytes.min(length) } else { length };
            let mut body = vec![0; taken];
            reader.read_exact(&mut body)?;
            if matches!(fate, Fate::Unchecked) {
                seen.headers.remove("content-range");
            }
            let mut reply = self.answer(&seen, body);
            match fate {
                Fate::CutAfter(_) | Fate::AnswerLost => return Ok(()),
                Fate::With(lines) => {
                    for (name, value) in lines.iter().filter_map(|line| line.split_once(": ")) {
                        reply.headers.retain(|(old, _)| !old.eq_ignore_ascii_case(name));
                        reply = reply.with(name, value);
                    }
                }
                Fate::Done | Fate::Revoked | Fate::Unchecked | Fate::Answered { .. } => {}
            }
            send(&mut writer, &seen, &reply, true)?;
        }
        Ok(())
    }

    fn next(&self, reader: &mut BufReader<TcpStream>) -> io::Result<Option<Seen>> {
        let mut line = String::new();
        if reader.by_ref().take(8192).read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace();
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut seen =
            Seen { method: method.to_owned(), path: path.to_owned(), query: query.to_owned(), ..Seen::default() };
        loop {
            let mut header = String::new();
            reader.by_ref().take(8192).read_line(&mut header)?;
            let Some((name, value)) = header.trim_end().split_once(':') else { break };
            seen.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let mut state = self.state();
        seen.before = state.seen.iter().filter(|old| old.method == seen.method && old.path == seen.path).count();
        seen.total = state.seen.iter().filter(|old| old.method == seen.method).count();
        seen.number = state.seen.len() + 1;
        state.seen.push(seen.clone());
        Ok(Some(seen))
    }

    /// 401 to a request without the token that it needs.
    fn refuse(&self, seen: &Seen) -> Option<Reply> {
        if !self.features.tokens || seen.path == "/token" {
            return None;
        }
        let needed = needed(seen);
        let held = seen.headers.get("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let held = held.and_then(|token| token.split_once('.'));
        let generation = self.state().generation.to_string();
        let good = held.is_some_and(|(made, scopes)| {
            made == generation && needed.iter().all(|(repository, action)| allows(&plain(scopes), repository, action))
        });
        if good {
            return None;
        }
        let scope = needed.first().map(|(repository, action)| format!(",scope=\"repository:{repository}:{action}\""));
        let challenge =
            format!("Bearer realm=\"http://{}/token\",service=\"memory\"{}", self.address, scope.unwrap_or_default());
        Some(Reply::error(401, "UNAUTHORIZED").with("WWW-Authenticate", &challenge))
    }

    fn answer(&self, seen: &Seen, body: Vec<u8>) -> Reply {
        if seen.path == "/token" {
            let token = format!("{}.{}", self.state().generation, hex(&seen.parameters("scope").join(" ")));
            let body = format!(r#"{{"token":"{token}","expires_in":300}}"#).into_bytes();
            return Reply { body, ..Reply::new(200) };
        }
        if seen.path == "/v2/_catalog" {
            return self.catalog(seen);
        }
        let Some(rest) = seen.path.strip_prefix("/v2/") else { return Reply::new(404) };
        if rest.is_empty() {
            return Reply::new(200);
        }
        let find =
            |middle: &str| rest.split_once(middle).map(|(repository, name)| (repository.to_owned(), name.to_owned()));
        if let Some((repository, id)) = find("/blobs/uploads/") {
            return self.upload(seen, &repository, &id, body);
        }
        if let Some(key) = find("/blobs/") {
            return self.blob(seen, &key);
        }
        if let Some(key) = find("/manifests/") {
            return self.manifest(seen, key, &body);
        }
        match find("/referrers/") {
            Some((repository, subject)) if self.features.referrers => self.referrers(&repository, &subject),
            _ => Reply::error(404, "UNSUPPORTED"),
        }
    }

    fn catalog(&self, seen: &Seen) -> Reply {
        let state = self.state();
        let all: BTreeSet<&String> = state.manifests.keys().map(|(repository, _)| repository).collect();
        let last = seen.parameter("last").unwrap_or_default();
        let rest: Vec<&&String> = all.iter().filter(|name| ***name > last).collect();
        // Pages of two, whatever was asked for.
        let page: Vec<&&&String> = rest.iter().take(2).collect();
        let mut reply = Reply::new(200).with("Content-Type", "application/json");
        if let Some(last) = page.last().filter(|_| rest.len() > 2) {
            reply = reply.with("Link", &format!("</v2/_catalog?n=2&last={last}>; rel=\"next\""));
        }
        Reply { body: serde_json::json!({ "repositories": page }).to_string().into_bytes(), ..reply }
    }

    fn upload(&self, seen: &Seen, repository: &str, id: &str, body: Vec<u8>) -> Reply {
        let mut state = self.state();
        if seen.method == "POST" {
            return self.open(&mut state, seen, repository);
        }
        let Some((_, bytes)) = state.uploads.get_mut(id) else { return Reply::error(404, "BLOB_UPLOAD_UNKNOWN") };
        let at = |length: usize| format!("0-{}", length.saturating_sub(1));
        let location = format!("/v2/{repository}/blobs/uploads/{id}?state={}", bytes.len() + body.len());
        match seen.method.as_str() {
            "GET" => Reply::new(204).with("Location", &location).with("Range", &at(bytes.len())),
            "PATCH" => {
                let first = seen.headers.get("content-range").map(|range| range.split('-').next().unwrap_or_default());
                if first.is_some_and(|first| first.parse() != Ok(bytes.len())) {
                    return Reply::error(416, "RANGE_INVALID")
                        .with("Location", &location)
                        .with("Range", &at(bytes.len()));
                }
                bytes.extend(body);
                Reply::new(202).with("Location", &location).with("Range", &at(bytes.len()))
            }
            "PUT" => {
                bytes.extend(body);
                let wanted = seen.parameter("digest").unwrap_or_default();
                let (_, bytes) = state.uploads.remove(id).unwrap_or_default();
                if digest(&bytes) != wanted {
                    return Reply::error(400, "DIGEST_INVALID");
                }
                state.blobs.insert((repository.to_owned(), wanted.clone()), Arc::new(bytes));
                let location = format!("/v2/{repository}/blobs/{wanted}");
                Reply::new(201).with("Docker-Content-Digest", &wanted).with("Location", &location)
            }
            _ => Reply::new(405),
        }
    }

    fn open(&self, state: &mut State, seen: &Seen, repository: &str) -> Reply {
        if let (Some(blob), Some(from)) = (seen.parameter("mount"), seen.parameter("from"))
            && let Some(bytes) = state.blobs.get(&(from, blob.clone())).cloned()
        {
            state.blobs.insert((repository.to_owned(), blob.clone()), bytes);
            return Reply::new(201).with("Location", &format!("/v2/{repository}/blobs/{blob}"));
        }
        let id = seen.number.to_string();
        let location = format!("/v2/{repository}/blobs/uploads/{id}?state=0");
        state.uploads.insert(id, (repository.to_owned(), Vec::new()));
        let reply = Reply::new(202).with("Location", &location).with("Range", "0-0");
        match self.features.part_min_bytes {
            0 => reply,
            bytes => reply.with("OCI-Chunk-Min-Length", &bytes.to_string()),
        }
    }

    fn blob(&self, seen: &Seen, key: &(String, String)) -> Reply {
        let Some(bytes) = self.state().blobs.get(key).cloned() else { return Reply::error(404, "BLOB_UNKNOWN") };
        if !matches!(seen.method.as_str(), "GET" | "HEAD") {
            return Reply::new(405);
        }
        Reply { body: bytes.to_vec(), ..Reply::new(200).with("Docker-Content-Digest", &key.1) }
    }

    fn manifest(&self, seen: &Seen, (repository, name): (String, String), body: &[u8]) -> Reply {
        if seen.method == "PUT" {
            return self.put_manifest(seen, &repository, &name, body);
        }
        let state = self.state();
        let Some((media_type, bytes)) = state.manifests.get(&(repository, name)) else {
            return Reply::error(404, "MANIFEST_UNKNOWN");
        };
        let reply = Reply::new(200).with("Content-Type", media_type).with("Docker-Content-Digest", &digest(bytes));
        Reply { body: bytes.clone(), ..reply }
    }

    fn put_manifest(&self, seen: &Seen, repository: &str, name: &str, body: &[u8]) -> Reply {
        let json: Value = serde_json::from_slice(body).unwrap_or_default();
        let digest = digest(body);
        if name.starts_with("sha256:") && name != digest {
            return Reply::error(400, "DIGEST_INVALID");
        }
        let mut state = self.state();
        let list = |member: &str| json[member].as_array().cloned().unwrap_or_default();
        let key = |value: &Value| (repository.to_owned(), value["digest"].as_str().unwrap_or_default().to_owned());
        let blobs = list("layers").into_iter().chain(json.get("config").cloned());
        if blobs.into_iter().any(|blob| !state.blobs.contains_key(&key(&blob))) {
            return Reply::error(400, "MANIFEST_BLOB_UNKNOWN");
        }
        if list("manifests").iter().any(|child| !state.manifests.contains_key(&key(child))) {
            return Reply::error(404, "MANIFEST_BLOB_UNKNOWN");
        }
        let media_type = seen.headers.get("content-type").cloned().unwrap_or_default();
        for name in [name, &digest] {
            state.manifests.insert((repository.to_owned(), name.to_owned()), (media_type.clone(), body.to_vec()));
        }
        let reply = Reply::new(201).with("Docker-Content-Digest", &digest);
        match json["subject"]["digest"].as_str().filter(|_| self.features.referrers) {
            Some(subject) => reply.with("OCI-Subject", subject),
            None => reply,
        }
    }

    fn referrers(&self, repository: &str, subject: &str) -> Reply {
        let state = self.state();
        let refers = |raw: &[u8]| {
            let json: Value = serde_json::from_slice(raw).unwrap_or_default();
            (json["subject"]["digest"] == subject).then(|| json["artifactType"].clone())
        };
        let by_digest = state.manifests.iter().filter(|((place, name), _)| place == repository && name.contains(':'));
        let entries: Vec<Value> = by_digest
            .filter_map(|((_, digest), (media_type, raw))| {
                let kind = refers(raw)?;
                Some(serde_json::json!({
                    "mediaType": media_type, "digest": digest, "size": raw.len(), "artifactType": kind,
                }))
            })
            .collect();
        let body = serde_json::json!({ "schemaVersion": 2, "manifests": entries }).to_string().into_bytes();
        Reply { body, ..Reply::new(200).with("Content-Type", "application/vnd.oci.image.index.v1+json") }
    }
}

/// The rights that a request needs: repository and action.
fn needed(seen: &Seen) -> Vec<(String, &'static str)> {
    let Some(rest) = seen.path.strip_prefix("/v2/") else { return Vec::new() };
    let middle = ["/blobs/", "/manifests/", "/referrers/"].into_iter().find(|middle| rest.contains(middle));
    let Some((repository, _)) = middle.and_then(|middle| rest.split_once(middle)) else { return Vec::new() };
    let reads = matches!(seen.method.as_str(), "GET" | "HEAD") && !rest.contains("/uploads/");
    let mut needed = vec![(repository.to_owned(), if reads { "pull" } else { "push" })];
    needed.extend(seen.parameter("from").map(|from| (from, "pull")));
    needed
}

fn allows(scopes: &str, repository: &str, action: &str) -> bool {
    scopes.split(' ').any(|scope| {
        let Some((place, actions)) = scope.strip_prefix("repository:").and_then(|rest| rest.rsplit_once(':')) else {
            return false;
        };
        place == repository && actions.split(',').any(|one| one == action)
    })
}

fn send(writer: &mut TcpStream, seen: &Seen, reply: &Reply, stays: bool) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {} x\r\nContent-Length: {}\r\n", reply.status, reply.body.len());
    for (name, value) in &reply.headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head.push_str(if stays { "\r\n" } else { "Connection: close\r\n\r\n" });
    if reply.status == 204 {
        head = head.replacen("Content-Length: 0\r\n", "", 1);
    }
    writer.write_all(head.as_bytes())?;
    if seen.method == "HEAD" { Ok(()) } else { writer.write_all(&reply.body) }
}

fn hex(text: &str) -> String {
    text.bytes().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

fn plain(hex: &str) -> String {
    let bytes = hex.as_bytes().chunks(2).filter_map(|pair| std::str::from_utf8(pair).ok());
    let bytes = bytes.filter_map(|pair| u8::from_str_radix(pair, 16).ok()).collect();
    String::from_utf8(bytes).unwrap_or_default()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let pair: String = rest.by_ref().take(2).map(char::from).collect();
            bytes.extend(u8::from_str_radix(&pair, 16).ok());
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap_or_default()
}
