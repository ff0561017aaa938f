//! HTTP servers of our own: one that answers as it is told, and on top of it registries: behind a token service, or such
//! that misbehave.

use std::any::Any;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fixture::image::{Image, MANIFEST};

/// What a client asked for.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// `GET`.
    pub method: String,
    /// With the query.
    pub path: String,
    /// By name in lower case.
    pub headers: HashMap<String, String>,
    /// What came behind the headers.
    pub body: String,
}

impl Asked {
    /// A header, empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn read(reader: &mut impl BufRead) -> std::io::Result<Option<Self>> {
        let mut line = String::new();
        if reader.by_ref().take(8192).read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut asked = Asked { method, path, ..Asked::default() };
        loop {
            let mut header = String::new();
            if reader.by_ref().take(8192).read_line(&mut header)? <= 2 {
                break;
            }
            if let Some((name, value)) = header.split_once(':') {
                asked.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
            }
        }
        let length = asked.header("content-length").parse().unwrap_or(0);
        reader.by_ref().take(length).read_to_string(&mut asked.body)?;
        Ok(Some(asked))
    }
}

/// What a path answers.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: String,
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// How much of the body is sent before the connection is closed.
    pub send_bytes: usize,
    /// A pause in the middle of the body.
    pub stall: Duration,
}

impl Answer {
    /// 200 with this body.
    pub fn ok(content_type: &str, body: &[u8]) -> Self {
        let (content_type, headers) = (content_type.to_owned(), Vec::new());
        let send_bytes = body.len();
        Answer { status: 200, content_type, headers, body: body.to_vec(), send_bytes, stall: Duration::ZERO }
    }

    /// Another status with a body in JSON.
    pub fn refused(status: u16, body: &str) -> Self {
        Answer { status, ..Answer::ok("application/json", body.as_bytes()) }
    }

    /// The same with one more header.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sends it; whether the connection can be used further.
    fn send(&self, writer: &mut impl Write, method: &str) -> std::io::Result<bool> {
        let digest = fixture::image::digest(&self.body);
        let (status, content_type, length) = (self.status, &self.content_type, self.body.len());
        write!(writer, "HTTP/1.1 {status} x\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n")?;
        for (name, value) in &self.headers {
            write!(writer, "{name}: {value}\r\n")?;
        }
        write!(writer, "Docker-Content-Digest: {digest}\r\n\r\n")?;
        if method == "HEAD" {
            return Ok(true);
        }
        let part = &self.body[..self.send_bytes.min(self.body.len())];
        let half = part.len() / 2;
        writer.write_all(&part[..half])?;
        if !self.stall.is_zero() {
            std::thread::sleep(self.stall);
        }
        writer.write_all(&part[half..])?;
        Ok(part.len() == self.body.len())
    }
}

/// A server that answers by a function of what it is asked; it ends with the test's process. What that function asserts holds
/// for the test: its panic is answered with 400, and goes on in the test's thread when the server is dropped.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// The paths that were asked for, in order.
    pub asked: Arc<Mutex<Vec<String>>>,
    /// The first panic of the function that answers.
    panic: Panic,
}

type Panic = Arc<Mutex<Option<Box<dyn Any + Send>>>>;

impl Drop for Server {
    fn drop(&mut self) {
        let panic = self.panic.lock().expect("no holder panics").take();
        // Of a test that fails already, the first reason is told.
        if let Some(panic) = panic.filter(|_| !std::thread::panicking()) {
            resume_unwind(panic);
        }
    }
}

impl Server {
    /// Serves a fixed table of paths on loopback.
    pub fn start(answers: HashMap<String, Answer>) -> Self {
        Server::start_on(Ipv4Addr::LOCALHOST, answers)
    }

    /// Serves a fixed table of paths on this address of the host.
    pub fn start_on(address: Ipv4Addr, answers: HashMap<String, Answer>) -> Self {
        Server::answering_on(address, move |asked| find(&answers, &asked.path))
    }

    /// Serves on loopback what a function says.
    pub fn answering(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        Server::answering_on(Ipv4Addr::LOCALHOST, answer)
    }

