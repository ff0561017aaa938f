//! Paths as archives write them, turned into names below the root.

/// The longest name, `NAME_MAX` of Linux.
pub const NAME_MAX: usize = 255;
/// The longest path and link target, `PATH_MAX` of Linux.
pub const PATH_MAX: usize = 4096;

/// Why a path cannot be a place in a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Longer than [`PATH_MAX`].
    #[error("it is longer than {PATH_MAX} bytes")]
    TooLong,
    /// A name longer than [`NAME_MAX`].
    #[error("a name in it is longer than {NAME_MAX} bytes")]
    NameTooLong,
    /// A zero byte inside.
    #[error("it contains a zero byte")]
    Nul,
    /// `..` leads above the root.
    #[error("it leads out of the root")]
    Escapes,
}

/// The names of a path from the root down. Leading slashes, empty names and `.` are dropped, `..` takes the name
/// before it away. The root itself has no names. Bytes need not be UTF-8.
pub fn names(path: &[u8]) -> Result<Vec<&[u8]>, PathError> {
    if path.len() > PATH_MAX {
        return Err(PathError::TooLong);
    }
    if path.contains(&0) {
        return Err(PathError::Nul);
    }
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop().ok_or(PathError::Escapes)?;
            }
            _ if name.len() > NAME_MAX => return Err(PathError::NameTooLong),
            _ => names.push(name),
        }
    }
    Ok(names)
}

/// The names joined again, without a leading slash.
pub(crate) fn join(names: &[&[u8]]) -> Vec<u8> {
    names.join(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_what_names_nothing() {
        assert_eq!(names(b"/./usr//lib/"), Ok(vec![&b"usr"[..], b"lib"]));
        assert_eq!(names(b"./"), Ok(vec![]));
        assert_eq!(names(b"a/../b/\xff"), Ok(vec![&b"b"[..], b"\xff"]));
        assert_eq!(names(b"..."), Ok(vec![&b"..."[..]]));
    }

    #[test]
    fn refuses_what_is_no_place() {
        assert_eq!(names(b"../etc"), Err(PathError::Escapes));
        assert_eq!(names(b"a/../../etc"), Err(PathError::Escapes));
        assert_eq!(names(b"a\0b"), Err(PathError::Nul));
        assert_eq!(names(&[b'a'; 256]), Err(PathError::NameTooLong));
        assert!(names(&[b'a'; 255]).is_ok());
        assert_eq!(names(&b"a/".repeat(2049)), Err(PathError::TooLong));
    }
}
