//! Object stores: S3 and what speaks it, Google Cloud Storage, Azure Blob Storage.
//!
//! Reading and listing, credentials and signatures are those of `object_store`; what is written is asked for from here, since creating an object
//! once and never again is what the repository stands on:
//!
//! - an object is created with a condition that refuses what exists, and with a checksum that the store verifies as the bytes arrive;
//! - an attempt that may have happened, or that was refused because there is something, is followed by a look: what the store itself computed over
//!   the object's bytes says whether it is ours.
//!
//! A provider (`s3`, `gcs`, `azure`) is one kind of store, one attempt at a time; this file and those beside it retry, look and keep order.

mod answer;
mod azure;
mod gcs;
mod journal;
mod lanes;
mod listing;
mod parts;
mod provider;
mod requests;
mod retry;
mod s3;
mod session;
mod wire;

pub use requests::{RequestKind, Requests};
pub use retry::RetryPolicy;

use super::checksum::Comparison;
use super::key::{DUMPS, InvalidKey, Key};
use super::place::Place;
use super::store::{Attributes, Begin, ByteStream, Created, Kind, ObjectInfo, ObjectStream, Store, StoreCapabilities, StoreError, Upload, read_all};
use crate::budget::{CHUNK_BYTES, IDENTITY_BYTES_MAX, ONE_SHOT_BYTES_MAX, PART_BYTES_MIN, PARTS_IN_FLIGHT_MAX, SESSION_PIECE_BYTES, TRANSFER_BYTES_MAX};
use crate::event::{Event, Monitor};
use crate::model::{Class, Sha256};
use answer::Fault;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt as _};
use journal::Journal;
use object_store::aws::AwsCredentialProvider;
use object_store::{GetOptions, GetRange};
use provider::{About, Provider, Put, Seen, Streaming};
use retry::Retries;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// The longest name that a store takes, with the repository's prefix: 1,024 bytes at all of them.
const NAME_BYTES_MAX: usize = 1_024;

/// Bytes of an object that make up for an answer that was cut short: a film on a bad line may be cut any number of times, if it gets on in between.
const RESUMED_BYTES_MIN: u64 = 64 << 10;

/// With what stores are reached. The core never reads the environment: whoever opens a store brings this along.
#[derive(Clone, Default)]
pub struct Access {
    /// Gives keys for S3, fresh ones where they expire.
    pub aws: Option<AwsCredentialProvider>,
    /// The region of the environment or the profile.
    pub aws_region: Option<String>,
    /// For Google Cloud Storage.
    pub gcs: GcsCredentials,
    /// For Azure: the `AZURE_…` variables of the environment.
    pub azure: Vec<(String, String)>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").finish_non_exhaustive()
    }
}

/// Who we are at Google.
#[derive(Clone, Default)]
pub enum GcsCredentials {
    /// The JSON of a service account's key.
    Key(String),
    /// A file with a service account's key, or with application default credentials.
    File(PathBuf),
    /// The application default credentials of this user, else the metadata server (GCE, GKE workload identity).
    #[default]
    Ambient,
}

/// How a store is used.
#[derive(Clone)]
pub struct Options {
    /// With what it is reached.
    pub access: Access,
    /// How often a request is tried again.
    pub retry: RetryPolicy,
    /// A request is given up where nothing moves for so long.
    pub idle: Duration,
    /// The storage class of originals; everything else has the usual one.
    pub original_class: Option<String>,
    /// Where requests are counted.
    pub requests: Arc<Requests>,
    /// Where retries are told.
    pub monitor: Arc<dyn Monitor>,
    /// Once it is set, nothing is tried again.
    pub stop: CancellationToken,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("retry", &self.retry).field("idle", &self.idle).field("original_class", &self.original_class).finish_non_exhaustive()
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            access: Access::default(),
            retry: RetryPolicy::default(),
            idle: IDLE,
            original_class: None,
            requests: Arc::default(),
            monitor: Arc::new(crate::event::Silent),
            stop: CancellationToken::new(),
        }
    }
}

