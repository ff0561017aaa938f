//! The program against a plain reading of the profile, against libseccomp, and in the kernel.
#![allow(clippy::unwrap_used)] // a test may die of a surprise

use std::io::Write;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use oci_spec::runtime::{LinuxSeccompArgBuilder, LinuxSeccompBuilder, LinuxSyscallBuilder};
use proptest::prelude::*;

use super::*;
use crate::capabilities;

const X86_64: u32 = 0xc000_003e;
const ALLOW: u32 = 0x7fff_0000;
const REFUSE: u32 = RET_ERRNO | 1;

/// What the kernel would answer: the subset of classic BPF that seccomp programs of ours use.
fn interpret(program: &[Instruction], number: u32, arch: u32, args: [u64; 6]) -> u32 {
    let mut data = [0_u32; 16];
    (data[0], data[1]) = (number, arch);
    for (index, arg) in args.into_iter().enumerate() {
        (data[4 + 2 * index], data[5 + 2 * index]) = (arg as u32, (arg >> 32) as u32);
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
    profile: &'a LinuxSeccomp,
    abi: Abi,
    newest: Option<u32>,
}

impl<'a> Reading<'a> {
    fn new(profile: &'a LinuxSeccomp, abi: Abi) -> Self {
        let rules = profile.syscalls().iter().flatten();
        let numbers = rules.flat_map(LinuxSyscall::names).filter_map(|name| NUMBERS.iter().find(|row| row.0 == name));
        let newest = numbers.map(|row| row.1[abi.column]).filter(|number| *number < ARM_PRIVATE).max();
        Reading { profile, abi, newest }
    }

    fn answer(&self, number: u32, args: [u64; 6]) -> u32 {
        let names: Vec<&str> = NUMBERS.iter().filter(|row| row.1[self.abi.column] == number).map(|row| row.0).collect();
        let default = self.profile.default_action().as_u32(self.profile.default_errno_ret());
        let (mut conditional, mut always, mut listed) = (None, None, false);
        for rule in self.profile.syscalls().iter().flatten() {
            for name in names.iter().filter(|name| rule.names().iter().any(|it| it == **name)) {
                listed = true;
                let value = rule.action().as_u32(rule.errno_ret());
                let list = rule.args().as_deref().unwrap_or_default();
                let int = INT_ARGUMENTS.iter().find(|(call, _)| call == name).map_or(0, |(_, mask)| *mask);
                let mut holds = list.iter().map(|arg| holds(arg, args, int));
                let repeated = (1..list.len()).any(|at| list[..at].iter().any(|it| it.index() == list[at].index()));
                match list.len() {
                    0 => always = always.or(Some(value)),
                    _ if repeated && holds.any(|it| it) => conditional = conditional.or(Some(value)),
                    _ if !repeated && holds.all(|it| it) => conditional = conditional.or(Some(value)),
                    _ => {}
                }
            }
        }
        let unknown = !listed && self.newest.is_some_and(|newest| number > newest);
        let beyond = if unknown && refuses(self.profile.default_action()) { RET_ERRNO | ENOSYS } else { default };
        conditional.or(always).unwrap_or(beyond)
    }
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
        LinuxSeccompOperator::ScmpCmpMaskedEq => left & right == second,
    }
}

/// First arguments that rules of the default profile look at, and neighbours.
const FIRST: [u64; 16] =
    [0, 1, 2, 8, 0x11, 37, 38, 39, 40, 41, 0x2_0000, 0x2_0008, 0x1000_0000, 0xffff_ffff, 0x1_0000_0028, u64::MAX];

