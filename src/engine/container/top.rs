//! The processes of a container, as the machine's ps(1) shows them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use base::{ContainerId, Context, Kind, Report};
use monitor::record::PidRecord;

use crate::Engine;
use crate::container::exec::pids;

/// The lines of `ps OPTIONS` (`-ef` if there are none) that are about a container's processes, each as its cells, the
/// first one being the titles.
pub fn top(engine: &Engine, id: &ContainerId, options: &[String]) -> Result<Vec<Vec<String>>, Report> {
    let of_container = processes(&pids(engine, id)?)?;
    let mut ps = Command::new("ps");
    if options.is_empty() {
        ps.arg("-ef");
    } else {
        // As Docker takes them: `-o pid,comm` may be one word.
        ps.args(options.iter().flat_map(|words| words.split_whitespace()));
    }
    let output =
        ps.output().map_err(|error| Report::of(Kind::Unsupported, error)).step(|| "running ps(1)".to_owned())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Report::new(Kind::Usage, format!("ps: {}", said.lines().next().unwrap_or("failed"))));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let titles: Vec<String> = lines.next().unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    let Some(column) = titles.iter().position(|title| title == "PID") else {
        return Err(Report::new(Kind::Usage, "Couldn't find PID field in ps output"));
    };
    let rows = lines.map(|line| cells(line, titles.len())).filter(|row| {
        let pid = row.get(column).and_then(|cell| cell.parse().ok());
        pid.is_some_and(|pid| of_container.contains(&pid))
    });
    let rows: Vec<Vec<String>> = rows.collect();
    Ok(std::iter::once(titles).chain(rows).collect())
}

/// The last cell has all that is left: a command line has blanks.
fn cells(line: &str, count: usize) -> Vec<String> {
    let mut words = line.split_whitespace();
    let mut cells: Vec<String> = words.by_ref().take(count.saturating_sub(1)).map(str::to_owned).collect();
    cells.push(words.collect::<Vec<_>>().join(" "));
    cells
}

/// The host's pids of a container's processes: those of its cgroup, else those that descend from its init, or from its monitor
/// and are in a further pid namespace.
pub(crate) fn processes(pids: &PidRecord) -> Result<BTreeSet<i32>, Report> {
    if let Some(path) = &pids.cgroup {
        return Ok(cgroup::Container::open(path)?.processes()?.into_iter().collect());
    }
    let all: BTreeMap<i32, (i32, usize)> = fs::read_dir("/proc")
        .map_err(|error| crate::file::failed("reading directory", "/proc".as_ref(), error))?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, parent_and_depth(pid)?)))
        .collect();
    let own_depth = parent_and_depth(std::process::id() as i32).map_or(1, |(_, depth)| depth);
    let is_inside = |(pid, (_, depth)): (&i32, &(i32, usize))| {
        let ancestors = std::iter::successors(Some(*pid), |pid| Some(all.get(pid)?.0));
        // No chain is longer than there are processes, however they change meanwhile.
        let mut ancestors = ancestors.take(all.len());
        ancestors.any(|one| one == pids.pid || one == pids.monitor_pid && *depth > own_depth).then_some(*pid)
    };
    Ok(all.iter().filter_map(is_inside).collect())
}

/// The parent of a process, and how many pid namespaces it has a number in that we see.
fn parent_and_depth(pid: i32) -> Option<(i32, usize)> {
    // It may have ended.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key));
    Some((value("PPid:")?.trim().parse().ok()?, value("NSpid:")?.split_whitespace().count()))
}
