//! The program against a plain reading of the profile, against libseccomp, and in the kernel.
#![allow(clippy::unwrap_used, reason = "a test may die of a surprise")]
#![allow(clippy::disallowed_methods, reason = "nobody else is in the directories of tests")]

mod documents;
mod kernel;
mod known_bugs;
mod libseccomp;
mod notify;

use nix::errno::Errno;
use oci_spec::runtime::{
    LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall,
    LinuxSyscallBuilder,
};
use proptest::prelude::*;

use super::*;
use crate::capabilities;

const ALLOW: u32 = 0x7fff_0000;
const REFUSE: u32 = RET_ERRNO | 1;
/// The machines with a table.
const MACHINES: [Arch; 5] =
    [Arch::ScmpArchX86_64, Arch::ScmpArchAarch64, Arch::ScmpArchRiscv64, Arch::ScmpArchPpc64le, Arch::ScmpArchS390x];

fn abi(arch: Arch) -> Abi {
    ABIS.into_iter().find(|abi| abi.arch == arch).unwrap()
}

fn parse(text: &str) -> LinuxSeccomp {
    serde_json::from_str(text).unwrap()
}

/// A call's number in an ABI, as its callers pass it.
fn number(name: &str, abi: Abi) -> u32 {
    let row = NUMBERS.iter().find(|row| row.0 == name).unwrap();
    assert_ne!(row.1[abi.column], NONE, "{name} of {:?}", abi.arch);
    row.1[abi.column] | if abi.arch == Arch::ScmpArchX32 { X32_BIT } else { 0 }
}

/// What the kernel would answer to a call of an ABI: the subset of classic BPF that seccomp programs use.
fn interpret(program: &[Instruction], number: u32, abi: Abi, args: [u64; 6]) -> u32 {
    let mut data = [0_u32; 16];
    (data[0], data[1]) = (number, abi.audit_word);
    for (index, arg) in args.into_iter().enumerate() {
        let (low, high) = (arg as u32, (arg >> 32) as u32);
        let halves = if abi.layout.big_endian { (high, low) } else { (low, high) };
        (data[4 + 2 * index], data[5 + 2 * index]) = halves;
    }
    let (mut at, mut accumulator) = (0, 0);
    let mut memory = [0_u32; 16];
    loop {
        let Instruction { code, jump_true, jump_false, operand } = program[at];
        at += 1;
        let branch = |taken: bool| usize::from(if taken { jump_true } else { jump_false });
        match code {
            0x20 => accumulator = data[operand as usize / 4],
            0x60 => accumulator = memory[operand as usize],
            0x02 => memory[operand as usize] = accumulator,
            0x54 => accumulator &= operand,
            0x05 => at += operand as usize,
            0x15 => at += branch(accumulator == operand),
            0x25 => at += branch(accumulator > operand),
            0x35 => at += branch(accumulator >= operand),
            0x06 => return operand,
            code => panic!("instruction {code:#x}"),
        }
    }
}

/// The profile read as its documentation says, call by call.
struct Reading<'a> {
    default: u32,
    abi: Abi,
    statements: Vec<Statement<'a>>,
    newest: Option<u32>,
}

/// One name of one rule.
struct Statement<'a> {
    rule: &'a LinuxSyscall,
    value: u32,
    number: Option<u32>,
    int: u8,
    /// The multiplexer's number, the bits of its first argument that tell, and what they are.
    through: Option<(u32, u64, u64)>,
}

/// What a statement says of a call.
#[derive(PartialEq)]
enum Says {
    Nothing,
    Always,
    Holds,
    Fails,
}

