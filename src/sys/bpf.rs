//! Programs that decide over device nodes for a cgroup: bpf(2), `BPF_PROG_TYPE_CGROUP_DEVICE`, Linux 4.15.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::error::{Result, check};

const BPF_PROG_LOAD: libc::c_uint = 5;
const BPF_PROG_ATTACH: libc::c_uint = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Beside programs of others, such as systemd's: all of them must allow an access.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// One instruction of extended BPF: `struct bpf_insn` of linux/bpf.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What to do: class, operator or width, source, bitwise or-ed.
    pub code: u8,
    /// The destination register in the low four bits of the lowest byte, the source register in the high ones.
    pub registers: u8,
    /// An offset into memory, or the instructions to skip.
    pub offset: i16,
    /// A constant.
    pub constant: i32,
}

const _: () = assert!(size_of::<Instruction>() == 8 && align_of::<Instruction>() == 4);

/// The fields of `union bpf_attr` that [`load_device_program`] uses, as in Linux 4.15.
#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

const _: () = assert!(size_of::<LoadAttr>() == 48);

/// The fields that [`attach_device_program`] uses.
#[repr(C)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

const _: () = assert!(size_of::<AttachAttr>() == 16);

/// Has the kernel check and load a program of the type "cgroup device". It is called with a pointer to `struct
/// bpf_cgroup_dev_ctx` in register 1 and answers in register 0: 0 refuses the access.
///
/// Needs `CAP_SYS_ADMIN` (from Linux 5.8 `CAP_BPF` and `CAP_NET_ADMIN`) in the initial user namespace, `EPERM` otherwise.
/// `EINVAL`: the verifier refuses the program, or the kernel was built without `CONFIG_CGROUP_BPF`.
pub fn load_device_program(program: &[Instruction]) -> Result<OwnedFd> {
    let attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).unwrap_or(u32::MAX), // above the kernel's limit in any case: E2BIG
        insns: program.as_ptr() as u64,
        license: c"".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    // SAFETY: `attr` is a live `repr(C)` struct of exactly the size passed; its pointers cover `insn_cnt` instructions of
    // the layout of `struct bpf_insn` (checked above) and a NUL-terminated string, both live for the call and only read.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, std::ptr::from_ref(&attr), size_of::<LoadAttr>()) };
    let fd = check(result, || format!("bpf(BPF_PROG_LOAD, CGROUP_DEVICE, {} instructions)", program.len()))?;
    // SAFETY: the kernel returned a fresh descriptor, close-on-exec and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Has a program decide for every process of the cgroup of this directory and of those below, in addition to the programs
/// that are attached there. It stays as long as the cgroup.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    let attr = AttachAttr {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: `attr` is a live `repr(C)` struct of exactly the size passed, which the kernel only reads; the descriptors
    // in it are borrowed for the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, std::ptr::from_ref(&attr), size_of::<AttachAttr>()) };
    check(result, || {
        format!("bpf(BPF_PROG_ATTACH, CGROUP_DEVICE, cgroup fd {}, fd {})", cgroup.as_raw_fd(), program.as_raw_fd())
    })?;
    Ok(())
}
