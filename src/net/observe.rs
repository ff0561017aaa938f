//! Looking at a container's traffic: what an observer and the network process say to each other, over a socket of their own
//! that the monitor has handed to the process for one container. One SEQPACKET message each; an observer sees that container
//! only. The end of the socket is the end of the container's network, or of the observer.
//!
//! Who does not read holds nobody up: a table waits where it was, and of a capture frames are dropped and counted.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use sys::{Call, SysError};

use crate::NetError;

/// What an observer asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// The flows that there are now, and the last ones that were refused, in parts up to [`Answer::End`].
    Flows,
    /// [`Answer::Traffic`].
    Traffic,
    /// The frames from now on, as [`Answer::Captured`], up to [`Answer::Ended`].
    Capture {
        /// Bytes of each frame that are wanted at most.
        snaplen: u32,
        /// The capture ends after so many.
        count: Option<u64>,
    },
    /// The end of a capture.
    Stop,
}

/// A flow of the container's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// Who began it.
    pub source: SocketAddr,
    /// Who was called, as the container sees it.
    pub destination: SocketAddr,
    /// Of TCP the state of the container's end, else whether there has been an answer; of one that was not begun the reason.
    pub state: String,
    /// Bytes that the container has sent.
    pub sent: u64,
    /// Bytes that it has received.
    pub received: u64,
    /// How long there has been this flow, in microseconds, or since it was refused.
    pub age_us: u64,
}

/// What the container has had since it is in the network, at the gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Frames that it has sent.
    pub sent_frames: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames that it has received.
    pub received_frames: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Flows for which there was no room.
    pub refused: u64,
    /// Flows, and questions for names, that its rules do not allow.
    #[serde(default)]
    pub prohibited: u64,
    /// Flows that there are now.
    pub flows: u32,
}

/// What it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// A part of the table of flows.
    Flows(Vec<Flow>),
    /// The end of that.
    End,
    /// The traffic up to now.
    Traffic(Traffic),
    /// Records of a pcap file, in any pieces.
    #[serde(skip)]
    Captured(Vec<u8>),
    /// The end of a capture.
    Ended {
        /// Frames that were told of.
        frames: u64,
        /// Frames that were not, as nobody took those before.
        dropped: u64,
    },
}

/// The first byte of records, which no JSON begins with.
pub(crate) const RECORDS: u8 = 0;
/// The most bytes of records in one message.
pub(crate) const RECORDS_MAX: usize = 32 << 10;
/// The longest message.
const MESSAGE_MAX: usize = 64 << 10;
/// How long the process may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// The length of the header of a record.
pub(crate) const RECORD: usize = 16;

/// The header of a pcap file of Ethernet frames with times in microseconds, in the byte order of this machine.
pub fn pcap_header(snaplen: u32) -> [u8; 24] {
    let mut header = [0; 24];
    header[..4].copy_from_slice(&0xa1b2_c3d4_u32.to_ne_bytes());
    header[4..6].copy_from_slice(&2_u16.to_ne_bytes());
    header[6..8].copy_from_slice(&4_u16.to_ne_bytes());
    header[16..20].copy_from_slice(&snaplen.to_ne_bytes());
    header[20..].copy_from_slice(&1_u32.to_ne_bytes());
    header
}

/// The header of a frame's record, of which so many bytes follow.
pub(crate) fn record_header(since_epoch: Duration, captured: usize, length: usize) -> [u8; RECORD] {
    let mut header = [0; RECORD];
    let fields = [since_epoch.as_secs() as u32, since_epoch.subsec_micros(), captured as u32, length as u32];
    for (place, field) in header.chunks_exact_mut(4).zip(fields) {
        place.copy_from_slice(&field.to_ne_bytes());
    }
    header
}

/// Reads a question; `None` for one that this build does not know, which is passed over.
pub(crate) fn question(bytes: &[u8]) -> Option<Question> {
    serde_json::from_slice(bytes).ok()
}

