//! Who looks at members' traffic: their sockets, tables that are being told, and captures.
//!
//! Nobody waits for an observer. What its socket does not take now is kept: of a table the number of the next flow, of a
//! capture up to [`BUFFER`] bytes of records. Without a capture a frame costs one look at an empty list.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use netstack::{FlowId, Protocol, Stack};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use crate::host::Sockets;
use crate::observe::{Answer, Flow, Question, RECORD, RECORDS, RECORDS_MAX, Traffic, question, record_header};
use crate::role::OBSERVER;

/// Observers at a time.
const OBSERVERS_MAX: usize = 32;
/// Bytes of records that wait for an observer.
const BUFFER: usize = 4 << 20;
/// Flows in one message: each takes less than 300 bytes.
const PART: usize = 100;
/// Messages that are sent before others get their turn.
const BURST: usize = 64;
/// The longest question.
const QUESTION_MAX: usize = 256;

/// Whose frames a capture takes.
#[derive(Clone, Copy, Debug)]
pub struct Whose {
    /// The number of the connection that has the container.
    pub member: u64,
    /// Its IPv4 address.
    pub address: Ipv4Addr,
    /// Its MAC, where others have frames here too.
    pub mac: Option<[u8; 6]>,
}

/// Frames that an observer wants.
#[derive(Debug)]
pub struct Capture {
    observer: u64,
    mac: Option<[u8; 6]>,
    snaplen: usize,
    /// How many frames are still wanted.
    left: u64,
    records: VecDeque<u8>,
    frames: u64,
    dropped: u64,
}

impl Capture {
    /// Takes a frame, which comes in two parts and without a vnet header.
    pub fn take(&mut self, head: &[u8], body: &[u8]) {
        let is = |mac| head.get(..6) == Some(mac) || head.get(6..12) == Some(mac);
        if self.left == 0 || self.mac.as_ref().is_some_and(|mac| !is(&mac[..])) {
            return;
        }
        let length = head.len() + body.len();
        let captured = length.min(self.snaplen);
        if self.records.len() + RECORD + captured > BUFFER {
            self.dropped += 1;
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.records.extend(record_header(now, captured, length));
        let head = &head[..head.len().min(captured)];
        self.records.extend(head);
        self.records.extend(&body[..captured - head.len()]);
        self.frames += 1;
        self.left -= 1;
    }
}

#[derive(Debug)]
struct Observer {
    socket: OwnedFd,
    whose: Whose,
    /// The flow from which on the table is to be told.
    telling: Option<FlowId>,
    /// Whether its socket took nothing more.
    full: bool,
}

/// All observers, by numbers that are not used again.
#[derive(Debug, Default)]
pub struct Observers {
    all: BTreeMap<u64, Observer>,
    next: u64,
}

/// How a message went.
enum Sent {
    Taken,
    Full,
    /// There is nobody any more.
    Gone,
}

fn send(socket: &OwnedFd, bytes: &[u8]) -> Sent {
    match sys::socket::send_now(socket.as_fd(), bytes) {
        Ok(()) => Sent::Taken,
        Err(error) if error.errno() == Errno::EAGAIN => Sent::Full,
        Err(_) => Sent::Gone,
    }
}

fn tell(socket: &OwnedFd, answer: &Answer) -> Sent {
    // What cannot be written is nothing of ours; an empty message would be the end.
    serde_json::to_vec(answer).map_or(Sent::Gone, |bytes| send(socket, &bytes))
}

impl Observers {
    /// Adds one; where there are too many its socket is closed.
    pub fn add(&mut self, socket: OwnedFd, whose: Whose, epoll: &Epoll) {
        if self.all.len() >= OBSERVERS_MAX {
            return;
        }
        self.next += 1;
        if epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, OBSERVER | self.next)).is_ok() {
            self.all.insert(self.next, Observer { socket, whose, telling: None, full: false });
        }
    }

    /// Forgets those of a member that has left.
    pub fn forget(&mut self, member: u64, sockets: &mut Sockets) {
        self.all.retain(|_, observer| observer.whose.member != member);
        let left = &self.all;
        sockets.captures.retain(|capture| left.contains_key(&capture.observer));
    }

    fn remove(&mut self, number: u64, sockets: &mut Sockets) {
        self.all.remove(&number);
        sockets.captures.retain(|capture| capture.observer != number);
    }

    /// One has asked for something, has gone, or takes more.
    pub fn on_event(&mut self, number: u64, events: EpollFlags, stack: &Stack, sockets: &mut Sockets) {
        let Some(observer) = self.all.get_mut(&number) else { return };
        if events.contains(EpollFlags::EPOLLOUT) {
            observer.full = false;
        }
        if !events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            return;
        }
        let mut buffer = [0; QUESTION_MAX];
        let asked = match sys::socket::receive(observer.socket.as_fd(), &mut buffer) {
            Ok((length @ 1.., _)) => question(&buffer[..length]),
            _ => return self.remove(number, sockets),
        };
        match asked {
            Some(Question::Flows) => observer.telling = Some(FlowId(0)),
            Some(Question::Traffic) => {
                let traffic = stack.traffic(observer.whose.address.into()).unwrap_or_default();
                // Who asks again without having read the answers has enough of them.
                let _ = tell(&observer.socket, &Answer::Traffic(traffic.into()));
            }
            Some(Question::Capture { snaplen, count }) => {
                sockets.captures.retain(|capture| capture.observer != number);
                sockets.captures.push(Capture {
                    observer: number,
                    mac: observer.whose.mac,
                    snaplen: snaplen as usize,
                    left: count.unwrap_or(u64::MAX),
                    records: VecDeque::with_capacity(BUFFER),
                    frames: 0,
                    dropped: 0,
                });
            }
            Some(Question::Stop) => {
                sockets.captures.iter_mut().filter(|it| it.observer == number).for_each(|capture| capture.left = 0);
            }
            None => {}
        }
    }

    /// Tells all who take it what there is; whether somebody who does has more to be told.
    pub fn tell(&mut self, now_us: u64, stack: &Stack, sockets: &mut Sockets) -> bool {
        let (mut gone, mut more) = (Vec::new(), false);
        for (number, observer) in &mut self.all {
            let was_full = observer.full;
            let capture = sockets.captures.iter_mut().find(|capture| capture.observer == *number);
            let Some(ended) = observer.tell(now_us, stack, capture) else {
                gone.push(*number);
                continue;
            };
            if ended {
                sockets.captures.retain(|capture| capture.observer != *number);
            }
            let waits = sockets.captures.iter().any(|it| it.observer == *number && it.waits());
            more |= !observer.full && (observer.telling.is_some() || waits);
            if observer.full != was_full {
                let mut flags = EpollFlags::EPOLLIN;
                flags.set(EpollFlags::EPOLLOUT, observer.full);
                let event = &mut EpollEvent::new(flags, OBSERVER | number);
                if sockets.epoll().modify(&observer.socket, event).is_err() {
                    gone.push(*number);
                }
            }
        }
        for number in gone {
            self.remove(number, sockets);
        }
        more
    }
}

