//! Hooks of the runtime specification (config.md, "POSIX-platform Hooks"): programs that are run beside a container's life.
//!
//! A hook reads the container's state on its standard input, has the environment that the configuration gives it and no
//! other, and inherits standard output, standard error and no further descriptor (but for a bundle that is made for
//! hooks). One that outlives its timeout is killed with its whole process group. One whose runtime is killed is killed too:
//! nothing waits for it any more, and the hooks of a removal would run beside it.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base::{Context, Kind, Report};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, write};
use oci_spec::runtime::Hook;
use serde::Serialize;
use sys::process::{is_directory, kill_with_caller, pidfd_open};
use sys::{Call, SysError};

/// The version of the specification that the state speaks.
pub const VERSION: &str = "1.2.1";

/// The state of a container as the specification's section "State" has it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State<'a> {
    /// [`VERSION`].
    pub oci_version: &'a str,
    /// The container's id.
    pub id: &'a str,
    /// `creating`, `created`, `running`, `stopped`, or our `paused`.
    pub status: &'a str,
    /// As whoever reads the state sees it; 0 once it is stopped.
    pub pid: i32,
    /// Absolute.
    pub bundle: &'a Path,
    /// Of the configuration.
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub annotations: std::collections::BTreeMap<&'a str, &'a str>,
}

/// Runs the hooks of one kind in their order; the first that fails ends it.
pub fn run(kind: &str, hooks: &[Hook], state: &State<'_>, directory: &Path) -> Result<(), Report> {
    if hooks.is_empty() {
        return Ok(());
    }
    let state = serde_json::to_vec(state).map_err(|error| Report::of(Kind::Internal, error))?;
    hooks.iter().try_for_each(|hook| {
        run_one(hook, &state, directory).step(|| format!("running the {kind} hook {}", hook.path().display()))
    })
}

/// Runs every hook of one kind, whatever became of those before; failures are told.
pub fn run_all(kind: &str, hooks: &[Hook], state: &State<'_>, directory: &Path, failed: &mut dyn FnMut(&Report)) {
    for hook in hooks {
        if let Err(report) = run(kind, std::slice::from_ref(hook), state, directory) {
            failed(&report);
        }
    }
}

fn run_one(hook: &Hook, state: &[u8], directory: &Path) -> Result<(), Report> {
    let path: &PathBuf = hook.path();
    let args = hook.args().as_deref().unwrap_or_default();
    let mut command = Command::new(path);
    if let Some((first, rest)) = args.split_first() {
        command.arg0(first).args(rest);
    }
    command.env_clear().current_dir(directory).stdin(Stdio::piped()).process_group(0);
    kill_with_caller(&mut command);
    for variable in hook.env().iter().flatten() {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        command.env(name, value);
    }
    let until =
        hook.timeout().and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds.max(0) as u64)));
    let mut child = command.spawn().call(|| format!("exec({path:?})"))?;
    let input = child.stdin.take().map(|input| Input { pipe: input.into(), left: state });
    let ended = wait(&mut child, input, until)?;
    if !ended {
        let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
    }
    let status = child.wait().call(|| format!("wait({path:?})"))?;
    if !ended {
        let seconds = hook.timeout().unwrap_or(0);
        return Err(Report::new(Kind::Internal, format!("it did not end within {seconds} s and was killed")));
    }
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(Report::new(Kind::Internal, format!("exit status {code}"))),
        (None, signal) => Err(Report::new(Kind::Internal, format!("killed by signal {}", signal.unwrap_or(0)))),
    }
}

/// What a hook has not read of its state.
struct Input<'a> {
    pipe: OwnedFd,
    left: &'a [u8],
}

/// How often a process is looked at where `pidfd_open` is refused.
const PAUSE: Duration = Duration::from_millis(5);

/// Feeds the process and waits for its end; false when the time is over. A hook need not read its state.
fn wait(child: &mut Child, mut input: Option<Input<'_>>, until: Option<Instant>) -> Result<bool, SysError> {
    if let Some(input) = &input {
        fcntl(&input.pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).call(|| "fcntl(pipe, O_NONBLOCK)".to_owned())?;
    }
    // What stands in for one is named by a pid, and this may be init, whose /proc still is the host's.
    let pidfd = pidfd_open(child.id() as i32).ok().filter(|pidfd| !is_directory(pidfd.as_fd()));
    loop {
        if child.try_wait().call(|| "waitid(hook)".to_owned())?.is_some() {
            return Ok(true);
        }
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(false);
        }
        let most = if pidfd.is_some() { left } else { Some(left.map_or(PAUSE, |left| left.min(PAUSE))) };
        let timeout = most.map_or(PollTimeout::NONE, |most| PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX));
        let mut fds: Vec<PollFd<'_>> = Vec::new();
        fds.extend(input.as_ref().map(|input| PollFd::new(input.pipe.as_fd(), PollFlags::POLLOUT)));
        fds.extend(pidfd.as_ref().map(|pidfd| PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(SysError::new("poll()", errno)),
        }
        let writable = input.is_some() && fds.first().is_some_and(|fd| fd.any().unwrap_or(false));
        if writable {
            input = input.and_then(|input| match write(&input.pipe, input.left) {
                Ok(length) if length < input.left.len() => Some(Input { left: &input.left[length..], ..input }),
                Err(Errno::EAGAIN | Errno::EINTR) => Some(input),
                // All is written, or the hook does not read it.
                _ => None,
            });
        }
    }
}
