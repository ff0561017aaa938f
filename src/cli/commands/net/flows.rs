use std::time::Duration;

use base::time::human_span;
use base::units::human_size;
use clap::Args;
use engine::network::observe::Flow;

use crate::commands::net::{Seen, seen};
use crate::environment::Globals;
use crate::format::{self, Row};
use crate::output::{Stop, stdout};

const TABLE: &str =
    "{{.Container}}\t{{.Protocol}}\t{{.Source}}\t{{.Destination}}\t{{.State}}\t{{.Sent}}\t{{.Received}}\t{{.Age}}";

/// List what containers talk with: connections, datagrams and pings, and for a minute those that were refused
#[derive(Args)]
pub struct Flows {
    /// Those of all containers, as without a name
    #[arg(short, long, conflicts_with = "containers")]
    all: bool,
    /// A Go template, json, or table with a template
    #[arg(long)]
    format: Option<String>,
    /// Those of these containers only
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Flows {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        let mut rows = Vec::new();
        for one in seen(&engine, if self.all { &[] } else { &self.containers })? {
            let flows = one.sight.flows()?;
            rows.extend(flows.iter().map(|flow| row(&one, flow)));
        }
        let empty = cells(std::array::from_fn(|_| String::new()));
        stdout(&format::rows(self.format.as_deref(), TABLE, &empty, &rows)?)?;
        Ok(0)
    }
}

fn row(of: &Seen, flow: &Flow) -> Row {
    cells([
        of.id.to_string(),
        of.name.clone(),
        of.sight.network.clone(),
        flow.protocol.clone(),
        flow.source.to_string(),
        flow.destination.to_string(),
        flow.state.clone(),
        human_size(flow.sent),
        human_size(flow.received),
        flow.sent.to_string(),
        flow.received.to_string(),
        human_span(Duration::from_micros(flow.age_us)),
    ])
}

fn cells(texts: [String; 12]) -> Row {
    let [id, container, network, protocol, source, destination, state, sent, received, sent_bytes, received_bytes, age] =
        texts;
    Row::default()
        .cell("ID", "CONTAINER ID", id)
        .cell("Container", "CONTAINER", container)
        .cell("Network", "NETWORK", network)
        .cell("Protocol", "PROTOCOL", protocol)
        .cell("Source", "SOURCE", source)
        .cell("Destination", "DESTINATION", destination)
        .cell("State", "STATE", state)
        .cell("Sent", "SENT", sent)
        .cell("Received", "RECEIVED", received)
        .cell("SentBytes", "SENT BYTES", sent_bytes)
        .cell("ReceivedBytes", "RECEIVED BYTES", received_bytes)
        .cell("Age", "AGE", age)
}
