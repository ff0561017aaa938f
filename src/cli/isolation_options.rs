//! The options that say how far a container is set apart from the machine.

use std::fs;

use base::units::parse_bytes;
use base::{Context, Kind, Report};
use clap::Args;
use engine::container::record::{HostSettings, IpcMode, PidMode, Seccomp, Ulimit};

use crate::output::warning;
use crate::parse::{self, wrong};

/// Namespaces, rights, and settings of the kernel.
#[derive(Args)]
pub struct IsolationOptions {
    /// Every capability, your devices, no seccomp filter and no masks
    #[arg(long)]
    privileged: bool,
    /// Which ids: auto, keep-id or single
    #[arg(long, default_value = "auto")]
    userns: String,
    /// Which processes it sees: private, host or container:NAME
    #[arg(long, value_name = "MODE", default_value = "private")]
    pid: String,
    /// Whose shared memory and message queues: private, shareable, none, host or container:NAME
    #[arg(long, value_name = "MODE", default_value = "private")]
    ipc: String,
    /// Whose host name: private or host
    #[arg(long, value_name = "MODE", default_value = "private")]
    uts: String,
    /// Which cgroups it sees: private or host
    #[arg(long, value_name = "MODE", default_value = "private")]
    cgroupns: String,
    /// The cgroup above the container's: a path below what is delegated to you
    #[arg(long, value_name = "PATH")]
    cgroup_parent: Option<String>,
    /// Capability beyond the default
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Capability to take from the default, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// seccomp=unconfined, seccomp=FILE, no-new-privileges, systempaths=unconfined
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Group beside those of the user, by name or number; keep-groups for your own
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// NAME=VALUE, a setting of the kernel for the container's namespaces
    #[arg(long, value_name = "NAME=VALUE")]
    sysctl: Vec<String>,
    /// NAME=SOFT[:HARD], a limit of the processes; -1 for none
    #[arg(long, value_name = "LIMIT", help_heading = "Limits")]
    ulimit: Vec<String>,
    /// The size of /dev/shm: 64m
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    shm_size: Option<String>,
    /// How soon the processes are killed when memory is short: -1000 to 1000
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true, help_heading = "Limits")]
    oom_score_adj: Option<i32>,
    /// How its reads and writes of disks stand beside others': idle, best-effort[:0-7] or realtime[:0-7]
    #[arg(long, value_name = "CLASS", help_heading = "Limits")]
    io_class: Option<String>,
    /// KEY=VALUE for the runtime specification
    #[arg(long, value_name = "KEY=VALUE")]
    annotation: Vec<String>,
}

impl IsolationOptions {
    /// Writes what is asked for into the settings.
    pub fn apply(self, host: &mut HostSettings) -> Result<(), Report> {
        // Before anything is fetched or made.
        engine::container::spec::check_capabilities(&self.cap_add, &self.cap_drop)?;
        let bad = |option: &str, kind: &str| wrong(format!("--{option}: invalid {kind} mode"));
        host.privileged = self.privileged;
        host.userns = parse::userns(&self.userns)?;
        host.pid = pid(&self.pid)?;
        host.ipc = ipc(&self.ipc)?;
        host.host_uts = is_host(&self.uts).ok_or_else(|| bad("uts", "UTS"))?;
        host.cgroup_parent = cgroup_parent(self.cgroup_parent)?;
        host.host_cgroups = is_host(&self.cgroupns).ok_or_else(|| bad("cgroupns", "CGROUP"))?;
        (host.cap_add, host.cap_drop) = (self.cap_add, self.cap_drop);
        security(&self.security_opt, host)?;
        host.groups = self.group_add;
        host.sysctls = self.sysctl.iter().map(|text| parse::pair("--sysctl", text)).collect::<Result<_, _>>()?;
        // Podman's word for what holds here in any case.
        let limits = self.ulimit.iter().filter(|text| *text != "host").map(|text| ulimit(text));
        host.ulimits = limits.collect::<Result<_, _>>()?;
        let shm_bytes = self.shm_size.as_deref().map(parse_bytes).transpose().map_err(Report::from);
        // As in Docker, 0 asks for nothing.
        host.shm_bytes = shm_bytes.step(|| "--shm-size".to_owned())?.filter(|bytes| *bytes > 0);
        host.oom_score_adj = self.oom_score_adj;
        host.io_class = self.io_class.as_deref().map(parse::io_class).transpose()?;
        host.annotations =
            self.annotation.iter().map(|text| parse::pair("--annotation", text)).collect::<Result<_, _>>()?;
        Ok(())
    }
}

/// Whether a namespace is the machine's; `None` for a word that is no mode.
fn is_host(text: &str) -> Option<bool> {
    match text {
        "" | "private" => Some(false),
        "host" => Some(true),
        _ => None,
    }
}

