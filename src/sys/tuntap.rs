//! TAP devices with virtio-net headers: tuntap.rst of the kernel's documentation, linux/if_tun.h.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::error::{Call, Result, SysError, check};

// The ioctls are `_IOW('T', n, int)`, whose encoding is the same on x86_64 and aarch64.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUNSETVNETLE: libc::c_ulong = 0x4004_54dc;

const IFF_TAP: libc::c_short = 0x0002;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_VNET_HDR: libc::c_short = 0x4000;

/// Checksums may be left to the reader, and are left to the kernel by the writer.
pub const OFFLOAD_CSUM: u32 = 0x01;
/// Large TCP segments over IPv4.
pub const OFFLOAD_TSO4: u32 = 0x02;
/// Large TCP segments over IPv6.
pub const OFFLOAD_TSO6: u32 = 0x04;
/// Large TCP segments with congestion marks.
pub const OFFLOAD_TSO_ECN: u32 = 0x08;

/// `struct ifreq` as TUNSETIFF reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    padding: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == 40);

/// Opens `/dev/net/tun`, non-blocking. The device made with it will live in the network namespace that the calling
/// thread is in *now*.
pub fn open() -> Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    nix::fcntl::open(c"/dev/net/tun", flags, Mode::empty()).call(|| "open(\"/dev/net/tun\", O_RDWR)".to_owned())
}

/// Makes a TAP device of this name with a 10-byte little-endian virtio-net header before each frame. Needs
/// `CAP_NET_ADMIN` in the user namespace that owns the network namespace.
pub fn make_tap(tun: BorrowedFd<'_>, name: &str) -> Result<()> {
    let mut request =
        InterfaceRequest { name: [0; libc::IFNAMSIZ], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, padding: [0; 22] };
    if name.len() >= libc::IFNAMSIZ {
        return Err(SysError::new(format!("interface name {name:?}"), Errno::ENAMETOOLONG));
    }
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which is live and of that size (checked above).
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF as _, std::ptr::from_mut(&mut request)) };
    check(result.into(), || format!("ioctl(TUNSETIFF, {name:?}, IFF_TAP|IFF_NO_PI|IFF_VNET_HDR)"))?;
    set_int(tun, TUNSETVNETHDRSZ, 10, "TUNSETVNETHDRSZ")?;
    set_int(tun, TUNSETVNETLE, 1, "TUNSETVNETLE")
}

/// Enables exactly these offloads; `EINVAL` when the kernel does not know one of them.
pub fn set_offload(tun: BorrowedFd<'_>, offloads: u32) -> Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETOFFLOAD as _, libc::c_ulong::from(offloads)) };
    check(result.into(), || format!("ioctl(TUNSETOFFLOAD, {offloads:#x})"))?;
    Ok(())
}

/// Lets the device outlive its last descriptor; it goes with its network namespace.
pub fn set_persistent(tun: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETPERSIST as _, 1 as libc::c_ulong) };
    check(result.into(), || "ioctl(TUNSETPERSIST, 1)".to_owned())?;
    Ok(())
}

fn set_int(tun: BorrowedFd<'_>, request: libc::c_ulong, value: libc::c_int, name: &str) -> Result<()> {
    // SAFETY: both requests read one int through the pointer, which points to a live one.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), request as _, std::ptr::from_ref(&value)) };
    check(result.into(), || format!("ioctl({name}, {value})"))?;
    Ok(())
}
