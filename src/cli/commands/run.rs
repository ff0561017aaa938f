use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use base::{ContainerId, Context, Kind, Report};
use clap::Args;
use engine::container::attach::{Streams, relay};
use engine::container::record::{DeviceMapping, DeviceRequest, HostSettings, Policy, VolumeSource};
use engine::container::remove::With;
use engine::container::start::Started;
use engine::container::{self, CreateRequest};
use engine::image::load::{FileSource, load_one};
use engine::image::{self, Event, PullRequest};
use engine::system::boot::is_enabled;
use engine::{Engine, container::record::Volume};
use oci::Platform;

use crate::commands::lock::{LOCK_FILE, locked, refuse_lock};
use crate::environment::{Globals, home, user_units};
use crate::health_options::HealthOptions;
use crate::isolation_options::IsolationOptions;
use crate::joining::Joining;
use crate::limit_options::LimitOptions;
use crate::mounts::{self, Mounted};
use crate::network_options::NetworkOptions;
use crate::output::{Stop, error, line, warning};
use crate::parse;
use crate::progress::{Progress, Work};
use crate::registry_options::ContentTrust;
use crate::variable_options::VariableOptions;

/// Run a command in a new container
#[derive(Args)]
pub struct Run {
    /// In the background; print the container's id
    #[arg(short, long)]
    pub detach: bool,
    /// stdin, stdout or stderr, where not all are to be joined
    #[arg(short, long, value_name = "STREAM", ignore_case = true, value_parser = ["stdin", "stdout", "stderr"])]
    attach: Vec<String>,
    #[command(flatten)]
    joining: Joining,
    #[command(flatten)]
    pub options: ContainerOptions,
}

