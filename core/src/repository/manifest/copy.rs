//! Copies of the manifest for the repository: dense, without the local look-up indexes, compressed.

use super::{Manifest, ManifestError, SCHEMA, remove};
use crate::crash::crash_point;
use crate::model::{Sha256, Sha256Counter};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

const COMPRESSION_LEVEL: i32 = 6;

/// A copy, ready to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// Of the compressed bytes.
    pub sha256: Sha256,
    /// Before compression.
    pub plain_bytes: u64,
    /// Rows of the table of versions.
    pub rows: u64,
}

/// Computes the digest of what is written through it.
struct Hashing<W>(W, Sha256Counter);

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.0.write(bytes)?;
        self.1.update(bytes.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Manifest {
    /// Writes a copy to `plain`, and compressed to `packed`. Rows are inserted in key order, which packs pages full.
    ///
    /// # Errors
    /// SQLite's, or the file system's.
    pub fn pack(&self, plain: &Path, packed: &Path) -> Result<Packed, ManifestError> {
        remove(plain)?;
        let failed = |source| ManifestError::Sqlite { action: "copy", path: plain.to_owned(), source };
        let copy = rusqlite::Connection::open(plain).map_err(failed)?;
        let fill = || {
            copy.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -4096;")?;
            copy.execute_batch(SCHEMA)?;
            copy.execute("ATTACH ?1 AS source", [format!("file:{}?mode=ro", uri_path(&self.path))])?;
            copy.execute_batch("BEGIN")?;
            for (table, order) in [
                ("manifest_metadata", "1"),
                ("folder", "id"),
                ("version", "folder, name, since"),
                ("snapshot", "sequence"),
                ("run", "id"),
                ("shard", "run, part"),
                ("claim", "kind, value"),
                ("remainder", "run, external, path"),
                ("verification", "sequence, kind"),
                ("damage", "key"),
                ("dump", "key"),
                ("drill", "sequence"),
                ("epoch", "number"),
                ("pruned", "key"),
                ("manifest_copy", "key"),
            ] {
                copy.execute_batch(&format!("INSERT INTO main.{table} SELECT * FROM source.{table} ORDER BY {order}"))?;
            }
            copy.execute_batch("COMMIT; DETACH source;")?;
            copy.query_row("SELECT count(*) FROM version", [], |row| row.get::<_, i64>(0))
        };
        let rows = super::unsigned(fill().map_err(failed)?);
        copy.close().map_err(|(_, source)| failed(source))?;
        let compress = || {
            let mut input = File::open(plain)?;
            let plain_bytes = input.metadata()?.len();
            let mut encoder = zstd::Encoder::new(Hashing(File::create(packed)?, Sha256Counter::default()), COMPRESSION_LEVEL)?;
            encoder.include_checksum(true)?;
            io::copy(&mut input, &mut encoder)?;
            let Hashing(_, hasher) = encoder.finish()?;
            Ok(Packed { sha256: hasher.finish().0, plain_bytes, rows })
        };
        compress().map_err(|source| ManifestError::Copy { action: "compress", path: packed.to_owned(), source })
    }
}

/// A path as an SQLite URI takes it.
fn uri_path(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let mut text = String::new();
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'_' | b'-') {
            text.push(char::from(*byte));
        } else {
            text.push('%');
            text.push_str(&hex::encode_upper([*byte]));
        }
    }
    text
}

/// A copy takes at most so much more room unpacked than packed: SQLite's pages of paths and digests come to a fifth to a third. Who says more wants to fill
/// a disk.
const UNPACKED_RATIO_MAX: u64 = 64;

/// What is unpacked in any case.
const UNPACKED_BYTES_FREE: u64 = 64 << 20;

/// Unpacks the compressed copy at `packed` to `plain`, which has that name once it is whole and on disk: half a manifest would be opened, and found out later.
///
/// # Errors
/// The file system's; the bytes are no zstd, or come to more than a manifest can. Nothing is left at `plain` then.
pub fn unpack(packed: &Path, plain: &Path) -> Result<(), ManifestError> {
    remove(plain)?;
    let mut unnamed = plain.as_os_str().to_owned();
    unnamed.push(".new");
    let decompress = || {
        let input = File::open(packed)?;
        let bytes_max = input.metadata()?.len().saturating_mul(UNPACKED_RATIO_MAX).saturating_add(UNPACKED_BYTES_FREE);
        let mut decoder = zstd::Decoder::new(input)?.take(bytes_max.saturating_add(1));
        let mut file = File::create(&unnamed)?;
        if io::copy(&mut decoder, &mut file)? > bytes_max {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it comes to more than a manifest of its size can"));
        }
        crash_point!("manifest copy half unpacked");
        file.sync_all()?;
        std::fs::rename(&unnamed, plain)
    };
    decompress().map_err(|source| {
        drop(std::fs::remove_file(&unnamed));
        ManifestError::Copy { action: "unpack", path: plain.to_owned(), source }
    })
}
