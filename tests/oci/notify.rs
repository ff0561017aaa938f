//! `NOTIFY_SOCKET`: a service manager that waits until the payload says that it is ready.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use serde_json::json;

use crate::bundle::{Bundle, without_steps};
use crate::support::{LIMIT, end, identity, skip, start, unique};

/// Long enough for a command to end that does not wait.
const WHILE: Duration = Duration::from_millis(400);
/// Says that it is ready once `/tmp/go` is there.
const SERVICE: &str = r#"while [ ! -e /tmp/go ]; do sleep 0.02; done
perl -MIO::Socket::UNIX -e 'my $s = IO::Socket::UNIX->new(Type => SOCK_DGRAM, Peer => $ENV{NOTIFY_SOCKET}) or die "$!";
    $s->send("STATUS=begun\nMAINPID=1\n"); $s->send("READY=1\nSTATUS=ready\n") or die "$!"'
sleep 100"#;

/// A bundle of the service, and the socket of a manager for which the runtime runs; `None`, and the skip is noted, without Perl.
fn service() -> Option<(Bundle, UnixDatagram)> {
    let mut bundle = Bundle::new()?;
    if !Path::new("/usr/bin/perl").exists() {
        skip("the host has no /usr/bin/perl");
        return None;
    }
    for name in ["lib", "lib64"] {
        symlink(Path::new("usr").join(name), bundle.path.join("rootfs").join(name)).expect("the home is ours");
    }
    bundle.push("/mounts", json!({ "destination": "/usr", "source": "/usr", "options": ["rbind", "ro", "rslave"] }));
    bundle.push("/process/env", json!("PATH=/bin:/usr/bin"));
    bundle.script(SERVICE);
    let path = bundle.path.join("manager");
    let manager = UnixDatagram::bind(&path).expect("a short path");
    manager.set_read_timeout(Some(LIMIT)).expect("it is a socket");
    bundle.env.push(("NOTIFY_SOCKET", path.display().to_string()));
    Some((bundle, manager))
}

/// Starts a command of the runtime, whose streams the container may inherit.
fn begin(bundle: &Bundle, words: &[&str]) -> Child {
    let log = bundle.new_log();
    bundle.command(words).stdout(log.try_clone().expect("a descriptor")).stderr(log).spawn().expect("it starts")
}

/// Lets the service be ready.
fn let_go(bundle: &Bundle) {
    fs::write(bundle.path.join("rootfs/tmp/go"), "").expect("the home is ours");
}

#[track_caller]
fn waits(child: &mut Child) {
    std::thread::sleep(WHILE);
    assert_eq!(child.try_wait().expect("our own child"), None, "it waits");
}

/// The next message to the manager, with its descriptor.
fn next(manager: &UnixDatagram) -> (String, Option<OwnedFd>) {
    let mut buffer = [0; 4096];
    let (length, mut fds) = sys::socket::receive(manager.as_fd(), &mut buffer).expect("somebody notifies");
    (String::from_utf8_lossy(&buffer[..length]).into_owned(), fds.pop())
}

#[track_caller]
fn nothing_more(manager: &UnixDatagram) {
    manager.set_nonblocking(true).expect("it is a socket");
    assert!(manager.recv(&mut [0; 16]).is_err(), "nothing else was said");
    manager.set_nonblocking(false).expect("it is a socket");
}

/// What a waiting `start` and a detached `run` do: they end when the manager has heard.
#[track_caller]
fn ends_when_heard(bundle: &Bundle, manager: &UnixDatagram, mut child: Child) {
    waits(&mut child);
    let_go(bundle);
    let pid = bundle.state("box", "pid");
    assert_eq!(next(manager).0, format!("READY=1\nMAINPID={pid}\n"), "{}", bundle.log());
    let (barrier, fd) = next(manager);
    assert!(barrier == "BARRIER=1" && fd.is_some(), "{barrier}");
    waits(&mut child);
    drop(fd);
    assert!(child.wait().expect("our own child").success(), "{}", bundle.log());
    assert_eq!((bundle.state("box", "status"), bundle.log().as_str()), (json!("running"), ""));
    nothing_more(manager);
}

