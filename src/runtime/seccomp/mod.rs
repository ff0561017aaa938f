//! From a seccomp profile of the runtime specification to the BPF program the kernel runs before every system call.
//!
//! [`compile`] is a pure function. The program's shape, for each architecture of the profile:
//! ```text
//! architecture word? ──no──▶ next architecture … none left: kill the process
//!   └ (x86_64 only) number ≥ 0x40000000? ──▶ the x32 tree, or ENOSYS when the profile does not name x32
//!   └ binary search over ranges of numbers with the same answer ──▶ return, or argument checks and then return
//! ```
//! **Meaning.** The rules that name a call are tried in the profile's order, those with conditions before those without;
//! the first whose conditions all hold decides, else the default action. Two conditions on one argument in a rule are
//! alternatives, as other runtimes read them. Names that an architecture does not have are skipped there.
//!
//! **Newer calls.** When the default refuses, a number above the newest one the profile names for that architecture
//! answers `ENOSYS`: the profile's author did not know the call, and programs fall back on that errno only.
//!
//! **Arguments.** Comparisons are on 64 bits, in two halves. Where the kernel takes only the low 32 bits of an argument
//! ([`INT_ARGUMENTS`]), only those are compared: otherwise a set high bit would slip past a rule and be ignored by the
//! call (CVE-2019-10063).
//!
//! **Cost.** Since Linux 5.11 calls that are always allowed are found once at load and kept in a bitmap; the program
//! runs only for the others.
//!
//! Not supported, and refused by name: `SCMP_ACT_NOTIFY`, and filter flags other than `TSYNC` (which has no effect on
//! the single thread that loads the program). A profile for architectures other than x86_64, x86, x32, aarch64 and arm
//! compiles for those it shares with us.

mod default;
mod numbers;
#[cfg(test)]
mod tests;
mod tree;

use base::{Explain, Kind};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};
use sys::seccomp::Instruction;

pub use default::default_profile;
use numbers::{ARM_PRIVATE, NONE, NUMBERS, X32_BIT};
use tree::{Answer, Condition, Program, Range, Rule, Test};

/// The kernel's limit on instructions (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;
/// The largest errno a filter can return (`MAX_ERRNO`).
const MAX_ERRNO: u32 = 4095;
const ENOSYS: u32 = 38;

const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_ERRNO: u32 = 0x0005_0000;

/// Arguments that the kernel takes as 32-bit values although registers hold 64: call, bit n = argument n.
const INT_ARGUMENTS: &[(&str, u8)] = &[
    ("bpf", 0b001),
    ("fcntl", 0b011),
    ("getsockopt", 0b111),
    ("ioctl", 0b011),
    ("keyctl", 0b001),
    ("personality", 0b001),
    ("prctl", 0b001),
    ("seccomp", 0b011),
    ("setsockopt", 0b111),
    ("socket", 0b111),
    ("socketpair", 0b111),
];

/// One way in which system calls reach this kernel: the word in `seccomp_data.arch` and a column of [`NUMBERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Abi {
    arch: Arch,
    audit_word: u32,
    column: usize,
}

/// All ABIs we have numbers for (words of linux/audit.h).
const ABIS: [Abi; 5] = [
    Abi { arch: Arch::ScmpArchX86_64, audit_word: 0xc000_003e, column: 0 },
    Abi { arch: Arch::ScmpArchX86, audit_word: 0x4000_0003, column: 1 },
    Abi { arch: Arch::ScmpArchX32, audit_word: 0xc000_003e, column: 2 },
    Abi { arch: Arch::ScmpArchAarch64, audit_word: 0xc000_00b7, column: 3 },
    Abi { arch: Arch::ScmpArchArm, audit_word: 0x4000_0028, column: 4 },
];

/// The ABI this binary was built for.
#[cfg(target_arch = "x86_64")]
const NATIVE: Arch = Arch::ScmpArchX86_64;
/// The ABI this binary was built for.
#[cfg(target_arch = "aarch64")]
const NATIVE: Arch = Arch::ScmpArchAarch64;

