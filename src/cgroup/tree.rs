//! Where the version 2 tree is mounted and where in it a process stands: proc_pid_mountinfo(5), cgroups(7).

use std::path::{Path, PathBuf};

/// The mount of the version 2 tree that shows our own cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// Where it is mounted.
    pub point: PathBuf,
    /// Which cgroup is at the mount's root, as `/proc/self/cgroup` would name it.
    root: PathBuf,
    /// The directory of our own cgroup.
    pub own: PathBuf,
}

impl Tree {
    /// Finds it; the failure is worded for a ladder.
    pub fn find() -> Result<Self, String> {
        let mountinfo = sys::file::read_text("/proc/self/mountinfo").map_err(|error| error.to_string())?;
        let cgroup = sys::file::read_text("/proc/self/cgroup").map_err(|error| error.to_string())?;
        Tree::parse(&mountinfo, &cgroup).ok_or_else(|| "no cgroup v2 tree is mounted that shows our cgroup".to_owned())
    }

    /// The last mount of a tree hides the earlier ones.
    fn parse(mountinfo: &str, cgroup: &str) -> Option<Self> {
        let own = of_proc(cgroup)?;
        let mounts = mountinfo.lines().rev().filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let mut fields = before.split(' ');
            let (root, point) = (fields.nth(3)?, fields.next()?);
            (after.split(' ').next()? == "cgroup2").then_some((root, point))
        });
        mounts.into_iter().find_map(|(root, point)| {
            let mut tree = Tree { point: point.into(), root: root.into(), own: PathBuf::new() };
            tree.own = tree.at(own)?;
            Some(tree)
        })
    }

    /// The directory of a cgroup by its name in `/proc/PID/cgroup`; `None` when the mount does not show it.
    pub fn at(&self, cgroup: &str) -> Option<PathBuf> {
        let below = Path::new(cgroup).strip_prefix(&self.root).ok()?;
        Some(self.point.join(below).components().collect())
    }

    /// The directory of a process's cgroup.
    pub fn of_process(&self, pid: i32) -> Option<PathBuf> {
        let text = sys::file::read_text(format!("/proc/{pid}/cgroup")).ok()?;
        self.at(of_proc(&text)?)
    }
}

/// The version 2 line of `/proc/PID/cgroup`.
pub fn of_proc(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_directory_follows_from_two_files_of_proc() {
        let locate = |mountinfo, cgroup| Tree::parse(mountinfo, cgroup).map(|tree| tree.own);
        let unified =
            "25 1 0:23 / /proc rw - proc proc rw\n30 1 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";
        let own = "0::/user.slice/user-1000.slice/session-3.scope\n";
        let found = locate(unified, own).map(|path| path.display().to_string());
        assert_eq!(found.as_deref(), Some("/sys/fs/cgroup/user.slice/user-1000.slice/session-3.scope"));
        let hybrid = "31 1 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n32 1 0:29 / /sys/fs/cgroup/unified rw - cgroup2 x rw\n";
        assert_eq!(locate(hybrid, "4:pids:/a\n0::/\n"), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let inside = "30 1 0:27 /a/b /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(locate(inside, "0::/a/b/c\n"), Some(PathBuf::from("/sys/fs/cgroup/c")));
        assert_eq!(locate(inside, "0::/elsewhere\n"), None);
        assert_eq!(locate("", own), None);
        assert_eq!(locate(unified, "4:pids:/a\n"), None);
    }
}
