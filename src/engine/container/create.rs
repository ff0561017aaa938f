//! Creating a container: request and image become a record under a reserved name. Nothing is started or mounted.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use base::units::parse_signal;
use base::{ContainerId, Context, Kind, Report};
use oci::{HealthCheck, ImageConfig, ImageName};
use snapshot::Driver;
use sys::file::sync_directory;

use crate::Engine;
use crate::container::lock::make_container_dir;
use crate::container::record::{self, HostSettings, ImageOrigin, Record, Settings, Volume, VolumeSource};
use crate::container::remove::With;
use crate::container::unstarted::{self, Unstarted};
use crate::container::{
    driver, elsewhere, health, isolation, limits, log_driver, lookup, names, network, remove, restart, spec,
};
use crate::events;
use crate::file::failed;
use crate::image;
use crate::volume;

/// What a container is to be. What is `None` comes from the image.
#[derive(Clone, Debug, Default)]
pub struct CreateRequest {
    /// Its name; one is made when there is none.
    pub name: Option<String>,
    /// Whether the container that has the name is removed first.
    pub replace: bool,
    /// The image, as the user wrote it.
    pub image: String,
    /// In place of the image's entry point; an empty one resets it.
    pub entrypoint: Option<Vec<String>>,
    /// In place of the image's command.
    pub command: Vec<String>,
    /// `NAME=value`; `NAME` alone takes the name out.
    pub env: Vec<String>,
    /// `NAME=value` below those of the image.
    pub env_below: Vec<String>,
    /// Whether the image's own variables are left out.
    pub without_image_env: bool,
    /// Where it starts.
    pub workdir: Option<String>,
    /// `USER[:GROUP]`.
    pub user: Option<String>,
    /// Its host name; else the beginning of its id.
    pub hostname: Option<String>,
    /// Its NIS domain name.
    pub domainname: Option<String>,
    /// The signal that asks it to stop.
    pub stop_signal: Option<String>,
    /// How many seconds it then has; less than 0 is no limit.
    pub stop_timeout: Option<i64>,
    /// `80/tcp`: what it listens on beside what the image says.
    pub exposed_ports: Vec<String>,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether its standard input is open.
    pub stdin: bool,
    /// Whether it is created to be attached to.
    pub attached: bool,
    /// Labels over the image's.
    pub labels: BTreeMap<String, String>,
    /// How it is asked whether it works; what is not said is as the image says.
    pub health_check: Option<HealthCheck>,
    /// How it is bound to the machine.
    pub host: HostSettings,
}

/// Creates a container from an image that is here. The answer is its id; its record is on the disk.
pub fn create(engine: &Engine, request: CreateRequest) -> Result<ContainerId, Report> {
    let id = ContainerId::from_random(sys::random()?);
    make(engine, request, &id, true)?;
    Ok(id)
}

/// The same for a caller that starts it at once: one that is to be removed at its end is removed too when the caller is
/// killed before it has started it, which is until it lets go of the second part of the answer.
pub fn create_to_start(engine: &Engine, request: CreateRequest) -> Result<(ContainerId, Option<Unstarted>), Report> {
    let id = ContainerId::from_random(sys::random()?);
    let unstarted = request.host.auto_remove.then(|| Unstarted::hold(engine, &id)).transpose()?;
    make(engine, request, &id, unstarted.is_none())?;
    Ok((id, unstarted))
}