impl<'a> Reading<'a> {
    fn new(profile: &'a LinuxSeccomp, abi: Abi) -> Self {
        let default = profile.default_action().as_u32(profile.default_errno_ret());
        let known = |name: &str| {
            let row = NUMBERS.iter().find(|row| row.0 == name).map(|row| row.1[abi.column]);
            row.filter(|number| *number != NONE)
        };
        let precedence = |value: u32| (value & 0xffff_0000) as i32;
        let statement = |rule: &'a LinuxSyscall, name: &str| {
            let value = rule.action().as_u32(rule.errno_ret());
            let checkable = is_unconditional(rule) || precedence(value) < precedence(default);
            let through = rules::multiplexer(name).filter(|_| abi.multiplexed && checkable);
            let through = through.and_then(|(multiplexer, operation)| {
                Some((known(multiplexer)?, if multiplexer == "ipc" { 0xffff } else { 0xffff_ffff }, operation))
            });
            let int = INT_ARGUMENTS.iter().find(|(call, _)| *call == name).map_or(0, |(_, mask)| *mask);
            let int = if abi.layout.narrow { 0b11_1111 } else { int };
            Statement { rule, value, number: known(name), int, through }
        };
        let statements: Vec<_> = profile
            .syscalls()
            .iter()
            .flatten()
            .flat_map(|rule| rule.names().iter().map(move |name| statement(rule, name)))
            .collect();
        let numbers = statements.iter().flat_map(|it| it.number.into_iter().chain(it.through.map(|it| it.0)));
        let newest = numbers.filter(|number| *number < ARM_PRIVATE).max();
        Reading { default, abi, statements, newest }
    }

    fn answer(&self, number: u32, args: [u64; 6]) -> u32 {
        let (mut conditional, mut always, mut listed) = (None, None, false);
        for statement in &self.statements {
            let says = statement.says(number, args);
            listed |= says != Says::Nothing;
            match says {
                Says::Always if statement.value != self.default => always = always.or(Some(statement.value)),
                Says::Holds if statement.value != self.default => conditional = conditional.or(Some(statement.value)),
                _ => {}
            }
        }
        let refuses = !matches!(self.default & 0xffff_0000, ALLOW | 0x7ffc_0000 | 0x7ff0_0000);
        let beyond = !listed && self.newest.is_some_and(|newest| number > newest);
        let multiplexed_unknown = self.abi.arch == Arch::ScmpArchS390x && number == 0;
        let unknown = if refuses && (beyond || multiplexed_unknown) { RET_ERRNO | ENOSYS } else { self.default };
        always.or(conditional).unwrap_or(unknown)
    }
}

impl Statement<'_> {
    fn says(&self, number: u32, args: [u64; 6]) -> Says {
        if let Some((_, bits, operation)) = self.through.filter(|it| it.0 == number) {
            return if args[0] & bits == operation { Says::Holds } else { Says::Fails };
        }
        if self.number != Some(number) {
            return Says::Nothing;
        }
        let list = conditions(self.rule);
        let mut results = list.iter().map(|arg| holds(arg, args, self.int));
        let holds = if are_alternatives(self.rule) { results.any(|it| it) } else { results.all(|it| it) };
        match (is_unconditional(self.rule), holds) {
            (true, _) => Says::Always,
            (_, true) => Says::Holds,
            (_, false) => Says::Fails,
        }
    }
}

/// Whether one condition of a rule is enough.
fn are_alternatives(rule: &LinuxSyscall) -> bool {
    let given = rule.args().as_deref().unwrap_or_default();
    (1..given.len()).any(|at| given[..at].iter().any(|it| it.index() == given[at].index()))
}

/// Whether a rule holds whatever the arguments are: one alternative that never fails is enough for that.
fn is_unconditional(rule: &LinuxSyscall) -> bool {
    let (list, given) = (conditions(rule), rule.args().as_deref().unwrap_or_default());
    if are_alternatives(rule) { list.len() < given.len() } else { list.is_empty() }
}

/// The conditions of a rule that can fail.
fn conditions(rule: &LinuxSyscall) -> Vec<&LinuxSeccompArg> {
    let never_fails = |arg: &&LinuxSeccompArg| arg.op() == LinuxSeccompOperator::ScmpCmpMaskedEq && arg.value() == 0;
    rule.args().iter().flatten().filter(|arg| !never_fails(arg)).collect()
}

