use std::time::{Duration, Instant};

use base::units::human_size;
use clap::Args;
use engine::network::observe::Traffic;

use crate::commands::net::{Seen, seen};
use crate::commands::stats::over_the_last;
use crate::environment::Globals;
use crate::format::{self, Row};
use crate::output::{Stop, stdout};

const TABLE: &str = "{{.Container}}\t{{.Network}}\t{{.Flows}}\t{{.SentRate}}\t{{.ReceivedRate}}\t{{.Sent}}\t{{.Received}}\t{{.Refused}}\t{{.Prohibited}}";
/// How far two readings are apart.
const INTERVAL: Duration = Duration::from_secs(1);

/// Show how much containers send and receive, again and again
#[derive(Args)]
pub struct Top {
    /// A Go template, json, or table with a template
    #[arg(long)]
    format: Option<String>,
    /// Show it once
    #[arg(long)]
    no_stream: bool,
    /// Those of these containers only
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// A container in a network, and its last reading.
struct Watched {
    seen: Seen,
    last: Option<(Instant, Traffic)>,
}

impl Top {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        let mut watched: Vec<Watched> = Vec::new();
        loop {
            // Those that have been started meanwhile too, and none that has ended.
            let before = std::mem::take(&mut watched);
            watched = seen(&engine, &self.containers)?.into_iter().map(|seen| Watched { seen, last: None }).collect();
            let mut rows = Vec::new();
            for one in &mut watched {
                let same = |other: &&Watched| {
                    other.seen.id == one.seen.id && other.seen.sight.network == one.seen.sight.network
                };
                let last = before.iter().find(same).and_then(|other| other.last);
                let Some(now) = one.seen.sight.traffic()? else { continue };
                let at = Instant::now();
                one.last = Some((at, now));
                rows.extend(last.map(|(then, last)| row(&one.seen, &now, rates(at - then, &last, &now))));
            }
            let empty = cells(std::array::from_fn(|_| String::new()));
            // A rate takes two readings.
            if !before.is_empty() || watched.is_empty() {
                let text = format::rows(self.format.as_deref(), TABLE, &empty, &rows)?;
                if self.no_stream {
                    stdout(&text)?;
                    return Ok(0);
                }
                stdout(&over_the_last(&text))?;
            }
            std::thread::sleep(INTERVAL);
        }
    }
}

/// Bytes a second that were sent and received between two readings. A process that was started again counts anew.
fn rates(span: Duration, last: &Traffic, now: &Traffic) -> (u64, u64) {
    let us = span.as_micros().max(1);
    let rate = |last: u64, now: u64| u64::try_from(u128::from(now.saturating_sub(last)) * 1_000_000 / us).unwrap_or(0);
    (rate(last.sent_bytes, now.sent_bytes), rate(last.received_bytes, now.received_bytes))
}

fn row(of: &Seen, now: &Traffic, (sent, received): (u64, u64)) -> Row {
    let a_second = |bytes| format!("{}/s", human_size(bytes));
    cells([
        of.id.to_string(),
        of.name.clone(),
        of.sight.network.clone(),
        now.flows.to_string(),
        a_second(sent),
        a_second(received),
        human_size(now.sent_bytes),
        human_size(now.received_bytes),
        now.sent_bytes.to_string(),
        now.received_bytes.to_string(),
        now.refused.to_string(),
        now.prohibited.to_string(),
    ])
}

fn cells(texts: [String; 12]) -> Row {
    let [
        id,
        container,
        network,
        flows,
        sent_rate,
        received_rate,
        sent,
        received,
        sent_bytes,
        received_bytes,
        refused,
        prohibited,
    ] = texts;
    Row::default()
        .cell("ID", "CONTAINER ID", id)
        .cell("Container", "CONTAINER", container)
        .cell("Network", "NETWORK", network)
        .cell("Flows", "FLOWS", flows)
        .cell("SentRate", "SENDS", sent_rate)
        .cell("ReceivedRate", "RECEIVES", received_rate)
        .cell("Sent", "SENT", sent)
        .cell("Received", "RECEIVED", received)
        .cell("SentBytes", "SENT BYTES", sent_bytes)
        .cell("ReceivedBytes", "RECEIVED BYTES", received_bytes)
        .cell("Refused", "REFUSED", refused)
        .cell("Prohibited", "PROHIBITED", prohibited)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_a_second_and_never_negative() {
        let last = Traffic { sent_bytes: 1000, received_bytes: 5000, ..Traffic::default() };
        let now = Traffic { sent_bytes: 4000, received_bytes: 10, ..Traffic::default() };
        assert_eq!(rates(Duration::from_millis(500), &last, &now), (6000, 0));
    }
}
