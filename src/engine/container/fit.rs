//! Whose the files are that a plain user binds into a container which runs as somebody else.
//!
//! The user's own files are the container root's, and a payload that is not root could not write them. Nothing without root
//! shifts the owners of a mount of the host's. But the container's own ids can be arranged so that the user *is* the payload's
//! user, as with `--userns=keep-id:uid=…,gid=…`: nothing is copied or changed, and the bind stays a native one.
//!
//! It is done where it cannot come between containers: not with named volumes, whose owners others would see differently; not
//! with `U`, which asks for another way; and only where a view of the image can be shifted (Linux 6.12).

use std::path::Path;

use base::{Kind, Report};
use runtime::init::user::from_files;
use runtime::outer::OuterMap;
use runtime::seccomp::document::running_kernel;
use snapshot::ObjectDirs;
use snapshot::seed::text_at;

use crate::Engine;
use crate::container::record::{Record, UserNamespace, VolumeSource};
use crate::container::snapshot::chain;
use crate::image::the_store;

/// The first kernel that shifts the owners of a FUSE mount (`FUSE_ALLOW_IDMAP`).
const SHIFTS_FUSE: (u64, u64) = (6, 12);
/// More of a passwd or group file than this is not read.
const FILE_MAX: u64 = 8 << 20;

/// Whether a container asks for it, as far as its record tells.
fn is_wanted(record: &Record) -> bool {
    let volumes = &record.host.volumes;
    let binds = volumes.iter().any(|volume| matches!(volume.source, VolumeSource::Path(_)) && !volume.cow);
    let others = volumes.iter().any(|volume| volume.source.name().is_some() && !volume.anonymous || volume.chown);
    let plain = !record.image.is_host() && !nix::unistd::geteuid().is_root();
    binds && !others && plain && !record.settings.user.is_empty()
}

/// What is to be told where the kernel keeps a container from it. That there is one id is told by the ladder of ids.
pub(crate) fn step_down(record: &Record) -> Option<String> {
    let user = record.settings.user.as_str();
    let is_root = matches!(user.split(':').next(), Some("0" | "root"));
    let missed = record.host.userns == UserNamespace::Default && is_wanted(record) && !is_root;
    (missed && running_kernel() < SHIFTS_FUSE).then(|| {
        format!("binds: your files are not those of the container's user {user}, but its root's: that needs Linux 6.12")
    })
}

/// The user and the group that the caller is to be in a container; `None` for its root.
pub(crate) fn user(engine: &Engine, record: &Record, map: &OuterMap) -> Result<Option<(u32, u32)>, Report> {
    if !is_wanted(record) || map.uid_count() < 2 || running_kernel() < SHIFTS_FUSE {
        return Ok(None);
    }
    let text = record.settings.user.as_str();
    let index = chain(engine, record)?;
    let objects = ObjectDirs::of(the_store(engine)?.objects())?;
    let read = |path: &str| {
        text_at(&index, &objects, Path::new(path), FILE_MAX).map_err(|error| Report::of(Kind::Internal, error))
    };
    // A user that is not there init will tell of.
    let identity = from_files(text, &read("/etc/passwd")?, &read("/etc/group")?).ok();
    Ok(identity.filter(|identity| identity.uid != 0).map(|identity| (identity.uid, identity.gid)))
}
