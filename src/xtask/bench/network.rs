//! Bytes out of and into a container: one large transfer over TCP each way (outward by perl, so with the Debian image), and
//! many small connections; and a large transfer between two containers of one network.
//!
//! The far end is a server of ours on the host, or in the other container. Sides differ in the engine and in the program between the
//! two networks; two containers are compared with two network namespaces that a pair of veth devices connects.

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

/// Takes all bytes of each connection, at port 5000, and answers how many they were.
const SINK: &str = r#"use IO::Socket::INET; my $s = IO::Socket::INET->new(Listen => 9, LocalPort => 5000) or die "listen: $!";
    while (my $c = $s->accept) { my ($n, $t, $b) = (0, 0); while ($n = sysread($c, $b, 262144)) { $t += $n } print $c $t; close $c }"#;
/// What podman needs for networks that containers share.
const NETAVARK: &str = "/usr/lib/podman/netavark";
/// How much one transfer between two containers moves.
const BETWEEN: usize = 4 << 30;
/// Two network namespaces with a pair of veth devices, and the sink in the second one; says a process of the first. What it starts
/// ends with the bench's pid namespace.
const VETH: &str = r#"set -e
    unshare --user --map-root-user --net sleep 3600 >/dev/null 2>&1 & one=$!; sleep .3
    within() { nsenter --target "$1" --user --net --preserve-credentials "${@:2}"; }
    within $one unshare --net perl -e "$SINK" >/dev/null 2>&1 & sleep .3
    two=$(pgrep -n perl)
    within $one ip link add one mtu 65520 type veth peer name two mtu 65520 netns "$two"
    within $one ip addr add 10.9.0.1/24 dev one; within $one ip link set one up
    within $two ip addr add 10.9.0.2/24 dev two; within $two ip link set two up
    echo $one"#;

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
    if ground.has_debian {
        sides.extend(between(ground, &debian)?);
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

/// From one container to another on a network that both have.
fn between(ground: &Ground, debian: &str) -> Fallible<Vec<Side>> {
    let work = "4 GiB between two containers over one connection";
    let send = |to: &str| [OUTWARD.to_owned(), format!("{to}:5000"), BETWEEN.to_string()];
    let mut engines: Vec<Engine<'_>> = vec![("sublet", Box::new(|| sublet(ground)), &[])];
    if which("podman").is_some() && std::path::Path::new(NETAVARK).exists() {
        engines.push(("podman (netavark)", Box::new(|| podman(ground)), &[]));
    }
    let mut sides = Vec::new();
    for (name, engine, _) in engines {
        output(engine().args(["network", "create", "bench"]))?;
        for (container, program) in [("sink", SINK), ("source", "sleep 3600")] {
            let mut run = engine();
            run.args(["run", "-d", "--name", container, "--network", "bench", debian, "perl", "-e", program]);
            output(&mut run)?;
        }
        let format = "{{.NetworkSettings.Networks.bench.IPAddress}}";
        let address = output(engine().args(["inspect", "-f", format, "sink"]))?;
        let mut command = engine();
        command.args(["exec", "source", "sh", "-c", "perl -e \"$@\" && echo done", "sh"]).args(send(address.trim()));
        sides.push(Side::timed(work, name, command));
    }
    if which("nsenter").is_some() && which("ip").is_some() {
        let one = output(Command::new("bash").args(["-c", VETH]).env("SINK", SINK))?;
        let mut command = Command::new("nsenter");
        command.args(["--target", one.trim(), "--user", "--net", "--preserve-credentials"]);
        command.args(["sh", "-c", "perl -e \"$@\" && echo done", "sh"]).args(send("10.9.0.2"));
        sides.push(Side::timed(work, "veth without containers", command));
    }
    Ok(sides)
}
