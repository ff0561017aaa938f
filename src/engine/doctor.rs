//! `doctor`: each part's ladder, what was tried, what is used, why, and the fix.

use std::fmt::Write as _;
use std::os::fd::AsFd;

use base::{Ladder, Report, Trial};
use runtime::outer::Caller;

use crate::Engine;
use crate::container::driver;

/// The ladders of all parts but the runtime directory, which is found before there is an engine. The caller must have
/// one thread.
pub fn ladders(engine: &Engine) -> Vec<Ladder> {
    let bus = engine.options().bus.as_deref();
    let (ids, [kernel_files, console]) = ids_and_inside();
    let file_server = snapshot::confinement(snapshot::Driver::Overlay);
    vec![ids, driver::ladder(engine), file_server, kernel_files, net::probe(), cgroup::probe(bus), console]
}

/// Makes the outer user namespace and lets it go again, as nothing less tells whether it can be made; and tries in it
/// what containers mount.
fn ids_and_inside() -> (Ladder, [Ladder; 2]) {
    match runtime::outer::make(&Caller::current(None)) {
        Ok(outer) => (outer.ladder, runtime::probe::probe(outer.namespace.as_fd())),
        Err(error) => {
            let report = Report::from(error);
            let trials = vec![Trial { rung: "user namespace", failure: Some(report.lines().join(": ")) }];
            let ids = Ladder { part: "ids", trials, chosen: None, fix: report.hint().map(str::to_owned) };
            (ids, runtime::probe::without_namespace())
        }
    }
}

/// The ladders as a table, the fixes below it.
pub fn table(ladders: &[Ladder]) -> String {
    let width = ladders.iter().map(|ladder| ladder.part.len()).max().unwrap_or(0).max(4);
    let mut text = format!("{:width$}   USED\n", "PART");
    for ladder in ladders {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:width$}   {}", ladder.part, ladder.chosen.unwrap_or("not possible"));
        for trial in &ladder.trials {
            if let Some(failure) = &trial.failure {
                let _ = writeln!(text, "{:width$}     not {}: {failure}", "", trial.rung);
            }
        }
        if let Some(fix) = &ladder.fix {
            let _ = writeln!(text, "{:width$}     fix: {fix}", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_what_and_why() {
        let ladder = |part, failure: Option<&str>, chosen, fix: Option<&str>| Ladder {
            part,
            trials: vec![Trial { rung: "best", failure: failure.map(str::to_owned) }],
            chosen,
            fix: fix.map(str::to_owned),
        };
        let text = table(&[
            ladder("ids", None, Some("best"), None),
            ladder("network", Some("open(/dev/net/tun): EACCES"), None, Some("chmod 0666 /dev/net/tun")),
        ]);
        let expected = "PART      USED\nids       best\nnetwork   not possible\n            not best: open(/dev/net/tun): \
                        EACCES\n            fix: chmod 0666 /dev/net/tun\n";
        assert_eq!(text, expected);
    }
}
