//! Dumps as text that one `psql` can load into any database, whether `pg_dump` or `pg_dumpall` has written them.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

/// Where a dump is read from.
#[derive(Debug, Clone, Copy)]
pub enum Dump<'a> {
    /// A file; what is compressed by gzip is unpacked.
    File(&'a Path),
    /// The text itself.
    Text(&'a [u8]),
}

/// A line that makes functions fail that name what they use without its schema, as `ll_to_earth` of earthdistance does.
const SEARCH_PATH: &[u8] = b"SELECT pg_catalog.set_config('search_path', '', false);\n";
/// What Immich itself puts in its place.
const SEARCH_PATH_THAT_WORKS: &[u8] = b"SELECT pg_catalog.set_config('search_path', 'public, pg_catalog', true);\n";
/// With this `pg_dumpall` begins.
const CLUSTER: &[u8] = b"-- PostgreSQL database cluster dump\n";
const DATABASE: &[u8] = b"-- Database \"";
const CONNECT: &[u8] = b"\\connect ";

impl<'a> Dump<'a> {
    fn open(self) -> io::Result<Box<dyn BufRead + 'a>> {
        let mut read: Box<dyn BufRead + 'a> = match self {
            Self::File(path) => Box::new(BufReader::with_capacity(1 << 16, File::open(path)?)),
            Self::Text(text) => Box::new(text),
        };
        let is_gzip = read.fill_buf()?.starts_with(&[0x1f, 0x8b]);
        Ok(if is_gzip { Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(read))) } else { read })
    }

    /// The whole text as it was written.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn text(self) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        self.open()?.read_to_end(&mut text)?;
        Ok(text)
    }

    /// Writes what makes the content of one database. Of a dump of a whole cluster that is the database which is not a part of every cluster.
    ///
    /// # Errors
    ///
    /// If it cannot be read or written.
    pub fn write_loadable(self, to: &mut dyn Write) -> io::Result<()> {
        let mut read = self.open()?;
        // Of a cluster, only what follows the first `\connect` to a database of somebody's own.
        let (mut in_cluster, mut wanted) = (false, true);
        let mut line = Vec::new();
        let mut lines = 0_u64;
        while read.read_until(b'\n', &mut line)? > 0 {
            lines += 1;
            if lines < 4 && line == CLUSTER {
                (in_cluster, wanted) = (true, false);
            }
            // No line of data starts so: a backslash is doubled there, and `\c` is not what `COPY` writes for anything else.
            if in_cluster && line.starts_with(CONNECT) {
                wanted = !matches!(line.as_slice(), b"\\connect template1\n" | b"\\connect postgres\n");
            } else if in_cluster && line.starts_with(DATABASE) {
                // Up to `\connect` it makes the database, which is there.
                wanted = false;
            } else if line == SEARCH_PATH {
                line.clear();
                line.extend_from_slice(SEARCH_PATH_THAT_WORKS);
                write_if(wanted, to, &line)?;
            } else if !(in_cluster && line.starts_with(b"ALTER DATABASE ")) {
                write_if(wanted, to, &line)?;
            }
            line.clear();
        }
        to.flush()
    }
}

fn write_if(wanted: bool, to: &mut dyn Write, line: &[u8]) -> io::Result<()> {
    if wanted { to.write_all(line) } else { Ok(()) }
}
