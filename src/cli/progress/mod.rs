//! What a command that moves images shows meanwhile (docs/progress.md).
//!
//! On a terminal a bar for each content that moves and one for all, with rate and time left; off it Docker's lines, and every ten
//! seconds of moving one that says how far all is; with `--progress=json` an object a line in the shape of the streams of
//! Docker's API; with `-q` warnings alone. Bars, objects and the ten-second lines go to standard error. Docker's lines of a pull and a
//! push are what their users read on standard output, and stay there.

mod bars;
mod json;
mod tally;

use std::io::{self, IsTerminal};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base::units::human_size;
use base::{Kind, Report};
use clap::ValueEnum;
use engine::image::Event;

use crate::environment::Globals;
use crate::output;
use bars::Bars;
use json::Objects;
use tally::{Tally, Total};

/// Off a terminal, between two lines that say how far all is.
const BEAT: Duration = Duration::from_secs(10);

/// `--progress`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// Bars where standard error is a terminal that can draw them and no CI is at work, else lines.
    #[default]
    Auto,
    /// Bars.
    Tty,
    /// Lines.
    Plain,
    /// An object a line.
    Json,
}

/// What is at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A pull that was asked for.
    Pull,
    /// One that `run` needs: its lines are remarks.
    Fetch,
    Push,
    /// Of a list, whose one line of output is its digest.
    PushList,
    Load,
    Save,
    Import,
    Commit,
}

impl Work {
    /// Docker's word for what moves.
    fn moving(self) -> &'static str {
        match self {
            Work::Pull | Work::Fetch => "Downloading",
            Work::Push | Work::PushList => "Pushing",
            Work::Load => "Loading",
            Work::Save => "Saving",
            Work::Import => "Importing",
            Work::Commit => "Committing",
        }
    }

    /// For what has moved.
    fn moved(self) -> &'static str {
        match self {
            Work::Pull | Work::Fetch => "Pull complete",
            Work::Push | Work::PushList => "Pushed",
            Work::Load => "Loaded",
            Work::Save => "Saved",
            Work::Import => "Imported",
            Work::Commit => "Committed",
        }
    }

    /// For what is there.
    fn exists(self) -> &'static str {
        if matches!(self, Work::Push | Work::PushList) { "Layer already exists" } else { "Already exists" }
    }

    /// Docker's line for an event. It has some for pulls and pushes only.
    fn line(self, event: &Event<'_>) -> Option<String> {
        if !matches!(self, Work::Pull | Work::Fetch | Work::Push) {
            return None;
        }
        Some(match event {
            Event::Resolving { reference } => {
                format!("{}: Pulling from {}", reference.selector(), reference.repository())
            }
            Event::Exists { content } => format!("{}: {}", content.short(), self.exists()),
            Event::Mounted { content, from } => format!("{}: Mounted from {from}", content.short()),
            Event::Moved { content: Some(content) } => format!("{}: {}", content.short(), self.moved()),
            Event::Tagged { tag, digest, size_bytes } => format!("{tag}: digest: {digest} size: {size_bytes}"),
            _ => return None,
        })
    }
}

/// Shows events; shared by the threads that work. Its bars go with it.
pub struct Progress {
    work: Work,
    face: Face,
    tally: Mutex<Tally>,
}

enum Face {
    Quiet,
    /// The moment of the next line that says how far all is; `None` before anything moves.
    Lines(Mutex<Option<Instant>>),
    Bars(Bars),
    Objects(Objects),
}

impl Progress {
    /// For a piece of work; `quiet` is its `-q`.
    pub fn new(globals: &Globals, work: Work, quiet: bool) -> Result<Self, Report> {
        let terminal = io::stderr().is_terminal();
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let ci = std::env::var_os("CI").is_some_and(|value| !value.is_empty());
        let face = match globals.progress {
            _ if quiet => Face::Quiet,
            Choice::Json => Face::Objects(Objects::default()),
            Choice::Tty if !terminal => {
                let why = "--progress=tty: standard error is no terminal";
                return Err(Report::new(Kind::Usage, why).with_hint("--progress=plain shows lines"));
            }
            Choice::Tty => Face::Bars(Bars::new()),
            Choice::Auto if terminal && !dumb && !ci => Face::Bars(Bars::new()),
            Choice::Auto | Choice::Plain => Face::Lines(Mutex::default()),
        };
        Ok(Progress { work, face, tally: Mutex::default() })
    }

