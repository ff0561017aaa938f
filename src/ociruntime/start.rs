//! `start`.

use std::time::{Duration, Instant};

use base::{Context, Kind, Report};
use runtime::channel::Message;
use runtime::hooks;

use crate::create::list;
use crate::log::Log;
use crate::state::{Root, Status};

/// How long an exec may take from the first descriptor that it closes to the last; it is microseconds.
const LIMIT: Duration = Duration::from_secs(1);

/// Lets init become the payload, and runs the poststart hooks.
pub fn start(root: &Root, id: &str, log: &Log) -> Result<u8, Report> {
    let container = root.load(id)?;
    match container.status() {
        Status::Created => {}
        status => {
            let message = format!("cannot start container {id:?} in the state {}", status.word());
            return Err(Report::new(Kind::Conflict, message));
        }
    }
    let init = container.place.knock().step(|| format!("starting container {id}"))?;
    sys::step();
    init.send(&Message::Go, None)?;
    sys::step();
    match init.receive()? {
        Some((Message::Ready, _)) => {}
        _ => return Err(Report::new(Kind::Conflict, format!("container {id:?} has been started by another command"))),
    }
    sys::step();
    // The end of the socket is the exec, or a death that the state will show.
    while let Some((message, _)) = init.receive()? {
        match message {
            Message::Failed(failure) => return Err(failure.into()),
            Message::Notice(text) => log.warn(&text),
            _ => {}
        }
    }
    // The exec closes the socket and the lock in an order of its own, and who asks for the state next must not find the
    // container still waiting (buildah gives up then).
    let until = Instant::now() + LIMIT;
    while container.place.is_held() && Instant::now() < until {
        std::thread::sleep(Duration::from_micros(50));
    }
    sys::step();
    let spec = container.place.spec()?;
    if let Some(poststart) = spec.hooks().as_ref().map(|hooks| list(hooks.poststart().as_ref())) {
        let state = container.state(&spec, Status::Running);
        hooks::run("poststart", poststart, &state, &container.record.bundle)?;
    }
    sys::step();
    Ok(0)
}