/// What a new container is to be.
#[derive(Args)]
pub struct ContainerOptions {
    /// Keep the standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// With a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Remove the container when it ends
    #[arg(long)]
    pub rm: bool,
    /// When it is started again: no, on-failure[:N], always or unless-stopped
    #[arg(long, value_name = "POLICY", default_value = "no")]
    restart: String,
    /// Name of the container
    #[arg(long)]
    pub name: Option<String>,
    /// A file for the container's id, which must not be there
    #[arg(long, value_name = "FILE")]
    cidfile: Option<PathBuf>,
    /// A file for the pid of the container's first process
    #[arg(long, value_name = "FILE")]
    pidfile: Option<PathBuf>,
    /// Remove the container that has the name
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    pub variables: VariableOptions,
    /// Directory to start in
    #[arg(short, long)]
    workdir: Option<String>,
    /// USER[:GROUP], by name or number
    #[arg(short, long)]
    user: Option<String>,
    /// Program in place of the image's entry point
    #[arg(long)]
    entrypoint: Option<String>,
    /// Host name
    #[arg(short = 'h', long)]
    pub hostname: Option<String>,
    /// NIS domain name
    #[arg(long, value_name = "NAME")]
    domainname: Option<String>,
    /// Process 1 is a small reaper, the command its child
    #[arg(long)]
    pub init: bool,
    /// The time zone, or local for this machine's: its file becomes /etc/localtime
    #[arg(long, value_name = "ZONE")]
    tz: Option<String>,
    /// What new files do not permit, in octal, in place of 0022
    #[arg(long, value_name = "MODE")]
    umask: Option<String>,
    /// Seconds after which it is killed
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// KEY=VALUE
    #[arg(short, long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// A file of such lines
    #[arg(long, value_name = "FILE")]
    label_file: Vec<String>,
    /// Who keeps the log: json-file, local, k8s-file, journald or none
    #[arg(long, value_name = "DRIVER", default_value = "json-file")]
    log_driver: String,
    /// max-size=BYTES, max-file=NUMBER; with journald also tag=TEXT
    #[arg(long, value_name = "NAME=VALUE")]
    log_opt: Vec<String>,
    /// The signal that asks it to stop
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Seconds that it has to stop; -1 for no limit
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    stop_timeout: Option<i64>,
    /// When to fetch the image
    #[arg(long, value_parser = ["missing", "always", "never"], default_value = "missing", help_heading = "Image")]
    pull: String,
    /// Show nothing of a fetch
    #[arg(short, long, help_heading = "Image")]
    quiet: bool,
    /// The image for this platform: os[/architecture[/variant]]
    #[arg(long, help_heading = "Image")]
    platform: Option<String>,
    #[command(flatten, next_help_heading = "Image")]
    trust: ContentTrust,
    /// The image to which the name is locked by images.lock, or this file
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = LOCK_FILE, help_heading = "Image")]
    locked: Option<PathBuf>,
    /// [SOURCE:]DESTINATION[:OPTIONS], a directory of the host, a named or an anonymous volume
    #[arg(short, long = "volume", value_name = "VOLUME", help_heading = "Files")]
    pub volumes: Vec<String>,
    /// type=bind|volume|tmpfs,source=SOURCE,target=DESTINATION,…
    #[arg(long = "mount", value_name = "KEY=VALUE,…", help_heading = "Files")]
    mounts: Vec<String>,
    /// CONTAINER[:ro], whose volumes it gets too
    #[arg(long, value_name = "CONTAINER", help_heading = "Files")]
    volumes_from: Vec<String>,
    /// DIRECTORY[:OPTIONS], in memory
    #[arg(long, help_heading = "Files")]
    tmpfs: Vec<String>,
    /// size=BYTES, the most that it may write into its own layer
    #[arg(long, value_name = "OPTION", help_heading = "Files")]
    storage_opt: Vec<String>,
    /// Driver of the root file system: overlay, fuse, tree or copy
    #[arg(long, value_name = "DRIVER", help_heading = "Files")]
    storage_driver: Option<String>,
    /// Nothing but volumes and tmpfs can be written
    #[arg(long, help_heading = "Files")]
    read_only: bool,
    /// With the image host:, your home directory is in it
    #[arg(long, help_heading = "Files")]
    host_home: bool,
    #[command(flatten, next_help_heading = "Network")]
    network: NetworkOptions,
    /// [[IP:][HOST_PORT]:]PORT[/udp], published on the host
    #[arg(short, long, value_name = "PORT", help_heading = "Network")]
    publish: Vec<String>,
    /// All ports that the image or --expose names, at free ports of the host
    #[arg(short = 'P', long, help_heading = "Network")]
    publish_all: bool,
    /// PORT[-PORT][/udp], on which the container listens beside what the image says
    #[arg(long, value_name = "PORT", help_heading = "Network")]
    expose: Vec<String>,
    /// A DNS server in place of the host's
    #[arg(long, value_name = "ADDRESS", help_heading = "Network")]
    dns: Vec<IpAddr>,
    /// A domain to look names up in, in place of the host's; . for none
    #[arg(long, value_name = "DOMAIN", help_heading = "Network")]
    dns_search: Vec<String>,
    /// An option of resolv.conf(5) in place of the host's
    #[arg(long, alias = "dns-opt", value_name = "OPTION", help_heading = "Network")]
    dns_option: Vec<String>,
    /// NAME:ADDRESS for /etc/hosts; the address host-gateway is the host's
    #[arg(long, value_name = "NAME:ADDRESS", help_heading = "Network")]
    add_host: Vec<String>,
    /// The image's own /etc/hosts
    #[arg(long, help_heading = "Network")]
    no_hosts: bool,
    #[command(flatten, next_help_heading = "Limits")]
    pub limits: LimitOptions,
    #[command(flatten, next_help_heading = "Isolation")]
    isolation: IsolationOptions,
    #[command(flatten, next_help_heading = "Health check")]
    health: HealthOptions,
    /// HOST[:CONTAINER[:PERMISSIONS]], a device or a directory of devices; or VENDOR/CLASS=NAME by CDI
    #[arg(long, value_name = "DEVICE", help_heading = "Devices")]
    device: Vec<String>,
    /// Is refused: without root of the machine no rule can be put on a cgroup's devices
    #[arg(long, value_name = "RULE", hide = true, help_heading = "Devices")]
    device_cgroup_rule: Vec<String>,
    /// all, a number, or device=ID,… of GPUs
    #[arg(long, value_name = "GPUS", help_heading = "Devices")]
    gpus: Vec<String>,
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"])]
    pub words: Vec<String>,
}

