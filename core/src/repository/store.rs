//! What a store has to do for us, and what it promises.

use super::checksum::Checksum;
use super::key::{InvalidKey, Key};
use crate::model::{Class, Sha256};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

/// What an object is: decides its storage class, and how soon it has to be durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `format.json`.
    Identity,
    /// A log entry.
    Log,
    /// A copy of the manifest.
    Manifest,
    /// A dump of the database.
    Dump,
    /// Content of a file.
    File(Class),
}

/// What goes along with an object.
#[derive(Debug, Clone, Copy)]
pub struct Attributes {
    /// What it is.
    pub kind: Kind,
    /// Its digest where it is known before the bytes go out; the store verifies what arrives against it.
    pub sha256: Option<Sha256>,
    /// The file's mtime in ns since 1970, kept so that a plain copy of the repository brings it back.
    pub mtime_ns: Option<i64>,
    /// How large it will be, where that is known: what is streamed is cut accordingly.
    pub size_bytes: Option<u64>,
}

impl Attributes {
    /// Those of an object of ours that is no file.
    #[must_use]
    pub fn of(kind: Kind, sha256: Sha256) -> Self {
        Self { kind, sha256: Some(sha256), mtime_ns: None, size_bytes: None }
    }
}

/// What a store can do; found out, not configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreCapabilities {
    /// A create is refused where the key exists. Without it, one writer at a time and a look before each write.
    pub conditional_create: bool,
    /// Several parts of one object are read faster at once than one after the other.
    pub parallel_ranges: bool,
    /// The shortest time in which it has answered a request so far; `None` where nothing goes over a line, or nothing was asked yet.
    pub round_trip: Option<Duration>,
}

/// What a store says of an object. All of it computed by the store, none of it claimed by a writer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its name.
    pub key: Key,
    /// Its size.
    pub size_bytes: u64,
    /// What the store computed over its bytes, where it says so without reading them; a listing does not.
    pub checksum: Option<Checksum>,
}

/// How a create ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The object is whole, and it is this call's.
    New,
    /// Something has that name already; nothing was changed.
    Exists,
    /// This store cannot hold an object of that name (a folder has it, or the file system refuses its characters); nothing was changed.
    Unnameable,
}

/// Why a store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such object.
    #[error("there is no object `{key}`")]
    NotFound {
        /// The key.
        key: String,
    },
    /// The store refused for want of rights.
    #[error("not permitted to {action} `{key}`")]
    Denied {
        /// What was being done.
        action: &'static str,
        /// To which key.
        key: String,
        /// Why.
        source: io::Error,
    },
    /// No room, or a quota.
    #[error("no space left to {action} `{key}`")]
    Full {
        /// What was being done.
        action: &'static str,
        /// To which key.
        key: String,
        /// Why.
        source: io::Error,
    },
    /// More bytes than such an object can have.
    #[error("the object `{key}` is larger than the {limit_bytes} bytes that such an object may have")]
    TooLarge {
        /// The key.
        key: String,
        /// The limit.
        limit_bytes: u64,
    },
    /// No such bucket or container.
    #[error("there is no such bucket or container (to {action} `{key}`)")]
    NoBucket {
        /// What was being done.
        action: &'static str,
        /// To which key.
        key: String,
        /// What the store says.
        source: io::Error,
    },
    /// It is there, in a storage class that has to be thawed before it can be read.
    #[error("cannot {action} `{key}`: it lies in an archive class")]
    Archived {
        /// What was being done.
        action: &'static str,
        /// To which key.
        key: String,
    },
    /// Tried often enough, and it did not happen.
    #[error("could not {action} `{key}`")]
    Unreachable {
        /// What was being done.
        action: &'static str,
        /// To which key.
        key: String,
        /// Why the last attempt failed.
        source: io::Error,
    },
    /// It may or may not have happened: look before trying again.
    #[error("no answer to {action} `{key}`")]
    Unanswered {
        /// What was being done.
        action: &'static str,
        /// To which key.
        key: String,
        /// Why.
        source: io::Error,
    },
    /// What was sent of an object is gone, or did not arrive as it was sent: it has to be sent again from its first byte. Nothing was changed.
    #[error("the upload of `{key}` came to nothing")]
    UploadLost {
        /// The key.
        key: String,
        /// Why.
        source: io::Error,
    },
    /// What is there is not what it was taken for; nothing was changed.
    #[error("the store has other bytes in `{key}` than were read of it")]
    OtherContent {
        /// The key.
        key: String,
    },
    /// Anything else; nothing was changed.
    #[error("cannot {action} `{key}`")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which key.
        key: String,
        /// Why.
        source: io::Error,
    },
    /// A name that no object can have.
    #[error(transparent)]
    Key(#[from] InvalidKey),
}

