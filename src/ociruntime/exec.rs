//! `exec`: one more process in a running container.

use std::os::fd::AsFd;
use std::path::Path;

use base::{Context, Kind, Report};
use cgroup::oci::Cgroup;
use oci_spec::runtime::{LinuxCapabilities, Process, Spec};
use runtime::bundle::{self, Born};
use runtime::capabilities;
use runtime::channel::Message;
use runtime::init::attributes;
use runtime::init::user::number;
use runtime::launch::{ExecLaunch, HookContext, joins_user};
use runtime::signals;
use sys::namespace::allows_setgroups;

use crate::args::Exec;
use crate::config::{
    check_process, keeps_groups, listen_fds, may_set_groups, preserved, read, tell_ambient, tell_groups,
};
use crate::console;
use crate::create::write_pid;
use crate::log::Log;
use crate::state::{Root, Status};

/// Executes a command; unless detached the answer is its exit code.
pub fn exec(root: &Root, arguments: &Exec, log: &Log) -> Result<u8, Report> {
    let container = root.load(&arguments.id)?;
    match container.status() {
        Status::Running | Status::Created => {}
        Status::Paused if arguments.ignore_paused => {}
        status => {
            let message = format!("cannot exec in container {:?} in the state {}", arguments.id, status.word());
            let report = Report::new(Kind::Conflict, message);
            return Err(if status == Status::Paused {
                report.with_hint("resume it, or use --ignore-paused")
            } else {
                report
            });
        }
    }
    let spec = container.place.spec()?;
    let process = process(arguments, &spec, log)?;
    check_process(&process, arguments.console_socket.is_some())?;
    tell_ambient(&process, log);
    tell_groups(&spec, &process, log);
    console::check_holder(Some(&process), arguments.detach, arguments.console_socket.as_deref())?;
    let gone = || Report::new(Kind::Conflict, format!("container {:?} has just ended", arguments.id));
    let (init_pid, init) = container.init().ok_or_else(gone)?;
    let cgroup = container.cgroup()?;
    let below = arguments.cgroup.as_deref();
    let in_cgroup = cgroup.dir_for_exec(init_pid, below).step(|| "choosing the cgroup".to_owned())?;
    let linux = spec.linux().as_ref();
    let launch = ExecLaunch {
        user: String::new(),
        groups: Vec::new(),
        init_pid,
        seccomp: linux.and_then(|linux| linux.seccomp().clone()),
        memory_policy: linux.and_then(|linux| linux.memory_policy().clone()),
        personality: linux.and_then(|linux| linux.personality().clone()),
        default_profile: None,
        notify: false,
        setgroups: may_set_groups(&spec) && (!joins_user(&spec) || allows_setgroups(init_pid)?),
        keep_groups: keeps_groups(&spec),
        preserve_fds: preserved(arguments.preserve_fds),
        listen_fds: listen_fds(),
        annotations: spec.annotations().clone(),
        keyring: container.record.keyring,
        bundle: Some(HookContext { id: arguments.id.clone(), bundle: container.record.bundle.clone() }),
        process,
    };
    if !arguments.detach {
        signals::block()?;
    }
    let in_cgroup = in_cgroup.as_ref().map(AsFd::as_fd);
    let mut entering = Entering { cgroup: &cgroup, init: init_pid, below, log };
    let first = launch.process.exec_cpu_affinity().as_ref().and_then(|one| one.initial().as_ref());
    // Ours, which a new process inherits: it is born in the container's cgroup, whose processors may be fewer.
    let before = first.map(|first| attributes::set_affinity(first)).transpose();
    let before = before.step(|| "setting the first processors".to_owned())?;
    let entered = runtime::exec::in_bundle(&launch, init.as_fd(), in_cgroup, &mut entering);
    before.as_ref().map_or(Ok(()), attributes::restore_affinity)?;
    let Born { init: child, channel } = entered?;
    let (mut master, mut going) = (None, false);
    while let Some((message, fd)) = channel.receive()? {
        match (message, fd) {
            (Message::Console, Some(fd)) => {
                console::resize(fd.as_fd(), &launch.process)?;
                match &arguments.console_socket {
                    Some(path) => console::send(path, fd.as_fd())?,
                    None => master = Some(fd),
                }
            }
            (Message::Ready, _) => {
                sys::step();
                channel.send(&Message::Go, None)?;
                going = true;
                sys::step();
            }
            (Message::Notice(text), _) => log.warn(&text),
            (Message::Failed(failure), _) => {
                sys::process::reap(child.pidfd.as_fd(), true)?;
                return Err(failure.into());
            }
            _ => {}
        }
    }
    if !going {
        sys::process::reap(child.pidfd.as_fd(), true)?;
        return Err(Report::new(Kind::Internal, "the process was killed while it was being set up"));
    }
    log.debug(|| format!("the process {} in container {} has executed its command", child.pid, arguments.id));
    sys::step();
    let told = arguments.pid_file.as_ref().map_or(Ok(()), |path| write_pid(path, child.pid));
    if let Err(report) = told {
        // Nobody would know of it.
        let _ = sys::process::pidfd_send_signal(child.pidfd.as_fd(), nix::sys::signal::Signal::SIGKILL as i32);
        sys::process::reap(child.pidfd.as_fd(), true)?;
        return Err(report);
    }
    if arguments.detach {
        return Ok(0);
    }
    Ok(console::wait(&child.pidfd, master, None, log)? as u8)
}

/// An entry on its way.
struct Entering<'a> {
    cgroup: &'a Cgroup,
    init: i32,
    below: Option<&'a Path>,
    log: &'a Log,
}