/// Why a profile cannot become a program.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeccompError {
    /// The action needs a listener, which no role serves.
    #[error("the seccomp profile uses {0}, which is not supported")]
    Action(LinuxSeccompAction),
    /// A flag that [`sys::seccomp::load`] does not pass.
    #[error("the seccomp profile has the flag {0}, which is not supported")]
    Flag(LinuxSeccompFilterFlag),
    /// An errno outside 0..=4095, or a trace value outside 16 bits.
    #[error("the seccomp profile returns {value} with {action}; at most {max} is possible")]
    ReturnValue {
        /// The action with the value.
        action: LinuxSeccompAction,
        /// The value of the profile.
        value: u32,
        /// The largest one possible.
        max: u32,
    },
    /// A system call has six arguments.
    #[error("the seccomp profile compares argument {index} of {call}; arguments are numbered 0 to 5")]
    ArgumentIndex {
        /// The call's name.
        call: String,
        /// The index of the profile.
        index: usize,
    },
    /// The kernel takes 4096 instructions.
    #[error("the seccomp profile compiles to {0} instructions; the kernel takes {MAX_INSTRUCTIONS}")]
    TooLong(usize),
}

impl Explain for SeccompError {
    fn kind(&self) -> Kind {
        match self {
            SeccompError::Action(_) | SeccompError::Flag(_) => Kind::Unsupported,
            _ => Kind::Usage,
        }
    }
}

/// Compiles a profile. Without a list of architectures it holds for the native one alone; the native one is always in.
pub fn compile(profile: &LinuxSeccomp) -> Result<Vec<Instruction>, SeccompError> {
    check_flags(profile)?;
    let default = return_value(profile.default_action(), profile.default_errno_ret())?;
    let unknown = if refuses(profile.default_action()) { RET_ERRNO | ENOSYS } else { default };
    let (abis, rules) = (abis(profile), rules(profile)?);
    let mut program = Program::default();
    // Backwards: every piece is put in front of what it jumps over.
    program.ret(RET_KILL_PROCESS);
    for abi in abis.iter().rev().filter(|abi| abi.arch != Arch::ScmpArchX32) {
        let end = program.len();
        program.tree(&ranges(&rules, *abi, default, unknown));
        if abi.arch == Arch::ScmpArchX86_64 {
            let low = program.len();
            match abis.iter().find(|other| other.arch == Arch::ScmpArchX32) {
                Some(x32) => program.tree(&ranges(&rules, *x32, default, unknown)),
                None => program.ret(RET_ERRNO | ENOSYS),
            }
            program.below(X32_BIT, low);
        }
        program.load_number();
        program.unless_arch(abi.audit_word, end);
    }
    program.load_arch();
    let instructions = program.finish();
    if instructions.len() > MAX_INSTRUCTIONS {
        Err(SeccompError::TooLong(instructions.len()))
    } else {
        Ok(instructions)
    }
}

fn check_flags(profile: &LinuxSeccomp) -> Result<(), SeccompError> {
    let mut flags = profile.flags().iter().flatten();
    flags
        .find(|flag| **flag != LinuxSeccompFilterFlag::SeccompFilterFlagTsync)
        .map_or(Ok(()), |flag| Err(SeccompError::Flag(*flag)))
}

/// The ABIs a profile speaks for, the native one first.
fn abis(profile: &LinuxSeccomp) -> Vec<Abi> {
    let listed = profile.architectures().as_deref().unwrap_or_default();
    let (mut native, others): (Vec<_>, Vec<_>) = ABIS
        .into_iter()
        .filter(|abi| abi.arch == NATIVE || listed.contains(&abi.arch))
        .partition(|abi| abi.arch == NATIVE);
    native.extend(others);
    native
}

/// The profile's rules in order, each with the row of [`NUMBERS`] it is for; names without a row are skipped.
fn rules(profile: &LinuxSeccomp) -> Result<Vec<(usize, Rule)>, SeccompError> {
    let mut out = Vec::new();
    for rule in profile.syscalls().iter().flatten() {
        let value = return_value(rule.action(), rule.errno_ret())?;
        for name in rule.names() {
            if let Ok(row) = NUMBERS.binary_search_by_key(&name.as_str(), |(known, _)| known) {
                add_rules(&mut out, row, name, rule, value)?;
            }
        }
    }
    Ok(out)
}

