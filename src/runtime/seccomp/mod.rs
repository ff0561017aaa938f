//! From a seccomp profile of the runtime specification to the BPF program the kernel runs before every system call.
//!
//! [`compile`] is a pure function, [`document`] reads the profiles that users write in Docker's format, [`listener`]
//! hands a container's notifications to its agent. The program's shape, for each architecture of the profile:
//! ```text
//! architecture word? ──no──▶ next architecture … none left: kill the process
//!   └ (x86_64 only) number ≥ 0x40000000? ──▶ the x32 tree, or ENOSYS when the profile does not name x32
//!   └ binary search over ranges of numbers with the same answer ──▶ return, or argument checks and then return
//! ```
//! **Meaning.** That of libseccomp, with which the profiles in use were tried:
//! - A rule that answers as the default does says nothing.
//! - A rule without conditions decides for its calls alone, wherever it stands; of several the first. Rules with
//!   conditions beside it are without effect, and told in [`Filter::ignored`].
//! - Of rules with conditions the first one whose conditions all hold decides, else the default. (libseccomp sorts
//!   them by argument, operator and value; where rules with different actions overlap, the profile's order is ours.)
//! - Two conditions on one argument in a rule are alternatives, and so are then all of its conditions.
//! - `SCMP_CMP_MASKED_EQ` compares the bits of the mask and no others, on both sides.
//! - Names that an architecture does not have are skipped there; names that none has are told in [`Filter::ignored`].
//!
//! **Architectures.** Those of the profile that this machine's kernel can be called by; its own one is always in. There
//! are tables for more machines than we build for, since a profile may be compiled for another.
//!
//! **Newer calls.** When the default refuses, a number above the newest one the profile names for that architecture
//! answers `ENOSYS`: the profile's author did not know the call, and programs fall back on that errno only.
//!
//! **Arguments.** Comparisons are on 64 bits, in two halves. On a 32-bit architecture, and where the kernel takes only
//! the low 32 bits of an argument ([`INT_ARGUMENTS`]), only those are compared: otherwise a set high bit would slip past
//! a rule and be ignored by the call (CVE-2019-10063).
//!
//! **Multiplexers.** 32-bit x86, ppc64le and s390x reach the calls on sockets and System V IPC also through
//! `socketcall` and `ipc`, whose first argument says which. A rule for one of them holds there too. Its conditions
//! cannot: the arguments lie in memory, out of a filter's sight. A rule with conditions that is stricter than the default
//! then refuses whatever they say, and one that is laxer does not hold (libseccomp drops the condition on the first
//! argument and grants the call).
//!
//! **Flags.** `LOG` and `SPEC_ALLOW` are passed on; without a list of flags it is `SPEC_ALLOW`, as in other runtimes.
//! `TSYNC` has no effect on the single thread that loads the program, `WAIT_KILLABLE_RECV` none without notifications.
//!
//! **Cost.** Since Linux 5.11 calls that are always allowed are found once at load and kept in a bitmap; the program
//! runs only for the others.

mod answered;
mod default;
pub mod document;
pub mod listener;
mod numbers;
mod rules;
#[cfg(test)]
mod tests;
mod tree;

use std::borrow::Cow;
use std::fmt;
use std::os::fd::OwnedFd;

use base::{Context, Explain, Kind, Report};
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag};
use sys::seccomp::{Flags, Instruction};
use sys::{Errno, SysError};

pub use answered::answered;
pub use default::default_profile;
use numbers::{ARM_PRIVATE, NONE, NUMBERS, X32_BIT};
use rules::{Meaning, Named};
use tree::{Answer, Condition, Layout, Program, Range, Rule, Test};

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
    ("ipc", 0b001),
    ("keyctl", 0b001),
    ("personality", 0b001),
    ("prctl", 0b001),
    ("seccomp", 0b011),
    ("setsockopt", 0b111),
    ("socket", 0b111),
    ("socketcall", 0b001),
    ("socketpair", 0b111),
];

/// One way in which system calls reach a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Abi {
    arch: Arch,
    /// The native one of the machines that have it.
    machine: Arch,
    /// The word in `seccomp_data.arch` (linux/audit.h).
    audit_word: u32,
    /// Its column of [`NUMBERS`].
    column: usize,
    /// How its arguments lie in `struct seccomp_data`.
    layout: Layout,
    /// Whether `socketcall` and `ipc` stand for other calls.
    multiplexed: bool,
}

