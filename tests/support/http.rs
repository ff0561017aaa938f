//! HTTP servers of our own: one that serves what it is told, and on top of it a registry that misbehaves as told.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fixture::image::{Image, MANIFEST};

/// What a path answers.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: String,
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
        let content_type = content_type.to_owned();
        Answer { status: 200, content_type, body: body.to_vec(), send_bytes: body.len(), stall: Duration::ZERO }
    }
}

/// A server with a fixed table of paths; it ends with the test's process.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// The paths that were asked for, in order.
    pub asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Serves on loopback.
    pub fn start(answers: HashMap<String, Answer>) -> Self {
        Server::start_on(Ipv4Addr::LOCALHOST, answers)
    }

    /// Serves on this address of the host.
    pub fn start_on(address: Ipv4Addr, answers: HashMap<String, Answer>) -> Self {
        let listener = TcpListener::bind((address, 0)).expect("a free port");
        let server = Server { address: listener.local_addr().expect("a bound socket"), asked: Arc::default() };
        let asked = Arc::clone(&server.asked);
        let answers = Arc::new(answers);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answers, asked) = (Arc::clone(&answers), Arc::clone(&asked));
                // A client that goes away is no failure of the test; the client's own result is checked.
                std::thread::spawn(move || serve(stream, &answers, &asked).ok());
            }
        });
        server
    }
}

fn serve(stream: TcpStream, answers: &HashMap<String, Answer>, asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if reader.by_ref().take(8192).read_line(&mut request)? == 0 {
            return Ok(());
        }
        loop {
            let mut header = String::new();
            if reader.by_ref().take(8192).read_line(&mut header)? <= 2 {
                break;
            }
        }
        let mut words = request.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().to_owned());
        asked.lock().expect("no holder panics").push(path.clone());
        let missing =
            Answer { status: 404, ..Answer::ok("application/json", b"{\"errors\":[{\"code\":\"NAME_UNKNOWN\"}]}") };
        let answer = answers.get(&path).unwrap_or(&missing);
        let digest = fixture::image::digest(&answer.body);
        write!(
            writer,
            "HTTP/1.1 {} x\r\nContent-Type: {}\r\nContent-Length: {}\r\nDocker-Content-Digest: {digest}\r\n\r\n",
            answer.status,
            answer.content_type,
            answer.body.len()
        )?;
        if method == "HEAD" {
            continue;
        }
        let part = &answer.body[..answer.send_bytes.min(answer.body.len())];
        let half = part.len() / 2;
        writer.write_all(&part[..half])?;
        if !answer.stall.is_zero() {
            std::thread::sleep(answer.stall);
        }
        writer.write_all(&part[half..])?;
        if part.len() < answer.body.len() {
            return Ok(());
        }
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