fn pid(text: &str) -> Result<PidMode, Report> {
    match (text, text.strip_prefix("container:")) {
        ("" | "private", _) => Ok(PidMode::Private),
        ("host", _) => Ok(PidMode::Host),
        (_, Some(name)) if !name.is_empty() => Ok(PidMode::Container(name.to_owned())),
        _ => Err(wrong("--pid: invalid PID mode".to_owned())),
    }
}

/// `--cgroup-parent`; an empty text names none.
fn cgroup_parent(path: Option<String>) -> Result<Option<String>, Report> {
    let path = path.filter(|path| !path.is_empty());
    match &path {
        Some(slice) if !slice.contains('/') && slice.strip_suffix(".slice").is_some() => {
            let text = format!("--cgroup-parent {slice}: cgroups in a slice are made by systemd alone");
            Err(Report::new(Kind::Unsupported, text)
                .with_hint("name a path, which is made in the cgroup that is delegated to you"))
        }
        _ => Ok(path),
    }
}

fn ipc(text: &str) -> Result<IpcMode, Report> {
    match (text, text.strip_prefix("container:")) {
        ("" | "private", _) => Ok(IpcMode::Private),
        ("shareable", _) => Ok(IpcMode::Shareable),
        ("none", _) => Ok(IpcMode::None),
        ("host", _) => Ok(IpcMode::Host),
        (_, Some(name)) if !name.is_empty() => Ok(IpcMode::Container(name.to_owned())),
        _ => Err(wrong("--ipc: invalid IPC mode".to_owned())),
    }
}

/// `--ulimit NAME=SOFT[:HARD]`, in Docker's words; whether there is such a limit the engine knows.
fn ulimit(text: &str) -> Result<Ulimit, Report> {
    let bad = || wrong(format!("invalid ulimit argument: {text}"));
    let number = |text: &str| text.parse::<i64>().ok().filter(|number| *number >= -1).ok_or_else(bad);
    let (name, values) = text.split_once('=').ok_or_else(bad)?;
    let (soft, hard) = match values.split_once(':') {
        Some((soft, hard)) => (number(soft)?, number(hard)?),
        None => (number(values)?, number(values)?),
    };
    let order = |limit: i64| if limit < 0 { i64::MAX } else { limit };
    if order(soft) > order(hard) {
        let text = format!("ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}");
        return Err(wrong(text));
    }
    Ok(Ulimit { name: name.to_owned(), hard, soft })
}

/// `--security-opt`.
fn security(options: &[String], host: &mut HostSettings) -> Result<(), Report> {
    for option in options {
        // Docker's older form has a colon.
        let (key, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
        match (key, value) {
            ("seccomp", "unconfined") => host.seccomp = Seccomp::Unconfined,
            ("seccomp", "builtin" | "") => host.seccomp = Seccomp::Default,
            ("seccomp", file) => {
                let text = fs::read_to_string(file).map_err(|error| Report::of(Kind::Usage, error));
                host.seccomp = Seccomp::Profile(text.step(|| format!("opening seccomp profile ({file}) failed"))?);
            }
            ("no-new-privileges", "" | "true") => host.no_new_privileges = true,
            ("no-new-privileges", "false") => host.no_new_privileges = false,
            // The second is Podman's.
            ("systempaths", "unconfined") | ("unmask", "ALL") => host.unmasked = true,
            ("apparmor" | "label", _) => warning(&format!("--security-opt {option} has no effect here")),
            _ => return Err(wrong(format!("invalid --security-opt: \"{option}\""))),
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn ulimits_have_two_numbers_in_order() {
        let bounds = |text: &str| ulimit(text).ok().map(|limit| (limit.name, limit.soft, limit.hard));
        let one = |soft, hard| Some(("nofile".to_owned(), soft, hard));
        for (text, wanted) in [
            ("nofile=10", one(10, 10)),
            ("nofile=10:20", one(10, 20)),
            ("nofile=-1", one(-1, -1)),
            ("nofile=5:-1", one(5, -1)),
            ("nofile=-1:5", None),
            ("nofile=20:10", None),
            ("nofile=-2", None),
            ("nofile=", None),
            ("nofile=1:", None),
            ("nofile=1:2:3", None),
            ("nofile", None),
        ] {
            assert_eq!(bounds(text), wanted, "{text}");
        }
    }

    #[test]
    fn modes_are_dockers_words() {
        assert_eq!(pid("container:web").unwrap(), PidMode::Container("web".to_owned()));
        assert!(["container:", "other", "Host"].iter().all(|bad| pid(bad).is_err()));
        assert_eq!(ipc("container:web").unwrap(), IpcMode::Container("web".to_owned()));
        assert!(["container:", "other"].iter().all(|bad| ipc(bad).is_err()));
        assert_eq!((is_host(""), is_host("host"), is_host("container:web")), (Some(false), Some(true), None));
    }
}