const WIDE: Layout = Layout { narrow: false, big_endian: false };
const NARROW: Layout = Layout { narrow: true, big_endian: false };
const WIDE_BIG: Layout = Layout { narrow: false, big_endian: true };

/// All ABIs we have numbers for. x32 counts as narrow, as libseccomp has it.
#[rustfmt::skip] // a table
const ABIS: [Abi; 8] = {
    use Arch::{ScmpArchAarch64 as Aarch64, ScmpArchPpc64le as Ppc64le, ScmpArchRiscv64 as Riscv64,
               ScmpArchS390x as S390x, ScmpArchX86_64 as X86_64};
    [
        Abi { arch: X86_64, machine: X86_64, audit_word: 0xc000_003e, column: 0, layout: WIDE, multiplexed: false },
        Abi { arch: Arch::ScmpArchX86, machine: X86_64, audit_word: 0x4000_0003, column: 1, layout: NARROW, multiplexed: true },
        Abi { arch: Arch::ScmpArchX32, machine: X86_64, audit_word: 0xc000_003e, column: 2, layout: NARROW, multiplexed: false },
        Abi { arch: Aarch64, machine: Aarch64, audit_word: 0xc000_00b7, column: 3, layout: WIDE, multiplexed: false },
        Abi { arch: Arch::ScmpArchArm, machine: Aarch64, audit_word: 0x4000_0028, column: 4, layout: NARROW, multiplexed: false },
        Abi { arch: Riscv64, machine: Riscv64, audit_word: 0xc000_00f3, column: 5, layout: WIDE, multiplexed: false },
        Abi { arch: Ppc64le, machine: Ppc64le, audit_word: 0xc000_0015, column: 6, layout: WIDE, multiplexed: true },
        Abi { arch: S390x, machine: S390x, audit_word: 0x8000_0016, column: 7, layout: WIDE_BIG, multiplexed: true },
    ]
};

/// The architecture this binary was built for.
#[cfg(target_arch = "x86_64")]
const NATIVE: Arch = Arch::ScmpArchX86_64;
/// The architecture this binary was built for.
#[cfg(target_arch = "aarch64")]
const NATIVE: Arch = Arch::ScmpArchAarch64;

/// Why a profile cannot become a program.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeccompError {
    /// The agent would have to answer the calls that hand it the listener.
    #[error("the seccomp profile has SCMP_ACT_NOTIFY as its default action; it is possible in rules only")]
    NotifyByDefault,
    /// Nobody would answer.
    #[error("the seccomp profile uses SCMP_ACT_NOTIFY and has no listenerPath")]
    NoListener,
    /// The runtime specification forbids it.
    #[error("the seccomp profile has a listenerMetadata and no listenerPath")]
    MetadataAlone,
    /// The runtime specification forbids it.
    #[error("the seccomp profile returns {value} with {action}, which returns no value")]
    NoValue {
        /// The action with the value.
        action: LinuxSeccompAction,
        /// The value of the profile.
        value: u32,
    },
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
    /// A rule is for something.
    #[error("the seccomp profile has a rule for a system call with an empty name")]
    EmptyName,
    /// The kernel takes 4096 instructions.
    #[error("the seccomp profile compiles to {0} instructions; the kernel takes {MAX_INSTRUCTIONS}")]
    TooLong(usize),
}

impl Explain for SeccompError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// What of a profile has no effect.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ignored {
    /// No architecture that we know has a call of this name.
    UnknownCall(String),
    /// The conditions on this call stand beside a rule without any, which decides alone.
    Conditions(String),
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ignored::UnknownCall(call) => write!(f, "the seccomp profile names the unknown system call {call:?}"),
            Ignored::Conditions(call) => {
                write!(
                    f,
                    "the seccomp profile's conditions on {call} have no effect beside its rule without conditions"
                )
            }
        }
    }
}

/// A compiled profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    instructions: Vec<Instruction>,
    flags: Flags,
    ignored: Vec<Ignored>,
}

impl Filter {
    /// What the kernel runs.
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// How it is loaded.
    pub fn flags(&self) -> Flags {
        self.flags
    }