/// With `sync` it lasts through a power loss.
fn make(engine: &Engine, mut request: CreateRequest, id: &ContainerId, sync: bool) -> Result<(), Report> {
    unstarted::sweep(engine);
    remove::sweep(engine);
    // As in Docker: `-u "$UNSET"` asks for nothing, least of all for root.
    for text in [
        &mut request.name,
        &mut request.user,
        &mut request.workdir,
        &mut request.hostname,
        &mut request.domainname,
        &mut request.stop_signal,
    ] {
        text.take_if(|text| text.is_empty());
    }
    if let Some(workdir) = &request.workdir {
        check_workdir(workdir)?;
    }
    if let Some(name) = &request.name {
        names::check(name)?;
    }
    volumes_from(engine, &mut request.host)?;
    check_volumes(&request.host)?;
    limits::check(&request.host)?;
    restart::check(&request.host)?;
    isolation::check(engine, &mut request)?;
    log_driver::check(engine, &request.host.log)?;
    request.stop_signal.as_deref().map_or(Ok(0), parse_signal)?;
    let reference = request.image.clone();
    let image: ImageName = reference.parse()?;
    if request.host.host_home && !matches!(image, ImageName::Host) {
        return Err(Report::new(Kind::Usage, format!("--host-home: image {reference} has no home of the host"))
            .with_hint("it is for the image host:; else give the directory with -v"));
    }
    network::check(engine, &mut request, id)?;
    driver::check_size(&request.host, matches!(image, ImageName::Host))?;
    if let Some(driver) = request.host.storage_driver.as_deref().and_then(Driver::from_name) {
        driver::above_an_image(driver, matches!(image, ImageName::Host))?;
    }
    // The lease is held until the record is written.
    let (local, _lease) = if matches!(image, ImageName::Host) {
        (None, None)
    } else {
        let (config, lease) = image::find_to_use(engine, &reference)?;
        (Some(config), Some(lease))
    };
    if let Some(name) = request.name.as_ref().filter(|_| request.replace) {
        make_room(engine, name)?;
    }
    elsewhere::introduce(engine);
    let (name, reservation) = match &request.name {
        Some(name) => (name.clone(), names::reserve(engine, name, id, sync)?),
        None => names::reserve_any(engine, id, sync)?,
    };
    let made = write(engine, request, local.as_ref(), id, &name, sync);
    made.inspect(|()| events::of_container(engine, id, "create", &[])).map_err(|report| {
        // The first failure is the one to tell; a record that is half there is not found by any command.
        let _ = fs::remove_dir_all(engine.paths().container(id));
        let _ = reservation.give_back();
        report.with_step(format!("cannot create container {name}"))
    })
}

/// Removes the container that has a name.
fn make_room(engine: &Engine, name: &str) -> Result<(), Report> {
    let Some(id) = lookup::named(engine, name)? else { return Ok(()) };
    match remove::remove(engine, &id, With { force: true, volumes: false }) {
        Err(report) if report.kind() != Kind::NotFound => Err(report.with_step(format!("replacing container {name}"))),
        _ => Ok(()),
    }
}

fn write(
    engine: &Engine,
    request: CreateRequest,
    local: Option<&ImageConfig>,
    id: &ContainerId,
    name: &str,
    sync: bool,
) -> Result<(), Report> {
    let mut host = request.host.clone();
    image_volumes(local, &mut host)?;
    let reference = request.image.clone();
    // Before there are volumes: what it refuses leaves none.
    let settings = merge(engine, request, local, id)?;
    // Nobody removes them before the record names them.
    let mut held = Vec::new();
    for volume in &mut host.volumes {
        // What goes with the container need not outlive a power loss either.
        let sync = sync || !volume.anonymous;
        if let VolumeSource::Named(name) = &mut volume.source {
            if name.is_empty() {
                *name = volume::create::random_name()?;
            }
            let (mut labels, options) = (volume.labels.clone(), volume.driver_options.clone());
            if volume.anonymous {
                labels.insert(volume::ANONYMOUS.to_owned(), String::new());
            }
            let request = volume::create::CreateRequest { name: Some(name.clone()), labels, options };
            held.push(volume::create::claim(engine, request, sync)?);
        }
    }
    sys::step();
    let record = Record {
        format: record::FORMAT,
        id: id.clone(),
        name: name.to_owned(),
        created_at: base::time::rfc3339(SystemTime::now()),
        image: ImageOrigin {
            reference,
            id: local.map(|config| config.digest),
            chain: local.and_then(ImageConfig::chain_id),
            platform: local.map(|config| config.platform.clone()),
            layers: local.iter().flat_map(|config| &config.diff_ids).map(|diff_id| diff_id.0).collect(),
        },
        host,
        settings,
    };
    make_container_dir(engine, id)?;
    record.save(engine, sync).step(|| "writing its record".to_owned())?;
    if !sync {
        return Ok(());
    }
    let directory = engine.paths().containers();
    sync_directory(&directory).map_err(|error| failed("syncing", &directory, error))
}