/// A request is given up where nothing moves for so long, unless something else is said.
pub const IDLE: Duration = Duration::from_secs(60);

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    /// No keys for S3.
    #[error("no credentials for S3 were found")]
    NoCredentials,
    /// No region for Amazon's S3.
    #[error("no region is given for S3")]
    NoRegion,
    /// No storage account for Azure.
    #[error("no storage account is given for Azure")]
    NoAccount,
    /// It cannot be set up.
    #[error("cannot set up access to the store: {problem}")]
    Client {
        /// Why.
        problem: String,
    },
}

impl OpenStoreError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoCredentials => Some("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; docs/stores.md has all ways"),
            Self::NoRegion => Some("say s3://bucket/prefix?region=NAME, or set AWS_REGION"),
            Self::NoAccount => Some("say az://container/prefix?account=NAME, or set AZURE_STORAGE_ACCOUNT_NAME"),
            Self::Client { .. } => Some("docs/stores.md says which credentials are taken from where"),
        }
    }
}

/// An object store.
#[derive(Debug, Clone)]
pub struct CloudStore(Arc<Inner>);

struct Inner {
    url: String,
    /// What all keys begin with: empty, or ending in `/`.
    prefix: String,
    provider: Box<dyn Provider>,
    options: Options,
    /// Whether the store refuses to create what exists, as far as is known.
    conditional: AtomicBool,
    /// The shortest that a request took; the greatest number where there was none.
    round_trip_us: AtomicU64,
    journal: Mutex<Option<Arc<Journal>>>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudStore").field("url", &self.url).finish_non_exhaustive()
    }
}

impl CloudStore {
    /// The store at `place`; nothing is asked yet.
    ///
    /// # Errors
    /// Credentials or a part of the address are missing. A directory is no object store.
    pub fn open(place: &Place, options: Options) -> Result<Self, OpenStoreError> {
        let (prefix, provider): (&str, Box<dyn Provider>) = match place {
            Place::S3(place) => (&place.prefix, Box::new(s3::S3::open(place, &options.access, options.idle, &options.requests)?)),
            Place::Gcs(place) => (&place.prefix, Box::new(gcs::Gcs::open(place, &options.access, options.idle, &options.requests)?)),
            Place::Azure(place) => (&place.prefix, Box::new(azure::Azure::open(place, &options.access, options.idle, &options.requests)?)),
            Place::Directory(path) => return Err(OpenStoreError::Client { problem: format!("`{}` is a directory", path.display()) }),
        };
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let inner = Inner {
            url: place.to_string(),
            prefix,
            provider,
            options,
            conditional: AtomicBool::new(true),
            round_trip_us: AtomicU64::new(u64::MAX),
            journal: Mutex::new(None),
        };
        Ok(Self(Arc::new(inner)))
    }
}

impl Inner {
    fn path(&self, key: &Key) -> String {
        format!("{}{key}", self.prefix)
    }

