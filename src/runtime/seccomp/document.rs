//! Seccomp profiles as users write them: Docker's format, which is the runtime specification's with conditions on
//! rules.
//!
//! Beyond the specification it has: `archMap`, sets of architectures by the machine's; rules with `includes` and
//! `excludes` (by capability of the container, machine, least kernel version), a `comment`, or one `name` instead of
//! `names`. What it does not know it passes over, as Docker does; lists may be null.

use std::path::PathBuf;

use base::{Explain, Kind};
use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompBuilder, LinuxSeccompFilterFlag,
    LinuxSyscall, LinuxSyscallBuilder,
};
use serde::Deserialize;
use serde::de::Error;

use super::NATIVE;
use crate::capabilities::bit;

/// What a profile's conditions ask about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// The mask of the container's capabilities ([`crate::capabilities`]).
    pub capabilities: u64,
    /// Version and major revision of the kernel.
    pub kernel: (u64, u64),
    /// The machine's native architecture.
    pub machine: Arch,
}

impl Host {
    /// This host, for a container with this mask of capabilities.
    pub fn here(capabilities: u64) -> Host {
        Host { capabilities, kernel: running_kernel(), machine: NATIVE }
    }
}

/// Version and major revision of the kernel that runs.
pub fn running_kernel() -> (u64, u64) {
    let release = nix::sys::utsname::uname().map(|names| names.release().to_string_lossy().into_owned());
    // A release that names no version is older than any.
    release.map_or((0, 0), |release| kernel_version(&release))
}

/// Version and major revision in front of a release such as `3.12-1-amd64`.
fn kernel_version(release: &str) -> (u64, u64) {
    let mut numbers = release.split(|other: char| !other.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Why a document is no profile.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// No JSON, or not of this form.
    #[error("decoding the seccomp profile failed")]
    Format(#[from] serde_json::Error),
    /// A profile with rules needs an action for the other calls.
    #[error("the seccomp profile has rules and no defaultAction")]
    NoDefault,
    /// Two ways of saying the same.
    #[error("the seccomp profile has both {0:?} and {1:?}; use either")]
    Both(&'static str, &'static str),
}

impl Explain for DocumentError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    default_action: Option<Action>,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<Arch>>,
    arch_map: Option<Vec<Machine>>,
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    listener_path: Option<PathBuf>,
    listener_metadata: Option<String>,
    syscalls: Option<Vec<Rule>>,
}

/// An action; none where it is the empty string.
struct Action(Option<LinuxSeccompAction>);

impl<'de> Deserialize<'de> for Action {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(Action(None));
        }
        let action = text.parse().map_err(|_| D::Error::custom(format!("{text:?} is no action of seccomp")));
        action.map(|action| Action(Some(action)))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Machine {
    architecture: Arch,
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    name: String,
    names: Option<Vec<String>>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<LinuxSeccompArg>>,
    includes: Option<Condition>,
    excludes: Option<Condition>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<KernelVersion>,
}

/// `"4.8"`; an empty string says nothing.
struct KernelVersion(Option<(u64, u64)>);

impl<'de> Deserialize<'de> for KernelVersion {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(KernelVersion(None));
        }
        let number = |text: &str| text.parse::<u8>().ok().map(u64::from);
        let version = text.split_once('.').and_then(|(version, major)| Some((number(version)?, number(major)?)));
        match version.filter(|version| *version != (0, 0)) {
            Some(version) => Ok(KernelVersion(Some(version))),
            None => Err(D::Error::custom(format!("{text:?} is no kernel version of the form 4.8"))),
        }
    }
}

impl Condition {
    fn kernel_is_reached(&self, host: Host) -> Option<bool> {
        self.min_kernel.as_ref().and_then(|least| least.0).map(|least| host.kernel >= least)
    }

