//! A profile's rules as the compiler takes them: for rows of the number table, with return values instead of actions.

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall};

use super::{Condition, ENOSYS, INT_ARGUMENTS, Ignored, MAX_ERRNO, NUMBERS, RET_ERRNO, Rule, SeccompError, Test};

/// What a profile says.
pub struct Meaning {
    /// The return value where no rule holds.
    pub default: u32,
    /// The return value of calls that the profile's author cannot have known.
    pub unknown: u32,
    /// Whether an action is `SCMP_ACT_NOTIFY`.
    pub notifies: bool,
    /// The rules in the profile's order.
    pub rules: Vec<Named>,
    unknown_calls: Vec<String>,
}

/// A rule for a call.
pub struct Named {
    /// The call's row of [`NUMBERS`].
    pub row: usize,
    /// What holds where it has a number of its own.
    pub rule: Rule,
    /// What holds for the multiplexer that stands for it, with the row of that.
    pub multiplexed: Option<(usize, Rule)>,
}

impl Meaning {
    /// Reads a profile.
    pub fn of(profile: &LinuxSeccomp) -> Result<Meaning, SeccompError> {
        let action = profile.default_action();
        if action == LinuxSeccompAction::ScmpActNotify {
            return Err(SeccompError::NotifyByDefault);
        }
        let default = return_value(action, profile.default_errno_ret())?;
        let unknown = if refuses(action) { RET_ERRNO | ENOSYS } else { default };
        let count = profile.syscalls().iter().flatten().map(|rule| rule.names().len()).sum();
        let mut meaning =
            Meaning { default, unknown, notifies: false, rules: Vec::with_capacity(count), unknown_calls: Vec::new() };
        for rule in profile.syscalls().iter().flatten() {
            meaning.read(rule)?;
        }
        Ok(meaning)
    }

    fn read(&mut self, rule: &LinuxSyscall) -> Result<(), SeccompError> {
        let value = return_value(rule.action(), rule.errno_ret())?;
        self.notifies |= rule.action() == LinuxSeccompAction::ScmpActNotify;
        for name in rule.names() {
            if name.is_empty() {
                return Err(SeccompError::EmptyName);
            }
            let alternatives = alternatives(name, rule.args().as_deref().unwrap_or_default())?;
            let Some(row) = row(name) else {
                self.unknown_calls.push(name.clone());
                continue;
            };
            for conditions in alternatives {
                let rule = Rule { conditions, value };
                let multiplexed = self.multiplexed(name, &rule);
                self.rules.push(Named { row, rule, multiplexed });
            }
        }
        Ok(())
    }

    /// The rule for the multiplexer of a call: see "Multiplexers" in the parent module.
    fn multiplexed(&self, name: &str, rule: &Rule) -> Option<(usize, Rule)> {
        let (multiplexer, call) = multiplexer(name)?;
        if !rule.conditions.is_empty() && laxity(rule.value) >= laxity(self.default) {
            return None;
        }
        // The high half of ipc's first argument is a version, which does not change what it does.
        let test = match multiplexer {
            "ipc" => Test::MaskedEq { mask: 0xffff, value: call },
            _ => Test::Eq(call),
        };
        let condition = Condition { argument: 0, test, low_half: true };
        Some((row(multiplexer)?, Rule { conditions: vec![condition], value: rule.value }))
    }

    /// What has no effect, each once.
    pub fn ignored(&self) -> Vec<Ignored> {
        let telling = || self.rules.iter().filter(|named| named.rule.value != self.default);
        let overruled = telling().filter(|named| !named.rule.conditions.is_empty()).filter(|named| {
            let mut alone = telling().filter(|other| other.row == named.row && other.rule.conditions.is_empty());
            alone.next().is_some_and(|first| first.rule.value != named.rule.value)
        });
        let conditions = overruled.map(|named| Ignored::Conditions(NUMBERS[named.row].0.to_owned()));
        let mut ignored: Vec<_> =
            self.unknown_calls.iter().cloned().map(Ignored::UnknownCall).chain(conditions).collect();
        ignored.sort_unstable();
        ignored.dedup();
        ignored
    }
}

fn row(name: &str) -> Option<usize> {
    NUMBERS.binary_search_by_key(&name, |(known, _)| known).ok()
}

