//! Capabilities: names, numbers, the default set, and what `--cap-add` and `--cap-drop` make of it.
//!
//! A set is a mask: bit n is capability number n of linux/capability.h. A container's bounding, permitted and effective
//! sets are the resolved mask; inheritable and ambient stay empty, so that a program run by another user than root
//! gains nothing at exec (CVE-2022-27650).

use base::{Explain, Kind};
use oci_spec::runtime::{Capabilities, Capability};

/// Every capability, at the index that is its number (Linux 5.9 added the last one).
const BY_NUMBER: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// What a container gets when nothing is said, as Docker's users know it.
const DEFAULT: [Capability; 14] = [
    Capability::Chown,          // install packages, prepare directories
    Capability::DacOverride,    // root reads and writes what belongs to the image's other users
    Capability::Fowner,         // chmod and utimes on them
    Capability::Fsetid,         // keep set-id bits while doing so
    Capability::Kill,           // supervisors signal their workers
    Capability::Setgid,         // drop to a service's group
    Capability::Setuid,         // drop to a service's user
    Capability::Setpcap,        // give up capabilities
    Capability::NetBindService, // listen on port 80
    Capability::NetRaw,         // ping
    Capability::SysChroot,      // package managers, sshd
    Capability::Mknod,          // FIFOs and sockets need none; devices are refused by the user namespace
    Capability::AuditWrite,     // login programs
    Capability::Setfcap,        // unpack files that carry capabilities
];

/// Every capability.
pub const ALL: u64 = (1 << BY_NUMBER.len()) - 1;

/// A name of `--cap-add` or `--cap-drop` that is no capability.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a capability")]
pub struct UnknownCapability {
    /// As the user wrote it.
    pub name: String,
}

impl Explain for UnknownCapability {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hint(&self) -> Option<String> {
        Some("names are those of capabilities(7), with or without CAP_, or ALL".to_owned())
    }
}

/// The mask of one capability.
pub fn bit(capability: Capability) -> u64 {
    let number = BY_NUMBER.iter().position(|known| *known == capability);
    number.map_or(0, |number| 1 << number)
}

/// The mask of the default set.
pub fn default_set() -> u64 {
    DEFAULT.iter().fold(0, |mask, capability| mask | bit(*capability))
}

/// A mask as the runtime specification writes it.
pub fn to_spec(mask: u64) -> Capabilities {
    members(mask).collect()
}

/// The names in a mask, `CAP_` in front, by number.
pub fn names(mask: u64) -> Vec<String> {
    members(mask).map(|capability| format!("CAP_{capability}")).collect()
}

/// The set after `--cap-add` and `--cap-drop`: added ALL is everything but the dropped ones; dropped ALL is only the
/// added ones; else the default set less the dropped, plus the added ones. `privileged` is everything.
pub fn resolve(add: &[String], drop: &[String], privileged: bool) -> Result<u64, UnknownCapability> {
    let (added, dropped) = (union(add)?, union(drop)?);
    Ok(match () {
        () if privileged => ALL,
        () if added == ALL && dropped == ALL => ALL,
        () if added == ALL => ALL & !dropped,
        () => (default_set() & !dropped) | added,
    })
}

fn members(mask: u64) -> impl Iterator<Item = Capability> {
    BY_NUMBER.into_iter().enumerate().filter(move |(number, _)| mask & (1 << number) != 0).map(|(_, member)| member)
}

fn union(names: &[String]) -> Result<u64, UnknownCapability> {
    names.iter().try_fold(0, |mask, name| Ok(mask | parse(name)?))
}

/// The mask a name stands for, in any case, with or without `CAP_`.
pub fn parse(name: &str) -> Result<u64, UnknownCapability> {
    let upper = name.to_ascii_uppercase();
    if upper == "ALL" {
        return Ok(ALL);
    }
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let capability: Capability = short.parse().map_err(|_| UnknownCapability { name: name.to_owned() })?;
    Ok(bit(capability))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn numbers_are_those_of_the_kernel() {
        assert_eq!(bit(Capability::Chown), 1);
        assert_eq!(bit(Capability::SysAdmin), 1 << 21);
        assert_eq!(bit(Capability::CheckpointRestore), 1 << 40);
        assert_eq!(ALL, 0x1ff_ffff_ffff);
        // What `grep CapBnd` shows in a container of Docker.
        assert_eq!(default_set(), 0xa804_25fb);
    }

    #[test]
    fn add_and_drop_resolve_as_docker_does() {
        let resolved = |add: &[&str], drop: &[&str]| resolve(&of(add), &of(drop), false);
        assert_eq!(resolved(&[], &[]), Ok(default_set()));
        assert_eq!(resolved(&["net_admin"], &["CAP_CHOWN"]), Ok((default_set() & !1) | 1 << 12));
        assert_eq!(resolved(&[], &["all"]), Ok(0));
        assert_eq!(resolved(&["SYS_TIME"], &["ALL"]), Ok(1 << 25));
        assert_eq!(resolved(&["ALL"], &["SYS_ADMIN"]), Ok(ALL & !(1 << 21)));
        assert_eq!(resolved(&["ALL"], &["ALL"]), Ok(ALL));
        assert_eq!(resolve(&[], &of(&["ALL"]), true), Ok(ALL));
        assert_eq!(resolved(&["CHOWNED"], &[]), Err(UnknownCapability { name: "CHOWNED".to_owned() }));
        assert_eq!(resolved(&["CAP_ALL"], &[]), Err(UnknownCapability { name: "CAP_ALL".to_owned() }));
    }

    #[test]
    fn a_mask_survives_the_specification() {
        let mask = to_spec(default_set()).into_iter().fold(0, |mask, capability| mask | bit(capability));
        assert_eq!(mask, default_set());
        assert_eq!(names(1 << 21 | 1), ["CAP_CHOWN", "CAP_SYS_ADMIN"]);
    }
}
