//! What a pull or a push shows while it runs: bars on a terminal, Docker's lines off it.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::sync::Mutex;

use engine::image::Event;
use engine::image::push::PushEvent;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use oci::Digest;

use crate::output;

/// Shows events of a pull or a push; shared by the threads that work on it.
pub struct Progress {
    quiet: bool,
    /// Whether lines are results (`pull`) or remarks (`run`).
    to_stdout: bool,
    bars: Option<(MultiProgress, Mutex<BTreeMap<Digest, ProgressBar>>)>,
}

impl Progress {
    /// On a terminal bars on standard error, else lines.
    pub fn new(quiet: bool, to_stdout: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let live = !quiet && !dumb && io::stderr().is_terminal();
        Progress { quiet, to_stdout, bars: live.then(|| (MultiProgress::new(), Mutex::default())) }
    }

    /// Shows one event.
    pub fn show(&self, event: &Event<'_>) {
        match event {
            _ if self.quiet => {}
            Event::Resolving { reference } => {
                self.line(&format!("{}: Pulling from {}", reference.selector(), reference.repository()));
            }
            Event::Exists { layer } => self.line(&format!("{}: Already exists", layer.short())),
            Event::Download { layer, done_bytes, size_bytes } => self.bar(layer, *done_bytes, *size_bytes),
            Event::Complete { layer } => {
                self.end_bar(layer);
                self.line(&format!("{}: Pull complete", layer.short()));
            }
            Event::Note { text } => note(text),
        }
    }

    /// Shows one event of a push.
    pub fn show_push(&self, event: &PushEvent) {
        match event {
            PushEvent::Note { text } => note(text),
            _ if self.quiet => {}
            PushEvent::Exists { blob } => self.line(&format!("{}: Layer already exists", blob.short())),
            PushEvent::Mounted { blob, from } => self.line(&format!("{}: Mounted from {from}", blob.short())),
            PushEvent::Upload { blob, done_bytes, size_bytes } => self.bar(blob, *done_bytes, *size_bytes),
            PushEvent::Pushed { blob } => {
                self.end_bar(blob);
                self.line(&format!("{}: Pushed", blob.short()));
            }
            PushEvent::Tagged(tagged) => {
                self.line(&format!("{}: digest: {} size: {}", tagged.tag, tagged.digest, tagged.size_bytes));
            }
        }
    }

    fn line(&self, text: &str) {
        let text = format!("{text}\n");
        let print = || if self.to_stdout { output::stdout(&text) } else { output::stderr(&text) };
        // A reader that is gone does not end the pull: its result is in the store.
        let _ = match &self.bars {
            Some((screen, _)) => screen.suspend(print),
            None => print(),
        };
    }

    fn end_bar(&self, layer: &Digest) {
        if let Some((_, bars)) = &self.bars
            && let Ok(mut bars) = bars.lock()
            && let Some(bar) = bars.remove(layer)
        {
            bar.finish_and_clear();
        }
    }

    fn bar(&self, layer: &Digest, done_bytes: u64, size_bytes: u64) {
        let Some((screen, bars)) = &self.bars else { return };
        let Ok(mut bars) = bars.lock() else { return };
        let bar = bars.entry(*layer).or_insert_with(|| {
            let style = ProgressStyle::with_template("{prefix}: {bar:30} {bytes}/{total_bytes} {bytes_per_sec}");
            let bar = ProgressBar::new(size_bytes).with_prefix(layer.short());
            screen.add(style.map_or(bar.clone(), |style| bar.with_style(style)))
        });
        bar.set_position(done_bytes);
    }
}

/// A remark; a reader that is gone does not want it.
fn note(text: &str) {
    let _ = output::stderr(&format!("{text}\n"));
}
