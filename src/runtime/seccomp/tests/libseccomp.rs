//! The same profiles through libseccomp, its Python module being Debian's `python3-seccomp`; skipped without it.

use std::io::Write;
use std::process::{Command, Stdio};

use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::*;

/// One JSON request a line. With a profile and the name of an architecture: the program for that one, in hexadecimal,
/// its rules added as runc adds them. With names: their numbers there.
const LIBSECCOMP: &str = r#"
import json, os, sys, tempfile
import seccomp as s
acts = dict(SCMP_ACT_ALLOW=s.ALLOW, SCMP_ACT_LOG=s.LOG, SCMP_ACT_TRAP=s.TRAP, SCMP_ACT_KILL=s.KILL,
            SCMP_ACT_KILL_THREAD=s.KILL, SCMP_ACT_KILL_PROCESS=s.KILL_PROCESS, SCMP_ACT_NOTIFY=s.NOTIFY)
def act(name, value):
    if name == "SCMP_ACT_ERRNO": return s.ERRNO(1 if value is None else value)
    if name == "SCMP_ACT_TRACE": return s.TRACE(1 if value is None else value)
    return acts[name]
ops = dict(SCMP_CMP_NE=s.NE, SCMP_CMP_LT=s.LT, SCMP_CMP_LE=s.LE, SCMP_CMP_EQ=s.EQ, SCMP_CMP_GE=s.GE, SCMP_CMP_GT=s.GT,
           SCMP_CMP_MASKED_EQ=s.MASKED_EQ)
def arg(a):
    if a["op"] == "SCMP_CMP_MASKED_EQ": return s.Arg(a["index"], ops[a["op"]], a["value"], a.get("valueTwo", 0))
    return s.Arg(a["index"], ops[a["op"]], a["value"])
def program(p, arch):
    default = act(p["defaultAction"], p.get("defaultErrnoRet"))
    f = s.SyscallFilter(default)
    f.remove_arch(s.Arch())
    f.add_arch(arch)
    f.set_attr(s.Attr.CTL_OPTIMIZE, 2)
    for r in p.get("syscalls", []):
        action = act(r["action"], r.get("errnoRet"))
        if action == default: continue
        for n in r["names"]:
            try: number = s.resolve_syscall(s.Arch(), n)
            except ValueError: continue
            if number == -1: continue
            args = r.get("args") or []
            repeated = len({a["index"] for a in args}) < len(args)
            for chain in ([[a] for a in args] if repeated else [args]):
                try: f.add_rule(action, number, *[arg(a) for a in chain])
                except RuntimeError as e: sys.exit(f"{n} ({number}) {r['action']} {chain} of {arch}: {e}")
    with tempfile.TemporaryFile() as out:
        f.export_bpf(out)
        out.seek(0)
        return out.read().hex()
def resolved(n, arch):
    try: return s.resolve_syscall(arch, n)
    except ValueError: return -1
for line in sys.stdin:
    q = json.loads(line)
    try: arch = s.Arch(getattr(s.Arch, q["arch"]))
    except ValueError:
        print("")
        continue
    if "profile" in q: print(program(q["profile"], arch))
    else: print(json.dumps([resolved(n, arch) for n in q["names"]]))
"#;

/// What libseccomp's module calls an architecture. Version 2.5 of the module does not know riscv64: an empty answer.
fn arch_name(arch: Arch) -> &'static str {
    match arch {
        Arch::ScmpArchX86_64 => "X86_64",
        Arch::ScmpArchX86 => "X86",
        Arch::ScmpArchX32 => "X32",
        Arch::ScmpArchAarch64 => "AARCH64",
        Arch::ScmpArchArm => "ARM",
        Arch::ScmpArchRiscv64 => "RISCV64",
        Arch::ScmpArchPpc64le => "PPC64LE",
        Arch::ScmpArchS390x => "S390X",
        _ => unreachable!(),
    }
}

/// libseccomp's answers to requests, if it is installed.
fn ask(requests: &[serde_json::Value]) -> Option<Vec<String>> {
    let python = |interpreter: &str, code: &str| {
        let mut command = Command::new(interpreter);
        // Isolated: a directory `seccomp` where we stand would be taken for the module.
        command.args(["-I", "-c", code]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn()
    };
    // The distribution's interpreter has the distribution's modules, whatever PATH says.
    let has_module = |interpreter: &&str| {
        python(interpreter, "import seccomp").is_ok_and(|mut it| it.wait().is_ok_and(|end| end.success()))
    };
    let Some(interpreter) = ["/usr/bin/python3", "python3"].into_iter().find(has_module) else {
        println!("skipped: the Python module seccomp (libseccomp) is not installed");
        return None;
    };
    let mut child = python(interpreter, LIBSECCOMP).unwrap();
    let input = requests.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join(); // cut short when the script died, which the next line tells
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect())
}

fn request(profile: &LinuxSeccomp, arch: Arch) -> serde_json::Value {
    serde_json::json!({"profile": profile, "arch": arch_name(arch)})
}

