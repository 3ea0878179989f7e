//! Bringing a dump that is whole into the repository, under a name that nobody else has.

use super::compress::Compression;
use super::dump::Dumped;
use crate::budget::ONE_SHOT_BYTES_MAX;
use crate::repository::key::Key;
use crate::repository::log::DumpFact;
use crate::repository::store::{Attributes, Created, Kind, Store, StoreError, Upload, stream_file};
use crate::task::blocking;
use bytes::Bytes;
use jiff::SignedDuration;
use std::path::{Path, PathBuf};

/// Names that are tried for a dump, a second apart: another one may have begun in the same second.
const NAMES_TRIED_MAX: i64 = 60;

/// A dump that is known to be whole.
#[derive(Debug)]
pub struct Whole {
    /// What `pg_dump` gave.
    pub dumped: Dumped,
    /// How it is compressed.
    pub compression: Compression,
    /// Immich's version, where anything told.
    pub immich_version: Option<String>,
    /// Rows in all tables together.
    pub rows: u64,
}

impl Whole {
    fn fact(&self, key: &Key) -> DumpFact {
        let dumped = &self.dumped;
        DumpFact {
            key: key.to_string(),
            sha256: dumped.sha256,
            size: dumped.size_bytes,
            plain_size: dumped.plain_bytes,
            taken_at: dumped.taken_at,
            immich_version: self.immich_version.clone(),
            server_version: Some(dumped.server.short_version().to_owned()),
            program_version: Some(dumped.program_version.clone()),
            rows: self.rows,
            before_restore: false,
            without_data: dumped.without_data.clone(),
        }
    }

    /// Sends the compressed dump that lies in the file `spool`. Durable when this returns; the log does not know it yet.
    ///
    /// # Errors
    /// It could not be stored.
    pub async fn send(&self, store: &dyn Store, spool: &Path) -> Result<DumpFact, StoreError> {
        let Dumped { taken_at, size_bytes, sha256, .. } = &self.dumped;
        let attributes = Attributes { kind: Kind::Dump, sha256: Some(*sha256), mtime_ns: None, size_bytes: Some(*size_bytes) };
        let version = self.immich_version.as_deref().unwrap_or("unknown");
        let key = |later| Key::dump(*taken_at + SignedDuration::from_secs(later), version, self.compression.extension());
        for later in 0..NAMES_TRIED_MAX {
            let key = key(later);
            let created = if *size_bytes <= ONE_SHOT_BYTES_MAX {
                store.create(&key, read(spool.to_owned()).await?, &attributes).await
            } else {
                let mut upload = store.create_streamed(&key, &attributes).await?;
                stream_file(spool, upload.as_mut()).await?;
                upload.finish(sha256).await
            };
            match created {
                Ok(Created::New) => {
                    store.sync().await?;
                    return Ok(self.fact(&key));
                }
                // Begun in the same second by somebody else, or sent and never answered: the next second is free.
                Ok(Created::Exists | Created::Unnameable) | Err(StoreError::Unanswered { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(taken(&key(0)))
    }

    /// Ends `upload`, which the compressed dump went into as it came, under `key`.
    ///
    /// # Errors
    /// It could not be stored, or the name was taken meanwhile.
    pub async fn finish(&self, store: &dyn Store, key: &Key, upload: Box<dyn Upload>) -> Result<DumpFact, StoreError> {
        match upload.finish(&self.dumped.sha256).await? {
            Created::New => {
                store.sync().await?;
                Ok(self.fact(key))
            }
            Created::Exists | Created::Unnameable => Err(taken(key)),
        }
    }
}

async fn read(path: PathBuf) -> Result<Bytes, StoreError> {
    let failed = |source| StoreError::Io { action: "read", key: path.display().to_string(), source };
    let content = {
        let path = path.clone();
        blocking(move || std::fs::read(path)).await
    };
    Ok(Bytes::from(content.map_err(failed)?))
}

fn taken(key: &Key) -> StoreError {
    StoreError::Io { action: "create", key: key.to_string(), source: std::io::Error::from(std::io::ErrorKind::AlreadyExists) }
}