/// An observer's end of the socket.
#[derive(Debug)]
pub struct Observer {
    socket: OwnedFd,
}

impl Observer {
    /// An observer, and what its container's monitor is to be given.
    pub fn new() -> Result<(Self, OwnedFd), NetError> {
        let (socket, theirs) = sys::socket::pair()?;
        Ok((Observer { socket }, theirs))
    }

    /// Asks for something.
    pub fn ask(&self, question: Question) -> Result<(), NetError> {
        let bytes = serde_json::to_vec(&question).map_err(NetError::Protocol)?;
        Ok(sys::socket::send(self.socket.as_fd(), &bytes, &[])?)
    }

    /// The next answer; `None` at the end of the container's network. Blocks.
    pub fn next(&self) -> Result<Option<Answer>, NetError> {
        let mut buffer = vec![0; MESSAGE_MAX];
        let (length, _) = sys::socket::receive(self.socket.as_fd(), &mut buffer)?;
        Ok(match &buffer[..length] {
            [] => None,
            [RECORDS, records @ ..] => Some(Answer::Captured(records.to_vec())),
            message => Some(serde_json::from_slice(message).map_err(NetError::Protocol)?),
        })
    }

    /// The same for an answer that does not depend on what the container does.
    fn answer(&self) -> Result<Option<Answer>, NetError> {
        let limit = PollTimeout::try_from(ANSWER_LIMIT).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], limit).call(|| "poll(network)".to_owned())? == 0 {
            return Err(SysError::new("answer of the network process", Errno::ETIMEDOUT).into());
        }
        self.next()
    }

    /// The flows that there are now; none where the container's network has ended.
    pub fn flows(&self) -> Result<Vec<Flow>, NetError> {
        let mut flows = Vec::new();
        if gone(self.ask(Question::Flows))? {
            return Ok(flows);
        }
        while let Some(Answer::Flows(part)) = self.answer()? {
            flows.extend(part);
        }
        Ok(flows)
    }

    /// The traffic up to now; `None` where the container's network has ended.
    pub fn traffic(&self) -> Result<Option<Traffic>, NetError> {
        if gone(self.ask(Question::Traffic))? {
            return Ok(None);
        }
        Ok(match self.answer()? {
            Some(Answer::Traffic(traffic)) => Some(traffic),
            _ => None,
        })
    }
}

impl AsFd for Observer {
    /// Becomes readable when [`Observer::next`] would not block.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether nobody is there any more to be asked.
fn gone(asked: Result<(), NetError>) -> Result<bool, NetError> {
    match asked {
        Err(NetError::System(error)) if [Errno::EPIPE, Errno::ECONNRESET].contains(&error.errno()) => Ok(true),
        asked => asked.map(|()| false),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_is_no_question_is_none() {
        for bytes in [&b""[..], b"\0", b"{}", b"\"Flow\"", b"{\"Capture\":{}}"] {
            assert_eq!(question(bytes), None, "{bytes:?}");
        }
        assert_eq!(question(b"\"Flows\""), Some(Question::Flows));
    }

    #[test]
    fn answers_survive_the_wire() {
        let (observer, theirs) = Observer::new().unwrap();
        sys::socket::send(theirs.as_fd(), &[RECORDS, 1, 2], &[]).unwrap();
        assert_eq!(observer.next().unwrap(), Some(Answer::Captured(vec![1, 2])));
        let ended = Answer::Ended { frames: 3, dropped: 4 };
        sys::socket::send(theirs.as_fd(), &serde_json::to_vec(&ended).unwrap(), &[]).unwrap();
        assert_eq!(observer.next().unwrap(), Some(ended));
        drop(theirs);
        assert_eq!(observer.next().unwrap(), None);
        assert_eq!(observer.flows().unwrap(), []);
        assert_eq!(observer.traffic().unwrap(), None);
    }
}
