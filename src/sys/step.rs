//! Places at which a test kills a process, in builds with debug assertions; elsewhere a step is nothing.
//!
//! Whoever starts a command of the OCI runtime or of the engine with `SUBLET_KILL_AT=PART:N` in the environment has the process that plays
//! this part end at its N-th step as by `kill -9`, after a line `killed at PART:N` on standard error. Parts are `command`
//! until [`begin`] gives a child another one; each process counts for itself, so that the numbers do not depend on who is
//! faster.

pub use counted::{begin, step};

#[cfg(debug_assertions)]
mod counted {
    use std::io::Write;
    use std::sync::Mutex;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::getpid;

    static STEPS: Mutex<(&str, u32)> = Mutex::new(("command", 0));

    /// The calling process, just forked, plays another part and counts anew.
    pub fn begin(part: &'static str) {
        if let Ok(mut steps) = STEPS.lock() {
            *steps = (part, 0);
        }
    }

    /// A place between two effects.
    pub fn step() {
        let Ok(wanted) = std::env::var("SUBLET_KILL_AT") else { return };
        let Ok(mut steps) = STEPS.lock() else { return };
        steps.1 += 1;
        if wanted == format!("{}:{}", steps.0, steps.1) {
            // One write, so that the container, which may have the same standard error, writes nothing in between.
            let _ = std::io::stderr().write_all(format!("killed at {wanted}\n").as_bytes());
            let _ = kill(getpid(), Signal::SIGKILL);
            // SAFETY: ends the process without running anything of it. Who is first in its pid namespace gets here: the
            // kernel keeps it from its own signals (pid_namespaces(7)).
            unsafe { libc::_exit(137) }
        }
    }
}

#[cfg(not(debug_assertions))]
mod counted {
    /// Does nothing.
    #[inline]
    pub fn begin(_part: &'static str) {}

    /// Does nothing.
    #[inline]
    pub fn step() {}
}