    fn retries<'a>(&'a self, action: &'static str, path: &'a str) -> Retries<'a> {
        Retries::new(self.options.retry, &self.options.monitor, &self.options.stop, action, path)
    }

    fn is_conditional(&self) -> bool {
        self.conditional.load(Ordering::Relaxed)
    }

    fn about(&self, attributes: &Attributes) -> About {
        let class = if attributes.kind == Kind::File(Class::Original) { self.options.original_class.clone() } else { None };
        About {
            class,
            sha256: attributes.sha256,
            mtime_ns: attributes.mtime_ns,
            part_bytes: None,
            create_only: self.is_conditional(),
            in_lane: !matches!(attributes.kind, Kind::Identity | Kind::Log),
        }
    }

    /// Tries until it is answered.
    async fn patiently<T, F: Future<Output = Result<T, Fault>>>(&self, action: &'static str, path: &str, attempt: impl Fn() -> F) -> Result<T, StoreError> {
        let mut retries = self.retries(action, path);
        loop {
            let asked = Instant::now();
            match attempt().await {
                Ok(done) => {
                    let took_us = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
                    self.round_trip_us.fetch_min(took_us, Ordering::Relaxed);
                    return Ok(done);
                }
                Err(fault) => retries.after(fault).await.map_err(never_mind)?,
            }
        }
    }

    async fn head(&self, path: &str) -> Result<Option<Seen>, StoreError> {
        self.patiently("look at", path, || self.provider.head(path)).await
    }

    /// Whether the object at `path` has these bytes: by what the store computed, else by reading them back. `None` where there is no object.
    async fn holds(self: &Arc<Self>, path: &str, size_bytes: u64, compare: impl Fn(Seen) -> Comparison, sha256: Sha256) -> Result<Option<bool>, StoreError> {
        let Some(seen) = self.head(path).await? else { return Ok(None) };
        if seen.size_bytes != size_bytes {
            return Ok(Some(false));
        }
        Ok(Some(match compare(seen) {
            Comparison::Same => true,
            Comparison::Different => false,
            Comparison::Unknown => self.reads_as(path, sha256).await?,
        }))
    }

    /// Reads the object back. One that cannot be read (it lies in an archive) is not taken for ours.
    async fn reads_as(self: &Arc<Self>, path: &str, sha256: Sha256) -> Result<bool, StoreError> {
        let mut hasher = crate::model::Sha256Counter::default();
        let mut pieces = match self.read(path.to_owned(), None).await {
            Ok(pieces) => pieces,
            Err(StoreError::Archived { .. } | StoreError::Denied { .. } | StoreError::NotFound { .. } | StoreError::Io { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        while let Some(piece) = pieces.try_next().await? {
            hasher.update(&piece);
        }
        Ok(hasher.finish().0 == sha256)
    }

    async fn holds_bytes(self: &Arc<Self>, path: &str, content: &Bytes, sha256: Sha256) -> Result<Option<bool>, StoreError> {
        let compare = |seen: Seen| seen.checksum.map_or(Comparison::Unknown, |checksum| checksum.compare(content));
        self.holds(path, content.len() as u64, compare, sha256).await
    }

    /// Creates an object in one request.
    async fn create(self: &Arc<Self>, path: &str, content: &Bytes, about: &About) -> Result<Created, StoreError> {
        if path.len() > NAME_BYTES_MAX {
            return Ok(Created::Unnameable);
        }
        // Where the store does not look, we do.
        if !about.create_only && self.head(path).await?.is_some() {
            return Ok(Created::Exists);
        }
        let sha256 = about.sha256.unwrap_or_else(|| Sha256::of(content));
        let mut retries = self.retries("store", path);
        loop {
            let fault = match self.provider.put(path, content, about).await {
                Ok(Put::New) => return Ok(Created::New),
                Ok(Put::Unnameable) => return Ok(Created::Unnameable),
                Ok(Put::Exists) => return self.found(path, content, sha256, retries.perhaps_done).await,
                Ok(Put::Perhaps(error)) => match self.head(path).await {
                    Ok(Some(_)) => return self.found(path, content, sha256, retries.perhaps_done).await,
                    // The first refusal says more.
                    Ok(None) | Err(StoreError::Denied { .. }) => return Err(error),
                    Err(other) => return Err(other),
                },
                Err(fault) => fault,
            };
            retries.after(fault).await?;
            if retries.perhaps_done
                && let Some(ours) = self.holds_bytes(path, content, sha256).await?
            {
                return Ok(if ours { Created::New } else { Created::Exists });
            }
        }
    }

    /// What was refused because there is something: an earlier attempt of ours may be what is there.
    async fn found(self: &Arc<Self>, path: &str, content: &Bytes, sha256: Sha256, perhaps_done: bool) -> Result<Created, StoreError> {
        if !perhaps_done {
            // Some stores refuse the name of a folder in these words as well; to look there finds nothing.
            return Ok(if self.head(path).await?.is_some() { Created::Exists } else { Created::Unnameable });
        }
        Ok(match self.holds_bytes(path, content, sha256).await? {
            Some(true) => Created::New,
            Some(false) => Created::Exists,
            None => Created::Unnameable,
        })
    }

    /// The bytes of an object, asked for again from where they stopped coming.
    async fn read(self: &Arc<Self>, path: String, range: Option<Range<u64>>) -> Result<ByteStream, StoreError> {
        let end = range.as_ref().map(|range| range.end);
        let at = range.map_or(0, |range| range.start);
        if end.is_some_and(|end| end <= at) {
            return Ok(futures_util::stream::empty().boxed());
        }
        let pieces = self.open(&path, at, end).await?;
        let reading = Reading { inner: Arc::clone(self), path, at, end, pieces, rest: Bytes::new(), broken: None, stumbles: 0, came_bytes: 0 };
        Ok(futures_util::stream::try_unfold(reading, |mut reading| async move { Ok(reading.next().await?.map(|piece| (piece, reading))) }).boxed())
    }

    /// Asks for the bytes from `at` on.
    async fn open(&self, path: &str, at: u64, end: Option<u64>) -> Result<Pieces, StoreError> {
        self.patiently("read", path, || self.ask(path, at, end)).await
    }

    async fn ask(&self, path: &str, at: u64, end: Option<u64>) -> Result<Pieces, Fault> {
        let range = match (at, end) {
            (0, None) => None,
            (_, None) => Some(GetRange::Offset(at)),
            (_, Some(end)) => Some(GetRange::Bounded(at..end)),
        };
        let location = location(path)?;
        let options = GetOptions { range, ..GetOptions::default() };
        let (got, said) = wire::heard(self.provider.line().objects.get_opts(&location, options)).await;
        match (got, said) {
            (Ok(result), _) => Ok(result.into_stream()),
            // Nothing lies that far.
            (Err(_), Some(Ok(answer))) if answer.status == http::StatusCode::RANGE_NOT_SATISFIABLE => Ok(futures_util::stream::empty().boxed()),
            (Err(_), Some(Ok(answer))) if !answer.is_success() => Err(answer.fault("read", path)),
            // Azurite gives what there is, and that is nothing.
            (Err(_), Some(Ok(answer))) if at > 0 && answer.object_bytes().is_some_and(|size| size <= at) => Ok(futures_util::stream::empty().boxed()),
            (Err(_), Some(Err(nothing))) => Err(nothing.fault("read", path)),
            (Err(error), _) => Err(passing(wire::describe(&error))),
        }
    }

    /// Lists one page: what it has, and where it goes on.
    async fn page(&self, prefix: &str, options: &listing::PageOptions) -> Result<listing::Page, StoreError> {
        self.patiently("list", prefix, || async {
            let (got, said) = wire::heard(self.provider.line().pages.list_paginated((!prefix.is_empty()).then_some(prefix), options.for_store())).await;
            match (got, said) {
                (Ok(result), _) => Ok(listing::Page::new(result)),
                (Err(_), Some(Ok(answer))) if !answer.is_success() => Err(answer.fault("list", prefix)),
                (Err(_), Some(Err(nothing))) => Err(nothing.fault("list", prefix)),
                // The list came, and has a name in it that is none of ours and that cannot be written.
                (Err(error @ object_store::Error::InvalidPath { .. }), _) => {
                    Err(StoreError::Io { action: "list", key: prefix.to_owned(), source: io::Error::other(wire::describe(&error)) }.into())
                }
                (Err(error), _) => Err(passing(wire::describe(&error))),
            }
        })
        .await
    }

    /// Tells the store's answers to creating `format.json` (again, where it `is_there`) apart: what it knows of conditions and checksums.
    async fn learn(&self, path: &str, content: &Bytes, about: &About, mut is_there: bool) -> Result<Created, StoreError> {
        let mut asked = About { create_only: true, ..about.clone() };
        let (mut created, mut taken_without) = (Created::Exists, false);
        let mut retries = self.retries("store", path);
        loop {
            let fault = match self.provider.put(path, content, &asked).await {
                // Refused: conditions are kept. (An identity without the right to delete is refused at Google in other words.)
                Ok(Put::Exists | Put::Unnameable) => return Ok(created),
                Ok(Put::Perhaps(error)) => return if Self::may_be_refusal_of_overwriting(&error) { Ok(created) } else { Err(error) },
                // Taken again: what was there is there, and conditions mean nothing here.
                Ok(Put::New) if asked.create_only && is_there => {
                    self.note_unconditional("takes no notice of conditions");
                    return Ok(created);
                }
                // Made, or taken without the condition; whether that means something tells the next answer.
                Ok(Put::New) => {
                    if !is_there {
                        created = Created::New;
                    }
                    (is_there, taken_without) = (true, !asked.create_only);
                    asked.create_only = true;
                    continue;
                }
                // Said twice: not a passing mood.
                Err(Fault::Unknown(_)) if asked.create_only && taken_without => {
                    self.note_unconditional("does not know conditions");
                    return Ok(created);
                }
                Err(Fault::Unknown(_)) if asked.create_only => {
                    asked.create_only = false;
                    continue;
                }
                Err(Fault::Unknown(problem)) if self.without_checksums(&problem) => {
                    asked.create_only = true;
                    continue;
                }
                Err(fault) => fault,
            };
            retries.after(fault).await?;
        }
    }

    /// From now on without SHA-256; true where it was used until now.
    fn without_checksums(&self, problem: &str) -> bool {
        let changed = self.provider.without_checksums();
        if changed {
            self.options.monitor.emit(Event::Warned { message: format!("{} does not take SHA-256 checksums ({problem}); MD5 is used", self.url) });
        }
        changed
    }

    /// `format.json` is there, so whoever may create objects and not replace them is refused for that alone: Google names the right to delete,
    /// Azure says that the permission does not match. Where that is all there is to it, what is written next tells.
    fn may_be_refusal_of_overwriting(error: &StoreError) -> bool {
        const WORDS: [&str; 2] = ["storage.objects.delete", "AuthorizationPermissionMismatch"];
        matches!(error, StoreError::Denied { source, .. } if WORDS.iter().any(|words| source.to_string().contains(words)))
    }

    fn note_unconditional(&self, how: &str) {
        if self.conditional.swap(false, Ordering::Relaxed) {
            let message =
                format!("{} {how}: it cannot keep two writers apart, so that only one may write at a time; docs/stores.md says what that means", self.url);
            self.options.monitor.emit(Event::Warned { message });
        }
    }

    fn journal(&self) -> Option<Arc<Journal>> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends what a dead run of this state folder began. What cannot be ended costs room until the store's own rule removes it.
    async fn clear_up(&self, leftovers: Vec<journal::Begun>, journal: &Journal) {
        for begun in leftovers {
            match self.provider.abort(&begun.path, &begun.id).await {
                Ok(()) | Err(Fault::Final(StoreError::NotFound { .. })) => journal.ended(&begun.id),
                Err(_) => {
                    let message =
                        format!("an unfinished upload of `{}` could not be ended; a lifecycle rule of the bucket should (docs/stores.md)", begun.path);
                    self.options.monitor.emit(Event::Warned { message });
                }
            }
        }
    }
}

/// Whether the last attempt happened makes no difference to what can be asked again.
fn never_mind(error: StoreError) -> StoreError {
    match error {
        StoreError::Unanswered { action, key, source } => StoreError::Unreachable { action, key, source },
        other => other,
    }
}

fn location(path: &str) -> Result<object_store::path::Path, StoreError> {
    object_store::path::Path::parse(path).map_err(|_| InvalidKey(path.to_owned()).into())
}

fn passing(problem: String) -> Fault {
    Fault::Passing { problem, wait: None, perhaps_done: false }
}

type Pieces = futures_util::stream::BoxStream<'static, object_store::Result<Bytes>>;

/// An object that is being read.
struct Reading {
    inner: Arc<Inner>,
    path: String,
    /// Where the next byte lies.
    at: u64,
    end: Option<u64>,
    pieces: Pieces,
    /// What came and was not handed on yet.
    rest: Bytes,
    /// Why no more comes, where what came before has to be handed on first.
    broken: Option<object_store::Error>,
    /// How often the bytes have stopped coming, until enough came to make up for it.
    stumbles: u32,
    /// Bytes that came since they stopped last.
    came_bytes: u64,
}

impl Reading {
    /// The next piece, of [`CHUNK_BYTES`] at most: small ones are joined, since each costs its way through the program.
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        let mut joined = BytesMut::new();
        loop {
            if !self.rest.is_empty() {
                let piece = self.rest.split_to(self.rest.len().min(CHUNK_BYTES - joined.len()));
                if joined.is_empty() && piece.len() >= CHUNK_BYTES / 2 {
                    return Ok(Some(piece));
                }
                joined.extend_from_slice(&piece);
                if joined.len() >= CHUNK_BYTES / 2 {
                    return Ok(Some(joined.freeze()));
                }
                continue;
            }
            let came = match self.broken.take() {
                Some(error) => Some(Err(error)),
                None => self.pieces.next().await,
            };
            match came {
                Some(Ok(piece)) => {
                    self.came_bytes += piece.len() as u64;
                    // Not for less: a film on a line that is cut after some hundred bytes each time would take a million requests.
                    if self.came_bytes >= RESUMED_BYTES_MIN {
                        self.stumbles = 0;
                    }
                    self.at += piece.len() as u64;
                    self.rest = piece;
                }
                None => return Ok((!joined.is_empty()).then(|| joined.freeze())),
                Some(Err(error)) if !joined.is_empty() => {
                    self.broken = Some(error);
                    return Ok(Some(joined.freeze()));
                }
                Some(Err(error)) => {
                    let mut retries = self.inner.retries("read", &self.path).that_follow(self.stumbles);
                    retries.after(passing(wire::describe(&error))).await?;
                    self.stumbles += 1;
                    self.came_bytes = 0;
                    self.pieces = self.inner.open(&self.path, self.at, self.end).await?;
                }
            }
        }
    }
}

#[async_trait]
impl Store for CloudStore {
    fn url(&self) -> &str {
        &self.0.url
    }

    fn capabilities(&self) -> StoreCapabilities {
        let round_trip_us = self.0.round_trip_us.load(Ordering::Relaxed);
        let round_trip = (round_trip_us < u64::MAX).then(|| Duration::from_micros(round_trip_us));
        StoreCapabilities { conditional_create: self.0.is_conditional(), parallel_ranges: true, round_trip }
    }

    async fn begin(&self, identity: &Bytes, what: Begin<'_>) -> Result<Created, StoreError> {
        let inner = &self.0;
        let path = inner.path(&Key::identity());
        let mut about = inner.about(&Attributes::of(Kind::Identity, Sha256::of(identity)));
        about.create_only = true;
        let created = match inner.head(&path).await? {
            Some(seen) => {
                let is_same = match seen.checksum.map_or(Comparison::Unknown, |checksum| checksum.compare(identity)) {
                    Comparison::Same => true,
                    Comparison::Different => false,
                    // The store says nothing of it. What cannot be read is no other content, but an error.
                    Comparison::Unknown => read_all(self, &Key::identity(), IDENTITY_BYTES_MAX).await? == *identity,
                };
                // A store that knows no conditions would take these bytes in place of the right ones.
                if !is_same {
                    return Err(StoreError::OtherContent { key: Key::identity().to_string() });
                }
                inner.learn(&path, identity, &about, true).await?;
                Created::Exists
            }
            None if matches!(what, Begin::Writing { .. }) => return Err(StoreError::NotFound { key: path }),
            None => match inner.create(&path, identity, &about).await {
                // Refused for what the store does not know: nothing is there, and one writer makes a repository.
                Err(StoreError::Io { .. }) => inner.learn(&path, identity, &about, false).await?,
                Ok(Created::New) => {
                    inner.learn(&path, identity, &about, true).await?;
                    Created::New
                }
                other => other?,
            },
        };
        if let Begin::Writing { leftovers: Some(file) } = what {
            let (journal, begun) =
                Journal::open(file).map_err(|source| StoreError::Io { action: "note uploads in", key: file.display().to_string(), source })?;
            inner.clear_up(begun, &journal).await;
            *inner.journal.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(journal));
        }
        Ok(created)
    }

    fn stream_bytes(&self, size_bytes: u64) -> usize {
        match self.0.provider.streaming() {
            Streaming::Session => SESSION_PIECE_BYTES,
            Streaming::Parts => {
                let part_bytes = part_bytes(size_bytes);
                part_bytes.saturating_mul(parts_in_flight(part_bytes) + 1)
            }
        }
    }

    async fn create(&self, key: &Key, content: Bytes, attributes: &Attributes) -> Result<Created, StoreError> {
        self.0.create(&self.0.path(key), &content, &self.0.about(attributes)).await
    }

    async fn create_streamed(&self, key: &Key, attributes: &Attributes) -> Result<Box<dyn Upload>, StoreError> {
        let (inner, path) = (Arc::clone(&self.0), self.0.path(key));
        let about = inner.about(attributes);
        Ok(match inner.provider.streaming() {
            Streaming::Session => Box::new(session::SessionUpload::new(inner, path, about)),
            Streaming::Parts => Box::new(parts::PartsUpload::new(inner, path, about, part_bytes(attributes.size_bytes.unwrap_or(ONE_SHOT_BYTES_MAX)))),
        })
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream, StoreError> {
        self.0.read(self.0.path(key), range).await
    }

    async fn head(&self, key: &Key) -> Result<Option<ObjectInfo>, StoreError> {
        let seen = self.0.head(&self.0.path(key)).await?;
        Ok(seen.map(|seen| ObjectInfo { key: key.clone(), size_bytes: seen.size_bytes, checksum: seen.checksum }))
    }

    fn list(&self, prefix: &str, after: Option<&Key>) -> ObjectStream {
        listing::list(Arc::clone(&self.0), prefix.to_owned(), after.cloned())
    }

    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        let path = self.0.path(key);
        self.0.patiently("delete", &path, || self.0.provider.delete(&path)).await
    }

    async fn may_delete(&self) -> Option<bool> {
        // Among what may ever be removed: whoever prunes may have that right there and nowhere else.
        let path = format!("{}{DUMPS}nothing-{}", self.0.prefix, uuid::Uuid::new_v4().simple());
        match self.0.provider.try_delete(&path).await {
            Ok(()) | Err(Fault::Final(StoreError::NotFound { .. })) => Some(true),
            Err(Fault::Final(StoreError::Denied { .. })) => Some(false),
            Err(_) => None,
        }
    }

    async fn sync(&self) -> Result<(), StoreError> {
        // What a store has taken is durable.
        Ok(())
    }
}

