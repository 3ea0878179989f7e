//! A store of a test's server, looked at from behind: what it holds, how often, and what was begun and not ended. And a line to it that can fail.

use super::cloud::{keys, open, options};
use super::{World, contents, files, restore_from, workers};
use immich_backup_core::event::{Event, Recorder, Silent};
use immich_backup_core::repository::Session;
use immich_backup_core::repository::cloud::{Access, GcsCredentials, Options};
use immich_backup_core::repository::store::Store;
use immich_backup_core::verify::{self, Depth};
use immich_backup_testbed::gcs::{Description, Double};
use immich_backup_testbed::proxy::{Proxy, Record, Upstream};
use immich_backup_testbed::servers::{Azurite, Bucket, Container};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// A place on a server.
#[derive(Clone)]
pub enum Behind {
    /// A bucket that keeps versions.
    S3(Bucket),
    /// The double's bucket.
    Gcs(Arc<Double>),
    /// A container.
    Azure(Container),
}

impl Behind {
    fn address(&self) -> &str {
        match self {
            Self::S3(bucket) => &bucket.endpoint,
            Self::Gcs(double) => double.url(),
            Self::Azure(container) => &container.endpoint,
        }
    }

    /// The store below `prefix`, over `address`.
    fn store(&self, address: &str, prefix: &str, change: impl FnOnce(&mut Options)) -> Arc<dyn Store> {
        let (access, url) = match self {
            Self::S3(bucket) => (keys(&bucket.credentials), format!("s3://{}/{prefix}?endpoint={address}", bucket.name)),
            Self::Gcs(double) => {
                let gcs = GcsCredentials::Key(double.key_json("owner"));
                (Access { gcs, ..Access::default() }, format!("gs://{}/{prefix}?endpoint={address}", double.bucket()))
            }
            Self::Azure(container) => {
                let azure = vec![("AZURE_STORAGE_ACCOUNT_KEY".to_owned(), Azurite::KEY.to_owned())];
                let url = format!("az://{}/{prefix}?account={}&endpoint={address}", container.name, Azurite::ACCOUNT);
                (Access { azure, ..Access::default() }, url)
            }
        };
        let mut options = options(access);
        change(&mut options);
        open(&url, options)
    }

    /// The store below `prefix`, with nothing between.
    pub fn direct(&self, prefix: &str) -> Arc<dyn Store> {
        self.store(self.address(), prefix, |_| {})
    }

    /// What lies below `prefix`, without it.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let all: Vec<_> = match self {
            Self::S3(bucket) => bucket.keys_below(&format!("{prefix}/")).unwrap().into_keys().collect(),
            Self::Gcs(double) => double.keys(),
            Self::Azure(container) => container.blobs().unwrap().into_keys().collect(),
        };
        all.iter().filter_map(|key| Some(key.strip_prefix(prefix)?.strip_prefix('/')?.to_owned())).collect()
    }

    /// Uploads below `prefix` that were begun and not ended. Azure has none, only blocks of nobody, which it drops after a week.
    pub fn unfinished(&self, prefix: &str) -> Vec<String> {
        let all = match self {
            Self::S3(bucket) => bucket.uploads().unwrap(),
            Self::Gcs(double) => double.unfinished_uploads(),
            Self::Azure(_) => Vec::new(),
        };
        all.into_iter().filter(|key| key.starts_with(&format!("{prefix}/"))).collect()
    }

    /// Puts an object there, as somebody else would.
    pub fn plant(&self, key: &str, content: &[u8]) {
        match self {
            Self::S3(bucket) => bucket.put_raw(key, content).unwrap(),
            Self::Gcs(double) => double.plant(key, content, Description::default()),
            Self::Azure(container) => container.put_raw(key, content).unwrap(),
        }
    }

    /// Nothing below `prefix` was ever stored over, or removed.
    pub fn assert_nothing_was_replaced(&self, prefix: &str) {
        match self {
            Self::S3(bucket) => {
                let below = format!("{prefix}/");
                let versions = bucket.versions_below(&below).unwrap();
                assert!(!versions.is_empty(), "a check of nothing");
                let twice: Vec<_> = versions.into_iter().filter(|(_, count)| *count != 1).collect();
                assert!(twice.is_empty(), "{twice:?}");
                assert_eq!(bucket.delete_markers_below(&below).unwrap(), BTreeMap::new());
            }
            Self::Gcs(double) => {
                for key in self.keys(prefix) {
                    assert_eq!(double.versions(&format!("{prefix}/{key}")), 1, "{key}");
                }
            }
            // It keeps no versions: the line's log says it.
            Self::Azure(_) => {}
        }
    }

    /// Everything of `world` is there, once, under its own name, in one chain, as a machine sees it that knows nothing yet.
    pub async fn assert_whole(&self, prefix: &str, world: &World) {
        let (repository, state) = world.open(self.direct(prefix), "reader").await.unwrap();
        let mut session = Session::open_for_reading(repository, state, &Silent).await.unwrap();
        let plan = verify::Plan { depth: Depth::Read(None), workers: workers(4), record: false };
        let verified = Box::pin(verify::run(&mut session, plan, &Silent, &CancellationToken::new())).await.unwrap();
        assert_eq!((verified.damaged, verified.unannounced), (0, 0), "{:?}", verified.findings);
        let target = world.beside("restored");
        assert_eq!(restore_from(&session, "latest", &target).await.unwrap().failed, 0);
        assert!(contents(&target) == contents(&world.library), "restored other files than there are");
        std::fs::remove_dir_all(&target).unwrap();
        let keys = self.keys(prefix);
        let count = |folder: &str| keys.iter().filter(|key| key.starts_with(folder)).count();
        assert_eq!((count("library/"), count("versions/")), (files(&world.library).len(), 0), "{keys:?}");
        assert_eq!(count("log/") as u64, verified.entries);
        self.assert_nothing_was_replaced(prefix);
        assert_eq!(self.unfinished(prefix), Vec::<String>::new());
    }
}

