use engine::system;

use crate::environment::Globals;
use crate::output::{Stop, line};

/// `system migrate`.
pub fn migrate(globals: &Globals) -> Result<u8, Stop> {
    let mut told = Ok(());
    let migrated = system::migrate(&globals.engine()?, &mut |id| {
        if told.is_ok() {
            told = line(format_args!("stopped {id}"));
        }
    });
    migrated?;
    told.map(|()| 0)
}
