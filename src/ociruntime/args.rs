//! The grammar: runc's, with crun's spellings where its callers use them.
//!
//! Flags may stand before and after the id: Slurm's examples write both.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::LazyLock;

use clap::builder::ArgAction;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// What `--version` prints behind the name. Callers read the first line: name and version.
static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("version {}\nspec: {}", env!("CARGO_PKG_VERSION"), runtime::hooks::VERSION));

/// An OCI runtime: creates and runs containers from bundles.
#[derive(Debug, Parser)]
#[command(name = "sublet-runtime", version = VERSION.as_str(), args_override_self = true, disable_version_flag = true)]
pub struct Line {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options in front of the verb.
#[derive(Debug, Args)]
pub struct Global {
    /// Directory of containers' states
    #[arg(long, value_name = "DIRECTORY")]
    pub root: Option<PathBuf>,
    /// File that gets what is logged, instead of standard error
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// How it is written
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Log more
    #[arg(long)]
    pub debug: bool,
    /// cgroupsPath is slice:prefix:name, and systemd makes the scope
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Who makes the cgroup
    #[arg(long, value_enum)]
    pub cgroup_manager: Option<CgroupManager>,
    /// Whether a cgroup that cannot be made is passed over when nothing depends on it
    #[arg(long, value_enum, default_value_t = Rootless::Auto)]
    pub rootless: Rootless,
    /// Print name and version, and the version of the specification
    #[arg(short = 'v', long, action = ArgAction::Version)]
    version: (),
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// `--cgroup-manager`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CgroupManager {
    Cgroupfs,
    Systemd,
    Disabled,
}

/// `--rootless`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Rootless {
    Auto,
    True,
    False,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create a container; its command waits for `start`
    Create(Create),
    /// Start a created container
    Start(Id),
    /// Print the state of a container
    State(Id),
    /// Send a signal to a container
    Kill(Kill),
    /// Remove a container that has ended
    Delete(Delete),
    /// Execute a command in a running container
    Exec(Box<Exec>),
    /// List containers
    List(List),
    /// List the processes of a container
    Ps(Ps),
    /// Print what a container uses, and when it runs out of memory
    Events(Events),
    /// Change the limits of a container
    Update(Box<Update>),
    /// Suspend all processes of a container
    Pause(Id),
    /// Resume a paused container
    Resume(Id),
    /// Print what this runtime supports
    Features,
    /// Write a new configuration file
    Spec(Spec),
    /// Create a container, start it and wait for its end
    Run(Run),
    /// Not supported
    #[command(hide = true)]
    Checkpoint(Unsupported),
    /// Not supported
    #[command(hide = true)]
    Restore(Unsupported),
}

