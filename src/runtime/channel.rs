//! The messages between stage, init and monitor: one SEQPACKET datagram each, JSON, with at most one descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use base::{Explain, Failure, Kind, Report};
use serde::{Deserialize, Serialize};

/// The largest message; a failure's text is cut to fit.
const MAX_MESSAGE: usize = 64 << 10;
/// The most lines of a failure.
const LINES_MAX: usize = 16;

/// From stage and init to the monitor, and `Go` back.
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// Init exists; carries its pidfd.
    Init {
        /// Its pid in the monitor's pid namespace.
        pid: i32,
    },
    /// The helper of a bundle has made its user namespace and waits for its maps, and then for `Go`.
    Unmapped,
    /// The TAP device of the container's network; carries its descriptor.
    Tap {
        /// Whether the container has IPv6.
        ipv6: bool,
    },
    /// The container's network namespace is ready for devices that others put there; carries it.
    Network,
    /// The container's terminal; carries the master.
    Console,
    /// A step down a ladder, for the user.
    Notice(String),
    /// The listener of a filter that the role notify serves; carries it.
    Listener,
    /// The mounts are made and the root directory is still the host's: the time of the runtime's hooks; init waits for
    /// `Go`.
    Mounted,
    /// Everything is set up; init waits for `Go`. At the gate: this client's `Go` was the first; carries
    /// [`Gate::notify`](crate::init::payload::Gate::notify).
    Ready,
    /// Init may become the payload. The end of the channel then says that it has.
    Go,
    /// A step failed; the sender ends.
    Failed(Failure),
}

/// One end of the channel.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// The two ends of a new channel.
    pub fn pair() -> Result<(Channel, Channel), ChannelError> {
        let (one, other) = sys::socket::pair()?;
        Ok((Channel(one), Channel(other)))
    }

    /// Sends a message, with a descriptor where its kind carries one.
    pub fn send(&self, message: &Message, fd: Option<BorrowedFd<'_>>) -> Result<(), ChannelError> {
        let bytes = serde_json::to_vec(message)?;
        sys::socket::send(self.0.as_fd(), &bytes, fd.as_slice())?;
        Ok(())
    }

    /// Receives a message; `None` at the end of the channel.
    pub fn receive(&self) -> Result<Option<(Message, Option<OwnedFd>)>, ChannelError> {
        // Most are short, and fresh pages for the longest one cost more than to ask how long this one is.
        let mut buffer = vec![0; sys::socket::next_length(self.0.as_fd())?.min(MAX_MESSAGE)];
        let (length, mut fds) = sys::socket::receive(self.0.as_fd(), &mut buffer)?;
        if length == 0 {
            return Ok(None);
        }
        Ok(Some((serde_json::from_slice(&buffer[..length])?, fds.pop())))
    }

    /// Reports a failure as the last message of its sender. What cannot be sent has no reader left.
    pub fn fail(&self, report: &Report) {
        let mut failure = Failure::from(report);
        failure.lines.truncate(LINES_MAX);
        failure.lines.iter_mut().chain(&mut failure.hint).for_each(|line| cut(line, MAX_MESSAGE / LINES_MAX));
        let _ = self.send(&Message::Failed(failure), None);
    }

    /// Tells the user about a step down a ladder. A monitor that is gone needs no notice.
    pub fn notice(&self, text: impl Into<String>) {
        let mut text = text.into();
        cut(&mut text, MAX_MESSAGE);
        let _ = self.send(&Message::Notice(text), None);
    }
}

/// Cuts a text of a message to what fits into so many bytes with its neighbours, whatever it consists of: JSON makes six bytes
/// of a control character.
fn cut(text: &mut String, bytes: usize) {
    let end = text.char_indices().nth(bytes / 8).map_or(text.len(), |(end, _)| end);
    text.truncate(end);
}

impl From<OwnedFd> for Channel {
    fn from(fd: OwnedFd) -> Self {
        Channel(fd)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A message could not be sent, received or understood.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket failed.
    #[error("the channel between monitor and container failed")]
    Socket(#[from] sys::SysError),
    /// The bytes are no message of ours.
    #[error("the channel between monitor and container carried a message that cannot be read")]
    Format(#[from] serde_json::Error),
}

impl Explain for ChannelError {
    fn kind(&self) -> Kind {
        Kind::Internal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_any_length_arrive() {
        let (one, other) = Channel::pair().expect("a socket pair");
        for character in ["x", "\u{1}", "\u{10ffff}"] {
            one.notice(character.repeat(MAX_MESSAGE));
            let notice = other.receive().expect("it fits");
            assert!(matches!(notice, Some((Message::Notice(text), _)) if text.starts_with(character)));
            let mut report = Report::new(Kind::Internal, character.repeat(MAX_MESSAGE));
            for _ in 0..2 * LINES_MAX {
                report = report.with_step(character.repeat(MAX_MESSAGE));
            }
            one.fail(&report.with_hint(character.repeat(MAX_MESSAGE)));
            let failure = other.receive().expect("it fits");
            assert!(matches!(failure, Some((Message::Failed(failure), _)) if failure.lines.len() == LINES_MAX));
        }
    }
}