/// The image's configuration under the request's, by Docker's rules.
fn merge(
    engine: &Engine,
    request: CreateRequest,
    local: Option<&ImageConfig>,
    id: &ContainerId,
) -> Result<Settings, Report> {
    let config = local.and_then(|config| config.spec.config().clone()).unwrap_or_default();
    let of_image = config.env().clone().filter(|_| !request.without_image_env).unwrap_or_default();
    let mut settings = Settings {
        workdir: request.workdir.or_else(|| config.working_dir().clone()).unwrap_or_default(),
        user: request.user.or_else(|| config.user().clone()).unwrap_or_default(),
        hostname: match request.hostname {
            Some(name) => name,
            None => network::hostname(engine, &request.host)?.unwrap_or_else(|| id.short().to_owned()),
        },
        domainname: request.domainname.unwrap_or_default(),
        tty: request.tty,
        stdin: request.stdin,
        attached: request.attached,
        stop_signal: request.stop_signal.or_else(|| config.stop_signal().clone()).unwrap_or_default(),
        stop_timeout: request.stop_timeout,
        env: merge_env([request.env_below, of_image].concat(), request.env),
        ..Settings::default()
    };
    // A new entry point takes the image's command away, as its words meant the old one.
    settings.command = match (&request.entrypoint, request.command.is_empty()) {
        (None, true) => config.cmd().clone().unwrap_or_default(),
        _ => request.command,
    };
    settings.entrypoint = match request.entrypoint {
        Some(words) => words,
        None => config.entrypoint().clone().unwrap_or_default(),
    };
    if settings.entrypoint.is_empty() && settings.command.is_empty() {
        if local.is_some() {
            return Err(Report::new(Kind::Usage, "no command specified")
                .with_hint("the image names no command: write one after the image"));
        }
        settings.command = vec!["/bin/bash".to_owned()];
    }
    settings.labels.extend(config.labels().clone().unwrap_or_default());
    settings.labels.extend(request.labels);
    let docker = local.map(ImageConfig::docker).transpose()?.unwrap_or_default();
    settings.shell = docker.shell.unwrap_or_default();
    settings.health_check = match request.health_check {
        Some(asked) => Some(asked.over(docker.health_check.unwrap_or_default())),
        None => docker.health_check,
    };
    settings.health_check.as_ref().map_or(Ok(()), health::check)?;
    settings.exposed_ports = config.exposed_ports().clone().unwrap_or_default();
    settings.exposed_ports.extend(request.exposed_ports);
    for port in &request.host.ports {
        settings.exposed_ports.push(format!("{}/{}", port.container_port, port.protocol.as_str()));
    }
    for port in &mut settings.exposed_ports {
        if !port.contains('/') {
            port.push_str("/tcp");
        }
    }
    settings.exposed_ports.sort();
    settings.exposed_ports.dedup();
    Ok(settings)
}

/// Later ones win, each keeps the place of its first mention; a name without `=` is taken out.
fn merge_env(given: Vec<String>, request: Vec<String>) -> Vec<String> {
    let mut merged: Vec<String> = Vec::new();
    for entry in given.into_iter().chain(request) {
        let name = entry.split('=').next().unwrap_or_default().to_owned();
        let place = merged.iter().position(|old| old.split('=').next() == Some(&name));
        match (place, entry.contains('=')) {
            (Some(place), true) => merged[place] = entry,
            (Some(place), false) => drop(merged.remove(place)),
            (None, true) => merged.push(entry),
            (None, false) => {}
        }
    }
    merged
}

/// A directory to start in is absolute.
pub(crate) fn check_workdir(workdir: &str) -> Result<(), Report> {
    if workdir.starts_with('/') {
        return Ok(());
    }
    let message = format!("the working directory '{workdir}' is invalid, it needs to be an absolute path");
    Err(Report::new(Kind::Usage, message))
}

