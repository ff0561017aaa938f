//! What a Docker daemon's `daemon.json` says of registries, as a drop-in of `registries.conf`.

use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

use base::{Context, Kind, Report};
use registry::RegistriesConf;
use serde_json::{Map, Value};

use crate::file::{failed, replace};

/// What serves in place of a daemon's other settings.
const INSTEAD: [(&str, &str); 14] = [
    ("data-root", "SUBLET_ROOT, or --root"),
    ("debug", "--progress and the lines that commands print"),
    ("default-runtime", "containers are run by sublet itself"),
    ("default-shm-size", "--shm-size of run"),
    ("default-ulimits", "--ulimit of run"),
    ("dns", "--dns of run"),
    ("dns-opts", "--dns-option of run"),
    ("dns-search", "--dns-search of run"),
    ("init", "--init of run"),
    ("log-driver", "--log-driver of run"),
    ("log-opts", "--log-opt of run"),
    ("proxies", "the variables http_proxy, https_proxy and no_proxy"),
    ("storage-driver", "--storage-driver of run; without it the best one is taken"),
    ("userns-remap", "containers have ids of their own in any case"),
];

/// What was made of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Lines of `registries.conf`; empty where it says nothing of registries.
    pub conf: String,
    /// What is left out, each with what serves in its place.
    pub left_out: Vec<String>,
}

/// Reads a `daemon.json`, and writes what it says of registries to this file, which it replaces; where that is nothing the file
/// goes.
pub fn import(daemon: &Path, to: &Path) -> Result<Imported, Report> {
    let text = fs::read_to_string(daemon).map_err(|error| failed("reading", daemon, error))?;
    let imported = read(&text).step(|| format!("reading {}", daemon.display()))?;
    if imported.conf.is_empty() {
        return match fs::remove_file(to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", to, error)),
            _ => Ok(imported),
        };
    }
    // What is refused there would end every command that asks a registry.
    let checked = RegistriesConf::default().add(&to.display().to_string(), &imported.conf).map_err(Report::from);
    checked.step(|| format!("taking over {}", daemon.display()))?;
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory).map_err(|error| failed("making directory", directory, error))?;
    }
    replace(to, imported.conf.as_bytes(), false)?;
    Ok(imported)
}

fn read(text: &str) -> Result<Imported, Report> {
    let members: Map<String, Value> = serde_json::from_str(text).map_err(|error| Report::of(Kind::Usage, error))?;
    let mut imported = Imported::default();
    let mirrors = texts(&members, "registry-mirrors")?;
    if !mirrors.is_empty() {
        // A daemon asks its mirrors for Docker Hub alone.
        imported.conf.push_str("[[registry]]\nlocation = \"docker.io\"\n");
        for mirror in mirrors {
            let insecure = mirror.starts_with("http://");
            let place = mirror.split_once("://").map_or(mirror, |(_, place)| place).trim_end_matches('/');
            imported.conf.push_str("\n[[registry.mirror]]\n");
            location(&mut imported.conf, place, insecure)?;
        }
    }
    for host in texts(&members, "insecure-registries")? {
        if host.contains('/') {
            let text = format!("insecure-registries {host}: name each registry in SUBLET_INSECURE_REGISTRIES");
            imported.left_out.push(text);
            continue;
        }
        imported.conf.push_str(if imported.conf.is_empty() { "[[registry]]\n" } else { "\n[[registry]]\n" });
        location(&mut imported.conf, host, true)?;
    }
    for key in members.keys().filter(|key| !matches!(key.as_str(), "registry-mirrors" | "insecure-registries")) {
        let instead =
            INSTEAD.iter().find(|(known, _)| known == key).map_or("nothing here is like it", |(_, words)| words);
        imported.left_out.push(format!("{key}: {instead}"));
    }
    Ok(imported)
}

/// The lines of a place; nothing but what hosts and paths are made of can stand in them.
fn location(conf: &mut String, place: &str, insecure: bool) -> Result<(), Report> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".:/_-[]".contains(&byte);
    if place.is_empty() || !place.bytes().all(is_plain) {
        return Err(Report::new(Kind::Usage, format!("{place:?} is no place of a registry")));
    }
    // Writing to a String cannot fail.
    let _ = writeln!(conf, "location = \"{place}\"");
    if insecure {
        conf.push_str("insecure = true\n");
    }
    Ok(())
}

/// A list of texts; empty where there is none.
fn texts<'a>(members: &'a Map<String, Value>, key: &str) -> Result<Vec<&'a str>, Report> {
    let wrong = || Report::new(Kind::Usage, format!("{key} is no list of texts"));
    let Some(value) = members.get(key) else { return Ok(Vec::new()) };
    let list = value.as_array().ok_or_else(wrong)?;
    list.iter().map(|one| one.as_str().ok_or_else(wrong)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn mirrors_and_insecure_registries_become_lines() {
        let text = r#"{"registry-mirrors":["https://m.test:5000/","http://n.test"],
            "insecure-registries":["a.test:1","10.0.0.0/8"],"dns":["192.0.2.1"],"odd":1}"#;
        let imported = read(text).unwrap();
        let wanted = "[[registry]]\nlocation = \"docker.io\"\n\n[[registry.mirror]]\nlocation = \"m.test:5000\"\n\
            \n[[registry.mirror]]\nlocation = \"n.test\"\ninsecure = true\n\
            \n[[registry]]\nlocation = \"a.test:1\"\ninsecure = true\n";
        assert_eq!(imported.conf, wanted);
        assert_eq!(imported.left_out.len(), 3, "{:?}", imported.left_out);
        RegistriesConf::default().add("drop-in", &imported.conf).unwrap();
    }

    #[test]
    fn what_registries_conf_could_not_hold_is_not_written() {
        let scratch = tempfile::tempdir().unwrap();
        let (daemon, to) = (scratch.path().join("daemon.json"), scratch.path().join("conf.d/docker.conf"));
        let imports = |text: &str| {
            fs::write(&daemon, text).unwrap();
            import(&daemon, &to)
        };
        imports(r#"{"insecure-registries":["a.test"]}"#).unwrap();
        let before = fs::read(&to).unwrap();
        for bad in [r#"["myreg"]"#, r#"["b.test","b.test"]"#] {
            assert!(imports(&format!(r#"{{"insecure-registries":{bad}}}"#)).is_err(), "{bad}");
            assert_eq!(fs::read(&to).unwrap(), before, "{bad}");
        }
        imports(r#"{"dns":[]}"#).unwrap();
        assert!(!to.exists(), "what an earlier import has written");
        imports("{}").unwrap();
    }

    #[test]
    fn what_is_none_is_refused() {
        let lists =
            [r#"{"registry-mirrors":"x"}"#, r#"{"insecure-registries":["a\"b"]}"#, r#"{"registry-mirrors":[1]}"#];
        for bad in ["", "[]"].into_iter().chain(lists) {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert_eq!(read("{}").unwrap(), Imported::default());
    }
}
