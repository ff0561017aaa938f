//! `devices.json`: what the devices of the last start give to the container's processes, for those that come later.

use std::fs;
use std::io;

use base::{ContainerId, Report};
use oci_spec::runtime::Process;
use serde::{Deserialize, Serialize};

use crate::Engine;
use crate::file::{failed, read_json, replace_json};

/// The file's name.
const NAME: &str = "devices.json";

/// `devices.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Given {
    /// `NAME=value`, in place of a variable of that name.
    pub env: Vec<String>,
    /// Variables that are lists of directories, and a directory for the end of each.
    pub search: Vec<(String, String)>,
    /// Supplementary groups, by their numbers inside.
    pub gids: Vec<u32>,
}

impl Given {
    /// Writes it for a container that is being started.
    pub(crate) fn save(&self, engine: &Engine, id: &ContainerId, sync: bool) -> Result<(), Report> {
        #[derive(Serialize)]
        struct File<'a> {
            format: u32,
            #[serde(flatten)]
            given: &'a Given,
        }
        let path = engine.paths().container(id).join(NAME);
        if *self != Given::default() {
            return replace_json(&path, &File { format: 1, given: self }, sync);
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", &path, error)),
            _ => Ok(()),
        }
    }

    /// What the last start has written.
    pub(crate) fn load(engine: &Engine, id: &ContainerId) -> Result<Self, Report> {
        Ok(read_json(&engine.paths().container(id).join(NAME))?.unwrap_or_default())
    }

    /// Gives it to a process.
    pub(crate) fn edit(&self, process: &mut Process) {
        let mut env = process.env().clone().unwrap_or_default();
        for entry in &self.env {
            let name = entry.split('=').next().unwrap_or_default();
            env.retain(|other| other.split('=').next() != Some(name));
            env.push(entry.clone());
        }
        for (name, directory) in &self.search {
            let value = |entry: &String| entry.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('='));
            match env.iter_mut().find(|entry| value(entry)) {
                Some(entry) if !entry.ends_with('=') => entry.push(':'),
                Some(_) => {}
                None => env.push(format!("{name}=")),
            }
            if let Some(entry) = env.iter_mut().find(|entry| value(entry)) {
                entry.push_str(directory);
            }
        }
        process.set_env(Some(env));
        if !self.gids.is_empty() {
            let mut user = process.user().clone();
            user.set_additional_gids(Some(self.gids.clone()));
            process.set_user(user);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced_and_lists_of_directories_grow() {
        let mut process = Process::default();
        let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        process.set_env(Some(texts(&["PATH=/bin", "A=1", "EMPTY=", "PATHS=x"])));
        let pair = |(name, directory): (&str, &str)| (name.to_owned(), directory.to_owned());
        let given = Given {
            env: texts(&["A=2", "B=3"]),
            search: [("PATH", "/gpu/bin"), ("EMPTY", "/gpu"), ("LD_LIBRARY_PATH", "/gpu/lib")].map(pair).to_vec(),
            gids: vec![44],
        };
        given.edit(&mut process);
        let wanted = ["PATH=/bin:/gpu/bin", "EMPTY=/gpu", "PATHS=x", "A=2", "B=3", "LD_LIBRARY_PATH=/gpu/lib"];
        assert_eq!(process.env().as_deref(), Some(texts(&wanted).as_slice()));
        assert_eq!(process.user().additional_gids().as_deref(), Some([44].as_slice()));
    }
}
