//! The process between the monitor and the program.
//!
//! ```text
//! ports looked at ─▶ namespace comes ─▶ program started ─▶ it is ready ─▶ device configured ─▶ ports published ─▶ Ready
//!                                                          │ end of the program: Failed, end
//! end of the control socket (the monitor's): the program is killed
//! ```
//! The program ends with this process, whatever ends that: the kernel kills it (`PR_SET_PDEATHSIG`, which neither program's change
//! of user namespace undoes: the caller has made those that they go to), and slirp4netns sees the end of `--exit-fd`. `Ready`
//! carries a descriptor of the program: the monitor waits for its end before it has another one started, since device and ports
//! are taken until then.
//!
//! pasta closes all descriptors but the standard ones when it starts (since August 2024), so these carry what it gets: the
//! network namespace is its input, the user namespace its output, and its number, which says that it is ready, comes as a line of
//! its errors.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use base::{Failure, Report};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{geteuid, pipe2};
use sys::process::Flags;
use sys::role::Inherited;
use sys::{Call, SysError};

use crate::control::{Message, receive, send};
use crate::helper::{HelperSpec, Program, slirp};
use crate::{NetError, Publish, Published, Transport, ports, sandbox, setup};

/// How long a program may take to be ready.
const READY: Duration = Duration::from_secs(20);
/// How long the device of a program that has ended may stay.
const GONE: Duration = Duration::from_secs(5);
/// Between two looks at that.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Lines of the program that are kept: the last one tells why it has ended.
const LINES: usize = 4;
/// The longest line that is waited for.
const LINE_MAX: usize = 4096;
/// The name of the API socket in the container's directory.
const API: &str = "slirp4netns";

/// Runs the role; descriptor `control` is the socket of [`crate::control`].
pub fn main(spec: &HelperSpec, inherited: &mut Inherited) -> ExitCode {
    let Ok(control) = inherited.fd("control") else { return ExitCode::from(125) };
    match serve(spec, control.as_fd()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If the monitor is gone nobody is left to be told.
            let _ = send(control.as_fd(), &Message::Failed(Failure::from(&error.into_report())), None);
            ExitCode::from(125)
        }
    }
}

fn serve(spec: &HelperSpec, control: BorrowedFd<'_>) -> Result<(), NetError> {
    nix::sys::prctl::set_no_new_privs().call(|| "prctl(PR_SET_NO_NEW_PRIVS)".to_owned())?;
    let published = choose_ports(spec)?;
    let Some(net) = await_namespace(control)? else { return Ok(()) };
    let user = sys::namespace::owner(&net)?;
    let namespaces = Namespaces { user, net };
    match spec.program {
        Program::Slirp if geteuid().is_root() => leave_mounts()?,
        Program::Slirp => {
            // Its sandbox wants to be root, which the user is there.
            let outer = sys::namespace::parent(&namespaces.user)?;
            setns(&outer, CloneFlags::CLONE_NEWUSER).call(|| "setns(outer user namespace)".to_owned())?;
        }
        Program::Pasta => {}
    }
    namespaces.inside(control, || await_no_device(&spec.device))?;
    let mut running = Running::start(spec, &published, &namespaces)?;
    let served = running.serve(control, spec, &namespaces, published);
    if served.is_err() {
        // Its ports are free when that is told.
        running.kill();
    }
    served
}

/// Has mounts of its own from now on, from which nothing reaches the machine's. The sandbox of slirp4netns unmounts all that it has; of
/// what was shared with the machine only `/` itself is made private before, so real root's machine would lose `/sys/fs/cgroup` and more.
fn leave_mounts() -> Result<(), SysError> {
    unshare(CloneFlags::CLONE_NEWNS).call(|| "unshare(CLONE_NEWNS)".to_owned())?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .call(|| "mount(\"/\", MS_REC | MS_SLAVE)".to_owned())
}

