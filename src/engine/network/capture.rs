//! Writing a container's frames to a pcap file. The network process keeps what is not taken at once, up to a bound, and counts
//! what it drops then.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use base::{Kind, Report};
use monitor::client::block_signals;
use net::NetError;
use net::observe::{Answer, Observer, Question, pcap_header};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use runtime::signals;
use sys::SysError;

use crate::network::observe::Sight;

/// What is to be captured.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Bytes of each frame.
    pub snaplen: u32,
    /// How many frames.
    pub count: Option<u64>,
    /// How long.
    pub duration: Option<Duration>,
}

/// What ends the wait for more.
enum Next {
    Answer(Answer),
    /// The time is over, or a signal that ends programs has come.
    Enough,
    /// The container's network has ended.
    Ended,
}

/// Writes the frames from now on until there are enough, the time is over, or a signal that ends programs comes: how many that
/// were, and how many were dropped; `None` where the container's network has ended. The caller has one thread.
pub fn capture(sight: &Sight, wanted: Wanted, output: &mut dyn Write) -> Result<Option<(u64, u64)>, Report> {
    let observer = &sight.observer;
    // What was captured until then is whole.
    block_signals()?;
    let signals = signals::open(&signals::ending())?;
    let Wanted { snaplen, count, duration } = wanted;
    write(output, &pcap_header(snaplen))?;
    observer.ask(Question::Capture { snaplen, count }).map_err(NetError::into_report)?;
    let mut until = duration.map(|duration| Instant::now() + duration);
    let mut stopped = false;
    loop {
        match wait(observer, Some(&signals).filter(|_| !stopped), until)? {
            Next::Answer(Answer::Captured(records)) => write(output, &records)?,
            Next::Answer(Answer::Ended { frames, dropped }) => return Ok(Some((frames, dropped))),
            Next::Answer(_) => {}
            Next::Enough => {
                (stopped, until) = (true, None);
                observer.ask(Question::Stop).map_err(NetError::into_report)?;
            }
            Next::Ended => return Ok(None),
        }
    }
}

fn write(output: &mut dyn Write, bytes: &[u8]) -> Result<(), Report> {
    let written = output.write_all(bytes).and_then(|()| output.flush());
    written.map_err(|error| Report::of(Kind::Denied, error).with_step("writing the capture".to_owned()))
}

fn wait(observer: &Observer, signals: Option<&SignalFd>, until: Option<Instant>) -> Result<Next, Report> {
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![PollFd::new(observer.as_fd(), PollFlags::POLLIN)];
        fds.extend(signals.map(|signals| PollFd::new(signals.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(SysError::new("poll(network)", errno).into()),
            Ok(_) => {}
        }
        let is_ready = |place: usize| fds.get(place).is_some_and(|fd| fd.any().unwrap_or(false));
        if is_ready(1) || until.is_some_and(|until| until <= Instant::now()) {
            return Ok(Next::Enough);
        }
        if is_ready(0) {
            return Ok(observer.next().map_err(NetError::into_report)?.map_or(Next::Ended, Next::Answer));
        }
    }
}
