//! Reading a file that is put aside when it is full (`monitor::log`): through all of its files, oldest first, and on as it grows.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use monitor::log;

/// A place in such a file.
pub(crate) struct Reader<'a> {
    directory: &'a Path,
    /// What is read after `file`, newest first.
    later: Vec<File>,
    /// `None` until there is a log.
    file: Option<BufReader<File>>,
    /// A line whose end is not written yet.
    partial: Vec<u8>,
}

impl<'a> Reader<'a> {
    /// At the last lines, or the beginning.
    pub(crate) fn at_tail(directory: &'a Path, tail: Option<u64>) -> io::Result<Self> {
        let mut later = Vec::new();
        let mut wanted = tail;
        for mut file in files(directory)?.into_iter().rev() {
            if wanted == Some(0) && !later.is_empty() {
                break;
            }
            if let Some(lines) = &mut wanted {
                let (start, found) = start_of_tail(&mut file, *lines)?;
                file.seek(SeekFrom::Start(start))?;
                *lines -= found;
            }
            later.push(file);
        }
        let mut reader = Reader { directory, later, file: None, partial: Vec::new() };
        reader.file = reader.later.pop().map(buffered);
        Ok(reader)
    }

    /// The next whole line, with its newline; `None` at the end of what is written.
    pub(crate) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let Some(file) = &mut self.file else {
                if !self.begin()? {
                    return Ok(None);
                }
                continue;
            };
            file.read_until(b'\n', &mut self.partial)?;
            if self.partial.last() == Some(&b'\n') {
                return Ok(Some(std::mem::take(&mut self.partial)));
            } else if !self.go_on()? {
                return Ok(None);
            }
        }
    }

    /// Opens one that was not there before.
    fn begin(&mut self) -> io::Result<bool> {
        self.later = files(self.directory)?;
        self.later.reverse();
        self.file = self.later.pop().map(buffered);
        Ok(self.file.is_some())
    }

    /// At the end of a file: whether there is another to go on with, or the same has grown meanwhile.
    fn go_on(&mut self) -> io::Result<bool> {
        if self.later.is_empty() {
            let Some(file) = &self.file else { return Ok(false) };
            let own = file.get_ref().metadata()?.ino();
            let all = files(self.directory)?;
            let inodes = all.iter().map(|file| file.metadata().map(|metadata| metadata.ino()));
            let inodes: Vec<u64> = inodes.collect::<io::Result<_>>()?;
            if inodes.last().is_none_or(|last| *last == own) {
                return Ok(false);
            }
            // Where ours is not among them it was removed, and all of them are newer.
            let newer = inodes.iter().position(|inode| *inode == own).map_or(0, |place| place + 1);
            self.later = all.into_iter().skip(newer).rev().collect();
            // It may have grown between the read and its being put aside.
            return Ok(true);
        }
        self.partial.clear();
        self.file = self.later.pop().map(buffered);
        Ok(true)
    }
}

fn buffered(file: File) -> BufReader<File> {
    BufReader::with_capacity(64 << 10, file)
}

/// Its files, oldest first. Until they are all open another may be put aside, and then this begins anew.
fn files(directory: &Path) -> io::Result<Vec<File>> {
    loop {
        let numbers = log::set_aside(directory)?;
        let names = numbers.iter().map(|number| log::aside(*number)).chain([log::NAME.to_owned()]);
        let opened = names.map(|name| match File::open(directory.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            file => file.map(Some),
        });
        let opened: Vec<Option<File>> = opened.collect::<io::Result<_>>()?;
        if log::set_aside(directory)? == numbers {
            return Ok(opened.into_iter().flatten().collect());
        }
    }
}

/// Where the last `lines` lines begin, and how many there are of them, searched backwards in blocks. A line of the container that
/// was cut into pieces
/// counts by its pieces.
fn start_of_tail(file: &mut File, lines: u64) -> io::Result<(u64, u64)> {
    const BLOCK: u64 = 64 << 10;
    let mut end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok((end, 0));
    }
    // The newline that ends the last line begins none.
    let mut wanted = lines + 1;
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(start))?;
        block.clear();
        file.by_ref().take(end - start).read_to_end(&mut block)?;
        for (position, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            wanted -= 1;
            if wanted == 0 {
                return Ok((start + position as u64 + 1, lines));
            }
        }
        end = start;
    }
    // The first line begins without a newline before it.
    Ok((0, lines + 1 - wanted))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_tail_begins_at_a_line() {
        let mut file = tempfile::tempfile().unwrap();
        for number in 0..20_000 {
            writeln!(file, "line {number:05}").unwrap();
        }
        for (lines, start) in [(0, 220_000), (1, 219_989), (2, 219_978), (19_999, 11), (20_000, 0), (90_000, 0)] {
            assert_eq!(start_of_tail(&mut file, lines).unwrap(), (start, lines.min(20_000)), "{lines}");
        }
    }
}
