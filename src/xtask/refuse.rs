//! A command whose kernel lacks system calls, by a filter that all its children have.
//!
//! A call answers `ENOSYS`, as on a kernel without it, or with `=EPERM` at the end of the list that, as under the filters of
//! Docker and systemd. Only root can do so without `no_new_privs`, which would disarm the set-id helpers that are under
//! test. A control file is no call: that one is switched off in the binary itself, which needs debug assertions.

use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;
use sys::Errno;
use sys::seccomp::Instruction;

use crate::shell::Fallible;

/// The calls by the words of the command line.
const CALLS: &[(&str, &[libc::c_long])] = &[
    ("openat2", &[libc::SYS_openat2]),
    ("clone3", &[libc::SYS_clone3]),
    ("pidfd_open", &[libc::SYS_pidfd_open]),
    ("close_range", &[libc::SYS_close_range]),
    (
        "mount-api",
        &[
            libc::SYS_fsopen,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_mount_setattr,
        ],
    ),
    (CGROUP_KILL, &[]),
];
/// The control file.
const CGROUP_KILL: &str = "cgroup.kill";

/// One part of the whole run.
pub struct Round {
    /// What there is not.
    pub calls: &'static str,
    /// Which test programs run so.
    pub areas: &'static [&'static str],
    /// Which of their tests, by parts of names; all but the long ones where this is empty.
    pub tests: &'static [&'static str],
}

/// What the whole run does without, in turn. Calls that no code uses for the same purpose share a round.
pub const ROUNDS: &[Round] = &[
    Round { calls: "openat2,pidfd_open,cgroup.kill", areas: &["oci"], tests: &[] },
    Round { calls: "clone3,close_range", areas: &["oci"], tests: &[] },
    Round { calls: "mount-api", areas: &["oci"], tests: &[] },
    Round { calls: "mount-api", areas: &["storage"], tests: &["what_is_taken_follows_the_mount_api"] },
    Round {
        // Not clone3: filters answer ENOSYS there, as the C library makes threads by clone(2) only then.
        calls: "openat2,pidfd_open,close_range,mount-api=EPERM",
        areas: &["oci", "security"],
        // Not those that look for the binary's inode, which a copy in memory has not, or at the filters of a process.
        tests: &["exec::", "life::", "spec::", "_bundles_", "no_write_of_the_runtime", "refused_by_the_runtime"],
    },
    Round { calls: "clone3,pidfd_open,cgroup.kill=EPERM", areas: &["cgroup/oci"], tests: &[] },
];

// linux/bpf_common.h and linux/seccomp.h.
const LOAD_WORD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const RET_ALLOW: u32 = 0x7fff_0000;
const RET_ERRNO: u32 = 0x0005_0000;

/// The numbers of a list of words; an error names the word that is none.
fn numbers(list: &str) -> Fallible<Vec<libc::c_long>> {
    let mut found = Vec::new();
    for word in list.split(',') {
        let call = CALLS.iter().find(|(name, _)| *name == word);
        found.extend(call.ok_or_else(|| format!("no call to refuse is named {word}"))?.1);
    }
    Ok(found)
}

/// Becomes the command, without the calls of the list.
pub fn run(list: &str, command: &[String]) -> Fallible<bool> {
    let (list, answer) = list.strip_suffix("=EPERM").map_or((list, Errno::ENOSYS), |list| (list, Errno::EPERM));
    let step = |code, jump_false, operand| Instruction { code, jump_true: 0, jump_false, operand };
    let mut program = vec![step(LOAD_WORD, 0, 0)];
    for number in numbers(list)? {
        program.push(step(JUMP_EQUAL, 1, u32::try_from(number)?));
        program.push(step(RETURN, 0, RET_ERRNO | answer as u32));
    }
    program.push(step(RETURN, 0, RET_ALLOW));
    let (first, rest) = command.split_first().ok_or("no command to run")?;
    sys::seccomp::load(&program)?;
    let mut command = Command::new(first);
    if list.split(',').any(|word| word == CGROUP_KILL) {
        command.env("SUBLET_WITHOUT", CGROUP_KILL);
    }
    Err(command.args(rest).exec().into())
}
