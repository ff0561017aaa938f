//! The DNS server over TCP (RFC 7766): names of ours are answered, everything else is handed to a resolver.
//!
//! Such a flow begins without a socket of the host's. What the container writes stays here until it is a question; one about
//! a name of ours is answered from the table, and others may follow. The first about another name makes the flow an ordinary
//! one: a connection to the resolver is opened under its number and gets the question, and nothing of the flow is here any
//! more. A client that asks it before it has taken the answers to the others finds the connection closed, and asks again.
//!
//! The functions stand for those of [`Host`] of the same names, for all flows: most have nothing here. A flow that finds no
//! place is connected to the resolver from the beginning. To a container that has rules for what it may reach (`egress`) other
//! questions are refused here, and it is not connected.

use std::net::{IpAddr, SocketAddr};

use crate::config::Tables;
use crate::dns::{failure, own_answer_to, refusal};
use crate::stack::FlowId;
use crate::{Config, Host, Peek, SocketError, Wrote};

/// Flows that are served at a time.
const PLACES: usize = 16;
/// The longest question.
const QUESTION_MAX: usize = 4096;
/// The length in front of each message (RFC 1035 §4.2.2).
const PREFIX: usize = 2;
/// Answers that the container may leave unread.
const ANSWERS_MAX: usize = 64 << 10;

/// The flows that are served.
#[derive(Debug)]
pub(crate) struct Streams {
    served: Vec<Stream>,
    /// Flows for which there is something to read.
    news: Vec<FlowId>,
}

#[derive(Debug)]
struct Stream {
    id: FlowId,
    /// Written by the container and not answered yet; [`PREFIX`] and [`QUESTION_MAX`] at most.
    asked: Vec<u8>,
    /// Not yet acknowledged by the container.
    answers: Vec<u8>,
    /// The container's address.
    asker: IpAddr,
    resolver: Option<SocketAddr>,
    /// Whether the connection to the resolver has been begun.
    connecting: bool,
    /// Whether no resolver is asked.
    restricted: bool,
    /// Whether no further question is answered.
    ended: bool,
}

impl Streams {
    pub fn new() -> Self {
        Streams { served: Vec::with_capacity(PLACES), news: Vec::with_capacity(PLACES) }
    }

    pub fn has_room(&self) -> bool {
        self.served.len() < PLACES
    }

    /// Serves a flow from now on.
    pub fn begin(&mut self, id: FlowId, asker: IpAddr, resolver: Option<SocketAddr>, restricted: bool) {
        let (asked, answers) = (Vec::new(), Vec::new());
        self.served.push(Stream { id, asked, answers, asker, resolver, connecting: false, restricted, ended: false });
    }

    /// A flow for which there is something to read, each once.
    pub fn next_news(&mut self) -> Option<FlowId> {
        self.news.pop()
    }

    fn find(&mut self, id: FlowId) -> Option<&mut Stream> {
        self.served.iter_mut().find(|stream| stream.id == id)
    }

    fn forget(&mut self, id: FlowId) {
        self.served.retain(|stream| stream.id != id);
        self.news.retain(|news| *news != id);
    }

    /// The flow's socket can be written: if it was awaited, it gets the question.
    pub fn socket_writable<H: Host>(&mut self, host: &mut H, id: FlowId) {
        let Some(stream) = self.find(id).filter(|stream| stream.connecting) else { return };
        let asked = Wrote::Taken(stream.asked.len());
        if host.tcp_connected(id).is_ok() && host.tcp_write(id, &stream.asked) == asked {
            if stream.ended {
                host.tcp_shutdown(id);
            }
            return self.forget(id);
        }
        host.close(id, true);
        stream.fail();
        self.news.push(id);
    }

    pub fn tcp_connected<H: Host>(&mut self, host: &mut H, id: FlowId) -> Result<(), SocketError> {
        if self.find(id).is_some() { Ok(()) } else { host.tcp_connected(id) }
    }