impl StoreError {
    /// Whether the medium itself could not give the bytes (Linux: EIO, EUCLEAN, EBADMSG): that is damage of the one object.
    #[must_use]
    pub fn is_of_medium(&self) -> bool {
        matches!(self, Self::Io { source, .. } if matches!(source.raw_os_error(), Some(5 | 117 | 74)))
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Denied { source, .. } if source.raw_os_error().is_some() => Some("check who owns the repository and as whom this program runs"),
            // S3's word for it, and Azure's.
            Self::Denied { source, .. } if ["RequestTimeTooSkewed", "date header too old"].iter().any(|words| source.to_string().contains(words)) => {
                Some("the clock of this machine differs from the store's by too much: set it (`timedatectl` shows it), and run again")
            }
            Self::Denied { .. } => Some("`immich-backup doctor` shows which credentials are used; `init` and docs/stores.md show what they have to allow"),
            Self::Full { .. } => Some("make room at the repository and run again: nothing is lost, what was stored is taken up"),
            Self::Unanswered { .. } => Some("run again: what did arrive is found and taken up"),
            Self::Archived { .. } => Some(
                "thaw it at the store, or bring it to a class that can be read at once, and run again; see to it that no lifecycle rule archives this repository",
            ),
            Self::NoBucket { .. } => Some("make the bucket or container first, or mend its name in the URL; `immich-backup init` prints what it should allow"),
            Self::UploadLost { .. } => Some("run again: the file is sent anew"),
            Self::OtherContent { .. } => Some("the store, or the line to it, gives back wrong bytes: see to that, and run again"),
            Self::Unreachable { .. } => Some("check the network and the store, and run again: nothing is lost, what was stored is taken up"),
            Self::NotFound { .. } | Self::TooLarge { .. } | Self::Io { .. } | Self::Key(_) => None,
        }
    }
}

/// The bytes of an object, in order. An error ends the stream.
pub type ByteStream = BoxStream<'static, Result<Bytes, StoreError>>;

/// Objects in the order of their keys' bytes. An error ends the stream.
pub type ObjectStream = BoxStream<'static, Result<ObjectInfo, StoreError>>;

/// What begins in a store.
#[derive(Debug, Clone, Copy)]
pub enum Begin<'a> {
    /// A repository: `format.json` is created where it is not.
    Repository,
    /// Writing to the repository that is there.
    Writing {
        /// A file of the caller's own that lists the uploads it has begun and not ended; those of a dead run are ended now.
        leftovers: Option<&'a Path>,
    },
}

