//! A copy of the manifest that knows of entries which the log does not have: the log has lost its end, or somebody put the copy there.

use super::manifest::{Manifest, unpack};
use super::open::{OpenError, fetch};
use super::state::StateFolder;
use super::store::{ObjectInfo, Store};
use crate::model::RepositoryId;

/// Whether `copy` is a manifest of `repository` as of entry `sequence`. No log entry vouches for it, so a name alone says nothing: whoever may create
/// objects could keep every newcomer from reading the repository with it.
pub(super) async fn is_one(store: &dyn Store, repository: RepositoryId, state: &StateFolder, copy: &ObjectInfo, sequence: u64) -> Result<bool, OpenError> {
    let (packed, plain) = (state.own_file("later-copy.db.zst"), state.own_file("later-copy.db"));
    // One that is too large to be looked into is taken at its name.
    if fetch(store, copy, &packed).await?.is_none() {
        return Ok(true);
    }
    if unpack(&packed, &plain).is_err() {
        return Ok(false);
    }
    Ok(matches!(Manifest::open(&plain, repository), Ok(Some(manifest)) if manifest.head().sequence == sequence))
}