    pub fn tcp_peek<H: Host>(&mut self, host: &mut H, id: FlowId, offset: usize, buffer: &mut [u8]) -> Peek {
        let Some(stream) = self.find(id) else { return host.tcp_peek(id, offset, buffer) };
        let rest = stream.answers.get(offset..).unwrap_or_default();
        match rest.len().min(buffer.len()) {
            0 if stream.ended && !stream.connecting => Peek::End,
            0 => Peek::Nothing,
            count => {
                buffer[..count].copy_from_slice(&rest[..count]);
                Peek::Data(count)
            }
        }
    }

    pub fn tcp_consume<H: Host>(&mut self, host: &mut H, id: FlowId, count: usize) -> bool {
        let Some(stream) = self.find(id) else { return host.tcp_consume(id, count) };
        stream.answers.drain(..count.min(stream.answers.len()));
        true
    }

    pub fn tcp_write<H: Host>(&mut self, host: &mut H, id: FlowId, bytes: &[u8], config: &Config) -> Wrote {
        let Some(stream) = self.find(id) else { return host.tcp_write(id, bytes) };
        let mut taken = 0;
        while taken < bytes.len() && !stream.connecting {
            let room = PREFIX + QUESTION_MAX - stream.asked.len();
            let part = &bytes[taken..bytes.len().min(taken + room)];
            stream.asked.extend_from_slice(part);
            taken += part.len();
            stream.answer(host, config.tables(stream.asker));
        }
        if !stream.answers.is_empty() || stream.ended {
            self.news.push(id);
        }
        Wrote::Taken(taken)
    }

    pub fn tcp_room<H: Host>(&mut self, host: &mut H, id: FlowId) -> u32 {
        if self.find(id).is_some() { QUESTION_MAX as u32 } else { host.tcp_room(id) }
    }

    pub fn tcp_shutdown<H: Host>(&mut self, host: &mut H, id: FlowId) {
        let Some(stream) = self.find(id) else { return host.tcp_shutdown(id) };
        stream.ended = true;
        self.news.push(id);
    }

    pub fn close<H: Host>(&mut self, host: &mut H, id: FlowId, reset: bool) {
        self.forget(id);
        host.close(id, reset);
    }
}

impl Stream {
    /// Answers the questions that are complete, or begins the connection to the resolver.
    fn answer<H: Host>(&mut self, host: &mut H, tables: Tables<'_>) {
        while let Some((prefix, rest)) = self.asked.split_first_chunk::<PREFIX>().filter(|_| !self.ended) {
            let length = usize::from(u16::from_be_bytes(*prefix));
            if length <= QUESTION_MAX && rest.len() < length {
                return;
            }
            // One that is too long is no question about a name of ours.
            let question = rest.get(..length);
            let own = question.and_then(|question| own_answer_to(question, tables));
            let own = own.or_else(|| question.filter(|_| self.restricted).and_then(refusal));
            match own {
                Some(answer) if self.answers.len() < ANSWERS_MAX => {
                    self.push(&answer);
                    self.asked.drain(..PREFIX + length);
                }
                None if self.answers.is_empty() && !self.restricted => return self.hand_over(host),
                _ => self.ended = true,
            }
        }
        if self.ended {
            self.asked.clear();
        }
    }

    fn hand_over<H: Host>(&mut self, host: &mut H) {
        self.connecting = self.resolver.is_some_and(|resolver| host.tcp_connect(self.id, resolver).is_ok());
        if !self.connecting {
            self.fail();
        }
    }

    /// Tells that the question cannot be answered, and ends.
    fn fail(&mut self) {
        let length = self.asked.first_chunk::<PREFIX>().map_or(0, |prefix| usize::from(u16::from_be_bytes(*prefix)));
        if let Some(answer) = self.asked.get(PREFIX..PREFIX + length).and_then(failure) {
            self.push(&answer);
        }
        self.asked.clear();
        (self.connecting, self.ended) = (false, true);
    }

    fn push(&mut self, answer: &[u8]) {
        self.answers.extend_from_slice(&(answer.len() as u16).to_be_bytes());
        self.answers.extend_from_slice(answer);
    }
}
