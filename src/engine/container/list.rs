//! What `ps` asks: every container in short. It reads files and waits for no lock; what a killed monitor has left it tidies
//! up where nobody else is at work.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use base::time::{human_span, parse_rfc3339};
use base::{ContainerId, Report};
use monitor::health::Status;
use oci::Digest;

use crate::Engine;
use crate::container::record::{self, PortMapping, Record};
use crate::container::state::{Condition, Life, condition};
use crate::container::{lock, lookup, network, unstarted};

/// One container in short.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Who it is.
    pub id: ContainerId,
    /// Its name.
    pub name: String,
    /// The image as the user wrote it.
    pub image: String,
    /// The image's id; `None` for `host:`.
    pub image_id: Option<Digest>,
    /// Diff ids of the image's layers, lowest first.
    pub layers: Vec<Digest>,
    /// Its command line.
    pub command: Vec<String>,
    /// When it was created.
    pub created: SystemTime,
    /// Where it is in its life.
    pub life: Life,
    /// The exit code of its last run, if that has ended.
    pub exit_code: Option<i32>,
    /// Its lower-case word: `created`, `running`, `paused`, `exited`.
    pub state: &'static str,
    /// `Up 5 minutes`, `Exited (0) 3 hours ago`.
    pub status: String,
    /// `starting`, `healthy`, `unhealthy`; `none` where nobody asks.
    pub health: &'static str,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Ports that are published now.
    pub ports: Vec<PortMapping>,
    /// While it runs in a network of its own, the ports it listens on that are not published: number and protocol.
    pub exposed: Vec<(u16, String)>,
    /// Ports that are to be published whenever it runs: `80/tcp`.
    pub bound: Vec<String>,
    /// Ports that it says it listens on, published or not.
    pub listens: Vec<String>,
    /// Its network's name; empty where it is another container's, or has none.
    pub network: String,
    /// Sources of its volumes.
    pub mounts: Vec<String>,
    /// Where in the container they are.
    pub destinations: Vec<String>,
    /// What its image runs on.
    pub platform: String,
}

/// How often containers of one name are read again at most.
const NAMESAKES_ROUNDS: usize = 16;

/// All containers, newest first. One whose record vanishes meanwhile is gone; one whose record cannot be read is an
/// error that does not hide the others.
pub fn list(engine: &Engine, now: SystemTime) -> Result<(Vec<Summary>, Vec<Report>), Report> {
    let (mut found, mut broken) = (Vec::new(), Vec::new());
    let mut look = |id: ContainerId, found: &mut Vec<Summary>| match one(engine, &id, now) {
        Ok(summary) => found.extend(summary),
        Err(report) => broken.push(report.with_step(format!("cannot read container {}", id.short()))),
    };
    let abandoned = unstarted::abandoned(engine);
    let ids = lookup::ids(engine)?;
    for id in ids.into_iter().filter(|id| !abandoned.contains(id)) {
        look(id, &mut found);
    }
    // A name that went from one container to another meanwhile was read of both, of the first one too early.
    for _ in 0..NAMESAKES_ROUNDS {
        let namesakes = namesakes(&found);
        if namesakes.is_empty() {
            break;
        }
        found.retain(|summary| !namesakes.contains(&summary.id));
        for id in namesakes {
            look(id, &mut found);
        }
    }
    found.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
    // Also those that go with a `run --rm` that was killed.
    for id in found.iter().map(|summary| &summary.id).chain(&abandoned) {
        // The next command tries again.
        let _ = lock::repair(engine, id);
    }
    Ok((found, broken))
}

/// The containers that have a name which another one has too.
fn namesakes(found: &[Summary]) -> Vec<ContainerId> {
    let mut of_name = HashMap::<&str, Vec<&ContainerId>>::new();
    for summary in found {
        of_name.entry(&summary.name).or_default().push(&summary.id);
    }
    of_name.into_values().filter(|ids| ids.len() > 1).flatten().cloned().collect()
}

fn one(engine: &Engine, id: &ContainerId, now: SystemTime) -> Result<Option<Summary>, Report> {
    let Some(record) = record::try_load(engine, id)? else { return Ok(None) };
    summary(&record, &condition(engine, id)?, now).map(Some)
}

/// A container in short, by its record and its condition.
pub(crate) fn summary(record: &Record, condition: &Condition, now: SystemTime) -> Result<Summary, Report> {
    let state = condition.word();
    let status = status(condition, state, now);
    let health = condition.state.health.as_ref().map_or("none", |health| health.status.as_str());
    let Record { id, name, image, settings, host, created_at, .. } = record;
    Ok(Summary {
        id: id.clone(),
        name: name.clone(),
        image: image.reference.clone(),
        image_id: image.id,
        layers: image.layers.clone(),
        exit_code: matches!(condition.life, Life::Exited { .. }).then(|| condition.code()),
        bound: host.ports.iter().map(|port| format!("{}/{}", port.container_port, port.protocol.as_str())).collect(),
        listens: settings.exposed_ports.clone(),
        destinations: host.volumes.iter().map(|volume| volume.destination.clone()).collect(),
        command: record.command_line(),
        created: parse_rfc3339(created_at)?,
        exposed: exposed(record, condition),
        ports: condition.published(),
        life: condition.life.clone(),
        state,
        status,
        health,
        labels: settings.labels.clone(),
        network: network::names(host).join(","),
        mounts: host.volumes.iter().map(|volume| volume.source.to_string()).collect(),
        platform: image.platform.as_ref().map(ToString::to_string).unwrap_or_default(),
    })
}

fn exposed(record: &Record, condition: &Condition) -> Vec<(u16, String)> {
    let publishes = record.host.network.publishes();
    if !publishes || !matches!(condition.life, Life::Running { .. }) {
        return Vec::new();
    }
    let published = condition.published();
    let is_published = |number: u16, protocol: &str| {
        published.iter().any(|port| port.container_port == number && port.protocol.as_str() == protocol)
    };
    let named = record.settings.exposed_ports.iter().filter_map(|port| {
        let (number, protocol) = port.split_once('/')?;
        // What an image says is no number is no port.
        Some((number.parse::<u16>().ok()?, protocol.to_owned()))
    });
    named.filter(|(number, protocol)| !is_published(*number, protocol)).collect()
}

/// Docker's words for a condition, of which `state` is the word.
fn status(condition: &Condition, state: &str, now: SystemTime) -> String {
    let since = |text: &Option<String>| {
        let moment = text.as_deref().and_then(|text| parse_rfc3339(text).ok());
        moment.map(|moment| human_span(now.duration_since(moment).unwrap_or_default()))
    };
    match &condition.life {
        Life::Created | Life::Starting => "Created".to_owned(),
        Life::Running { .. } => {
            let span = since(&condition.state.started_at).map(|span| format!(" {span}")).unwrap_or_default();
            let remark = match condition.state.health.as_ref().map(|health| health.status) {
                _ if state == "paused" => " (Paused)".to_owned(),
                None => String::new(),
                Some(Status::Starting) => " (health: starting)".to_owned(),
                Some(status) => format!(" ({})", status.as_str()),
            };
            format!("Up{span}{remark}")
        }
        Life::Restarting { code } => {
            let ago = since(&condition.state.finished_at).map(|span| format!(" {span} ago")).unwrap_or_default();
            format!("Restarting ({code}){ago}")
        }
        Life::Exited { .. } => {
            let ago = since(&condition.state.finished_at).map(|span| format!(" {span} ago")).unwrap_or_default();
            format!("Exited ({}){ago}", condition.code())
        }
    }
}
