//! An OCI runtime at work: a bundle's container from nothing to its end, and one more process in a container that runs.
//!
//! All run the same bundle: a plain root of busybox and crun's rootless specification, with one mapped id. Podman, which takes
//! no bundles, runs the same root directory; beside the runtimes it shows what an engine adds.
//!
//! "run with a profile" has a seccomp profile of the usual size in the bundle; what it takes longer than "run" is what reading,
//! compiling and loading it costs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::start::{plain_root, podman};
use super::{Ground, Side};
use crate::shell::{Fallible, command, output, which};

/// The runtimes: what the tables call them, the program, and its first arguments.
fn runtimes(ground: &Ground) -> Vec<(&'static str, PathBuf, &'static [&'static str])> {
    let mut found = vec![("sublet", ground.sublet.clone(), ["runtime"].as_slice())];
    for name in ["crun", "runc"] {
        found.extend(which(name).map(|program| (name, program, [].as_slice())));
    }
    found
}

/// A bundle whose process is this command.
pub fn bundle(ground: &Ground, name: &str, words: &[&str]) -> Fallible<PathBuf> {
    let root = plain_root(ground)?;
    let bundle = ground.directory.join(name);
    if bundle.exists() {
        fs::remove_dir_all(&bundle)?;
    }
    fs::create_dir_all(&bundle)?;
    output(command("crun", ["spec", "--rootless"]).current_dir(&bundle))?;
    let file = bundle.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    spec["process"]["args"] = serde_json::json!(words);
    spec["process"]["terminal"] = false.into();
    let own = |id: u32| serde_json::json!([{ "containerID": 0, "hostID": id, "size": 1 }]);
    spec["linux"]["uidMappings"] = own(nix::unistd::getuid().as_raw());
    spec["linux"]["gidMappings"] = own(nix::unistd::getgid().as_raw());
    spec["root"]["path"] = root.to_string_lossy().into_owned().into();
    fs::write(file, spec.to_string())?;
    Ok(bundle)
}

/// Where a runtime keeps the states of its containers.
fn states(ground: &Ground, name: &str) -> PathBuf {
    ground.directory.join(format!("states-{name}"))
}

fn call(runtime: &(&str, PathBuf, &[&str]), ground: &Ground, arguments: &[&str]) -> Command {
    let (name, program, first) = runtime;
    let mut call = Command::new(program);
    call.args(*first).arg("--root").arg(states(ground, name)).args(arguments);
    call
}

pub fn sides(ground: &Ground) -> Fallible<Vec<Side>> {
    if which("crun").is_none() {
        return Err("crun, which writes the bundle's specification, is not installed".into());
    }
    let run = bundle(ground, "run", &["/bin/echo", "done"])?;
    // Bounded: nobody ends it.
    let long = bundle(ground, "long", &["/bin/sleep", "600"])?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut sides = Vec::new();
    for (name, ..) in runtimes(ground) {
        // What an interrupted run has left would have taken the ids.
        let states = states(ground, name);
        if states.exists() {
            fs::remove_dir_all(states)?;
        }
    }
    for runtime in runtimes(ground) {
        let (id, at) = (format!("bench-{}", std::process::id()), text(&run));
        // The second of two runs in a row, as in the topic `start`.
        let twice = || call(&runtime, ground, &["run", "--bundle", &at, &id]);
        sides.push(Side::timed("run", runtime.0, twice()).after(twice()));
    }
    if which("bwrap").is_some() {
        let bwrap = || -> Fallible<Command> {
            let mut bwrap = command("bwrap", ["--unshare-all", "--bind"]);
            bwrap.arg(plain_root(ground)?).args(["/", "--proc", "/proc", "--dev", "/dev", "echo", "done"]);
            Ok(bwrap)
        };
        sides.push(Side::timed("run", "bwrap (no limits)", bwrap()?).after(bwrap()?));
    }
    let engine = |options: &[&str], words: &[&str]| -> Fallible<Command> {
        let mut engine = podman(ground);
        engine.arg("run").args(options).args(["--network", "none", "--rootfs"]).arg(plain_root(ground)?).args(words);
        Ok(engine)
    };
    let has_podman = which("podman").is_some();
    if has_podman {
        let run = || engine(&["--rm"], &["/bin/echo", "done"]);
        sides.push(Side::timed("run", "podman (an engine)", run()?).after(run()?));
    }
    let filtered = bundle(ground, "filtered", &["/bin/echo", "done"])?;
    if add_profile(&filtered)? {
        for runtime in runtimes(ground) {
            let (id, at) = (format!("filtered-{}", std::process::id()), text(&filtered));
            let twice = || call(&runtime, ground, &["run", "--bundle", &at, &id]);
            sides.push(Side::timed("run with a profile", runtime.0, twice()).after(twice()));
        }
    }
    for runtime in runtimes(ground) {
        let (id, at) = (format!("long-{}", std::process::id()), text(&long));
        let status = call(&runtime, ground, &["run", "--detach", "--bundle", &at, &id])
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()?;
        if !status.success() {
            return Err(format!("{} does not run the bundle", runtime.0).into());
        }
        sides.push(Side::timed("exec", runtime.0, call(&runtime, ground, &["exec", &id, "/bin/echo", "done"])));
    }
    if has_podman {
        let name = format!("long-{}", std::process::id());
        output(&mut engine(&["--detach", "--name", &name], &["/bin/sleep", "600"])?)?;
        let mut exec = podman(ground);
        exec.args(["exec", &name, "/bin/echo", "done"]);
        sides.push(Side::timed("exec", "podman (an engine)", exec));
    }
    Ok(sides)
}

/// Adds the host's default profile, as the engines have it, without the rules that depend on anything but the architecture;
/// false where there is none.
fn add_profile(bundle: &Path) -> Fallible<bool> {
    let Ok(text) = fs::read_to_string("/usr/share/containers/seccomp.json") else { return Ok(false) };
    let profile: serde_json::Value = serde_json::from_str(&text)?;
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let fits = |key: &str, wanted: &serde_json::Value| {
        key == "arches" && wanted.as_array().is_some_and(|arches| arches.iter().any(|name| name == arch))
    };
    let applies = |rule: &serde_json::Value| {
        let excludes = rule["excludes"].as_object().is_some_and(|on| !on.is_empty());
        !excludes && rule["includes"].as_object().into_iter().flatten().all(|(key, wanted)| fits(key, wanted))
    };
    let rules = profile["syscalls"].as_array().into_iter().flatten().filter(|rule| applies(rule));
    let rule = |rule: &serde_json::Value| {
        let mut plain = serde_json::json!({ "names": rule["names"], "action": rule["action"] });
        for key in ["args", "errnoRet"] {
            if !rule[key].is_null() {
                plain[key] = rule[key].clone();
            }
        }
        plain
    };
    let file = bundle.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    spec["linux"]["seccomp"] = serde_json::json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "syscalls": rules.map(rule).collect::<Vec<_>>(),
    });
    fs::write(file, spec.to_string())?;
    Ok(true)
}
