//! The hooks of the container's devices that run in the runtime's namespaces, those of the monitor.
//!
//! Each is waited for, up to its timeout, and nothing else is done meanwhile: a start goes on only when they have
//! ended, and what is asked of the monitor is answered then. What one that is killed owes is run by its successor, or by the
//! command that notices the end.

use std::collections::BTreeMap;
use std::path::Path;

use base::Report;
use oci_spec::runtime::{Hook, Hooks};
use runtime::hooks::{State, VERSION, run, run_all};
use runtime::launch::HookContext;
use serde::{Deserialize, Serialize};

use crate::role::{MAIN, Monitor};

/// What the monitor runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RuntimeHooks {
    /// All hooks; those of the kinds createContainer and startContainer are init's.
    pub hooks: Hooks,
    /// What they are told.
    pub context: HookContext,
}

impl RuntimeHooks {
    fn state(&self, status: &'static str, pid: i32) -> State<'_> {
        let HookContext { id, bundle } = &self.context;
        State { oci_version: VERSION, id, status, pid, bundle, annotations: BTreeMap::new() }
    }

    /// Runs all of the kind poststop, whatever fails, which `told` gets.
    pub fn poststop(&self, told: &mut dyn FnMut(&Report)) {
        run_all("poststop", list(self.hooks.poststop().as_ref()), &self.state("stopped", 0), Path::new("/"), told);
    }
}

fn list(hooks: Option<&Vec<Hook>>) -> &[Hook] {
    hooks.map(Vec::as_slice).unwrap_or_default()
}

impl Monitor {
    /// The mounts are made and init waits.
    pub(super) fn on_mounted(&mut self) -> Result<(), Report> {
        let Some(main) = self.processes.get(&MAIN) else { return Ok(()) };
        if let (Some(all), Some(pid)) = (&self.config.hooks, main.pid) {
            // These were called before there was a word for it, and expect the next one.
            #[allow(deprecated, reason = "spec files may have it")]
            run("prestart", list(all.hooks.prestart().as_ref()), &all.state("created", pid), Path::new("/"))?;
            let hooks = list(all.hooks.create_runtime().as_ref());
            run("createRuntime", hooks, &all.state("creating", pid), Path::new("/"))?;
        }
        main.resume()
    }

    /// The payload runs.
    pub(super) fn poststart(&self, pid: i32) -> Result<(), Report> {
        let Some(all) = &self.config.hooks else { return Ok(()) };
        run("poststart", list(all.hooks.poststart().as_ref()), &all.state("running", pid), Path::new("/"))
    }

    /// Nothing of the container is left but its files.
    pub(super) fn poststop(&mut self) {
        let Some(all) = self.config.hooks.clone() else { return };
        all.poststop(&mut |report| self.notice(MAIN, &report.lines().join(": ")));
    }
}
