//! The spec files of this machine, and what a request for devices makes of them.
//!
//! A directory that is named later has precedence: what it says of a device replaces what an earlier one says. Two
//! files of one directory that have the same device are in conflict, and the device cannot be had. A file that cannot
//! be read or used is skipped, with the reason, and does not keep the devices of others away.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base::{Explain, Kind};

use crate::document::{ContainerEdits, Document, parse, parse_yaml};
use crate::name::DeviceName;

/// SPEC.md and its Go package: files that stay, and files that are made anew at each boot.
pub const DEFAULT_DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// The largest spec file that is read. One for eight GPUs has some 100 KiB.
const FILE_MAX: u64 = 4 << 20;
/// How many spec files of a directory are read.
const FILES_MAX: usize = 1024;
/// How many names an error shows.
const SHOWN_MAX: usize = 20;

/// The devices that spec files describe.
#[derive(Debug, Default)]
pub struct Registry {
    directories: Vec<PathBuf>,
    files: Vec<SpecFile>,
    /// Where each device is, by its qualified name: the files of the directory that has precedence.
    devices: BTreeMap<String, Vec<usize>>,
    skipped: Vec<Skipped>,
}

#[derive(Debug)]
struct SpecFile {
    path: PathBuf,
    /// The place of its directory; a higher one has precedence.
    priority: usize,
    document: Document,
}

/// A file or directory that was not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Which one.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.reason)
    }
}

impl Registry {
    /// Reads the spec files of these directories. One that does not exist has none.
    pub fn read(directories: &[PathBuf]) -> Self {
        let mut registry = Registry { directories: directories.to_vec(), ..Registry::default() };
        for (priority, directory) in directories.iter().enumerate() {
            match names(directory) {
                Ok(names) => names.into_iter().for_each(|path| registry.add(path, priority)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => registry.skip(directory, &error),
            }
        }
        registry
    }

    fn add(&mut self, path: PathBuf, priority: usize) {
        let parse = if path.extension().is_some_and(|extension| extension == "yaml") { parse_yaml } else { parse };
        match read(&path).map_err(Box::<dyn Error>::from).and_then(|bytes| Ok(parse(&bytes)?)) {
            Ok(document) => self.enter(SpecFile { path, priority, document }),
            Err(error) => self.skip(&path, error.as_ref()),
        }
    }

    fn skip(&mut self, path: &Path, error: &dyn Error) {
        let mut reason = error.to_string();
        let mut below = error.source();
        while let Some(error) = below {
            reason.push_str(": ");
            reason.push_str(&error.to_string());
            below = error.source();
        }
        self.skipped.push(Skipped { path: path.to_owned(), reason });
    }

    fn enter(&mut self, file: SpecFile) {
        let place = self.files.len();
        for name in file.document.devices.keys() {
            let places = self.devices.entry(format!("{}={name}", file.document.kind)).or_default();
            // Directories come in the order of their precedence.
            if places.first().is_some_and(|other| self.files[*other].priority < file.priority) {
                places.clear();
            }
            places.push(place);
        }
        self.files.push(file);
    }

    /// What was not used, and why.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// Where spec files were looked for.
    pub fn directories(&self) -> &[PathBuf] {
        &self.directories
    }

    /// The names of the devices of a kind, without it, sorted.
    pub fn of_kind(&self, kind: &str) -> Vec<&str> {
        let names = self.devices.keys().filter_map(|device| device.split_once('='));
        names.filter(|(of, _)| *of == kind).map(|(_, name)| name).collect()
    }

    /// The edits for these devices: for each spec file once what holds for all of its devices, before the first of
    /// them.
    pub fn edits(&self, names: &[DeviceName]) -> Result<ContainerEdits, RegistryError> {
        let mut edits = ContainerEdits::default();
        let mut used: Vec<usize> = Vec::new();
        for name in names {
            let place = self.place(name)?;
            let document = &self.files[place].document;
            let general = (!used.contains(&place)).then_some(&document.edits);
            used.push(place);
            for part in general.into_iter().chain(document.devices.get(&name.name)) {
                if let Some((edit, why)) = part.impossible() {
                    let path = self.files[place].path.clone();
                    return Err(RegistryError::Impossible { name: name.clone(), path, edit, why });
                }
                edits.append(part);
            }
        }
        Ok(edits)
    }

    fn place(&self, name: &DeviceName) -> Result<usize, RegistryError> {
        match self.devices.get(&name.to_string()).map(Vec::as_slice) {
            Some([place]) => Ok(*place),
            Some([one, other, ..]) => {
                let [one, other] = [one, other].map(|place| self.files[*place].path.clone());
                Err(RegistryError::Conflict { name: name.clone(), one, other })
            }
            _ => Err(RegistryError::Unknown {
                name: name.clone(),
                known: self.devices.keys().cloned().collect(),
                directories: self.directories.clone(),
                skipped: self.skipped.clone(),
            }),
        }
    }
}

/// The spec files of a directory, sorted. Directories in it, and files with other endings, are none.
fn names(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let ending = path.extension().is_some_and(|extension| extension == "json" || extension == "yaml");
        if ending && !path.is_dir() {
            paths.push(path);
        }
        if paths.len() > FILES_MAX {
            return Err(io::Error::other(format!("more than {FILES_MAX} spec files")));
        }
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // A named pipe would be waited for.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(io::Error::other(format!("it is larger than {} MiB", FILE_MAX >> 20)));
    }
    Ok(bytes)
}