/// Where something was asked to be mounted.
fn destinations(host: &HostSettings) -> impl Iterator<Item = &str> {
    let volumes = host.volumes.iter().map(|volume| volume.destination.as_str());
    volumes.chain(host.tmpfs.iter().map(|(destination, _)| destination.as_str()))
}

/// Adds the volumes that other containers have, where nothing else was asked for.
fn volumes_from(engine: &Engine, host: &mut HostSettings) -> Result<(), Report> {
    for (name, read_only) in std::mem::take(&mut host.volumes_from) {
        let other = record::load(engine, &lookup::find(engine, &name)?)?;
        let is_free = |one: &Volume| destinations(host).all(|taken| taken != one.destination);
        let volumes: Vec<Volume> = other.host.volumes.into_iter().filter(is_free).collect();
        // They stay when this container goes: they are the other one's.
        host.volumes.extend(volumes.into_iter().map(|volume| Volume {
            read_only: volume.read_only || read_only,
            anonymous: false,
            no_copy: true,
            ..volume
        }));
    }
    Ok(())
}

/// Anonymous volumes at the places that the image names, where nothing else was asked for.
fn image_volumes(local: Option<&ImageConfig>, host: &mut HostSettings) -> Result<(), Report> {
    /// What the engine mounts in every container, and what lies below, an image does not replace.
    const OURS: [&str; 3] = ["/proc", "/sys", "/dev"];
    let named = local.and_then(|config| config.spec.config().as_ref()?.volumes().clone()).unwrap_or_default();
    for destination in named {
        let refuse = |why: String| {
            Report::new(Kind::Unsupported, format!("the image's volume {destination:?}: {why}"))
                .with_hint("the image is to be mended: its VOLUME can be at no such place")
        };
        let destination = match volume::destination(&format!("/{destination}")) {
            Ok(place) if OURS.iter().any(|ours| Path::new(&place).starts_with(ours)) => {
                return Err(refuse(format!("{place} is for the container's own file systems")));
            }
            Ok(place) => place,
            Err(why) => return Err(refuse(why)),
        };
        if destinations(host).all(|taken| taken != destination) {
            host.volumes.push(Volume { destination, anonymous: true, ..Volume::default() });
        }
    }
    Ok(())
}

fn check_volumes(host: &HostSettings) -> Result<(), Report> {
    for volume in &host.volumes {
        check_volume(volume)?;
    }
    let mut seen: Vec<&str> = Vec::new();
    for destination in destinations(host) {
        if seen.contains(&destination) {
            return Err(Report::new(Kind::Usage, format!("Duplicate mount point: {destination}")));
        }
        seen.push(destination);
    }
    Ok(())
}

/// Refuses a source that is to be there and is not, and what this machine cannot do.
fn check_volume(volume: &Volume) -> Result<(), Report> {
    let refuse = |text: &str, hint: &str| {
        let text = format!("{}: {text}", volume.destination);
        Err(Report::new(Kind::Unsupported, text).with_hint(hint))
    };
    if let VolumeSource::Path(path) = &volume.source
        && volume.must_exist
        && fs::symlink_metadata(path).is_err()
    {
        return Err(spec::missing_source(path));
    }
    if volume.relabel && Path::new("/sys/fs/selinux/enforce").exists() {
        return refuse(
            "z and Z would label the files for SELinux, and that is not built",
            "label them yourself: chcon -R -t container_file_t DIRECTORY",
        );
    }
    if volume.cow && volume.subpath.is_some() {
        return refuse(
            "writes to a part of a volume cannot be kept from it (cow, subpath)",
            "keep those to the whole volume, or bind a directory of the host",
        );
    }
    // Binds of real root are shifted in any case.
    if volume.idmap && !nix::unistd::geteuid().is_root() {
        return refuse(
            "idmap: only root may shift the owners of the host's mounts",
            "with --userns=keep-id your files are yours inside; U gives them to the container's user",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_merged_by_name() {
        let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let merged = merge_env(texts(&["PATH=/bin", "A=1", "B=2"]), texts(&["A=x=y", "C=3", "B"]));
        assert_eq!(merged, ["PATH=/bin", "A=x=y", "C=3"]);
    }
}
