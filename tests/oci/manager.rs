//! A systemd of our own, as far as it keeps scopes, at the end of a socket: as slow as a test wants it.
//!
//! Bus and manager are one: names are answered for, and a job's end is told to whoever began it. A scope is a cgroup beside
//! our own, and goes with its last process. Of the D-Bus specification ("Message Protocol") there is what the calls need, in
//! the machine's byte order, which the client's first byte says.

use std::fs;
use std::io::{BufRead, BufReader, Error, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{Home, skip};

/// The manager's name on the bus.
const SENDER: &str = ":1.2";
/// What a message is.
const METHOD_RETURN: u8 = 2;
const SIGNAL: u8 = 4;
/// A header's field.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const REPLY_SERIAL: u8 = 5;
const FROM: u8 = 7;
const SIGNATURE: u8 = 8;

/// A manager that answers until the test program ends.
pub struct Systemd {
    /// For `DBUS_SESSION_BUS_ADDRESS`.
    pub address: String,
}

/// What the connections share.
struct Manager {
    /// Where scopes are made.
    directory: PathBuf,
    /// How long each job takes.
    delay: Duration,
    scopes: Mutex<Vec<PathBuf>>,
}

impl Systemd {
    /// Starts it, each of its jobs taking so long; `None` (and the skip is noted) where a test may make no cgroups.
    pub fn start(home: &Home, delay: Duration) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").expect("/proc is mounted");
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let directory = Path::new("/sys/fs/cgroup").join(own).parent().map(Path::to_owned).unwrap_or_default();
        let probe = directory.join(format!("probe-{}", std::process::id()));
        if own.is_empty() || fs::create_dir(&probe).is_err() {
            skip("no cgroup v2 that the caller may write");
            return None;
        }
        fs::remove_dir(probe).expect("it is empty");
        let socket = home.directory.join("run/bus");
        let listener = UnixListener::bind(&socket).expect("the home is ours");
        let manager = Arc::new(Manager { directory, delay, scopes: Mutex::default() });
        let sweeper = Arc::clone(&manager);
        std::thread::spawn(move || sweeper.sweep());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let manager = Arc::clone(&manager);
                // A client may be killed in the middle of a message, which ends its thread.
                std::thread::spawn(move || drop(manager.serve(stream)));
            }
        });
        Some(Systemd { address: format!("unix:path={}", socket.display()) })
    }
}

impl Manager {
    /// Removes scopes without processes.
    fn sweep(&self) {
        loop {
            let empty = |scope: &PathBuf| {
                let events = fs::read_to_string(scope.join("cgroup.events"));
                events.map_or(true, |events| events.contains("populated 0") && fs::remove_dir(scope).is_ok())
            };
            self.scopes.lock().expect("no test panics with it").retain(|scope| !empty(scope));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn serve(&self, stream: UnixStream) -> Result<(), Error> {
        let mut output = stream.try_clone()?;
        let mut input = BufReader::new(stream);
        authenticate(&mut input, &mut output)?;
        let mut unit = String::new();
        loop {
            let call = Call::read(&mut input)?;
            let mut body = Body::default();
            let mut job = None;
            match call.member.as_str() {
                "Hello" => body.text("s", ":1.1"),
                "GetNameOwner" => body.text("s", SENDER),
                "StartTransientUnit" => {
                    unit = call.text();
                    let scope = self.directory.join(&unit);
                    fs::create_dir(&scope)?;
                    fs::write(scope.join("cgroup.procs"), call.pid().to_string())?;
                    self.scopes.lock().expect("no test panics with it").push(scope);
                    job = Some("/org/freedesktop/systemd1/job/1");
                }
                "StopUnit" => {
                    unit = call.text();
                    job = Some("/org/freedesktop/systemd1/job/2");
                }
                "GetUnit" => {
                    unit = call.text();
                    body.text("o", "/org/freedesktop/systemd1/unit/one");
                }
                "Get" => {
                    let place = self.directory.join(&unit);
                    let place = Path::new("/").join(place.strip_prefix("/sys/fs/cgroup").unwrap_or(&place));
                    body.variant(&place.display().to_string());
                }
                _ => {}
            }
            if let Some(job) = job {
                body.text("o", job);
            }
            write(&mut output, METHOD_RETURN, Some(call.serial), &body)?;
            if let Some(job) = job {
                std::thread::sleep(self.delay);
                let mut body = Body::default();
                body.number("u", 1);
                body.text("o", job);
                body.text("s", &unit);
                body.text("s", "done");
                write(&mut output, SIGNAL, None, &body)?;
            }
        }
    }
}

/// The D-Bus specification, "Authentication Protocol".
fn authenticate(input: &mut impl BufRead, output: &mut impl Write) -> Result<(), Error> {
    loop {
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Err(Error::other("the client has gone"));
        }
        match line.trim_matches(['\0', '\r', '\n']).split(' ').next() {
            Some("AUTH") => output.write_all(b"OK 0123456789abcdef0123456789abcdef\r\n")?,
            Some("NEGOTIATE_UNIX_FD") => output.write_all(b"AGREE_UNIX_FD\r\n")?,
            Some("BEGIN") => return Ok(()),
            _ => output.write_all(b"ERROR\r\n")?,
        }
    }
}

/// A method call.
struct Call {
    serial: u32,
    member: String,
    body: Vec<u8>,
}

impl Call {
    fn read(input: &mut impl Read) -> Result<Self, Error> {
        let mut head = [0; 16];
        input.read_exact(&mut head)?;
        let fields = number(&head, 12).next_multiple_of(8);
        let mut rest = vec![0; fields + number(&head, 4)];
        input.read_exact(&mut rest)?;
        let body = rest.split_off(fields);
        let mut member = String::new();
        let (mut at, end) = (0, number(&head, 12));
        while at < end {
            at = at.next_multiple_of(8);
            // The code, and a signature of one letter: its length, itself, a zero.
            let (code, kind) = (rest[at], rest[at + 2]);
            at += 4;
            match kind {
                b's' | b'o' => {
                    let text = text(&rest, at);
                    at += 4 + text.len() + 1;
                    if code == MEMBER {
                        member = text;
                    }
                }
                b'g' => at += 1 + usize::from(rest[at]) + 1,
                _ => at += 4,
            }
        }
        Ok(Call { serial: number(&head, 8) as u32, member, body })
    }

