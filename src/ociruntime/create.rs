//! `create` and `run`.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use base::{Context, Kind, Report};
use cgroup::oci::Cgroup;
use nix::sys::signal::Signal;
use oci_spec::runtime::Hook;
use runtime::bundle::{self, Born, Handed};
use runtime::channel::Message;
use runtime::hooks;
use runtime::init::payload::Gate;
use runtime::signals;
use sys::Call;
use sys::process::{pidfd_send_signal, reap};

use crate::args::{Bundle, Create, Global, Run};
use crate::config::{self, Loaded};
use crate::log::Log;
use crate::state::{Container, FORMAT, Init, Place, Record, Root, Status, check_id, now};
use crate::{console, control, delete, notify, start};

/// Creates a container; its init waits at the gate when this returns.
pub fn create(root: &Root, global: &Global, arguments: &Create, log: &Log) -> Result<u8, Report> {
    let loaded = config::load(&arguments.bundle, log)?;
    console::check_holder(loaded.spec.process().as_ref(), true, arguments.bundle.console_socket.as_deref())?;
    let made = make(root, global, &arguments.id, loaded, &arguments.bundle, log)?;
    made.finish(root, &arguments.bundle, log)?;
    Ok(0)
}

/// Creates a container, starts it and, unless detached, waits for its end and removes it.
pub fn run(root: &Root, global: &Global, arguments: &Run, log: &Log) -> Result<u8, Report> {
    let loaded = config::load(&arguments.bundle, log)?;
    let console_socket = arguments.bundle.console_socket.as_deref();
    console::check_holder(loaded.spec.process().as_ref(), arguments.detach, console_socket)?;
    if !arguments.detach {
        signals::block()?;
    }
    let made = make(root, global, &arguments.id, loaded, &arguments.bundle, log)?;
    let pid = made.pid;
    let (pidfd, master) = made.finish(root, &arguments.bundle, log)?;
    let started = start::begin(root, &arguments.id, log);
    sys::step();
    let notify = match started {
        Ok(notify) => notify,
        Err(report) => {
            // A start that fails late does so itself.
            if let Err(error) = delete::end(root, &arguments.id, log)
                && error.kind() != Kind::NotFound
            {
                log.warn(&error.lines().join(": "));
            }
            return Err(report);
        }
    };
    if arguments.detach {
        notify.map_or(Ok(()), |notify| notify.wait(pidfd.as_fd(), pid, log))?;
        return Ok(0);
    }
    let code = console::wait(&pidfd, master, notify, log)?;
    log.debug(|| format!("container {} has ended with {code}", arguments.id));
    sys::step();
    if !arguments.keep
        && let Err(error) = delete::end(root, &arguments.id, log)
        && error.kind() != Kind::NotFound
    {
        // The code is what the caller waits for; another command may be deleting it too.
        log.warn(&error.lines().join(": "));
    }
    Ok(code as u8)
}

/// A container whose init waits at the gate.
struct Made {
    place: Place,
    pid: i32,
    pidfd: OwnedFd,
    master: Option<OwnedFd>,
}

impl Made {
    /// Tells the caller. A pid file that cannot be written is an error of the creation.
    fn finish(self, root: &Root, bundle: &Bundle, log: &Log) -> Result<(OwnedFd, Option<OwnedFd>), Report> {
        let told = bundle.pid_file.as_deref().map_or(Ok(()), |path| write_pid(path, self.pid));
        sys::step();
        if let Err(report) = told {
            // What resists is met again by `delete --force`; the first error is the answer.
            let _ = delete::end(root, self.place.id(), log);
            return Err(report);
        }
        Ok((self.pidfd, self.master))
    }
}

/// Writes a pid file by a rename: who waits for it must not read half a number.
pub fn write_pid(path: &Path, pid: i32) -> Result<(), Report> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}.new"));
    let written = std::fs::File::create(&new).and_then(|mut file| write!(file, "{pid}"));
    sys::step();
    written
        .and_then(|()| std::fs::rename(&new, path))
        .call(|| format!("write({path:?})"))
        .step(|| "writing the pid file".to_owned())
}

fn make(root: &Root, global: &Global, id: &str, loaded: Loaded, bundle: &Bundle, log: &Log) -> Result<Made, Report> {
    check_id(id)?;
    let cgroup = control::plan(global, id, &loaded.spec, log)?;
    for line in cgroup.lines() {
        log.warn(line);
    }
    log.debug(|| {
        let (bundle, rootfs) = (loaded.bundle.display(), loaded.rootfs.display());
        format!("creating container {id} of the bundle {bundle} on {rootfs}")
    });
    let (place, creating) = root.take(id)?;
    sys::step();
    let record = Record {
        format: FORMAT,
        bundle: loaded.bundle.clone(),
        rootfs: loaded.rootfs.clone(),
        created: now(),
        owner: nix::unistd::geteuid().as_raw(),
        init: None,
        keyring: !bundle.no_new_keyring,
        cgroup: cgroup.record().clone(),
    };
    let notifies = notify::is_wanted(log);
    let mut making = Making { place, creating: Some(creating), record, loaded, cgroup, notifies, pidfd: None, log };
    match making.run(bundle) {
        Ok((pidfd, pid, master)) => Ok(Made { place: making.place, pid, pidfd, master }),
        Err(report) => {
            making.undo();
            Err(report)
        }
    }
}

/// A creation on its way.
struct Making<'a> {
    place: Place,
    /// The lock of that name.
    creating: Option<OwnedFd>,
    record: Record,
    loaded: Loaded,
    cgroup: Cgroup,
    /// Whether a service manager waits for what the payload says.
    notifies: bool,
    pidfd: Option<OwnedFd>,
    log: &'a Log,
}

