//! Loading a system call filter: seccomp(2), `SECCOMP_SET_MODE_FILTER`, Linux 3.17; and the program of a list of calls that
//! a role of ours makes.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use bitflags::bitflags;

use crate::error::{Errno, Result, check};

const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;

bitflags! {
    /// How a filter is loaded: `SECCOMP_FILTER_FLAG_*` of linux/seccomp.h.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Flags: u32 {
        /// Log every answer but "allow", as far as the administrator has not forbidden it. Linux 4.14.
        const LOG = 1 << 1;
        /// Leave the processor's speculative store bypass as it is. Linux 4.17.
        const SPEC_ALLOW = 1 << 2;
        /// Make a listener, which answers the calls that the program sends there. Linux 5.0; `EBUSY` when a filter that
        /// is already loaded has one.
        const NEW_LISTENER = 1 << 3;
        /// A call whose notification was received waits uninterrupted by all but fatal signals. Linux 5.19.
        const WAIT_KILLABLE_RECV = 1 << 5;
    }
}

/// One instruction of classic BPF: `struct sock_filter` of linux/filter.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Instruction {
    /// What to do: class, width, addressing mode or operator, bitwise or-ed.
    pub code: u16,
    /// Instructions to skip when a comparison holds.
    pub jump_true: u8,
    /// Instructions to skip when it does not.
    pub jump_false: u8,
    /// The operand: a constant, an offset into `struct seccomp_data`, or an unconditional jump's distance.
    pub operand: u32,
}

const _: () = assert!(size_of::<Instruction>() == 8 && align_of::<Instruction>() == 4);
const _: () = assert!(size_of::<Instruction>() == size_of::<libc::sock_filter>());

/// Filters every later system call of the calling thread and its descendants by `program`; it cannot be taken back.
///
/// Needs `no_new_privs` or `CAP_SYS_ADMIN` (`EACCES` otherwise). `EINVAL`: the program is empty, longer than 4096
/// instructions, or one of them is malformed.
pub fn load(program: &[Instruction]) -> Result<()> {
    load_with(program, Flags::empty()).map(drop)
}

/// Like [`load`], with flags; `EINVAL` also when the kernel does not know one. Returns the listener that
/// [`Flags::NEW_LISTENER`] makes, close-on-exec: once all its copies are closed, the calls that wait for its answer and
/// those that come later fail with `ENOSYS`.
pub fn load_with(program: &[Instruction], flags: Flags) -> Result<Option<OwnedFd>> {
    let length = u16::try_from(program.len()).unwrap_or(u16::MAX); // above BPF_MAXINSNS in any case: EINVAL
    // The kernel only reads through this pointer; C declares it mutable.
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut() };
    // SAFETY: `filter` is a live `struct sock_fprog` whose pointer covers at least `len` instructions of the layout of
    // `struct sock_filter` (checked above); both are borrowed for the call and only read.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags.bits(), std::ptr::from_ref(&filter)) };
    let fd = check(result, || format!("seccomp(SECCOMP_SET_MODE_FILTER, {flags:?}, {} instructions)", program.len()))?;
    // SAFETY: with this flag the kernel returns a fresh descriptor, owned by nobody else.
    Ok(flags.contains(Flags::NEW_LISTENER).then(|| unsafe { OwnedFd::from_raw_fd(fd as RawFd) }))
}

/// Whether [`load_with`] could take these flags: `EINVAL` when the kernel does not know one. Nothing is loaded.
pub fn check_flags(flags: Flags) -> Result<()> {
    let nothing = std::ptr::null::<libc::sock_fprog>();
    // SAFETY: a null program is `EFAULT`, once the flags have been looked at; the kernel reads no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags.bits(), nothing) };
    match check(result, || format!("seccomp(SECCOMP_SET_MODE_FILTER, {flags:?})")) {
        Err(error) if error.errno() == Errno::EFAULT => Ok(()),
        result => result.map(drop),
    }
}