/// The ports of the host, chosen and free at this moment; who has one that is not is told as by our own stack.
fn choose_ports(spec: &HelperSpec) -> Result<Vec<Published>, NetError> {
    let mut published = Vec::new();
    let mut held = Vec::new();
    for wish in &spec.publish {
        // slirp4netns publishes for one family at a time, and its IPv6 is experimental.
        let all = Some(IpAddr::from(Ipv4Addr::UNSPECIFIED)).filter(|_| spec.program == Program::Slirp);
        let wish = Publish { host_ip: wish.host_ip.or(all), ..*wish };
        for (listener, port) in ports::listen_on(&wish)? {
            held.push(listener);
            published.push(port);
        }
    }
    Ok(published)
}

/// The container's network namespace; `None` when the monitor has gone.
fn await_namespace(control: BorrowedFd<'_>) -> Result<Option<OwnedFd>, NetError> {
    loop {
        match receive(control)? {
            Some((Message::Namespace, Some(namespace))) => return Ok(Some(namespace)),
            Some(_) => {}
            None => return Ok(None),
        }
    }
}

/// Has slirp4netns lead ports to the container.
fn publish(spec: &HelperSpec, published: &[Published]) -> Result<(), NetError> {
    // The directory's own path may be longer than the address of a socket.
    let directory = sys::socket::open_directory(&spec.directory)?;
    let socket = PathBuf::from(path_of(directory.as_fd())).join(API);
    for port in published {
        slirp::publish(&socket, spec.addressing.v4.container, port)?;
    }
    // Nobody else is to give it orders.
    Ok(std::fs::remove_file(&socket).call(|| format!("unlink({socket:?})"))?)
}

/// The container's.
struct Namespaces {
    /// Which the other one belongs to.
    user: OwnedFd,
    net: OwnedFd,
}

impl Namespaces {
    /// Does something in them; a child does, since entering them cannot be undone, and tells itself why it could not.
    fn inside(&self, control: BorrowedFd<'_>, work: impl FnOnce() -> Result<(), NetError>) -> Result<(), NetError> {
        let enter = || {
            setns(&self.user, CloneFlags::CLONE_NEWUSER).call(|| "setns(container's user namespace)".to_owned())?;
            setns(&self.net, CloneFlags::CLONE_NEWNET).call(|| "setns(container's network namespace)".to_owned())?;
            work()
        };
        let child = sys::process::fork(Flags::empty(), None, || match enter() {
            Ok(()) => 0,
            Err(error) => {
                let _ = send(control, &Message::Failed(Failure::from(&Report::from(error))), None);
                1
            }
        })?;
        match sys::process::reap(child.pidfd.as_fd(), true)? {
            Some(sys::process::Exit::Code(0)) => Ok(()),
            _ => Err(NetError::Ended),
        }
    }
}

