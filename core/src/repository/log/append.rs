//! Adding an entry: create it if its number is free; if not, look whose it is.

use super::super::key::Key;
use super::super::store::{Attributes, Created, Kind, Store, StoreError, read_all};
use super::FORMAT;
use super::chain::chain_after;
use super::entry::{Entry, Header, encode};
use super::fact::Fact;
use super::read::{Head, LogError, entry_after};
use crate::budget::LOG_ENTRY_BYTES_MAX;
use crate::crash::crash_point;
use crate::model::{RunId, Sha256, WriterId};
use bytes::Bytes;
use jiff::Timestamp;

/// Who writes an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Author {
    /// The run, if one speaks.
    pub run: Option<RunId>,
    /// The state folder.
    pub writer: WriterId,
}

/// An entry that was added, and those of others that were found in its way.
#[derive(Debug)]
pub struct Appended {
    /// The header of the entry.
    pub header: Header,
    /// The log's head now.
    pub head: Head,
    /// Entries that other writers had added meanwhile, in order; they come before `header`.
    pub taken: Vec<Entry>,
}

/// Adds an entry of `facts` after `head`, or after what others have added meanwhile.
///
/// # Errors
/// The store's; or what stands in the way does not follow `head`.
pub async fn append(store: &dyn Store, head: &Head, author: Author, facts: &[Fact]) -> Result<Appended, LogError> {
    let mut head = *head;
    let mut taken = Vec::new();
    let conditional = store.capabilities().conditional_create;
    loop {
        let sequence = head.sequence + 1;
        let epoch = head.epoch;
        let key = if conditional {
            Key::log_entry_in(epoch, sequence, None)
        } else {
            // Nobody is refused here: who is there is seen before, and who came at the same time after.
            if let Some(key) = chain_after(store, &head).await?.entries.remove(&sequence) {
                let other = entry_after(store, &head, &key).await?;
                head = other.head();
                taken.push(other);
                continue;
            }
            match author.run {
                Some(run) => Key::log_entry_in(epoch, sequence, Some(&run)),
                None => Key::log_entry_in(epoch, sequence, Some(&author.writer)),
            }
        };
        let header =
            Header { format: FORMAT, epoch, sequence, previous_sha256: head.sha256, run: author.run, written_at: Timestamp::now(), writer: author.writer };
        let encoded = encode(&header, facts).map_err(|source| StoreError::Io { action: "compress", key: key.to_string(), source })?;
        let bytes = Bytes::from(encoded);
        let sha256 = Sha256::of(&bytes);
        crash_point!("before the entry");
        if create(store, &key, &bytes, sha256).await? {
            crash_point!("entry acknowledged");
            if !conditional {
                chain_after(store, &head).await?;
            }
            return Ok(Appended { header, head: Head { epoch, sequence, sha256 }, taken });
        }
        let other = entry_after(store, &head, &key).await?;
        head = other.head();
        taken.push(other);
    }
}

/// Creates the entry. Whether it is there and ours; `false` where another one has its name.
///
/// # Errors
/// The store's.
pub async fn create(store: &dyn Store, key: &Key, bytes: &Bytes, sha256: Sha256) -> Result<bool, LogError> {
    let attributes = Attributes::of(Kind::Log, sha256);
    match store.create(key, bytes.clone(), &attributes).await {
        Ok(Created::New) => Ok(true),
        Ok(Created::Exists) => match read_all(store, key, LOG_ENTRY_BYTES_MAX).await {
            Ok(found) => Ok(found == *bytes),
            // Larger than any entry: somebody else's.
            Err(StoreError::TooLarge { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        },
        Ok(Created::Unnameable) => {
            let source = std::io::Error::other("something that is no file has its name");
            Err(StoreError::Io { action: "create", key: key.to_string(), source }.into())
        }
        // The store has tried often enough. What is there decides; where that cannot be seen, the next run finds it.
        Err(error @ StoreError::Unanswered { .. }) => match read_all(store, key, LOG_ENTRY_BYTES_MAX).await {
            Ok(found) => Ok(found == *bytes),
            Err(_) => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}
