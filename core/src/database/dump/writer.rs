//! Where a compressed dump goes: a spool file, or the store as it comes.

use super::{Destination, DumpError};
use crate::budget::DUMP_BLOCKS_QUEUED_MAX;
use crate::model::Sha256;
use crate::repository::store::Upload;
use crate::task::joined;
use bytes::Bytes;
use sha2::Digest as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

/// Takes the compressed dump.
pub(super) enum Writer {
    Spool(Spool),
    Upload { upload: Box<dyn Upload>, sha256: sha2::Sha256, size_bytes: u64 },
}

/// Writes on a thread of its own.
pub(super) struct Spool {
    path: PathBuf,
    /// Dropped to end it.
    blocks: Option<mpsc::Sender<Bytes>>,
    thread: Option<tokio::task::JoinHandle<io::Result<(u64, Sha256)>>>,
}

fn spool(path: &Path, mut blocks: mpsc::Receiver<Bytes>) -> io::Result<(u64, Sha256)> {
    let mut options = std::fs::OpenOptions::new();
    // What is in a dump is nobody else's business.
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.write(true).create(true).truncate(true).open(path)?;
    let (mut sha256, mut size_bytes) = (sha2::Sha256::default(), 0);
    while let Some(block) = blocks.blocking_recv() {
        file.write_all(&block)?;
        sha256.update(&block);
        size_bytes += block.len() as u64;
    }
    Ok((size_bytes, Sha256(sha256.finalize().into())))
}

impl Spool {
    fn begin(path: &Path) -> Self {
        let (sender, blocks) = mpsc::channel(DUMP_BLOCKS_QUEUED_MAX);
        let writing = path.to_owned();
        let thread = tokio::task::spawn_blocking(move || spool(&writing, blocks));
        Self { path: path.to_owned(), blocks: Some(sender), thread: Some(thread) }
    }

    async fn write(&mut self, block: Bytes) -> Result<(), DumpError> {
        let sent = match &self.blocks {
            Some(blocks) => blocks.send(block).await.is_ok(),
            None => false,
        };
        // It ended before its time: it says why.
        if sent { Ok(()) } else { self.end().await.map(|_| ()) }
    }

    async fn end(&mut self) -> Result<(u64, Sha256), DumpError> {
        self.blocks = None;
        let written = match self.thread.take() {
            Some(thread) => joined(thread.await),
            None => Err(io::Error::other("it has ended")),
        };
        written.map_err(|source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let folder = self.path.parent().map_or_else(|| self.path.clone(), Path::to_owned);
                DumpError::SpoolFull { folder, source }
            }
            _ => DumpError::Spool { path: self.path.clone(), source },
        })
    }
}

impl Writer {
    pub(super) async fn begin(destination: &Destination) -> Result<Self, DumpError> {
        Ok(match destination {
            Destination::Spool(path) => Self::Spool(Spool::begin(path)),
            Destination::Store { store, key, attributes } => {
                let upload = store.create_streamed(key, attributes).await?;
                Self::Upload { upload, sha256: sha2::Sha256::default(), size_bytes: 0 }
            }
        })
    }

    pub(super) async fn write(&mut self, block: Bytes) -> Result<(), DumpError> {
        match self {
            Self::Spool(spool) => spool.write(block).await,
            Self::Upload { upload, sha256, size_bytes } => {
                sha256.update(&block);
                *size_bytes += block.len() as u64;
                Ok(upload.write(block).await?)
            }
        }
    }

    pub(super) async fn end(self) -> Result<(u64, Sha256, Option<Box<dyn Upload>>), DumpError> {
        Ok(match self {
            Self::Spool(mut spool) => {
                let (size_bytes, sha256) = spool.end().await?;
                (size_bytes, sha256, None)
            }
            Self::Upload { upload, sha256, size_bytes } => (size_bytes, Sha256(sha256.finalize().into()), Some(upload)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_disk_names_the_folder_and_the_remedy() {
        let mut spool = Spool::begin(Path::new("/dev/full"));
        let mut result = Ok(());
        for _ in 0..10 {
            result = spool.write(Bytes::from_static(b"text")).await;
            if result.is_err() {
                break;
            }
        }
        let error = result.unwrap_err();
        assert!(matches!(&error, DumpError::SpoolFull { folder, .. } if folder == Path::new("/dev")), "{error:?}");
        assert!(error.hint().unwrap().contains("--state-dir"));
    }
}
