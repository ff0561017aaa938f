use std::path::PathBuf;

use base::{Context, Kind, Report};
use engine::system;

use crate::environment::{Globals, user_units};
use crate::output::{Stop, error, line, warning};

/// `system boot`.
pub fn boot(globals: &Globals) -> Result<u8, Stop> {
    let (mut code, mut told) = (0, Ok(()));
    system::boot::boot(&globals.engine()?, &mut |(id, outcome)| match outcome {
        Ok(()) if told.is_ok() => told = line(id),
        Ok(()) => {}
        Err(report) => {
            error(&report);
            code = 1;
        }
    })?;
    told.map(|()| code)
}

/// `system enable`.
pub fn enable(globals: &Globals) -> Result<u8, Stop> {
    let program = std::env::current_exe().map_err(|error| Report::of(Kind::Internal, error));
    let program = program.step(|| "finding our own program".to_owned())?;
    line(system::boot::enable(&globals.engine()?, &units()?, &program)?.display())?;
    if !system::boot::lingers() {
        warning(
            "containers start at your first login and end with your last one; `loginctl enable-linger` changes both",
        );
    }
    Ok(0)
}

/// `system disable`.
pub fn disable() -> Result<u8, Stop> {
    if !system::boot::disable(&units()?)? {
        return Err(Report::new(Kind::NotFound, format!("there is no {}", system::boot::UNIT)).into());
    }
    Ok(0)
}

fn units() -> Result<PathBuf, Report> {
    let missing =
        || Report::new(Kind::Usage, "no directory of systemd's units: neither XDG_CONFIG_HOME nor HOME is set");
    user_units().ok_or_else(missing)
}