/// What every number of an ABI gets, as ranges from 0 up.
fn ranges(rules: &[(usize, Rule)], abi: Abi, default: u32, unknown: u32) -> Vec<Range> {
    let bit = if abi.arch == Arch::ScmpArchX32 { X32_BIT } else { 0 };
    let numbered = rules.iter().map(|(row, rule)| (NUMBERS[*row].1[abi.column], rule));
    let mut calls: Vec<(u32, &Rule)> = numbered.filter(|(number, _)| *number != NONE).collect();
    calls.sort_by_key(|(number, _)| *number); // stable: rules of one number stay in the profile's order
    let newest = calls.iter().map(|(number, _)| *number).filter(|number| *number < ARM_PRIVATE).max();
    let mut out: Vec<Range> = Vec::new();
    let mut next = 0;
    for same in calls.chunk_by(|(left, _), (right, _)| left == right) {
        let number = same[0].0;
        if next < number {
            push(&mut out, next | bit, gap(next, newest, default, unknown));
        }
        push(&mut out, number | bit, answer(same, default));
        next = number + 1;
    }
    push(&mut out, next | bit, gap(next, newest, default, unknown));
    out
}

/// The answer of numbers from `start` up that the profile does not name.
fn gap(start: u32, newest: Option<u32>, default: u32, unknown: u32) -> Answer {
    Answer::Return(if newest.is_some_and(|newest| start > newest) { unknown } else { default })
}

/// Adds a range, or widens the last one when the answer is the same.
fn push(ranges: &mut Vec<Range>, start: u32, answer: Answer) {
    if ranges.last().is_none_or(|last| last.answer != answer) {
        ranges.push(Range { start, answer });
    }
}

/// Rules of one call, in the order of trial: conditional ones first, then the first unconditional one.
fn answer(rules: &[(u32, &Rule)], default: u32) -> Answer {
    let all = || rules.iter().map(|(_, rule)| *rule);
    let otherwise = all().find(|rule| rule.conditions.is_empty()).map_or(default, |rule| rule.value);
    let mut tests: Vec<Rule> = all().filter(|rule| !rule.conditions.is_empty()).cloned().collect();
    while tests.last().is_some_and(|rule| rule.value == otherwise) {
        tests.pop(); // decides nothing
    }
    if tests.is_empty() { Answer::Return(otherwise) } else { Answer::Test(tests, otherwise) }
}

/// One profile rule for one call; conditions on the same argument become rules of their own.
fn add_rules(
    rules: &mut Vec<(usize, Rule)>,
    row: usize,
    call: &str,
    rule: &LinuxSyscall,
    value: u32,
) -> Result<(), SeccompError> {
    let args = rule.args().as_deref().unwrap_or_default();
    let int = INT_ARGUMENTS.iter().find(|(name, _)| *name == call).map_or(0, |(_, mask)| *mask);
    let mut conditions = Vec::with_capacity(args.len());
    for arg in args {
        if arg.index() > 5 {
            return Err(SeccompError::ArgumentIndex { call: call.to_owned(), index: arg.index() });
        }
        conditions.push(condition(arg, int & (1 << arg.index()) != 0));
    }
    let repeated = args.iter().enumerate().any(|(at, arg)| args[..at].iter().any(|other| other.index() == arg.index()));
    if repeated {
        rules.extend(conditions.into_iter().map(|condition| (row, Rule { conditions: vec![condition], value })));
    } else {
        rules.push((row, Rule { conditions, value }));
    }
    Ok(())
}

fn condition(arg: &LinuxSeccompArg, int: bool) -> Condition {
    let second = arg.value_two().unwrap_or(0);
    let test = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => Test::Ne(arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => Test::Lt(arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => Test::Le(arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => Test::Eq(arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => Test::Ge(arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => Test::Gt(arg.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => Test::MaskedEq { mask: arg.value(), value: second },
    };
    Condition { argument: arg.index() as u32, test, low_half: int }
}

/// Whether an action is a refusal.
fn refuses(action: LinuxSeccompAction) -> bool {
    use LinuxSeccompAction as A;
    matches!(action, A::ScmpActErrno | A::ScmpActKill | A::ScmpActKillThread | A::ScmpActKillProcess | A::ScmpActTrap)
}

/// The filter's return value for an action (seccomp(2)).
fn return_value(action: LinuxSeccompAction, data: Option<u32>) -> Result<u32, SeccompError> {
    let max = match action {
        LinuxSeccompAction::ScmpActNotify => return Err(SeccompError::Action(action)),
        LinuxSeccompAction::ScmpActErrno => MAX_ERRNO,
        LinuxSeccompAction::ScmpActTrace => u16::MAX.into(),
        _ => return Ok(action.into()),
    };
    match data {
        Some(value) if value > max => Err(SeccompError::ReturnValue { action, value, max }),
        data => Ok(action.as_u32(data)), // EPERM when nothing is said
    }
}