#[test]
fn start_waits_until_the_payload_is_ready() {
    let Some((mut bundle, manager)) = service() else { return };
    if identity() == "subuids" {
        bundle.map_all().config["process"]["user"] = json!({ "uid": 33, "gid": 33 });
    }
    bundle.create("box");
    let child = start(&mut bundle.command(&["start", "box"]));
    ends_when_heard(&bundle, &manager, child);
    let inside = "env | grep -c ^NOTIFY_SOCKET=; touch /run/notify/file";
    let done = bundle.call(&["exec", "box", "sh", "-c", inside]);
    assert_eq!(done.stdout, "0\n", "a command that is executed later is no service: {done:#?}");
    assert!(done.stderr.contains("Read-only file system"), "{done:#?}");
    bundle.ok(&["delete", "--force", "box"]);
}

#[test]
fn a_detached_run_waits_until_the_payload_is_ready() {
    let Some((bundle, manager)) = service() else { return };
    let child = begin(&bundle, &["run", "--detach", "--bundle", &bundle.at(), "box"]);
    ends_when_heard(&bundle, &manager, child);
}

#[test]
fn a_run_passes_the_word_on_while_it_waits_for_the_end() {
    let Some((mut bundle, _)) = service() else { return };
    // One of the abstract namespace.
    let name = format!("manager-{}", unique());
    let address = SocketAddr::from_abstract_name(&name).expect("a short name");
    let manager = UnixDatagram::bind_addr(&address).expect("nobody has it");
    manager.set_read_timeout(Some(LIMIT)).expect("it is a socket");
    bundle.env = vec![("NOTIFY_SOCKET", format!("@{name}"))];
    bundle.script(&SERVICE.replace("sleep 100", "while [ -e /tmp/go ]; do sleep 0.02; done; exit 3"));
    let mut child = begin(&bundle, &["run", "--bundle", &bundle.at(), "box"]);
    let_go(&bundle);
    assert_eq!(next(&manager).0, format!("READY=1\nMAINPID={}\n", child.id()), "{}", bundle.log());
    waits(&mut child);
    nothing_more(&manager);
    fs::remove_file(bundle.path.join("rootfs/tmp/go")).expect("it is there");
    assert_eq!(child.wait().expect("our own child").code(), Some(3), "{}", bundle.log());
}

#[test]
fn a_payload_that_ends_keeps_nobody_waiting() {
    let Some((mut bundle, manager)) = service() else { return };
    bundle.script("true");
    bundle.create("box");
    let done = end(start(&mut bundle.command(&["start", "box"])), LIMIT);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:#?}");
    nothing_more(&manager);
}

#[test]
fn a_manager_that_cannot_be_told_is_no_failure() {
    let Some((mut bundle, manager)) = service() else { return };
    let_go(&bundle);
    drop(manager);
    fs::remove_file(bundle.path.join("manager")).expect("it was bound");
    bundle.create("box");
    let done = end(start(&mut bundle.command(&["start", "box"])), LIMIT);
    assert_eq!(done.code, 0, "{done:#?}");
    assert!(done.stderr.contains("notifying the service manager at"), "{done:#?}");
    assert_eq!(bundle.state("box", "status"), "running");
    bundle.ok(&["delete", "--force", "box"]);

    bundle.env = vec![("NOTIFY_SOCKET", "vsock:2:1".to_owned())];
    bundle.script("env | grep NOTIFY; true");
    let done = bundle.call(&["run", "--bundle", &bundle.at(), "box"]);
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{done:#?}");
    let said = without_steps(&done.stderr);
    assert!(said.contains("only sockets of unix(7) are supported"), "{said}");
}

#[test]
fn who_starts_without_a_manager_does_not_wait() {
    let Some((mut bundle, manager)) = service() else { return };
    bundle.create("box");
    let env = std::mem::take(&mut bundle.env);
    bundle.ok(&["start", "box"]);
    bundle.ok(&["delete", "--force", "box"]);
    // And the other way round.
    bundle.create("box");
    bundle.env = env;
    let done = bundle.call(&["start", "box"]);
    assert_eq!(done.code, 0, "{done:#?}");
    assert!(done.stderr.contains("was not set when the container was created"), "{done:#?}");
    nothing_more(&manager);
}
