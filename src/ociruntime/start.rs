//! `start`.
//!
//! A container whose start fails once init has its word can run no more. Where a hook has failed it is ended and removed,
//! and the poststop hooks run: the specification has it so ("Lifecycle", steps 7 and 9). One whose command could not be
//! executed, or whose init was killed meanwhile, has stopped and stays until it is deleted, as with runc and crun.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use base::{Context, Kind, Report};
use runtime::channel::Message;
use runtime::hooks;
use sys::process::{has_executed, wait_end};

use crate::create::list;
use crate::delete;
use crate::log::Log;
use crate::notify::Proxy;
use crate::state::{Container, Root, Status};

/// How long an exec may take from the first descriptor that it closes to the last; it is microseconds.
const LIMIT: Duration = Duration::from_secs(1);

/// Starts a container; where a service manager waits for it, until it is ready.
pub fn start(root: &Root, id: &str, log: &Log) -> Result<u8, Report> {
    // Now, as the payload may be ready and have ended before all is done.
    let init = root.load(id)?.init();
    let notify = begin(root, id, log)?;
    if let Some((notify, (pid, init))) = notify.zip(init) {
        notify.wait(init.as_fd(), pid, log)?;
    }
    Ok(0)
}

/// Lets init become the payload, and runs the poststart hooks. The answer is what the payload may notify by.
pub fn begin(root: &Root, id: &str, log: &Log) -> Result<Option<Proxy>, Report> {
    let container = root.load(id)?;
    match container.status() {
        Status::Created => {}
        status => {
            let message = format!("cannot start container {id:?} in the state {}", status.word());
            return Err(Report::new(Kind::Conflict, message));
        }
    }
    // From GO on another command may delete the container, which is no failure of its start.
    let spec = container.place.spec()?;
    let init = container.place.knock().step(|| format!("starting container {id}"))?;
    sys::step();
    init.send(&Message::Go, None)?;
    sys::step();
    let notify = match init.receive()? {
        Some((Message::Ready, notify)) => Proxy::new(notify, log),
        _ => return Err(Report::new(Kind::Conflict, format!("container {id:?} has been started by another command"))),
    };
    sys::step();
    let mut failed = None;
    while let Some((message, _)) = init.receive()? {
        match message {
            Message::Failed(failure) => failed = Some(Report::from(failure)),
            Message::Notice(text) => log.warn(&text),
            _ => {}
        }
    }
    if let Some(report) = failed {
        if let Some((_, init)) = container.init() {
            // It ends with a code, which who waits for it is to see.
            wait_end(init.as_fd(), Some(LIMIT));
        }
        let stays = matches!(report.kind(), Kind::CommandNotFound | Kind::CommandNotExecutable);
        return Err(if stays { report } else { ended(&container, report, log) });
    }
    // The end of the socket was the exec, or a death. Of one that is reaped already nothing can be told.
    let pid = container.record.init.as_ref().map_or(0, |init| init.pid);
    if has_executed(pid).is_ok_and(|executed| !executed) {
        let message = format!("init of container {id:?} was killed before it executed the command");
        return Err(Report::new(Kind::Internal, message));
    }
    // The exec closes the socket and the lock in an order of its own, and who asks for the state next must not find the
    // container still waiting (buildah gives up then).
    let until = Instant::now() + LIMIT;
    while container.place.is_held() && Instant::now() < until {
        std::thread::sleep(Duration::from_micros(50));
    }
    sys::step();
    log.debug(|| format!("container {id} has executed its command"));
    if let Some(poststart) = spec.hooks().as_ref().map(|hooks| list(hooks.poststart().as_ref())) {
        let state = container.state(&spec, Status::Running);
        if let Err(report) = hooks::run("poststart", poststart, &state, &container.record.bundle) {
            return Err(ended(&container, report, log));
        }
    }
    sys::step();
    Ok(notify)
}

/// Ends the life of a container whose start has failed; why it has is the answer.
fn ended(container: &Container, why: Report, log: &Log) -> Report {
    // What resists is met again by `delete --force`.
    if let Err(report) = delete::remove(container, log) {
        log.warn(&report.lines().join(": "));
    }
    why
}
