//! `state`, `list` and `ps`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use base::{Kind, Report};
use runtime::outer::login_name;
use serde::Serialize;
use sys::Call;

use crate::args::{Format, List, Ps};
use crate::state::{Container, Root, Status};

/// One container, as `state` and `list` tell it: the specification's state, and what runc adds.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told<'a> {
    oci_version: &'a str,
    id: &'a str,
    pid: i32,
    status: &'a str,
    bundle: &'a Path,
    rootfs: &'a Path,
    created: &'a str,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    annotations: std::collections::BTreeMap<&'a str, &'a str>,
    owner: String,
}

fn told<'a>(container: &'a Container, spec: &'a oci_spec::runtime::Spec) -> Told<'a> {
    let state = container.state(spec, container.status());
    Told {
        oci_version: state.oci_version,
        id: state.id,
        pid: state.pid,
        status: state.status,
        bundle: state.bundle,
        rootfs: &container.record.rootfs,
        created: &container.record.created,
        annotations: state.annotations,
        owner: login_name(container.record.owner).unwrap_or_else(|| format!("#{}", container.record.owner)),
    }
}

/// Prints to standard output; a reader that has seen enough is no error.
pub fn print(text: &str) -> Result<(), Report> {
    print_or_end(text).map(drop)
}

/// Prints to standard output; false once nobody reads it any more.
pub fn print_or_end(text: &str) -> Result<bool, Report> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Report::of(Kind::Internal, error).with_step("writing to standard output")),
    }
}

fn print_lines<'a>(lines: impl Iterator<Item = &'a str>) -> Result<(), Report> {
    print(&lines.flat_map(|line| [line, "\n"]).collect::<String>())
}

/// Prints a document as JSON.
pub fn print_json(document: &impl Serialize) -> Result<(), Report> {
    let text = serde_json::to_string_pretty(document).map_err(|error| Report::of(Kind::Internal, error))?;
    print(&format!("{text}\n"))
}

/// `state ID`.
pub fn state(root: &Root, id: &str) -> Result<u8, Report> {
    let container = root.load(id)?;
    let spec = container.place.spec()?;
    print_json(&told(&container, &spec))?;
    Ok(0)
}

/// `list`. A container whose files are broken hides no other.
pub fn list(root: &Root, arguments: &List) -> Result<u8, Report> {
    let ids = root.ids()?;
    if arguments.quiet {
        print_lines(ids.iter().map(String::as_str))?;
        return Ok(0);
    }
    let containers = ids.iter().filter_map(|id| root.load(id).ok());
    let whole: Vec<_> = containers.filter_map(|one| one.place.spec().ok().map(|spec| (one, spec))).collect();
    let rows: Vec<Told<'_>> = whole.iter().map(|(container, spec)| told(container, spec)).collect();
    match arguments.format {
        Format::Json => print_json(&rows)?,
        Format::Table => print(&table(&rows))?,
    }
    Ok(0)
}

fn table(rows: &[Told<'_>]) -> String {
    let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let mut lines = vec![head];
    lines.extend(rows.iter().map(|row| {
        let bundle = row.bundle.display().to_string();
        [
            row.id.to_owned(),
            row.pid.to_string(),
            row.status.to_owned(),
            bundle,
            row.created.to_owned(),
            row.owner.clone(),
        ]
    }));
    let widths: Vec<usize> =
        (0..6).map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)).collect();
    let line = |cells: &[String; 6]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", padded.collect::<Vec<_>>().join("   ").trim_end())
    };
    lines.iter().map(line).collect()
}

/// `ps ID`: the numbers of the container's processes as JSON, or what ps(1) says of them.
pub fn ps(root: &Root, arguments: &Ps) -> Result<u8, Report> {
    let container = root.load(&arguments.id)?;
    let pids = processes(&container)?;
    if arguments.format == Format::Json {
        print(&format!("{}\n", serde_json::json!(pids)))?;
        return Ok(0);
    }
    let default = ["-ef".to_owned()];
    let options = if arguments.options.is_empty() { &default[..] } else { &arguments.options };
    let output = Command::new("ps").args(options).output().call(|| "exec(ps)".to_owned())?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(Report::new(Kind::Usage, format!("ps {}: {}", options.join(" "), text.trim())));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    let column = head.split_whitespace().position(|name| name == "PID");
    let column = column.ok_or_else(|| Report::new(Kind::Usage, "the options of ps must show a column PID"))?;
    let ours = |line: &&str| {
        line.split_whitespace().nth(column).and_then(|pid| pid.parse().ok()).is_some_and(|pid| pids.contains(&pid))
    };
    print_lines(std::iter::once(head).chain(lines.filter(ours)))?;
    Ok(0)
}

/// The container's processes: those of its cgroup, or else those of its pid namespace.
pub fn processes(container: &Container) -> Result<Vec<i32>, Report> {
    if container.status() == Status::Stopped {
        return Ok(Vec::new());
    }
    if let Some(group) = container.cgroup()?.container() {
        return Ok(group.processes()?);
    }
    let Some((init, _)) = container.init() else { return Ok(Vec::new()) };
    Ok(PidNamespace::of(init).map(|namespace| namespace.processes()).transpose()?.unwrap_or_else(|| vec![init]))
}

/// A pid namespace that is not ours.
pub struct PidNamespace(PathBuf);

impl PidNamespace {
    /// That of a process; `None` where it is ours, or where nobody may look.
    pub fn of(pid: i32) -> Option<Self> {
        let theirs = pid_namespace(pid)?;
        (pid_namespace(std::process::id() as i32) != Some(theirs.clone())).then_some(PidNamespace(theirs))
    }

    /// Whether a process is in it.
    pub fn has(&self, pid: i32) -> bool {
        pid_namespace(pid).as_ref() == Some(&self.0)
    }

    /// Every process in it, those of namespaces below excepted.
    pub fn processes(&self) -> Result<Vec<i32>, Report> {
        let entries = std::fs::read_dir("/proc").call(|| "readdir(/proc)".to_owned())?;
        let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let mut pids: Vec<i32> = numbers.filter(|pid| self.has(*pid)).collect();
        pids.sort_unstable();
        Ok(pids)
    }
}

fn pid_namespace(pid: i32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}
