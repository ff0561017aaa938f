//! A profile with the calls taken out that the role notify answers ([`crate::notify`]).

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

/// Those whose arguments are not looked at by the filter.
const WHOLE: [&str; 5] = ["chown", "fchown", "fchownat", "lchown", "setgroups"];
/// Those that take so many ids; with 0 for each, as most are, the kernel does them.
const IDS: [(&str, usize); 6] =
    [("setgid", 1), ("setregid", 2), ("setresgid", 3), ("setresuid", 3), ("setreuid", 2), ("setuid", 1)];

/// The profile with these calls answered by a listener. One that it does not allow in any case stays as it is.
pub fn answered(profile: &LinuxSeccomp) -> LinuxSeccomp {
    let mut profile = profile.clone();
    let mut rules = profile.syscalls().clone().unwrap_or_default();
    let default_allows = profile.default_action() == LinuxSeccompAction::ScmpActAllow;
    let whole = WHOLE.iter().map(|name| (*name, 0));
    for (name, ids) in whole.chain(IDS) {
        if !allows(&rules, name, default_allows) {
            continue;
        }
        for rule in &mut rules {
            let names = rule.names().iter().filter(|other| *other != name).cloned().collect();
            rule.set_names(names);
        }
        rules.extend(answering(name, ids));
    }
    rules.retain(|rule| !rule.names().is_empty());
    let mut flags = profile.flags().clone().unwrap_or_else(|| vec![LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow]);
    // A signal must not have a call done twice.
    flags.push(LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv);
    profile.set_syscalls(Some(rules)).set_flags(Some(flags));
    profile
}

/// Whether a call is allowed whatever its arguments are.
fn allows(rules: &[LinuxSyscall], name: &str, default: bool) -> bool {
    let mut named = rules.iter().filter(|rule| rule.names().iter().any(|other| other == name)).peekable();
    if named.peek().is_none() {
        return default;
    }
    let whole = named.find(|rule| rule.args().as_ref().is_none_or(Vec::is_empty));
    whole.is_some_and(|rule| rule.action() == LinuxSeccompAction::ScmpActAllow)
}

/// The rules of a call with so many ids.
fn answering(name: &str, ids: usize) -> Vec<LinuxSyscall> {
    let rule = |action, arguments: Vec<LinuxSeccompArg>| {
        let builder = LinuxSyscallBuilder::default().names([name.to_owned()]).action(action).args(arguments);
        builder.build().expect("every field of a rule has a default")
    };
    let compared = |index: usize, op| {
        let builder = LinuxSeccompArgBuilder::default().index(index).value(0_u64).op(op);
        builder.build().expect("every field of a comparison has a default")
    };
    if ids == 0 {
        return vec![rule(LinuxSeccompAction::ScmpActNotify, Vec::new())];
    }
    let roots = (0..ids).map(|index| compared(index, LinuxSeccompOperator::ScmpCmpEq)).collect();
    let others = (0..ids)
        .map(|index| rule(LinuxSeccompAction::ScmpActNotify, vec![compared(index, LinuxSeccompOperator::ScmpCmpNe)]));
    std::iter::once(rule(LinuxSeccompAction::ScmpActAllow, roots)).chain(others).collect()
}
