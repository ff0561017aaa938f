//! Bugs that other runtimes and engines had, each by its name.

use super::*;

fn filter(text: &str) -> Filter {
    compile(&parse(text)).unwrap()
}

fn native(filter: &Filter, name: &str, args: [u64; 6]) -> u32 {
    interpret(filter.instructions(), number(name, abi(NATIVE)), abi(NATIVE), args)
}

/// snapd and flatpak compared all 64 bits of ioctl's command, of which the kernel takes 32.
#[test]
fn cve_2019_10063_tiocsti_with_high_bits() {
    const TIOCSTI: u64 = 0x5412;
    let refusing = filter(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["ioctl"],"action":"SCMP_ACT_ERRNO",
            "args":[{"index":1,"value":21522,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    let granting = filter(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["ioctl"],"action":"SCMP_ACT_ALLOW",
            "args":[{"index":1,"value":21522,"op":"SCMP_CMP_NE"}]}]}"#,
    );
    for high in [0, 1_u64 << 32, 0xffff_ffff << 32] {
        assert_eq!(native(&refusing, "ioctl", [0, high | TIOCSTI, 0, 0, 0, 0]), REFUSE, "{high:x}");
        assert_eq!(native(&granting, "ioctl", [0, high | TIOCSTI, 0, 0, 0, 0]), REFUSE, "{high:x}");
        assert_eq!(native(&refusing, "ioctl", [0, high | 0x5413, 0, 0, 0, 0]), ALLOW, "{high:x}");
    }
    // Docker's default grants ioctl whole, and so does ours: a container has a terminal and a session of its own.
    let default = compile(&default_profile(capabilities::default_set())).unwrap();
    assert_eq!(native(&default, "ioctl", [0, TIOCSTI, 0, 0, 0, 0]), ALLOW);
}

/// libseccomp before 2.5.5 hung or failed over a filter without rules when asked for a binary tree (runc#3405).
#[test]
fn a_profile_without_rules() {
    for (text, answer) in [
        (r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#, ALLOW),
        (r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[]}"#, REFUSE),
        (
            r#"{"defaultAction":"SCMP_ACT_KILL_PROCESS","syscalls":[{"names":[],"action":"SCMP_ACT_ALLOW"}]}"#,
            RET_KILL_PROCESS,
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["none_of_that_name"],"action":"SCMP_ACT_ALLOW"}]}"#,
            REFUSE,
        ),
    ] {
        let filter = filter(text);
        assert_eq!(native(&filter, "read", [0; 6]), answer, "{text}");
        assert_eq!(native(&filter, "listns", [0; 6]), answer, "{text}: no call is newer than none");
    }
}