/// A place that keeps objects.
///
/// Creates are atomic: an object is there whole or not at all, and what exists is never changed. Every method may be called from
/// many tasks at once, and a future that is dropped leaves no object behind.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// The repository's URL as people know it, without secrets.
    fn url(&self) -> &str;

    /// What this store can do, as far as it is known: all of it after [`Self::begin`].
    fn capabilities(&self) -> StoreCapabilities;

    /// Called before the first write. What is in `format.json` is compared with `identity`: all of the log hangs on these bytes, and were they read wrong
    /// once, nobody else could follow what is written now. Then it is created, again where it is there: the same bytes, so that nothing is harmed where
    /// a store takes them, and what the store answers tells what it can do.
    ///
    /// # Errors
    /// It cannot be written to; [`StoreError::OtherContent`]; or [`StoreError::NotFound`] where writing begins and there is no `format.json`: a disk that
    /// is not mounted any more looks so.
    async fn begin(&self, identity: &Bytes, what: Begin<'_>) -> Result<Created, StoreError>;

    /// Bytes of memory that an object takes while it is streamed, besides the pieces in the caller's hands.
    fn stream_bytes(&self, size_bytes: u64) -> usize;

    /// Creates an object from bytes in memory. Of several creates of one key at most one gets [`Created::New`]. Durable at once for
    /// identity, log and manifest; for files after the next [`Self::sync`].
    ///
    /// # Errors
    /// [`StoreError::Unanswered`] where it may have happened; with any other error nothing was changed.
    async fn create(&self, key: &Key, content: Bytes, attributes: &Attributes) -> Result<Created, StoreError>;

    /// Begins an object whose bytes come piece by piece. Nothing is to be seen of it before [`Upload::finish`].
    ///
    /// # Errors
    /// As for [`Self::create`].
    async fn create_streamed(&self, key: &Key, attributes: &Attributes) -> Result<Box<dyn Upload>, StoreError>;

    /// Reads an object, or the bytes of `range` of it (as many as there are).
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also as the stream's first item.
    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream, StoreError>;

    /// What the store knows of an object, without reading it; `None` where there is none.
    ///
    /// # Errors
    /// The store could not say.
    async fn head(&self, key: &Key) -> Result<Option<ObjectInfo>, StoreError>;

    /// All objects whose keys start with `prefix` (empty, or ending in `/`) and come after `after`, each once, in the order of their keys' bytes,
    /// as far as the store itself keeps that order: some list folder by folder, where `b/x` comes before `b-`. `after` lies directly in
    /// `prefix`. Sees at least what was there when it was called and is there still.
    fn list(&self, prefix: &str, after: Option<&Key>) -> ObjectStream;

    /// Removes an object. Only pruning and tests do. Done is done: removing what is not there is no error.
    ///
    /// # Errors
    /// The object may still be there.
    async fn delete(&self, key: &Key) -> Result<(), StoreError>;

    /// Whether the credentials in use may remove objects, which an attacker who has them could as well; `None` where it cannot be told. Harms nothing.
    async fn may_delete(&self) -> Option<bool> {
        None
    }

    /// Returns once every object that this store created, or found to exist, survives a loss of power: one barrier for many.
    ///
    /// # Errors
    /// What was created since the last barrier may be lost, and must not be announced.
    async fn sync(&self) -> Result<(), StoreError>;
}

/// An object that is being created piece by piece. Dropped, it never was.
#[async_trait]
pub trait Upload: Send {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// The upload is worthless then. [`StoreError::UploadLost`], here and in [`Self::finish`], where a new one may go well.
    async fn write(&mut self, piece: Bytes) -> Result<(), StoreError>;

    /// Makes the object, if its key is still free. Its bytes are durable before it can be seen; its name is after [`Store::sync`].
    ///
    /// # Errors
    /// As for [`Store::create`].
    async fn finish(self: Box<Self>, sha256: &Sha256) -> Result<Created, StoreError>;
}

/// Sends a local file as it is.
///
/// # Errors
/// It cannot be read, or not be sent.
pub async fn stream_file(path: &Path, upload: &mut dyn Upload) -> Result<(), StoreError> {
    let failed = |source| StoreError::Io { action: "read", key: path.display().to_string(), source };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    loop {
        let mut piece = vec![0; crate::budget::CHUNK_BYTES];
        let count = std::io::Read::read(&mut file, &mut piece).map_err(failed)?;
        if count == 0 {
            return Ok(());
        }
        piece.truncate(count);
        upload.write(Bytes::from(piece)).await?;
    }
}

/// Reads an object into memory.
///
/// # Errors
/// [`StoreError::TooLarge`] past `limit_bytes`; else as [`Store::get`].
pub async fn read_all(store: &dyn Store, key: &Key, limit_bytes: u64) -> Result<Bytes, StoreError> {
    let mut stream = store.get(key, None).await?;
    let mut content = BytesMut::new();
    while let Some(piece) = stream.next().await {
        content.extend_from_slice(&piece?);
        if content.len() as u64 > limit_bytes {
            return Err(StoreError::TooLarge { key: key.to_string(), limit_bytes });
        }
    }
    Ok(content.freeze())
}
