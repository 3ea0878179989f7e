//! Object stores for the end-to-end tests: a server, a proxy before it, and worlds whose repository lies there.

#![allow(dead_code, reason = "each test program uses its part of this")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

use super::support::{Tree, World};
use immich_backup_core::model::Sha256;
use immich_backup_testbed::gcs::{self, Double, Permissions};
use immich_backup_testbed::proxy::{self, Dialect, Policy, Proxy, Record};
use immich_backup_testbed::servers::{Bucket, Credentials, Options, SeaweedFs};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The account at Google that a backup should have: it may create, get and list.
const WRITER: &str = "writer";

/// The account at Google that may also delete; a proxy's policy says what.
const PRUNER: &str = "pruner";

/// A server, and the only way to it that the program is told.
pub struct Stand {
    server: Server,
    /// Before the server.
    pub proxy: Proxy,
}

enum Server {
    S3(Box<SeaweedFs>),
    Gcs(Box<Double>),
}

/// A request that would write.
#[derive(Debug)]
pub struct Write {
    /// The object's key within the repository.
    pub key: String,
    /// Whether it was taken.
    pub taken: bool,
    /// How much was sent.
    pub bytes: u64,
}

impl Stand {
    /// A SeaweedFS that keeps every version.
    pub fn s3() -> Self {
        Self::s3_with(Options { versioning: true, ..Options::default() })
    }

    /// A SeaweedFS that is set up so.
    pub fn s3_with(options: Options) -> Self {
        let server = SeaweedFs::start(options).unwrap();
        let proxy = Proxy::start(server.endpoint()).unwrap();
        Self { server: Server::S3(Box::new(server)), proxy }
    }

    /// The double of Google Cloud Storage, and an account that may create, get and list.
    pub fn gcs() -> Self {
        let pruner = Permissions { delete: true, ..Permissions::NO_DELETE };
        let identities = vec![gcs::Identity::new(WRITER, Permissions::NO_DELETE), gcs::Identity::new(PRUNER, pruner)];
        let server = Double::start(gcs::Options { identities, ..gcs::Options::default() });
        let proxy = Proxy::start(server.url()).unwrap();
        Self { server: Server::Gcs(Box::new(server)), proxy }
    }

    /// How the server is spoken to.
    pub fn dialect(&self) -> Dialect {
        match self.server {
            Server::S3(_) => Dialect::S3,
            Server::Gcs(_) => Dialect::Gcs,
        }
    }

    /// The bucket's name.
    pub fn bucket_name(&self) -> &str {
        match &self.server {
            Server::S3(server) => &server.bucket().name,
            Server::Gcs(server) => server.bucket(),
        }
    }

    /// From now on the proxy refuses whatever would overwrite or remove an object.
    pub fn append_only(self, abort_allowed: bool) -> Self {
        self.proxy.set_policy(Policy::AppendOnly { dialect: self.dialect(), abort_allowed });
        self
    }

    /// One more way to the server.
    pub fn another_proxy(&self) -> Proxy {
        match &self.server {
            Server::S3(server) => Proxy::start(server.endpoint()).unwrap(),
            Server::Gcs(server) => Proxy::start(server.url()).unwrap(),
        }
    }

    /// `world`, with its repository below `prefix` here.
    pub fn lend(&self, prefix: &str, world: World) -> World {
        self.lend_by(&self.proxy, prefix, world)
    }

    /// Likewise, by another way.
    pub fn lend_by(&self, way: &Proxy, prefix: &str, world: World) -> World {
        self.lend_as(WRITER, way, prefix, world)
    }

    /// Likewise, as somebody whom the server lets remove objects.
    pub fn lend_to_pruner(&self, way: &Proxy, prefix: &str, world: World) -> World {
        self.lend_as(PRUNER, way, prefix, world)
    }

    fn lend_as(&self, who: &str, way: &Proxy, prefix: &str, mut world: World) -> World {
        let endpoint = way.endpoint();
        match &self.server {
            Server::S3(server) => {
                world.repository = PathBuf::from(format!("s3://{}/{prefix}?endpoint={endpoint}", server.bucket().name));
                world.environment = keys(server.credentials());
            }
            Server::Gcs(server) => {
                world.repository = PathBuf::from(format!("gs://{}/{prefix}?endpoint={endpoint}", server.bucket()));
                world.environment = vec![("GCS_CREDENTIALS".to_owned(), server.key_json(who))];
            }
        }
        world.environment.push(("IMMICH_BACKUP_RETRY_WAIT".to_owned(), "100ms".to_owned()));
        world
    }

    /// The bucket, looked at as an administrator.
    pub fn bucket(&self) -> &Bucket {
        match &self.server {
            Server::S3(server) => server.bucket(),
            Server::Gcs(_) => panic!("Google's double has no bucket of S3"),
        }
    }

    /// Of its administrator.
    pub fn bucket_credentials(&self) -> &Credentials {
        &self.bucket().credentials
    }

    /// The double.
    pub fn double(&self) -> &Double {
        match &self.server {
            Server::Gcs(server) => server,
            Server::S3(_) => panic!("a SeaweedFS is no double of Google's"),
        }
    }

