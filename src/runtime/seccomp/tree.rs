//! Emission of BPF, backwards: jumps only go forward, so what is jumped over is there before the jump is written.

use sys::seccomp::Instruction;

// Codes of linux/bpf_common.h.
const LOAD_WORD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const JUMP_NOT_BELOW: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// The same answer for numbers from `start` up to the next range's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: u32,
    pub answer: Answer,
}

/// What a number leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The filter's return value.
    Return(u32),
    /// Rules in order; the value behind them when none holds.
    Test(Vec<Rule>, u32),
}

/// A return value and the conditions that must all hold; at most one an argument, so at most six.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub conditions: Vec<Condition>,
    pub value: u32,
}

/// A comparison of one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    pub argument: u32,
    pub test: Test,
    /// Compare the low 32 bits of both sides only.
    pub low_half: bool,
}

/// What an unsigned argument is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    Eq(u64),
    Ne(u64),
    Lt(u64),
    Le(u64),
    Ge(u64),
    Gt(u64),
    MaskedEq { mask: u64, value: u64 },
}

/// How an ABI's arguments lie in the 64 bits that `struct seccomp_data` has for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Arguments have 32 bits.
    pub narrow: bool,
    /// The high half comes first.
    pub big_endian: bool,
}

/// A program under construction, last instruction first.
#[derive(Default)]
pub struct Program {
    backwards: Vec<Instruction>,
    layout: Layout,
}

impl Program {
    /// Instructions so far: a position to jump to later.
    pub fn len(&self) -> usize {
        self.backwards.len()
    }

    /// The program in order.
    pub fn finish(mut self) -> Vec<Instruction> {
        self.backwards.reverse();
        self.backwards
    }

    /// Puts `return value` in front.
    pub fn ret(&mut self, value: u32) {
        self.put(RETURN, value, 0, 0);
    }

    /// Puts a load of the call's number in front.
    pub fn load_number(&mut self) {
        self.put(LOAD_WORD, NUMBER, 0, 0);
    }

    /// Puts a load of the architecture word in front.
    pub fn load_arch(&mut self) {
        self.put(LOAD_WORD, ARCH, 0, 0);
    }

    /// Puts a test of the architecture word in front: others go to the position `end`.
    pub fn unless_arch(&mut self, word: u32, end: usize) {
        let skip = self.len() - end;
        self.put(JUMP, skip as u32, 0, 0);
        self.put(JUMP_EQUAL, word, 1, 0);
    }

    /// Puts a test in front: a number below `limit` goes to the position `low`, others fall through.
    pub fn below(&mut self, limit: u32, low: usize) {
        let skip = self.len() - low;
        self.put(JUMP, skip as u32, 0, 0);
        self.put(JUMP_NOT_BELOW, limit, 1, 0);
    }

    /// Puts a binary search over `ranges` in front; the accumulator holds the number, not below the first start.
    pub fn tree(&mut self, ranges: &[Range], layout: Layout) {
        self.layout = layout;
        self.search(ranges);
    }

    fn search(&mut self, ranges: &[Range]) {
        let [single] = ranges else {
            let (left, right) = ranges.split_at(ranges.len() / 2);
            self.search(right);
            let target = self.len();
            self.search(left);
            let skip = self.len() - target;
            if let Ok(skip) = u8::try_from(skip) {
                self.put(JUMP_NOT_BELOW, right[0].start, skip, 0);
            } else {
                self.put(JUMP, skip as u32, 0, 0);
                self.put(JUMP_NOT_BELOW, right[0].start, 0, 1);
            }
            return;
        };
        match &single.answer {
            Answer::Return(value) => self.ret(*value),
            Answer::Test(rules, otherwise) => {
                self.ret(*otherwise);
                rules.iter().rev().for_each(|rule| self.rule(rule));
            }
        }
    }

    fn rule(&mut self, rule: &Rule) {
        let end = self.len();
        self.ret(rule.value);
        for condition in rule.conditions.iter().rev() {
            self.condition(*condition, end);
        }
    }

    /// Falls through when the condition holds, else goes to the position `end`, less than 40 instructions away.
    fn condition(&mut self, condition: Condition, end: usize) {
        let (first, second) = (ARGUMENTS + 8 * condition.argument, ARGUMENTS + 8 * condition.argument + 4);
        let (low, high) = if self.layout.big_endian { (second, first) } else { (first, second) };
        let both = !condition.low_half && !self.layout.narrow;
        // Two instructions a half: load, compare. `f` is the distance to `end` from the instruction being put.
        match condition.test {
            Test::Eq(value) => self.masked(low, high, u64::MAX, value, both, end),
            Test::MaskedEq { mask, value } => self.masked(low, high, mask, value, both, end),
            Test::Ne(value) => {
                let f = self.distance(end);
                self.put(JUMP_EQUAL, value as u32, f, 0);
                self.put(LOAD_WORD, low, 0, 0);
                if both {
                    self.put(JUMP_EQUAL, (value >> 32) as u32, 0, 2);
                    self.put(LOAD_WORD, high, 0, 0);
                }
            }
            Test::Gt(value) => self.ordered(low, high, JUMP_GREATER, true, value, both, end),
            Test::Ge(value) => self.ordered(low, high, JUMP_NOT_BELOW, true, value, both, end),
            Test::Le(value) => self.ordered(low, high, JUMP_GREATER, false, value, both, end),
            Test::Lt(value) => self.ordered(low, high, JUMP_NOT_BELOW, false, value, both, end),
        }
    }

    fn masked(&mut self, low: u32, high: u32, mask: u64, value: u64, both: bool, end: usize) {
        let halves = [(low, mask as u32, value as u32), (high, (mask >> 32) as u32, (value >> 32) as u32)];
        for (offset, mask, value) in halves.into_iter().take(if both { 2 } else { 1 }) {
            let f = self.distance(end);
            self.put(JUMP_EQUAL, value, 0, f);
            if mask != u32::MAX {
                self.put(AND, mask, 0, 0);
            }
            self.put(LOAD_WORD, offset, 0, 0);
        }
    }

    /// `low_code` compares the low halves when the high ones are equal; `wanted` is its outcome when the condition holds.
    #[allow(clippy::too_many_arguments, reason = "two offsets and one comparison; a struct would only rename them")]
    fn ordered(&mut self, low: u32, high: u32, low_code: u16, wanted: bool, value: u64, both: bool, end: usize) {
        let f = self.distance(end);
        let (jump_true, jump_false) = if wanted { (0, f) } else { (f, 0) };
        self.put(low_code, value as u32, jump_true, jump_false);
        self.put(LOAD_WORD, low, 0, 0);
        if both {
            // High halves differ: greater decides at once, less the other way round, equal goes on to the low halves.
            let high_value = (value >> 32) as u32;
            let f = self.distance(end);
            self.put(JUMP_EQUAL, high_value, 0, if wanted { f } else { 2 });
            let f = self.distance(end);
            self.put(JUMP_GREATER, high_value, if wanted { 3 } else { f }, 0);
            self.put(LOAD_WORD, high, 0, 0);
        }
    }

    /// How far the position `end` is from the instruction that is put next.
    fn distance(&self, end: usize) -> u8 {
        u8::try_from(self.len() - end).expect("a rule has at most six conditions of five instructions")
    }

    fn put(&mut self, code: u16, operand: u32, jump_true: u8, jump_false: u8) {
        self.backwards.push(Instruction { code, jump_true, jump_false, operand });
    }
}
