//! The options that say what a container may use.

use base::units::{UnitError, parse_bytes, parse_cpus};
use base::{Context, Report};
use clap::Args;
use engine::container::update::LimitRequest;

/// Limits of a container.
#[derive(Args)]
pub struct LimitOptions {
    /// Limit of memory: 512m, 1.5g
    #[arg(short, long)]
    memory: Option<String>,
    /// Limit of memory and swap together; -1 for none
    #[arg(long, value_name = "MEMORY")]
    memory_swap: Option<String>,
    /// Memory that is left to the container while others have more to spare
    #[arg(long, value_name = "MEMORY")]
    memory_reservation: Option<String>,
    /// Limit of processors: 1.5
    #[arg(long)]
    cpus: Option<String>,
    /// Limit of processor time, in microseconds of each period
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_quota: Option<i64>,
    /// The period, 100000 if not given
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<u64>,
    /// Weight among others that want processors, which have 1024
    #[arg(short, long, value_name = "WEIGHT")]
    cpu_shares: Option<u64>,
    /// Processors to use: 0-2,4
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// NUMA nodes whose memory to use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Limit of processes; -1 for none
    #[arg(long)]
    pub pids_limit: Option<i64>,
}

impl LimitOptions {
    /// What is asked for. As in Docker, 0 and an empty text ask for nothing.
    pub fn request(self) -> Result<LimitRequest, Report> {
        Ok(LimitRequest {
            memory_bytes: amount("--memory", self.memory.as_deref(), parse_bytes)?,
            memory_swap: match self.memory_swap.as_deref() {
                Some("-1") => Some(-1),
                text => amount("--memory-swap", text, parse_bytes)?.map(u64::cast_signed),
            },
            memory_reservation: amount("--memory-reservation", self.memory_reservation.as_deref(), parse_bytes)?,
            nano_cpus: amount("--cpus", self.cpus.as_deref(), parse_cpus)?,
            cpu_quota: self.cpu_quota.filter(|quota| *quota != 0),
            cpu_period: self.cpu_period.filter(|period| *period != 0),
            cpu_shares: self.cpu_shares.filter(|shares| *shares != 0),
            cpuset_cpus: self.cpuset_cpus.filter(|list| !list.is_empty()),
            cpuset_mems: self.cpuset_mems.filter(|list| !list.is_empty()),
            pids_limit: self.pids_limit,
        })
    }
}

/// The value of an option; 0 is none.
fn amount(option: &str, text: Option<&str>, parse: fn(&str) -> Result<u64, UnitError>) -> Result<Option<u64>, Report> {
    let value = text.map(parse).transpose().map_err(Report::from).step(|| option.to_owned())?;
    Ok(value.filter(|value| *value > 0))
}