impl bundle::Making for Entering<'_> {
    fn place(&mut self, process: i32) -> Result<(), Report> {
        Ok(self.cgroup.admit(self.init, self.below, process)?)
    }

    fn notice(&mut self, text: String) {
        self.log.warn(&text);
    }
}

/// The process of the file, or the container's own with what the command line changes.
fn process(arguments: &Exec, spec: &Spec, log: &Log) -> Result<Process, Report> {
    let own = spec.process().clone().ok_or_else(|| Report::new(Kind::Usage, "the container has no process"))?;
    let mut process = if let Some(path) = &arguments.process {
        let mut process: Process = read(path, log).step(|| format!("reading {}", path.display()))?;
        // What confines the container confines what is executed in it, unless the file says otherwise.
        if process.capabilities().is_none() {
            process.set_capabilities(own.capabilities().clone());
        }
        if process.apparmor_profile().is_none() {
            process.set_apparmor_profile(own.apparmor_profile().clone());
        }
        if process.selinux_label().is_none() {
            process.set_selinux_label(own.selinux_label().clone());
        }
        if process.rlimits().is_none() {
            process.set_rlimits(own.rlimits().clone());
        }
        if process.no_new_privileges().is_none() {
            process.set_no_new_privileges(own.no_new_privileges());
        }
        if process.scheduler().is_none() {
            process.set_scheduler(own.scheduler().clone());
        }
        if process.io_priority().is_none() {
            process.set_io_priority(*own.io_priority());
        }
        if process.exec_cpu_affinity().is_none() {
            process.set_exec_cpu_affinity(own.exec_cpu_affinity().clone());
        }
        if process.user().umask().is_none() {
            process.user_mut().set_umask(own.user().umask());
        }
        process
    } else {
        let mut process = own;
        process.set_args(Some(arguments.command.clone())).set_terminal(Some(arguments.tty)).set_console_size(None);
        process
    };
    if let Some(cwd) = &arguments.cwd {
        process.set_cwd(cwd.clone());
    }
    if arguments.tty {
        process.set_terminal(Some(true));
    }
    if !arguments.env.is_empty() {
        let mut env = process.env().clone().unwrap_or_default();
        for variable in &arguments.env {
            let name = variable.split_once('=').map_or(variable.as_str(), |(name, _)| name);
            env.retain(|known| known.split_once('=').map_or(known.as_str(), |(known, _)| known) != name);
            env.push(variable.clone());
        }
        process.set_env(Some(env));
    }
    let mut user = process.user().clone();
    if let Some(wanted) = &arguments.user {
        let (uid, gid) = numbers(wanted)?;
        user.set_uid(uid);
        if let Some(gid) = gid {
            user.set_gid(gid);
        }
    }
    if !arguments.additional_gids.is_empty() {
        let mut groups = user.additional_gids().clone().unwrap_or_default();
        groups.extend(&arguments.additional_gids);
        user.set_additional_gids(Some(groups));
    }
    process.set_user(user);
    if !arguments.cap.is_empty() {
        process.set_capabilities(Some(add(process.capabilities().as_ref(), &arguments.cap)?));
    }
    if arguments.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if let Some(profile) = &arguments.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if let Some(label) = &arguments.process_label {
        process.set_selinux_label(Some(label.clone()));
    }
    Ok(process)
}

/// `UID[:GID]`, digits only (CVE-2026-30892: a loose parse gave another user).
fn numbers(text: &str) -> Result<(u32, Option<u32>), Report> {
    let (uid, gid) = text.split_once(':').map_or((text, None), |(uid, gid)| (uid, Some(gid)));
    let bad = || Report::new(Kind::Usage, format!("--user {text:?} is not UID[:GID] in numbers"));
    let gid = gid.map(|gid| number(gid).ok_or_else(bad)).transpose()?;
    Ok((number(uid).ok_or_else(bad)?, gid))
}

/// The container's capabilities and some more, in every set but the inheritable and ambient ones.
fn add(own: Option<&LinuxCapabilities>, more: &[String]) -> Result<LinuxCapabilities, Report> {
    let mut mask = 0;
    for name in more {
        mask |= capabilities::parse(name)?;
    }
    let mut sets = own.cloned().unwrap_or_default();
    let with = |set: &Option<oci_spec::runtime::Capabilities>| {
        let known = set.iter().flatten().fold(0, |known, capability| known | capabilities::bit(*capability));
        Some(capabilities::to_spec(known | mask))
    };
    let (bounding, effective, permitted) = (with(sets.bounding()), with(sets.effective()), with(sets.permitted()));
    sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
    if own.is_none() {
        sets.set_inheritable(None).set_ambient(None);
    }
    Ok(sets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers() {
        assert_eq!(numbers("0").ok(), Some((0, None)));
        assert_eq!(numbers("1000:100").ok(), Some((1000, Some(100))));
        for bad in ["", ":", "1:", ":1", "root", "-1", "+1", "1 ", "4294967295", "1:2:3"] {
            assert!(numbers(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_added_capability_is_not_inheritable() {
        let mut own = LinuxCapabilities::default();
        own.set_bounding(Some(capabilities::to_spec(1 << 5))).set_effective(None).set_permitted(None);
        own.set_inheritable(None).set_ambient(None);
        let sets = add(Some(&own), &["net_admin".to_owned()]).unwrap_or_default();
        let names = |set: &Option<oci_spec::runtime::Capabilities>| set.iter().flatten().count();
        assert_eq!((names(sets.bounding()), names(sets.effective()), names(sets.ambient())), (2, 1, 0));
    }
}