impl Run {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let Run { detach, attach, joining, mut options } = self;
        let mut streams = joining.streams(options.interactive, options.tty)?;
        if !attach.is_empty() {
            if detach {
                return Err(
                    parse::wrong("conflicting options: cannot specify both --attach and --detach".to_owned()).into()
                );
            }
            let is_asked = |name: &str| attach.iter().any(|stream| stream.eq_ignore_ascii_case(name));
            // As in Docker: what is joined is open.
            options.interactive |= is_asked("stdin");
            (streams.stdin, streams.stdout, streams.stderr) =
                (is_asked("stdin"), is_asked("stdout"), is_asked("stderr"));
        }
        if !detach {
            require_terminal(&streams)?;
        }
        let remove = options.rm;
        let Wanted { engine, request, cid_file } = options.want(globals, !detach)?;
        let comes_back = matches!(request.host.restart, Policy::Always | Policy::UnlessStopped);
        let (id, unstarted) = container::create_to_start(&engine, request)?;
        cid_file.write(&id)?;
        if !attach.is_empty() && !streams.stdout && !streams.stderr {
            // As in Docker: nothing else would be seen of it.
            line(&id)?;
        }
        let started = container::start::start(&engine, &id, (!detach).then_some(&streams));
        let attachment = match started {
            Ok(Started::Attached(attachment)) => attachment,
            Ok(Started::Detached) => {
                line(&id)?;
                if comes_back && !user_units().is_some_and(|units| is_enabled(&units)) {
                    warning("it comes back after a boot once `sublet system enable` has been run, and not before");
                }
                return Ok(0);
            }
            // With --rm the monitor removes it.
            Ok(Started::Interrupted { signal }) => return Ok(128 + signal as u8),
            Err(report) => {
                // The monitor may have removed it already.
                if remove
                    && let Err(second) = container::remove::remove(&engine, &id, With { force: true, volumes: true })
                    && second.kind() != Kind::NotFound
                {
                    warning(&second.to_string());
                }
                return Err(report.into());
            }
        };
        // It may run for long.
        drop(unstarted);
        // With --rm the monitor removes it; when the container has ended the relay has waited for that.
        Ok(relay(&engine, attachment)?.code() as u8)
    }
}

/// A container that is to be created, its image here.
pub struct Wanted {
    pub engine: Engine,
    pub request: CreateRequest,
    pub cid_file: CidFile,
}

impl ContainerOptions {
    /// Brings the image here if it is to be fetched. `attached` is whether the container is created to be attached to.
    pub fn want(mut self, globals: &Globals, attached: bool) -> Result<Wanted, Stop> {
        self.trust.check()?;
        let cid_file = CidFile::make(self.cidfile.take())?;
        if self.replace && self.name.is_none() {
            return Err(parse::wrong("cannot replace container without --name being set".to_owned()).into());
        }
        let quiet = self.quiet;
        let policy = self.pull.clone();
        let source = FileSource::parse(&self.words[0], home().as_deref());
        let from_file = source.is_some();
        self.words[0] = match source {
            Some(source) => {
                refuse_lock(self.locked.as_deref(), &self.words[0])?;
                let platform = self.platform.as_deref().map(str::parse).transpose()?;
                // By its id: its name may be one on a registry too.
                let progress = Progress::new(globals, Work::Load, quiet)?;
                let told = |event: &Event<'_>| progress.show(event);
                load_one(&globals.engine()?, &source, platform.as_ref(), &told)?.id.to_string()
            }
            None => parse::without_transport(&self.words[0]).to_owned(),
        };
        let pull = locked(PullRequest::new(&self.words[0], self.platform.as_deref())?, self.locked.as_deref())?;
        let mut request = self.into_request(attached)?;
        let engine = globals.engine()?;
        container::devices::check(&engine, &request.host)?;
        if !from_file {
            fetch(globals, &engine, &pull, &policy, quiet)?;
            if let Some(name) = image::lock::pin(&engine, &pull)? {
                request.image = name;
            }
        }
        Ok(Wanted { engine, request, cid_file })
    }

