//! `cargo xtask bench`: sublet beside its rivals, interleaved, on one machine and one file system.
//!
//! A topic is a set of sides that do the same work; each round runs every side once, in turn, so that a slow minute of
//! the machine hits all of them. The work is checked each time: a side that fails is shown as failed, never as fast.
//! Printed are median, spread (the quartiles) and the ratio to sublet; the raw samples, command lines, versions and the
//! machine go to `docs/benchmarks/<date>-<topic>/`.

mod files;
mod gate;
pub mod load;
pub mod machine;
mod network;
mod oci;
mod owners;
pub mod peak;
pub mod programs;
mod pull;
mod rivals;
mod start;

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fixture::image::Image;
use nix::unistd::getuid;

use crate::registry::Registry;
use crate::shell::{Fallible, cargo, line, output, workspace};
use crate::{debian, host};

/// Every topic: its name, how many rounds, and its sides.
type Topic = (&'static str, usize, fn(&Ground) -> Fallible<Vec<Side>>);
const TOPICS: &[Topic] = &[
    ("start", 30, start::sides),
    ("oci", 60, oci::sides),
    ("files", 3, files::sides),
    ("trees", 3, files::sides_of_large_trees),
    ("owners", 3, owners::sides),
    ("programs", 3, programs::sides),
    ("network", 5, network::sides),
    ("pull", 7, pull::sides),
];
/// A single run that takes longer has failed.
const LIMIT: Duration = Duration::from_mins(5);

/// What the sides share: a directory on the file system under test, the registry, the release binary.
pub struct Ground {
    /// Holds every side's store.
    pub directory: PathBuf,
    /// `127.0.0.1:port` of the registry with `busybox` and, if it could be made, `debian`.
    pub registry: String,
    /// The binary that ships.
    pub sublet: PathBuf,
    /// Whether the registry has the image `debian`.
    pub has_debian: bool,
    /// Further registries, which end with it.
    further: RefCell<Vec<Registry>>,
}

impl Ground {
    /// Has another registry run for as long as this one does.
    pub fn keep(&self, registry: Registry) {
        self.further.borrow_mut().push(registry);
    }
}

/// How a sample shows that its work was done; one that does not has failed.
pub enum Proof {
    /// The measured command's own last line of output is `done`.
    SaysDone,
    /// This command, run afterwards and not measured, prints something.
    Prints(Command),
}

/// What is done before a sample.
type Prepare = Box<dyn FnMut() -> Result<(), String>>;
/// The value of a sample, of what its command printed.
type Value = Box<dyn Fn(&str) -> Option<f64>>;

/// One contender in a topic.
pub struct Side {
    /// The work: sides with the same work are compared.
    pub work: String,
    /// Who does it.
    pub name: String,
    /// Run before each sample, in this order, and are not measured.
    prepare: Vec<Prepare>,
    /// What is measured, by its wall time unless there is another value.
    pub command: Command,
    /// The unit of the value, and the value.
    value: Option<(&'static str, Value)>,
    /// Whether the peak of its memory is measured too.
    with_memory: bool,
    /// How many rounds are enough, for one that takes long: then none is for nothing either.
    rounds: Option<usize>,
    /// What shows that it did the work.
    pub proof: Proof,
}

impl Side {
    /// A side whose command says `done` at its end.
    pub fn timed(work: &str, name: &str, command: Command) -> Self {
        let proof = Proof::SaysDone;
        let (work, name) = (work.to_owned(), name.to_owned());
        Side { work, name, prepare: Vec::new(), command, value: None, with_memory: false, rounds: None, proof }
    }

    /// Replaces the proof by a command that must print something.
    #[must_use]
    pub fn proved_by(mut self, command: Command) -> Self {
        self.proof = Proof::Prints(command);
        self
    }

    /// Adds what runs before each sample.
    #[must_use]
    pub fn after(self, mut prepare: Command) -> Self {
        self.after_doing(move || output(&mut prepare).map(drop).map_err(|error| error.to_string()))
    }

    /// The same for what is more than a command.
    #[must_use]
    pub fn after_doing(mut self, prepare: impl FnMut() -> Result<(), String> + 'static) -> Self {
        self.prepare.push(Box::new(prepare));
        self
    }

    /// Replaces the time by another value, in this unit, of what the command printed.
    #[must_use]
    pub fn valued(mut self, unit: &'static str, value: impl Fn(&str) -> Option<f64> + 'static) -> Self {
        self.value = Some((unit, Box::new(value)));
        self
    }

    /// Has the peak of its memory measured too.
    #[must_use]
    pub fn with_memory(self) -> Self {
        Side { with_memory: true, ..self }
    }

    /// Limits the rounds.
    #[must_use]
    pub fn times(self, rounds: Option<usize>) -> Self {
        Side { rounds, ..self }
    }

    /// The unit of its values, and what it is of those that are kept.
    fn unit(&self) -> (&'static str, f64) {
        self.value.as_ref().map_or(("ms", 1000.0), |(unit, _)| (unit, 1.0))
    }

    fn sample(&mut self, ground: &Path) -> Result<Sample, String> {
        self.prepare.iter_mut().try_for_each(|prepare| prepare())?;
        let file = ground.join("peak");
        let mut wrapped = if self.with_memory {
            Some(peak::wrapped(&self.command, &file).map_err(|error| error.to_string())?)
        } else {
            None
        };
        let began = Instant::now();
        let said = output(wrapped.as_mut().unwrap_or(&mut self.command)).map_err(|error| error.to_string())?;
        let mut took_s = began.elapsed().as_secs_f64();
        let mut peak_bytes = None;
        if self.with_memory {
            let (took, bytes) = peak::read(&file).ok_or("its memory was not measured")?;
            (took_s, peak_bytes) = (took, Some(bytes));
        }
        let proved = match &mut self.proof {
            Proof::SaysDone => said.lines().last() == Some("done"),
            Proof::Prints(command) => !output(command).map_err(|error| error.to_string())?.is_empty(),
        };
        if !proved {
            return Err("it succeeded, but the work was not done".to_owned());
        }
        if took_s > LIMIT.as_secs_f64() {
            return Err(format!("{took_s} s are over the limit"));
        }
        let value = match &self.value {
            None => took_s,
            Some((unit, value)) => value(&said).ok_or_else(|| format!("{said:?} is no number of {unit}"))?,
        };
        Ok(Sample { value, peak_bytes })
    }
}

/// What one round of a side gave.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Seconds, or another value in the side's own unit.
    value: f64,
    peak_bytes: Option<u64>,
}

/// Bytes in MiB; of few enough that nothing is lost.
fn in_mib(bytes: u64) -> f64 {
    f64::from((bytes >> 10) as u32) / 1024.0
}

/// The samples of one side, in the order of rounds.
pub struct Series {
    side: Side,
    samples: Vec<Result<Sample, String>>,
}

impl Series {
    /// (lower quartile, median, upper quartile) of the samples that succeeded.
    fn quartiles(&self) -> Option<[f64; 3]> {
        let mut good: Vec<f64> = self.good().map(|sample| sample.value).collect();
        good.sort_by(f64::total_cmp);
        let last = good.len().checked_sub(1)?;
        // Between two samples where no one stands at the quarter.
        let at = |quarter: usize| {
            let (below, rest) = (last * quarter / 4, [0.0, 0.25, 0.5, 0.75][last * quarter % 4]);
            good[below] + (good[(below + 1).min(last)] - good[below]) * rest
        };
        Some([at(1), at(2), at(3)])
    }

    fn good(&self) -> impl Iterator<Item = Sample> {
        self.samples.iter().filter_map(|sample| sample.as_ref().ok().copied())
    }

    fn failures(&self) -> usize {
        self.samples.iter().filter(|sample| sample.is_err()).count()
    }

    /// The most memory of all samples, in MiB.
    fn peak(&self) -> String {
        let peak = self.good().filter_map(|sample| sample.peak_bytes).max();
        peak.map_or("-".to_owned(), |bytes| format!("{:.1}", in_mib(bytes)))
    }
}

/// Runs the named topics, or all.
pub fn run(names: &[String]) -> Fallible<bool> {
    let unknown = names.iter().find(|name| !TOPICS.iter().any(|(topic, ..)| topic == name));
    if let Some(name) = unknown {
        return Err(format!(
            "no benchmark is called {name}; there are: start oci files trees owners programs network pull"
        )
        .into());
    }
    let base = std::env::temp_dir().join(format!("sublet-bench-{}", std::process::id()));
    fs::create_dir_all(&base)?;
    let registry = Registry::start(&base)?.ok_or("docker-registry is not installed")?;
    let ground = ground(&base, &registry)?;
    for (topic, rounds, sides) in TOPICS {
        if names.is_empty() || names.iter().any(|name| name == topic) {
            let series = measure(sides(&ground)?, *rounds, &ground.directory);
            let report = report(topic, &series);
            println!("{report}");
            record(topic, &report, &series, &ground)?;
        }
    }
    drop((ground, registry));
    clean(&base);
    Ok(true)
}

/// Builds the binary that ships; where it is.
pub fn release_binary() -> Fallible<PathBuf> {
    let target = host::musl_target();
    crate::shell::run(&mut cargo(["build", "--release", "--quiet", "--target", &target, "--bin", "sublet"]))?;
    let directory = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    Ok(directory.join(target).join("release/sublet"))
}

fn ground(base: &Path, registry: &Registry) -> Fallible<Ground> {
    let sublet = match std::env::var_os("SUBLET_BENCH_BIN") {
        Some(path) => path.into(),
        None => release_binary()?,
    };
    let push = |name: &str, image: &Image| fixture::push::push(&registry.address, name, "latest", image);
    push("busybox", &debian::busybox()?.ok_or("busybox-static is not installed")?)?;
    let debian = debian::debian()?;
    if let Some(image) = &debian {
        push("debian", image)?;
    }
    let has_debian = debian.is_some();
    let (directory, registry) = (base.to_path_buf(), registry.address.clone());
    Ok(Ground { directory, registry, sublet, has_debian, further: RefCell::default() })
}

/// Every side once a round, in turn.
fn measure(sides: Vec<Side>, rounds: usize, ground: &Path) -> Vec<Series> {
    let mut series: Vec<Series> = sides.into_iter().map(|side| Series { side, samples: Vec::new() }).collect();
    // The first round fills caches and is not counted; a side that fails there will fail again and be seen then.
    for one in series.iter_mut().filter(|one| one.side.rounds.is_none()) {
        let _ = one.side.sample(ground);
    }
    for round in 0..rounds {
        for one in series.iter_mut().filter(|one| one.side.rounds.is_none_or(|rounds| round < rounds)) {
            let sample = one.side.sample(ground);
            one.samples.push(sample);
        }
    }
    series
}

/// The table: a block for each work, ratios to sublet's median.
fn report(topic: &str, series: &[Series]) -> String {
    use std::fmt::Write as _;
    let mut text = format!("# {topic}\n");
    let mut works: Vec<&str> = series.iter().map(|one| one.side.work.as_str()).collect();
    works.dedup();
    for work in works {
        let group: Vec<&Series> = series.iter().filter(|one| one.side.work == work).collect();
        let ours = group.iter().find(|one| one.side.name.starts_with("sublet")).and_then(|one| one.quartiles());
        let (unit, scale) = group.first().map_or(("ms", 1000.0), |one| one.side.unit());
        let with_memory = group.iter().any(|one| one.side.with_memory);
        let (title, line) = if with_memory { (" peak MiB |", "---|") } else { ("", "") };
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\n## {work}\n\n| side | median {unit} | quartiles | ratio to sublet |{title} failed |\n|---|---|---|---|{line}---|\n"
        );
        for one in group {
            let (low, median, high, ratio) = match one.quartiles() {
                None => <[String; 4]>::into(std::array::from_fn(|_| "-".to_owned())),
                Some([low, median, high]) => {
                    let ratio = ours.map_or("-".to_owned(), |[_, ours, _]| format!("{:.2}", median / ours));
                    let [low, median, high] = [low, median, high].map(|value| format!("{:.2}", value * scale));
                    (low, median, high, ratio)
                }
            };
            let peak = if with_memory { format!(" {} |", one.peak()) } else { String::new() };
            let (name, failures) = (&one.side.name, one.failures());
            let _ = writeln!(text, "| {name} | {median} | {low} to {high} | {ratio} |{peak} {failures} |");
        }
    }
    text
}

