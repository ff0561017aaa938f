//! An object a line on standard error, as the streams of Docker's API have them (docs/progress.md).

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use engine::image::Event;
use oci::Digest;
use serde_json::{Value, json};

use super::tally::Total;
use super::{Work, locked};
use crate::output;

/// Between two objects about one content that moves.
const PACE: Duration = Duration::from_millis(100);

/// Writes objects.
#[derive(Default)]
pub struct Objects {
    /// When each content was told of last.
    told: Mutex<BTreeMap<Option<Digest>, Instant>>,
}

impl Objects {
    /// Writes what an event is, and when contents move how far all is.
    pub fn show(&self, work: Work, event: &Event<'_>, total: &Total, now: Instant) {
        match event {
            Event::Resolving { reference } => {
                object(Some(reference.selector()), &format!("Pulling from {}", reference.repository()), &json!({}));
            }
            Event::Planned { .. } => all(total),
            Event::Exists { content } => of(Some(content), work.exists(), &json!({})),
            Event::Mounted { content, from } => of(Some(content), &format!("Mounted from {from}"), &json!({})),
            Event::Moving { content, done_bytes, size_bytes }
                if self.is_due(*content, *done_bytes, *size_bytes, now) =>
            {
                let detail = json!({ "progressDetail": detail(*done_bytes, *size_bytes) });
                of(content.as_ref(), work.moving(), &detail);
                all(total);
            }
            Event::Moving { .. } => {}
            Event::Moved { content } => {
                of(content.as_ref(), work.moved(), &json!({}));
                all(total);
            }
            Event::Tagged { tag, digest, size_bytes } => {
                write(&json!({ "progressDetail": {}, "aux": { "Tag": tag, "Digest": digest, "Size": size_bytes } }));
            }
            Event::Note { text } => status(text),
            Event::Warning { text } => output::json_warning(text),
        }
    }

    /// Whether a content is to be told of: its first and last report, and now and then between.
    fn is_due(&self, content: Option<Digest>, done_bytes: u64, size_bytes: Option<u64>, now: Instant) -> bool {
        let mut told = locked(&self.told);
        let paced = told.get(&content).is_some_and(|last| now.duration_since(*last) < PACE);
        if paced && Some(done_bytes) != size_bytes {
            return false;
        }
        told.insert(content, now);
        true
    }
}

/// Writes a line of text.
pub fn status(text: &str) {
    object(None, text, &json!({}));
}

fn detail(done_bytes: u64, size_bytes: Option<u64>) -> Value {
    match size_bytes {
        Some(total) => json!({ "current": done_bytes, "total": total }),
        None => json!({ "current": done_bytes }),
    }
}

fn all(total: &Total) {
    let mut detail = detail(total.done_bytes, total.size_bytes);
    if let Some(rate) = total.rate {
        detail["bytesPerSecond"] = rate.into();
    }
    if let Some(left) = total.left {
        detail["secondsLeft"] = left.as_secs().into();
    }
    object(None, "Total", &json!({ "progressDetail": detail }));
}

/// About a content: the beginning of its digest as Docker has it, and the digest.
fn of(content: Option<&Digest>, status: &str, more: &Value) {
    let mut more = more.clone();
    if let Some(content) = content {
        more["digest"] = content.to_string().into();
    }
    object(content.map(Digest::short), status, &more);
}

fn object(id: Option<String>, status: &str, more: &Value) {
    let mut object = more.clone();
    object["status"] = status.into();
    if let Some(id) = id {
        object["id"] = id.into();
    }
    write(&object);
}

fn write(object: &Value) {
    // A reader that is gone does not want it.
    let _ = output::stderr(&format!("{object}\n"));
}
