//! Which ids the containers of root get: never root's own, and never those of somebody else.
//!
//! In this order: a range that `/etc/subuid` and `/etc/subgid` give to the user `sublet`, `containers` or `root`; the
//! block that was taken the last time; the first free block above 2^20. Where root itself is in a user namespace that
//! offers none of these (inside another container), a part of what is offered, without id 0.
//!
//! The block is kept by the caller, so that files which a killed container has left keep their owners' ids. Nothing
//! tells other programs about it: who wants that gives a range to the user `sublet`.

use std::os::unix::fs::MetadataExt;

use sys::namespace::Extent;

use crate::outer::{FULL_RANGE, OuterMap};

/// Users whose subordinate ids are for containers of root.
const NAMES: [&str; 3] = ["sublet", "containers", "root"];
/// Blocks begin here: above 16-bit ids, and above what distributions give to the first users.
const FIRST_BLOCK: u32 = 1 << 20;
/// From here on ids are negative for programs that take them for signed numbers.
const LAST: u32 = 1 << 31;

/// What the choice depends on, as text.
#[derive(Clone, Debug)]
pub struct Host {
    /// `/etc/subuid` and `/etc/subgid`.
    pub subordinate: [String; 2],
    /// `/proc/self/uid_map` and `gid_map`: the ids that exist for us.
    pub offered: [String; 2],
    /// Whether our id 0 is that of the whole machine, which files of `/proc/sys` belong to.
    pub root_is_everybodys: bool,
}

impl Host {
    /// The host as it is; a file that is missing is empty.
    pub fn read() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Host {
            subordinate: ["/etc/subuid", "/etc/subgid"].map(read),
            offered: ["/proc/self/uid_map", "/proc/self/gid_map"].map(read),
            // Where it cannot be told, nothing is risked.
            root_is_everybodys: std::fs::metadata("/proc/sys").map_or(true, |sysctls| sysctls.uid() == 0),
        }
    }
}

/// The map of root's outer namespace, and the start of the block if one was taken; `None` where only id 0 is offered.
pub fn choose(host: &Host, recorded: Option<u32>) -> Option<(OuterMap, Option<u32>)> {
    let offered = [0, 1].map(|kind| offered(&host.offered[kind]));
    let given = [0, 1].map(|kind| given(&host.subordinate[kind], &offered[kind]));
    let mut block = None;
    if given.contains(&None) {
        let taken: Vec<Extent> =
            host.subordinate.iter().flat_map(|text| text.lines().filter_map(|line| Some(range(line)?.1))).collect();
        let free = |start: &u32| {
            let wanted = Extent { inside: 0, outside: *start, size: FULL_RANGE };
            offered.iter().all(|extents| extents.iter().any(|extent| contains(extent, &wanted)))
                && !taken.iter().any(|other| overlap(other, &wanted))
        };
        block = recorded.into_iter().chain((FIRST_BLOCK..LAST).step_by(FULL_RANGE as usize)).find(free);
    }
    let map = |kind: usize| {
        let (outside, size) = match (given[kind], block) {
            (Some(start), _) | (None, Some(start)) => (start, FULL_RANGE),
            (None, None) => part(&offered[kind])?,
        };
        Some(vec![Extent { inside: 0, outside, size }])
    };
    Some((OuterMap { uids: map(0)?, gids: map(1)?, setgroups: true }, block))
}

/// A full range of one of [`NAMES`].
fn given(subordinate: &str, offered: &[Extent]) -> Option<u32> {
    let of = |name: &str| {
        let ranges = subordinate.lines().filter_map(range).filter(|(owner, _)| *owner == name).map(|(_, range)| range);
        let full = |range: &Extent| {
            let wanted = Extent { size: FULL_RANGE, ..*range };
            range.size >= FULL_RANGE && offered.iter().any(|extent| contains(extent, &wanted))
        };
        ranges.into_iter().find(full).map(|range| range.outside)
    };
    NAMES.into_iter().find_map(of)
}

/// The largest part of what is offered that leaves id 0 out.
fn part(offered: &[Extent]) -> Option<(u32, u32)> {
    let without_root = |extent: &Extent| {
        let start = extent.outside.max(1);
        (start, (extent.size - (start - extent.outside)).min(FULL_RANGE))
    };
    offered.iter().map(without_root).filter(|(_, size)| *size > 0).max_by_key(|(_, size)| *size)
}