/// When a system call passes an [`allow_list`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Always.
    Always,
    /// When this argument has one of these values.
    OneOf(u8, &'static [u32]),
    /// When this argument has none of these bits.
    Without(u8, u32),
    /// When this argument has all of these bits.
    With(u8, u32),
    /// Never: it fails with this errno, whatever the list does with calls that are not in it.
    Fails(Errno),
}

/// What the run-time libraries of any role call beside the role's own work, each with its reason. Where a list names a call
/// twice its first row holds, so a role that needs more of one puts its own row before these.
pub const RUN_TIME: &[(libc::c_long, Pass)] = &[
    // Complaints on standard error.
    (libc::SYS_write, Pass::Always),
    (libc::SYS_writev, Pass::Always),
    (libc::SYS_close, Pass::Always),
    // The standard library's own check, with debug assertions, of what it is about to close.
    (libc::SYS_fcntl, Pass::OneOf(1, &[libc::F_GETFD as u32])),
    // Memory; never executable.
    (libc::SYS_mmap, Pass::Without(2, libc::PROT_EXEC as u32)),
    (libc::SYS_mprotect, Pass::Without(2, libc::PROT_EXEC as u32)),
    (libc::SYS_munmap, Pass::Always),
    (libc::SYS_mremap, Pass::Always),
    (libc::SYS_madvise, Pass::Always),
    (libc::SYS_brk, Pass::Always),
    // Keys of hash tables.
    (libc::SYS_getrandom, Pass::Always),
    // Mostly answered without a system call, but not on every clock source.
    (libc::SYS_clock_gettime, Pass::Always),
    // Locks, signals, a wait that a stop has interrupted, and the end of the process.
    (libc::SYS_futex, Pass::Always),
    (libc::SYS_rt_sigprocmask, Pass::Always),
    (libc::SYS_rt_sigreturn, Pass::Always),
    (libc::SYS_sigaltstack, Pass::Always),
    (libc::SYS_restart_syscall, Pass::Always),
    (libc::SYS_exit_group, Pass::Always),
];

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;

// linux/bpf_common.h and linux/seccomp.h.
const LOAD_WORD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;
const RET_ALLOW: u32 = 0x7fff_0000;
const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const NUMBER_OFFSET: u32 = 0;
const ARCH_OFFSET: u32 = 4;
const ARGUMENTS_OFFSET: u32 = 16;

/// What becomes of a call that an [`allow_list`] does not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It fails with this errno.
    Fails(Errno),
    /// It ends the process with `SIGSYS`.
    Kills,
}

/// The program that lets these calls through, each under its condition (the low half of an argument is looked at; a call's
/// first row holds), and refuses all others; calls of another architecture kill.
pub fn allow_list<'a>(calls: impl IntoIterator<Item = &'a (libc::c_long, Pass)>, refusal: Refusal) -> Vec<Instruction> {
    let refuse = match refusal {
        Refusal::Fails(errno) => RET_ERRNO | errno as u32,
        Refusal::Kills => RET_KILL_PROCESS,
    };
    let step = |code, jump_true, jump_false, operand| Instruction { code, jump_true, jump_false, operand };
    let answer = |operand| step(RETURN, 0, 0, operand);
    // Little-endian: the low half of an argument comes first.
    let argument = |number: u8| step(LOAD_WORD, 0, 0, ARGUMENTS_OFFSET + 8 * u32::from(number));
    let mut program = vec![
        step(LOAD_WORD, 0, 0, ARCH_OFFSET),
        step(JUMP_EQUAL, 1, 0, AUDIT_ARCH),
        answer(RET_KILL_PROCESS),
        step(LOAD_WORD, 0, 0, NUMBER_OFFSET),
    ];
    for (number, pass) in calls {
        let body = match *pass {
            Pass::Always => vec![answer(RET_ALLOW)],
            Pass::Fails(errno) => vec![answer(RET_ERRNO | errno as u32)],
            Pass::OneOf(which, values) => {
                let count = values.len() as u8;
                let tests = (0..count).zip(values).map(|(at, value)| step(JUMP_EQUAL, count - at, 0, *value));
                let ends = [answer(refuse), answer(RET_ALLOW)];
                std::iter::once(argument(which)).chain(tests).chain(ends).collect()
            }
            Pass::Without(which, bits) => {
                vec![argument(which), step(JUMP_ANY_BIT, 0, 1, bits), answer(refuse), answer(RET_ALLOW)]
            }
            Pass::With(which, bits) => vec![
                argument(which),
                step(AND, 0, 0, bits),
                step(JUMP_EQUAL, 1, 0, bits),
                answer(refuse),
                answer(RET_ALLOW),
            ],
        };
        program.push(step(JUMP_EQUAL, 0, body.len() as u8, *number as u32));
        program.extend(body);
    }
    program.push(answer(refuse));
    program
}

