//! What the fuzzers of the core call, one function a target. Each takes any bytes, and asserts more than that nothing panics.

use immich_backup_core::database::connection::Connection;
use immich_backup_core::database::filter::{Filter, FilterOptions};
use immich_backup_core::database::inventory::Builder;
use immich_backup_core::database::location::Locations;
use immich_backup_core::database::text::{NotWhole, Scanner, Whole};
use immich_backup_core::library::scope::Patterns;
use immich_backup_core::model::{FilePath, RepositoryId, Root, RootPath, Sample, Sha256};
use immich_backup_core::repository::key::{self, Key};
use immich_backup_core::repository::log::{Entry, Fact, Head, encode};
use immich_backup_core::repository::manifest::{Manifest, Selector, unpack};
use immich_backup_core::repository::place::{Place, without_secrets};
use immich_backup_core::retention::Policy;
use immich_backup_core::stack::compose::Compose;
use immich_backup_core::stack::redact::Redactor;
use immich_backup_core::stack::variables::{self, Variables};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

/// Bytes that decompress to more than this make a fuzzer slow, and nothing else.
const DATA_BYTES_MAX: usize = 1 << 16;

/// The repository whose manifests and logs are read here.
pub fn repository() -> RepositoryId {
    "23f35748-3930-4326-a0cf-ab96f06427c6".parse().expect("an id")
}

/// Where its chain begins.
pub fn start() -> Head {
    Head { epoch: 0, sequence: 0, sha256: Sha256::of(b"format.json") }
}

/// Lines as the content of a log entry: a fuzzer never guesses the SHA-256 that ends one.
pub fn sealed(lines: &[u8]) -> Vec<u8> {
    let mut bytes = zstd::encode_all(lines, 1).expect("memory");
    let checksum = Sha256::of(&bytes);
    bytes.extend_from_slice(&[0x5D, 0x2A, 0x4D, 0x18, 32, 0, 0, 0]);
    bytes.extend_from_slice(&checksum.0);
    bytes
}

/// No path leads out of its root, and each has one text.
fn assert_inside(path: &RootPath) {
    let relative = path.to_path();
    assert!(relative.components().all(|part| matches!(part, Component::Normal(_))) && relative.components().next().is_some(), "{path}");
    assert_eq!(RootPath::parse(path.as_str()).as_ref(), Ok(path));
}

/// Bytes of a log entry, and lines of one: what is understood is written and read again as the same.
pub fn log_entry(data: &[u8]) {
    drop(Entry::decode(data));
    let Ok(entry) = Entry::decode(&sealed(data)) else { return };
    for fact in &entry.facts {
        match fact {
            Fact::Stored(stored) => {
                assert_inside(&stored.path);
            }
            Fact::Archived(path) => assert_inside(&path.path),
            // No number is too large to be added up.
            Fact::Snapshot(snapshot) => drop((snapshot.totals.all(), snapshot.is_complete())),
            _ => {}
        }
    }
    let again = Entry::decode(&encode(&entry.header, &entry.facts).expect("a small entry")).expect("what was encoded here");
    assert_eq!((again.header, again.facts), (entry.header, entry.facts));
}

/// Lines of a hostile log, applied: an error, or a manifest that answers, and that answers the same when it is opened again.
pub fn log_apply(data: &[u8]) {
    let Ok(entry) = Entry::decode(&sealed(data)) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("manifest.db");
    let mut manifest = Manifest::create(&path, repository(), &start()).expect("an empty manifest");
    if manifest.apply(&entry).is_err() {
        assert_eq!(manifest.head(), start(), "what could not be applied was applied in part");
        return;
    }
    let head = manifest.head();
    let answers = ask(&manifest);
    drop(manifest);
    let again = Manifest::open(&path, repository()).expect("it was closed well").expect("it is of this schema");
    assert_eq!((again.head(), ask(&again)), (head, answers));
}

/// What a manifest answers, or the error; in words, to be compared.
fn ask(manifest: &Manifest) -> Vec<String> {
    let mut answers = Vec::new();
    let mut files = 0_u64;
    let sequence = manifest.head().sequence;
    let each = manifest.each_file::<immich_backup_core::repository::manifest::ManifestError>(sequence, |row| {
        assert_inside(&row.file.path);
        files += 1;
        Ok(())
    });
    answers.push(format!("{files} {:?}", each.is_ok()));
    answers.push(format!("{:?}", manifest.snapshots().map(|rows| rows.len()).map_err(|_| ())));
    answers.push(format!("{:?}", manifest.runs(100).map(|rows| rows.len()).map_err(|_| ())));
    answers.push(format!("{:?}", manifest.dumps().map(|rows| rows.len()).map_err(|_| ())));
    answers.push(format!("{:?}", manifest.copies().map_err(|_| ())));
    answers.push(format!("{:?}", manifest.damaged_objects().map_err(|_| ())));
    answers.push(format!("{:?}", manifest.count_lost().map_err(|_| ())));
    answers.push(format!("{:?}", manifest.archived().map_err(|_| ())));
    answers.push(format!("{:?}", manifest.count_versions().map_err(|_| ())));
    answers.push(format!("{:?}", manifest.immich_version().map_err(|_| ())));
    answers.push(format!("{:?}", manifest.last_verification("read", 7).is_ok()));
    answers.push(format!("{:?}", manifest.last_drill().is_ok()));
    answers.push(format!("{:?}", manifest.select(&Selector::Latest).map(|row| row.id).map_err(|_| ())));
    answers
}

