//! Bytes, connections and datagrams out of a container, into it, and between two; and what the program between the two networks
//! costs: processor time, memory, wake-ups.
//!
//! Both ends are ours ([`super::load`]): the far one is in this process, the near one runs in the Debian image, but for
//! published ports, where it is the other way round, and prints what it has measured itself. Sides differ in the engine and
//! in the program between the networks; "host sockets" is the same client without a container. Two containers are compared
//! with two network namespaces that a pair of veth devices connects.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;

use super::files::told;
use super::load::{self, Server};
use super::start::{image, podman, sublet};
use super::{Ground, Side};
use crate::shell::{Fallible, command, output, which};

/// The host as podman's containers under pasta see it (podman 5.3 and later).
const PASTA_HOST: &str = "169.254.1.2";
/// What podman needs for networks that containers share.
const NETAVARK: &str = "/usr/lib/podman/netavark";
/// The client and server in a container.
const LOAD: &str = "/load";
/// How much one measurement moves.
const BYTES: u64 = 1 << 30;
/// How much one transfer between two containers moves.
const BETWEEN: u64 = 4 << 30;
/// What our network of the MTU of Ethernet is called.
const NARROW: &str = "narrow";
/// Two network namespaces with a pair of veth devices, and a server in the second one; says a process of the first. What it starts
/// ends with the bench's pid namespace.
const VETH: &str = r#"set -e
    unshare --user --map-root-user --net sleep 3600 >/dev/null 2>&1 & one=$!; sleep .3
    within() { nsenter --target "$1" --user --net --preserve-credentials "${@:2}"; }
    within $one unshare --net "$LOAD" load serve 5000 >/dev/null 2>&1 & sleep .3
    two=$(pgrep -n -f 'load serve 5000')
    within $one ip link add one mtu 65520 type veth peer name two mtu 65520 netns "$two"
    within $one ip addr add 10.9.0.1/24 dev one; within $one ip link set one up
    within $two ip addr add 10.9.0.2/24 dev two; within $two ip link set two up
    echo $one"#;

/// Works of a client with the standard MTU of the program: a title, the unit, arguments behind the address. More is better but in µs
/// and percents.
const WORKS: [(&str, &str, &str, &[u64]); 13] = [
    ("outward, 1 connection", "Gb/s", "out", &[1, BYTES]),
    ("outward, 4 connections", "Gb/s", "out", &[4, BYTES]),
    ("outward, 16 connections", "Gb/s", "out", &[16, BYTES]),
    ("outward, 64 connections", "Gb/s", "out", &[64, BYTES]),
    ("inward, 1 connection", "Gb/s", "in", &[1, BYTES]),
    ("inward, 4 connections", "Gb/s", "in", &[4, BYTES]),
    ("inward, 16 connections", "Gb/s", "in", &[16, BYTES]),
    ("inward, 64 connections", "Gb/s", "in", &[64, BYTES]),
    ("one byte there and back", "µs", "echo", &[5000]),
    ("new connections, one after the other", "a second", "connect", &[2000, 1]),
    ("new connections, eight at a time", "a second", "connect", &[1000, 8]),
    ("datagrams of 1,400 bytes that arrive", "1,000 a second", "datagrams", &[2000, 0]),
    ("datagrams lost of 20,000 a second", "%", "datagrams", &[2000, 20_000]),
];
/// The same with the MTU of Ethernet.
const NARROW_WORKS: [(&str, &str, &str, &[u64]); 2] = [
    ("outward, 1 connection, MTU 1500", "Gb/s", "out", &[1, BYTES]),
    ("inward, 1 connection, MTU 1500", "Gb/s", "in", &[1, BYTES]),
];
/// Works of a client on the host, to a published port.
const PUBLISHED: [(&str, &str, &str, &[u64]); 4] = [
    ("to a published port, 1 connection", "Gb/s", "out", &[1, BYTES]),
    ("from a published port, 1 connection", "Gb/s", "in", &[1, BYTES]),
    ("published port, one byte there and back", "µs", "echo", &[5000]),
    ("published port, new connections, one after the other", "a second", "connect", &[2000, 1]),
];

