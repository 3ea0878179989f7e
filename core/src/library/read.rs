//! Reading a live file once, and knowing whether it held still meanwhile.

use super::walk::{file_times, open_below};
use crate::budget::CHUNK_BYTES;
use crate::model::{Content, FileTimes, Hasher};
use bytes::Bytes;
use rustix::fs::{AtFlags, FileType, OFlags};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;

/// What became of a file that was to be read.
#[derive(Debug)]
pub enum ReadError {
    /// It is not there any more.
    Vanished,
    /// It is no regular file any more.
    NotRegular,
    /// It changed while it was read.
    Changed,
    /// The one who takes the bytes wants no more.
    Stopped,
    /// The file system refused.
    Io(io::Error),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        let raw = error.raw_os_error();
        if raw == Some(rustix::io::Errno::NOENT.raw_os_error()) || raw == Some(rustix::io::Errno::NOTDIR.raw_os_error()) {
            Self::Vanished
        } else if raw == Some(rustix::io::Errno::LOOP.raw_os_error()) {
            Self::NotRegular
        } else {
            Self::Io(error)
        }
    }
}

/// An open file of the library and what `fstat` said when it was opened.
#[derive(Debug)]
pub struct LiveFile {
    file: File,
    times: FileTimes,
}

impl LiveFile {
    /// Opens `path` below `root` without following any link.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn open(root: &OwnedFd, path: &Path) -> Result<Self, ReadError> {
        // NONBLOCK: a pipe that took the file's place must not hang the run.
        let fd = open_below(root, path, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let stat = rustix::fs::fstat(&fd).map_err(io::Error::from)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(ReadError::NotRegular);
        }
        Ok(Self { file: File::from(fd), times: file_times(&stat) })
    }

    /// What `fstat` said when it was opened.
    #[must_use]
    pub fn times(&self) -> FileTimes {
        self.times
    }

    /// Reads the file whole.
    ///
    /// # Errors
    /// See [`ReadError`]; a file that is larger or smaller than it said has [`ReadError::Changed`].
    pub fn read_whole(mut self) -> Result<(Bytes, Content), ReadError> {
        let size = usize::try_from(self.times.size_bytes).map_err(|_| ReadError::Changed)?;
        let mut bytes = Vec::with_capacity(size);
        let mut hasher = Hasher::default();
        while bytes.len() < size {
            let filled = bytes.len();
            read_into(&mut self.file, &mut bytes, HASHED_BYTES.min(size - filled))?;
            hasher.update(bytes.get(filled..).unwrap_or_default());
        }
        self.check_unchanged()?;
        Ok((Bytes::from(bytes), hasher.finish()))
    }

    /// Reads the file in pieces of at most [`CHUNK_BYTES`]; `take` gets each and answers whether it wants more.
    ///
    /// # Errors
    /// See [`ReadError`]. The pieces given out are worthless then.
    pub fn read_pieces(mut self, mut take: impl FnMut(Bytes) -> bool) -> Result<Content, ReadError> {
        let mut hasher = Hasher::default();
        let mut left = self.times.size_bytes;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            let mut piece = Vec::with_capacity(wanted);
            read_into(&mut self.file, &mut piece, wanted)?;
            left -= piece.len() as u64;
            hasher.update(&piece);
            if !take(Bytes::from(piece)) {
                return Err(ReadError::Stopped);
            }
        }
        self.check_unchanged()?;
        Ok(hasher.finish())
    }

    /// Reads the file for its digests alone.
    ///
    /// # Errors
    /// As [`Self::read_pieces`]; `wanted` is asked before each piece.
    pub fn hash(self, wanted: impl Fn() -> bool) -> Result<Content, ReadError> {
        self.read_pieces(|_| wanted())
    }

    fn check_unchanged(&mut self) -> Result<(), ReadError> {
        let at_end = read_some(&mut self.file, &mut [0])? == 0;
        let stat = rustix::fs::fstat(&self.file).map_err(io::Error::from)?;
        let now = file_times(&stat);
        // The times of reading themselves (atime) are not looked at, and ctime covers all the rest.
        if at_end && now == self.times { Ok(()) } else { Err(ReadError::Changed) }
    }
}

/// What is read is hashed while it is in the processor's cache.
const HASHED_BYTES: usize = 256 << 10;

/// Reads the next `wanted` bytes onto the end of `bytes`, which has room for them; it is not filled with zeros first.
fn read_into(file: &mut File, bytes: &mut Vec<u8>, wanted: usize) -> Result<(), ReadError> {
    let count = file.take(wanted as u64).read_to_end(bytes)?;
    if count == wanted { Ok(()) } else { Err(ReadError::Changed) }
}

fn read_some(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Whether a regular file is at `path`: its times, or `None` where there is nothing or something else.
///
/// # Errors
/// The file system refused to say.
pub fn look(root: &OwnedFd, path: &Path) -> io::Result<Option<FileTimes>> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let opened = parent.map(|parent| open_below(root, parent, OFlags::PATH | OFlags::DIRECTORY)).transpose();
    let folder = match opened {
        Ok(folder) => folder,
        // Gone, or a link or a file stands where a folder was: nothing of the library is there.
        Err(error) => {
            return match ReadError::from(error) {
                ReadError::Vanished | ReadError::NotRegular => Ok(None),
                ReadError::Io(error) => Err(error),
                ReadError::Changed | ReadError::Stopped => Ok(None),
            };
        }
    };
    let Some(name) = path.file_name() else { return Ok(None) };
    match rustix::fs::statat(folder.as_ref().unwrap_or(root), name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => Ok(Some(file_times(&stat))),
        Ok(_) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
