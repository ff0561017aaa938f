//! Reading events: those that were, and those that come.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base::{Kind, Report};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::Engine;
use crate::events::{Event, Filter};
use crate::file::failed;
use crate::paths::make_dir;
use crate::rotated::Reader;

/// How long is waited where the kernel gives no watch.
const WITHOUT_WATCH: Duration = Duration::from_millis(100);

/// Which events are wanted.
#[derive(Clone, Debug, Default)]
pub struct EventsRequest {
    /// Those that were since then; with neither it is those that come.
    pub since: Option<SystemTime>,
    /// Those that were, and that come, until then; `None` is without end.
    pub until: Option<SystemTime>,
    /// Of these those.
    pub filter: Filter,
}

/// Hands events to `take` in order, until the end of what is wanted or `take` fails.
pub fn events(
    engine: &Engine,
    request: &EventsRequest,
    mut take: impl FnMut(&Event) -> io::Result<()>,
) -> Result<(), Report> {
    engine.paths().make_run()?;
    let directory = engine.paths().events();
    make_dir(&directory)?;
    let step = |error| failed("reading events in", &directory, error);
    // Before the first look: nothing is missed in between.
    let watch = watch(&directory)?;
    let is_only_new = request.since.is_none() && request.until.is_none();
    let mut reader = Reader::at_tail(&directory, is_only_new.then_some(0)).map_err(step)?;
    loop {
        // What is written after it was asked has not been.
        let is_over = request.until.is_some_and(|until| until <= SystemTime::now());
        while let Some(line) = reader.next().map_err(step)? {
            let Ok(event) = serde_json::from_slice::<Event>(&line) else { continue };
            let time = UNIX_EPOCH + Duration::from_nanos(event.time_ns);
            let is_in =
                request.since.is_none_or(|since| time >= since) && request.until.is_none_or(|until| time <= until);
            if is_in && request.filter.takes(&event) {
                take(&event).map_err(|error| Report::of(Kind::Internal, error))?;
            }
        }
        if is_over {
            return Ok(());
        }
        wait(watch.as_ref(), request.until)?;
    }
}

/// `None` where the caller has as many as the kernel gives.
fn watch(directory: &std::path::Path) -> Result<Option<Inotify>, Report> {
    let inotify = match Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK) {
        Err(Errno::EMFILE) => return Ok(None),
        inotify => inotify.map_err(|errno| Report::of(Kind::Internal, errno).with_step("inotify_init1()"))?,
    };
    match inotify
        .add_watch(directory, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_FROM)
    {
        Ok(_) => Ok(Some(inotify)),
        Err(Errno::ENOSPC) => Ok(None),
        Err(errno) => Err(failed("watching", directory, errno.into())),
    }
}

/// Waits for a change, and not beyond the end.
fn wait(watch: Option<&Inotify>, until: Option<SystemTime>) -> Result<(), Report> {
    let left =
        until.map(|until| until.duration_since(SystemTime::now()).unwrap_or_default() + Duration::from_millis(1));
    let limit = match (left, watch) {
        (left, None) => Some(left.map_or(WITHOUT_WATCH, |left| left.min(WITHOUT_WATCH))),
        (left, Some(_)) => left,
    };
    // One that is longer than can be said is waited for in parts.
    let timeout = limit.map_or(PollTimeout::NONE, |limit| PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX));
    let mut fds: Vec<PollFd<'_>> = watch.iter().map(|watch| PollFd::new(watch.as_fd(), PollFlags::POLLIN)).collect();
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(Report::of(Kind::Internal, errno).with_step("poll(inotify)")),
    }
    match watch.map(Inotify::read_events) {
        None | Some(Ok(_) | Err(Errno::EAGAIN)) => Ok(()),
        Some(Err(errno)) => Err(Report::of(Kind::Internal, errno).with_step("read(inotify)")),
    }
}
