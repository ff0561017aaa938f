//! Giving up what the network process does not need, in this order: core dumps and a low descriptor limit, being
//! inspected, gaining privileges, every capability.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sys::{Call, SysError};

/// Descriptors that are wanted: all flows at once.
const DESCRIPTORS: u64 = 20_000;

/// Confines the process; returns how many descriptors it may open.
pub fn enter() -> Result<u64, SysError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).call(|| "setrlimit(RLIMIT_CORE, 0)".to_owned())?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).call(|| "getrlimit(RLIMIT_NOFILE)".to_owned())?;
    let soft = hard.min(DESCRIPTORS);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).call(|| format!("setrlimit(RLIMIT_NOFILE, {soft})"))?;
    nix::sys::prctl::set_dumpable(false).call(|| "prctl(PR_SET_DUMPABLE, 0)".to_owned())?;
    nix::sys::prctl::set_no_new_privs().call(|| "prctl(PR_SET_NO_NEW_PRIVS)".to_owned())?;
    sys::security::drop_all_capabilities()?;
    Ok(soft)
}
