//! The list of a stage: what the walk of the stopped library found, one JSON object a line. It was on a disk that others may write to: nothing of it is
//! believed but what can be checked.

use crate::budget::STAGE_LINE_BYTES_MAX;
use crate::library::walk::SYMBOLIC_LINK;
use crate::model::{FilePath, FileTimes, Root, RootPath};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};

/// One thing that the walk found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "found", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Line {
    /// A file that was copied.
    Staged(Staged),
    /// A file that is to be read where it lies.
    Live { root: String, path: RootPath, size: u64, rehash: bool },
    /// A file that stands in the manifest, or was met by the walk, and is not there.
    Vanished { root: String, path: RootPath },
    /// A folder that went away.
    Slipped {},
    /// A file or folder that could not be read.
    Unread { path: String, problem: String },
    /// A link, socket, pipe or device.
    Special { root: String, path: RootPath, kind: String },
}

/// A file that was copied, and what `fstat` said of the live one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Staged {
    /// As the manifest writes it.
    pub(super) root: String,
    pub(super) path: RootPath,
    /// Names the copy.
    pub(super) number: u64,
    pub(super) size: u64,
    pub(super) mtime_ns: i64,
    pub(super) ctime_ns: i64,
    pub(super) mode: u32,
    /// Whether the times were old enough, when it was copied, for a later change to show in them.
    pub(super) trusted: bool,
}

impl Staged {
    pub(super) fn times(&self) -> FileTimes {
        FileTimes { size_bytes: self.size, mtime_ns: self.mtime_ns, ctime_ns: self.ctime_ns, mode: self.mode & 0o7777 }
    }
}

/// The file of a line; `None` where it has no root of ours.
pub(super) fn file(root: &str, path: &RootPath) -> Option<FilePath> {
    Some(FilePath { root: Root::from_name_in_manifest(root).ok()?, path: path.clone() })
}

/// What the walk calls such a thing.
pub(super) fn kind(text: &str) -> &'static str {
    [SYMBOLIC_LINK, "socket", "pipe", "device"].into_iter().find(|kind| *kind == text).unwrap_or("special file")
}

pub(super) fn write(to: &mut impl io::Write, line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    to.write_all(&text)
}

/// The lines of a list; ends at the first one that is none of ours.
#[derive(Debug)]
pub(super) struct Lines(BufReader<File>);

impl Lines {
    pub(super) fn of(file: File) -> Self {
        Self(BufReader::new(file))
    }
}

impl Iterator for Lines {
    type Item = io::Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut text = Vec::new();
        match self.0.by_ref().take(STAGE_LINE_BYTES_MAX).read_until(b'\n', &mut text) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_slice(&text).map_err(io::Error::from)),
            Err(error) => Some(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn read(text: &[u8]) -> Vec<io::Result<Line>> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        Lines::of(file).take(10).collect()
    }

    #[test]
    fn what_was_written_is_read_and_nothing_else() {
        let staged = Staged {
            root: "%postgres".to_owned(),
            path: RootPath::parse("base/1/2").unwrap(),
            number: 7,
            size: 1,
            mtime_ns: -2,
            ctime_ns: 3,
            mode: 0o600,
            trusted: true,
        };
        let vanished = Line::Vanished { root: String::new(), path: RootPath::parse("upload/a").unwrap() };
        let mut text = Vec::new();
        for line in [&Line::Staged(staged.clone()), &vanished, &Line::Slipped {}] {
            write(&mut text, line).unwrap();
        }
        let lines: Vec<_> = read(&text).into_iter().map(Result::unwrap).collect();
        assert_eq!(lines, [Line::Staged(staged), vanished, Line::Slipped {}]);
        for hostile in [
            &br#"{"found":"staged","root":"","path":"../../etc/passwd","number":0,"size":1,"mtime_ns":0,"ctime_ns":0,"mode":0,"trusted":true}"#[..],
            br#"{"found":"vanished","root":"","path":"/etc/passwd"}"#,
            br#"{"found":"everything"}"#,
            br#"{"found":"slipped","and":"more"}"#,
            b"",
            b"\0\0\0\0",
        ] {
            let mut text = hostile.to_vec();
            text.push(b'\n');
            assert!(read(&text).iter().any(Result::is_err), "{}", String::from_utf8_lossy(hostile));
        }
        assert!(read(&vec![b'x'; 1 << 20]).iter().all(Result::is_err), "a line without an end is cut, and no memory is taken for it");
        assert!(file("no/root", &RootPath::parse("a").unwrap()).is_none());
    }
}