/// Waits until a program that has ended has taken its device along, which the kernel does in its own time.
fn await_no_device(device: &str) -> Result<(), NetError> {
    let until = Instant::now() + GONE;
    while setup::index_of(device).is_ok() {
        if Instant::now() >= until {
            return Err(SysError::new(format!("the container has a device {device} already"), Errno::EEXIST).into());
        }
        sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// As a child of this process finds a descriptor that it has too.
fn path_of(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

struct Running {
    program: Program,
    child: Child,
    error: Option<OwnedFd>,
    /// Our ends of the pipes of slirp4netns: it writes into the first when it is ready, and ends with the second.
    pipes: Option<[OwnedFd; 2]>,
    is_ready: bool,
    /// What it said last.
    said: VecDeque<String>,
    rest: String,
}

impl Running {
    fn start(spec: &HelperSpec, published: &[Published], namespaces: &Namespaces) -> Result<Self, NetError> {
        let mut command = Command::new(&spec.path);
        command.args(&spec.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let (lent, pipes) = match spec.program {
            Program::Slirp => {
                let (lent, pipes) = slirp_arguments(&mut command, spec, namespaces)?;
                (Some(lent), Some(pipes))
            }
            Program::Pasta => {
                pasta_arguments(&mut command, spec, published, namespaces)?;
                (None, None)
            }
        };
        sys::process::kill_with_caller(&mut command);
        let mut child = command.spawn().call(|| format!("exec({:?})", spec.path))?;
        drop(lent);
        let error = child.stderr.take().map(OwnedFd::from);
        let (said, rest) = (VecDeque::new(), String::new());
        Ok(Running { program: spec.program, child, error, pipes, is_ready: false, said, rest })
    }

    /// Until the monitor or the program has ended; tells the monitor when the container has its network.
    fn serve(
        &mut self,
        control: BorrowedFd<'_>,
        spec: &HelperSpec,
        namespaces: &Namespaces,
        published: Vec<Published>,
    ) -> Result<(), NetError> {
        if !self.await_ready(control)? {
            return Ok(());
        }
        namespaces.inside(control, || setup::configure(&spec.addressing, &spec.device, true).map(drop))?;
        if spec.program == Program::Slirp {
            publish(spec, &published)?;
        }
        let pidfd = sys::process::pidfd_open(self.child.id() as i32)?;
        sandbox::of_watcher()?;
        send(control, &Message::Ready { published }, Some(pidfd.as_fd()))?;
        self.watch(control)
    }

    /// Waits until the program is ready; whether it is still wanted then.
    fn await_ready(&mut self, control: BorrowedFd<'_>) -> Result<bool, NetError> {
        let until = Instant::now() + READY;
        while !self.is_ready {
            let left = until.saturating_duration_since(Instant::now());
            let [gone, said, ready] = self.poll(control, left)?;
            if gone && !matches!(receive(control), Ok(Some(_))) {
                self.kill();
                return Ok(false);
            }
            if ready {
                self.is_ready = self.read_ready();
            }
            if (ready && !self.is_ready) || (said && !self.listen()) {
                return Err(self.ended());
            }
            if left.is_zero() {
                self.kill();
                let late = format!("{} was not ready in time", self.program.name());
                return Err(SysError::new(late, Errno::ETIMEDOUT).into());
            }
        }
        Ok(true)
    }

    /// Whether what slirp4netns has written says that it is ready: its end writes nothing.
    fn read_ready(&self) -> bool {
        let mut byte = [0; 1];
        let read = self.pipes.as_ref().map(|[ready, _]| nix::unistd::read(ready, &mut byte));
        read.is_some_and(|read| read.is_ok_and(|length| length == 1))
    }

    /// Until the monitor or the program has ended.
    fn watch(&mut self, control: BorrowedFd<'_>) -> Result<(), NetError> {
        loop {
            let [gone, said, _] = self.poll(control, Duration::MAX)?;
            // What is told to our own stack does not concern this one.
            if gone && !matches!(receive(control), Ok(Some(_))) {
                self.kill();
                return Ok(());
            }
            if said && !self.listen() {
                return Err(self.ended());
            }
        }
    }

    /// Whether the control socket, the program's standard error and its word have something.
    fn poll(&self, control: BorrowedFd<'_>, limit: Duration) -> Result<[bool; 3], NetError> {
        let ready = self.pipes.as_ref().filter(|_| !self.is_ready).map(|[ready, _]| ready);
        let mut fds = vec![PollFd::new(control, PollFlags::POLLIN)];
        fds.extend(self.error.iter().chain(ready).map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::NONE);
        match poll(&mut fds, limit) {
            Err(Errno::EINTR) => return Ok([false; 3]),
            result => result.call(|| "poll(network program)".to_owned())?,
        };
        let any = |number: usize| fds.get(number).and_then(PollFd::any).unwrap_or(false);
        Ok([any(0), any(1), any(2)])
    }

    /// Takes what the program says; whether it can still say something.
    fn listen(&mut self) -> bool {
        let mut buffer = [0; LINE_MAX];
        let Some(error) = &self.error else { return false };
        let length = match nix::unistd::read(error, &mut buffer) {
            Err(Errno::EINTR) => return true,
            read => read.unwrap_or(0),
        };
        self.rest += &String::from_utf8_lossy(&buffer[..length]);
        while let Some((line, rest)) = self.rest.split_once('\n') {
            let line = line.trim();
            if self.program == Program::Pasta && line == self.child.id().to_string() {
                self.is_ready = true;
            // pasta complains so, with each line, on a machine without a log.
            } else if !line.is_empty() && !line.starts_with("Failed to send ") {
                self.said.push_back(line.to_owned());
            }
            self.rest = rest.to_owned();
        }
        self.said.drain(..self.said.len().saturating_sub(LINES));
        // A line without an end is no line.
        self.rest.truncate(if self.rest.len() > LINE_MAX { 0 } else { self.rest.len() });
        length > 0
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// How the program has ended, in its own words where it has some.
    fn ended(&mut self) -> NetError {
        while self.listen() {}
        let _ = self.child.kill();
        let how = self.child.wait().as_ref().map_or_else(ToString::to_string, ExitStatus::to_string);
        let said: Vec<String> = self.said.drain(..).collect();
        NetError::Program { name: self.program.name(), how, said: said.join("; ") }
    }
}

/// What slirp4netns is told: the descriptors that it is to have, and our ends of its pipes.
fn slirp_arguments(
    command: &mut Command,
    spec: &HelperSpec,
    Namespaces { user, net }: &Namespaces,
) -> Result<([OwnedFd; 3], [OwnedFd; 2]), NetError> {
    let [(ready, told), (exit, kept)] = [pipe()?, pipe()?];
    let directory = sys::socket::open_directory(&spec.directory)?;
    for fd in [user, net, &told, &exit, &directory] {
        sys::process::keep_over_exec(fd.as_raw_fd())?;
    }
    command.args(["--enable-sandbox", "--enable-seccomp", "--netns-type=path"]);
    command.arg(format!("--userns-path={}", path_of(user.as_fd())));
    command.arg(format!("--ready-fd={}", told.as_raw_fd()));
    command.arg(format!("--exit-fd={}", exit.as_raw_fd()));
    command.arg(format!("--api-socket={}/{API}", path_of(directory.as_fd())));
    command.args([&path_of(net.as_fd()), &spec.device]);
    Ok(([told, exit, directory], [ready, kept]))
}

/// What pasta is told.
fn pasta_arguments(
    command: &mut Command,
    spec: &HelperSpec,
    published: &[Published],
    Namespaces { user, net }: &Namespaces,
) -> Result<(), NetError> {
    let copy = |fd: &OwnedFd| fd.try_clone().map(Stdio::from).call(|| "dup(namespace)".to_owned());
    command.stdin(copy(net)?).stdout(copy(user)?);
    command.args(["--netns", "/proc/self/fd/0", "--userns", "/proc/self/fd/1", "--pid", "/proc/self/fd/2"]);
    command.args(["--foreground", "--no-netns-quit"]);
    // What it would otherwise learn from the container's first frame.
    command.args(["--ns-mac-addr", &spec.addressing.mac.map(|byte| format!("{byte:02x}")).join(":")]);
    if geteuid().is_root() {
        // As nobody it could not enter the container's namespaces.
        command.args(["--runas", "0"]);
    }
    for (option, transport) in [("--tcp-ports", Transport::Tcp), ("--udp-ports", Transport::Udp)] {
        command.args(forwarding(option, transport, published));
    }
    Ok(())
}

fn pipe() -> Result<(OwnedFd, OwnedFd), SysError> {
    pipe2(OFlag::O_CLOEXEC).call(|| "pipe2()".to_owned())
}

/// What pasta is told of the published ports of one protocol.
fn forwarding(option: &str, transport: Transport, published: &[Published]) -> Vec<String> {
    let mine: Vec<&Published> = published.iter().filter(|port| port.transport == transport).collect();
    let specs = mine.iter().filter_map(|port| {
        let ports = format!("{}:{}", port.host_port, port.container_port);
        match port.host_ip {
            // One word is for both families.
            IpAddr::V6(ip) if ip.is_unspecified() => None,
            ip if ip.is_unspecified() => Some(ports),
            ip => Some(format!("{ip}/{ports}")),
        }
    });
    let mut specs: Vec<String> = specs.collect();
    if specs.is_empty() {
        specs.push("none".to_owned());
    }
    specs.into_iter().flat_map(|spec| [option.to_owned(), spec]).collect()
}