    /// Shows one event.
    pub fn show(&self, event: &Event<'_>) {
        let now = Instant::now();
        // Held until it is shown, so that the last thing shown is the newest.
        let mut tally = locked(&self.tally);
        let total = count(&mut tally, event, now);
        match &self.face {
            Face::Objects(objects) => return objects.show(self.work, event, &total, now),
            Face::Bars(bars) => bars.show(event, &total),
            Face::Lines(next) => self.beat(&mut locked(next), event, &total, now),
            Face::Quiet => {}
        }
        match event {
            Event::Warning { text } => self.beside_bars(|| output::warning(text)),
            _ if self.is_quiet() => {}
            Event::Note { text } => self.beside_bars(|| note(text)),
            event => {
                if let Some(line) = self.work.line(event) {
                    self.print(&line);
                }
            }
        }
    }

    /// Says more of what was done, in Docker's words; nothing when quiet.
    pub fn line(&self, text: &str) {
        match &self.face {
            Face::Quiet => {}
            Face::Objects(_) => json::status(text),
            Face::Lines(_) | Face::Bars(_) => self.print(text),
        }
    }

    fn is_quiet(&self) -> bool {
        matches!(self.face, Face::Quiet)
    }

    fn print(&self, text: &str) {
        let text = output::printable(&format!("{text}\n"));
        // A reader that is gone does not end the work: its result is in the store.
        self.beside_bars(|| {
            let _ = if self.work == Work::Fetch { output::stderr(&text) } else { output::stdout(&text) };
        });
    }

    fn beside_bars(&self, print: impl FnOnce()) {
        match &self.face {
            Face::Bars(bars) => bars.beside(print),
            _ => print(),
        }
    }

    /// Now and then a line for who looks at a log, or ends what says nothing.
    fn beat(&self, next: &mut Option<Instant>, event: &Event<'_>, total: &Total, now: Instant) {
        if !matches!(event, Event::Moving { .. }) {
            return;
        }
        let due = *next.get_or_insert(now + BEAT);
        if now >= due {
            *next = Some(now + BEAT);
            note(&format!("{}: {}", self.work.moving(), total_text(total)));
        }
    }
}

/// Counts an event; how far all is then.
fn count(tally: &mut Tally, event: &Event<'_>, now: Instant) -> Total {
    match event {
        Event::Planned { contents } => tally.plan(contents),
        Event::Exists { content } | Event::Mounted { content, .. } => tally.skip(*content),
        Event::Moving { content, done_bytes, size_bytes } => tally.advance(*content, *done_bytes, *size_bytes, now),
        Event::Moved { content } => tally.finish(*content),
        Event::Resolving { .. } | Event::Tagged { .. } | Event::Note { .. } | Event::Warning { .. } => {}
    }
    tally.total(now)
}

/// `12.3MB of 66.1MB, 1.2MB/s, 45s left`, as far as it is known.
fn total_text(total: &Total) -> String {
    let of = total.size_bytes.map(|size| format!(" of {}", human_size(size))).unwrap_or_default();
    let rate = total.rate.map(|rate| format!(", {}/s", human_size(rate))).unwrap_or_default();
    let left = total.left.map(|left| format!(", {} left", short_span(left))).unwrap_or_default();
    format!("{}{of}{rate}{left}", human_size(total.done_bytes))
}

/// `45s`, `3m05s`, `2h07m`.
fn short_span(span: Duration) -> String {
    let seconds = span.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
        (hours, minutes, _) => format!("{hours}h{minutes:02}m"),
    }
}

/// A remark; a reader that is gone does not want it.
fn note(text: &str) {
    let _ = output::stderr(&output::printable(&format!("{text}\n")));
}

/// What a thread that panicked has left of a display is good enough.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn spans_are_short() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (185, "3m05s"), (7620, "2h07m"), (360_000, "100h00m")] {
            assert_eq!(short_span(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_line_says_how_far_all_is_every_ten_seconds() {
        let progress = Progress { work: Work::Pull, face: Face::Quiet, tally: Mutex::default() };
        let (begin, mut next, mut tally) = (Instant::now(), None, Tally::default());
        let event = Event::Moving { content: None, done_bytes: 0, size_bytes: Some(66_100_000) };
        let total = count(&mut tally, &event, begin);
        progress.beat(&mut next, &event, &total, begin);
        assert_eq!(next, Some(begin + BEAT));
        let event = Event::Moving { content: None, done_bytes: 12_300_000, size_bytes: Some(66_100_000) };
        let total = count(&mut tally, &event, begin + BEAT);
        assert_eq!(total_text(&total), "12.3MB of 66.1MB, 1.23MB/s, 44s left");
        progress.beat(&mut next, &event, &total, begin + Duration::from_millis(9_999));
        assert_eq!(next, Some(begin + BEAT));
        progress.beat(&mut next, &event, &total, begin + BEAT);
        assert_eq!(next, Some(begin + BEAT + BEAT));
    }
}
