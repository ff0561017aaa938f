//! Loading a system call filter: seccomp(2), `SECCOMP_SET_MODE_FILTER`, Linux 3.17.

use crate::error::{Result, check};

const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;

/// One instruction of classic BPF: `struct sock_filter` of linux/filter.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Instruction {
    /// What to do: class, width, addressing mode or operator, bitwise or-ed.
    pub code: u16,
    /// Instructions to skip when a comparison holds.
    pub jump_true: u8,
    /// Instructions to skip when it does not.
    pub jump_false: u8,
    /// The operand: a constant, an offset into `struct seccomp_data`, or an unconditional jump's distance.
    pub operand: u32,
}

const _: () = assert!(size_of::<Instruction>() == 8 && align_of::<Instruction>() == 4);
const _: () = assert!(size_of::<Instruction>() == size_of::<libc::sock_filter>());

/// Filters every later system call of the calling thread and its descendants by `program`; it cannot be taken back.
///
/// Needs `no_new_privs` or `CAP_SYS_ADMIN` (`EACCES` otherwise). `EINVAL`: the program is empty, longer than 4096
/// instructions, or one of them is malformed.
pub fn load(program: &[Instruction]) -> Result<()> {
    let length = u16::try_from(program.len()).unwrap_or(u16::MAX); // above BPF_MAXINSNS in any case: EINVAL
    // The kernel only reads through this pointer; C declares it mutable.
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut() };
    // SAFETY: `filter` is a live `struct sock_fprog` whose pointer covers at least `len` instructions of the layout of
    // `struct sock_filter` (checked above); both are borrowed for the call and only read.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0 as libc::c_uint, std::ptr::from_ref(&filter))
    };
    check(result, || format!("seccomp(SECCOMP_SET_MODE_FILTER, 0, {} instructions)", program.len()))?;
    Ok(())
}