/// The ids of a map file, as extents of *our* ids. One that would not fit ends at the largest id.
fn offered(map: &str) -> Vec<Extent> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace().map(str::parse::<u32>);
        let (inside, size) = (fields.next()?.ok()?, fields.nth(1)?.ok()?);
        Some(Extent { inside: 0, outside: inside, size: size.min(u32::MAX - inside) })
    };
    map.lines().filter_map(line).collect()
}

/// `OWNER:START:COUNT` of subuid(5).
fn range(line: &str) -> Option<(&str, Extent)> {
    let mut fields = line.trim().split(':');
    let (owner, start, size) = (fields.next()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let fits = size > 0 && u32::checked_add(start, size).is_some();
    fits.then_some((owner, Extent { inside: 0, outside: start, size }))
}

fn contains(extent: &Extent, wanted: &Extent) -> bool {
    wanted.outside >= extent.outside
        && wanted.outside - extent.outside <= extent.size.saturating_sub(wanted.size)
        && wanted.size <= extent.size
}

fn overlap(one: &Extent, other: &Extent) -> bool {
    one.outside < other.outside + other.size && other.outside < one.outside + one.size
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = "         0          0 4294967295\n";

    fn chosen(
        subuid: &str,
        subgid: &str,
        offered: &str,
        recorded: Option<u32>,
    ) -> Option<(u32, u32, u32, Option<u32>)> {
        let host = Host {
            subordinate: [subuid.to_owned(), subgid.to_owned()],
            offered: [offered.to_owned(), offered.to_owned()],
            root_is_everybodys: true,
        };
        let (map, block) = choose(&host, recorded)?;
        assert_eq!((map.uids.len(), map.gids.len(), map.uids[0].inside, map.uids[0].size), (1, 1, 0, map.gids[0].size));
        Some((map.uids[0].outside, map.gids[0].outside, map.uids[0].size, block))
    }

    #[test]
    fn a_range_that_is_set_aside_comes_first() {
        let named = "anna:100000:65536\nnotroot:200000:65536\ncontainers:2147483647:65536\nroot:300000:65535\n";
        assert_eq!(chosen(named, named, ALL, None), Some((2_147_483_647, 2_147_483_647, 65_536, None)));
        let both = "root:1:65536\nsublet:5000000:131072\n";
        assert_eq!(chosen(both, both, ALL, Some(1 << 20)), Some((5_000_000, 5_000_000, 65_536, None)));
    }

    #[test]
    fn a_free_block_is_taken_and_kept() {
        let users = "anna:100000:65536\nbert:1000000:65536\n";
        assert_eq!(chosen("", "", ALL, None), Some((1 << 20, 1 << 20, 65_536, Some(1 << 20))));
        let second = (1 << 20) + 65_536;
        assert_eq!(chosen(users, "", ALL, None), Some((second, second, 65_536, Some(second))));
        // Bert has gone; what was taken stays.
        assert_eq!(chosen("", "", ALL, Some(second)), Some((second, second, 65_536, Some(second))));
        // Carl has come: it is his now.
        let third = second + 65_536;
        let carl = "bert:1000000:65536\ncarl:1114112:65536\n";
        assert_eq!(chosen(carl, carl, ALL, Some(second)), Some((third, third, 65_536, Some(third))));
    }

    #[test]
    fn one_file_may_have_a_range_and_the_other_not() {
        assert_eq!(chosen("sublet:500000:65536", "", ALL, None), Some((500_000, 1 << 20, 65_536, Some(1 << 20))));
    }

    #[test]
    fn inside_another_container_a_part_of_what_is_offered_is_taken() {
        assert_eq!(chosen("", "", "0 100000 65536\n", None), Some((1, 1, 65_535, None)));
        assert_eq!(chosen("", "", "0 1000 1\n1 100000 65536\n", Some(1 << 20)), Some((1, 1, 65_536, None)));
        assert_eq!(chosen("root:100000:65536", "", "0 1000 1\n1 100000 300\n", None), Some((1, 1, 300, None)));
        assert_eq!(chosen("", "", "0 1000 1\n", None), None);
        assert_eq!(chosen("", "", "", None), None);
    }

    #[test]
    fn what_is_no_range_is_passed_over() {
        let odd = "\nroot\nroot:x:y\nroot:4294967295:65536\nroot:100000:0\nsublet:: \n";
        assert_eq!(chosen(odd, odd, ALL, None), Some((1 << 20, 1 << 20, 65_536, Some(1 << 20))));
    }
}
