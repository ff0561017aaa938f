use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use base::{Kind, Report};
use clap::Args;
use engine::container;
use engine::network::capture::{Wanted, capture};
use engine::network::observe::{Sight, nothing, observe};

use crate::environment::Globals;
use crate::output::{Stop, stderr};

/// As of tcpdump(8): more than any frame has.
const SNAPLEN: u32 = 262_144;

/// Write a container's frames to a pcap file, until it ends or Ctrl-C
#[derive(Args)]
pub struct Capture {
    /// The file; - is the standard output
    #[arg(short, long, value_name = "FILE")]
    write: String,
    /// End after so long: 10s, 2m
    #[arg(long, value_name = "TIME", value_parser = span)]
    duration: Option<Duration>,
    /// End after so many frames
    #[arg(short, long, value_name = "FRAMES")]
    count: Option<u64>,
    /// Bytes of each frame
    #[arg(short, long, value_name = "BYTES", default_value_t = SNAPLEN)]
    snaplen: u32,
    /// The network, where the container has several; the one that leads out without
    #[arg(long)]
    network: Option<String>,
    container: String,
}

fn span(text: &str) -> Result<Duration, &'static str> {
    base::time::parse_span(text).ok_or("a time is a number with s, m or h")
}

impl Capture {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        let id = container::find(&engine, &self.container)?;
        let sights = observe(&engine, &id)?;
        if sights.is_empty() {
            return Err(nothing(&engine, &id).into());
        }
        let sight = self.choose(sights)?;
        let wanted = Wanted { snaplen: self.snaplen, count: self.count, duration: self.duration };
        let Some((frames, dropped)) = capture(&sight, wanted, &mut *self.open()?)? else {
            stderr(&format!("the container's network {} has ended\n", sight.network))?;
            return Ok(0);
        };
        let dropped = if dropped == 0 { String::new() } else { format!(", {dropped} dropped as they came too fast") };
        stderr(&format!("{frames} frames captured{dropped}\n"))?;
        Ok(0)
    }

    fn choose(&self, sights: Vec<Sight>) -> Result<Sight, Report> {
        let names: Vec<String> = sights.iter().map(|sight| sight.network.clone()).collect();
        let is = |sight: &Sight| self.network.as_ref().map_or(sight.leads, |name| sight.network == *name);
        let place = sights.iter().position(is).or(self.network.is_none().then_some(0));
        let wrong = || {
            let text =
                format!("container {} is not in network {}", self.container, self.network.as_deref().unwrap_or(""));
            Report::new(Kind::NotFound, text).with_hint(format!("it is in {}", names.join(", ")))
        };
        let place = place.ok_or_else(wrong)?;
        sights.into_iter().nth(place).ok_or_else(wrong)
    }

    fn open(&self) -> Result<Box<dyn Write>, Report> {
        if self.write != "-" {
            let file = File::create(&self.write);
            let failed = |error| Report::of(Kind::Denied, error).with_step(format!("writing {}", self.write));
            return Ok(Box::new(file.map_err(failed)?));
        }
        if io::stdout().is_terminal() {
            let text = "cowardly refusing to write a capture to a terminal. Use a file or redirect";
            return Err(Report::new(Kind::Usage, text));
        }
        Ok(Box::new(io::stdout().lock()))
    }
}
