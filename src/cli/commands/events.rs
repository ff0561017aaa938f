use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base::time::{parse_moment, rfc3339};
use base::{Kind, Report};
use clap::Args;
use engine::events::{Event, EventsRequest, Filter};
use serde_json::{Value, json};

use crate::environment::Globals;
use crate::format;
use crate::output::{Stop, printable_part, written};

/// Show what happens to containers, images and volumes
#[derive(Args)]
pub struct Events {
    /// KEY=VALUE, of which to show those alone: type, event, container, image, volume, label
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// A Go template, or json
    #[arg(long)]
    format: Option<String>,
    /// Those that were since then too: RFC 3339, seconds since 1970, or a span like 10m
    #[arg(long, value_name = "MOMENT")]
    since: Option<String>,
    /// Those until then
    #[arg(long, value_name = "MOMENT")]
    until: Option<String>,
}

impl Events {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let now = SystemTime::now();
        let moment = |text: &Option<String>| text.as_deref().map(|text| parse_moment(text, now)).transpose();
        let filter = Filter::parse(&self.filter)?;
        let request = EventsRequest { since: moment(&self.since)?, until: moment(&self.until)?, filter };
        let format = self.format.as_deref().filter(|format| !format.is_empty());
        let engine = globals.engine()?;
        let mut out = io::stdout().lock();
        // The reader's end is not a failure of ours: it ends the command by itself.
        let mut end: io::Result<()> = Ok(());
        let mut failure = None;
        let read = engine::events::events(&engine, &request, |event| {
            let line = shown(event, format).unwrap_or_else(|report| {
                failure = Some(report);
                String::new()
            });
            if failure.is_some() {
                return Err(io::ErrorKind::Other.into());
            }
            let done = out.write_all((line + "\n").as_bytes()).and_then(|()| out.flush());
            done.inspect_err(|error| end = Err(error.kind().into()))
        });
        if let Some(report) = failure {
            return Err(report.into());
        }
        written(end)?;
        read?;
        Ok(0)
    }
}

/// One line: Docker's `TIME TYPE ACTION ID (NAME=VALUE, …)`, or as the format has it.
fn shown(event: &Event, format: Option<&str>) -> Result<String, Report> {
    if let Some(format) = format {
        let is_whole = matches!(format.trim(), "json" | "{{json .}}");
        let value = if is_whole { api(event) } else { fields(event) };
        return format::object(format, &value.map_err(|error| Report::of(Kind::Internal, error))?);
    }
    let attributes: &BTreeMap<String, String> = &event.actor.attributes;
    let attributes: Vec<String> = attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let time = rfc3339(UNIX_EPOCH + Duration::from_nanos(event.time_ns));
    let (kind, action, id) = (event.kind.as_str(), &event.action, &event.actor.id);
    // Commands and labels are anybody's: one event is one line, and has nothing that a terminal obeys.
    Ok(printable_part(&format!("{time} {kind} {action} {id} ({})", attributes.join(", "))))
}

/// As in Docker's API, with the members of its older versions, which scripts read.
fn api(event: &Event) -> Result<Value, serde_json::Error> {
    let mut value = serde_json::to_value(event)?;
    if let Some(members) = value.as_object_mut() {
        members.insert("status".to_owned(), event.action.as_str().into());
        members.insert("id".to_owned(), event.actor.id.as_str().into());
        if let Some(image) = event.actor.attributes.get("image") {
            members.insert("from".to_owned(), image.as_str().into());
        }
    }
    Ok(value)
}

/// By the names of Docker's fields, which templates use.
fn fields(event: &Event) -> Result<Value, serde_json::Error> {
    Ok(json!({
        "Type": event.kind,
        "Action": event.action,
        "Actor": serde_json::to_value(&event.actor)?,
        "Scope": event.scope,
        "Time": event.time_s,
        "TimeNano": event.time_ns,
        "Status": event.action,
        "ID": event.actor.id,
        "From": event.actor.attributes.get("image"),
    }))
}
