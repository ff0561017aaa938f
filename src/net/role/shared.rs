//! The role that serves a network of several containers: who may join, and when it ends.

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use base::{Failure, Report};
use nix::errno::Errno;
use sys::process::Flags;
use sys::role::Inherited;

use crate::control::{Message, Wish, send};
use crate::role::Role;
use crate::role::members::{Connection, MEMBERS_MAX};
use crate::{NetError, NetworkSpec};

/// How long it waits for its first member.
const FIRST: Duration = Duration::from_secs(30);

/// What it has besides the stack.
#[derive(Debug)]
pub struct Shared {
    pub spec: NetworkSpec,
    pub door: OwnedFd,
    /// The network's namespace, which members get.
    pub namespace: OwnedFd,
    /// Device and inode of the role's user namespace.
    pub user_namespace: (u64, u64),
    /// The role's process.
    pub pid: i32,
}

/// The descriptors of the role.
#[derive(Debug)]
pub struct SharedFds {
    pub door: OwnedFd,
    pub namespace: OwnedFd,
    pub tap: OwnedFd,
}

/// Forks away from who starts it, since that is a command which does not wait.
pub fn main(spec: NetworkSpec, mut inherited: Inherited) -> ExitCode {
    let serve = move || {
        let mut fd = |name| inherited.fd(name);
        let fds = fd("door").and_then(|door| Ok(SharedFds { door, namespace: fd("namespace")?, tap: fd("tap")? }));
        let ended = fds.map_err(NetError::from).and_then(|fds| Role::shared(spec, fds)).and_then(|mut role| role.run());
        match ended {
            Ok(()) => 0,
            Err(error) => {
                // Who waits at the door finds it closed. Once it serves, nobody hears this.
                let report = Report::from(error);
                eprintln!("error: the network process: {}", report.lines().join(": "));
                125
            }
        }
    };
    match sys::process::fork(Flags::empty(), None, serve) {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(125),
    }
}

impl Role {
    /// Whether a network has no member any more, or never got one.
    pub fn is_deserted(&self) -> bool {
        self.shared.is_some() && self.members.is_empty() && (self.members.had_any() || self.began.elapsed() >= FIRST)
    }

    /// When a network that never got a member is deserted.
    pub fn deserted_at_us(&self) -> Option<u64> {
        (self.shared.is_some() && !self.members.had_any()).then_some(FIRST.as_micros() as u64)
    }

    /// Whether nothing leads out.
    pub fn is_internal(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.spec.internal)
    }

    /// Accepts who knocks.
    pub fn welcome(&mut self, now_us: u64) {
        let Some(Shared { door, .. }) = &self.shared else { return };
        let control = match sys::socket::accept(door.as_fd()) {
            Ok(control) => control,
            Err(error) => {
                // It would be ready again at once, for ever.
                if matches!(error.errno(), Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
                    && self.sockets.epoll().delete(door).is_ok()
                {
                    self.shut_until_us = Some(now_us + super::SHUT_US);
                }
                return;
            }
        };
        if self.members.len() >= MEMBERS_MAX {
            return;
        }
        let number = self.members.add(Connection::new(control, None));
        let Some(connection) = self.members.get(number) else { return };
        if super::watch(self.sockets.epoll(), &connection.control, super::MEMBER | number).is_err() {
            self.members.remove(number);
        }
    }

    /// Lets people in again after some time.
    pub fn open_door(&mut self, now_us: u64) {
        if let Some(Shared { door, .. }) = &self.shared
            && self.shut_until_us.is_some_and(|until| until <= now_us)
        {
            let is_open = super::watch(self.sockets.epoll(), door, super::DOOR).is_ok();
            self.shut_until_us = (!is_open).then_some(now_us + super::SHUT_US);
        }
    }

    /// Lets a connection become a member, if it is one of ours: a container into which the runtime directory was bound has
    /// another user namespace.
    pub fn join(&mut self, now_us: u64, number: u64, wish: Wish, user_namespace: &OwnedFd) -> Result<(), NetError> {
        let Some(shared) = &self.shared else { return Ok(()) };
        if sys::namespace::identity(user_namespace)? != shared.user_namespace {
            self.leave(now_us, number);
            return Ok(());
        }
        let joined = self.members.join(&shared.spec, number, wish);
        let Some(connection) = self.members.get(number) else { return Ok(()) };
        let told = match joined {
            Ok(addressing) => {
                let pid = shared.pid;
                let told = Message::Joined { addressing, pid, restricted: true, limited: true };
                send(connection.control.as_fd(), &told, Some(shared.namespace.as_fd()))
            }
            Err(error) => {
                let failure = Failure::from(&Report::from(error));
                send(connection.control.as_fd(), &Message::Failed(failure), None)
            }
        };
        match told {
            // It has gone meanwhile, which its socket will tell.
            Err(NetError::System(error)) if error.errno() == Errno::EPIPE => {}
            told => told?,
        }
        self.tell_stack(now_us);
        Ok(())
    }
}
