//! Archives as the output of a command: to a file that appears whole, or to the standard output unless that is a terminal.

use std::fs;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base::{Context, Kind, Report};

/// Has `make` write to the file of this name, or to the standard output. `verb` is what is done, for messages.
pub fn write(
    output: Option<&str>,
    verb: &str,
    make: impl FnOnce(&mut dyn Write) -> Result<(), Report>,
) -> Result<(), Report> {
    match output.filter(|path| *path != "-") {
        Some(path) => to_file(Path::new(path), make),
        None if io::stdout().is_terminal() => {
            let text = format!("cowardly refusing to {verb} to a terminal. Use the -o flag or redirect");
            Err(Report::new(Kind::Usage, text))
        }
        None => make(&mut BufWriter::with_capacity(1 << 16, io::stdout().lock())),
    }
}

fn to_file(path: &Path, make: impl FnOnce(&mut dyn Write) -> Result<(), Report>) -> Result<(), Report> {
    let failed = |error| Report::of(Kind::Denied, error).with_step(format!("writing {}", path.display()));
    // A device or a pipe is written to as it is; a rename would put a file in its place.
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        let file = fs::File::options().write(true).open(path).map_err(failed)?;
        return make(&mut BufWriter::with_capacity(1 << 16, file));
    }
    let temporary = beside(path);
    let file = fs::File::options().write(true).create_new(true).mode(0o600).open(&temporary).map_err(failed)?;
    let written =
        make(&mut BufWriter::with_capacity(1 << 16, file)).and_then(|()| fs::rename(&temporary, path).map_err(failed));
    if written.is_err() {
        // The first failure is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    written.step(|| format!("writing {}", path.display()))
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    name.into()
}
