//! Random bytes of the kernel.

use crate::error::{Result, check};

/// Random bytes for names and ids (getrandom(2)). Early in a boot it waits until the kernel has some.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    const { assert!(N <= 256, "no signal cuts so few short") };
    let mut bytes = [0; N];
    // SAFETY: the buffer is ours and as long as is said.
    let result = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) };
    check(result as libc::c_long, || format!("getrandom({N})"))?;
    Ok(bytes)
}