#[test]
fn the_default_program_answers_as_its_profile_reads() {
    for set in [0, capabilities::default_set(), capabilities::ALL] {
        let profile = default_profile(set);
        let program = compile(&profile).unwrap();
        for abi in abis(&profile) {
            let bit = if abi.arch == Arch::ScmpArchX32 { X32_BIT } else { 0 };
            let reading = Reading::new(&profile, abi);
            for number in 0..700 {
                for first in FIRST {
                    let args = [first, 0, 0, 0, 0, 0];
                    let (ours, plain) =
                        (interpret(&program, number | bit, abi.audit_word, args), reading.answer(number, args));
                    assert_eq!(ours, plain, "{:?} call {number} argument {first:#x}", abi.arch);
                }
            }
        }
        assert_eq!(interpret(&program, 0, 0x1234, [0; 6]), RET_KILL_PROCESS, "unknown architecture");
    }
}

#[test]
fn the_default_program_refuses_what_containers_must_not_do() {
    let program = compile(&default_profile(capabilities::default_set())).unwrap();
    let answer = |name: &str, first: u64| {
        let row = NUMBERS.iter().find(|row| row.0 == name).unwrap();
        interpret(&program, row.1[0], X86_64, [first, 0, 0, 0, 0, 0])
    };
    assert_eq!(answer("mkdir", 0), ALLOW);
    assert_eq!(answer("chroot", 0), ALLOW);
    for refused in ["unshare", "setns", "mount", "keyctl", "add_key", "bpf", "io_uring_setup", "kexec_load", "reboot"] {
        assert_eq!(answer(refused, 0), REFUSE, "{refused}");
    }
    assert_eq!(answer("socket", 40), REFUSE, "AF_VSOCK");
    assert_eq!(answer("socket", 0x1_0000_0028), REFUSE, "AF_VSOCK below a high bit the kernel ignores");
    assert_eq!(answer("socket", 38), REFUSE, "AF_ALG");
    assert_eq!(answer("socket", 2), ALLOW, "AF_INET");
    assert_eq!(answer("clone", 0x11), ALLOW, "fork");
    assert_eq!(answer("clone", 0x1000_0011), REFUSE, "CLONE_NEWUSER");
    assert_eq!(answer("clone3", 0), RET_ERRNO | ENOSYS);
    assert_eq!(interpret(&program, 1000, X86_64, [0; 6]), RET_ERRNO | ENOSYS, "a call of the future");
    let admin = compile(&default_profile(capabilities::ALL)).unwrap();
    assert_eq!(interpret(&admin, 272, X86_64, [0; 6]), ALLOW, "unshare with CAP_SYS_ADMIN");
}

#[test]
fn numbers_agree_with_another_source() {
    assert!(NUMBERS.is_sorted_by_key(|row| row.0), "rows are found by binary search");
    let number = |name: &str| NUMBERS.iter().find(|row| row.0 == name).unwrap().1;
    // asm/unistd*.h, by hand: read, openat2 and the first and last rows of each column.
    assert_eq!(number("read"), [0, 3, 0, 63, 3]);
    assert_eq!(number("openat2"), [437, 437, 437, 437, 437]);
    assert_eq!(number("execve"), [59, 11, 520, 221, 11]);
    assert_eq!(number("clone"), [56, 120, 56, 220, 120]);
}