/// A copy of the manifest, packed or not: an SQLite file that somebody else wrote.
pub fn manifest_copy(data: &[u8]) {
    is_manifest(data);
}

/// Whether it is a manifest of this schema, which then was asked for everything.
pub fn is_manifest(data: &[u8]) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let (packed, plain) = (folder.path().join("copy.db.zst"), folder.path().join("manifest.db"));
    if data.starts_with(&[0x28, 0xB5, 0x2F, 0xFD]) && data.len() <= DATA_BYTES_MAX {
        std::fs::write(&packed, data).expect("a file");
        if unpack(&packed, &plain).is_err() {
            return false;
        }
    } else {
        std::fs::write(&plain, data).expect("a file");
    }
    let Ok(Some(manifest)) = Manifest::open(&plain, repository()) else { return false };
    drop(ask(&manifest));
    true
}

/// The text of a dump, in pieces whose length the first byte says.
fn pieces(data: &[u8]) -> Option<(std::slice::Chunks<'_, u8>, &[u8])> {
    let (first, text) = data.split_first()?;
    Some((text.chunks(usize::from(*first % 31) + 1), text))
}

/// Whether a dump is whole, and what passes to `psql`, does not depend on how its text comes.
pub fn dump(data: &[u8]) {
    let Some((pieces, text)) = pieces(data) else { return };
    let scan = |mut pieces: &mut dyn Iterator<Item = &[u8]>| -> Result<Whole, NotWhole> {
        let mut scanner = Scanner::new();
        Iterator::try_for_each(&mut pieces, |piece| scanner.feed(piece))?;
        scanner.finish()
    };
    assert_eq!(scan(&mut pieces.clone()).map_err(|_| ()), scan(&mut std::iter::once(text)).map_err(|_| ()));
    let pass = |mut pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut filter = Filter::new(FilterOptions { server_version_num: 180_004, ..FilterOptions::default() });
        let mut out = Vec::new();
        Iterator::try_for_each(&mut pieces, |piece| filter.feed(piece, &mut out))?;
        filter.finish().map(|filtered| (filtered, out))
    };
    assert_eq!(pass(&mut pieces.clone()).map_err(|_| ()), pass(&mut std::iter::once(text)).map_err(|_| ()));
}

/// What a dump names: listed or refused, and nothing is left where it was refused.
pub fn inventory(data: &[u8]) {
    let Some((pieces, _)) = pieces(data) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("inventory.db");
    let locations = Locations::new([("nas".parse().expect("a name"), b"/mnt/external".to_vec())]);
    let made = Builder::create(&path, locations).and_then(|mut builder| {
        pieces.clone().try_for_each(|piece| builder.feed(piece))?;
        builder.finish()
    });
    let Ok(inventory) = made else {
        assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 0);
        return;
    };
    let mut cursor = None;
    loop {
        let (page, next) = inventory.named_page(cursor).expect("it was just made");
        for named in page {
            assert_inside(&named.file.path);
        }
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    for answer in [inventory.users().map(drop), inventory.libraries().map(drop), inventory.albums_page(0).map(drop), inventory.persons_page(0).map(drop)] {
        answer.expect("an answer");
    }
}

/// Raw paths, divided by NUL: each has one text and leads back to its bytes; no two files share a key.
pub fn keys(data: &[u8]) {
    let roots = [Root::Library, Root::External("nas".parse().expect("a name")), Root::Config, Root::Postgres];
    let mut files = BTreeSet::new();
    for raw in data.split(|byte| *byte == 0).take(16) {
        if let Ok(text) = std::str::from_utf8(raw) {
            drop((Key::parse(text).map(|key| (key::log_name(&key), key::manifest_position(&key))), text.parse::<Sample>()));
            if let Ok(path) = RootPath::parse(text) {
                assert_eq!(path.as_str(), text);
            }
        }
        let Ok(path) = RootPath::from_bytes(raw) else { continue };
        assert_inside(&path);
        assert_eq!(std::os::unix::ffi::OsStrExt::as_bytes(path.to_path().as_os_str()), raw);
        files.insert(path);
    }
    let mut owners = BTreeMap::new();
    for path in &files {
        for root in &roots {
            let file = FilePath { root: root.clone(), path: path.clone() };
            for content in [b"x", b"y"] {
                // Home belongs to the first content only.
                for key in key::candidates(&file, &Sha256::of(content), content == b"x") {
                    assert_eq!(Key::parse(key.as_str()).as_ref(), Ok(&key));
                    let other = owners.insert(key.as_str().to_owned(), (file.to_string(), content));
                    assert!(other.is_none(), "{key} belongs to {other:?} and {file}");
                }
            }
        }
    }
}