impl Capture {
    /// Whether there is something to be told.
    fn waits(&self) -> bool {
        !self.records.is_empty() || self.left == 0
    }
}

impl Observer {
    /// Tells what there is, up to a limit; whether the capture has been told to its end, or `None` when there is nobody.
    fn tell(&mut self, now_us: u64, stack: &Stack, capture: Option<&mut Capture>) -> Option<bool> {
        let mut left = BURST;
        while let Some(from) = self.telling.filter(|_| !self.full && left > 0) {
            left -= 1;
            let (flows, next) = part(now_us, stack, from, self.whose.address);
            let answer = if flows.is_empty() { Answer::End } else { Answer::Flows(flows) };
            match tell(&self.socket, &answer) {
                Sent::Taken => self.telling = if answer == Answer::End { None } else { Some(next) },
                Sent::Full => self.full = true,
                Sent::Gone => return None,
            }
        }
        let Some(capture) = capture else { return Some(false) };
        while capture.waits() && !self.full && left > 0 {
            left -= 1;
            let ended = capture.records.is_empty();
            let sent = if ended {
                tell(&self.socket, &Answer::Ended { frames: capture.frames, dropped: capture.dropped })
            } else {
                let count = capture.records.len().min(RECORDS_MAX);
                let message: Vec<u8> =
                    [RECORDS].into_iter().chain(capture.records.iter().copied().take(count)).collect();
                let sent = send(&self.socket, &message);
                if matches!(sent, Sent::Taken) {
                    capture.records.drain(..count);
                }
                sent
            };
            match sent {
                Sent::Taken if ended => return Some(true),
                Sent::Taken => {}
                Sent::Full => self.full = true,
                Sent::Gone => return None,
            }
        }
        Some(false)
    }
}

/// A part of the table of a member's flows, and the number from which on the next one begins.
fn part(now_us: u64, stack: &Stack, from: FlowId, member: Ipv4Addr) -> (Vec<Flow>, FlowId) {
    let (mut flows, mut next) = (Vec::new(), from);
    while let Some((FlowId(number), flow)) = stack.next_flow(now_us, next).filter(|_| flows.len() < PART) {
        next = FlowId(number + 1);
        if stack.is_of(flow.container.ip(), member) {
            flows.push(flow.into());
        }
    }
    (flows, next)
}

impl From<netstack::Flow> for Flow {
    fn from(flow: netstack::Flow) -> Self {
        let (source, destination) =
            if flow.inward { (flow.remote, flow.container) } else { (flow.container, flow.remote) };
        let protocol = match flow.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Icmp => "icmp",
        };
        Flow {
            protocol: protocol.to_owned(),
            source,
            destination,
            state: flow.state.to_owned(),
            sent: flow.from_container,
            received: flow.to_container,
            age_us: flow.age_us,
        }
    }
}

impl From<netstack::Traffic> for Traffic {
    fn from(traffic: netstack::Traffic) -> Self {
        Traffic {
            sent_frames: traffic.from_frames,
            sent_bytes: traffic.from_bytes,
            received_frames: traffic.to_frames,
            received_bytes: traffic.to_bytes,
            refused: traffic.refused,
            prohibited: traffic.prohibited,
            flows: traffic.flows,
        }
    }
}
