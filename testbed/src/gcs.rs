//! A test double of Google Cloud Storage: one bucket, served over plain HTTP on this machine.
//!
//! It is written from Google's public reference, not from what a client happens to send; the page is named where a rule is. It has the
//! XML API (objects, listings, multipart uploads), the JSON API (objects, listings, simple and resumable uploads) and the token endpoint
//! of service accounts. What it does not have (copies, changes of metadata, versioning, encryption keys, holds) it refuses with 501.
//!
//! It is no place for data: everything is gone when it is dropped.

mod auth;
mod content;
mod http;
mod json;
mod multipart;
mod refusal;
mod resumable;
mod serve;
mod store;
mod xml;

pub use content::Checksums;
pub use serve::LoggedRequest;
pub use store::{Description, ObjectInfo};

use auth::{Account, Caller, Desk};
use content::Content;
use http::Call;
use jiff::Timestamp;
use refusal::Refusal;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use store::{Draft, Store};
use tempfile::TempDir;

/// First parts of paths that mean something else than a bucket.
const RESERVED: [&str; 4] = ["storage", "upload", "download", "token"];

/// What a service account may do in the bucket: <https://cloud.google.com/storage/docs/access-control/iam-permissions>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// `storage.objects.create`.
    pub create: bool,
    /// `storage.objects.get`.
    pub get: bool,
    /// `storage.objects.list`.
    pub list: bool,
    /// `storage.objects.delete`, which overwriting takes too.
    pub delete: bool,
    /// `storage.buckets.get`; the roles for objects do not have it.
    pub bucket: bool,
}

impl Permissions {
    /// Everything.
    pub const ALL: Self = Self { create: true, get: true, list: true, delete: true, bucket: true };
    /// Create, get and list, as `roles/storage.objectCreator` and `roles/storage.objectViewer` together: what a backup should have.
    pub const NO_DELETE: Self = Self { create: true, get: true, list: true, delete: false, bucket: false };
    /// Nothing at all.
    pub const NONE: Self = Self { create: false, get: false, list: false, delete: false, bucket: false };
}

/// A service account.
#[derive(Clone, Debug)]
pub struct Identity {
    /// How a test calls it; the part of its address before the `@`.
    pub name: String,
    /// What it may do.
    pub permissions: Permissions,
}

impl Identity {
    /// Returns an identity.
    pub fn new(name: impl Into<String>, permissions: Permissions) -> Self {
        Self { name: name.into(), permissions }
    }
}

/// How to start a double.
#[derive(Clone, Debug)]
pub struct Options {
    /// The one bucket there is.
    pub bucket: String,
    /// The service accounts that may ask.
    pub identities: Vec<Identity>,
    /// Entries in a page of a listing, 1,000 at most.
    pub page_max: usize,
    /// How long a token from the token endpoint is good.
    pub token_lifetime: Duration,
    /// The port to listen on; any that is free if 0.
    pub port: u16,
}

impl Default for Options {
    /// A bucket `bucket`, an account `owner` that may do everything, pages of 1,000, tokens for an hour.
    fn default() -> Self {
        Self {
            bucket: "bucket".into(),
            identities: vec![Identity::new("owner", Permissions::ALL)],
            page_max: 1000,
            token_lifetime: Duration::from_secs(3599),
            port: 0,
        }
    }
}

/// Why a double did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The bucket's name cannot be told from a path of the JSON API.
    #[error("no bucket can be called `{bucket}` here")]
    Bucket {
        /// The name.
        bucket: String,
    },
    /// No key, no folder, or no port.
    #[error("cannot start the double of Google Cloud Storage")]
    Io(#[from] io::Error),
}

