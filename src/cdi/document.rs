//! A spec file as data: bytes come in, a checked document goes out.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use base::{Explain, Kind};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::name::{NameError, check_kind, check_name};
use crate::yaml::{YamlError, to_json};

/// The versions that have been released; each reads all before it.
const VERSIONS: [&str; 10] = ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];
/// More devices than this are in no spec file.
const DEVICES_MAX: usize = 4096;

/// A spec file.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// `vendor.com/class`.
    pub kind: String,
    /// The edits for each device, by its name.
    pub devices: BTreeMap<String, ContainerEdits>,
    /// The edits that are made once where any of the devices is asked for.
    pub edits: ContainerEdits,
}

/// `containerEdits`: changes of a container's specification.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ContainerEdits {
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Device nodes.
    pub device_nodes: Vec<DeviceNode>,
    /// Mounts.
    pub mounts: Vec<Mount>,
    /// Programs to run beside the container's life.
    pub hooks: Vec<Hook>,
    /// Groups for the container's process, by their numbers inside; 0 means nothing.
    pub additional_gids: Vec<u32>,
    /// Only whether it is there, as it cannot be carried out.
    pub(crate) intel_rdt: Option<IgnoredAny>,
    /// Likewise.
    pub(crate) net_devices: Vec<IgnoredAny>,
}

/// A device node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceNode {
    /// In the container.
    pub path: PathBuf,
    /// On the host, where it is another.
    pub host_path: Option<PathBuf>,
    /// `b`, `c`, `u` or `p`.
    #[serde(rename = "type")]
    pub typ: Option<String>,
    /// 0 is the number of the host's node.
    #[serde(default)]
    pub major: i64,
    /// Counts with `major`.
    #[serde(default)]
    pub minor: i64,
    /// Permission bits.
    pub file_mode: Option<u32>,
    /// Of `r`, `w`, `m`; or `none`.
    pub permissions: Option<String>,
    /// Owner, by its number inside.
    pub uid: Option<u32>,
    /// Group, by its number inside.
    pub gid: Option<u32>,
}

impl DeviceNode {
    /// Where the host has it.
    pub fn on_host(&self) -> &Path {
        self.host_path.as_deref().unwrap_or(&self.path)
    }
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    /// What is mounted.
    pub host_path: PathBuf,
    /// Where.
    pub container_path: PathBuf,
    /// As in the runtime specification.
    #[serde(default)]
    pub options: Vec<String>,
    /// The type of file system.
    #[serde(rename = "type")]
    pub typ: Option<String>,
}

impl Mount {
    /// Whether it shows a part of the host. Without a type and a word to the contrary it does, as with Podman.
    pub fn is_bind(&self) -> bool {
        let word = self.options.iter().any(|option| option == "bind" || option == "rbind");
        word || self.typ.as_deref().is_none_or(|typ| typ == "bind" || typ == "none" || typ.is_empty())
    }
}

/// A hook of the runtime specification.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hook {
    /// When it runs.
    pub hook_name: HookName,
    /// The program.
    pub path: PathBuf,
    /// Its arguments, its own name among them.
    #[serde(default)]
    pub args: Vec<String>,
    /// Its whole environment.
    #[serde(default)]
    pub env: Vec<String>,
    /// After how many seconds it is ended.
    pub timeout: Option<i64>,
}

/// The kinds of hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the words of the runtime specification")]
pub enum HookName {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl ContainerEdits {
    /// Adds the edits of another device.
    pub fn append(&mut self, other: &ContainerEdits) {
        self.env.extend(other.env.iter().cloned());
        self.device_nodes.extend(other.device_nodes.iter().cloned());
        self.mounts.extend(other.mounts.iter().cloned());
        self.hooks.extend(other.hooks.iter().cloned());
        self.additional_gids.extend(other.additional_gids.iter().filter(|gid| **gid != 0));
    }