    /// What of the profile has no effect, each once, for a warning.
    pub fn ignored(&self) -> &[Ignored] {
        &self.ignored
    }

    /// Whether calls wait for the answer of an agent; then loading needs one ([`listener`]).
    pub fn notifies(&self) -> bool {
        self.flags.contains(Flags::NEW_LISTENER)
    }

    /// Whether the kernel knows what the profile asks for beside its rules: before anything is made for a container.
    pub fn check(&self) -> Result<(), SysError> {
        let asked = self.flags - Flags::SPEC_ALLOW;
        if asked.is_empty() { Ok(()) } else { sys::seccomp::check_flags(asked) }
    }

    /// Filters every later system call of the calling thread; see [`sys::seccomp::load_with`]. Returns the listener of a
    /// filter that notifies.
    pub fn load(&self) -> Result<Option<OwnedFd>, SysError> {
        match sys::seccomp::load_with(&self.instructions, self.flags) {
            // A kernel before 4.17; the flag only spares programs a mitigation of the processor.
            Err(error) if error.errno() == Errno::EINVAL && self.flags.contains(Flags::SPEC_ALLOW) => {
                sys::seccomp::load_with(&self.instructions, self.flags - Flags::SPEC_ALLOW)
            }
            result => result,
        }
    }
}

/// The profile that holds: the one that is given, else the default one for these capabilities.
pub(crate) fn chosen(given: Option<&LinuxSeccomp>, capabilities: Option<u64>) -> Option<Cow<'_, LinuxSeccomp>> {
    given.map(Cow::Borrowed).or_else(|| capabilities.map(|set| Cow::Owned(default_profile(set))))
}

/// Compiles a profile for this machine. Without a list of architectures it holds for the native one alone.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter, SeccompError> {
    let filter = compile_for(NATIVE, profile)?;
    if filter.notifies() && profile.listener_path().is_none() {
        return Err(SeccompError::NoListener);
    }
    Ok(filter)
}

/// Compiles a profile for a process whose starter knows no agent: one that needs one is refused. With `notify` our own role
/// answers calls of it ([`answered()`]).
pub fn compile_without_agent(profile: &LinuxSeccomp, notify: bool) -> Result<Filter, Report> {
    let step = || "compiling the seccomp profile".to_owned();
    let mut rules = profile.syscalls().iter().flatten();
    let asks = rules.any(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify);
    if notify && !asks {
        return compile_for(NATIVE, &answered(profile)).step(step);
    }
    let filter = compile(profile).step(step)?;
    if asks {
        let message = "the seccomp profile uses SCMP_ACT_NOTIFY, which this command hands to no agent";
        return Err(Report::new(Kind::Unsupported, message));
    }
    Ok(filter)
}

/// Compiles a profile for a process whose agent is found at the profile's `listenerPath`.
pub fn compile_with_agent(profile: &LinuxSeccomp) -> Result<Filter, Report> {
    compile(profile).step(|| "compiling the seccomp profile".to_owned())
}