/// What the server's tasks share.
struct Shared {
    url: String,
    bucket: String,
    page_max: usize,
    started: Timestamp,
    desk: Desk,
    folder: Arc<TempDir>,
    store: Mutex<Store>,
    sessions: Mutex<HashMap<String, resumable::Handle>>,
    multiparts: Mutex<HashMap<String, multipart::Upload>>,
    log: Mutex<serve::Log>,
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<String, resumable::Handle>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn multiparts(&self) -> MutexGuard<'_, HashMap<String, multipart::Upload>> {
        self.multiparts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> MutexGuard<'_, serve::Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns who sends a request: <https://cloud.google.com/storage/docs/authentication>.
    fn caller(&self, call: &Call) -> Result<Caller, Refusal> {
        let header = call.header("authorization").ok_or_else(Refusal::anonymous)?;
        let (scheme, bearer) = header.split_once(' ').ok_or_else(Refusal::bad_bearer)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Refusal::bad_bearer());
        }
        self.desk.caller(bearer.trim()).ok_or_else(Refusal::bad_bearer)
    }

    /// Returns how many entries a page has for whoever asks for `wanted`.
    fn page(&self, wanted: u64) -> usize {
        usize::try_from(wanted).unwrap_or(usize::MAX).min(self.page_max)
    }
}

/// A server that takes itself for Google Cloud Storage, until it is dropped.
pub struct Double {
    shared: Arc<Shared>,
    _server: serve::Server,
}

impl Double {
    /// Starts a double on threads of its own, so that it serves tests with and without a runtime.
    ///
    /// # Panics
    ///
    /// If it cannot: a test has nothing to go on with.
    #[must_use]
    #[expect(clippy::panic, reason = "a test that has no server cannot go on")]
    pub fn start(options: Options) -> Self {
        match Self::try_start(options) {
            Ok(double) => double,
            Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
        }
    }

    /// Starts a double.
    ///
    /// # Errors
    ///
    /// If the bucket has an impossible name, or there is no free port, no folder for temporary files, or no randomness.
    pub fn try_start(options: Options) -> Result<Self, StartError> {
        if options.bucket.is_empty() || options.bucket.contains('/') || RESERVED.contains(&options.bucket.as_str()) {
            return Err(StartError::Bucket { bucket: options.bucket });
        }
        let listener = std::net::TcpListener::bind(("127.0.0.1", options.port))?;
        let shared = Arc::new(Shared {
            url: format!("http://{}", listener.local_addr()?),
            bucket: options.bucket,
            page_max: options.page_max.clamp(1, 1000),
            started: Timestamp::now(),
            desk: Desk::new(&options.identities, options.token_lifetime)?,
            folder: Arc::new(tempfile::Builder::new().prefix("gcs-double-").tempdir()?),
            store: Mutex::default(),
            sessions: Mutex::default(),
            multiparts: Mutex::default(),
            log: Mutex::default(),
        });
        let server = serve::Server::start(listener, Arc::clone(&shared))?;
        Ok(Self { shared, _server: server })
    }