/// Whatever the verbs of others take that are here refused by name.
#[derive(Debug, Args)]
pub struct Unsupported {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub words: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct Id {
    /// Id of the container
    pub id: String,
}

#[derive(Debug, Args)]
pub struct Create {
    /// Id of the container
    pub id: String,
    #[command(flatten)]
    pub bundle: Bundle,
}

#[derive(Debug, Args)]
pub struct Run {
    /// Id of the container
    pub id: String,
    #[command(flatten)]
    pub bundle: Bundle,
    /// Do not wait for the end
    #[arg(short, long)]
    pub detach: bool,
    /// Do not remove the container at its end
    #[arg(long)]
    pub keep: bool,
    /// Accepted: nothing that outlives the container is adopted here
    #[arg(long, hide = true)]
    pub no_subreaper: bool,
}

/// What `create` and `run` share.
#[derive(Debug, Args)]
pub struct Bundle {
    /// Directory of the bundle
    #[arg(short = 'b', long = "bundle", value_name = "DIRECTORY", default_value = ".")]
    pub directory: PathBuf,
    /// Configuration, instead of the bundle's config.json
    #[arg(short = 'f', long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Unix socket that receives the terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// File that receives the pid
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// How many descriptors from 3 up the command inherits
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u16,
    /// Do not use pivot_root
    #[arg(long)]
    pub no_pivot: bool,
    /// Keep the session keyring
    #[arg(long)]
    pub no_new_keyring: bool,
}

#[derive(Debug, Args)]
pub struct Kill {
    /// Id of the container
    pub id: String,
    /// Name or number
    #[arg(default_value = "SIGTERM")]
    pub signal: String,
    /// Signal every process of the container
    #[arg(short, long)]
    pub all: bool,
}

#[derive(Debug, Args)]
pub struct Delete {
    /// Id of the container
    pub id: String,
    /// End it first, and succeed when there is none
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct Exec {
    /// Id of the container
    pub id: String,
    /// Command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
    /// File with the process in the words of config.json
    #[arg(short, long, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Working directory
    #[arg(long, value_name = "DIRECTORY", allow_hyphen_values = true)]
    pub cwd: Option<PathBuf>,
    /// Environment variable, NAME=VALUE
    #[arg(short, long, value_name = "VARIABLE", allow_hyphen_values = true)]
    pub env: Vec<String>,
    /// UID[:GID]
    #[arg(short, long, value_name = "USER", allow_hyphen_values = true)]
    pub user: Option<String>,
    /// Supplementary group
    #[arg(short = 'g', long, value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// Additional capability
    #[arg(short, long, value_name = "CAPABILITY")]
    pub cap: Vec<String>,
    /// Give the command a terminal
    #[arg(short, long, action = ArgAction::SetTrue)]
    pub tty: bool,
    /// Do not wait for the end
    #[arg(short, long)]
    pub detach: bool,
    /// Unix socket that receives the terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// File that receives the pid
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// How many descriptors from 3 up the command inherits
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u16,
    /// Set no_new_privs
    #[arg(long)]
    pub no_new_privs: bool,
    /// AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// SELinux label
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// Execute also while the container is paused
    #[arg(long)]
    pub ignore_paused: bool,
    /// Cgroup below the container's, which must exist
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct List {
    /// How the list is printed
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Print ids only
    #[arg(short, long)]
    pub quiet: bool,
}

/// `--format` of lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
}

#[derive(Debug, Args)]
pub struct Ps {
    /// Id of the container
    pub id: String,
    /// Options of ps(1), instead of -ef
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub options: Vec<String>,
    /// How the list is printed
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

#[derive(Debug, Args)]
pub struct Events {
    /// Id of the container
    pub id: String,
    /// Print once what is used, and end
    #[arg(long)]
    pub stats: bool,
    /// How long between two prints, such as 5s
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    pub interval: String,
}

#[derive(Debug, Args)]
pub struct Update {
    /// Id of the container
    pub id: String,
    /// File with resources in the words of config.json; - is standard input
    #[arg(short, long, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// Weight of block I/O, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    pub blkio_weight: Option<u16>,
    /// Microseconds of a period
    #[arg(long, value_name = "US")]
    pub cpu_period: Option<u64>,
    /// Microseconds of processor time in a period
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// Microseconds that may be saved up
    #[arg(long, value_name = "US")]
    pub cpu_burst: Option<u64>,
    /// Relative weight of processor time
    #[arg(long, value_name = "SHARES")]
    pub cpu_share: Option<u64>,
    /// Whether it runs only when nothing else does: 0 or 1
    #[arg(long, value_name = "IDLE")]
    pub cpu_idle: Option<i64>,
    /// Processors to use
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Bytes of memory
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory: Option<String>,
    /// Bytes of memory that are kept for it
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_reservation: Option<String>,
    /// Bytes of memory and swap together
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    /// The most processes
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
}

#[derive(Debug, Args)]
pub struct Spec {
    /// Directory that gets config.json
    #[arg(short, long, value_name = "DIRECTORY", default_value = ".")]
    pub bundle: PathBuf,
    /// For a user who is not root
    #[arg(long)]
    pub rootless: bool,
}

/// Parses a command line with the program's name in front.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Line, clap::Error> {
    Line::try_parse_from(arguments)
}