/// URLs of repositories and databases, and what else is written in one line: understood or refused, and no password is shown.
pub fn places(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let shown = match Place::parse(text) {
        Ok(place) => format!("{place:?}"),
        Err(error) => error.to_string(),
    };
    let connection = match Connection::parse(text) {
        Ok(connection) => format!("{connection:?} {}", connection.target()),
        Err(error) => error.to_string(),
    };
    // `scheme://user:password@host`: a password that stands there alone is in nothing that is said.
    let authority = text.split_once("://").map(|(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default());
    let password = authority.and_then(|authority| authority.rsplit_once('@')?.0.split_once(':')).map(|(_, password)| password);
    if let Some(password) = password.filter(|password| password.len() >= 12 && password.bytes().all(|byte| byte.is_ascii_alphanumeric())) {
        let apart = text.to_ascii_lowercase().matches(&password.to_ascii_lowercase()).count() == 1;
        assert!(!apart || !(shown.contains(password) || connection.contains(password) || without_secrets(text).contains(password)), "{text:?}");
    }
    drop((Policy::from_retention_text(text), text.parse::<Selector>(), text.parse::<Sample>(), Patterns::new(&[text.to_owned()])));
}

/// A file of variables: its copy without secrets has the same names, and nothing more to hide.
pub fn variables(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut read = Variables::new();
    drop(variables::expanded(text, &read));
    let understood = variables::read(text, &mut read);
    drop(variables::expanded(text, &read));
    let mut redactor = Redactor::default();
    redactor.learn_names(text);
    redactor.learn_variables(text);
    let Ok(copy) = redactor.variables(text) else {
        assert!(variables::assignments(text).is_err());
        return;
    };
    if understood.is_err() {
        return;
    }
    let names = |text: &str| variables::assignments(text).map(|all| all.into_iter().map(|one| one.name).collect::<Vec<_>>());
    assert_eq!(names(&copy), names(text), "{copy}");
    for left in variables::assignments(&copy).unwrap_or_default() {
        // Between single quotes, a `$` is one.
        let is_literal = !left.is_expanded() && !left.raw(&copy).is_empty();
        assert!(!is_literal || !immich_backup_core::stack::redact::is_secret(&left.name), "{} is left in {copy}", left.name);
    }
    let mut redacted = Variables::new();
    if variables::read(&copy, &mut redacted).is_ok() {
        for (name, value) in redacted {
            let harmless = value.is_empty() || value.contains('$') || read.get(&name).is_none_or(|before| before.contains('$'));
            assert!(harmless || !immich_backup_core::stack::redact::takes_secrets(&name), "{name} is left in {copy}");
        }
    }
}

/// A Compose file: understood or refused; its copy without secrets describes the same services.
pub fn compose(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let services = |text: &str| {
        std::fs::write(folder.path().join("compose.yaml"), text).expect("a file");
        let compose = Compose::read(folder.path()).ok()?;
        drop((compose.containers(), compose.database_folder(), compose.stop_timeouts()));
        Some(compose.depends_on().into_keys().collect::<Vec<_>>())
    };
    let before = services(text);
    let mut redactor = Redactor::default();
    redactor.learn_names(text);
    if let Ok(copy) = redactor.yaml(text) {
        drop(redactor.swept(&copy));
        if before.is_some() && redactor.count == 0 {
            assert_eq!(copy, text, "nothing was taken out, and it is another text");
        }
    }
}

/// The target that replays the corpus `name`.
pub fn target(name: &str) -> Option<fn(&[u8])> {
    Some(match name {
        "log_entry" => log_entry,
        "log_apply" => log_apply,
        "manifest_copy" => manifest_copy,
        "dump" => dump,
        "inventory" => inventory,
        "keys" => keys,
        "places" => places,
        "variables" => variables,
        "compose" => compose,
        _ => return None,
    })
}

/// Whether there is such a file: the corpora of other crates are replayed by their own tests.
pub fn is_of_another_crate(name: &str) -> bool {
    name == "configuration"
}

/// The folder of the corpora.
pub fn corpus() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus")
}
