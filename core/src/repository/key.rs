//! Which key an object gets. The map from (path, content) to keys is one to one; see docs/format.md.

use crate::model::{FilePath, Root, Sha256};
use jiff::Timestamp;
use std::fmt;

/// Longest key that every provider takes.
pub const KEY_BYTES_MAX: usize = 1_024;
/// Longest segment that every file system takes.
pub const SEGMENT_BYTES_MAX: usize = 255;

/// The name of an object: segments joined by `/`, none empty, `.` or `..`, no control characters, at most [`KEY_BYTES_MAX`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

/// A text that is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not an object's key", .0.escape_debug())]
pub struct InvalidKey(pub String);

impl Key {
    /// Takes `text` as a key.
    ///
    /// # Errors
    /// What no provider or file system would take, or would take for another name.
    pub fn parse(text: &str) -> Result<Self, InvalidKey> {
        let good = |segment: &str| !segment.is_empty() && segment.len() <= SEGMENT_BYTES_MAX && !matches!(segment, "." | "..");
        if text.len() <= KEY_BYTES_MAX && text.split('/').all(good) && !text.chars().any(char::is_control) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidKey(text.to_owned()))
        }
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `format.json`.
    #[must_use]
    pub fn identity() -> Self {
        Self("format.json".to_owned())
    }

    /// The key of log entry `sequence`.
    #[must_use]
    pub fn log_entry(sequence: u64) -> Self {
        Self(format!("{LOG}{sequence:010}.ndjson.zst"))
    }

    /// The key of log entry `sequence` in a store that cannot refuse what exists: two writers' entries do not meet there.
    #[must_use]
    pub fn log_entry_of(sequence: u64, writer: &dyn fmt::Display) -> Self {
        Self(format!("{LOG}{sequence:010}-{writer}.ndjson.zst"))
    }

    /// The key of log entry `sequence` of `epoch`; of `writer`, in a store that cannot refuse what exists.
    #[must_use]
    pub fn log_entry_in(epoch: u32, sequence: u64, writer: Option<&dyn fmt::Display>) -> Self {
        let epoch = if epoch == 0 { String::new() } else { format!("{:010}-", EPOCHS_FROM + u64::from(epoch)) };
        let writer = writer.map_or_else(String::new, |writer| format!("-{writer}"));
        Self(format!("{LOG}{epoch}{sequence:010}{writer}.ndjson.zst"))
    }

    /// The key of the entry that opens `epoch`: one name, whatever its number, so that of two machines that repair at once one is refused. Of `writer`,
    /// in a store that cannot refuse what exists.
    #[must_use]
    pub fn log_opening(epoch: u32, writer: Option<&dyn fmt::Display>) -> Self {
        let writer = writer.map_or_else(String::new, |writer| format!("-{OPENING}-{writer}"));
        Self(format!("{LOG}{:010}{writer}.ndjson.zst", EPOCHS_FROM + u64::from(epoch)))
    }

    /// The key of the dump that began at `at`, of a server of version `immich_version`; `compression` is the end of its name, `gz` or `zst`.
    /// A version that could not stand in a key is written as `unknown`.
    #[must_use]
    pub fn dump(at: Timestamp, immich_version: &str, compression: &str) -> Self {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+');
        let version = immich_version.strip_prefix('v').unwrap_or(immich_version);
        let version = if version.is_empty() || version.len() > 40 || !version.chars().all(plain) { "unknown" } else { version };
        Self(format!("{DUMPS}{}-immich-v{version}.sql.{compression}", at.strftime("%Y-%m-%dT%H-%M-%SZ")))
    }

    /// The key of the manifest's copy as of log entry `sequence` of `epoch`. Those of later epochs come later in a listing.
    #[must_use]
    pub fn manifest(epoch: u32, sequence: u64) -> Self {
        let epoch = if epoch == 0 { String::new() } else { format!("{:010}-", EPOCHS_FROM + u64::from(epoch)) };
        Self(format!("{MANIFESTS}{epoch}{sequence:010}.db.zst"))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where dumps of the database lie.
pub const DUMPS: &str = "database/";
/// Where log entries lie.
pub const LOG: &str = "log/";
/// Where copies of the manifest lie.
pub const MANIFESTS: &str = "manifests/";
/// Where dumps and content of files lie: all the prefixes under which verify looks for objects, in order.
pub const CONTENT: [&str; 6] = ["config/", DUMPS, "external/", "library/", "postgres/", "versions/"];

/// Ten-digit numbers from here on count epochs, not entries. A program that knows no epochs takes them for entries far beyond the end of the log, and
/// refuses it: it must not write where the log has ended. They also come after all entries in a listing, so that whoever lists from an entry on sees them.
const EPOCHS_FROM: u64 = 9_000_000_000;
/// Stands in the name of an entry that opens an epoch, where that has its writer in it: after all digits in a listing.
const OPENING: &str = "opening";

/// What the name of an object below [`LOG`] says that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogName {
    /// An entry of an epoch; the first epoch is 0.
    Entry {
        /// Of which epoch.
        epoch: u32,
        /// Its number.
        sequence: u64,
    },
    /// The entry that opens an epoch; its number is in its header.
    Opening {
        /// Which epoch.
        epoch: u32,
    },
}