    /// Grammar first, then what files and environment say.
    fn into_request(self, attached: bool) -> Result<CreateRequest, Report> {
        fn each<T>(texts: &[String], parse: fn(&str) -> Result<T, Report>) -> Result<Vec<T>, Report> {
            texts.iter().map(|text| parse(text)).collect()
        }
        let mut volumes: Vec<Volume> = each(&self.volumes, volume)?;
        let mut tmpfs = each(&self.tmpfs, mounts::tmpfs)?;
        for text in &self.mounts {
            match mounts::mount(text)? {
                Mounted::Volume(volume) => volumes.push(below_here(*volume, text)?),
                Mounted::Memory(destination, options) => {
                    tmpfs.push(mounts::tmpfs(&format!("{destination}:{options}"))?);
                }
            }
        }
        volumes.extend(self.tz.as_deref().map(time_zone).transpose()?);
        let ports = self.publish.iter().map(|text| parse::publish(text)).collect::<Result<Vec<_>, _>>()?;
        let driver = self.storage_driver;
        if let Some(driver) = driver.as_ref().filter(|driver| !container::DRIVERS.contains(&driver.as_str())) {
            return Err(Report::new(Kind::Usage, format!("unknown storage driver {driver}"))
                .with_hint(format!("the drivers are {}", container::DRIVERS.join(", "))));
        }
        if let Some(rule) = self.device_cgroup_rule.first() {
            let text = format!(
                "--device-cgroup-rule {rule:?}: only root of the machine may say which devices a cgroup may use"
            );
            return Err(Report::new(Kind::Unsupported, text).with_hint(
                "a container has the devices of --device, as you may use them yourself, and can make no others",
            ));
        }
        if self.no_hosts && !self.add_host.is_empty() {
            return Err(parse::wrong("--no-hosts and --add-host cannot be set together".to_owned()));
        }
        let (devices, device_requests) = devices(&self.device, &self.gpus)?;
        let network = self.network.into_networks()?;
        let mut host = HostSettings {
            network: network.mode,
            networks: network.shared,
            ports: ports.concat(),
            publish_all: self.publish_all,
            volumes,
            tmpfs,
            volumes_from: each(&self.volumes_from, mounts::volumes_from)?,
            size_bytes: each(&self.storage_opt, mounts::storage_option)?.pop(),
            ip: network.ip,
            ip6: network.ip6,
            mac_address: network.mac_address,
            egress: network.egress,
            net_rate: network.rate,
            dns: self.dns,
            dns_search: each(&self.dns_search, parse::dns_search)?,
            dns_options: each(&self.dns_option, parse::dns_option)?,
            add_hosts: each(&self.add_host, parse::add_host)?,
            no_hosts: self.no_hosts,
            umask: self.umask.as_deref().map(parse::umask).transpose()?,
            // As in Podman, 0 asks for nothing.
            timeout_s: self.timeout.filter(|seconds| *seconds > 0),
            read_only: self.read_only,
            init: self.init,
            auto_remove: self.rm,
            restart: parse::restart(&self.restart)?,
            pid_file: self
                .pidfile
                .map(std::path::absolute)
                .transpose()
                .map_err(|error| Report::of(Kind::Usage, error))?,
            log: parse::log(&self.log_driver, &self.log_opt)?,
            host_home: self.host_home,
            storage_driver: driver,
            devices,
            device_requests,
            ..HostSettings::default()
        };
        self.isolation.apply(&mut host)?;
        self.limits.request()?.apply(&mut host);
        let health_check = self.health.health_check()?;
        let labels = [label_files(&self.label_file)?, each(&self.label, parse::label)?].concat();
        let mut words = self.words.into_iter();
        let mut request = CreateRequest {
            name: self.name,
            replace: self.replace,
            image: words.next().unwrap_or_default(),
            command: words.collect(),
            // An empty one resets the image's.
            entrypoint: self.entrypoint.map(|program| if program.is_empty() { Vec::new() } else { vec![program] }),
            workdir: self.workdir,
            user: self.user,
            hostname: self.hostname,
            domainname: self.domainname,
            stop_signal: self.stop_signal,
            stop_timeout: self.stop_timeout,
            exposed_ports: each(&self.expose, parse::expose)?.concat(),
            tty: self.tty,
            stdin: self.interactive,
            attached,
            labels: labels.into_iter().collect(),
            health_check,
            host,
            ..CreateRequest::default()
        };
        self.variables.apply(&mut request)?;
        Ok(request)
    }
}

/// A file for a container's id. Made before there is a container, it goes again where none is made.
pub struct CidFile(Option<(PathBuf, File)>);

impl CidFile {
    fn make(path: Option<PathBuf>) -> Result<Self, Report> {
        let made = path.map(|path| match File::create_new(&path) {
            Ok(file) => Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let text = "container ID file found, make sure the other container isn't running or delete";
                Err(Report::new(Kind::Conflict, format!("{text} {}", path.display())))
            }
            Err(error) => {
                let step = format!("failed to create the container ID file {}", path.display());
                Err(Report::of(Kind::Usage, error).with_step(step))
            }
        });
        Ok(CidFile(made.transpose()?))
    }

    /// Writes the id of the container that has been made.
    pub fn write(mut self, id: &ContainerId) -> Result<(), Report> {
        let Some((path, mut file)) = self.0.take() else { return Ok(()) };
        let written = file.write_all(id.as_str().as_bytes()).map_err(|error| Report::of(Kind::Internal, error));
        written.step(|| format!("failed to write the container ID to the file {}", path.display()))
    }
}

impl Drop for CidFile {
    fn drop(&mut self) {
        if let Some((path, _)) = &self.0 {
            // What is left is empty.
            let _ = fs::remove_file(path);
        }
    }
}

/// A terminal whose input is not one would never be usable; Docker refuses it with code 1.
pub fn require_terminal(streams: &Streams) -> Result<(), Stop> {
    if !(streams.tty && streams.stdin) || io::stdin().is_terminal() {
        return Ok(());
    }
    let report = Report::new(Kind::Usage, "the input device is not a TTY").with_hint("leave -t out");
    error(&report);
    Err(Stop::Quiet(1))
}

