//! Files that somebody named and that are read whole: a FIFO in such a place would keep whoever opens it waiting for ever.

use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io;
use std::path::Path;

/// Opens the regular file at `path` for reading, and nothing else that may be there.
///
/// # Errors
/// It cannot be opened, or is no regular file.
pub fn open(path: &Path) -> io::Result<File> {
    // The open of a FIFO would wait for who writes into it.
    let file = File::from(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(none()) }
}

/// What is said where something else is in the place of a regular file.
#[must_use]
pub fn none() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")
}