impl LogName {
    /// The epoch it is of.
    #[must_use]
    pub fn epoch(self) -> u32 {
        match self {
            Self::Entry { epoch, .. } | Self::Opening { epoch } => epoch,
        }
    }
}

/// What `key` is, as log objects are named: `log/0000000042.ndjson.zst` and `log/0000000042-<run>.ndjson.zst` (written to stores without conditional
/// writes); in epoch 1 `log/9000000001-0000000042.ndjson.zst`, opened by `log/9000000001.ndjson.zst`.
#[must_use]
pub fn log_name(key: &Key) -> Option<LogName> {
    let name = key.as_str().strip_prefix(LOG)?.strip_suffix(".ndjson.zst")?;
    let (first, rest) = name.split_once('-').map_or((name, None), |(first, rest)| (first, Some(rest)));
    let number = ten_digits(first)?;
    let Some(epoch) = epoch(number) else { return Some(LogName::Entry { epoch: 0, sequence: number }) };
    let Some(rest) = rest.filter(|rest| !rest.starts_with(OPENING)) else { return Some(LogName::Opening { epoch }) };
    let digits = rest.split_once('-').map_or(rest, |(digits, _)| digits);
    Some(LogName::Entry { epoch, sequence: ten_digits(digits)? })
}

/// The epoch and number of the log entry as of which the manifest's copy `key` was made.
#[must_use]
pub fn manifest_position(key: &Key) -> Option<(u32, u64)> {
    let name = key.as_str().strip_prefix(MANIFESTS)?.strip_suffix(".db.zst")?;
    match name.split_once('-') {
        Some((first, digits)) => Some((epoch(ten_digits(first)?)?, ten_digits(digits)?)),
        None => ten_digits(name).map(|sequence| (0, sequence)),
    }
}

