//! Both ends of a connection: `xtask load` is a client in a container, [`Server`] what answers it, and each client prints one
//! number, which is measured from its first packet to its last, so that no start of a container is in it.
//!
//! A connection begins with nine bytes: what is wanted, and a number.
//!
//! | first | who sends | ends with |
//! |---|---|---|
//! | `o` | the client, the number of bytes | how many came, eight bytes |
//! | `i` | the server, the number of bytes | nothing |
//! | `e` | the client; each byte comes back | the client's end |
//! | `h` | nobody; it stays open | the client's end |
//!
//! A datagram that is not one byte long is counted; `r` begins a new count and is answered `r`, `q` is answered with the count.

use std::collections::HashMap;
use std::io::{self, IoSlice, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};

use crate::shell::Fallible;

/// The payload of a datagram that fits an Ethernet frame.
const DATAGRAM: usize = 1400;
/// How many of them one `sendmsg` may have the kernel cut (UDP_SEGMENT, udp(7)).
const SEGMENTS: usize = 46;
/// How long a client waits for anything.
const LIMIT: Duration = Duration::from_secs(100);

/// What `xtask load KIND ADDRESS NUMBER…` does; the number that it measures is the first line that it prints.
pub fn run(arguments: &[String]) -> Fallible<bool> {
    let [kind, rest @ ..] = arguments else { return Err("load needs a kind".into()) };
    raise_descriptors()?;
    if let ("serve", [port]) = (kind.as_str(), rest) {
        let _serving = Server::start(SocketAddr::new(IpAddr::from([0, 0, 0, 0]), port.parse()?))?;
        loop {
            thread::park();
        }
    }
    let [address, numbers @ ..] = rest else { return Err("load needs an address".into()) };
    let address: SocketAddr = address.parse()?;
    let numbers: Vec<u64> = numbers.iter().map(|number| number.parse()).collect::<Result<_, _>>()?;
    let value = match (kind.as_str(), numbers.as_slice()) {
        ("out", [streams, bytes]) => gigabits(address, b'o', *streams, *bytes)?,
        ("in", [streams, bytes]) => gigabits(address, b'i', *streams, *bytes)?,
        ("echo", [rounds]) => echo(address, *rounds)?,
        ("connect", [count, at_once]) => connect(address, *count, *at_once)?,
        ("hold", [count]) => hold(address, *count)?,
        ("datagrams", [milliseconds, per_second]) => datagrams(address, *milliseconds, *per_second)?,
        _ => return Err(format!("load {kind} is not known, or has other numbers").into()),
    };
    println!("{value}\ndone");
    Ok(true)
}

/// Descriptors for as many connections as the hard limit allows.
pub fn raise_descriptors() -> Fallible<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// Serves TCP and UDP at one address until the process ends.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
}

impl Server {
    /// Starts it; port 0 is any that is free.
    pub fn start(address: SocketAddr) -> Fallible<Server> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let datagrams = UdpSocket::bind(address)?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that goes away shows in its own result.
                thread::spawn(move || serve(stream).ok());
            }
        });
        thread::spawn(move || count(&datagrams).ok());
        Ok(Server { address })
    }
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let (kind, number) = (head[0], u64::from_be_bytes(head[1..].try_into().unwrap_or_default()));
    match kind {
        b'o' => {
            let total = drain(&mut stream)?;
            stream.write_all(&total.to_be_bytes())
        }
        b'i' => fill(&mut stream, number),
        _ => {
            let mut byte = [0];
            while stream.read(&mut byte)? == 1 {
                stream.write_all(&byte)?;
            }
            Ok(())
        }
    }
}

/// Counts the datagrams of each sender.
fn count(socket: &UdpSocket) -> io::Result<()> {
    let mut counts: HashMap<SocketAddr, u64> = HashMap::new();
    let mut buffer = [0; 1 << 11];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        let of_sender = counts.entry(from).or_default();
        match &buffer[..length] {
            [b'r'] => {
                *of_sender = 0;
                socket.send_to(b"r", from)?;
            }
            [b'q'] => {
                socket.send_to(&of_sender.to_be_bytes(), from)?;
            }
            _ => *of_sender += 1,
        }
    }
}

fn drain(stream: &mut TcpStream) -> io::Result<u64> {
    let (mut buffer, mut total) = (vec![0; 1 << 18], 0);
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(total),
            length => total += length as u64,
        }
    }
}

fn fill(stream: &mut TcpStream, bytes: u64) -> io::Result<()> {
    let buffer = vec![0; 1 << 18];
    let mut left = bytes;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        stream.write_all(&buffer[..part])?;
        left -= part as u64;
    }
    Ok(())
}

fn open(address: SocketAddr, kind: u8, number: u64) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let mut head = [kind; 9];
    head[1..].copy_from_slice(&number.to_be_bytes());
    stream.write_all(&head)?;
    Ok(stream)
}

/// Does the same in so many threads; the first error of any is the answer.
fn at_once(threads: u64, work: impl Fn() -> io::Result<()> + Send + Sync) -> Fallible<f64> {
    let began = Instant::now();
    thread::scope(|scope| -> Fallible<()> {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(&work)).collect();
        for one in running {
            one.join().map_err(|_| "a thread has panicked")??;
        }
        Ok(())
    })?;
    Ok(began.elapsed().as_secs_f64())
}

