//! What a container changed in its root file system.

use base::{ContainerId, Report};

use crate::Engine;
use crate::container::record::load;
use crate::container::snapshot;

/// One changed path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// The path in the container.
    pub path: String,
    /// What happened to it.
    pub kind: ChangeKind,
}

/// What happened to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// It differs from the image.
    Changed,
    /// The image does not have it.
    Added,
    /// Only the image has it.
    Deleted,
}

impl ChangeKind {
    /// Docker's letter.
    pub fn letter(self) -> char {
        match self {
            ChangeKind::Changed => 'C',
            ChangeKind::Added => 'A',
            ChangeKind::Deleted => 'D',
        }
    }
}

/// The changes of a container, by path.
pub fn diff(engine: &Engine, id: &ContainerId) -> Result<Vec<Change>, Report> {
    let record = load(engine, id)?;
    let mut changes = snapshot::changes(engine, &record)?;
    changes.sort();
    Ok(changes)
}
