//! `linux.resources.devices` as a program that the kernel asks before each use of a device node.
//!
//! For a container without a user namespace of its own: its root could make any node, and would read the host's disks by
//! it. In a user namespace `mknod` fails and no program may be attached; see `resources`.
//!
//! Each kind of access (read, write, mknod) is decided for itself by the last rule that covers it; what no rule covers is
//! refused. After the rules of the specification come those that every runtime adds: nodes may be made, and the devices
//! that it itself puts into `/dev` may be used.
//!
//! ```text
//! r1 struct bpf_cgroup_dev_ctx { u32 access << 16 | type, major, minor }
//! r2 type   r4 major   r5 minor   r3 kinds of access that are not decided yet
//! from the last rule to the first, where type, major and minor are the rule's:
//!   allow: r3 &= ~rule; if none is left, answer 1          deny: if r3 & rule, answer 0
//! answer 0
//! ```

use std::os::fd::BorrowedFd;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use sys::SysError;
use sys::bpf::{Instruction, attach_device_program, load_device_program};

use crate::error::CgroupError;

/// The key of the rules.
const OPTION: &str = "linux.resources.devices";

// linux/bpf.h: BPF_DEVCG_ACC_* and BPF_DEVCG_DEV_*.
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MKNOD | READ | WRITE;
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

// linux/bpf_common.h and linux/bpf.h, as class | operator | source.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const MOVE_CONSTANT: u8 = 0xb7;
const AND_CONSTANT: u8 = 0x57;
const SHIFT_RIGHT_CONSTANT: u8 = 0x77;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_IF_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// What one rule says of which accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    /// None is both.
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

/// The rules that follow those of the specification: the nodes of `/dev` by default, its terminals, and `mknod`, since a
/// node that may not be opened harms nobody.
fn defaults() -> Vec<Rule> {
    let any = |kind| Rule { allow: true, kind: Some(kind), major: None, minor: None, access: MKNOD };
    let node = |major, minor| Rule { allow: true, kind: Some(CHARACTER), major: Some(major), minor, access: ALL };
    let mut rules =
        vec![any(CHARACTER), any(BLOCK), node(5, Some(0)), node(5, Some(1)), node(5, Some(2)), node(136, None)];
    rules.extend([3, 5, 7, 8, 9].map(|minor| node(1, Some(minor))));
    rules
}

fn rule(of: &LinuxDeviceCgroup) -> Result<Rule, CgroupError> {
    let invalid =
        |what: &str| CgroupError::Invalid { option: OPTION.to_owned(), reason: format!("{what} of \"{of}\"") };
    let number = |number: Option<i64>| match number {
        None | Some(..=-1) => Ok(None),
        Some(number) => i32::try_from(number).map(Some).map_err(|_| invalid("a number is too large")),
    };
    let kind = match of.typ().unwrap_or_default() {
        LinuxDeviceType::A => None,
        LinuxDeviceType::B => Some(BLOCK),
        LinuxDeviceType::C | LinuxDeviceType::U => Some(CHARACTER),
        LinuxDeviceType::P => return Err(invalid("a pipe is no device: the type")),
    };
    let access = match of.access().as_deref() {
        None | Some("") => ALL,
        Some(letters) => letters.chars().try_fold(0, |access, letter| match letter {
            'r' => Ok(access | READ),
            'w' => Ok(access | WRITE),
            'm' => Ok(access | MKNOD),
            _ => Err(invalid("the access is no mixture of r, w and m")),
        })?,
    };
    Ok(Rule { allow: of.allow(), kind, major: number(of.major())?, minor: number(of.minor())?, access })
}

/// Decides over the device nodes of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Program(Vec<Instruction>);

impl Program {
    /// The program of these rules, and of those that follow them.
    pub fn of<'a>(rules: impl IntoIterator<Item = &'a LinuxDeviceCgroup>) -> Result<Self, CgroupError> {
        let mut rules = rules.into_iter().map(rule).collect::<Result<Vec<_>, _>>()?;
        rules.extend(defaults());
        Ok(Program(compile(&rules)))
    }

    /// Attaches it to a cgroup, whose container has not begun yet.
    pub fn attach(&self, cgroup: BorrowedFd<'_>, path: &str) -> Result<(), CgroupError> {
        let failed = |source: SysError| CgroupError::Devices { path: path.to_owned(), source };
        let program = load_device_program(&self.0).map_err(failed)?;
        attach_device_program(cgroup, std::os::fd::AsFd::as_fd(&program)).map_err(failed)
    }
}

fn compile(rules: &[Rule]) -> Vec<Instruction> {
    let load = |to: u8, offset| Instruction { code: LOAD_WORD, registers: (1 << 4) | to, offset, constant: 0 };
    let mut program = vec![
        load(2, 0),
        Instruction { code: MOVE, registers: (2 << 4) | 3, offset: 0, constant: 0 },
        constant(SHIFT_RIGHT_CONSTANT, 3, 16),
        constant(AND_CONSTANT, 2, 0xffff),
        load(4, 4),
        load(5, 8),
    ];
    for rule in rules.iter().rev() {
        // Each condition that fails leads behind the rule.
        let conditions: Vec<(u8, i32)> = [(2, rule.kind), (4, rule.major), (5, rule.minor)]
            .into_iter()
            .filter_map(|(register, wanted)| Some((register, wanted?)))
            .collect();
        let body = if rule.allow { allow(rule.access) } else { deny(rule.access) };
        let length = conditions.len() + body.len();
        for (position, (register, wanted)) in conditions.into_iter().enumerate() {
            let behind = (length - position - 1) as i16;
            program.push(jump(JUMP_IF_NOT_EQUAL, register, wanted, behind));
        }
        program.extend(body);
    }
    program.extend(answer(0));
    program
}