/// Stores take 10,000 parts of an object (S3; Azure five times as many).
const PARTS_MAX: u64 = 10_000;

/// The size of the parts of an object of this size, in whole MiB.
fn part_bytes(size_bytes: u64) -> usize {
    let needed = size_bytes.div_ceil(PARTS_MAX).next_multiple_of(1 << 20);
    usize::try_from(needed).unwrap_or(usize::MAX).max(PART_BYTES_MIN)
}

/// Parts of one object that are sent at once: together with the one that is being filled they stay within half of the budget, so that another file
/// can be sent beside, or, where a part is that large, within the budget.
fn parts_in_flight(part_bytes: usize) -> usize {
    (TRANSFER_BYTES_MAX / 2 / part_bytes.max(1)).saturating_sub(1).clamp(1, PARTS_IN_FLIGHT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_few_enough_and_fit_the_budget() {
        assert_eq!(part_bytes(0), PART_BYTES_MIN);
        assert_eq!(part_bytes(100 << 30), PART_BYTES_MIN);
        for size_bytes in [1, 200 << 30, 400 << 30] {
            let part = part_bytes(size_bytes);
            assert!(size_bytes.div_ceil(part as u64) <= PARTS_MAX);
            assert!(part * (parts_in_flight(part) + 1) <= TRANSFER_BYTES_MAX, "{size_bytes}");
        }
    }
}
