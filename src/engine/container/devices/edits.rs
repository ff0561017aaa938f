//! `containerEdits` in the words of the runtime specification.

use std::path::{Path, PathBuf};

use base::{Kind, Report};
use cdi::{ContainerEdits, DeviceNode, HookName};
use nix::sys::stat::{SFlag, lstat, major, minor};
use oci_spec::runtime::{Hook, Hooks, LinuxDevice, LinuxDeviceType, Mount};
use sys::{Errno, SysError};

use super::{Devices, host};

/// The time of a hook that has none by its spec file: what waits for a monitor that waits for a hook must not wait for
/// ever.
const HOOK_TIMEOUT_S: i64 = 120;

impl Devices {
    /// Makes these edits, of which later ones win.
    pub(super) fn edit(&mut self, edits: &ContainerEdits) -> Result<(), Report> {
        for node in &edits.device_nodes {
            let step = || format!("adding the device {}", node.path.display());
            self.add_node(node).map_err(|report| report.with_step(step()))?;
        }
        for edit in &edits.mounts {
            let typ = if edit.is_bind() { Some("bind".to_owned()) } else { edit.typ.clone() };
            let mut mount = Mount::default();
            mount
                .set_destination(edit.container_path.clone())
                .set_source(Some(edit.host_path.clone()))
                .set_typ(typ)
                .set_options(Some(edit.options.clone()));
            self.mounts.retain(|other| other.destination() != mount.destination());
            self.mounts.push(mount);
        }
        if !edits.hooks.is_empty() {
            self.hooks = Some(hooks(&edits.hooks));
        }
        self.given.env.extend(edits.env.iter().cloned());
        self.given.gids.extend(edits.additional_gids.iter().copied());
        Ok(())
    }

    fn add_node(&mut self, node: &DeviceNode) -> Result<(), Report> {
        let (device, host) = self.fill(node)?;
        let permissions = node.permissions.as_deref().filter(|permissions| !permissions.is_empty()).unwrap_or("rw");
        if permissions == "none" || !['r', 'w'].iter().all(|one| permissions.contains(*one)) {
            self.steps_down.push(format!(
                "device {}: permissions {permissions:?} cannot be enforced without a device cgroup, which only root of \
                 the host has; the node's mode decides",
                node.path.display()
            ));
        }
        self.nodes.retain(|(other, _)| other.path() != device.path());
        self.nodes.push((device, host));
        Ok(())
    }

    /// The node with what it does not say from the host's, and the place of that.
    fn fill(&mut self, node: &DeviceNode) -> Result<(LinuxDevice, Option<PathBuf>), Report> {
        let path = node.on_host();
        let typ = node.typ.as_deref().filter(|typ| !typ.is_empty());
        let given = typ.is_some() && (node.major != 0 || typ == Some("p"));
        let mut device = LinuxDevice::default();
        device.set_path(node.path.clone()).set_uid(node.uid).set_gid(node.gid).set_file_mode(node.file_mode);
        let stat = match lstat(path) {
            // Init may find it under another name.
            Err(Errno::ENOENT) if given => {
                device.set_typ(type_of(typ)).set_major(node.major).set_minor(node.minor);
                return Ok((device, None));
            }
            stat => stat.map_err(|errno| SysError::new(format!("lstat({path:?})"), errno))?,
        };
        let (found, number) = match host::kind(&stat) {
            SFlag::S_IFCHR => (LinuxDeviceType::C, (major(stat.st_rdev) as i64, minor(stat.st_rdev) as i64)),
            SFlag::S_IFBLK => (LinuxDeviceType::B, (major(stat.st_rdev) as i64, minor(stat.st_rdev) as i64)),
            SFlag::S_IFIFO => (LinuxDeviceType::P, (0, 0)),
            _ => return Err(Report::new(Kind::Usage, format!("{} is not a device", path.display()))),
        };
        let wanted = if node.major == 0 { number } else { (node.major, node.minor) };
        let wanted_type = typ.map_or(found, |_| type_of(typ));
        if wanted_type != found {
            return Err(mismatch(path, &format!("type {}", found.as_str()), &format!("type {}", wanted_type.as_str())));
        }
        if wanted != number {
            let show = |(major, minor): (i64, i64)| format!("number {major}:{minor}");
            return Err(mismatch(path, &show(number), &show(wanted)));
        }
        if host::is_by_group(&stat) {
            self.by_group.get_or_insert_with(|| path.to_owned());
        }
        device.set_typ(found).set_major(number.0).set_minor(number.1);
        device.set_file_mode(Some(node.file_mode.unwrap_or(stat.st_mode & 0o777)));
        Ok((device, (found != LinuxDeviceType::P).then(|| path.to_owned())))
    }
}

fn type_of(typ: Option<&str>) -> LinuxDeviceType {
    match typ {
        Some("b") => LinuxDeviceType::B,
        Some("p") => LinuxDeviceType::P,
        // `u` is a character device that is not buffered, which on Linux all are.
        _ => LinuxDeviceType::C,
    }
}

fn mismatch(path: &Path, found: &str, wanted: &str) -> Report {
    Report::new(Kind::Conflict, format!("{} has the {found}, and its spec file says {wanted}", path.display()))
        .with_hint("the spec file is of another machine or an older boot: make it anew")
}

/// The hooks by their kinds.
fn hooks(list: &[cdi::Hook]) -> Hooks {
    let of = |name: HookName| {
        let hooks: Vec<Hook> = list.iter().filter(|hook| hook.hook_name == name).map(hook).collect();
        (!hooks.is_empty()).then_some(hooks)
    };
    let mut hooks = Hooks::default();
    #[allow(deprecated, reason = "spec files may have it")]
    hooks.set_prestart(of(HookName::Prestart));
    hooks
        .set_create_runtime(of(HookName::CreateRuntime))
        .set_create_container(of(HookName::CreateContainer))
        .set_start_container(of(HookName::StartContainer))
        .set_poststart(of(HookName::Poststart))
        .set_poststop(of(HookName::Poststop));
    hooks
}

fn hook(hook: &cdi::Hook) -> Hook {
    let mut made = Hook::default();
    made.set_path(hook.path.clone())
        .set_args((!hook.args.is_empty()).then(|| hook.args.clone()))
        .set_env(Some(hook.env.clone()))
        .set_timeout(Some(hook.timeout.unwrap_or(HOOK_TIMEOUT_S)));
    made
}