fn allow(access: i32) -> Vec<Instruction> {
    let mut body = vec![constant(AND_CONSTANT, 3, !access), jump(JUMP_IF_NOT_EQUAL, 3, 0, 2)];
    body.extend(answer(1));
    body
}

fn deny(access: i32) -> Vec<Instruction> {
    let copy = Instruction { code: MOVE, registers: (3 << 4) | 6, offset: 0, constant: 0 };
    let mut body = vec![copy, constant(AND_CONSTANT, 6, access), jump(JUMP_IF_EQUAL, 6, 0, 2)];
    body.extend(answer(0));
    body
}

fn answer(answer: i32) -> [Instruction; 2] {
    [constant(MOVE_CONSTANT, 0, answer), Instruction { code: EXIT, registers: 0, offset: 0, constant: 0 }]
}

fn constant(code: u8, register: u8, constant: i32) -> Instruction {
    Instruction { code, registers: register, offset: 0, constant }
}

fn jump(code: u8, register: u8, constant: i32, skip: i16) -> Instruction {
    Instruction { code, registers: register, offset: skip, constant }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may die of a surprise")]

    use super::*;

    /// Runs a program as the kernel does.
    fn run(program: &[Instruction], kind: i32, major: i64, minor: i64, access: i32) -> bool {
        let context = [i64::from((access << 16) | kind), major, minor];
        let mut registers = [0_i64; 11];
        let mut next = 0;
        loop {
            let now = program[next];
            next += 1;
            let (to, from) = (usize::from(now.registers & 15), usize::from(now.registers >> 4));
            let constant = i64::from(now.constant);
            let mut skip = |holds: bool| next += if holds { now.offset as usize } else { 0 };
            match now.code {
                LOAD_WORD => registers[to] = context[now.offset as usize / 4],
                MOVE => registers[to] = registers[from],
                MOVE_CONSTANT => registers[to] = constant,
                AND_CONSTANT => registers[to] &= constant,
                SHIFT_RIGHT_CONSTANT => registers[to] >>= constant,
                JUMP_IF_EQUAL => skip(registers[to] == constant),
                JUMP_IF_NOT_EQUAL => skip(registers[to] != constant),
                EXIT => return registers[0] != 0,
                code => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    fn program(rules: &str) -> Vec<Instruction> {
        Program::of(&serde_json::from_str::<Vec<LinuxDeviceCgroup>>(rules).unwrap()).unwrap().0
    }

    #[test]
    fn without_rules_only_the_usual_devices_may_be_used() {
        for rules in ["[]", r#"[{"allow": false, "access": "rwm"}]"#] {
            let program = program(rules);
            let may = |kind, major, minor, access| run(&program, kind, major, minor, access);
            assert!(may(CHARACTER, 1, 3, READ | WRITE) && may(CHARACTER, 136, 77, ALL) && may(CHARACTER, 5, 2, ALL));
            assert!(may(BLOCK, 8, 0, MKNOD) && may(CHARACTER, 10, 229, MKNOD));
            assert!(!may(BLOCK, 8, 0, READ) && !may(BLOCK, 1, 3, READ) && !may(CHARACTER, 1, 1, READ));
            assert!(!may(CHARACTER, 10, 229, MKNOD | READ));
        }
    }

    #[test]
    fn the_last_rule_that_covers_an_access_decides() {
        let program = program(
            r#"[{"allow": true, "type": "a", "access": "rwm"},
                {"allow": false, "type": "b", "major": 8, "access": "w"},
                {"allow": false, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
                {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"},
                {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "w"},
                {"allow": false, "major": -1, "minor": 7, "access": "r"}]"#,
        );
        let may = |kind, major, minor, access| run(&program, kind, major, minor, access);
        assert!(may(BLOCK, 9, 0, ALL), "the first rule");
        assert!(may(BLOCK, 8, 0, READ) && !may(BLOCK, 8, 0, WRITE) && !may(BLOCK, 8, 0, READ | WRITE));
        assert!(may(CHARACTER, 10, 229, READ | WRITE), "two rules together");
        assert!(!may(CHARACTER, 10, 7, READ) && !may(BLOCK, 9, 7, READ | WRITE) && may(BLOCK, 9, 7, WRITE));
        assert!(may(CHARACTER, 1, 7, ALL), "the usual devices come last");
    }

    #[test]
    fn a_rule_that_makes_no_sense_is_refused() {
        for rule in [
            r#"{"allow": true, "type": "c", "access": "x"}"#,
            r#"{"allow": true, "type": "p", "access": "r"}"#,
            r#"{"allow": true, "type": "c", "major": 4294967296, "access": "r"}"#,
        ] {
            let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(&format!("[{rule}]")).unwrap();
            assert!(matches!(Program::of(&rules), Err(CgroupError::Invalid { .. })), "{rule}");
        }
    }
}
