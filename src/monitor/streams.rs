//! The streams of one supervised process: what it writes goes to the log and to the clients bound to it, what they
//! send goes to its standard input.
//!
//! Back-pressure: a client has a queue; while any queue is over [`QUEUE_HIGH`] the process's output is not read, so a
//! slow reader slows the writer (as a pipe does) and memory stays bounded. A client that goes away frees it at once. One that has
//! joined what others have started, or that others have joined, and takes nothing for [`STALL`] is let go.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use sys::terminal::WindowSize;

use crate::log::Stream;
use crate::protocol::{DATA_MAX, Frame, set_nonblocking};

/// Above this many queued bytes a client holds the process's output back.
const QUEUE_HIGH: usize = 1 << 20;
/// Above this many bytes waiting for the process's standard input, clients are not read.
const INPUT_HIGH: usize = 256 << 10;

/// How long a client may take nothing while others wait for it.
const STALL: Duration = Duration::from_secs(10);

/// A client connection.
#[derive(Debug)]
pub struct Client {
    /// The connection; non-blocking.
    pub socket: OwnedFd,
    queue: VecDeque<Vec<u8>>,
    queued: usize,
    /// The process it is bound to, by key.
    pub bound: Option<u64>,
    /// Whether it has joined a process that was there already.
    pub joined: bool,
    /// Whether it feeds the standard input.
    pub feeds: bool,
    /// When it last took a frame.
    taken: Instant,
    /// It has ended, or is to end when its queue is empty.
    pub closing: bool,
}

impl Client {
    /// Takes a connection over.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&socket)?;
        Ok(Client {
            socket,
            queue: VecDeque::new(),
            queued: 0,
            bound: None,
            joined: false,
            feeds: false,
            taken: Instant::now(),
            closing: false,
        })
    }

    /// Queues a frame and sends what the socket takes now.
    pub fn send(&mut self, frame: &Frame) {
        let bytes = frame.encode();
        self.queued += bytes.len();
        self.queue.push_back(bytes);
        self.flush();
    }

    /// Sends what the socket takes; a broken connection ends the client.
    pub fn flush(&mut self) {
        while let Some(bytes) = self.queue.front() {
            match sys::socket::send(self.socket.as_fd(), bytes, &[]) {
                Ok(()) => {
                    self.queued -= bytes.len();
                    self.queue.pop_front();
                    self.taken = Instant::now();
                }
                Err(error) if error.errno() == sys::Errno::EAGAIN => return,
                Err(_) => {
                    self.queue.clear();
                    self.queued = 0;
                    self.closing = true;
                }
            }
        }
    }

    /// Whether frames wait for the socket.
    pub fn waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Whether the process must be held back for this client.
    pub fn full(&self) -> bool {
        self.queued > QUEUE_HIGH
    }

    /// Until when the process is held back for a client that takes nothing, if others wait for it.
    pub fn patience(&self) -> Option<Instant> {
        self.full().then(|| self.taken + STALL)
    }

    /// Ends the client with this word alone; what it has not read is lost to it.
    pub fn let_go(&mut self, word: &Frame) {
        self.queue.clear();
        self.queued = 0;
        self.send(word);
        (self.bound, self.closing) = (None, true);
    }
}

/// Where a process's output goes beside the clients.
pub trait Sink {
    /// Takes bytes of a stream.
    fn write(&mut self, stream: Stream, bytes: &[u8]);
    /// The stream has ended.
    fn finish(&mut self, stream: Stream);
}

/// The monitor's ends of a process's standard streams.
#[derive(Debug, Default)]
pub struct Streams {
    /// Standard output, or the terminal's master.
    pub output: Option<File>,
    /// Standard error; none with a terminal.
    pub error: Option<File>,
    input: Option<File>,
    terminal: bool,
    pending: VecDeque<u8>,
    input_ended: bool,
}

impl Streams {
    /// Pipes: the read ends of output and error, the write end of input where it stays open.
    pub fn pipes(output: Option<OwnedFd>, error: Option<OwnedFd>, input: Option<OwnedFd>) -> io::Result<Self> {
        for fd in [&output, &error, &input].into_iter().flatten() {
            set_nonblocking(fd)?;
        }
        let file = |fd: Option<OwnedFd>| fd.map(File::from);
        Ok(Streams { output: file(output), error: file(error), input: file(input), ..Streams::default() })
    }

    /// A terminal has come: it carries input and output both.
    pub fn set_terminal(&mut self, master: OwnedFd) -> io::Result<()> {
        set_nonblocking(&master)?;
        let master = File::from(master);
        self.input = Some(master.try_clone()?);
        self.output = Some(master);
        self.terminal = true;
        Ok(())
    }

    /// Sets the terminal's size, if there is one.
    pub fn resize(&self, size: WindowSize) {
        if let (true, Some(master)) = (self.terminal, &self.output) {
            // The terminal may have hung up meanwhile.
            let _ = sys::terminal::set_window_size(master.as_fd(), size);
        }
    }

    /// Queues bytes for the standard input and writes what it takes.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.input.is_some() && !self.input_ended {
            self.pending.extend(bytes);
            self.flush_input();
        }
    }

    /// The standard input ends after what is queued. A terminal has no end: its user types one, and may come back.
    pub fn end_input(&mut self) {
        self.input_ended = !self.terminal;
        self.flush_input();
    }

    /// Writes what the standard input takes.
    pub fn flush_input(&mut self) {
        let Some(input) = &mut self.input else { return };
        while !self.pending.is_empty() {
            match input.write(self.pending.as_slices().0) {
                Ok(length) => drop(self.pending.drain(..length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // The reader is gone; what it did not want is lost, as with a pipe.
                    self.pending.clear();
                    self.input = None;
                    return;
                }
            }
        }
        if self.input_ended {
            self.input = None;
        }
    }

    /// The standard input when bytes wait for it.
    pub fn input_waiting(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().filter(|_| !self.pending.is_empty()).map(AsFd::as_fd)
    }

    /// Whether clients should not be read now, as their input would pile up.
    pub fn input_full(&self) -> bool {
        self.pending.len() > INPUT_HIGH
    }

    /// Whether both outputs have ended.
    pub fn ended(&self) -> bool {
        self.output.is_none() && self.error.is_none()
    }

    /// Reads one of the outputs once; the bytes go to `sink` and `clients`. Returns whether there was anything.
    pub fn pump(&mut self, stream: Stream, sink: Option<&mut dyn Sink>, clients: &mut [&mut Client]) -> bool {
        let slot = match stream {
            Stream::Stdout => &mut self.output,
            Stream::Stderr => &mut self.error,
        };
        let Some(file) = slot else { return false };
        let mut buffer = vec![0; DATA_MAX];
        match file.read(&mut buffer) {
            Ok(length) if length > 0 => {
                let bytes = &buffer[..length];
                if let Some(sink) = sink {
                    sink.write(stream, bytes);
                }
                for client in clients {
                    client.send(&match stream {
                        Stream::Stdout => Frame::Output(bytes.to_vec()),
                        Stream::Stderr => Frame::ErrorOutput(bytes.to_vec()),
                    });
                }
                true
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => false,
            // The end; a terminal whose last holder is gone answers EIO.
            _ => {
                *slot = None;
                if let Some(sink) = sink {
                    sink.finish(stream);
                }
                false
            }
        }
    }
}
