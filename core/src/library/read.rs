//! Reading a live file once, and knowing whether it held still meanwhile.

use super::walk::{file_times, open_below};
use crate::budget::CHUNK_BYTES;
use crate::model::{Content, FileTimes, Hasher, Sha256};
use bytes::Bytes;
use rustix::fs::{AtFlags, FileType, OFlags};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
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
    /// Of the file that this one is a copy of.
    copied: Option<FileTimes>,
}

/// Why a file could not be copied.
#[derive(Debug)]
pub enum CopyError {
    /// It could not be read.
    Read(ReadError),
    /// The copy could not be written.
    Write(io::Error),
}

impl From<ReadError> for CopyError {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
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
        Ok(Self { file: File::from(fd), times: file_times(&stat), copied: None })
    }

    /// The same, as a copy of a file of which `fstat` said `times`.
    ///
    /// # Errors
    /// [`ReadError::Changed`] where their sizes differ.
    pub fn as_copy_of(self, times: FileTimes) -> Result<Self, ReadError> {
        if self.times.size_bytes == times.size_bytes { Ok(Self { copied: Some(times), ..self }) } else { Err(ReadError::Changed) }
    }

    /// What `fstat` said when it was opened; for a copy, what it said of the original.
    #[must_use]
    pub fn times(&self) -> FileTimes {
        self.copied.unwrap_or(self.times)
    }

    /// Copies the file whole into the empty file `to`: by a clone, which shares its blocks, where the file system can; else within the kernel; else by
    /// reading and writing. `moved` is told of bytes, and answers whether it wants more.
    ///
    /// # Errors
    /// See [`CopyError`]; as [`Self::read_whole`]. What is in `to` is worthless then.
    pub fn copy_into(mut self, to: &File, mut moved: impl FnMut(u64) -> bool) -> Result<(), CopyError> {
        if rustix::fs::ioctl_ficlone(to, &self.file).is_ok() {
            moved(self.times.size_bytes);
        } else {
            let copied = self.copy_in_kernel(to, &mut moved)?;
            self.copy_rest(to, copied, &mut moved)?;
        }
        Ok(self.check_unchanged()?)
    }

    /// As far as the kernel copies; what it cannot is left to [`Self::copy_rest`], which knows whether reading or writing fails.
    fn copy_in_kernel(&self, to: &File, moved: &mut impl FnMut(u64) -> bool) -> Result<u64, CopyError> {
        let (mut from_offset, mut to_offset) = (0, 0);
        while from_offset < self.times.size_bytes {
            let wanted = usize::try_from(self.times.size_bytes - from_offset).unwrap_or(usize::MAX).min(COPIED_BYTES);
            match rustix::fs::copy_file_range(&self.file, Some(&mut from_offset), to, Some(&mut to_offset), wanted) {
                Ok(count) if count > 0 => {
                    if !moved(count as u64) {
                        return Err(ReadError::Stopped.into());
                    }
                }
                Err(error) if is_full(error) => return Err(CopyError::Write(error.into())),
                Err(rustix::io::Errno::INTR) => {}
                Ok(_) | Err(_) => break,
            }
        }
        Ok(to_offset)
    }

    fn copy_rest(&mut self, to: &File, from: u64, moved: &mut impl FnMut(u64) -> bool) -> Result<(), CopyError> {
        let mut to = to;
        self.file.seek(io::SeekFrom::Start(from)).map_err(ReadError::from)?;
        to.seek(io::SeekFrom::Start(from)).map_err(CopyError::Write)?;
        let mut left = self.times.size_bytes.saturating_sub(from);
        let mut piece = Vec::new();
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            piece.clear();
            read_into(&mut self.file, &mut piece, wanted)?;
            to.write_all(&piece).map_err(CopyError::Write)?;
            left -= piece.len() as u64;
            if !moved(piece.len() as u64) {
                return Err(ReadError::Stopped.into());
            }
        }
        Ok(())
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

    /// SHA-256 of its first and last 64 KiB: files in which these differ are not the same.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn ends(mut self) -> Result<Sha256, ReadError> {
        let mut bytes = Vec::with_capacity(2 * END_BYTES);
        let wanted = usize::try_from(self.times.size_bytes).unwrap_or(END_BYTES).min(END_BYTES);
        read_into(&mut self.file, &mut bytes, wanted)?;
        self.file.seek(io::SeekFrom::Start(self.times.size_bytes - wanted as u64))?;
        read_into(&mut self.file, &mut bytes, wanted)?;
        Ok(Sha256::of(&bytes))
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

/// How much of a file's beginning and of its end is looked at to tell it from others of its size.
const END_BYTES: usize = 64 << 10;

/// What the kernel copies at a time: often enough for a bar, and for being stopped.
const COPIED_BYTES: usize = 64 << 20;

fn is_full(error: rustix::io::Errno) -> bool {
    matches!(error, rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_file_begins_and_ends_tells_it_from_others() {
        let folder = tempfile::tempdir().unwrap();
        let root: OwnedFd = File::open(folder.path()).unwrap().into();
        let ends = |bytes: &[u8]| {
            std::fs::write(folder.path().join("film"), bytes).unwrap();
            LiveFile::open(&root, Path::new("film")).and_then(LiveFile::ends).unwrap()
        };
        let film = vec![7; 5 * END_BYTES];
        let with = |at: usize| {
            let mut other = film.clone();
            *other.get_mut(at).unwrap() = 8;
            other
        };
        for (at, shows) in [(0, true), (END_BYTES - 1, true), (END_BYTES, false), (4 * END_BYTES - 1, false), (4 * END_BYTES, true), (5 * END_BYTES - 1, true)]
        {
            assert_eq!(ends(&film) != ends(&with(at)), shows, "at {at}");
        }
        for short in [0, 1, END_BYTES, END_BYTES + 1] {
            let (short, other) = (film.get(..short).unwrap(), vec![8; short]);
            assert_eq!(ends(short) == ends(&other), short.is_empty());
        }
        // It lost its end after it was opened.
        std::fs::write(folder.path().join("film"), &film).unwrap();
        let opened = LiveFile::open(&root, Path::new("film")).unwrap();
        std::fs::write(folder.path().join("film"), "x").unwrap();
        assert!(matches!(opened.ends(), Err(ReadError::Changed)));
    }
}