/// So many bytes over so many connections in all: 10^9 bits a second.
#[expect(clippy::cast_precision_loss, reason = "a number for a table")]
fn gigabits(address: SocketAddr, kind: u8, streams: u64, bytes: u64) -> Fallible<f64> {
    let share = bytes / streams.max(1);
    let took_s = at_once(streams, || {
        let mut stream = open(address, kind, share)?;
        let came = if kind == b'o' {
            fill(&mut stream, share)?;
            stream.shutdown(Shutdown::Write)?;
            let mut total = [0; 8];
            stream.read_exact(&mut total)?;
            u64::from_be_bytes(total)
        } else {
            drain(&mut stream)?
        };
        if came == share { Ok(()) } else { Err(io::Error::other(format!("{came} of {share} bytes came"))) }
    })?;
    Ok((share * streams) as f64 * 8.0 / took_s / 1e9)
}

/// One byte there and back, so many times: microseconds each.
#[expect(clippy::cast_precision_loss, reason = "a number for a table")]
fn echo(address: SocketAddr, rounds: u64) -> Fallible<f64> {
    let mut stream = open(address, b'e', 0)?;
    let mut byte = [1];
    let began = Instant::now();
    for _ in 0..rounds {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
    }
    Ok(began.elapsed().as_secs_f64() * 1e6 / rounds as f64)
}

/// Connections with one byte there and back, so many in each of so many threads: connections a second.
#[expect(clippy::cast_precision_loss, reason = "a number for a table")]
fn connect(address: SocketAddr, count: u64, threads: u64) -> Fallible<f64> {
    let took_s = at_once(threads, || {
        for _ in 0..count {
            let mut stream = open(address, b'e', 0)?;
            let mut byte = [1];
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)?;
        }
        Ok(())
    })?;
    Ok((count * threads) as f64 / took_s)
}

/// Holds so many connections, each of which has had a byte there and back, and says how many, until it is ended.
fn hold(address: SocketAddr, count: u64) -> Fallible<f64> {
    let mut held = Vec::new();
    for _ in 0..count {
        let mut stream = open(address, b'h', 0)?;
        let mut byte = [1];
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        held.push(stream);
    }
    println!("held {}", held.len());
    io::stdout().flush()?;
    loop {
        thread::park();
    }
}

/// Sends for so long, at most so many datagrams a second (0: as many as go): how many came, in thousands a second; of a bounded
/// rate how many of a hundred were lost.
#[expect(clippy::cast_precision_loss, reason = "a number for a table")]
fn datagrams(address: SocketAddr, milliseconds: u64, per_second: u64) -> Fallible<f64> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    ask(&socket, b"r")?;
    let buffer = vec![0; DATAGRAM * SEGMENTS];
    let (began, limit) = (Instant::now(), Duration::from_millis(milliseconds));
    let mut sent = 0;
    while began.elapsed() < limit {
        if per_second > 0 && sent as f64 > began.elapsed().as_secs_f64() * per_second as f64 {
            thread::sleep(Duration::from_micros(200));
            continue;
        }
        let cut = [ControlMessage::UdpGsoSegments(&(DATAGRAM as u16))];
        let parts = [IoSlice::new(&buffer)];
        match sendmsg::<SockaddrStorage>(socket.as_raw_fd(), &parts, &cut, MsgFlags::empty(), None) {
            Ok(_) => sent += SEGMENTS as u64,
            Err(nix::errno::Errno::ENOBUFS) => {}
            Err(error) => return Err(format!("sendmsg: {error}").into()),
        }
    }
    let took_s = began.elapsed().as_secs_f64();
    // What is still on its way.
    thread::sleep(Duration::from_millis(300));
    let came = ask(&socket, b"q")?;
    if per_second > 0 {
        return Ok(100.0 * (1.0 - came as f64 / sent as f64));
    }
    Ok(came as f64 / took_s / 1e3)
}

/// Asks until an answer comes: the question itself may be lost.
fn ask(socket: &UdpSocket, question: &[u8]) -> Fallible<u64> {
    let mut answer = [0; 8];
    for _ in 0..20 {
        socket.send(question)?;
        match socket.recv(&mut answer) {
            Ok(8) => return Ok(u64::from_be_bytes(answer)),
            Ok(_) if question == b"r" => return Ok(0),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err("the server of datagrams does not answer".into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_has_happened() {
        let server = Server::start("127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(gigabits(server.address, b'o', 2, 1 << 20).unwrap() > 0.0);
        assert!(gigabits(server.address, b'i', 2, 1 << 20).unwrap() > 0.0);
        assert!(echo(server.address, 10).unwrap() > 0.0);
        assert!(connect(server.address, 5, 2).unwrap() > 0.0);
        assert!(datagrams(server.address, 50, 0).unwrap() > 0.0);
        assert!(datagrams(server.address, 50, 1000).unwrap() <= 100.0);
    }
}
