//! What a test switches off, in builds with debug assertions; elsewhere nothing can be.
//!
//! Whoever starts a command with `SUBLET_WITHOUT=WORD,WORD` in the environment has it do without the things of these
//! names: a feature of newer kernels that no filter of system calls can refuse (so the fallback is tried), or one of our
//! own defences (so a test shows that its attack would succeed). `docs/testing.md` lists the words.

/// Whether the thing of this name is switched off.
#[cfg(debug_assertions)]
pub fn without(what: &str) -> bool {
    std::env::var("SUBLET_WITHOUT").is_ok_and(|list| list.split(',').any(|word| word == what))
}

/// Nothing is switched off.
#[cfg(not(debug_assertions))]
#[inline]
pub fn without(_what: &str) -> bool {
    false
}
