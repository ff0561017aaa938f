//! The options that say how a container is asked whether it works.

use base::time::parse_span;
use base::{Kind, Report};
use clap::Args;
use oci::HealthCheck;

/// The health check of a container.
#[derive(Args)]
pub struct HealthOptions {
    /// A line for the container's shell, which says by its code whether the container works
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// From one probe to the next: 30s
    #[arg(long, value_name = "DURATION")]
    health_interval: Option<String>,
    /// How long a probe may take: 30s
    #[arg(long, value_name = "DURATION")]
    health_timeout: Option<String>,
    /// How many failures in a row make it unhealthy: 3
    #[arg(long, value_name = "N")]
    health_retries: Option<i64>,
    /// How long after the start failures do not count: 0s
    #[arg(long, value_name = "DURATION")]
    health_start_period: Option<String>,
    /// From one probe to the next in that time: 5s
    #[arg(long, value_name = "DURATION")]
    health_start_interval: Option<String>,
    /// Ask nothing, whatever the image says
    #[arg(long)]
    no_healthcheck: bool,
}

impl HealthOptions {
    /// What is asked for. As in Docker, 0 and an empty text ask for nothing.
    pub fn health_check(self) -> Result<Option<HealthCheck>, Report> {
        let retries = self.health_retries.unwrap_or(0);
        let check = HealthCheck {
            test: match self.health_cmd.filter(|line| !line.is_empty()) {
                None => Vec::new(),
                // Podman's word for --no-healthcheck.
                Some(line) if line == "none" => HealthCheck::none().test,
                Some(line) => vec!["CMD-SHELL".to_owned(), line],
            },
            interval_ns: span("--health-interval", self.health_interval.as_deref())?,
            timeout_ns: span("--health-timeout", self.health_timeout.as_deref())?,
            start_period_ns: span("--health-start-period", self.health_start_period.as_deref())?,
            start_interval_ns: span("--health-start-interval", self.health_start_interval.as_deref())?,
            retries: u64::try_from(retries).map_err(|_| negative("--health-retries"))?,
        };
        match (self.no_healthcheck, check == HealthCheck::default()) {
            (false, true) => Ok(None),
            (false, false) => Ok(Some(check)),
            (true, true) => Ok(Some(HealthCheck::none())),
            (true, false) => Err(Report::new(Kind::Usage, "--no-healthcheck conflicts with --health-* options")),
        }
    }
}

fn negative(option: &str) -> Report {
    Report::new(Kind::Usage, format!("{option} cannot be negative"))
}

/// A span of time in nanoseconds; without one 0.
fn span(option: &str, text: Option<&str>) -> Result<u64, Report> {
    let Some(text) = text else { return Ok(0) };
    if text.strip_prefix('-').and_then(parse_span).is_some() {
        return Err(negative(option));
    }
    parse_span(text).and_then(|span| u64::try_from(span.as_nanos()).ok()).ok_or_else(|| {
        Report::new(Kind::Usage, format!("invalid argument {text:?} for {option}: it must be a time like 30s or 1m30s"))
    })
}
