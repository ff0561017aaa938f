//! Bytes out of and into a container: one large transfer over TCP each way (outward by perl, so with the Debian image), and
//! many small connections.
//!
//! The far end is a server of ours on the host. Sides differ in the engine and in the program between the two networks.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;

use super::start::{image, podman, sublet};
use super::{Ground, Side};
use crate::shell::{Fallible, output, which};

/// How much one transfer moves.
const BYTES: usize = 256 << 20;
/// The host as podman's containers under pasta see it (podman 5.3 and later).
const PASTA_HOST: &str = "169.254.1.2";
/// How many connections follow each other.
const CONNECTIONS: usize = 200;

/// Serves `GET /<n>` with n bytes until the process ends.
fn serve(address: Ipv4Addr) -> Fallible<SocketAddr> {
    let listener = TcpListener::bind((address, 0))?;
    let local = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that goes away shows in its own result.
            std::thread::spawn(move || answer(stream).ok());
        }
    });
    Ok(local)
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let length = stream.read(&mut buffer)?;
        if length == 0 || request.len() > 1 << 16 {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..length]);
    }
    let text = String::from_utf8_lossy(&request);
    let asked = text.split_whitespace().nth(1).and_then(|path| path.trim_start_matches('/').parse::<usize>().ok());
    let mut left = asked.unwrap_or(0).min(BYTES);
    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {left}\r\n\r\n")?;
    while left > 0 {
        let part = left.min(buffer.len());
        stream.write_all(&buffer[..part])?;
        left -= part;
    }
    Ok(())
}

/// Takes all bytes of each connection and answers how many they were.
fn count(address: Ipv4Addr) -> Fallible<SocketAddr> {
    let listener = TcpListener::bind((address, 0))?;
    let local = listener.local_addr()?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // A client that goes away shows in its own result.
            std::thread::spawn(move || -> std::io::Result<()> {
                let (mut buffer, mut total) = (vec![0; 1 << 18], 0);
                loop {
                    match stream.read(&mut buffer)? {
                        0 => return write!(stream, "{total}"),
                        length => total += length,
                    }
                }
            });
        }
    });
    Ok(local)
}

/// Sends zeros and checks the answer; the address is its argument.
const OUTWARD: &str = r#"use IO::Socket::INET; my ($to, $left) = @ARGV; my $whole = $left;
    my $s = IO::Socket::INET->new(PeerAddr => $to) or die "connect: $!"; my $b = "\0" x 262144;
    while ($left > 0) { $left -= syswrite($s, $b) // die "write: $!" } shutdown($s, 1); die "lost" if <$s> < $whole"#;

/// A side's name, its command, and its options of `run`.
type Engine<'a> = (&'static str, Box<dyn Fn() -> Command + 'a>, &'static [&'static str]);

/// The host's address that a container may reach: asking the routing table sends no packet.
fn address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    match socket.local_addr().ok()? {
        SocketAddr::V4(address) => Some(*address.ip()),
        SocketAddr::V6(_) => None,
    }
}

pub fn sides(ground: &Ground) -> Fallible<Vec<Side>> {
    let image = image(ground, "busybox");
    output(sublet(ground).args(["pull", &image]))?;
    let here = address().ok_or("this machine has no route out")?;
    let (host, counter) = (serve(here)?, count(here)?);
    let mut engines: Vec<Engine<'_>> = vec![
        ("sublet", Box::new(|| sublet(ground)), &[]),
        ("sublet (host network)", Box::new(|| sublet(ground)), &["--network", "host"]),
    ];
    if which("podman").is_some() {
        output(podman(ground).args(["pull", "--tls-verify=false", &image]))?;
        for (name, program, options) in [
            ("podman (pasta)", "pasta", &["--network", "pasta"] as &[&str]),
            ("podman (slirp4netns)", "slirp4netns", &["--network", "slirp4netns"]),
        ] {
            if which(program).is_some() {
                engines.push((name, Box::new(|| podman(ground)), options));
            }
        }
    }
    let debian = super::start::image(ground, "debian");
    let mut works = vec![
        ("nothing", "true".to_owned()),
        ("256 MiB inward over one connection", format!("[ $(wget -q -O - http://$HOST/{BYTES} | wc -c) = {BYTES} ]")),
        (
            "200 connections, one after the other",
            format!(
                "i=0; while [ $i -lt {CONNECTIONS} ]; do wget -q -O /dev/null http://$HOST/1 || exit 1; i=$((i+1)); done"
            ),
        ),
    ];
    let mut sides = Vec::new();
    if ground.has_debian {
        output(sublet(ground).args(["pull", &debian]))?;
        if which("podman").is_some() {
            output(podman(ground).args(["pull", "--tls-verify=false", &debian]))?;
        }
        works.push(("256 MiB outward over one connection", "outward".to_owned()));
    }
    for (work, script) in &works {
        for (name, engine, options) in &engines {
            let mut command = engine();
            // Pasta gives the container the host's own address, so the host has another one there.
            let address = if name.contains("pasta") { PASTA_HOST.to_owned() } else { host.ip().to_string() };
            let outward = format!("perl -e '{OUTWARD}' {address}:{} {BYTES}", counter.port());
            let (image, script) = match script.as_str() {
                "outward" => (debian.as_str(), outward.as_str()),
                script => (image.as_str(), script),
            };
            let script = format!("HOST={address}:{}; set -e; {script}; echo done", host.port());
            command.args(["run", "--rm"]).args(*options).args([image, "sh", "-c", &script]);
            sides.push(Side::timed(work, name, command));
        }
    }
    Ok(sides)
}