    /// The edit that cannot be made, where there is one: its name and why.
    pub fn impossible(&self) -> Option<(&'static str, &'static str)> {
        let edits = [
            ("intelRdt", self.intel_rdt.is_some(), "classes of cache and bandwidth are made by root in resctrl"),
            ("netDevices", !self.net_devices.is_empty(), "a device of the host's network is moved by its root only"),
        ];
        edits.into_iter().find(|(_, there, _)| *there).map(|(name, _, why)| (name, why))
    }

    fn is_empty(&self) -> bool {
        *self == ContainerEdits::default()
    }

    fn check(&self) -> Result<(), EditError> {
        check_variables(&self.env)?;
        self.device_nodes.iter().try_for_each(check_node)?;
        self.mounts.iter().try_for_each(check_mount)?;
        self.hooks.iter().try_for_each(check_hook)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    cdi_version: String,
    kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: ContainerEdits,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Device {
    name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    container_edits: ContainerEdits,
}

/// Reads a spec file in YAML.
pub fn parse_yaml(bytes: &[u8]) -> Result<Document, DocumentError> {
    let text = std::str::from_utf8(bytes)?;
    parse(&serde_json::to_vec(&to_json(text)?)?)
}

/// Reads a spec file in JSON.
pub fn parse(bytes: &[u8]) -> Result<Document, DocumentError> {
    /// A later version may look otherwise, and then its number is what there is to say.
    #[derive(Deserialize)]
    struct Version {
        #[serde(rename = "cdiVersion")]
        version: String,
    }
    let Version { version } = serde_json::from_slice(bytes)?;
    let released = version.strip_prefix('v').unwrap_or(&version);
    let Some(released) = VERSIONS.iter().position(|known| *known == released) else {
        return Err(DocumentError::Version { version });
    };
    let file: File = serde_json::from_slice(bytes)?;
    check_kind(&file.kind)?;
    if let Some((needed, what)) = needs(&file).filter(|(needed, _)| VERSIONS[released] < *needed) {
        return Err(DocumentError::NewerThanItsVersion { version: file.cdi_version, needed, what });
    }
    if file.devices.is_empty() || file.devices.len() > DEVICES_MAX {
        return Err(DocumentError::Count { count: file.devices.len() });
    }
    let in_edits = |place: String| move |edit| DocumentError::Edit { place, edit };
    file.container_edits.check().map_err(in_edits("the edits for every device".to_owned()))?;
    let mut devices = BTreeMap::new();
    for Device { name, container_edits, .. } in file.devices {
        check_name(&name)?;
        if container_edits.is_empty() {
            return Err(DocumentError::Empty { name });
        }
        container_edits.check().map_err(in_edits(format!("the edits for device {name}")))?;
        if devices.insert(name.clone(), container_edits).is_some() {
            return Err(DocumentError::Duplicate { name });
        }
    }
    Ok(Document { kind: file.kind, devices, edits: file.container_edits })
}

/// The version that a file must have for what it uses, and what that is: SPEC.md, "Released versions".
fn needs(file: &File) -> Option<(&'static str, &'static str)> {
    let edits = || file.devices.iter().map(|device| &device.container_edits).chain([&file.container_edits]);
    let annotated = !file.annotations.is_empty() || file.devices.iter().any(|device| !device.annotations.is_empty());
    let dotted = file.kind.split_once('/').is_some_and(|(_, class)| class.contains('.'));
    let digit = |device: &Device| device.name.starts_with(|first: char| first.is_ascii_digit());
    let nodes = |edits: &ContainerEdits| edits.device_nodes.iter().any(|node| node.host_path.is_some());
    let mounts = |edits: &ContainerEdits| edits.mounts.iter().any(|mount| mount.typ.is_some());
    // Newest first.
    let features = [
        (edits().any(|edits| !edits.net_devices.is_empty()), "1.1.0", "netDevices"),
        (edits().any(|edits| edits.intel_rdt.is_some()), "0.7.0", "intelRdt"),
        (edits().any(|edits| !edits.additional_gids.is_empty()), "0.7.0", "additionalGids"),
        (annotated, "0.6.0", "annotations"),
        (dotted, "0.6.0", "a dot in the class"),
        (file.devices.iter().any(digit), "0.5.0", "a device name that begins with a digit"),
        (edits().any(nodes), "0.5.0", "hostPath of a device node"),
        (edits().any(mounts), "0.4.0", "the type of a mount"),
    ];
    features.into_iter().find(|(used, _, _)| *used).map(|(_, version, what)| (version, what))
}

fn check_variables(env: &[String]) -> Result<(), EditError> {
    let fine = |entry: &&String| entry.find('=').is_some_and(|at| at > 0) && !entry.contains('\0');
    match env.iter().find(|entry| !fine(entry)) {
        Some(entry) => Err(EditError::Variable { entry: entry.clone() }),
        None => Ok(()),
    }
}

/// An absolute path that does not go back up, and that a system call takes.
fn check_path(what: &'static str, path: &Path) -> Result<(), EditError> {
    let up = path.components().any(|component| component == Component::ParentDir);
    if path.is_absolute() && path != Path::new("/") && !up && !path.as_os_str().as_encoded_bytes().contains(&0) {
        return Ok(());
    }
    Err(EditError::Path { what, path: path.to_owned() })
}

fn check_node(node: &DeviceNode) -> Result<(), EditError> {
    check_path("device node", &node.path)?;
    check_path("hostPath of a device node", node.on_host())?;
    if let Some(typ) = node.typ.as_deref().filter(|typ| !["", "b", "c", "u", "p"].contains(typ)) {
        return Err(EditError::NodeType { path: node.path.clone(), typ: typ.to_owned() });
    }
    let number = |number: i64| u32::try_from(number).is_ok();
    if !number(node.major) || !number(node.minor) {
        return Err(EditError::NodeNumber { path: node.path.clone(), major: node.major, minor: node.minor });
    }
    let permissions = node.permissions.as_deref().unwrap_or_default();
    if permissions != "none" && permissions.chars().any(|permission| !"rwm".contains(permission)) {
        return Err(EditError::Permissions { path: node.path.clone(), permissions: permissions.to_owned() });
    }
    Ok(())
}

fn check_mount(mount: &Mount) -> Result<(), EditError> {
    check_path("containerPath of a mount", &mount.container_path)?;
    if mount.is_bind() { check_path("hostPath of a mount", &mount.host_path) } else { Ok(()) }
}

fn check_hook(hook: &Hook) -> Result<(), EditError> {
    check_path("hook", &hook.path)?;
    check_variables(&hook.env)?;
    match hook.timeout.filter(|seconds| *seconds <= 0) {
        Some(timeout) => Err(EditError::Timeout { path: hook.path.clone(), timeout }),
        None => Ok(()),
    }
}

/// Bytes that are no spec file, or one that must not be used.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// No JSON, or not the members of a spec file.
    #[error("it is no CDI spec file")]
    Json(#[from] serde_json::Error),
    /// No text.
    #[error("it is no text in UTF-8")]
    Text(#[from] std::str::Utf8Error),
    /// No YAML, or more than a spec file needs of it.
    #[error("it is no CDI spec file in YAML")]
    Yaml(#[from] YamlError),
    /// A version that is not known.
    #[error("its cdiVersion is {version:?}, and the versions from 0.1.0 to 1.1.0 are known")]
    Version {
        /// The file's.
        version: String,
    },
    /// It uses what its version does not have.
    #[error("its cdiVersion is {version}, and {what} needs {needed}")]
    NewerThanItsVersion {
        /// The file's.
        version: String,
        /// The first that has it.
        needed: &'static str,
        /// What it uses.
        what: &'static str,
    },
    /// A malformed kind or device name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// No device, or too many.
    #[error("it has {count} devices, and there must be 1 to {DEVICES_MAX}")]
    Count {
        /// How many.
        count: usize,
    },
    /// A device twice.
    #[error("it has two devices {name:?}")]
    Duplicate {
        /// Its name.
        name: String,
    },
    /// A device without edits would be nothing.
    #[error("device {name:?} has no edits")]
    Empty {
        /// Its name.
        name: String,
    },
    /// An edit that cannot be meant.
    #[error("{place}")]
    Edit {
        /// Which edits.
        place: String,
        /// What is wrong.
        #[source]
        edit: EditError,
    },
}

impl Explain for DocumentError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// What is wrong with an edit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// Not `NAME=value`.
    #[error("{entry:?} is no environment variable")]
    Variable {
        /// What it is.
        entry: String,
    },
    /// Not absolute, or with `..`.
    #[error("{path:?} is no absolute path without \"..\", as a {what} needs it")]
    Path {
        /// Of what.
        what: &'static str,
        /// What it is.
        path: PathBuf,
    },
    /// A device of no type.
    #[error("device node {path:?} has the type {typ:?}, which is none of b, c, u, p")]
    NodeType {
        /// In the container.
        path: PathBuf,
        /// What it is.
        typ: String,
    },
    /// Numbers that no device has.
    #[error("device node {path:?} has the number {major}:{minor}")]
    NodeNumber {
        /// In the container.
        path: PathBuf,
        /// What it is.
        major: i64,
        /// What it is.
        minor: i64,
    },
    /// Neither of r, w, m nor `none`.
    #[error("device node {path:?} has the permissions {permissions:?}, which are not of r, w, m")]
    Permissions {
        /// In the container.
        path: PathBuf,
        /// What they are.
        permissions: String,
    },
    /// A hook that would have no time.
    #[error("hook {path:?} has a timeout of {timeout} s")]
    Timeout {
        /// The program.
        path: PathBuf,
        /// In seconds.
        timeout: i64,
    },
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;

    fn file(version: &str, device: &str, edits: &str) -> String {
        format!(
            r#"{{"cdiVersion":"{version}","kind":"vendor.com/device","devices":[{device}],"containerEdits":{{{edits}}}}}"#
        )
    }

    fn device(edits: &str) -> String {
        format!(r#"{{"name":"one","containerEdits":{{{edits}}}}}"#)
    }

    fn refusal(text: &str) -> String {
        let error = parse(text.as_bytes()).unwrap_err();
        let below = std::error::Error::source(&error).map(|error| format!(": {error}")).unwrap_or_default();
        format!("{error}{below}")
    }

    #[test]
    fn every_edit_is_read() {
        let text = file(
            "0.7.0",
            &device(
                r#""deviceNodes":[{"path":"/dev/a","hostPath":"/dev/b","type":"c","major":1,"minor":3,"fileMode":438,
                "permissions":"rw","uid":1,"gid":2}],"additionalGids":[0,44]"#,
            ),
            r#""env":["A=b=c"],"mounts":[{"hostPath":"/x","containerPath":"/y","options":["ro","bind"]}],
            "hooks":[{"hookName":"createContainer","path":"/bin/h","args":["h","x"],"env":["E="],"timeout":3}]"#,
        );
        let document = parse(text.as_bytes()).unwrap();
        let mut all = document.edits.clone();
        all.append(&document.devices["one"]);
        assert_eq!(
            (document.kind.as_str(), all.env.as_slice()),
            ("vendor.com/device", ["A=b=c".to_owned()].as_slice())
        );
        let node = &all.device_nodes[0];
        assert_eq!((node.on_host(), node.major, node.minor), (Path::new("/dev/b"), 1, 3));
        assert_eq!((node.file_mode, node.uid, node.gid), (Some(0o666), Some(1), Some(2)));
        assert!(all.mounts[0].is_bind());
        assert_eq!((all.hooks[0].hook_name, all.hooks[0].timeout), (HookName::CreateContainer, Some(3)));
        assert_eq!(all.additional_gids, [44], "0 means nothing");
        assert_eq!(all.impossible(), None);
    }

    #[test]
    fn a_version_has_what_it_has() {
        let env = device(r#""env":["A=b"]"#);
        for version in VERSIONS {
            parse(file(version, &env, "").as_bytes()).unwrap();
        }
        parse(file("v0.3.0", &env, "").as_bytes()).unwrap();
        for version in ["", "0.9.0", "1.2.0", "2.0.0", "0.3", "x"] {
            assert!(refusal(&file(version, &env, "")).contains("cdiVersion"), "{version}");
        }
        let gids = file("0.6.0", &env, r#""additionalGids":[1]"#);
        assert_eq!(refusal(&gids), "its cdiVersion is 0.6.0, and additionalGids needs 0.7.0");
        let host_path = device(r#""deviceNodes":[{"path":"/dev/a","hostPath":"/dev/b"}]"#);
        assert!(refusal(&file("0.4.0", &host_path, "")).contains("needs 0.5.0"));
        parse(file("1.0.0", &host_path, "").as_bytes()).unwrap();
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let node = |members: &str| file("1.1.0", &device(&format!(r#""deviceNodes":[{{{members}}}]"#)), "");
        let hook = |members: &str| file("1.1.0", &device(&format!(r#""hooks":[{{{members}}}]"#)), "");
        let one = device(r#""env":["A=b"]"#);
        let refused = [
            ("[]".to_owned(), "no CDI spec file"),
            ("{".to_owned(), "no CDI spec file"),
            (file("1.1.0", "", ""), "0 devices"),
            (file("1.1.0", &format!("{one},{one}"), ""), "two devices"),
            (file("1.1.0", &device(""), ""), "no edits"),
            (file("1.1.0", &one.replace("one", "o/e"), ""), "is no device name"),
            (file("1.1.0", &one, "").replace("vendor.com/device", "vendor"), "no kind of devices"),
            (file("1.1.0", &one, r#""typo":1"#), "unknown field `typo`"),
            (file("1.1.0", &device(r#""env":["=b"]"#), ""), "no environment variable"),
            (node(r#""path":"dev/a""#), "no absolute path"),
            (node(r#""path":"/dev/../etc/a""#), "no absolute path"),
            (node(r#""path":"/dev/a","type":"x""#), "none of b, c, u, p"),
            (node(r#""path":"/dev/a","major":-1"#), "the number -1:0"),
            (node(r#""path":"/dev/a","permissions":"rx""#), "not of r, w, m"),
            (hook(r#""hookName":"later","path":"/h""#), "unknown variant `later`"),
            (hook(r#""hookName":"poststop","path":"h""#), "no absolute path"),
            (hook(r#""hookName":"poststop","path":"/h","timeout":0"#), "a timeout of 0 s"),
            (file("1.1.0", &device(r#""mounts":[{"hostPath":"x","containerPath":"/y"}]"#), ""), "hostPath of a mount"),
            (file("1.1.0", &device(r#""mounts":[{"hostPath":"/x","containerPath":"/"}]"#), ""), "containerPath"),
        ];
        for (text, why) in refused {
            let said = refusal(&text);
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    #[test]
    fn what_cannot_be_carried_out_is_read_and_named() {
        let text = file("1.1.0", &device(r#""intelRdt":{"closID":"x","schemata":["MB:0=10"]}"#), "");
        assert_eq!(parse(text.as_bytes()).unwrap().devices["one"].impossible().map(|(name, _)| name), Some("intelRdt"));
        let text = file("1.1.0", &device(r#""netDevices":[{"hostInterfaceName":"eth1","name":"eth0"}]"#), "");
        let document = parse(text.as_bytes()).unwrap();
        assert_eq!(document.devices["one"].impossible().map(|(name, _)| name), Some("netDevices"));
    }
}
