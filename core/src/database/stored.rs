//! Reading a dump that was stored, as text, and whether it is what was stored.

use super::compress::Compression;
use crate::budget::{CHUNK_BYTES, DUMP_BLOCKS_QUEUED_MAX};
use crate::model::Sha256;
use crate::repository::fetch::Fetcher;
use crate::repository::key::{InvalidKey, Key};
use crate::repository::log::DumpFact;
use crate::repository::store::StoreError;
use bytes::{Buf as _, Bytes};
use futures_util::TryStreamExt as _;
use sha2::Digest as _;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Why a stored dump cannot be read, or is not what was stored.
#[derive(Debug, thiserror::Error)]
pub enum StoredDumpError {
    /// The log names it by what is no key.
    #[error("the log names a dump wrongly")]
    Key(#[from] InvalidKey),
    /// The store did not give it.
    #[error("cannot read the dump `{name}`")]
    Store {
        /// Its key.
        name: String,
        /// Why.
        source: StoreError,
    },
    /// The file cannot be read.
    #[error("cannot read the dump `{name}`")]
    File {
        /// Its path.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// It is no file of a kind that dumps are kept in.
    #[error("the dump `{name}` is neither gzip nor zstd")]
    UnknownKind {
        /// Key or path.
        name: String,
    },
    /// It cannot be uncompressed to its end: cut, damaged, or followed by something else.
    #[error("the dump `{name}` is damaged: it can be read up to byte {readable_bytes} of its text")]
    Broken {
        /// Key or path.
        name: String,
        /// Bytes of text before that place.
        readable_bytes: u64,
        /// What was wrong.
        source: io::Error,
    },
    /// It is not what was stored.
    #[error("the dump `{name}` is damaged: its {what} is {found}, and was {stored} when it was stored")]
    Different {
        /// Its key.
        name: String,
        /// What differs.
        what: &'static str,
        /// What it is now.
        found: String,
        /// What the log says.
        stored: String,
    },
}

impl StoredDumpError {
    /// Whether it is not what was stored, as far as its bytes tell.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Broken { .. } | Self::Different { .. })
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Store { source, .. } => source.hint(),
            Self::Broken { .. } | Self::Different { .. } => Some("take another snapshot's dump; `immich-backup snapshots` shows which there are"),
            Self::UnknownKind { .. } => Some("a dump is a file `.sql.gz` or `.sql.zst`, or the text itself in a file `.sql`"),
            Self::Key(_) | Self::File { .. } => None,
        }
    }
}

/// The text of a dump, piece by piece. Nothing of it is to be trusted before the `None` at its end. Dropped, the reading ends.
#[derive(Debug)]
pub struct DumpText {
    text: mpsc::Receiver<Result<Bytes, StoredDumpError>>,
    /// Set by the last piece, so that a thread that died does not look like an end.
    ended: Option<tokio::task::JoinHandle<()>>,
}

impl DumpText {
    /// That of an object, which has to be what `fact` says: its SHA-256, its size, and the size of its text.
    #[must_use]
    pub fn of_object(fetcher: Arc<Fetcher>, fact: &DumpFact) -> Self {
        let (compressed, queue) = mpsc::channel(DUMP_BLOCKS_QUEUED_MAX);
        let (name, size_bytes) = (fact.key.clone(), fact.size);
        tokio::spawn(async move {
            if let Err(error) = fetch(&fetcher, &name, size_bytes, &compressed).await {
                // Where nobody reads any more, nobody wants the error either.
                compressed.send(Err(error)).await.ok();
            }
        });
        let expected = Expected { sha256: fact.sha256, size_bytes: fact.size, plain_bytes: fact.plain_size };
        Self::read(fact.key.clone(), Source::Object(queue), Some(expected), false)
    }

    /// That of a file, e.g. one of Immich's own: whole as far as its compression can tell. A `.sql` file is the text itself.
    #[must_use]
    pub fn of_file(path: &Path) -> Self {
        let may_be_plain = path.extension().is_some_and(|extension| extension == "sql");
        Self::read(path.display().to_string(), Source::File(path.to_owned(), None), None, may_be_plain)
    }

    fn read(name: String, source: Source, expected: Option<Expected>, may_be_plain: bool) -> Self {
        let (sender, text) = mpsc::channel(DUMP_BLOCKS_QUEUED_MAX);
        let thread = tokio::task::spawn_blocking(move || {
            let mut reading = Reading { name, sender, plain_bytes: 0 };
            if let Err(error) = reading.run(source, expected, may_be_plain) {
                reading.sender.blocking_send(Err(error)).ok();
            }
        });
        Self { text, ended: Some(thread) }
    }