#[test]
fn profiles_that_cannot_be_kept_are_refused() {
    let parse = |text: &str| serde_json::from_str::<LinuxSeccomp>(text).unwrap();
    let notify = parse(r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#);
    assert_eq!(compile(&notify), Err(SeccompError::Action(LinuxSeccompAction::ScmpActNotify)));
    let logged = parse(r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG"]}"#);
    assert_eq!(compile(&logged), Err(SeccompError::Flag(LinuxSeccompFilterFlag::SeccompFilterFlagLog)));
    let errno = parse(r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":70000}"#);
    assert!(matches!(compile(&errno), Err(SeccompError::ReturnValue { value: 70000, max: 4095, .. })));
    let seventh = parse(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW",
            "args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    assert_eq!(compile(&seventh), Err(SeccompError::ArgumentIndex { call: "read".to_owned(), index: 6 }));
}

/// Loads the default program into a thread of its own (a filter is a thread's) and tries system calls.
#[test]
fn the_kernel_takes_the_default_program_and_keeps_it() {
    let program = compile(&default_profile(capabilities::default_set())).unwrap();
    let directory = std::env::temp_dir().join(format!("seccomp-{}", std::process::id()));
    std::thread::spawn(move || {
        nix::sys::prctl::set_no_new_privs().unwrap();
        sys::seccomp::load(&program).unwrap();
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
        assert!(Command::new("/bin/true").status().unwrap().success(), "fork and exec");
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
    let length = compile(&profile).unwrap().len();
    println!("{length} instructions in {each:?}");
    assert!(length < 800, "{length} instructions");
    if !cfg!(debug_assertions) {
        assert!(each.as_micros() < 200, "{each:?} for one compilation");
    }
}

/// Reads a profile in the runtime specification's form, prints the program libseccomp makes of it.
const LIBSECCOMP: &str = r#"
import json, os, sys
import seccomp as s
p = json.load(sys.stdin)
acts = {"SCMP_ACT_ALLOW": lambda e: s.ALLOW, "SCMP_ACT_ERRNO": lambda e: s.ERRNO(e), "SCMP_ACT_LOG": lambda e: s.LOG}
ops = dict(SCMP_CMP_NE=s.NE, SCMP_CMP_LT=s.LT, SCMP_CMP_LE=s.LE, SCMP_CMP_EQ=s.EQ, SCMP_CMP_GE=s.GE, SCMP_CMP_GT=s.GT,
           SCMP_CMP_MASKED_EQ=s.MASKED_EQ)
f = s.SyscallFilter(acts[p["defaultAction"]](p.get("defaultErrnoRet", 1)))
for r in p.get("syscalls", []):
    for n in r["names"]:
        try: s.resolve_syscall(s.Arch(), n)
        except Exception: continue
        a = [s.Arg(x["index"], ops[x["op"]], *([x["value"], x.get("valueTwo", 0)] if "MASKED" in x["op"] else [x["value"]]))
             for x in r.get("args", [])]
        try: f.add_rule(acts[r["action"]](r.get("errnoRet", 1)), n, *a)
        except Exception: pass
f.export_bpf(sys.stdout)
"#;

/// The program that libseccomp makes of a profile for the native architecture, if it is installed.
fn libseccomp(profile: &LinuxSeccomp) -> Option<Vec<Instruction>> {
    let python = |interpreter: &str, code: &str| {
        let mut command = Command::new(interpreter);
        command.args(["-c", code]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.spawn()
    };
    // The distribution's interpreter has the distribution's modules, whatever PATH says.
    let has_module = |interpreter: &&str| {
        python(interpreter, "import seccomp").is_ok_and(|mut it| it.wait().is_ok_and(|end| end.success()))
    };
    let interpreter = ["/usr/bin/python3", "python3"].into_iter().find(has_module)?;
    let mut child = python(interpreter, LIBSECCOMP).ok()?;
    child.stdin.take().unwrap().write_all(&serde_json::to_vec(profile).unwrap()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "libseccomp refused the profile");
    let word = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
    let long = |bytes: &[u8]| u32::from(word(bytes)) | u32::from(word(&bytes[2..])) << 16;
    let decode = |bytes: &[u8]| Instruction {
        code: word(bytes),
        jump_true: bytes[2],
        jump_false: bytes[3],
        operand: long(&bytes[4..]),
    };
    Some(output.stdout.chunks_exact(8).map(decode).collect())
}

/// libseccomp takes no rule whose action is the default one, so it is told the allowed families instead.
fn for_libseccomp(profile: &LinuxSeccomp) -> LinuxSeccomp {
    let family = |op, value: u64| {
        let arg = LinuxSeccompArgBuilder::default().index(0_usize).value(value).op(op).build().unwrap();
        let rule = LinuxSyscallBuilder::default().names(["socket".to_owned()]).action(LinuxSeccompAction::ScmpActAllow);
        rule.args([arg]).build().unwrap()
    };
    let mut rules = profile.syscalls().clone().unwrap();
    for rule in &mut rules {
        let names = rule.names().iter().filter(|name| *name != "socket").cloned().collect();
        rule.set_names(names);
    }
    rules.push(family(LinuxSeccompOperator::ScmpCmpLt, 38));
    rules.push(family(LinuxSeccompOperator::ScmpCmpEq, 39));
    rules.push(family(LinuxSeccompOperator::ScmpCmpGt, 40));
    let mut out = profile.clone();
    out.set_syscalls(Some(rules));
    out
}

#[test]
fn libseccomp_makes_the_same_of_the_default_profile() {
    for set in [capabilities::default_set(), capabilities::ALL] {
        let profile = default_profile(set);
        let Some(theirs) = libseccomp(&for_libseccomp(&profile)) else {
            println!("skipped: the Python module seccomp (libseccomp) is not installed");
            return;
        };
        let ours = compile(&profile).unwrap();
        // 448 (process_mrelease) is the newest call that every libseccomp in use knows.
        // 335 (uretprobe) came later, on a free number.
        for number in (0..=448).filter(|number| *number != 335) {
            for first in FIRST.into_iter().filter(|first| u32::try_from(*first).is_ok()) {
                let args = [first, 0, 0, 0, 0, 0];
                assert_eq!(
                    interpret(&ours, number, X86_64, args),
                    interpret(&theirs, number, X86_64, args),
                    "call {number} argument {first:#x}"
                );
            }
        }
    }
}

fn arbitrary_profile() -> impl Strategy<Value = LinuxSeccomp> {
    use LinuxSeccompAction as A;
    use LinuxSeccompOperator as O;
    let action = prop::sample::select(vec![
        A::ScmpActAllow,
        A::ScmpActErrno,
        A::ScmpActKillProcess,
        A::ScmpActKillThread,
        A::ScmpActLog,
        A::ScmpActTrap,
        A::ScmpActTrace,
    ]);
    let op = prop::sample::select(vec![
        O::ScmpCmpNe,
        O::ScmpCmpLt,
        O::ScmpCmpLe,
        O::ScmpCmpEq,
        O::ScmpCmpGe,
        O::ScmpCmpGt,
        O::ScmpCmpMaskedEq,
    ]);
    let arg = (0_usize..6, op, interesting(), interesting()).prop_map(|(index, op, value, second)| {
        LinuxSeccompArgBuilder::default().index(index).op(op).value(value).value_two(second).build().unwrap()
    });
    let name = prop_oneof![
        prop::sample::select(NUMBERS).prop_map(|row| row.0.to_owned()),
        prop::sample::select(vec!["ioctl", "socket", "no_such_call"]).prop_map(str::to_owned),
    ];
    let names = prop::collection::vec(name, 1..40);
    let rule = (names, action.clone(), prop::collection::vec(arg, 0..4), prop::option::of(0_u32..4096)).prop_map(
        |(names, action, args, errno)| {
            let builder = LinuxSyscallBuilder::default().names(names).action(action).args(args);
            if let Some(errno) = errno { builder.errno_ret(errno) } else { builder }.build().unwrap()
        },
    );
    (action, prop::collection::vec(rule, 0..12)).prop_map(|(default, rules)| {
        let builder = LinuxSeccompBuilder::default().default_action(default).syscalls(rules);
        builder.architectures([Arch::ScmpArchX86, Arch::ScmpArchX32, Arch::ScmpArchArm]).build().unwrap()
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
        let compiled = compile(&profile);
        prop_assume!(!matches!(compiled, Err(SeccompError::TooLong(_))));
        let program = compiled.unwrap();
        for abi in abis(&profile) {
            let bit = if abi.arch == Arch::ScmpArchX32 { X32_BIT } else { 0 };
            let reading = Reading::new(&profile, abi);
            for number in (0..560).step_by(3).chain(470..480) {
                for args in &tries {
                    let ours = interpret(&program, number | bit, abi.audit_word, *args);
                    prop_assert_eq!(ours, reading.answer(number, *args), "{:?} {} {:x?}", abi.arch, number, args);
                }
            }
        }
    }
}