    /// Returns the address, `http://127.0.0.1:PORT`, without a slash at its end.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.shared.url
    }

    /// Returns the bucket's name.
    #[must_use]
    pub fn bucket(&self) -> &str {
        &self.shared.bucket
    }

    #[expect(clippy::panic, reason = "a test that asks for an account it has not set up is wrong")]
    fn account(&self, identity: &str) -> (usize, &Account) {
        self.shared.desk.account(identity).unwrap_or_else(|| panic!("no identity `{identity}`"))
    }

    #[expect(clippy::panic, reason = "a test whose files or random numbers fail cannot go on")]
    fn must<T>(result: io::Result<T>) -> T {
        result.unwrap_or_else(|error| panic!("the double of Google Cloud Storage failed: {error}"))
    }

    /// Returns the key file of an identity. Its `token_uri` is this double.
    ///
    /// # Panics
    ///
    /// If there is no such identity.
    #[must_use]
    pub fn key_json(&self, identity: &str) -> String {
        Self::must(Desk::key_json(self.account(identity).1, &self.shared.url, false))
    }

    /// Like [`Double::key_json`], with a field `gcs_base_url` that names the server at `url`: this double, or what stands before it.
    ///
    /// # Panics
    ///
    /// If there is no such identity.
    #[must_use]
    pub fn key_json_for(&self, identity: &str, url: &str) -> String {
        Self::must(Desk::key_json(self.account(identity).1, url, true))
    }

    /// Returns a bearer for an identity, as the token endpoint would give out.
    ///
    /// # Panics
    ///
    /// If there is no such identity.
    #[must_use]
    pub fn access_token(&self, identity: &str) -> String {
        Self::must(self.shared.desk.issue(self.account(identity).0))
    }

    /// Returns claims, in JSON, as a JWT signed with the key of an identity, whatever they say.
    ///
    /// # Panics
    ///
    /// If there is no such identity.
    #[must_use]
    pub fn sign(&self, identity: &str, claims: &serde_json::Value) -> String {
        Self::must(Desk::sign(self.account(identity).1, claims))
    }

    /// Returns the mail address of an identity.
    ///
    /// # Panics
    ///
    /// If there is no such identity.
    #[must_use]
    pub fn email(&self, identity: &str) -> &str {
        &self.account(identity).1.email
    }

    /// Ends every bearer that was given out or used until now.
    pub fn expire_tokens(&self) {
        self.shared.desk.expire_tokens();
    }

    /// Changes what an identity may do, from the next request on. A resumable session keeps the rights it began with.
    ///
    /// # Panics
    ///
    /// If there is no such identity.
    pub fn set_permissions(&self, identity: &str, permissions: Permissions) {
        self.shared.desk.set_permissions(self.account(identity).0, permissions);
    }

    /// Returns a live object.
    #[must_use]
    pub fn object(&self, key: &str) -> Option<ObjectInfo> {
        self.shared.store().get(key).map(|(info, _)| info)
    }

    /// Returns a live object's bytes.
    #[must_use]
    pub fn content(&self, key: &str) -> Option<Vec<u8>> {
        let (_, content) = self.shared.store().get(key)?;
        content.read().ok()
    }

    /// Returns the names of live objects, in order.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.shared.store().keys()
    }

    /// Returns how many objects a name ever had, one after the other: 1 for one that was never overwritten or made again.
    #[must_use]
    pub fn versions(&self, key: &str) -> usize {
        self.shared.store().history(key).len()
    }

    /// Returns every object a name ever had, oldest first.
    #[must_use]
    pub fn history(&self, key: &str) -> Vec<ObjectInfo> {
        self.shared.store().history(key).to_vec()
    }

    /// Returns the requests answered so far, the last 100,000 at most.
    #[must_use]
    pub fn requests(&self) -> Vec<LoggedRequest> {
        self.shared.log().requests()
    }

    /// Forgets the requests answered so far.
    pub fn forget_requests(&self) {
        self.shared.log().clear();
    }

    /// Returns the names that uploads were begun for, resumable or multipart, and not ended.
    #[must_use]
    pub fn unfinished_uploads(&self) -> Vec<String> {
        let sessions: Vec<_> = self.shared.sessions().values().map(Arc::clone).collect();
        let open = |session: &resumable::Handle| {
            let session = resumable::lock(session);
            session.end.is_none().then(|| session.key.clone())
        };
        let mut keys: Vec<_> = sessions.iter().filter_map(open).collect();
        keys.extend(self.shared.multiparts().values().map(|upload| upload.key.clone()));
        keys.sort();
        keys
    }

    /// Ends all resumable uploads that are under way, as the service does after a week.
    ///
    /// <https://cloud.google.com/storage/docs/resumable-uploads#session-uris>
    pub fn expire_sessions(&self) {
        let sessions: Vec<_> = self.shared.sessions().values().map(Arc::clone).collect();
        sessions.iter().for_each(|session| resumable::lock(session).expire());
    }

    /// Puts an object there, over one that is there, as somebody else would.
    ///
    /// # Panics
    ///
    /// If there is no room for it.
    pub fn plant(&self, key: &str, bytes: &[u8], description: Description) {
        let (content, checksums) = Self::must(Content::of(&self.shared.folder, bytes));
        self.shared.store().put(Draft { key: key.into(), description, content, checksums, parts: None });
    }

    /// Changes an object's bytes; generation and checksums stay what they were. Returns whether there is such an object.
    ///
    /// # Panics
    ///
    /// If there is no room for it.
    pub fn damage(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        let Some(mut bytes) = self.content(key) else { return false };
        change(&mut bytes);
        let (content, _) = Self::must(Content::of(&self.shared.folder, &bytes));
        self.shared.store().swap(key, content)
    }

    /// Takes an object away, as somebody else would. Returns whether there was one.
    pub fn remove(&self, key: &str) -> bool {
        self.shared.store().remove(key)
    }
}