/// A device that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No spec file has it.
    #[error(
        "there is no device {name} in the spec files of {}{}",
        list(directories.iter().map(|path| path.display())),
        if skipped.is_empty() { String::new() } else { format!(" (not used: {})", list(skipped)) }
    )]
    Unknown {
        /// What was asked for.
        name: DeviceName,
        /// The devices that there are.
        known: Vec<String>,
        /// Where was looked.
        directories: Vec<PathBuf>,
        /// What was not used.
        skipped: Vec<Skipped>,
    },
    /// Two spec files of the same precedence have it.
    #[error("device {name} is in two spec files, {} and {}", one.display(), other.display())]
    Conflict {
        /// What was asked for.
        name: DeviceName,
        /// The first.
        one: PathBuf,
        /// The second.
        other: PathBuf,
    },
    /// Its edits cannot be made.
    #[error("device {name} of {} has {edit}: {why}", path.display())]
    Impossible {
        /// What was asked for.
        name: DeviceName,
        /// The spec file.
        path: PathBuf,
        /// The edit.
        edit: &'static str,
        /// Why not.
        why: &'static str,
    },
}

impl Explain for RegistryError {
    fn kind(&self) -> Kind {
        match self {
            RegistryError::Unknown { .. } => Kind::NotFound,
            RegistryError::Conflict { .. } => Kind::Conflict,
            RegistryError::Impossible { .. } => Kind::Unsupported,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            RegistryError::Unknown { known, .. } if known.is_empty() => Some(
                "there are no devices; spec files of another directory are read with --cdi-spec-dir DIRECTORY"
                    .to_owned(),
            ),
            RegistryError::Unknown { known, .. } => Some(format!("the devices are {}", list(known))),
            RegistryError::Conflict { .. } => Some("remove one of the files".to_owned()),
            RegistryError::Impossible { .. } => None,
        }
    }
}