/// Compiles a profile for machines of this native architecture.
fn compile_for(machine: Arch, profile: &LinuxSeccomp) -> Result<Filter, SeccompError> {
    let meaning = Meaning::of(profile)?;
    let flags = flags(profile, meaning.notifies)?;
    let abis = abis(machine, profile);
    let mut program = Program::default();
    // Backwards: every piece is put in front of what it jumps over.
    program.ret(RET_KILL_PROCESS);
    for abi in abis.iter().rev().filter(|abi| abi.arch != Arch::ScmpArchX32) {
        let end = program.len();
        program.tree(&ranges(&meaning, *abi), abi.layout);
        if abi.arch == Arch::ScmpArchX86_64 {
            let low = program.len();
            match abis.iter().find(|other| other.arch == Arch::ScmpArchX32) {
                Some(x32) => program.tree(&ranges(&meaning, *x32), x32.layout),
                None => program.tree(&without_x32(&meaning), abi.layout),
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
        Ok(Filter { instructions, flags, ignored: meaning.ignored() })
    }
}

/// What x32 numbers get where the profile does not name that ABI. -1 is none of them: a tracer that skips a call sets it,
/// and the filter then runs on it (Linux 4.8).
fn without_x32(meaning: &Meaning) -> [Range; 2] {
    [
        Range { start: X32_BIT, answer: Answer::Return(RET_ERRNO | ENOSYS) },
        Range { start: u32::MAX, answer: Answer::Return(meaning.unknown) },
    ]
}

fn flags(profile: &LinuxSeccomp, notifies: bool) -> Result<Flags, SeccompError> {
    use LinuxSeccompFilterFlag as F;
    if profile.listener_path().is_none() && profile.listener_metadata().is_some() {
        return Err(SeccompError::MetadataAlone);
    }
    let listed = profile.flags().as_deref().unwrap_or(&[F::SeccompFilterFlagSpecAllow]);
    let flags = listed.iter().map(|flag| match flag {
        F::SeccompFilterFlagLog => Flags::LOG,
        F::SeccompFilterFlagSpecAllow => Flags::SPEC_ALLOW,
        F::SeccompFilterFlagWaitKillableRecv if notifies => Flags::WAIT_KILLABLE_RECV,
        F::SeccompFilterFlagWaitKillableRecv | F::SeccompFilterFlagTsync => Flags::empty(),
    });
    let listener = if notifies { Flags::NEW_LISTENER } else { Flags::empty() };
    Ok(flags.fold(listener, Flags::union))
}

/// The ABIs of a machine that a profile speaks for, the native one first.
fn abis(machine: Arch, profile: &LinuxSeccomp) -> Vec<Abi> {
    let listed = profile.architectures().as_deref().unwrap_or_default();
    let of_machine = ABIS.into_iter().filter(|abi| abi.machine == machine);
    of_machine.filter(|abi| abi.arch == machine || listed.contains(&abi.arch)).collect()
}

/// What every number of an ABI gets, as ranges from 0 up.
fn ranges(meaning: &Meaning, abi: Abi) -> Vec<Range> {
    let bit = if abi.arch == Arch::ScmpArchX32 { X32_BIT } else { 0 };
    let calls = calls(meaning, abi);
    let newest = calls.iter().map(|(number, _)| *number).filter(|number| *number < ARM_PRIVATE).max();
    let gap = |start| {
        let unknown = newest.is_some_and(|newest| start > newest);
        Answer::Return(if unknown { meaning.unknown } else { meaning.default })
    };
    let mut out: Vec<Range> = Vec::new();
    let mut next = 0;
    if abi.arch == Arch::ScmpArchS390x {
        // There 0 is the number of a call whose own number lies in a register and is unknown to the kernel.
        push(&mut out, 0, Answer::Return(meaning.unknown));
        next = 1;
    }
    for same in calls.chunk_by(|(left, _), (right, _)| left == right) {
        let number = same[0].0;
        if next < number {
            push(&mut out, next | bit, gap(next));
        }
        push(&mut out, number | bit, answer(same, meaning.default));
        next = number + 1;
    }
    push(&mut out, next | bit, gap(next));
    out
}

/// An ABI's numbers with the rules for them: by number, then in the profile's order.
fn calls(meaning: &Meaning, abi: Abi) -> Vec<(u32, &Rule)> {
    let number = |row: usize| NUMBERS[row].1[abi.column];
    let mut calls: Vec<(u32, &Rule)> = Vec::with_capacity(meaning.rules.len());
    for Named { row, rule, multiplexed, .. } in &meaning.rules {
        calls.push((number(*row), rule));
        if let (true, Some((row, rule))) = (abi.multiplexed, multiplexed) {
            calls.push((number(*row), rule));
        }
    }
    calls.retain(|(number, _)| *number != NONE);
    calls.sort_by_key(|(number, _)| *number);
    calls
}

/// Adds a range, or widens the last one when the answer is the same.
fn push(ranges: &mut Vec<Range>, start: u32, answer: Answer) {
    if ranges.last().is_none_or(|last| last.answer != answer) {
        ranges.push(Range { start, answer });
    }
}

/// The answer of one call's rules.
fn answer(rules: &[(u32, &Rule)], default: u32) -> Answer {
    let mut telling = rules.iter().map(|(_, rule)| *rule).filter(|rule| rule.value != default).peekable();
    if let Some(rule) = telling.clone().find(|rule| rule.conditions.is_empty()) {
        return Answer::Return(rule.value);
    }
    match telling.peek() {
        Some(_) => Answer::Test(telling.cloned().collect(), default),
        None => Answer::Return(default),
    }
}
