use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base::time::human_span;
use clap::{Args, Subcommand};
use engine::lease;

use crate::environment::Globals;
use crate::format::{self, Row};
use crate::output::{Stop, for_each, line, stdout};

const TABLE: &str = "{{.Name}}\t{{.PID}}\t{{.Began}}\t{{.Pins}}\t{{.State}}";

/// Look at who is at work in the store
#[derive(Subcommand)]
pub enum Lease {
    Ls(Ls),
    Rm(Rm),
}

/// List leases
#[derive(Args)]
pub struct Ls {
    /// Names only
    #[arg(short, long)]
    quiet: bool,
    /// A Go template, json, or table with a template
    #[arg(long)]
    format: Option<String>,
}

/// Remove leases
#[derive(Args)]
pub struct Rm {
    /// Those of commands that are at work too
    #[arg(short, long)]
    force: bool,
    #[arg(required = true, value_name = "LEASE")]
    leases: Vec<String>,
}

impl Lease {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        match self {
            Lease::Ls(command) => command.execute(globals),
            Lease::Rm(command) => command.execute(globals),
        }
    }
}

impl Ls {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let rows: Vec<Row> = lease::list(&globals.engine()?)?
            .into_iter()
            .map(|lease| {
                let pid = lease.pid.map(|pid| pid.to_string()).unwrap_or_default();
                let state = if lease.living { "active" } else { "dead" };
                cells([lease.name, pid, ago(lease.began_s), lease.pins.len().to_string(), state.to_owned()])
            })
            .collect();
        let format = if self.quiet && self.format.is_none() { Some("{{.Name}}") } else { self.format.as_deref() };
        stdout(&format::rows(format, TABLE, &cells(std::array::from_fn(|_| String::new())), &rows)?)?;
        Ok(0)
    }
}

fn cells([name, pid, began, pins, state]: [String; 5]) -> Row {
    Row::default()
        .cell("Name", "LEASE", name)
        .cell("PID", "PID", pid)
        .cell("Began", "BEGAN", began)
        .cell("Pins", "PINS", pins)
        .cell("State", "STATE", state)
}

/// How long ago a moment was, in seconds since 1970.
pub fn ago(seconds: i64) -> String {
    let moment = UNIX_EPOCH + Duration::from_secs(seconds.max(0).cast_unsigned());
    format!("{} ago", human_span(SystemTime::now().duration_since(moment).unwrap_or_default()))
}

impl Rm {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        for_each(&self.leases, |name| {
            lease::remove(&engine, name, self.force)?;
            line(name)
        })
    }
}