/// On s390 clone(2) takes the flags as its second argument (Docker's profile has a rule of its own for it).
#[test]
fn clone_flags_on_s390x_are_the_second_argument() {
    let profile = document::read(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
            {"names":["clone"],"action":"SCMP_ACT_ALLOW","excludes":{"arches":["s390","s390x"]},
             "args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]},
            {"names":["clone"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["s390","s390x"]},
             "args":[{"index":1,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#,
        document::Host { capabilities: 0, kernel: (6, 1), machine: Arch::ScmpArchS390x },
    );
    let profile = profile.unwrap().unwrap();
    let filter = compile_for(Arch::ScmpArchS390x, &profile).unwrap();
    let s390x = abi(Arch::ScmpArchS390x);
    let answer = |args| interpret(filter.instructions(), number("clone", s390x), s390x, args);
    assert_eq!(answer([0x1000_0000, 0x11, 0, 0, 0, 0]), ALLOW, "the stack's address is no flag");
    assert_eq!(answer([0, 0x1000_0011, 0, 0, 0, 0]), REFUSE, "CLONE_NEWUSER");
    assert_eq!(
        interpret(filter.instructions(), 0, s390x, [0; 6]),
        RET_ERRNO | ENOSYS,
        "an unknown call, as runc has it"
    );
}

/// A refused socket call was open to 32-bit x86 programs through socketcall.
#[test]
fn socketcall_and_ipc_are_no_way_around_a_rule() {
    let refusing = filter(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"syscalls":[
            {"names":["socket","shmat"],"action":"SCMP_ACT_ERRNO"},
            {"names":["bind"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":7,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    let granting = filter(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86"],"syscalls":[
            {"names":["connect","shmdt"],"action":"SCMP_ACT_ALLOW"},
            {"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":40,"op":"SCMP_CMP_NE"}]}]}"#,
    );
    if NATIVE != Arch::ScmpArchX86_64 {
        return; // this machine is not called so
    }
    let x86 = abi(Arch::ScmpArchX86);
    let answer =
        |filter: &Filter, name, first| interpret(filter.instructions(), number(name, x86), x86, [first, 0, 0, 0, 0, 0]);
    assert_eq!(answer(&refusing, "socketcall", 1), REFUSE, "SYS_SOCKET");
    assert_eq!(answer(&refusing, "socketcall", 2), REFUSE, "SYS_BIND: its condition cannot be checked");
    assert_eq!(answer(&refusing, "socketcall", 3), ALLOW, "SYS_CONNECT");
    assert_eq!(answer(&refusing, "ipc", 21), REFUSE, "SHMAT");
    assert_eq!(answer(&refusing, "ipc", 0x1_0015), REFUSE, "SHMAT of another version");
    assert_eq!(answer(&refusing, "ipc", 22), ALLOW, "SHMDT");
    assert_eq!(answer(&granting, "socketcall", 3), ALLOW, "SYS_CONNECT");
    assert_eq!(answer(&granting, "socketcall", 1), REFUSE, "SYS_SOCKET: its condition cannot be checked");
    assert_eq!(answer(&granting, "socket", 2), ALLOW);
    assert_eq!(answer(&granting, "ipc", 22), ALLOW, "SHMDT");
    // Docker's default grants socketcall, which old and Go programs need, and with it every family.
    let default = compile(&default_profile(capabilities::default_set())).unwrap();
    assert_eq!(answer(&default, "socketcall", 1), ALLOW);
}

/// personality(2) may switch on what weakens a process (`ADDR_NO_RANDOMIZE` aside, as debuggers need it).
#[test]
fn personality_takes_five_values() {
    let default = compile(&default_profile(capabilities::default_set())).unwrap();
    let answer = |persona| native(&default, "personality", [persona, 0, 0, 0, 0, 0]);
    for allowed in [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        assert_eq!(answer(allowed), ALLOW, "{allowed:#x}");
    }
    for refused in [0x4_0000, 0x10_0000, 0x40_0000, 0x2_0001, 0xffff_fffe] {
        assert_eq!(answer(refused), REFUSE, "{refused:#x}");
    }
    assert_eq!(answer(u64::MAX), ALLOW, "the query, sign-extended");
}

/// A rule without conditions swallows those with; which of them stands first does not matter (libseccomp, so runc).
#[test]
fn a_rule_without_conditions_decides_alone() {
    let condition =
        r#"{"names":["ioctl"],"action":"SCMP_ACT_ERRNO","args":[{"index":1,"value":1,"op":"SCMP_CMP_EQ"}]}"#;
    let alone = r#"{"names":["ioctl"],"action":"SCMP_ACT_LOG"}"#;
    for rules in [[condition, alone], [alone, condition]] {
        let filter = filter(&format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{}]}}"#, rules.join(",")));
        assert_eq!(native(&filter, "ioctl", [0, 1, 0, 0, 0, 0]), 0x7ffc_0000);
        assert_eq!(filter.ignored(), [Ignored::Conditions("ioctl".to_owned())]);
    }
}

/// Programs whose C library tries a newer call first saw EPERM and gave up (faccessat2, clone3, openat2).
#[test]
fn a_call_newer_than_the_profile_is_unknown_not_refused() {
    let rule = r#""syscalls":[{"names":["openat2"],"action":"SCMP_ACT_ALLOW"}]"#;
    for (default, answer) in [
        (r#""SCMP_ACT_ERRNO""#, RET_ERRNO | ENOSYS),
        (r#""SCMP_ACT_KILL""#, RET_ERRNO | ENOSYS),
        (r#""SCMP_ACT_TRAP""#, RET_ERRNO | ENOSYS),
        (r#""SCMP_ACT_TRACE""#, 0x7ff0_0001),
        (r#""SCMP_ACT_LOG""#, 0x7ffc_0000),
        (r#""SCMP_ACT_ALLOW""#, ALLOW),
    ] {
        let filter = filter(&format!(r#"{{"defaultAction":{default},{rule}}}"#));
        assert_eq!(native(&filter, "faccessat2", [0; 6]), answer, "{default}");
        // A tracer that skips a call sets its number to -1, and the filter runs on that (Linux 4.8).
        assert_eq!(interpret(filter.instructions(), u32::MAX, abi(NATIVE), [0; 6]), answer, "{default}");
    }
}

/// libseccomp takes several rules with one action for a call; each of them grants (moby's personality rules).
#[test]
fn alternatives_in_one_rule_and_in_many() {
    let one = filter(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["personality"],"action":"SCMP_ACT_ALLOW",
            "args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":0,"value":2,"op":"SCMP_CMP_EQ"},
                    {"index":1,"value":3,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    let both = filter(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["personality"],"action":"SCMP_ACT_ALLOW",
            "args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":1,"value":3,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    for (args, repeated, all) in
        [([1, 0], ALLOW, REFUSE), ([2, 0], ALLOW, REFUSE), ([0, 3], ALLOW, REFUSE), ([1, 3], ALLOW, ALLOW)]
    {
        let args = [args[0], args[1], 0, 0, 0, 0];
        assert_eq!(
            (native(&one, "personality", args), native(&both, "personality", args)),
            (repeated, all),
            "{args:?}"
        );
    }
    assert_eq!(native(&one, "personality", [4, 4, 0, 0, 0, 0]), REFUSE);
}
