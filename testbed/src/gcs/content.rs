//! The bytes of objects: hashed while they arrive, small ones kept in memory, others in a folder.
//!
//! Files are written and read on the runtime's threads: a block goes to the page cache sooner than it would reach another thread.

use super::http::Body;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use md5::{Digest, Md5};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use tempfile::{TempDir, TempPath};

/// An object up to this size never becomes a file.
const MEMORY_BYTES_MAX: usize = 32 * 1024;

/// What is read from or written to a file at once.
const BLOCK_BYTES: usize = 256 * 1024;

/// What Cloud Storage keeps of an object's content: every object has a CRC32C, one assembled from parts has no MD5.
///
/// <https://cloud.google.com/storage/docs/metadata#checksums>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksums {
    /// CRC32C (Castagnoli).
    pub crc32c: u32,
    /// MD5, unless the object was assembled from parts.
    pub md5: Option<[u8; 16]>,
}

impl Checksums {
    /// Returns the CRC32C as Cloud Storage writes it: big-endian, in base64.
    #[must_use]
    pub fn crc32c_base64(&self) -> String {
        BASE64_STANDARD.encode(self.crc32c.to_be_bytes())
    }

    /// Returns the MD5 in base64, if there is one.
    #[must_use]
    pub fn md5_base64(&self) -> Option<String> {
        self.md5.map(|md5| BASE64_STANDARD.encode(md5))
    }
}

/// Takes in bytes; can be asked for checksums at any time.
pub(super) struct Sink {
    memory: Vec<u8>,
    file: Option<(BufWriter<File>, TempPath)>,
    size_bytes: u64,
    crc32c: crc_fast::Digest,
    md5: Md5,
}

impl Sink {
    pub(super) fn new() -> Self {
        Self { memory: Vec::new(), file: None, size_bytes: 0, crc32c: crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi), md5: Md5::new() }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(super) fn write(&mut self, folder: &TempDir, bytes: &[u8]) -> io::Result<()> {
        if self.file.is_none() && self.memory.len() + bytes.len() > MEMORY_BYTES_MAX {
            let (file, path) = tempfile::Builder::new().tempfile_in(folder.path())?.into_parts();
            let mut file = BufWriter::with_capacity(BLOCK_BYTES, file);
            file.write_all(&std::mem::take(&mut self.memory))?;
            self.file = Some((file, path));
        }
        match &mut self.file {
            Some((file, _)) => file.write_all(bytes)?,
            None => self.memory.extend_from_slice(bytes),
        }
        self.size_bytes += bytes.len() as u64;
        self.crc32c.update(bytes);
        self.md5.update(bytes);
        Ok(())
    }

    pub(super) fn finish(self) -> io::Result<(Content, Checksums)> {
        // The upper half of a 32-bit sum is always zero.
        let crc32c = u32::try_from(self.crc32c.finalize()).unwrap_or(u32::MAX);
        let checksums = Checksums { crc32c, md5: Some(self.md5.finalize().into()) };
        let content = match self.file {
            None => Content::Memory(self.memory.into()),
            Some((file, path)) => {
                file.into_inner().map_err(io::IntoInnerError::into_error)?;
                Content::File { path, size_bytes: self.size_bytes }
            }
        };
        Ok((content, checksums))
    }
}

/// An object's bytes. They are gone when the last handle is.
pub(super) enum Content {
    Memory(Bytes),
    /// Kept by path: thousands of open files would meet the limit of a process.
    File {
        path: TempPath,
        size_bytes: u64,
    },
}

impl Content {
    pub(super) fn of(folder: &TempDir, bytes: &[u8]) -> io::Result<(Self, Checksums)> {
        let mut sink = Sink::new();
        sink.write(folder, bytes)?;
        sink.finish()
    }

    pub(super) fn size_bytes(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { size_bytes, .. } => *size_bytes,
        }
    }

    pub(super) fn read(&self) -> io::Result<Vec<u8>> {
        match self {
            Self::Memory(bytes) => Ok(bytes.to_vec()),
            Self::File { path, .. } => std::fs::read(path),
        }
    }

    /// Hands everything to `write`, a block at a time.
    pub(super) fn copy(&self, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        match self {
            Self::Memory(bytes) => write(bytes),
            Self::File { path, size_bytes } => {
                let file = File::open(path)?;
                let mut at = 0;
                while at < *size_bytes {
                    let block = read_block(&file, at, *size_bytes)?;
                    write(&block)?;
                    at += block.len() as u64;
                }
                Ok(())
            }
        }
    }

    /// Returns a body of the bytes in `range`, which lies within the content.
    pub(super) fn body(&self, range: Range<u64>) -> io::Result<Body> {
        Ok(match self {
            Self::Memory(bytes) => {
                let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                Full::new(bytes.slice(at(range.start)..at(range.end))).map_err(|never| match never {}).boxed_unsync()
            }
            Self::File { path, .. } => {
                let file = File::open(path)?;
                let blocks = futures_util::stream::try_unfold(range.start, move |at| {
                    let block = if at < range.end { read_block(&file, at, range.end).map(Some) } else { Ok(None) };
                    async move { Ok(block?.map(|block| (Frame::data(block.clone()), at + block.len() as u64))) }
                });
                StreamBody::new(blocks).boxed_unsync()
            }
        })
    }
}

/// Reads from `at` up to `end`, a block at most; never nothing.
fn read_block(file: &File, at: u64, end: u64) -> io::Result<Bytes> {
    let mut block = vec![0; usize::try_from(end - at).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES)];
    file.read_exact_at(&mut block, at)?;
    Ok(block.into())
}