/// Starts a container, finds the newest helper and measures it: `e` is the engine, `$helper` the pattern of the helper's command line,
/// `$to` the server, the arguments what `run` is told.
const BEGIN: &str = r#"set -e
id=$(e run -d "$@" sleep 600); trap 'e rm -f -t 0 $id >/dev/null' EXIT
sleep 1; pid=$(pgrep -u "$(id -u)" -n -f "$helper")
cpu() { sed 's/.*) //' "/proc/$pid/stat" | awk '{print ($12 + $13) * 10}'; }
resident() { awk '/^VmRSS/ {print $2}' "/proc/$pid/status"; }
switches() { cat /proc/$pid/task/*/status | awk '/ctxt_switches/ {n += $2} END {print n}'; }"#;
/// What is measured so: a title, the unit, the script.
const COSTS: [(&str, &str, &str); 5] = [
    (
        "processor time of the helper for 4 GiB outward",
        "ms",
        "a=$(cpu); e exec $id /load load out $to 1 4294967296 >&2; b=$(cpu); echo took $((b - a))",
    ),
    (
        "processor time of the helper for 4 GiB inward",
        "ms",
        "a=$(cpu); e exec $id /load load in $to 1 4294967296 >&2; b=$(cpu); echo took $((b - a))",
    ),
    ("memory of the helper, idle", "KiB", "echo took $(resident)"),
    ("wake-ups of the helper in 10 s, idle", "number", "a=$(switches); sleep 10; b=$(switches); echo took $((b - a))"),
    (
        "memory of the helper with 10,000 connections",
        "KiB",
        r#"e exec -d $id sh -c "/load load hold $to 10000 >/held 2>&1"
        n=0; until e exec $id grep -q . /held; do n=$((n + 1)); [ $n -lt 120 ] || exit 1; sleep .5; done
        [ "$(e exec $id cat /held)" = "held 10000" ]; echo took $(resident)"#,
    ),
];

/// Makes a command line of an engine's that ends before its first word.
type Begun<'a> = Box<dyn Fn() -> Command + 'a>;

/// Who runs a container behind which program.
struct Engine<'a> {
    name: &'static str,
    command: Begun<'a>,
    /// Options of `run`: with the standard MTU, and with that of Ethernet.
    options: [&'static [&'static str]; 2],
    /// The host as the container sees it.
    host: IpAddr,
    /// A pattern of the helper's command line.
    helper: &'static str,
}

impl Engine<'_> {
    /// `run` with the options, which has the client.
    fn run(&self, narrow: bool, words: &[&str]) -> Fallible<Command> {
        let mut run = (self.command)();
        let volume = format!("{}:{LOAD}:ro", std::env::current_exe()?.display());
        run.arg("run").args(self.options[usize::from(narrow)]).args(["--ulimit", "nofile=20000:20000", "-v", &volume]);
        run.args(words);
        Ok(run)
    }
}

/// The host's address that a container may reach: asking the routing table sends no packet.
fn address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    match socket.local_addr().ok()? {
        SocketAddr::V4(address) => Some(*address.ip()),
        SocketAddr::V6(_) => None,
    }
}

fn engines(ground: &Ground, here: IpAddr) -> Fallible<Vec<Engine<'_>>> {
    output(sublet(ground).args(["network", "create", "-o", "mtu=1500", NARROW]))?;
    let mut engines = vec![Engine {
        name: "sublet",
        command: Box::new(|| sublet(ground)),
        options: [&[], &["--network", NARROW]],
        host: here,
        helper: "^sublet-net",
    }];
    if which("podman").is_none() {
        return Ok(engines);
    }
    if which("pasta").is_some() {
        engines.push(Engine {
            name: "podman (pasta)",
            command: Box::new(|| podman(ground)),
            options: [&["--network", "pasta"], &["--network", "pasta:--mtu,1500"]],
            // Pasta gives the container the host's own address, so the host has another one there.
            host: PASTA_HOST.parse()?,
            helper: "^[^ ]*pasta",
        });
    }
    if which("slirp4netns").is_some() {
        engines.push(Engine {
            name: "podman (slirp4netns)",
            command: Box::new(|| podman(ground)),
            options: [&["--network", "slirp4netns"], &["--network", "slirp4netns:mtu=1500"]],
            host: here,
            helper: "^[^ ]*slirp4netns",
        });
    }
    Ok(engines)
}

/// The number that a client of ours prints.
fn measured(side: Side, unit: &'static str) -> Side {
    side.valued(unit, |said| said.lines().next()?.parse().ok())
}

/// The client's own arguments.
fn client(program: &str, kind: &str, to: SocketAddr, numbers: &[u64]) -> Vec<String> {
    let words = [program.to_owned(), "load".to_owned(), kind.to_owned(), to.to_string()];
    words.into_iter().chain(numbers.iter().map(u64::to_string)).collect()
}

pub fn sides(ground: &Ground) -> Fallible<Vec<Side>> {
    if !ground.has_debian {
        return Err("there is no Debian image for the client".into());
    }
    load::raise_descriptors()?;
    let here = IpAddr::V4(address().ok_or("this machine has no route out")?);
    let server = Server::start(SocketAddr::new(here, 0))?.address;
    let debian = image(ground, "debian");
    output(sublet(ground).args(["pull", &debian]))?;
    if which("podman").is_some() {
        output(podman(ground).args(["pull", "--tls-verify=false", &debian]))?;
    }
    let engines = engines(ground, here)?;
    let mut sides = Vec::new();
    for engine in &engines {
        sides.push(Side::timed("nothing", engine.name, engine.run(false, &["--rm", &debian, "echo", "done"])?));
    }
    let works = WORKS.iter().map(|work| (work, false)).chain(NARROW_WORKS.iter().map(|work| (work, true)));
    for ((work, unit, kind, numbers), narrow) in works {
        for engine in &engines {
            let mut run = engine.run(narrow, &["--rm", &debian])?;
            run.args(client(LOAD, kind, SocketAddr::new(engine.host, server.port()), numbers));
            sides.push(measured(Side::timed(work, engine.name, run), unit));
        }
        sides.push(measured(Side::timed(work, "host sockets", on_host(kind, server, numbers)?), unit));
    }
    published(&mut sides, &engines, &debian, server)?;
    costs(&mut sides, &engines, &debian, server)?;
    between(&mut sides, ground, &debian)?;
    Ok(sides)
}

/// The client without a container.
fn on_host(kind: &str, to: SocketAddr, numbers: &[u64]) -> Fallible<Command> {
    let words = client(&std::env::current_exe()?.to_string_lossy(), kind, to, numbers);
    Ok(command(&words[0], &words[1..]))
}

/// From the host to a server in a container, by the loopback address.
fn published(sides: &mut Vec<Side>, engines: &[Engine<'_>], debian: &str, server: SocketAddr) -> Fallible<()> {
    let mut to = Vec::new();
    for (port, engine) in (5001..).zip(engines) {
        let publish = format!("127.0.0.1:{port}:5000");
        output(&mut engine.run(false, &["-d", "-p", &publish, debian, LOAD, "load", "serve", "5000"])?)?;
        to.push((engine.name, SocketAddr::from(([127, 0, 0, 1], port))));
    }
    to.push(("host sockets", server));
    for (work, unit, kind, numbers) in PUBLISHED {
        for (name, address) in &to {
            sides.push(measured(Side::timed(work, name, on_host(kind, *address, numbers)?), unit));
        }
    }
    Ok(())
}

/// What the programs between the networks take.
fn costs(sides: &mut Vec<Side>, engines: &[Engine<'_>], debian: &str, server: SocketAddr) -> Fallible<()> {
    for (work, unit, script) in COSTS {
        for engine in engines {
            let by = (engine.command)();
            let words = std::iter::once(by.get_program()).chain(by.get_args());
            let words: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
            let run = engine.run(false, &[debian])?;
            let to = SocketAddr::new(engine.host, server.port());
            let script = format!(
                "e() {{ {} \"$@\"; }}\nhelper='{}' to={to}\n{BEGIN}\n{script}\necho done",
                words.join(" "),
                engine.helper
            );
            let mut whole = command("sh", ["-c", &script, "sh"]);
            // Those of `run`: what precedes it is the engine's own.
            whole.args(run.get_args().skip_while(|word| *word != "run").skip(1));
            sides.push(Side::timed(work, engine.name, whole).valued(unit, told).times(Some(3)));
        }
    }
    Ok(())
}

/// From one container to another on a network that both have.
fn between(sides: &mut Vec<Side>, ground: &Ground, debian: &str) -> Fallible<()> {
    let program = std::env::current_exe()?;
    let volume = format!("{}:{LOAD}:ro", program.display());
    let mut engines: Vec<(&str, Begun<'_>)> = vec![("sublet", Box::new(|| sublet(ground)))];
    if which("podman").is_some() && Path::new(NETAVARK).exists() {
        engines.push(("podman (netavark)", Box::new(|| podman(ground))));
    }
    // The commands by which each side runs a client, and where its server is.
    let mut clients: Vec<(&str, Command, SocketAddr)> = Vec::new();
    for (name, engine) in engines {
        output(engine().args(["network", "create", "bench"]))?;
        for (container, words) in [("sink", &[LOAD, "load", "serve", "5000"][..]), ("source", &["sleep", "3600"])] {
            let mut run = engine();
            run.args(["run", "-d", "--name", container, "--network", "bench", "-v", &volume, debian]);
            output(run.args(words))?;
        }
        let format = "{{.NetworkSettings.Networks.bench.IPAddress}}";
        let address = output(engine().args(["inspect", "-f", format, "sink"]))?;
        let mut exec = engine();
        exec.args(["exec", "source", LOAD]);
        clients.push((name, exec, SocketAddr::new(address.trim().parse()?, 5000)));
    }
    if which("nsenter").is_some() && which("ip").is_some() {
        let one = output(Command::new("bash").args(["-c", VETH]).env("LOAD", &program))?;
        let mut enter = command("nsenter", ["--target", one.trim(), "--user", "--net", "--preserve-credentials"]);
        enter.arg(&program);
        clients.push(("veth without containers", enter, SocketAddr::from(([10, 9, 0, 2], 5000))));
    }
    for (work, unit, kind, numbers) in [
        ("between two containers, 1 connection", "Gb/s", "out", [1, BETWEEN].as_slice()),
        ("between two containers, one byte there and back", "µs", "echo", &[5000]),
    ] {
        for (name, by, to) in &clients {
            let mut whole = command(by.get_program(), by.get_args());
            whole.args(&client(LOAD, kind, *to, numbers)[1..]);
            sides.push(measured(Side::timed(work, name, whole), unit));
        }
    }
    Ok(())
}
