//! Bars at the foot of a terminal: one for each content that moves, below them one for all.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock};

use base::units::human_size;
use engine::image::Event;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use oci::Digest;

use super::tally::Total;
use super::{locked, total_text};

/// As wide as the beginning of a digest, which stands in front of the others.
const TOTAL: &str = "total       ";

/// The bars of one piece of work; they go when it does.
pub struct Bars {
    screen: MultiProgress,
    /// Made when something moves: a bar is drawn when it is made to go away, too.
    total: OnceLock<ProgressBar>,
    contents: Mutex<BTreeMap<Digest, ProgressBar>>,
}

impl Bars {
    pub fn new() -> Self {
        Bars { screen: MultiProgress::new(), total: OnceLock::new(), contents: Mutex::default() }
    }

    /// Moves the bars of an event.
    pub fn show(&self, event: &Event<'_>, total: &Total) {
        match event {
            Event::Moving { content, done_bytes, size_bytes } => {
                if let Some(content) = content {
                    self.content(*content, *done_bytes, *size_bytes);
                }
                set(self.total(), total.done_bytes, total.size_bytes, total_text(total));
            }
            Event::Moved { content: Some(content) } => {
                if let Some(bar) = locked(&self.contents).remove(content) {
                    bar.finish_and_clear();
                }
            }
            _ => {}
        }
    }

    /// Prints above the bars.
    pub fn beside(&self, print: impl FnOnce()) {
        self.screen.suspend(print);
    }

    fn total(&self) -> &ProgressBar {
        self.total.get_or_init(|| self.screen.add(bar(TOTAL.to_owned())))
    }

    fn content(&self, content: Digest, done_bytes: u64, size_bytes: Option<u64>) {
        let mut contents = locked(&self.contents);
        let new = || self.screen.insert_before(self.total(), bar(content.short()));
        let of = size_bytes.map(|size| format!(" of {}", human_size(size))).unwrap_or_default();
        let text = format!("{}{of}", human_size(done_bytes));
        set(contents.entry(content).or_insert_with(new), done_bytes, size_bytes, text);
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        // After a failure those of the other contents stand there too.
        locked(&self.contents).values().chain(self.total.get()).for_each(ProgressBar::finish_and_clear);
    }
}

fn bar(prefix: String) -> ProgressBar {
    let bar = ProgressBar::no_length().with_prefix(prefix);
    match ProgressStyle::with_template("{prefix}: {bar:30} {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Without a known length the bar stays empty.
fn set(bar: &ProgressBar, done_bytes: u64, size_bytes: Option<u64>, text: String) {
    bar.set_length(size_bytes.unwrap_or(u64::MAX));
    bar.set_position(done_bytes);
    bar.set_message(text);
}