fn holds(arg: &LinuxSeccompArg, args: [u64; 6], int: u8) -> bool {
    let half = |value: u64| if int & (1 << arg.index()) != 0 { value & 0xffff_ffff } else { value };
    let (left, right, second) = (half(args[arg.index()]), half(arg.value()), half(arg.value_two().unwrap_or(0)));
    match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => left != right,
        LinuxSeccompOperator::ScmpCmpLt => left < right,
        LinuxSeccompOperator::ScmpCmpLe => left <= right,
        LinuxSeccompOperator::ScmpCmpEq => left == right,
        LinuxSeccompOperator::ScmpCmpGe => left >= right,
        LinuxSeccompOperator::ScmpCmpGt => left > right,
        LinuxSeccompOperator::ScmpCmpMaskedEq => left & right == second & right,
    }
}

/// First arguments that rules of the default profile look at, and neighbours.
const FIRST: [u64; 16] =
    [0, 1, 2, 8, 0x11, 37, 38, 39, 40, 41, 0x2_0000, 0x2_0008, 0x1000_0000, 0xffff_ffff, 0x1_0000_0028, u64::MAX];

#[test]
fn the_default_program_answers_as_its_profile_reads() {
    for set in [0, capabilities::default_set(), capabilities::ALL] {
        let profile = default_profile(set);
        let filter = compile(&profile).unwrap();
        assert_eq!(filter.ignored(), []);
        let program = filter.instructions();
        for abi in abis(NATIVE, &profile) {
            let bit = if abi.arch == Arch::ScmpArchX32 { X32_BIT } else { 0 };
            let reading = Reading::new(&profile, abi);
            for number in 0..700 {
                for first in FIRST {
                    let args = [first, 0, 0, 0, 0, 0];
                    let (ours, plain) = (interpret(program, number | bit, abi, args), reading.answer(number, args));
                    assert_eq!(ours, plain, "{:?} call {number} argument {first:#x}", abi.arch);
                }
            }
        }
        let foreign = Abi { audit_word: 0x1234, ..abi(NATIVE) };
        assert_eq!(interpret(program, 0, foreign, [0; 6]), RET_KILL_PROCESS, "unknown architecture");
    }
}

#[test]
fn the_default_program_refuses_what_containers_must_not_do() {
    let native = abi(NATIVE);
    let filter = compile(&default_profile(capabilities::default_set())).unwrap();
    let answer =
        |name: &str, first: u64| interpret(filter.instructions(), number(name, native), native, [first, 0, 0, 0, 0, 0]);
    assert_eq!(answer("mkdirat", 0), ALLOW);
    assert_eq!(answer("chroot", 0), ALLOW);
    for refused in ["unshare", "setns", "mount", "keyctl", "add_key", "bpf", "io_uring_setup", "kexec_load", "reboot"] {
        assert_eq!(answer(refused, 0), REFUSE, "{refused}");
    }
    assert_eq!(answer("socket", 40), REFUSE, "AF_VSOCK");
    assert_eq!(answer("socket", 0x1_0000_0028), REFUSE, "AF_VSOCK below a high bit the kernel ignores");
    assert_eq!(answer("socket", 38), REFUSE, "AF_ALG");
    assert_eq!(answer("socket", 2), ALLOW, "AF_INET");
    assert_eq!(answer("socket", 39), ALLOW, "AF_NFC");
    assert_eq!(answer("socket", 44), ALLOW, "AF_XDP");
    assert_eq!(answer("clone", 0x11), ALLOW, "fork");
    assert_eq!(answer("clone", 0x1000_0011), REFUSE, "CLONE_NEWUSER");
    assert_eq!(answer("clone3", 0), RET_ERRNO | ENOSYS);
    assert_eq!(interpret(filter.instructions(), 1000, native, [0; 6]), RET_ERRNO | ENOSYS, "a call of the future");
    let admin = compile(&default_profile(capabilities::ALL)).unwrap();
    assert_eq!(interpret(admin.instructions(), number("unshare", native), native, [0; 6]), ALLOW, "CAP_SYS_ADMIN");
}

