use std::fmt::Display;
use std::path::{Path, PathBuf};

use base::Report;
use clap::{Args, Subcommand};
use engine::registries::conf_files;
use engine::registries::import::import;

use crate::environment::{Globals, docker_config, imported_conf, runtime_dir, variable_of};
use crate::format::{self, Row};
use crate::output::{Stop, line, stdout, warning};

const TABLE: &str = "{{.Name}}\t{{.Value}}";
const TABLE_WITH_ORIGIN: &str = "{{.Name}}\t{{.Value}}\t{{.Origin}}";
/// What nobody has said.
const DEFAULT: &str = "default";

/// Look at what options, variables and files say
#[derive(Subcommand)]
pub enum Config {
    Import(Import),
    Show(Show),
}

/// Take over what Docker's daemon.json says of registries
///
/// It becomes a drop-in of your registries.conf, which replaces that of an earlier import. What is left out is told.
#[derive(Args)]
pub struct Import {
    #[arg(default_value = "/etc/docker/daemon.json")]
    file: PathBuf,
}

/// Show the settings that are in force
///
/// Lines in files of other engines are not shown, but the files that are read.
#[derive(Args)]
pub struct Show {
    /// And what has set each: an option, a variable or a file
    #[arg(long)]
    origin: bool,
    /// A Go template, json, or table with a template
    #[arg(long)]
    format: Option<String>,
}

impl Config {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        match self {
            Config::Import(command) => command.execute(),
            Config::Show(command) => command.execute(globals),
        }
    }
}

impl Import {
    fn execute(self) -> Result<u8, Stop> {
        let to = imported_conf()?;
        let imported = import(&self.file, &to)?;
        imported.left_out.iter().for_each(|words| warning(&format!("not taken over: {words}")));
        if imported.conf.is_empty() {
            warning(&format!("{} says nothing of registries", self.file.display()));
        } else {
            line(to.display())?;
        }
        Ok(0)
    }
}

impl Show {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let rows: Vec<Row> = settings(globals)?.into_iter().map(row).collect();
        let table = if self.origin { TABLE_WITH_ORIGIN } else { TABLE };
        let titles = row(Setting { name: "", value: String::new(), origin: String::new() });
        stdout(&format::rows(self.format.as_deref(), table, &titles, &rows)?)?;
        Ok(0)
    }
}

/// One value, and who says so.
struct Setting {
    name: &'static str,
    value: String,
    origin: String,
}

impl Setting {
    fn new(name: &'static str, value: impl Display, origin: impl Display) -> Self {
        Setting { name, value: value.to_string(), origin: origin.to_string() }
    }
}

fn row(Setting { name, value, origin }: Setting) -> Row {
    Row::default().cell("Name", "NAME", name.to_owned()).cell("Value", "VALUE", value).cell("Origin", "ORIGIN", origin)
}

fn settings(globals: &Globals) -> Result<Vec<Setting>, Report> {
    let engine = globals.engine()?;
    let options = engine.options();
    let (data, data_origin) = globals.data_dir_and_origin()?;
    let run_origin = match &globals.run_root {
        Some(_) => "--run-root",
        None => runtime_dir().1.chosen.unwrap_or(DEFAULT),
    };
    let by = |given: bool, option: &'static str, variable: Option<&'static str>| match variable {
        _ if given => option,
        Some(variable) => variable,
        None => DEFAULT,
    };
    let flag =
        |name: &'static str, option: &'static str, given: bool| Setting::new(name, given, by(given, option, None));
    let store = engine.paths().store_name().unwrap_or_default();
    let store_origin = by(globals.store.is_some(), "--store", variable_of(&["SUBLET_STORE"]));
    let cache = options.cache_max_bytes.map_or_else(|| "unlimited".to_owned(), |bytes| bytes.to_string());
    let cache_origin = by(globals.cache_max.is_some(), "--cache-max", variable_of(&["SUBLET_CACHE_MAX"]));
    let mut settings = vec![
        Setting::new("root", data.display(), data_origin),
        Setting::new("run-root", engine.paths().run().display(), run_origin),
        Setting::new("store", store, store_origin),
        Setting::new("cache-max", cache, cache_origin),
        flag("strict", "--strict", globals.strict),
        flag("offline", "--offline", globals.offline),
    ];
    let mut each = |name: &'static str, paths: &[PathBuf], origin: &str| {
        settings.extend(paths.iter().map(|path| Setting::new(name, path.display(), origin)));
    };
    let stores_origin =
        by(!globals.additional_stores.is_empty(), "--additional-store", variable_of(&["SUBLET_ADDITIONAL_STORES"]));
    each("additional-store", &options.additional_stores, stores_origin);
    each("cdi-spec-dir", &options.cdi_spec_dirs, "--cdi-spec-dir");
    each("certificates", &there(&options.certificates), "file");
    each("trusted-authorities", options.roots.as_slice(), "SSL_CERT_FILE");
    each("registries.conf", &conf_files(&engine)?, conf_origin());
    let policy = options.policy.named.clone().map(|file| (file, "--signature-policy"));
    let policy = policy.or_else(|| Some((there(&options.policy.usual).into_iter().next()?, "file")));
    if let Some((file, origin)) = policy {
        each("policy.json", &[file], origin);
    }
    each("credentials", &there(&options.registries.auth_files), credentials_origin());
    each("docker-config", &there(docker_config()?.as_slice()), by(false, "", variable_of(&["DOCKER_CONFIG"])));
    for host in &options.insecure {
        settings.push(Setting::new("insecure-registry", host, "SUBLET_INSECURE_REGISTRIES"));
    }
    for (name, value, variables) in [
        ("http-proxy", &options.proxies.http, ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"].as_slice()),
        ("https-proxy", &options.proxies.https, &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]),
        ("no-proxy", &Some(options.proxies.none.clone()).filter(|none| !none.is_empty()), &["no_proxy", "NO_PROXY"]),
    ] {
        settings.extend(value.iter().map(|value| Setting::new(name, value, variable_of(variables).unwrap_or(DEFAULT))));
    }
    Ok(settings)
}

/// Those that exist.
fn there(paths: &[PathBuf]) -> Vec<PathBuf> {
    paths.iter().filter(|path| Path::exists(path)).cloned().collect()
}

fn conf_origin() -> &'static str {
    variable_of(&["CONTAINERS_REGISTRIES_CONF"]).unwrap_or("file")
}

fn credentials_origin() -> &'static str {
    variable_of(&["REGISTRY_AUTH_FILE"]).unwrap_or("file")
}