/// A program as libseccomp exports it, in the byte order of its architecture.
fn decode(hex: &str, abi: Abi) -> Vec<Instruction> {
    let bytes: Vec<u8> =
        (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect();
    let in_order = |bytes: &[u8]| {
        let big = bytes.iter().fold(0, |word: u32, byte| word << 8 | u32::from(*byte));
        if abi.layout.big_endian { big } else { big.swap_bytes() >> (32 - 8 * bytes.len()) }
    };
    let decode = |bytes: &[u8]| Instruction {
        code: in_order(&bytes[..2]) as u16,
        jump_true: bytes[2],
        jump_false: bytes[3],
        operand: in_order(&bytes[4..]),
    };
    bytes.chunks_exact(8).map(decode).collect()
}

#[test]
fn libseccomp_makes_the_same_of_the_default_profile() {
    let sets = [capabilities::default_set(), capabilities::ALL];
    let profiles = sets.map(default_profile);
    let abis = abis(NATIVE, &profiles[0]);
    let pairs: Vec<_> = profiles.iter().flat_map(|profile| abis.iter().map(move |abi| (profile, *abi))).collect();
    let requests: Vec<_> = pairs.iter().map(|(profile, abi)| request(profile, abi.arch)).collect();
    let Some(answers) = ask(&requests) else { return };
    for ((profile, abi), theirs) in pairs.into_iter().zip(&answers) {
        let theirs = decode(theirs, abi);
        let ours = compile(profile).unwrap();
        println!(
            "{:?}: {} instructions, libseccomp's {} for it alone",
            abi.arch,
            ours.instructions().len(),
            theirs.len()
        );
        let bit = if abi.arch == Arch::ScmpArchX32 { X32_BIT } else { 0 };
        // 448 (process_mrelease) is the newest call that every libseccomp in use knows.
        // 335 and 336 (uretprobe, uprobe) came later, on free numbers; on x86 the sub-calls are a tree of their own.
        for number in (0..=448).filter(|number| ![335, 336].contains(number)) {
            for first in FIRST.into_iter().filter(|first| u32::try_from(*first).is_ok()) {
                let args = [first, 0, 0, 0, 0, 0];
                let call = (interpret(ours.instructions(), number | bit, abi, args), number, first);
                assert_eq!(call, (interpret(&theirs, number | bit, abi, args), number, first), "{:?}", abi.arch);
            }
        }
    }
}

/// The numbers that libseccomp has for our names, in the order of [`NUMBERS`], for each of [`ABIS`]; below zero where it
/// knows no call of that name there. Empty where it does not know the architecture.
fn their_numbers() -> Option<Vec<Vec<i64>>> {
    let names: Vec<&str> = NUMBERS.iter().map(|row| row.0).collect();
    let requests: Vec<_> =
        ABIS.iter().map(|abi| serde_json::json!({"names": names, "arch": arch_name(abi.arch)})).collect();
    let answers = ask(&requests)?;
    Some(answers.iter().map(|answer| serde_json::from_str(answer).unwrap_or_default()).collect())
}

#[test]
fn libseccomp_has_the_same_numbers() {
    let Some(answers) = their_numbers() else { return };
    let mut compared = 0;
    for (abi, theirs) in ABIS.iter().zip(&answers) {
        for ((name, numbers), theirs) in NUMBERS.iter().zip(theirs) {
            let Ok(theirs) = u32::try_from(*theirs) else {
                continue; // not a call there, or newer than that libseccomp
            };
            if abi.multiplexed && rules::multiplexer(name).is_some() {
                continue; // it tells the multiplexer's
            }
            let bit = if abi.arch == Arch::ScmpArchX32 { X32_BIT } else { 0 };
            assert_eq!(numbers[abi.column], theirs & !bit, "{name} of {:?}", abi.arch);
            compared += 1;
        }
    }
    assert!(compared > 2000, "{compared} numbers of {}", NUMBERS.len() * ABIS.len());
}

/// Profiles that say one thing only: a rule's calls are in no other rule, so that no order decides.
fn unambiguous_profile(known: &[i64]) -> impl Strategy<Value = LinuxSeccomp> {
    let int = |name: &str| INT_ARGUMENTS.iter().any(|(call, _)| *call == name);
    // Without those that are newer than that libseccomp, those that it compares on more bits, and those that it gives a
    // made-up number which another one has too.
    let single = |number: i64| known.iter().filter(|other| **other == number).count() == 1;
    let rows = NUMBERS.iter().zip(known).filter(|(row, theirs)| **theirs != -1 && single(**theirs) && !int(row.0));
    let rows: Vec<&str> = rows.map(|(row, _)| row.0).collect();
    let names = prop::sample::subsequence(rows.clone(), 1..rows.len() / 2).prop_shuffle();
    let rules = prop::collection::vec(arbitrary_rule(), 1..24);
    (arbitrary_action(), names, rules).prop_map(|((default, errno), names, mut rules)| {
        let count = rules.len();
        let share = names.len().div_ceil(count);
        let mut shares = names.chunks(share);
        for rule in &mut rules {
            let conditional = rule.args().as_ref().is_some_and(|args| !args.is_empty());
            let names = shares.next().unwrap_or_default().iter();
            let apart = |name: &&&str| !conditional || rules::multiplexer(name).is_none();
            rule.set_names(names.filter(apart).map(|name| (*name).to_owned()).collect());
        }
        let mut profile =
            LinuxSeccompBuilder::default().default_action(default).syscalls(rules).listener_path("/x").build().unwrap();
        profile.set_default_errno_ret(errno);
        profile
    })
}

fn arbitrary_action() -> impl Strategy<Value = (LinuxSeccompAction, Option<u32>)> {
    use LinuxSeccompAction as A;
    let plain = vec![A::ScmpActAllow, A::ScmpActKillProcess, A::ScmpActKillThread, A::ScmpActLog, A::ScmpActTrap];
    prop_oneof![
        prop::sample::select(plain).prop_map(|action| (action, None)),
        prop::option::of(0_u32..4096).prop_map(|errno| (A::ScmpActErrno, errno)),
        prop::option::of(0_u32..0xffff).prop_map(|data| (A::ScmpActTrace, data)),
    ]
}

fn arbitrary_rule() -> impl Strategy<Value = LinuxSyscall> {
    let action = prop_oneof![6 => arbitrary_action(), 1 => Just((LinuxSeccompAction::ScmpActNotify, None))];
    let args = prop::collection::vec(arbitrary_arg(), 0..4);
    (action, args).prop_map(|((action, errno), mut args)| {
        // libseccomp sorts alternatives into one tree by halves, and of orderings some then decide what another should.
        if (1..args.len()).any(|at| args[..at].iter().any(|it| it.index() == args[at].index())) {
            for arg in &mut args {
                let equal = LinuxSeccompArgBuilder::default().index(arg.index()).value(arg.value());
                *arg = equal.op(LinuxSeccompOperator::ScmpCmpEq).build().unwrap();
            }
        }
        let mut rule = LinuxSyscallBuilder::default().action(action).args(args).build().unwrap();
        rule.set_errno_ret(errno);
        rule
    })
}

/// Random profiles of every machine: all actions and operators, one to four conditions, with repeated arguments.
#[test]
fn libseccomp_makes_the_same_of_any_profile() {
    let Some(known) = their_numbers() else { return };
    let mut runner = TestRunner::deterministic();
    let profiles: Vec<LinuxSeccomp> =
        (0..60).map(|_| unambiguous_profile(&known[0]).new_tree(&mut runner).unwrap().current()).collect();
    let pairs: Vec<_> = profiles.iter().flat_map(|profile| ABIS.iter().map(move |abi| (profile, *abi))).collect();
    let requests: Vec<_> = pairs.iter().map(|(profile, abi)| request(profile, abi.arch)).collect();
    let Some(answers) = ask(&requests) else { return };
    let tries: Vec<[u64; 6]> =
        (0..24).map(|_| prop::array::uniform6(interesting()).new_tree(&mut runner).unwrap().current()).collect();
    for ((profile, abi), theirs) in pairs.into_iter().zip(&answers).filter(|(_, theirs)| !theirs.is_empty()) {
        let theirs = decode(theirs, abi);
        let mut ours = profile.clone();
        ours.set_architectures(Some(vec![abi.arch]));
        let ours = compile_for(abi.machine, &ours).unwrap();
        let bit = if abi.arch == Arch::ScmpArchX32 { X32_BIT } else { 0 };
        let theirs_here = &known[ABIS.iter().position(|other| *other == abi).unwrap()];
        let rows = || NUMBERS.iter().zip(theirs_here).map(|(row, theirs)| (row.1[abi.column], *theirs));
        let foreign: Vec<u32> = rows().filter(|(_, theirs)| *theirs < 0).map(|(number, _)| number).collect();
        let numbers = rows().map(|(number, _)| number).filter(|number| !foreign.contains(number));
        let newest = Reading::new(profile, abi).newest.unwrap_or(0);
        let first = u32::from(abi.arch == Arch::ScmpArchS390x); // 0 is no call there
        for number in numbers.filter(|number| (first..=newest).contains(number)) {
            for args in &tries {
                let mut args = if abi.layout.narrow { args.map(|arg| arg & 0xffff_ffff) } else { *args };
                if abi.multiplexed && [102, 117].contains(&number) {
                    args[0] %= 26;
                }
                let our_answer = interpret(ours.instructions(), number | bit, abi, args);
                let mut their_answer = interpret(&theirs, number | bit, abi, args);
                if abi.layout.big_endian && their_answer == our_answer.swap_bytes() {
                    their_answer = our_answer; // libseccomp 2.5 forgets some return values in its change of byte order
                }
                if our_answer != their_answer {
                    let names = NUMBERS.iter().filter(|row| row.1[abi.column] == number).map(|row| row.0);
                    let names: Vec<&str> = names.collect();
                    let about = |rule: &&LinuxSyscall| rule.names().iter().any(|name| names.contains(&name.as_str()));
                    let rules: Vec<_> = profile.syscalls().iter().flatten().filter(about).collect();
                    let arch = abi.arch;
                    panic!("{arch:?} {names:?}({args:x?}): {our_answer:#x}, not {their_answer:#x} by {rules:#?}");
                }
            }
        }
    }
}