/// Writes the table, the raw samples, the command lines and the machine.
fn record(topic: &str, report: &str, series: &[Series], ground: &Ground) -> Fallible<()> {
    use std::fmt::Write as _;
    let date = output(Command::new("date").arg("+%Y-%m-%d"))?;
    let root = std::env::var_os("SUBLET_BENCH_OUT").map_or_else(|| workspace().join("docs/benchmarks"), PathBuf::from);
    let directory = root.join(format!("{date}-{topic}"));
    fs::create_dir_all(&directory)?;
    // Directories of this run are given by what they stand for, so that two runs can be compared.
    let neutral = |text: String| {
        let text = text.replace(&*ground.directory.to_string_lossy(), "$BENCH");
        text.replace(&*ground.sublet.to_string_lossy(), "sublet").replace(&ground.registry, "$REGISTRY")
    };
    let mut raw = String::from("work\tside\tround\tvalue\tpeak bytes\n");
    let mut lines = String::new();
    for one in series {
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "{} | {}: {}", one.side.work, one.side.name, neutral(line(&one.side.command)));
        for (round, sample) in one.samples.iter().enumerate() {
            let (value, peak) = match sample {
                Ok(sample) => {
                    (sample.value.to_string(), sample.peak_bytes.map_or(String::new(), |peak| peak.to_string()))
                }
                Err(error) => (format!("failed: {}", error.replace('\n', " ")), String::new()),
            };
            let _ = writeln!(raw, "{}\t{}\t{round}\t{}\t{peak}", one.side.work, one.side.name, neutral(value));
        }
    }
    fs::write(directory.join("raw.tsv"), raw)?;
    fs::write(
        directory.join("README.md"),
        format!("{report}\n{}\n## Command lines\n\n```\n{lines}```\n", machine::describe(ground)),
    )?;
    println!("written: {}", directory.display());
    Ok(())
}

