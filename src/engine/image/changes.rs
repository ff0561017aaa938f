//! What the last layer of an image changes in those below it: `image diff`, in the words of a container's `diff`.

use base::{Kind as ErrorKind, Report};
use index::{Index, Kind, Node};

use crate::Engine;
use crate::container::diff::{Change, ChangeKind};
use crate::image::{find, open_store};

/// The changes of an image's last layer, by path.
pub fn changes(engine: &Engine, text: &str) -> Result<Vec<Change>, Report> {
    let image = find(engine, text)?;
    let missing = || Report::new(ErrorKind::NotFound, format!("No such image: {text}"));
    let store = open_store(engine)?.ok_or_else(missing)?;
    let Some((last, below)) = image.config.diff_ids.split_last() else { return Ok(Vec::new()) };
    let last = layer::open_layer(&store, *last)?;
    let below = below.iter().map(|layer| layer::open_layer(&store, *layer)).collect::<Result<Vec<_>, _>>()?;
    let below = if below.is_empty() {
        None
    } else {
        Some(Index::from_bytes(index::merge(&below.iter().collect::<Vec<_>>())?)?)
    };
    let root = below.as_ref().map(Index::root);
    let mut found = Vec::new();
    let mut open = vec![(last.root(), root, String::new())];
    while let Some((directory, old, path)) = open.pop() {
        compare(&last, directory, below.as_ref().zip(old), &path, &mut open, &mut found)?;
    }
    found.sort();
    Ok(found)
}

/// One directory of the layer against the same below.
fn compare(
    layer: &Index,
    directory: Node,
    below: Option<(&Index, Node)>,
    path: &str,
    open: &mut Vec<(Node, Option<Node>, String)>,
    found: &mut Vec<Change>,
) -> Result<(), index::Damaged> {
    let opaque = layer.inode(directory)?.opaque;
    for dirent in layer.dirents(directory)?.iter() {
        let dirent = dirent?;
        let path = format!("{path}/{}", String::from_utf8_lossy(dirent.name));
        let old = match below {
            Some((below, node)) => below.lookup(node, dirent.name)?,
            None => None,
        };
        let kind = match (dirent.kind, &old) {
            (Kind::Whiteout, None) => continue,
            (Kind::Whiteout, Some(_)) => ChangeKind::Deleted,
            (_, None) => ChangeKind::Added,
            (_, Some(_)) => ChangeKind::Changed,
        };
        found.push(Change { path: path.clone(), kind });
        if dirent.kind == Kind::Directory {
            open.push((dirent.node, old.map(|old| old.node), path));
        }
    }
    if let Some((below, node)) = below.filter(|_| opaque) {
        for dirent in below.dirents(node)?.iter() {
            let dirent = dirent?;
            if layer.lookup(directory, dirent.name)?.is_none() {
                let path = format!("{path}/{}", String::from_utf8_lossy(dirent.name));
                found.push(Change { path, kind: ChangeKind::Deleted });
            }
        }
    }
    Ok(())
}
