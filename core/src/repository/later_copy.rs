//! A copy of the manifest that knows of entries which the log does not have: the log has lost its end, or somebody put the copy there.

use super::key::Key;
use super::manifest::{Manifest, ManifestError, unpack};
use super::open::OpenError;
use super::state::StateFolder;
use super::store::{ObjectInfo, Store};
use crate::model::RepositoryId;
use futures_util::TryStreamExt as _;
use std::io::Write as _;

/// A larger copy is not looked into: it is taken at its name.
const LOOKED_INTO_BYTES_MAX: u64 = 16 << 30;

/// Whether `copy` is a manifest of `repository` as of entry `sequence`. No log entry vouches for it, so a name alone says nothing: whoever may create
/// objects could keep every newcomer from reading the repository with it.
pub(super) async fn is_one(store: &dyn Store, repository: RepositoryId, state: &StateFolder, copy: &ObjectInfo, sequence: u64) -> Result<bool, OpenError> {
    if copy.size_bytes > LOOKED_INTO_BYTES_MAX {
        return Ok(true);
    }
    let (packed, plain) = (state.own_file("later-copy.db.zst"), state.own_file("later-copy.db"));
    fetch(store, &copy.key, &packed).await?;
    if unpack(&packed, &plain).is_err() {
        return Ok(false);
    }
    Ok(matches!(Manifest::open(&plain, repository), Ok(Some(manifest)) if manifest.head().sequence == sequence))
}

async fn fetch(store: &dyn Store, key: &Key, to: &std::path::Path) -> Result<(), OpenError> {
    let failed = |source| ManifestError::Copy { action: "write", path: to.to_owned(), source };
    let mut file = std::fs::File::create(to).map_err(failed)?;
    let mut stream = store.get(key, None).await?;
    while let Some(piece) = stream.try_next().await? {
        file.write_all(&piece).map_err(failed)?;
    }
    Ok(())
}