/// Removes stores, among them those with files of foreign ids; what stays is named.
fn clean(base: &Path) {
    if crate::shell::which("podman").is_some() && !getuid().is_root() {
        // Its files belong to subordinate ids, so only its own namespace can remove them.
        let _ = Command::new("podman").args(["unshare", "rm", "-rf"]).arg(base).stderr(Stdio::null()).status();
    }
    if let Err(error) = fs::remove_dir_all(base)
        && base.exists()
    {
        eprintln!("cannot remove {}: {error}", base.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_was_not_done_is_a_failure() {
        let mut idle = Side::timed("work", "idle", Command::new("true"));
        assert!(idle.sample(Path::new("/")).is_err());
        let mut busy = Side::timed("work", "busy", crate::shell::command("echo", ["done"]));
        assert!(busy.sample(Path::new("/")).is_ok());
    }

    #[test]
    fn quartiles_leave_failures_out_and_the_report_counts_them() {
        let side = |name: &str| Side::timed("work", name, Command::new("true"));
        let good = |values: &[f64]| {
            values.iter().map(|value| Ok(Sample { value: *value, peak_bytes: None })).collect::<Vec<_>>()
        };
        let ours = Series { side: side("sublet"), samples: good(&[0.003, 0.001, 0.002, 0.004, 0.005]) };
        let mut theirs = Series { side: side("rival"), samples: good(&[0.006]) };
        theirs.samples.push(Err("no".to_owned()));
        assert_eq!(ours.quartiles(), Some([0.002, 0.003, 0.004]));
        let text = report("start", &[ours, theirs]);
        assert!(text.contains("| sublet | 3.00 | 2.00 to 4.00 | 1.00 | 0 |"), "{text}");
        assert!(text.contains("| rival | 6.00 | 6.00 to 6.00 | 2.00 | 1 |"), "{text}");
    }
}