#[test]
fn numbers_agree_with_another_source() {
    assert!(NUMBERS.is_sorted_by_key(|row| row.0), "rows are found by binary search");
    let number = |name: &str| NUMBERS.iter().find(|row| row.0 == name).unwrap().1;
    // asm/unistd*.h, by hand: read, openat2 and the first and last rows of each column.
    assert_eq!(number("read"), [0, 3, 0, 63, 3, 63, 3, 3]);
    assert_eq!(number("openat2"), [437; 8]);
    assert_eq!(number("execve"), [59, 11, 520, 221, 11, 221, 11, 11]);
    assert_eq!(number("clone"), [56, 120, 56, 220, 120, 220, 120, 120]);
    for (name, numbers) in NUMBERS {
        let shared = numbers.iter().filter(|number| (424..ARM_PRIVATE).contains(*number));
        assert!(shared.clone().all(|number| Some(number) == shared.clone().next()), "{name}: one number from 424 on");
    }
}

#[test]
fn profiles_that_cannot_be_kept_are_refused() {
    let refusal = |text: &str| compile(&parse(text)).unwrap_err();
    let rule = |rest: &str| format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["read"],{rest}}}]}}"#);
    assert_eq!(refusal(r#"{"defaultAction":"SCMP_ACT_NOTIFY","listenerPath":"/x"}"#), SeccompError::NotifyByDefault);
    assert_eq!(refusal(&rule(r#""action":"SCMP_ACT_NOTIFY""#)), SeccompError::NoListener);
    assert_eq!(refusal(r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerMetadata":"m"}"#), SeccompError::MetadataAlone);
    assert!(matches!(
        refusal(r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":70000}"#),
        SeccompError::ReturnValue { value: 70000, max: 4095, .. }
    ));
    assert!(matches!(
        refusal(&rule(r#""action":"SCMP_ACT_TRACE","errnoRet":65536"#)),
        SeccompError::ReturnValue { max: 65535, .. }
    ));
    assert!(matches!(
        refusal(r#"{"defaultAction":"SCMP_ACT_KILL","defaultErrnoRet":1}"#),
        SeccompError::NoValue { value: 1, .. }
    ));
    assert!(matches!(refusal(&rule(r#""action":"SCMP_ACT_LOG","errnoRet":1"#)), SeccompError::NoValue { .. }));
    assert_eq!(
        refusal(&rule(r#""action":"SCMP_ACT_ERRNO","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]"#)),
        SeccompError::ArgumentIndex { call: "read".to_owned(), index: 6 }
    );
    assert_eq!(
        refusal(r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":[""],"action":"SCMP_ACT_ERRNO"}]}"#),
        SeccompError::EmptyName
    );
    let conditions: Vec<String> =
        (0..2000).map(|value| format!(r#"{{"index":0,"value":{value},"op":"SCMP_CMP_EQ"}}"#)).collect();
    let conditions = format!(r#""action":"SCMP_ACT_ERRNO","args":[{}]"#, conditions.join(","));
    assert!(matches!(refusal(&rule(&conditions)), SeccompError::TooLong(length) if length > 4096));
    // Unknown words do not come as far as the compiler.
    for unknown in [
        r#"{"defaultAction":"SCMP_ACT_DANCE"}"#.to_owned(),
        r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_X"]}"#.to_owned(),
        r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_Z80"]}"#.to_owned(),
        rule(r#""action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":0,"op":"SCMP_CMP_ROUGHLY"}]"#),
    ] {
        assert!(serde_json::from_str::<LinuxSeccomp>(&unknown).is_err(), "{unknown}");
    }
}

#[test]
fn flags_are_passed_on() {
    let flags = |text: &str| compile(&parse(text)).unwrap().flags();
    let with = |list: &str| flags(&format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","flags":[{list}]}}"#));
    assert_eq!(flags(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#), Flags::SPEC_ALLOW, "as runc and crun");
    assert_eq!(with(""), Flags::empty());
    assert_eq!(with(r#""SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_SPEC_ALLOW""#), Flags::LOG | Flags::SPEC_ALLOW);
    assert_eq!(with(r#""SECCOMP_FILTER_FLAG_TSYNC""#), Flags::empty());
    assert_eq!(with(r#""SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV""#), Flags::empty(), "nothing waits");
    let notifying = compile(&parse(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x","flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
            "syscalls":[{"names":["mkdirat"],"action":"SCMP_ACT_NOTIFY"}]}"#,
    ))
    .unwrap();
    assert!(notifying.notifies());
    assert_eq!(notifying.flags(), Flags::NEW_LISTENER | Flags::WAIT_KILLABLE_RECV);
}

#[test]
fn what_has_no_effect_is_told_once() {
    let filter = compile(&parse(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
            {"names":["frobnicate","read","frobnicate","socketcall","oldlstat"],"action":"SCMP_ACT_ALLOW"},
            {"names":["ioctl"],"action":"SCMP_ACT_LOG","args":[{"index":1,"value":1,"op":"SCMP_CMP_EQ"}]},
            {"names":["ioctl"],"action":"SCMP_ACT_ALLOW"},
            {"names":["fcntl"],"action":"SCMP_ACT_ALLOW","args":[{"index":1,"value":1,"op":"SCMP_CMP_EQ"}]},
            {"names":["fcntl"],"action":"SCMP_ACT_ALLOW"},
            {"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":1,"value":1,"op":"SCMP_CMP_EQ"}]}]}"#,
    ))
    .unwrap();
    let expected = [Ignored::UnknownCall("frobnicate".to_owned()), Ignored::Conditions("ioctl".to_owned())];
    assert_eq!(filter.ignored(), expected);
}

/// Loads the default program into a thread of its own (a filter is a thread's) and tries system calls.
#[test]
fn the_kernel_takes_the_default_program_and_keeps_it() {
    let filter = compile(&default_profile(capabilities::default_set())).unwrap();
    let directory = std::env::temp_dir().join(format!("seccomp-{}", std::process::id()));
    std::thread::spawn(move || {
        nix::sys::prctl::set_no_new_privs().unwrap();
        assert!(filter.load().unwrap().is_none());
        std::fs::create_dir(&directory).unwrap();
        std::fs::remove_dir(&directory).unwrap();
        // Unfiltered, a process with threads gets EINVAL here.
        assert_eq!(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER), Err(Errno::EPERM));
        let socket = |family| {
            use nix::sys::socket::{SockFlag, SockType, socket};
            socket(family, SockType::Stream, SockFlag::empty(), None).map(drop)
        };
        assert_eq!(socket(nix::sys::socket::AddressFamily::Vsock), Err(Errno::EPERM));
        assert_eq!(socket(nix::sys::socket::AddressFamily::Unix), Ok(()));
        assert_eq!(sys::security::new_session_keyring().unwrap_err().errno(), Errno::EPERM);
        assert!(std::process::Command::new("/bin/true").status().unwrap().success(), "fork and exec");
        assert!(std::thread::spawn(|| true).join().unwrap(), "a thread, without clone3");
    })
    .join()
    .unwrap();
}

#[test]
fn compiling_the_default_profile_is_cheap() {
    let profile = default_profile(capabilities::default_set());
    // The fastest of many: a machine at work only adds.
    let once = |_| {
        let begin = std::time::Instant::now();
        std::hint::black_box(compile(std::hint::black_box(&profile)).unwrap());
        begin.elapsed()
    };
    let each = (0..50).map(once).min().unwrap();
    let length = compile(&profile).unwrap().instructions().len();
    println!("{length} instructions in {each:?}");
    assert!(length < 800, "{length} instructions");
    if !cfg!(debug_assertions) {
        assert!(each.as_micros() < 200, "{each:?} for one compilation");
    }
}

fn arbitrary_profile() -> impl Strategy<Value = LinuxSeccomp> {
    use LinuxSeccompAction as A;
    let action = prop::sample::select(vec![
        A::ScmpActAllow,
        A::ScmpActErrno,
        A::ScmpActKillProcess,
        A::ScmpActKillThread,
        A::ScmpActLog,
        A::ScmpActTrap,
        A::ScmpActTrace,
        A::ScmpActKill,
    ]);
    let arg = arbitrary_arg();
    let favourites = vec!["ioctl", "socket", "socketcall", "ipc", "shmat", "clone", "read", "no_such_call"];
    let name = prop_oneof![
        3 => prop::sample::select(NUMBERS).prop_map(|row| row.0.to_owned()),
        1 => prop::sample::select(favourites).prop_map(str::to_owned),
    ];
    let names = prop::collection::vec(name, 1..20);
    let rule = (names, prop_oneof![4 => action.clone(), 1 => Just(A::ScmpActNotify)]);
    let rule = (rule, prop::collection::vec(arg, 0..4), 0_u32..4096).prop_map(|((names, action), args, errno)| {
        let builder = LinuxSyscallBuilder::default().names(names).action(action).args(args);
        if matches!(action, A::ScmpActErrno | A::ScmpActTrace) { builder.errno_ret(errno) } else { builder }
            .build()
            .unwrap()
    });
    (action, prop::collection::vec(rule, 0..12)).prop_map(|(default, rules)| {
        let builder = LinuxSeccompBuilder::default().default_action(default).syscalls(rules).listener_path("/x");
        builder.architectures(ABIS.map(|abi| abi.arch)).build().unwrap()
    })
}

fn arbitrary_arg() -> impl Strategy<Value = LinuxSeccompArg> {
    use LinuxSeccompOperator as O;
    let op = prop::sample::select(vec![
        O::ScmpCmpNe,
        O::ScmpCmpLt,
        O::ScmpCmpLe,
        O::ScmpCmpEq,
        O::ScmpCmpGe,
        O::ScmpCmpGt,
        O::ScmpCmpMaskedEq,
    ]);
    (0_usize..6, op, interesting(), interesting()).prop_map(|(index, op, value, second)| {
        LinuxSeccompArgBuilder::default().index(index).op(op).value(value).value_two(second).build().unwrap()
    })
}

fn interesting() -> impl Strategy<Value = u64> {
    let edges = vec![0, 1, 2, 40, 0x7fff_ffff, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0028, u64::MAX - 1, u64::MAX];
    prop_oneof![4 => prop::sample::select(edges), 1 => any::<u64>()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_program_answers_as_its_profile_reads(
        profile in arbitrary_profile(),
        tries in prop::collection::vec(prop::array::uniform6(interesting()), 4),
    ) {
        for machine in MACHINES {
            let compiled = compile_for(machine, &profile);
            prop_assume!(!matches!(compiled, Err(SeccompError::TooLong(_))));
            let filter = compiled.unwrap();
            for abi in abis(machine, &profile) {
                let bit = if abi.arch == Arch::ScmpArchX32 { X32_BIT } else { 0 };
                let reading = Reading::new(&profile, abi);
                for number in (0..560).step_by(3).chain([102, 117, 359, 470, 0xf_0002]) {
                    for args in &tries {
                        let args = if abi.layout.narrow && bit == 0 { args.map(|arg| arg & 0xffff_ffff) } else { *args };
                        let ours = interpret(filter.instructions(), number | bit, abi, args);
                        prop_assert_eq!(ours, reading.answer(number, args), "{:?} {} {:x?}", abi.arch, number, args);
                    }
                }
            }
        }
    }
}