    fn answering_on(address: Ipv4Addr, answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((address, 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let server = Server { address, asked: Arc::default(), panic: Arc::default() };
        let (seen, panic) = (Arc::clone(&server.asked), Arc::clone(&server.panic));
        let answer = Arc::new(move |asked: &Asked| {
            catch_unwind(AssertUnwindSafe(|| answer(asked))).unwrap_or_else(|found| {
                panic.lock().expect("no holder panics").get_or_insert(found);
                Answer::refused(400, "")
            })
        });
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                // A client that goes away is no failure of the test; the client's own result is checked.
                std::thread::spawn(move || serve(stream, &*answer, &seen).ok());
            }
        });
        server
    }

    /// How often this path was asked for.
    pub fn count(&self, path: &str) -> usize {
        self.asked.lock().expect("no holder panics").iter().filter(|asked| *asked == path).count()
    }
}

/// An answer of a table, or that there is none.
pub fn find(answers: &HashMap<String, Answer>, path: &str) -> Answer {
    let missing = || Answer::refused(404, r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#);
    answers.get(path).cloned().unwrap_or_else(missing)
}

fn serve(stream: TcpStream, answer: &dyn Fn(&Asked) -> Answer, seen: &Mutex<Vec<String>>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some(asked) = Asked::read(&mut reader)? {
        if asked.method == "CONNECT" {
            // As a proxy that leads to ourselves, whatever host is named.
            seen.lock().expect("no holder panics").push(format!("CONNECT {}", asked.path));
            write!(writer, "HTTP/1.1 200 x\r\n\r\n")?;
            continue;
        }
        seen.lock().expect("no holder panics").push(asked.path.clone());
        if !answer(&asked).send(&mut writer, &asked.method)? {
            break;
        }
    }
    Ok(())
}

/// What a registry answers behind a token service of its own, which gives tokens to who sends this `Authorization`. A token
/// opens what it was bought for.
pub fn guarded(answers: HashMap<String, Answer>, authorization: &'static str) -> impl Fn(&Asked) -> Answer {
    move |asked| {
        if let Some(query) = asked.path.strip_prefix("/token?") {
            if asked.header("authorization") != authorization {
                return Answer::refused(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"bad credentials"}]}"#);
            }
            let scope = query.split('&').find_map(|part| part.strip_prefix("scope=")).unwrap_or("none");
            return Answer::ok("application/json", format!(r#"{{"token":"for-{scope}"}}"#).as_bytes());
        }
        // `/v2/R/blobs/D`: what is before the second part from the end.
        let repository = asked.path.trim_start_matches("/v2/").rsplitn(3, '/').nth(2).unwrap_or_default();
        let bought = asked
            .header("authorization")
            .strip_prefix("Bearer for-")
            .map(|scope| scope.replace("%3A", ":").replace("%2F", "/"));
        let opens = |scope: &String| repository.is_empty() || *scope == format!("repository:{repository}:pull");
        if bought.is_some_and(|scope| opens(&scope)) {
            return find(&answers, &asked.path);
        }
        let host = asked.header("host");
        let challenge = format!(r#"Bearer realm="http://{host}/token",service="the registry",scope="ignored""#);
        Answer::refused(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#)
            .with("WWW-Authenticate", &challenge)
    }
}

/// The table of a registry that serves this image as `repository:latest`.
pub fn registry_of(repository: &str, image: &Image) -> HashMap<String, Answer> {
    let blobs = image.blobs.iter().map(|(digest, bytes)| {
        (format!("/v2/{repository}/blobs/{digest}"), Answer::ok("application/octet-stream", bytes))
    });
    let manifest = Answer::ok(MANIFEST, &image.manifest);
    let names = ["latest".to_owned(), image.digest()];
    let manifests = names.map(|name| (format!("/v2/{repository}/manifests/{name}"), manifest.clone()));
    blobs.chain(manifests).chain([("/v2/".to_owned(), Answer::ok("application/json", b"{}"))]).collect()
}

/// GET over plain HTTP/1.0; the body, or why not.
pub fn get(address: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: test\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    body.ok_or_else(|| std::io::Error::other(format!("not HTTP: {answer:?}")))
}

/// The address of this host that other machines see. No packet is sent: connecting a datagram socket only asks the
/// routing table (192.0.2.0/24 is for documentation, RFC 5737).
pub fn primary_address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    match socket.local_addr().ok()? {
        SocketAddr::V4(address) if !address.ip().is_loopback() && !address.ip().is_unspecified() => Some(*address.ip()),
        _ => None,
    }
}
