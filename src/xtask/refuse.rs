//! A command whose kernel lacks system calls: every one of these answers `ENOSYS`, by a filter that all its children have.
//!
//! Only root can do so without `no_new_privs`, which would disarm the set-id helpers that are under test.

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
];
/// What the tests of the whole run do without, in turn.
pub fn words() -> impl Iterator<Item = &'static str> {
    CALLS.iter().map(|(word, _)| *word)
}

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
    let step = |code, jump_false, operand| Instruction { code, jump_true: 0, jump_false, operand };
    let mut program = vec![step(LOAD_WORD, 0, 0)];
    for number in numbers(list)? {
        program.push(step(JUMP_EQUAL, 1, u32::try_from(number)?));
        program.push(step(RETURN, 0, RET_ERRNO | Errno::ENOSYS as u32));
    }
    program.push(step(RETURN, 0, RET_ALLOW));
    let (first, rest) = command.split_first().ok_or("no command to run")?;
    sys::seccomp::load(&program)?;
    Err(Command::new(first).args(rest).exec().into())
}
