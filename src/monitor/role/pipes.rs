//! The standard streams of a process without a terminal.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use base::Report;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use sys::{Call, SysError};

use crate::role::Monitor;
use crate::streams::Streams;

/// How our end of a named pipe is opened.
const OURS: OFlag = OFlag::O_RDONLY.union(OFlag::O_NONBLOCK);

fn open(path: &Path, flags: OFlag) -> Result<OwnedFd, SysError> {
    nix::fcntl::open(path, flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())
        .call(|| format!("open({path:?}, {flags:?})"))
}

/// The payload's ends of its streams.
#[derive(Debug, Default)]
pub(super) struct PayloadEnds {
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    error: Option<OwnedFd>,
}

impl PayloadEnds {
    pub(super) fn stdio(&self) -> [Option<BorrowedFd<'_>>; 3] {
        [&self.input, &self.output, &self.error].map(|fd| fd.as_ref().map(AsFd::as_fd))
    }
}

impl Monitor {
    /// The main process's streams without a terminal: named pipes, which the container holds open in both directions,
    /// so that it is not killed by SIGPIPE when the monitor is.
    pub(super) fn fifos(&self) -> Result<(Streams, PayloadEnds), Report> {
        let fifo = |name: &str| -> Result<(OwnedFd, OwnedFd), SysError> {
            let path = self.config.run_dir.join(name);
            match nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(SysError::new(format!("mkfifo({path:?})"), errno)),
            }
            let (ours, theirs) = (open(&path, OURS)?, open(&path, OFlag::O_RDWR)?);
            self.give(theirs.as_fd())?;
            Ok((ours, theirs))
        };
        let (output, output_end) = fifo("stdout")?;
        let (error, error_end) = fifo("stderr")?;
        let input = self.config.stdin.then(|| self.pipe()).transpose()?;
        let (input_end, input) = input.map_or((None, None), |(read, write)| (Some(read), Some(write)));
        let streams = Streams::pipes(Some(output), Some(error), input).call(|| "fcntl(O_NONBLOCK)".to_owned())?;
        Ok((streams, PayloadEnds { input: input_end, output: Some(output_end), error: Some(error_end) }))
    }

    /// Our ends of the pipes that a monitor before us has made. What is in them the container keeps there.
    pub(super) fn fifos_again(&self) -> Result<Streams, Report> {
        let [output, error] = ["stdout", "stderr"].map(|name| open(&self.config.run_dir.join(name), OURS));
        Ok(Streams::pipes(Some(output?), Some(error?), None).call(|| "fcntl(O_NONBLOCK)".to_owned())?)
    }

    pub(super) fn exec_pipes(&self, stdin: bool) -> Result<(Streams, PayloadEnds), Report> {
        let (output, output_end) = self.pipe()?;
        let (error, error_end) = self.pipe()?;
        let input = stdin.then(|| self.pipe()).transpose()?;
        let (input_end, input) = input.map_or((None, None), |(read, write)| (Some(read), Some(write)));
        let streams = Streams::pipes(Some(output), Some(error), input).call(|| "fcntl(O_NONBLOCK)".to_owned())?;
        Ok((streams, PayloadEnds { input: input_end, output: Some(output_end), error: Some(error_end) }))
    }

    fn pipe(&self) -> Result<(OwnedFd, OwnedFd), SysError> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).call(|| "pipe2(O_CLOEXEC)".to_owned())?;
        self.give(read.as_fd())?;
        Ok((read, write))
    }

    /// Gives a stream to the container's root, so that `/dev/stdout` can be opened again inside.
    fn give(&self, stream: BorrowedFd<'_>) -> Result<(), SysError> {
        let Some((uid, gid)) = self.config.streams_owner else { return Ok(()) };
        nix::unistd::fchown(stream, Some(uid.into()), Some(gid.into())).call(|| format!("fchown(stream, {uid}, {gid})"))
    }
}
