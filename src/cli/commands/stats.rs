use std::time::{Duration, SystemTime};

use base::ContainerId;
use base::units::{binary_size, human_size};
use clap::Args;
use engine::container::list::list;
use engine::container::record;
use engine::container::stats::{Sample, stats};
use engine::{Engine, container};

use crate::environment::Globals;
use crate::format::{self, Row};
use crate::output::{Stop, stdout};

const TABLE: &str =
    "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}";
/// How far two readings are apart: of processor time there is only the difference.
const INTERVAL: Duration = Duration::from_secs(1);

/// Show what containers use, again and again
#[derive(Args)]
pub struct Stats {
    /// Those that do not run too
    #[arg(short, long)]
    all: bool,
    /// A Go template, json, or table with a template
    #[arg(long)]
    format: Option<String>,
    /// Show it once
    #[arg(long)]
    no_stream: bool,
    /// Whole ids
    #[arg(long)]
    no_trunc: bool,
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// A container, as it was named, and its last reading.
struct Watched {
    asked: String,
    id: ContainerId,
    name: String,
    last: Option<Sample>,
}

impl Stats {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        let mut watched = self.watched(&engine, Vec::new())?;
        loop {
            std::thread::sleep(INTERVAL);
            // Those that have been started meanwhile too.
            watched = self.watched(&engine, watched)?;
            let mut rows = Vec::new();
            for one in &mut watched {
                let now = stats(&engine, &one.id)?;
                rows.push(self.row(one, now.as_ref()));
                one.last = now;
            }
            let text =
                format::rows(self.format.as_deref(), TABLE, &cells(std::array::from_fn(|_| String::new())), &rows)?;
            if self.no_stream {
                stdout(&text)?;
                return Ok(0);
            }
            stdout(&over_the_last(&text))?;
        }
    }

    /// Those that were named, or all; what is known of them stays.
    fn watched(&self, engine: &Engine, before: Vec<Watched>) -> Result<Vec<Watched>, Stop> {
        let mut before = before;
        let mut known = |id: &ContainerId| {
            let place = before.iter().position(|one| one.id == *id)?;
            before.swap_remove(place).last
        };
        let mut now = Vec::new();
        if self.containers.is_empty() {
            let (all, _) = list(engine, SystemTime::now())?;
            for one in all.into_iter().filter(|one| self.all || one.life.is_active()) {
                let last = known(&one.id).map_or_else(|| stats(engine, &one.id), |last| Ok(Some(last)))?;
                now.push(Watched { asked: one.id.to_string(), name: one.name, last, id: one.id });
            }
        }
        for asked in &self.containers {
            let id = container::find(engine, asked)?;
            let name = record::load(engine, &id)?.name;
            let last = known(&id).map_or_else(|| stats(engine, &id), |last| Ok(Some(last)))?;
            now.push(Watched { asked: asked.clone(), id, name, last });
        }
        Ok(now)
    }

    fn row(&self, one: &Watched, now: Option<&Sample>) -> Row {
        let id = if self.no_trunc { one.id.to_string() } else { one.id.short().to_owned() };
        let asked =
            if self.containers.is_empty() && !self.no_trunc { one.id.short().to_owned() } else { one.asked.clone() };
        let Some(now) = now else {
            let nothing = "0B / 0B".to_owned();
            let none = "0.00%".to_owned();
            let name = one.name.clone();
            return cells([
                id,
                asked,
                name,
                none.clone(),
                nothing.clone(),
                none,
                nothing.clone(),
                nothing,
                "0".to_owned(),
            ]);
        };
        let pair = |(one, other): (u64, u64)| format!("{} / {}", human_size(one), human_size(other));
        cells([
            id,
            asked,
            one.name.clone(),
            percent(one.last.as_ref().map_or(0.0, |last| processors(last, now))),
            format!("{} / {}", binary_size(now.memory_bytes), binary_size(now.memory_max_bytes)),
            percent(ratio(now.memory_bytes, now.memory_max_bytes)),
            pair(now.network),
            pair(now.disks),
            now.pids.to_string(),
        ])
    }
}

fn cells([id, container, name, cpu, memory, part, network, disks, pids]: [String; 9]) -> Row {
    Row::default()
        .cell("ID", "CONTAINER ID", id)
        .cell("Container", "CONTAINER", container)
        .cell("Name", "NAME", name)
        .cell("CPUPerc", "CPU %", cpu)
        .cell("MemUsage", "MEM USAGE / LIMIT", memory)
        .cell("MemPerc", "MEM %", part)
        .cell("NetIO", "NET I/O", network)
        .cell("BlockIO", "BLOCK I/O", disks)
        .cell("PIDs", "PIDS", pids)
}

/// How many processors were used between two readings.
fn processors(last: &Sample, now: &Sample) -> f64 {
    let wall_us = now.at.duration_since(last.at).as_micros() as u64;
    ratio(now.cpu_us.saturating_sub(last.cpu_us), wall_us)
}

#[allow(clippy::cast_precision_loss, reason = "two digits after the point are shown")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn percent(ratio: f64) -> String {
    format!("{:.2}%", ratio * 100.0)
}

/// The text in place of the one before: from the top of the terminal, what is left of old lines removed.
pub fn over_the_last(text: &str) -> String {
    let lines = text.lines().map(|line| format!("{line}\u{1b}[K\n"));
    format!("\u{1b}[H{}\u{1b}[J", lines.collect::<String>())
}