/// The conditions of a rule, once for each way in which it can hold.
fn alternatives(call: &str, args: &[LinuxSeccompArg]) -> Result<Vec<Vec<Condition>>, SeccompError> {
    let int = INT_ARGUMENTS.iter().find(|(name, _)| *name == call).map_or(0, |(_, mask)| *mask);
    let mut conditions = Vec::with_capacity(args.len());
    for arg in args {
        if arg.index() > 5 {
            return Err(SeccompError::ArgumentIndex { call: call.to_owned(), index: arg.index() });
        }
        conditions.push(condition(arg, int & (1 << arg.index()) != 0));
    }
    let repeated = args.iter().enumerate().any(|(at, arg)| args[..at].iter().any(|other| other.index() == arg.index()));
    let always = |condition: &Condition| condition.test == Test::MaskedEq { mask: 0, value: 0 };
    if repeated {
        let single = |condition| if always(&condition) { Vec::new() } else { vec![condition] };
        Ok(conditions.into_iter().map(single).collect())
    } else {
        conditions.retain(|condition| !always(condition));
        Ok(vec![conditions])
    }
}

fn condition(arg: &LinuxSeccompArg, int: bool) -> Condition {
    let value = arg.value();
    let test = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => Test::Ne(value),
        LinuxSeccompOperator::ScmpCmpLt => Test::Lt(value),
        LinuxSeccompOperator::ScmpCmpLe => Test::Le(value),
        LinuxSeccompOperator::ScmpCmpEq => Test::Eq(value),
        LinuxSeccompOperator::ScmpCmpGe => Test::Ge(value),
        LinuxSeccompOperator::ScmpCmpGt => Test::Gt(value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            Test::MaskedEq { mask: value, value: arg.value_two().unwrap_or(0) & value }
        }
    };
    Condition { argument: arg.index() as u32, test, low_half: int }
}

/// The multiplexer that stands for a call, and the value of its first argument that means it: linux/net.h, linux/ipc.h.
pub fn multiplexer(call: &str) -> Option<(&'static str, u64)> {
    let (multiplexer, number) = match call {
        "socket" => ("socketcall", 1),
        "bind" => ("socketcall", 2),
        "connect" => ("socketcall", 3),
        "listen" => ("socketcall", 4),
        "accept" => ("socketcall", 5),
        "getsockname" => ("socketcall", 6),
        "getpeername" => ("socketcall", 7),
        "socketpair" => ("socketcall", 8),
        "send" => ("socketcall", 9),
        "recv" => ("socketcall", 10),
        "sendto" => ("socketcall", 11),
        "recvfrom" => ("socketcall", 12),
        "shutdown" => ("socketcall", 13),
        "setsockopt" => ("socketcall", 14),
        "getsockopt" => ("socketcall", 15),
        "sendmsg" => ("socketcall", 16),
        "recvmsg" => ("socketcall", 17),
        "accept4" => ("socketcall", 18),
        "recvmmsg" => ("socketcall", 19),
        "sendmmsg" => ("socketcall", 20),
        "semop" => ("ipc", 1),
        "semget" => ("ipc", 2),
        "semctl" => ("ipc", 3),
        "semtimedop" => ("ipc", 4),
        "msgsnd" => ("ipc", 11),
        "msgrcv" => ("ipc", 12),
        "msgget" => ("ipc", 13),
        "msgctl" => ("ipc", 14),
        "shmat" => ("ipc", 21),
        "shmdt" => ("ipc", 22),
        "shmget" => ("ipc", 23),
        "shmctl" => ("ipc", 24),
        _ => return None,
    };
    Some((multiplexer, number))
}

/// How much a return value grants: the kernel's order of precedence, the strictest lowest.
fn laxity(value: u32) -> i32 {
    (value & 0xffff_0000).cast_signed() // SECCOMP_RET_ACTION_FULL; killing the process is below zero
}

/// Whether an action is a refusal.
fn refuses(action: LinuxSeccompAction) -> bool {
    use LinuxSeccompAction as A;
    matches!(action, A::ScmpActErrno | A::ScmpActKill | A::ScmpActKillThread | A::ScmpActKillProcess | A::ScmpActTrap)
}

/// The filter's return value for an action (seccomp(2)).
fn return_value(action: LinuxSeccompAction, data: Option<u32>) -> Result<u32, SeccompError> {
    let max = match (action, data) {
        (LinuxSeccompAction::ScmpActErrno, _) => MAX_ERRNO,
        (LinuxSeccompAction::ScmpActTrace, _) => u16::MAX.into(),
        (_, None) => return Ok(action.into()),
        (_, Some(value)) => return Err(SeccompError::NoValue { action, value }),
    };
    match data {
        Some(value) if value > max => Err(SeccompError::ReturnValue { action, value, max }),
        data => Ok(action.as_u32(data)), // EPERM when nothing is said
    }
}