/// The first of several things, and how many more there are.
fn list<T: fmt::Display>(things: impl IntoIterator<Item = T>) -> String {
    let all: Vec<String> = things.into_iter().map(|thing| thing.to_string()).collect();
    let shown = all.iter().take(SHOWN_MAX).cloned().collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(SHOWN_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
mod tests {
    use super::*;

    fn write(directory: &Path, file: &str, kind: &str, devices: &[(&str, &str)]) {
        let devices: Vec<String> = devices
            .iter()
            .map(|(name, value)| format!(r#"{{"name":"{name}","containerEdits":{{"env":["{name}={value}"]}}}}"#))
            .collect();
        let text = format!(
            r#"{{"cdiVersion":"0.6.0","kind":"{kind}","devices":[{}],"containerEdits":{{"env":["ALL={file}"]}}}}"#,
            devices.join(",")
        );
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join(file), text).unwrap();
    }

    fn env(registry: &Registry, names: &[&str]) -> Result<Vec<String>, RegistryError> {
        let names: Vec<DeviceName> = names.iter().map(|name| name.parse().unwrap()).collect();
        registry.edits(&names).map(|edits| edits.env)
    }

    #[test]
    fn a_later_directory_has_precedence_and_general_edits_come_once() {
        let root = tempfile::tempdir().unwrap();
        let (low, high) = (root.path().join("low"), root.path().join("high"));
        write(&low, "a.json", "v.com/c", &[("one", "low"), ("two", "low")]);
        write(&high, "b.json", "v.com/c", &[("one", "high")]);
        write(&high, "c.json", "v.com/d", &[("one", "other")]);
        fs::create_dir(high.join("directory.json")).unwrap();
        fs::write(high.join("readme.txt"), "no spec file").unwrap();
        let registry = Registry::read(&[low, high, root.path().join("missing")]);
        assert_eq!(registry.skipped(), []);
        assert_eq!(registry.of_kind("v.com/c"), ["one", "two"]);
        let all = env(&registry, &["v.com/c=two", "v.com/c=one", "v.com/d=one", "v.com/c=two"]).unwrap();
        assert_eq!(all, ["ALL=a.json", "two=low", "ALL=b.json", "one=high", "ALL=c.json", "one=other", "two=low"]);
    }

    #[test]
    fn a_device_twice_in_a_directory_cannot_be_had() {
        let root = tempfile::tempdir().unwrap();
        let (low, high) = (root.path().join("low"), root.path().join("high"));
        write(&low, "a.json", "v.com/c", &[("one", "a"), ("two", "a")]);
        write(&low, "b.json", "v.com/c", &[("one", "b")]);
        let registry = Registry::read(std::slice::from_ref(&low));
        let refused = env(&registry, &["v.com/c=one"]).unwrap_err();
        let files = ["a.json", "b.json"].map(|file| low.join(file).display().to_string());
        assert!(files.iter().all(|file| refused.to_string().contains(file)), "{refused}");
        assert_eq!(env(&registry, &["v.com/c=two"]).unwrap(), ["ALL=a.json", "two=a"]);
        write(&high, "c.json", "v.com/c", &[("one", "c")]);
        assert_eq!(env(&Registry::read(&[low, high]), &["v.com/c=one"]).unwrap(), ["ALL=c.json", "one=c"]);
    }

    #[test]
    fn what_is_broken_is_skipped_by_name_and_the_rest_can_be_had() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("cdi");
        write(&directory, "good.json", "v.com/c", &[("one", "1")]);
        fs::write(directory.join("bad.json"), "{").unwrap();
        fs::write(directory.join("other.yaml"), "cdiVersion: &v 0.6.0\nkind: *v\n").unwrap();
        let yaml = "cdiVersion: 0.6.0\nkind: v.com/y\ndevices:\n- name: one\n  containerEdits:\n    env: [A=b]\n";
        fs::write(directory.join("fine.yaml"), yaml).unwrap();
        fs::write(directory.join("large.json"), vec![b' '; FILE_MAX as usize + 1]).unwrap();
        std::os::unix::fs::symlink("nowhere", directory.join("link.json")).unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let registry = Registry::read(&[directory, file]);
        let skipped = registry.skipped();
        for (name, reason) in [
            ("bad.json", "EOF while parsing"),
            ("other.yaml", "it has an alias"),
            ("large.json", "larger than 4 MiB"),
            ("link.json", "No such file"),
            ("file", "Not a directory"),
        ] {
            let told = skipped.iter().find(|told| told.path.ends_with(name));
            assert!(told.is_some_and(|told| told.reason.contains(reason)), "{name}: {skipped:?}");
        }
        assert_eq!(env(&registry, &["v.com/c=one"]).unwrap(), ["ALL=good.json", "one=1"]);
        assert_eq!(env(&registry, &["v.com/y=one"]).unwrap(), ["A=b"]);
        let refused = env(&registry, &["v.com/c=two"]).unwrap_err();
        assert!(refused.to_string().contains("bad.json"), "{refused}");
        assert_eq!(refused.hint().as_deref(), Some("the devices are v.com/c=one, v.com/y=one"));
    }
}
