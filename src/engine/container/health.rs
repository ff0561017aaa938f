//! Health checks: what is asked for, what the monitor makes of it, and a probe that is asked for now.

use std::os::fd::AsFd;
use std::time::Duration;

use base::{ContainerId, Kind, Report};
use monitor::client::{self, ClientError};
use monitor::health::Check;
use oci::HealthCheck;

use crate::Engine;
use crate::container::exec::not_running;
use crate::container::lock::dial;
use crate::container::record::{Record, load};
use crate::container::state::{Life, condition};
use crate::container::{spec, start};

/// Docker's, where nothing is said.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u64 = 3;

/// What runs a line where the image names no shell.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// Docker's bounds, in its words.
pub(crate) fn check(check: &HealthCheck) -> Result<(), Report> {
    const SHORTEST_NS: u64 = 1_000_000;
    for (name, span_ns) in [
        ("Interval", check.interval_ns),
        ("Timeout", check.timeout_ns),
        ("StartPeriod", check.start_period_ns),
        ("StartInterval", check.start_interval_ns),
    ] {
        if (1..SHORTEST_NS).contains(&span_ns) {
            return Err(Report::new(Kind::Usage, format!("{name} in Healthcheck cannot be less than 1ms")));
        }
    }
    Ok(())
}

/// The words to execute; `None` where there is no check, or one of a kind that nobody knows, as in Docker.
fn command(record: &Record) -> Option<Vec<String>> {
    let check = record.settings.health_check.as_ref()?;
    let (kind, words) = check.test.split_first()?;
    match kind.as_str() {
        "CMD" => Some(words.to_vec()),
        "CMD-SHELL" => {
            let shell = &record.settings.shell;
            let shell = if shell.is_empty() { SHELL.map(str::to_owned).to_vec() } else { shell.clone() };
            Some([shell.as_slice(), words].concat())
        }
        _ => None,
    }
}

/// How the monitor is to probe a container.
pub(crate) fn probes(engine: &Engine, record: &Record) -> Result<Option<Check>, Report> {
    let (Some(words), Some(check)) = (command(record), &record.settings.health_check) else { return Ok(None) };
    let mut process = spec::process_of(engine, record, false)?;
    process.set_args(Some(words));
    let or = |span_ns: u64, default: Duration| if span_ns == 0 { default } else { Duration::from_nanos(span_ns) };
    Ok(Some(Check {
        process,
        user: start::user(record, &record.settings.user),
        interval: or(check.interval_ns, INTERVAL),
        timeout: or(check.timeout_ns, TIMEOUT),
        start_period: Duration::from_nanos(check.start_period_ns),
        start_interval: or(check.start_interval_ns, START_INTERVAL),
        retries: if check.retries == 0 { RETRIES } else { check.retries },
    }))
}

/// Probes a running container now, and records it as any other probe; the probe's code, 0 for healthy.
pub fn run(engine: &Engine, id: &ContainerId) -> Result<i32, Report> {
    let record = load(engine, id)?;
    if command(&record).is_none() {
        return Err(Report::new(Kind::Conflict, format!("container {id} has no defined healthcheck")));
    }
    let condition = condition(engine, id)?;
    if !matches!(condition.life, Life::Running { .. }) || condition.is_paused() {
        return Err(not_running(id));
    }
    let socket = dial(engine, id).map_err(|error| match error {
        ClientError::NoMonitor { .. } => Report::from(error)
            .with_step(format!("container {id} runs, but its monitor was killed, and only that could probe it")),
        error => error.into(),
    })?;
    client::probe(socket.as_fd())
}