/// Fetches the image if the policy says so.
fn fetch(globals: &Globals, engine: &Engine, request: &PullRequest, policy: &str, quiet: bool) -> Result<(), Stop> {
    if request.is_host() {
        return Ok(());
    }
    // Of the names that a short one may mean, the locked one counts.
    let text = image::lock::name(engine, request)?.map_or_else(|| request.text.clone(), |name| name.to_string());
    let found = image::platform_of(engine, &text)?;
    let progress = Progress::new(globals, Work::Fetch, quiet)?;
    match (policy, found, request.platform()) {
        ("always", ..) => {}
        (_, Some(found), None) => {
            let here = Platform::host();
            if here.rank(&found).is_none() {
                let text = format!("the image's platform ({found}) does not match this machine's ({here})");
                progress.show(&Event::Warning { text: &text });
            }
            return Ok(());
        }
        (_, Some(found), Some(wanted)) if wanted.rank(&found).is_some() => return Ok(()),
        ("never", Some(found), Some(wanted)) => {
            let name = request.familiar();
            let text = format!(
                "image {name} was found but does not provide the specified platform ({wanted}): it is for {found}"
            );
            return Err(Report::new(Kind::NotFound, text).into());
        }
        ("never", ..) => {
            return Err(Report::new(Kind::NotFound, format!("No such image: {}", request.text)).into());
        }
        _ => progress.line(&format!("Unable to find image '{}' locally", request.familiar())),
    }
    image::pull(engine, request, &|event| progress.show(event))?;
    Ok(())
}

/// The labels of `--label-file`: a line each, comments and empty lines left out.
fn label_files(files: &[String]) -> Result<Vec<(String, String)>, Report> {
    let mut labels = Vec::new();
    for file in files {
        let text = fs::read_to_string(file).map_err(|error| Report::of(Kind::Usage, error));
        let text = text.step(|| format!("reading --label-file {file}"))?;
        let lines = text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
        for line in lines {
            labels.push(parse::label(line)?);
        }
    }
    Ok(labels)
}

fn volume(text: &str) -> Result<Volume, Report> {
    below_here(mounts::volume(text)?, text)
}

/// A directory of the host by a path that begins with a dot is below the one we are in.
fn below_here(mut volume: Volume, text: &str) -> Result<Volume, Report> {
    if let VolumeSource::Path(path) = &mut volume.source {
        *path = std::path::absolute(&*path).map_err(|error| Report::of(Kind::Usage, error)).step(|| text.to_owned())?;
    }
    Ok(volume)
}

/// `--tz`: the machine's file of a zone in the place where programs look for theirs.
fn time_zone(zone: &str) -> Result<Volume, Report> {
    const ZONES: &str = "/usr/share/zoneinfo";
    let is_name = |name: &str| !name.is_empty() && name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    let path = match zone {
        "local" => PathBuf::from("/etc/localtime"),
        name if is_name(name) => Path::new(ZONES).join(name),
        _ => return Err(parse::wrong(format!("--tz {zone}: it is no name of a time zone"))),
    };
    // The file itself: in the container a link would lead elsewhere.
    let file = fs::canonicalize(&path).and_then(|file| fs::metadata(&file).map(|metadata| (file, metadata)));
    match file {
        Ok((file, metadata)) if metadata.is_file() => Ok(Volume {
            source: VolumeSource::Path(file),
            destination: "/etc/localtime".to_owned(),
            read_only: true,
            must_exist: true,
            ..Volume::default()
        }),
        Ok(_) => Err(parse::wrong(format!("--tz {zone}: {} is no file of a time zone", path.display()))),
        Err(error) => {
            Err(Report::of(Kind::Usage, error).with_step(format!("--tz {zone}: looking at {}", path.display())))
        }
    }
}

/// `--device` and `--gpus`: paths, and requests in Docker's order, those of GPUs first.
fn devices(devices: &[String], gpus: &[String]) -> Result<(Vec<DeviceMapping>, Vec<DeviceRequest>), Report> {
    let (names, paths): (Vec<&String>, Vec<&String>) = devices.iter().partition(|text| parse::is_cdi_device(text));
    let mappings = paths.into_iter().map(|text| parse::device(text)).collect::<Result<_, _>>()?;
    let mut requests = gpus.iter().map(|text| parse::gpus(text)).collect::<Result<Vec<_>, _>>()?;
    if !names.is_empty() {
        let device_ids = names.into_iter().cloned().collect();
        requests.push(DeviceRequest { driver: "cdi".to_owned(), device_ids, ..DeviceRequest::default() });
    }
    Ok((mappings, requests))
}