    /// The next piece; `None` once everything was read and found to be right.
    ///
    /// # Errors
    /// It is not what was stored, or could not be read; there are no more pieces then.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StoredDumpError> {
        if let Some(piece) = self.text.recv().await {
            return piece.map(Some);
        }
        if let Some(thread) = self.ended.take() {
            crate::task::joined(thread.await);
        }
        Ok(None)
    }
}

async fn fetch(fetcher: &Fetcher, name: &str, size_bytes: u64, compressed: &mpsc::Sender<Result<Bytes, StoredDumpError>>) -> Result<(), StoredDumpError> {
    let key = Key::parse(name)?;
    let failed = |source| StoredDumpError::Store { name: name.to_owned(), source };
    let mut pieces = fetcher.fetch(&key, size_bytes).await.map_err(failed)?;
    while let Some(piece) = pieces.try_next().await.map_err(failed)? {
        if compressed.send(Ok(piece)).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// What the log says.
struct Expected {
    sha256: Sha256,
    size_bytes: u64,
    plain_bytes: u64,
}

/// Where the stored bytes come from.
enum Source {
    Object(mpsc::Receiver<Result<Bytes, StoredDumpError>>),
    File(std::path::PathBuf, Option<File>),
}

/// The stored bytes, counted and hashed as they are consumed.
struct Counted {
    source: Source,
    /// Why there are no more of them: to be told from a dump that is broken.
    failure: Option<StoredDumpError>,
    piece: Bytes,
    sha256: sha2::Sha256,
    size_bytes: u64,
}

impl Source {
    fn next(&mut self) -> Result<Option<Bytes>, StoredDumpError> {
        let (path, file) = match self {
            Self::Object(queue) => return queue.blocking_recv().transpose(),
            Self::File(path, file) => (path, file),
        };
        let mut piece = Vec::new();
        let mut read = || {
            let file = match file {
                Some(file) => file,
                None => file.insert(File::open(&*path)?),
            };
            file.take(CHUNK_BYTES as u64).read_to_end(&mut piece)
        };
        read().map_err(|source| StoredDumpError::File { name: path.display().to_string(), source })?;
        Ok((!piece.is_empty()).then(|| piece.into()))
    }
}

impl BufRead for Counted {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() {
            match self.source.next() {
                Ok(Some(piece)) => self.piece = piece,
                Ok(None) => break,
                Err(error) => {
                    self.failure = Some(error);
                    return Err(io::Error::other("there is no more of it"));
                }
            }
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, count: usize) {
        if let Some(consumed) = self.piece.get(..count) {
            self.sha256.update(consumed);
            self.size_bytes += count as u64;
            self.piece.advance(count);
        }
    }
}

impl Read for Counted {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(into)?;
        self.consume(count);
        Ok(count)
    }
}

struct Reading {
    name: String,
    sender: mpsc::Sender<Result<Bytes, StoredDumpError>>,
    plain_bytes: u64,
}

impl Reading {
    fn run(&mut self, source: Source, expected: Option<Expected>, may_be_plain: bool) -> Result<(), StoredDumpError> {
        let mut counted = Counted { source, failure: None, piece: Bytes::new(), sha256: sha2::Sha256::default(), size_bytes: 0 };
        let uncompressed = self.uncompress(&mut counted, expected.as_ref(), may_be_plain);
        if let Some(failure) = counted.failure {
            return Err(failure);
        }
        let Some(expected) = expected else { return uncompressed.map(|_| ()) };
        if let Ok(false) = uncompressed {
            return Ok(());
        }
        // What is wrong with an object is told by what it should be, first: that it is cut, or another. One that is larger is read no further.
        let rest_bytes = (expected.size_bytes + 1).saturating_sub(counted.size_bytes);
        let drained = io::copy(&mut (&mut counted).take(rest_bytes), &mut io::sink());
        if let (Err(_), Some(failure)) = (drained, counted.failure) {
            return Err(failure);
        }
        self.same("size in bytes", counted.size_bytes, expected.size_bytes)?;
        self.same("SHA-256", Sha256(counted.sha256.finalize().into()), expected.sha256)?;
        uncompressed?;
        self.same("text's size in bytes", self.plain_bytes, expected.plain_bytes)
    }

    /// Hands out the text. `false` where nobody wants it any more.
    fn uncompress(&mut self, counted: &mut Counted, expected: Option<&Expected>, may_be_plain: bool) -> Result<bool, StoredDumpError> {
        let is_file = matches!(counted.source, Source::File(..));
        let start = counted.fill_buf().map_err(|source| self.broken(source))?;
        let mut text: Box<dyn Read + '_> = match Compression::of_magic(start) {
            Some(compression) => compression.reader(counted).map_err(|source| self.broken(source))?,
            None if is_file && may_be_plain => Box::new(counted),
            None => return Err(StoredDumpError::UnknownKind { name: self.name.clone() }),
        };
        loop {
            let mut piece = Vec::with_capacity(CHUNK_BYTES);
            let read = (&mut text).take(CHUNK_BYTES as u64).read_to_end(&mut piece);
            self.plain_bytes += piece.len() as u64;
            let at_end = piece.is_empty();
            if !at_end && self.sender.blocking_send(Ok(piece.into())).is_err() {
                return Ok(false);
            }
            read.map_err(|source| self.broken(source))?;
            if at_end {
                return Ok(true);
            }
            if let Some(expected) = expected
                && self.plain_bytes > expected.plain_bytes
            {
                // However much more there may be: it is not what was stored.
                return self.same("text's size in bytes", self.plain_bytes, expected.plain_bytes).map(|()| true);
            }
        }
    }

    fn broken(&self, source: io::Error) -> StoredDumpError {
        StoredDumpError::Broken { name: self.name.clone(), readable_bytes: self.plain_bytes, source }
    }

    fn same<T: PartialEq + std::fmt::Display>(&self, what: &'static str, found: T, stored: T) -> Result<(), StoredDumpError> {
        if found == stored {
            return Ok(());
        }
        Err(StoredDumpError::Different { name: self.name.clone(), what, found: found.to_string(), stored: stored.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Class;
    use crate::repository::directory::DirectoryStore;
    use crate::repository::store::{Attributes, Kind, Store};

    fn text(lines: u32) -> Vec<u8> {
        (0..lines).flat_map(|line| format!("{line}\t{:x}\tsome text\n", line.wrapping_mul(2_654_435_761)).into_bytes()).collect()
    }

    /// As it is stored: blocks of 300 kB.
    fn stored(text: &[u8], compression: Compression) -> Vec<u8> {
        text.chunks(300_000).flat_map(|block| compression.block(block).unwrap()).collect()
    }

    struct World {
        folder: tempfile::TempDir,
        store: Arc<dyn Store>,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store: Arc<dyn Store> = Arc::new(DirectoryStore::new(folder.path()));
            Self { folder, store }
        }

        async fn put(&self, key: &str, content: &[u8]) {
            let attributes = Attributes { kind: Kind::File(Class::Original), sha256: Some(Sha256::of(content)), mtime_ns: None, size_bytes: None };
            self.store.create(&Key::parse(key).unwrap(), Bytes::copy_from_slice(content), &attributes).await.unwrap();
        }

        fn open(&self, fact: &DumpFact) -> DumpText {
            DumpText::of_object(Arc::new(Fetcher::new(Arc::clone(&self.store))), fact)
        }

        /// Reads an object of these bytes that should be what `fact` says.
        async fn read(&self, fact: &DumpFact, content: &[u8]) -> Result<Vec<u8>, StoredDumpError> {
            std::fs::remove_dir_all(self.folder.path().join("database")).ok();
            self.put(&fact.key, content).await;
            all(self.open(fact)).await
        }
    }

    fn fact(key: &str, content: &[u8], plain_size: usize) -> DumpFact {
        DumpFact {
            key: key.to_owned(),
            sha256: Sha256::of(content),
            size: content.len() as u64,
            plain_size: plain_size as u64,
            taken_at: jiff::Timestamp::UNIX_EPOCH,
            immich_version: None,
            server_version: None,
            program_version: None,
            rows: 0,
            before_restore: false,
            without_data: Vec::new(),
        }
    }

    async fn all(mut dump: DumpText) -> Result<Vec<u8>, StoredDumpError> {
        let mut found = Vec::new();
        while let Some(piece) = dump.next().await? {
            found.extend_from_slice(&piece);
        }
        Ok(found)
    }

    #[tokio::test]
    async fn the_text_of_an_object_comes_back_whatever_its_key_ends_in() {
        let (world, text) = (World::new(), text(200_000));
        for (key, compression) in
            [("database/a.sql.gz", Compression::Gzip), ("database/a.sql.zst", Compression::Zstd), ("database/b.sql.gz", Compression::Zstd)]
        {
            let content = stored(&text, compression);
            assert!(world.read(&fact(key, &content, text.len()), &content).await.unwrap() == text, "{key}");
        }
    }

    #[tokio::test]
    async fn an_object_that_is_not_what_was_stored_is_an_error_that_says_what_differs() {
        let (world, text) = (World::new(), text(50_000));
        for compression in [Compression::Gzip, Compression::Zstd] {
            let content = stored(&text, compression);
            let fact = fact("database/a.sql.gz", &content, text.len());
            let mut flipped = content.clone();
            flipped[content.len() / 2] ^= 4;
            let first_member = compression.block(&text[..300_000]).unwrap().len();
            // Cut where another member would begin: nothing but the log can tell.
            assert!(content.starts_with(&compression.block(&text[..300_000]).unwrap()));
            let cases: [(&[u8], &str); 6] = [
                (&content[..content.len() - 5], "size in bytes"),
                (&content[..first_member], "size in bytes"),
                (&[], "size in bytes"),
                (&[&content[..], b"more"].concat(), "size in bytes"),
                (&[&content[..], &content[..]].concat(), "size in bytes"),
                (&flipped, "SHA-256"),
            ];
            for (bytes, differs) in cases {
                match world.read(&fact, bytes).await {
                    Err(StoredDumpError::Different { what, .. }) if what == differs => {}
                    Err(StoredDumpError::Different { what: "text's size in bytes", .. }) if bytes.len() > 2 * content.len() - 1 => {}
                    other => panic!("{} bytes of {}: {:?}", bytes.len(), content.len(), other.map(|text| text.len())),
                }
            }
        }
    }

    #[tokio::test]
    async fn what_was_stored_broken_or_with_another_size_of_text_is_an_error_too() {
        let (world, text) = (World::new(), text(50_000));
        let content = stored(&text, Compression::Gzip);
        let cut = &content[..content.len() - 5];
        let read = world.read(&fact("database/a.sql.gz", cut, text.len()), cut).await;
        assert!(matches!(&read, Err(StoredDumpError::Broken { readable_bytes, .. }) if *readable_bytes > 1_000_000), "{:?}", read.map(|_| ()));
        for plain_size in [text.len() - 1, text.len() + 1, 10] {
            let read = world.read(&fact("database/a.sql.gz", &content, plain_size), &content).await;
            assert!(matches!(&read, Err(StoredDumpError::Different { what: "text's size in bytes", .. })), "{:?}", read.map(|_| ()));
        }
        let read = world.read(&fact("database/a.sql.gz", b"-- text", 7), b"-- text").await;
        assert!(matches!(read, Err(StoredDumpError::UnknownKind { .. })));
    }

    #[tokio::test]
    async fn a_bomb_is_left_off_where_its_text_is_longer_than_what_was_stored() {
        let world = World::new();
        let block = Compression::Gzip.block(&vec![0; 64 << 20]).unwrap();
        let content = block.repeat(64);
        let mut dump = {
            world.put("database/a.sql.gz", &content).await;
            world.open(&fact("database/a.sql.gz", &content, 1_000))
        };
        let mut bytes = 0;
        let error = loop {
            match dump.next().await {
                Ok(piece) => bytes += piece.unwrap().len(),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, StoredDumpError::Different { what: "text's size in bytes", .. }), "{error}");
        assert!(bytes <= 2 * CHUNK_BYTES, "{bytes}");
    }

    #[tokio::test]
    async fn a_dump_that_is_not_there_is_the_stores_error() {
        let world = World::new();
        let missing = all(world.open(&fact("database/a.sql.gz", b"", 0))).await;
        assert!(matches!(missing, Err(StoredDumpError::Store { source: StoreError::NotFound { .. }, .. })));
        assert!(matches!(all(world.open(&fact("../../etc/passwd", b"", 0))).await, Err(StoredDumpError::Key(_))));
    }

    #[tokio::test]
    async fn a_file_is_read_by_what_it_is() {
        let (folder, text) = (tempfile::tempdir().unwrap(), text(50_000));
        let file = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            DumpText::of_file(&path)
        };
        assert!(all(file("a.sql.gz", &stored(&text, Compression::Gzip))).await.unwrap() == text);
        assert!(all(file("a.sql.zst", &stored(&text, Compression::Zstd))).await.unwrap() == text);
        assert!(all(file("a.sql", &text)).await.unwrap() == text);
        let content = stored(&text, Compression::Gzip);
        assert!(matches!(all(file("cut.sql.gz", &content[..content.len() - 1])).await, Err(StoredDumpError::Broken { .. })));
        assert!(matches!(all(file("tail.sql.gz", &[&content[..], b"tail"].concat())).await, Err(StoredDumpError::Broken { .. })));
        assert!(matches!(all(file("plain.sql.gz", &text)).await, Err(StoredDumpError::UnknownKind { .. })));
        assert!(matches!(all(file("empty.sql.gz", b"")).await, Err(StoredDumpError::UnknownKind { .. })));
        assert!(matches!(all(DumpText::of_file(&folder.path().join("none.sql.gz"))).await, Err(StoredDumpError::File { .. })));
        assert!(matches!(all(DumpText::of_file(folder.path())).await, Err(StoredDumpError::File { .. })));
    }
}