    /// The first argument.
    fn text(&self) -> String {
        text(&self.body, 0)
    }

    /// The one of the property `PIDs`, an array of numbers in a variant.
    fn pid(&self) -> usize {
        let name = b"PIDs\0\x02au\0";
        let at = self.body.windows(name.len()).position(|bytes| bytes == name).expect("a scope has a process");
        number(&self.body, (at + name.len()).next_multiple_of(4) + 4)
    }
}

fn number(bytes: &[u8], at: usize) -> usize {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
}

fn text(bytes: &[u8], at: usize) -> String {
    String::from_utf8_lossy(&bytes[at + 4..at + 4 + number(bytes, at)]).into_owned()
}

/// Values one after another, and their signature.
#[derive(Default)]
struct Body {
    signature: String,
    bytes: Vec<u8>,
}

impl Body {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    fn number(&mut self, signature: &str, value: u32) {
        self.align(4);
        self.signature += signature;
        self.bytes.extend(value.to_ne_bytes());
    }

    fn text(&mut self, signature: &str, text: &str) {
        self.number(signature, text.len() as u32);
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    fn variant(&mut self, value: &str) {
        self.bytes.extend(b"\x01s\0");
        self.text("", value);
        self.signature += "v";
    }

    /// One of a header's fields.
    fn field(&mut self, code: u8, signature: u8) -> &mut Self {
        self.align(8);
        self.bytes.extend([code, 1, signature, 0]);
        self
    }
}

/// Writes a reply, or the one signal that there is.
fn write(output: &mut impl Write, kind: u8, reply_to: Option<u32>, body: &Body) -> Result<(), Error> {
    let mut fields = Body::default();
    if let Some(serial) = reply_to {
        fields.field(REPLY_SERIAL, b'u').number("", serial);
    } else {
        fields.field(PATH, b'o').text("", "/org/freedesktop/systemd1");
        fields.field(INTERFACE, b's').text("", "org.freedesktop.systemd1.Manager");
        fields.field(MEMBER, b's').text("", "JobRemoved");
    }
    fields.field(FROM, b's').text("", SENDER);
    if !body.signature.is_empty() {
        fields.field(SIGNATURE, b'g').bytes.push(body.signature.len() as u8);
        fields.bytes.extend(body.signature.as_bytes());
        fields.bytes.push(0);
    }
    let endian = if cfg!(target_endian = "little") { b'l' } else { b'B' };
    let mut message = vec![endian, kind, 0, 1];
    message.extend((body.bytes.len() as u32).to_ne_bytes());
    // Nobody answers to it.
    message.extend(1_u32.to_ne_bytes());
    message.extend((fields.bytes.len() as u32).to_ne_bytes());
    fields.align(8);
    message.extend(&fields.bytes);
    message.extend(&body.bytes);
    output.write_all(&message)
}