/// Whether a program that [`allow_list`] made lets a call through: runs it as the kernel does. For tests of lists.
pub fn passes(program: &[Instruction], number: libc::c_long, arguments: [u32; 6]) -> bool {
    let load = |offset: u32| match offset {
        NUMBER_OFFSET => number as u32,
        ARCH_OFFSET => AUDIT_ARCH,
        other => arguments[(other - ARGUMENTS_OFFSET) as usize / 8],
    };
    let (mut accumulator, mut at) = (0, 0);
    loop {
        let step = program[at];
        at += 1;
        let jump = |holds: bool| usize::from(if holds { step.jump_true } else { step.jump_false });
        match step.code {
            LOAD_WORD => accumulator = load(step.operand),
            AND => accumulator &= step.operand,
            JUMP_EQUAL => at += jump(accumulator == step.operand),
            JUMP_ANY_BIT => at += jump(accumulator & step.operand != 0),
            _ => return step.operand == RET_ALLOW,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_known_or_not_without_a_program() {
        assert!(check_flags(Flags::empty()).is_ok());
        let unknown = check_flags(Flags::from_bits_retain(1 << 30)).map_err(|error| error.errno());
        assert_eq!(unknown, Err(Errno::EINVAL));
    }

    #[test]
    fn each_condition_is_that_of_its_words() {
        let list = [
            (libc::SYS_read, Pass::Always),
            (libc::SYS_ioctl, Pass::OneOf(1, &[7, 9])),
            (libc::SYS_openat, Pass::Without(2, 0b0011)),
            (libc::SYS_clone, Pass::With(0, 0b0110)),
            (libc::SYS_clone3, Pass::Fails(Errno::ENOSYS)),
            (libc::SYS_ioctl, Pass::Always),
        ];
        let program = allow_list(&list, Refusal::Kills);
        let ok = |number, arguments| passes(&program, number, arguments);
        assert!(ok(libc::SYS_read, [0; 6]) && !ok(libc::SYS_write, [0; 6]) && !ok(libc::SYS_clone3, [0; 6]));
        assert!([7, 9].iter().all(|request| ok(libc::SYS_ioctl, [0, *request, 0, 0, 0, 0])));
        assert!(!ok(libc::SYS_ioctl, [7, 8, 7, 0, 0, 0]));
        assert!(ok(libc::SYS_openat, [3, 3, 4, 0, 0, 0]) && !ok(libc::SYS_openat, [0, 0, 6, 0, 0, 0]));
        assert!(ok(libc::SYS_clone, [0b1111, 0, 0, 0, 0, 0]) && !ok(libc::SYS_clone, [0b1101, 0, 0, 0, 0, 0]));
        assert!(program.contains(&Instruction {
            code: RETURN,
            operand: RET_ERRNO | Errno::ENOSYS as u32,
            ..Instruction::default()
        }));
    }
}
