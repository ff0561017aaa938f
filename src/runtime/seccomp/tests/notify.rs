//! An agent that gets the listener and answers. It is a Python script, since answering takes ioctls; skipped without
//! one.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use nix::unistd::{Pid, getpgid};
use oci_spec::runtime::{ContainerState, StateBuilder};

use super::listener::{Agent, Handover, load, message};
use super::*;

/// Listens at its first argument; takes one connection, prints the message, and answers: a call of the number in its
/// second argument returns 4242, every other one goes on in the kernel.
const AGENT: &str = r#"
import array, fcntl, os, socket, struct, sys
RECV, SEND = 0xc0502100, 0xc0182101
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print("listening", flush=True)
peer, _ = server.accept()
if len(sys.argv) == 2: sys.exit()
fds = array.array("i")
text, control, _, _ = peer.recvmsg(65536, socket.CMSG_SPACE(4))
for level, kind, data in control: fds.frombytes(data)
while True:
    more = peer.recv(65536)
    if not more: break
    text += more
print(text.decode(), flush=True)
seen = set()
while True:
    notification = bytearray(80)
    try: fcntl.ioctl(fds[0], RECV, notification)
    except OSError: break
    identity, pid, flags, number = struct.unpack_from("QIIi", notification)
    if number not in seen: print("notified", number, flush=True)
    seen.add(number)
    wanted = number == int(sys.argv[2])
    answer = struct.pack("QqiI", identity, 4242 if wanted else 0, 0, 0 if wanted else 1)
    try: fcntl.ioctl(fds[0], SEND, answer)
    except OSError: pass
"#;

struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    directory: std::path::PathBuf,
}

impl Running {
    /// Starts the agent and waits until it listens. The path is longer than an address holds.
    fn start(test: &str, arguments: &[&str]) -> Option<Running> {
        let name = format!("seccomp-{test}-{}-{}", std::process::id(), "long".repeat(30));
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        let spawned = Command::new("python3")
            .args(["-c", AGENT, "socket"])
            .args(arguments)
            .current_dir(&directory)
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = spawned else {
            println!("skipped: there is no python3");
            return None;
        };
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "listening");
        Some(Running { child, lines, directory })
    }

    fn connect(&self) -> Agent {
        Agent::connect(&self.directory.join("socket")).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Whatever calls of the listed kind the loading thread makes, it waits for the agent's answer.
const PROFILE: &str = r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x","syscalls":[{"action":"SCMP_ACT_NOTIFY",
    "names":["getpgid","write","sendmsg","close","futex","munmap","madvise","shutdown","sched_yield"]}]}"#;
/// Those of them that a thread makes by itself.
const OTHERS: &str = r#","write","sendmsg","close","futex","munmap","madvise","shutdown","sched_yield""#;

fn state() -> oci_spec::runtime::State {
    let builder = StateBuilder::default().version("1.2.0").id("c1").status(ContainerState::Creating).pid(77);
    builder.bundle("/bundle").build().unwrap()
}

#[test]
fn the_agent_gets_the_state_and_answers() {
    let getpgid_number = number("getpgid", abi(NATIVE));
    let Some(mut agent) = Running::start("answers", &[&getpgid_number.to_string()]) else { return };
    let connection = agent.connect();
    let text = message(state(), 77, Some("opaque")).unwrap();
    let loading = std::thread::spawn(move || {
        nix::sys::prctl::set_no_new_privs().unwrap();
        let filter = compile(&parse(PROFILE)).unwrap();
        assert!(filter.notifies());
        load(&filter, &Handover { agent: connection, message: text }).unwrap();
        getpgid(None)
    });
    assert_eq!(loading.join().unwrap(), Ok(Pid::from_raw(4242)), "the agent's answer, not the kernel's");
    let told: serde_json::Value = serde_json::from_str(&agent.lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(
        told,
        serde_json::json!({"ociVersion": "1.2.0", "fds": ["seccompFd"], "pid": 77, "metadata": "opaque", "state":
            {"ociVersion": "1.2.0", "id": "c1", "status": "creating", "pid": 77, "bundle": "/bundle"}})
    );
    assert!(agent.lines.any(|line| line.unwrap() == format!("notified {getpgid_number}")));
}

#[test]
fn without_metadata_there_is_no_field() {
    let text = message(state(), 78, None).unwrap();
    let told: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!((told["pid"].as_i64(), told.get("metadata")), (Some(78), None));
}

/// An agent that hangs up: loading fails, and notified calls fail with `ENOSYS` instead of waiting for ever.
#[test]
fn a_lost_agent_is_an_error_and_no_hang() {
    let Some(mut agent) = Running::start("lost", &[]) else { return };
    let connection = agent.connect();
    assert!(agent.child.wait().unwrap().success());
    let text = message(state(), 77, None).unwrap();
    // A C library ends the process when a futex is refused, as at a lock of its allocator that another test holds.
    let filter = compile(&parse(&PROFILE.replace(r#""futex","#, ""))).unwrap();
    let loading = std::thread::spawn(move || {
        nix::sys::prctl::set_no_new_privs().unwrap();
        let error = load(&filter, &Handover { agent: connection, message: text }).unwrap_err();
        (error.errno(), getpgid(None))
    });
    assert_eq!(loading.join().unwrap(), (Errno::EPIPE, Err(Errno::ENOSYS)));
}

/// An agent that does not read: what fits into the socket is sent, and what does not is an error at once.
#[test]
fn nobody_waits_for_an_agent_that_does_not_read() {
    let directory = std::env::temp_dir().join(format!("seccomp-deaf-{}", std::process::id()));
    let _deaf = std::os::unix::net::UnixListener::bind(&directory).unwrap();
    for (length, sent) in [(100 << 10, Ok(())), (8 << 20, Err(Errno::EAGAIN))] {
        let connection = Agent::connect(&directory).unwrap();
        let filter = compile(&parse(&PROFILE.replace(OTHERS, ""))).unwrap();
        let loading = std::thread::spawn(move || {
            nix::sys::prctl::set_no_new_privs().unwrap();
            let began = std::time::Instant::now();
            let loaded = load(&filter, &Handover { agent: connection, message: vec![b' '; length] });
            (loaded.map_err(|error| error.errno()), began.elapsed())
        });
        let (loaded, took) = loading.join().unwrap();
        assert_eq!(loaded, sent, "{length} bytes");
        assert!(took < std::time::Duration::from_secs(5), "{took:?}");
    }
    std::fs::remove_file(&directory).unwrap();
}

#[test]
fn no_agent_is_an_error_before_anything_is_loaded() {
    let missing = std::env::temp_dir().join("no-such-agent-of-seccomp");
    assert_eq!(Agent::connect(&missing).unwrap_err().errno(), Errno::ENOENT);
    assert_eq!(Agent::connect(std::path::Path::new("/")).unwrap_err().errno(), Errno::EINVAL);
}
