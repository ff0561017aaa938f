//! A relay before the registry that counts what it passes to the client, and can stop in the middle.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::shell::Fallible;

/// How often is looked whether the gate has been reached, or opened again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How long a client may take to get there.
const LIMIT: Duration = Duration::from_mins(2);

/// The relay; it lives as long as the process.
#[derive(Clone)]
pub struct Gate {
    /// Where clients find it: `127.0.0.1:port`.
    pub address: String,
    counts: Arc<Counts>,
}

struct Counts {
    passed: AtomicU64,
    limit: AtomicU64,
}

impl Gate {
    /// A gate before the server at this address.
    pub fn before(server: &str) -> Fallible<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let counts = Arc::new(Counts { passed: AtomicU64::new(0), limit: AtomicU64::new(u64::MAX) });
        let gate = Gate { address, counts: counts.clone() };
        let server = server.to_owned();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (server, counts) = (server.clone(), counts.clone());
                // A connection that ends shows in the result of its client.
                thread::spawn(move || relay(&client, &server, &counts).ok());
            }
        });
        Ok(gate)
    }

    /// The bytes that clients got since the count began.
    pub fn passed_bytes(&self) -> u64 {
        self.counts.passed.load(Ordering::Relaxed)
    }

    /// Runs a client until it has got so many bytes, kills it with all its children, and begins a new count.
    pub fn kill_after(&self, client: &mut Command, bytes: u64) -> Fallible<()> {
        self.counts.passed.store(0, Ordering::Relaxed);
        self.counts.limit.store(bytes, Ordering::Relaxed);
        let mut child =
            client.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let began = Instant::now();
        while self.passed_bytes() < bytes && began.elapsed() < LIMIT && child.try_wait()?.is_none() {
            thread::sleep(LOOK_AGAIN);
        }
        let reached = self.passed_bytes() >= bytes;
        // What is under way arrives.
        thread::sleep(Duration::from_millis(200));
        killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL)?;
        child.wait()?;
        self.counts.passed.store(0, Ordering::Relaxed);
        self.counts.limit.store(u64::MAX, Ordering::Relaxed);
        if reached { Ok(()) } else { Err("the client ended before it was to be killed".into()) }
    }
}

fn relay(client: &TcpStream, server: &str, counts: &Counts) -> io::Result<()> {
    let server = TcpStream::connect(server)?;
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = io::copy(&mut &*client, &mut &server);
            // The client is gone; so the other direction ends too.
            server.shutdown(std::net::Shutdown::Both)
        });
        let passed = pass(&server, client, counts);
        let _ = client.shutdown(std::net::Shutdown::Both);
        passed
    })
}

fn pass(mut server: &TcpStream, mut client: &TcpStream, counts: &Counts) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = server.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        while counts.passed.load(Ordering::Relaxed) >= counts.limit.load(Ordering::Relaxed) {
            thread::sleep(LOOK_AGAIN);
        }
        client.write_all(&buffer[..length])?;
        counts.passed.fetch_add(length as u64, Ordering::Relaxed);
    }
}
