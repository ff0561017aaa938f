//! What a process may do: capability sets, and what nix lacks of prctl(2) and keyctl(2).

use nix::errno::Errno;

use crate::error::{Call, Result, check};

const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;
const PR_CAPBSET_READ: libc::c_int = 23;
const PR_CAPBSET_DROP: libc::c_int = 24;
const PR_CAP_AMBIENT: libc::c_int = 47;
const PR_CAP_AMBIENT_RAISE: libc::c_ulong = 2;
const PR_CAP_AMBIENT_CLEAR_ALL: libc::c_ulong = 4;
const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;

/// The five sets of capabilities(7) as bit masks: bit n is capability number n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapabilitySets {
    /// The most that any later exec can give.
    pub bounding: u64,
    /// In force.
    pub effective: u64,
    /// May be put in force.
    pub permitted: u64,
    /// Kept over exec of a file with inheritable capabilities.
    pub inheritable: u64,
    /// Kept over exec of an ordinary file by a non-root user.
    pub ambient: u64,
}

#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const _: () = assert!(size_of::<Header>() == 8 && size_of::<Data>() == 12);

/// Drops every capability outside `keep` from the bounding set; needs `CAP_SETPCAP`.
pub fn limit_bounding(keep: u64) -> Result<()> {
    for number in (0..64).filter(|number| keep & (1 << number) == 0) {
        // SAFETY: no pointers.
        let dropped = unsafe { libc::prctl(PR_CAPBSET_DROP, number, 0, 0, 0) };
        let dropped = check(dropped.into(), || format!("prctl(PR_CAPBSET_DROP, {number})"));
        if dropped.is_err() {
            // SAFETY: no pointers. What is not in the set needs no right to be dropped; an unknown number ends the loop.
            match unsafe { libc::prctl(PR_CAPBSET_READ, number, 0, 0, 0) } {
                0 => {}
                1 => return dropped.map(drop),
                _ => return Ok(()),
            }
        }
    }
    Ok(())
}

/// Sets effective, permitted and inheritable of the calling thread (capset(2)), then the ambient set to exactly
/// `sets.ambient`.
pub fn set_capabilities(sets: &CapabilitySets) -> Result<()> {
    let header = Header { version: LINUX_CAPABILITY_VERSION_3, pid: 0 };
    let half = |shift: u32| Data {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 takes a header and two data records, both live `repr(C)` values that the kernel only reads.
    let result = unsafe { libc::syscall(libc::SYS_capset, std::ptr::from_ref(&header), data.as_ptr()) };
    check(result, || format!("capset({sets:x?})"))?;
    ambient(PR_CAP_AMBIENT_CLEAR_ALL, 0).call(|| "prctl(PR_CAP_AMBIENT_CLEAR_ALL)".to_owned())?;
    for number in (0..64).filter(|number| sets.ambient & (1 << number) != 0) {
        ambient(PR_CAP_AMBIENT_RAISE, number).call(|| format!("prctl(PR_CAP_AMBIENT_RAISE, {number})"))?;
    }
    Ok(())
}

/// Reads effective, permitted and inheritable of the calling thread; bounding and ambient are left 0.
pub fn capabilities() -> Result<CapabilitySets> {
    let mut header = Header { version: LINUX_CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 fills exactly two data records; both values are live and exclusively borrowed.
    let result = unsafe { libc::syscall(libc::SYS_capget, std::ptr::from_mut(&mut header), data.as_mut_ptr()) };
    check(result, || "capget()".to_owned())?;
    let join = |part: fn(&Data) -> u32| u64::from(part(&data[0])) | (u64::from(part(&data[1])) << 32);
    Ok(CapabilitySets {
        effective: join(|data| data.effective),
        permitted: join(|data| data.permitted),
        inheritable: join(|data| data.inheritable),
        ..CapabilitySets::default()
    })
}

/// Gives up every capability in every set, bounding set included where that is allowed.
pub fn drop_all_capabilities() -> Result<()> {
    match limit_bounding(0) {
        Err(error) if error.errno() == Errno::EPERM => {}
        result => result?,
    }
    set_capabilities(&CapabilitySets::default())
}

fn ambient(operation: libc::c_ulong, number: libc::c_ulong) -> std::result::Result<(), Errno> {
    // SAFETY: no pointers.
    let result = unsafe { libc::prctl(PR_CAP_AMBIENT, operation, number, 0, 0) };
    Errno::result(result).map(drop)
}

/// Gives the process a new, empty session keyring (keyctl(2)): `ENOSYS` without keyrings, `EDQUOT` when the user has
/// too many.
pub fn new_session_keyring() -> Result<()> {
    let anonymous = std::ptr::null::<libc::c_char>();
    // SAFETY: a null name asks for an anonymous keyring.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, anonymous) };
    check(result, || "keyctl(JOIN_SESSION_KEYRING)".to_owned())?;
    Ok(())
}