impl bundle::Making for Making<'_> {
    fn place(&mut self, init: i32) -> Result<(), Report> {
        // Before init goes on: who finds the record after a kill of ours must find init by it.
        self.record.init = Some(Init::of(init)?);
        self.place.write_record(&self.record)?;
        sys::step();
        self.cgroup.enter(init)?;
        sys::step();
        self.record.cgroup = self.cgroup.record().clone();
        self.place.write_record(&self.record)
    }

    fn notice(&mut self, text: String) {
        self.log.warn(&text);
    }
}

impl Making<'_> {
    fn run(&mut self, arguments: &Bundle) -> Result<(OwnedFd, i32, Option<OwnedFd>), Report> {
        self.place.write_record(&self.record)?;
        sys::step();
        let text = serde_json::to_vec(&self.loaded.spec).map_err(|error| Report::of(Kind::Internal, error))?;
        self.place.write("config.json", &text)?;
        sys::step();
        let socket = self.place.make_gate()?;
        sys::step();
        let notify = self.notifies.then(|| notify::listen(&self.place)).transpose()?;
        sys::step();
        let gate = Gate { socket, notify };
        let handed = Handed { gate, lock: self.place.make_lock("lock")? };
        sys::step();
        self.place.publish()?;
        sys::step();
        let planned = self.cgroup.lines().len();
        self.cgroup.make().step(|| "making the cgroup".to_owned())?;
        sys::step();
        for line in &self.cgroup.lines()[planned..] {
            self.log.warn(line);
        }
        self.record.cgroup = self.cgroup.record().clone();
        self.log.debug(|| match &self.record.cgroup.path {
            Some(path) => format!("the cgroup of container {} is {}", self.place.id(), path.display()),
            None => format!("container {} has no cgroup", self.place.id()),
        });

        let mut launch = self.loaded.launch(self.place.id(), arguments);
        if self.notifies {
            notify::show(&mut launch.spec, self.place.notify_directory());
        }
        let directory = self.cgroup.dir().map(|fd| fd.try_clone_to_owned()).transpose();
        let directory = directory.call(|| "fcntl(cgroup, F_DUPFD)".to_owned())?;
        let Born { init, channel } = bundle::create(&launch, directory.as_ref().map(AsFd::as_fd), handed, self)?;
        let pid = init.pid;
        self.pidfd = Some(init.pidfd);
        self.log.debug(|| format!("init of container {} is {pid}", self.place.id()));
        let mut master = None;
        loop {
            match channel.receive()? {
                Some((Message::Console, Some(fd))) => {
                    if let Some(process) = launch.spec.process() {
                        console::resize(fd.as_fd(), process)?;
                    }
                    match &arguments.console_socket {
                        Some(path) => console::send(path, fd.as_fd())?,
                        None => master = Some(fd),
                    }
                    sys::step();
                }
                Some((Message::Notice(text), _)) => self.log.warn(&text),
                Some((Message::Mounted, _)) => {
                    self.log.debug(|| "the mounts are made; running the hooks of the runtime".to_owned());
                    sys::step();
                    self.runtime_hooks(pid)?;
                    sys::step();
                    channel.send(&Message::Go, None)?;
                    sys::step();
                }
                Some((Message::Failed(failure), _)) => return Err(failure.into()),
                Some((Message::Ready, _)) => break,
                Some(_) => {}
                None => return Err(Report::new(Kind::Internal, "init was killed while it was being set up")),
            }
        }
        self.log.debug(|| format!("container {} is set up and waits for its start", self.place.id()));
        sys::step();
        if let Some(creating) = self.creating.take() {
            // Init has a copy.
            sys::lock::release(&creating, Path::new("creating"))?;
        }
        sys::step();
        let pidfd = self.pidfd.take().ok_or_else(|| Report::new(Kind::Internal, "init has no descriptor"))?;
        Ok((pidfd, pid, master))
    }

    /// The hooks in the runtime's namespaces, while init waits.
    fn runtime_hooks(&self, pid: i32) -> Result<(), Report> {
        let Some(hooks) = self.loaded.spec.hooks() else { return Ok(()) };
        let context = self.loaded.context(self.place.id());
        // These were called before there was a word for it, and expect the next one.
        let state = context.state_of(&self.loaded.spec, Status::Created.word(), pid);
        #[allow(deprecated, reason = "configurations of version 1.0 have it")]
        hooks::run("prestart", list(hooks.prestart().as_ref()), &state, &self.loaded.bundle)?;
        let state = context.state_of(&self.loaded.spec, Status::Creating.word(), pid);
        self.log.debug(|| "prestart hooks have run, createRuntime hooks follow".to_owned());
        hooks::run("createRuntime", list(hooks.create_runtime().as_ref()), &state, &self.loaded.bundle)
    }

    /// Takes back what was made. What resists is met again by `delete --force`.
    fn undo(mut self) {
        drop(self.creating.take());
        sys::step();
        if let Some(pidfd) = self.pidfd.take() {
            let _ = pidfd_send_signal(pidfd.as_fd(), Signal::SIGKILL as i32);
            let _ = reap(pidfd.as_fd(), true);
            sys::step();
        }
        self.record.cgroup = self.cgroup.record().clone();
        let container = Container { place: self.place, record: self.record };
        if container.record.init.is_some() {
            let _ = delete::remove(&container, self.log);
        } else if delete::end_init(&container).is_ok() {
            // One that was only planned may be another's by now, who has got the same name.
            let left = self.cgroup.is_made() && self.cgroup.remove().is_err();
            if !left {
                let _ = container.place.remove();
            }
        }
    }
}

/// The hooks of one kind.
pub fn list(hooks: Option<&Vec<Hook>>) -> &[Hook] {
    hooks.map(Vec::as_slice).unwrap_or_default()
}
