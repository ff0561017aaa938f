//! Each action in the real kernel. A filter is a thread's own, so most loads happen in a thread; what ends a process
//! happens in a child, which is this test again.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpgid};

use super::*;

/// A profile that allows everything but one call, for which it has this rule.
fn one_rule(call: &str, action: &str) -> Filter {
    let rule = format!(r#"{{"names":["{call}"],"action":{action}}}"#);
    compile(&parse(&format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{rule}]}}"#))).unwrap()
}

/// What getpgid(2) of oneself returns under a filter, in a thread of its own.
fn getpgid_under(filter: Filter) -> nix::Result<Pid> {
    let in_thread = move || {
        nix::sys::prctl::set_no_new_privs().unwrap();
        assert!(filter.load().unwrap().is_none());
        getpgid(None)
    };
    std::thread::spawn(in_thread).join().unwrap()
}

#[test]
fn errno_trace_log_and_allow() {
    let under = |action: &str| getpgid_under(one_rule("getpgid", action));
    let own = getpgid(None);
    assert!(own.is_ok());
    assert_eq!(under(r#""SCMP_ACT_ERRNO""#), Err(Errno::EPERM));
    assert_eq!(under(r#""SCMP_ACT_ERRNO","errnoRet":122"#), Err(Errno::EDQUOT));
    assert_eq!(under(r#""SCMP_ACT_TRACE","errnoRet":7"#), Err(Errno::ENOSYS), "nobody traces");
    assert_eq!(under(r#""SCMP_ACT_LOG""#), own);
    assert_eq!(under(r#""SCMP_ACT_ALLOW""#), own);
}

#[test]
fn arguments_decide() {
    let filter = |op: &str| {
        let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["getpgid"],"action":"SCMP_ACT_ERRNO",
            "args":[{"index":0,"value":0,"valueTwo":0,"op":"OP"}]}]}"#;
        compile(&parse(&text.replace("OP", op))).unwrap()
    };
    for (op, refused) in [
        ("SCMP_CMP_EQ", true),
        ("SCMP_CMP_NE", false),
        ("SCMP_CMP_LT", false),
        ("SCMP_CMP_LE", true),
        ("SCMP_CMP_GE", true),
        ("SCMP_CMP_GT", false),
        ("SCMP_CMP_MASKED_EQ", true),
    ] {
        assert_eq!(getpgid_under(filter(op)).is_err(), refused, "{op}");
    }
}

#[test]
fn every_flag_is_taken() {
    let flags = r#"["SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_SPEC_ALLOW","SECCOMP_FILTER_FLAG_TSYNC"]"#;
    let filter = compile(&parse(&format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","flags":{flags}}}"#))).unwrap();
    assert_eq!(getpgid_under(filter), getpgid(None));
    // TSYNC would have put this thread and all the others under the first filter of the one before.
    let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    assert!(text.contains("Seccomp_filters:\t0"), "{text}");
}

/// Runs `body` with a word in a process of its own: this test binary with this test alone, which comes here again.
fn in_child(test: &str, word: &str, body: impl FnOnce(&str)) -> Output {
    const VARIABLE: &str = "SECCOMP_TEST_CHILD";
    if let Ok(word) = std::env::var(VARIABLE) {
        body(&word);
        std::process::exit(0);
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("seccomp::tests::kernel::{test}"), "--nocapture"]);
    command.env(VARIABLE, word).output().unwrap()
}

/// A thread that is killed leaves the process as it is.
#[test]
fn kill_thread_kills_the_thread() {
    let body = |_: &str| {
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            send.send(nix::unistd::gettid()).unwrap();
            let _ = getpgid_under_kill(&one_rule("getpgid", r#""SCMP_ACT_KILL_THREAD""#));
            println!("survived");
        });
        let thread = std::path::Path::new("/proc/self/task").join(receive.recv().unwrap().to_string());
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while thread.exists() && std::time::Instant::now() < limit {
            std::thread::yield_now();
        }
        println!("thread gone: {}", !thread.exists());
    };
    let output = in_child("kill_thread_kills_the_thread", "", body);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("thread gone: true") && !text.contains("survived"), "{output:?}");
}

/// In the calling thread, unlike [`getpgid_under`].
fn getpgid_under_kill(filter: &Filter) -> nix::Result<Pid> {
    nix::sys::prctl::set_no_new_privs().unwrap();
    filter.load().unwrap();
    getpgid(None)
}

#[test]
fn kill_process_kills_the_process() {
    let body = |_: &str| {
        let killed = std::thread::spawn(|| getpgid_under_kill(&one_rule("getpgid", r#""SCMP_ACT_KILL_PROCESS""#)));
        let _ = killed.join();
        println!("survived");
    };
    let output = in_child("kill_process_kills_the_process", "", body);
    assert_eq!(output.status.signal(), Some(Signal::SIGSYS as i32), "{output:?}");
}

/// `SCMP_ACT_TRAP` is a signal that a program can catch, `SCMP_ACT_KILL` is none: a shell that has a trap for it.
#[test]
fn trap_is_a_signal_and_kill_is_not() {
    let body = |action: &str| {
        nix::sys::prctl::set_no_new_privs().unwrap();
        one_rule("umask", &format!("{action:?}")).load().unwrap();
        let script = c"trap 'exit 7' SYS; umask 022; exit 8";
        let error = nix::unistd::execv(c"/bin/sh", &[c"sh", c"-c", script]);
        panic!("{error:?}");
    };
    for (action, code, signal) in [
        ("SCMP_ACT_TRAP", Some(7), None),
        ("SCMP_ACT_KILL", None, Some(Signal::SIGSYS as i32)),
        ("SCMP_ACT_KILL_THREAD", None, Some(Signal::SIGSYS as i32)),
        ("SCMP_ACT_ALLOW", Some(8), None),
    ] {
        let output = in_child("trap_is_a_signal_and_kill_is_not", action, body);
        assert_eq!((output.status.code(), output.status.signal()), (code, signal), "{action} {output:?}");
    }
}
