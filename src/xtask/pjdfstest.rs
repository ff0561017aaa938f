//! The suite of file system tests `pjdfstest` (BSD-2-Clause): a program of its own, built once from its published crate.

use std::path::PathBuf;

use crate::host::{MUSL_COMPILER, musl_target};
use crate::shell::{cache, cargo, run, which};

/// Its tests are compared by name between file systems, all of them in one run, so that another version only has others.
const VERSION: &str = "0.2.2";

/// Where the static program is. `None` where it is not yet and cannot be built: no musl compiler, or no way to the crate.
pub fn program() -> Option<PathBuf> {
    let root = cache().join(format!("pjdfstest-{VERSION}"));
    let program = root.join("bin/pjdfstest");
    if program.exists() {
        return Some(program);
    }
    which(MUSL_COMPILER)?;
    println!("== pjdfstest {VERSION} (once)");
    let target = musl_target();
    let mut install = cargo(["install", "--quiet", "--locked", "pjdfstest", "--target", &target]);
    install.args(["--version", &format!("={VERSION}")]).arg("--root").arg(&root);
    install.arg("--target-dir").arg(root.join("target"));
    let built = run(&mut install);
    // Some hundred megabytes; the program has four.
    let _ = std::fs::remove_dir_all(root.join("target"));
    if let Err(error) = built {
        println!("no pjdfstest: {error}");
        return None;
    }
    Some(program)
}