fn ten_digits(text: &str) -> Option<u64> {
    (text.len() == 10 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

fn epoch(number: u64) -> Option<u32> {
    u32::try_from(number.checked_sub(EPOCHS_FROM)?).ok().filter(|epoch| *epoch > 0)
}

/// The canonical path of a file within the repository: below `library/`, `external/<name>/`, `config/` or `postgres/`.
fn rooted(file: &FilePath) -> String {
    match &file.root {
        Root::Library => format!("library/{}", file.path),
        Root::External(name) => format!("external/{name}/{}", file.path),
        Root::Config => format!("config/{}", file.path),
        Root::Postgres => format!("postgres/{}", file.path),
    }
}

/// `%` followed by a letter that is no hex digit never comes out of encoding a path, so hashed keys meet no other.
const HASHED: &str = "%hashed";

/// The key of the first content ever stored for `file`; `None` where a name on the way is too long.
#[must_use]
pub fn home(file: &FilePath) -> Option<Key> {
    Key::parse(&rooted(file)).ok()
}

/// The keys under which `content` of `file` may be stored, best first: home (only where `home_is_free`), its own place under
/// `versions/`, then hashed ones that fit wherever the readable ones do not.
pub fn candidates(file: &FilePath, content: &Sha256, home_is_free: bool) -> impl Iterator<Item = Key> {
    let rooted = rooted(file);
    let content = content.to_string();
    let path = rooted.strip_prefix("library/").filter(|_| file.root == Root::Library).unwrap_or(&rooted).to_owned();
    let path_hash = Sha256::of(rooted.as_bytes());
    let start: String = content.chars().take(16).collect();
    let first = if home_is_free { home(file) } else { None };
    let version = match file.root {
        Root::Library => Key::parse(&format!("versions/{path}/{start}")).ok(),
        // `versions/external/…` could be the version of a library's file `external/…`: the others have places of their own. No path's encoding
        // has `%e`, `%co` or `%p`.
        Root::External(_) | Root::Config | Root::Postgres => Key::parse(&format!("versions/%{path}/{start}")).ok(),
    };
    let hashed = (0..10).map(move |copy| {
        let suffix = if copy == 0 { String::new() } else { format!("-{copy}") };
        Key(format!("versions/{HASHED}/{path_hash}/{content}{suffix}"))
    });
    first.into_iter().chain(version).chain(hashed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RootPath;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn library(path: &str) -> FilePath {
        FilePath::library(RootPath::parse(path).unwrap())
    }

    fn external(path: &str) -> FilePath {
        FilePath { root: Root::External("nas".parse().unwrap()), path: RootPath::parse(path).unwrap() }
    }

    fn keys(file: &FilePath, content: &[u8]) -> Vec<String> {
        candidates(file, &Sha256::of(content), true).map(|key| key.to_string()).collect()
    }

    #[test]
    fn keys_are_the_paths_that_people_know() {
        let keys = keys(&library("upload/u/100%25.jpg"), b"x");
        assert_eq!(keys[0], "library/upload/u/100%25.jpg");
        assert_eq!(keys[1], "versions/upload/u/100%25.jpg/2d711642b726b044");
        assert!(keys[2].starts_with("versions/%hashed/"));
        assert_eq!(external_keys()[0], "external/nas/a.jpg");
        let beside = |root| super::tests::keys(&FilePath { root, path: RootPath::parse("a/b").unwrap() }, b"x");
        assert_eq!(beside(Root::Config)[..2], ["config/a/b", "versions/%config/a/b/2d711642b726b044"]);
        assert_eq!(beside(Root::Postgres)[..2], ["postgres/a/b", "versions/%postgres/a/b/2d711642b726b044"]);
        assert!(CONTENT.is_sorted(), "verify walks them beside what is expected, in order");
    }

    fn external_keys() -> Vec<String> {
        keys(&external("a.jpg"), b"x")
    }

    #[test]
    fn what_is_too_long_is_hashed() {
        let long = "é".repeat(127) + "a";
        assert_eq!(keys(&library(&long), b"x")[0], format!("library/{long}"));
        let encoded_longer = RootPath::from_bytes("%".repeat(255).as_bytes()).unwrap();
        assert!(keys(&FilePath::library(encoded_longer), b"x")[0].starts_with("versions/%hashed/"));
        let deep = vec!["d".repeat(100); 11].join("/");
        assert!(keys(&library(&deep), b"x")[0].starts_with("versions/%hashed/"));
    }

    #[test]
    fn log_entries_are_known_with_and_without_a_run() {
        let named = |text: &str| log_name(&Key::parse(text).unwrap());
        let (run, entry) = ("3f2a67b1-0000-4000-8000-000000000001", |epoch| Some(LogName::Entry { epoch, sequence: 42 }));
        assert_eq!((log_name(&Key::log_entry(42)), named("log/0000000042-3f2a.ndjson.zst")), (entry(0), entry(0)));
        for (key, text) in [
            (Key::log_entry_in(0, 42, None), "log/0000000042.ndjson.zst".to_owned()),
            (Key::log_entry_in(7, 42, None), "log/9000000007-0000000042.ndjson.zst".to_owned()),
            (Key::log_entry_in(7, 42, Some(&run)), format!("log/9000000007-0000000042-{run}.ndjson.zst")),
        ] {
            assert_eq!((key.as_str(), log_name(&key)), (&*text, entry(if text.contains("/9") { 7 } else { 0 })));
        }
        for key in [Key::log_opening(7, None), Key::log_opening(7, Some(&run))] {
            assert_eq!(log_name(&key), Some(LogName::Opening { epoch: 7 }));
            assert!(
                key > Key::log_entry_in(7, 8_999_999_999, Some(&run)) && key < Key::log_entry_in(8, 1, None),
                "seen by whoever lists from an entry on: {key}"
            );
        }
        for other in
            ["log/42.ndjson.zst", "log/0000000042.ndjson", "log/00000000x2.ndjson.zst", "manifests/0000000042.ndjson.zst", "log/9000000007-42.ndjson.zst"]
        {
            assert_eq!(named(other), None, "{other}");
        }
        assert_eq!((manifest_position(&Key::manifest(0, 7)), manifest_position(&Key::manifest(3, 7))), (Some((0, 7)), Some((3, 7))));
    }

    #[test]
    fn a_program_that_knows_no_epochs_refuses_a_log_that_has_one() {
        // How such a program read names: ten digits, then a dash or the end; a number that does not follow is a gap.
        let number = |key: &Key| -> u64 { key.as_str()[LOG.len()..LOG.len() + 10].parse().unwrap() };
        for key in [Key::log_opening(1, None), Key::log_entry_in(1, 43, None), Key::log_opening(999_999_999, None)] {
            assert!(number(&key) > 9_000_000_000, "{key}");
        }
    }

    #[test]
    fn a_key_cannot_leave_the_repository() {
        for bad in ["", "/a", "a/", "a//b", "../a", "a/../b", "a/.", "a\nb", "a\u{0}b", &"x".repeat(256), &vec!["x".repeat(200); 6].join("/")] {
            assert!(Key::parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    fn arbitrary_file() -> impl Strategy<Value = FilePath> {
        let segment = prop::collection::vec(prop::sample::select(b"a%E2.-\\h\xFF\n".to_vec()), 1..4);
        let special = prop::sample::select(vec![
            b"external".to_vec(),
            b"nas".to_vec(),
            b"%hashed".to_vec(),
            b"2d711642b726b044".to_vec(),
            b"library".to_vec(),
            b"config".to_vec(),
            b"%config".to_vec(),
            b"postgres".to_vec(),
            b"versions".to_vec(),
        ]);
        let root = prop::sample::select(vec![Root::Library, Root::External("nas".parse().unwrap()), Root::Config, Root::Postgres]);
        (root, prop::collection::vec(prop_oneof![segment, special], 1..4)).prop_filter_map("no path", |(root, segments)| {
            let path = RootPath::from_bytes(&segments.join(&b'/')).ok()?;
            Some(FilePath { root, path })
        })
    }

    proptest! {
        #[test]
        fn no_two_files_share_a_key(files in prop::collection::hash_set(arbitrary_file(), 1..60)) {
            let mut owners: HashMap<String, (FilePath, &[u8])> = HashMap::new();
            for file in &files {
                for content in [b"x".as_slice(), b"y"] {
                    // Home belongs to the first content only.
                    for key in candidates(file, &Sha256::of(content), content == b"x") {
                        prop_assert!(Key::parse(key.as_str()).is_ok());
                        let previous = owners.insert(key.to_string(), (file.clone(), content));
                        prop_assert!(previous.is_none(), "{} belongs to {:?} and {:?}", key, previous, file);
                    }
                }
            }
        }
    }
}
