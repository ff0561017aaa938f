//! Devices: what `--device` and `--gpus` ask for becomes edits of the specification.
//!
//! A path of the host ([`host`]), a device of a spec file and a GPU that no spec file describes ([`requests`]) all come
//! as `containerEdits` of the Container Device Interface; [`edits`] turns those into the runtime specification's words.
//! They are resolved at each start, as numbers of devices, drivers and spec files change between two; the record holds
//! only what was asked for. What the processes of the container get of them, its later ones too, is written down by the
//! start ([`Given`]).
//!
//! No device cgroup can be had in a user namespace, so what a process may do with a node is what its mode allows.

mod edits;
mod given;
mod host;
mod requests;

use std::path::PathBuf;

use base::{Kind, Report};
use cdi::{ContainerEdits, DEFAULT_DIRECTORIES, Registry};
use oci_spec::runtime::{Hooks, LinuxDevice, Mount};

use crate::Engine;
use crate::container::record::HostSettings;

pub(crate) use given::Given;

/// What the devices of a container change of its specification.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    /// Nodes, with their paths on the host where they are there.
    pub nodes: Vec<(LinuxDevice, Option<PathBuf>)>,
    /// Mounts, which take the place of others on the same path.
    pub mounts: Vec<Mount>,
    /// Hooks.
    pub hooks: Option<Hooks>,
    /// What its processes get.
    pub given: Given,
    /// A node that the caller may open as a member of a supplementary group only.
    pub by_group: Option<PathBuf>,
    /// What was asked for and cannot be kept, a line each.
    pub steps_down: Vec<String>,
    /// What else the user should know, a line each.
    pub notices: Vec<String>,
}

impl Devices {
    /// What these settings ask for, as far as the host has it.
    pub(crate) fn resolve(engine: &Engine, host: &HostSettings) -> Result<Self, Report> {
        let mut devices = Devices::default();
        let mut all = ContainerEdits::default();
        for mapping in &host.devices {
            let step = || format!("adding the device {}", mapping.path_on_host.display());
            let nodes = host::nodes(mapping, &mut devices.steps_down).map_err(|report| report.with_step(step()))?;
            all.device_nodes.extend(nodes);
        }
        if host.privileged {
            all.device_nodes.extend(host::all(host.keeps_groups())?);
        }
        if !host.device_requests.is_empty() {
            let registry = Registry::read(&directories(engine));
            let found = requests::find(&host.device_requests, &registry)?;
            devices.notices.extend(registry.skipped().iter().map(|skipped| format!("CDI: {skipped}")));
            all.append(&found.edits);
            devices.given.search = found.search;
            devices.steps_down.extend(found.missing);
        }
        devices.edit(&all)?;
        Ok(devices)
    }
}

/// Refuses devices that cannot be had, before anything is fetched or made.
pub fn check(engine: &Engine, host: &HostSettings) -> Result<(), Report> {
    let devices = Devices::resolve(engine, host)?;
    match devices.steps_down.first().filter(|_| engine.options().strict) {
        Some(line) => engine.step_down(line),
        None => Ok(()),
    }
}

fn directories(engine: &Engine) -> Vec<PathBuf> {
    match engine.options().cdi_spec_dirs.as_slice() {
        [] => DEFAULT_DIRECTORIES.map(PathBuf::from).to_vec(),
        named => named.to_vec(),
    }
}

/// A request that makes no sense.
fn wrong(message: impl Into<String>) -> Report {
    Report::new(Kind::Usage, message)
}
