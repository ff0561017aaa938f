//! What Docker's `config.json` says of new containers: the proxies that they are told of.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use base::{Context, Kind, Report};
use serde::Deserialize;

/// More than this is not read.
const FILE_MAX: u64 = 1 << 20;

/// The members that are of use here.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    /// By daemon, of which we have none: `default` is for all.
    proxies: BTreeMap<String, BTreeMap<String, String>>,
}

/// Variables for a new container by Docker's file, but for those that are among `given`. No file says nothing.
pub fn proxy_variables(file: Option<PathBuf>, given: &[String]) -> Result<Vec<String>, Report> {
    let Some(file) = file else { return Ok(Vec::new()) };
    let step = || format!("reading {}", file.display());
    let text = match fs::metadata(&file).and_then(|metadata| match metadata.len() {
        0..=FILE_MAX => fs::read_to_string(&file),
        _ => Err(io::ErrorKind::FileTooLarge.into()),
    }) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        text => text.map_err(|error| Report::of(Kind::Usage, error)).step(step)?,
    };
    let config: Config = serde_json::from_str(&text).map_err(|error| Report::of(Kind::Usage, error)).step(step)?;
    Ok(config.proxies.get("default").map(|proxies| variables(proxies, given)).unwrap_or_default())
}

/// Each in capitals and in small letters, as programs disagree.
fn variables(proxies: &BTreeMap<String, String>, given: &[String]) -> Vec<String> {
    const KNOWN: [(&str, &str); 5] = [
        ("HTTP_PROXY", "httpProxy"),
        ("HTTPS_PROXY", "httpsProxy"),
        ("NO_PROXY", "noProxy"),
        ("FTP_PROXY", "ftpProxy"),
        ("ALL_PROXY", "allProxy"),
    ];
    let is_given = |name: &str| given.iter().any(|entry| entry.split('=').next() == Some(name));
    let set =
        KNOWN.iter().filter_map(|(name, key)| Some((*name, proxies.get(*key).filter(|value| !value.is_empty())?)));
    let both = set.flat_map(|(name, value)| [(name.to_owned(), value), (name.to_ascii_lowercase(), value)]);
    both.filter(|(name, _)| !is_given(name)).map(|(name, value)| format!("{name}={value}")).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_variables_unless_they_are_given() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.json");
        let read = |given: &[&str]| {
            let given: Vec<String> = given.iter().map(ToString::to_string).collect();
            proxy_variables(Some(file.clone()), &given)
        };
        assert!(read(&[]).unwrap().is_empty() && proxy_variables(None, &[]).unwrap().is_empty());
        fs::write(
            &file,
            r#"{"auths":{},"proxies":{"default":{"httpProxy":"http://p:1","noProxy":"a,b"},"tcp://x":{}}}"#,
        )
        .unwrap();
        assert_eq!(
            read(&[]).unwrap(),
            ["HTTP_PROXY=http://p:1", "http_proxy=http://p:1", "NO_PROXY=a,b", "no_proxy=a,b"]
        );
        assert_eq!(read(&["http_proxy=", "NO_PROXY"]).unwrap(), ["HTTP_PROXY=http://p:1", "no_proxy=a,b"]);
        fs::write(&file, "{").unwrap();
        assert!(read(&[]).is_err());
    }
}