    /// Signs what the proxy has changed.
    pub fn resign(&self) -> Option<proxy::Resign> {
        match &self.server {
            Server::S3(server) => Some(proxy::Resign::S3(server.credentials().clone())),
            Server::Gcs(_) => None,
        }
    }

    /// All keys below `prefix`, without it.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let start = format!("{prefix}/");
        let all: Vec<String> = match &self.server {
            Server::S3(server) => server.bucket().keys().unwrap().into_keys().collect(),
            Server::Gcs(server) => server.keys(),
        };
        all.iter().filter_map(|key| Some(key.strip_prefix(&start)?.to_owned())).collect()
    }

    /// The bytes of an object.
    pub fn get(&self, prefix: &str, key: &str) -> Vec<u8> {
        let key = format!("{prefix}/{key}");
        match &self.server {
            Server::S3(server) => server.bucket().get(&key).unwrap().to_vec(),
            Server::Gcs(server) => server.content(&key).unwrap(),
        }
    }

    /// SHA-256 of each object that holds content of files, by key.
    pub fn contents(&self, prefix: &str) -> BTreeMap<String, Sha256> {
        let keys = self.keys(prefix).into_iter().filter(|key| is_content(key));
        keys.map(|key| (key.clone(), Sha256::of(&self.get(prefix, &key)))).collect()
    }

    /// Copies a repository to a folder.
    pub fn mirror(&self, prefix: &str, to: &Path) {
        for key in self.keys(prefix) {
            let path = to.join(&key);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, self.get(prefix, &key)).unwrap();
        }
    }

    /// Every key has exactly one version, none was ever removed, and the program never tried to. Returns how many keys there are.
    #[track_caller]
    pub fn assert_written_once(&self) -> usize {
        let versions: BTreeMap<String, usize> = match &self.server {
            Server::S3(server) => {
                let removed = server.bucket().delete_markers().unwrap();
                // The server's own way to see whether it is ready.
                assert!(removed.keys().all(|key| key == ".ready"), "{removed:?}");
                server.bucket().versions().unwrap()
            }
            Server::Gcs(server) => server.keys().into_iter().map(|key| (key.clone(), server.versions(&key))).collect(),
        };
        let versions: BTreeMap<_, _> = versions.into_iter().filter(|(key, _)| key != ".ready").collect();
        let more: Vec<_> = versions.iter().filter(|(_, count)| **count != 1).collect();
        assert!(more.is_empty() && !versions.is_empty(), "keys with more than one version: {more:?}");
        let denied = self.denied();
        assert!(denied.is_empty(), "the program asked for what an append-only identity may not: {denied:?}");
        versions.len()
    }

    /// The requests that the proxy's policy has refused.
    pub fn denied(&self) -> Vec<String> {
        denied_by(&self.proxy)
    }

    /// What the proxy's log has of writes below `prefix`, in order.
    pub fn writes(&self, prefix: &str) -> Vec<Write> {
        let start = format!("{prefix}/");
        let bucket = match &self.server {
            Server::S3(server) => format!("/{}/", server.bucket().name),
            Server::Gcs(server) => format!("/{}/", server.bucket()),
        };
        let write = |record: Record| {
            if ["GET", "HEAD"].contains(&record.method.as_str()) {
                return None;
            }
            let path = record.path.strip_prefix(&bucket).unwrap_or(&record.path);
            let key = path.strip_prefix(&start).map_or_else(|| format!("{path}?{}", record.query), str::to_owned);
            Some(Write { key, taken: record.answered.is_some_and(|status| status.is_success()), bytes: record.bytes_in })
        };
        self.proxy.log().into_iter().filter_map(write).collect()
    }
}

/// The requests that a proxy's policy has refused.
pub fn denied_by(proxy: &Proxy) -> Vec<String> {
    let denied = proxy.log().into_iter().filter(|record| record.answered.is_some_and(|status| status.as_u16() == 403) && !record.was_forwarded());
    denied.map(|record| format!("{} {}?{}", record.method, record.path, record.query)).collect()
}

/// The environment that holds these keys.
pub fn keys(credentials: &Credentials) -> Vec<(String, String)> {
    let named = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    vec![named("AWS_ACCESS_KEY_ID", &credentials.access_key), named("AWS_SECRET_ACCESS_KEY", &credentials.secret_key), named("AWS_REGION", "us-east-1")]
}

/// Whether an object holds content of files.
pub fn is_content(key: &str) -> bool {
    ["library/", "versions/", "external/"].iter().any(|start| key.starts_with(start))
}

impl World {
    /// Restores by the scripts of docs/by-hand from a copy of the repository, and compares.
    #[track_caller]
    pub fn assert_restores_by_hand(&self, copy: &Path, tree: &Tree) {
        let to = self.at("by-hand");
        super::support::tool("bash", &[super::support::by_hand("restore-from-manifest.sh").as_os_str(), copy.as_os_str(), to.as_os_str()]);
        Tree::of(&to).assert_is_but_for_modes(tree, "restored by hand from the manifest");
        super::support::remove(&to);
        super::support::tool("python3", &[super::support::by_hand("restore-from-log.py").as_os_str(), copy.as_os_str(), to.as_os_str()]);
        Tree::of(&to).assert_is(tree, "restored by hand from the log");
        super::support::remove(&to);
    }
}