/// A way to a store that fails as it is told to, and tells what happened.
pub struct Line {
    /// It.
    pub proxy: Arc<Proxy>,
    /// Hears the retries.
    pub recorder: Arc<Recorder>,
    behind: Behind,
    prefix: String,
}

impl Line {
    /// A line to what lies below `prefix`.
    pub fn to(behind: &Behind, prefix: &str) -> Self {
        let proxy = Arc::new(Proxy::start(behind.address()).unwrap());
        Self { proxy, recorder: Arc::default(), behind: behind.clone(), prefix: prefix.to_owned() }
    }

    /// The store at its end, with `change` made to how it is used.
    pub fn store_with(&self, change: impl FnOnce(&mut Options)) -> Arc<dyn Store> {
        let address = match self.behind {
            Behind::Azure(_) => format!("{}/{}", self.proxy.endpoint(), Azurite::ACCOUNT),
            _ => self.proxy.endpoint(),
        };
        self.behind.store(&address, &self.prefix, |options| {
            options.monitor = self.recorder.clone();
            change(options);
        })
    }

    /// The store at its end.
    pub fn store(&self) -> Arc<dyn Store> {
        self.store_with(|_| {})
    }

    /// The retries so far whose key has this in it: their number, and the wait before.
    pub fn retries(&self, part: &str) -> Vec<(u32, u64)> {
        let of = |event| match event {
            Event::Retrying { key, retry, wait_ms, .. } if key.contains(part) => Some((retry, wait_ms)),
            _ => None,
        };
        self.recorder.events().into_iter().filter_map(of).collect()
    }

    /// As [`Self::retries`], of what was tried again last: where a store must answer soon, a busy machine makes other requests be tried again, too.
    pub fn last_retries(&self, part: &str) -> Vec<u32> {
        let of = |event| match event {
            Event::Retrying { action, key, retry, .. } if key.contains(part) => Some((action, retry)),
            _ => None,
        };
        let all: Vec<_> = self.recorder.events().into_iter().filter_map(of).collect();
        let last = all.last().map(|(action, _)| action.clone());
        all.into_iter().filter(|(action, _)| Some(action) == last.as_ref()).map(|(_, retry)| retry).collect()
    }

    /// Bytes of content of files that went to the store so far.
    pub fn content_bytes(&self) -> u64 {
        self.proxy.log().iter().filter(|record| ["PUT", "POST"].contains(&record.method.as_str()) && is_content(record)).map(|record| record.bytes_in).sum()
    }

    /// The store said of no object twice that it made it.
    pub fn assert_nothing_was_made_twice(&self) {
        let makes = |record: &Record| match self.behind {
            Behind::S3(_) => match record.method.as_str() {
                "PUT" => !record.has("partNumber"),
                method => method == "POST" && record.has("uploadId"),
            },
            Behind::Gcs(_) => record.method == "PUT" && !record.has("upload_id"),
            Behind::Azure(_) => record.method == "PUT" && !record.has("comp=block"),
        };
        let is_done = |record: &Record| matches!(record.upstream, Upstream::Answered(status) if status.is_success());
        let mut made: Vec<_> = self.proxy.log().into_iter().filter(|record| makes(record) && is_done(record)).map(|record| record.path).collect();
        let count = made.len();
        made.sort_unstable();
        made.dedup();
        assert_eq!(made.len(), count, "{made:?}");
    }
}

fn is_content(record: &Record) -> bool {
    ["/library/", "/versions/"].iter().any(|folder| record.path.contains(folder)) || record.has("upload_id")
}