    /// Whether a rule that includes this applies: everything named is given.
    fn holds(&self, host: Host) -> bool {
        let arches = self.arches.as_deref().unwrap_or_default();
        self.caps.iter().flatten().all(|name| has(host, name))
            && (arches.is_empty() || arches.iter().any(|arch| arch == go_name(host.machine)))
            && self.kernel_is_reached(host) != Some(false)
    }

    /// Whether a rule that excludes this does not apply: anything named is given.
    fn hits(&self, host: Host) -> bool {
        self.caps.iter().flatten().any(|name| has(host, name))
            || self.arches.iter().flatten().any(|arch| arch == go_name(host.machine))
            || self.kernel_is_reached(host) == Some(true)
    }
}

/// Whether the container has a capability; one of a name that we do not know it has not.
fn has(host: Host, name: &str) -> bool {
    let capability = name.strip_prefix("CAP_").and_then(|name| name.parse::<Capability>().ok());
    capability.is_some_and(|capability| host.capabilities & bit(capability) != 0)
}

/// What Docker calls a machine in `arches`.
fn go_name(machine: Arch) -> &'static str {
    match machine {
        Arch::ScmpArchX86_64 => "amd64",
        Arch::ScmpArchAarch64 => "arm64",
        Arch::ScmpArchRiscv64 => "riscv64",
        Arch::ScmpArchPpc64le => "ppc64le",
        Arch::ScmpArchS390x => "s390x",
        _ => "",
    }
}

/// Reads a profile for a container on a host; `None` when it has neither rules nor a default, which means no filter.
pub fn read(text: &str, host: Host) -> Result<Option<LinuxSeccomp>, DocumentError> {
    let document: Document = serde_json::from_str(text)?;
    let rules = document.syscalls.unwrap_or_default();
    let Some(default) = document.default_action.and_then(|action| action.0) else {
        return if rules.is_empty() { Ok(None) } else { Err(DocumentError::NoDefault) };
    };
    let mut architectures = document.architectures.unwrap_or_default();
    let map = document.arch_map.unwrap_or_default();
    if !architectures.is_empty() && !map.is_empty() {
        return Err(DocumentError::Both("architectures", "archMap"));
    }
    if let Some(machine) = map.into_iter().find(|entry| entry.architecture == host.machine) {
        architectures.push(machine.architecture);
        architectures.extend(machine.sub_architectures.unwrap_or_default());
    }
    let applies = |rule: &Rule| {
        rule.includes.as_ref().is_none_or(|includes| includes.holds(host))
            && !rule.excludes.as_ref().is_some_and(|excludes| excludes.hits(host))
    };
    let rules = rules.into_iter().map(single_name).collect::<Result<Vec<_>, _>>()?;
    let rules: Vec<LinuxSyscall> = rules.into_iter().filter(applies).map(syscall).collect();
    let mut profile = LinuxSeccompBuilder::default()
        .default_action(default)
        .architectures(architectures)
        .syscalls(rules)
        .build()
        .expect("every field of a profile has a default");
    profile
        .set_default_errno_ret(document.default_errno_ret)
        .set_flags(document.flags)
        .set_listener_path(document.listener_path.filter(|path| !path.as_os_str().is_empty()))
        .set_listener_metadata(document.listener_metadata.filter(|metadata| !metadata.is_empty()));
    Ok(Some(profile))
}

/// The older form of a rule has one name.
fn single_name(mut rule: Rule) -> Result<Rule, DocumentError> {
    if rule.name.is_empty() {
        return Ok(rule);
    }
    if rule.names.as_ref().is_some_and(|names| !names.is_empty()) {
        return Err(DocumentError::Both("name", "names"));
    }
    rule.names = Some(vec![std::mem::take(&mut rule.name)]);
    Ok(rule)
}

fn syscall(rule: Rule) -> LinuxSyscall {
    let builder = LinuxSyscallBuilder::default().names(rule.names.unwrap_or_default()).action(rule.action);
    let mut syscall = builder.build().expect("every field of a rule has a default");
    syscall.set_errno_ret(rule.errno_ret).set_args(rule.args.filter(|args| !args.is_empty()));
    syscall
}
