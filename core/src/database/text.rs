//! The text of a plain dump (`pg_dump`, `pg_dumpall`) as it comes: which tables it has, how many rows of each, and whether it is whole.
//!
//! What `pg_dump` writes is known (its `pg_backup_archiver.c`, `pg_dump.c`, `pg_dumpall.c`), and all else is refused: a text that means one
//! thing to psql must not mean another here. `COPY` blocks are looked for where statements begin, never within literals, bodies of functions or
//! comments; in their rows nothing is looked for but the line `\.`, which no row can be, as a backslash in a row is doubled.

mod lexer;
mod outcome;
mod statement;

pub use outcome::{NotWhole, Section, TableName, Whole};

use crate::budget::DUMP_ROW_BYTES_MAX;
use lexer::{End, Lexer, Token};
use memchr::{memchr, memchr_iter, memmem, memrchr};
use statement::Command;

/// Tables of all databases of a dump that are counted; a dump with more is not Immich's, nor anyone's.
const TABLES_MAX: usize = 100_000;
/// Databases of one dump.
const SECTIONS_MAX: usize = 1_000;
/// What [`Scanner`] looks at before it takes a text for a dump.
const OPENING_BYTES: usize = 5;

const HEADER: &[u8] = b" PostgreSQL database dump";
const CLOSING: &[u8] = b" PostgreSQL database dump complete";
const CLUSTER_HEADER: &[u8] = b" PostgreSQL database cluster dump";
const CLUSTER_CLOSING: &[u8] = b" PostgreSQL database cluster dump complete";
const SERVER_VERSION: &[u8] = b" Dumped from database version ";
const PROGRAM_VERSION: &[u8] = b" Dumped by pg_dump version ";

/// The last line of a `COPY` block, with the end of the line before it and its own.
const END_OF_ROWS: &[u8] = b"\n\\.\n";

/// Receives what a dump holds, in its order.
pub trait Visitor {
    /// What it may fail with; the scanner's own errors are among it.
    type Error: From<NotWhole>;

    /// A database begins; told before its first table. Its name is there where the dump says it.
    ///
    /// # Errors
    /// The visitor's own; reading stops.
    fn section(&mut self, database: Option<&str>) -> Result<(), Self::Error>;

    /// A `COPY` block begins. Returns whether its rows are wanted; others are passed over, and counted.
    ///
    /// # Errors
    /// The visitor's own; reading stops.
    fn copy_began(&mut self, table: &TableName, columns: &[String]) -> Result<bool, Self::Error>;

    /// A row of the block that began last, as it stands in the dump, without its line's end.
    ///
    /// # Errors
    /// The visitor's own; reading stops.
    fn row(&mut self, row: &[u8]) -> Result<(), Self::Error>;

    /// The block that began last has its end.
    ///
    /// # Errors
    /// The visitor's own; reading stops.
    fn copy_ended(&mut self, table: &TableName, rows: u64) -> Result<(), Self::Error>;
}

/// Wants no row: for asking whether a dump is whole.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nobody;

impl Visitor for Nobody {
    type Error = NotWhole;

    fn section(&mut self, _database: Option<&str>) -> Result<(), NotWhole> {
        Ok(())
    }

    fn copy_began(&mut self, _table: &TableName, _columns: &[String]) -> Result<bool, NotWhole> {
        Ok(false)
    }

    fn row(&mut self, _row: &[u8]) -> Result<(), NotWhole> {
        Ok(())
    }

    fn copy_ended(&mut self, _table: &TableName, _rows: u64) -> Result<(), NotWhole> {
        Ok(())
    }
}

/// The block whose rows are being read.
#[derive(Debug, Clone)]
struct Block {
    table: TableName,
    wanted: bool,
    rows: u64,
    /// What is known of a line that began in an earlier piece: all of it where rows are wanted, else its first bytes.
    line: Vec<u8>,
    /// Its length so far.
    line_bytes: u64,
}

#[derive(Debug, Clone)]
enum State {
    /// The first bytes, until there are enough of them.
    Opening(Vec<u8>),
    Text,
    Rows(Block),
}

/// What is known of the dump as a whole.
#[derive(Debug, Clone, Default)]
struct Progress {
    whole: Whole,
    /// Between the header and the closing line of `pg_dump`.
    in_dump: bool,
    /// Nothing but blank lines may follow.
    ended: bool,
    /// The last comment was an empty one, and no statement came since: a header or a closing line may follow.
    empty_comment: bool,
    restricted: Option<String>,
    /// What `\connect` named before its section began.
    next_database: Option<String>,
    /// The visitor knows of the section.
    told: bool,
    tables: usize,
    last_table: Option<TableName>,
}

impl Progress {
    fn section(&mut self) -> Option<&mut Section> {
        self.whole.sections.last_mut()
    }

    fn begin_section(&mut self, database: Option<String>) {
        self.told = false;
        self.last_table = None;
        self.whole.sections.push(Section { database, ..Section::default() });
    }

    fn database(&self) -> Option<String> {
        self.whole.sections.last().and_then(|section| section.database.clone())
    }
}

/// Reads a dump in pieces of any size.
#[derive(Debug, Clone)]
pub struct Scanner<V = Nobody> {
    visitor: V,
    state: State,
    lexer: Lexer,
    progress: Progress,
    /// Line ends that were passed.
    lines: u64,
    failed: Option<NotWhole>,
    end_of_rows: memmem::Finder<'static>,
}

impl Scanner<Nobody> {
    /// A scanner that wants no rows.
    #[must_use]
    pub fn new() -> Self {
        Self::with(Nobody)
    }
}

impl Default for Scanner<Nobody> {
    fn default() -> Self {
        Self::new()
    }
}

fn line_ends(bytes: &[u8]) -> u64 {
    memchr_iter(b'\n', bytes).count() as u64
}

/// What a file is that begins so, where that is no plain dump.
fn looks_like(opening: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], &str); 9] = [
        (b"PGDMP", "PostgreSQL's custom format"),
        (b"toc.d", "PostgreSQL's tar format"),
        (&[0x1F, 0x8B], "gzip"),
        (&[0x28, 0xB5, 0x2F, 0xFD], "zstd"),
        (&[0xFD, b'7', b'z', b'X', b'Z'], "xz"),
        (b"BZh", "bzip2"),
        (b"PK\x03\x04", "a zip archive"),
        (&[0xFF, 0xFE], "UTF-16, as PowerShell writes it"),
        (&[0xEF, 0xBB, 0xBF], "text with a byte order mark, as Windows programs write it"),
    ];
    known.iter().find_map(|(magic, name)| opening.starts_with(magic).then_some(*name))
}

const ANOTHER_TEXT: NotWhole = NotWhole::NotADump { looks_like: "another text, or what another program wrote" };

impl<V: Visitor> Scanner<V> {
    /// A scanner that tells `visitor`.
    #[must_use]
    pub fn with(visitor: V) -> Self {
        Self {
            visitor,
            state: State::Opening(Vec::with_capacity(OPENING_BYTES)),
            lexer: Lexer::new(),
            progress: Progress::default(),
            lines: 0,
            failed: None,
            end_of_rows: memmem::Finder::new(END_OF_ROWS),
        }
    }

    /// Who is told.
    #[must_use]
    pub fn visitor(&self) -> &V {
        &self.visitor
    }

    /// Bytes of text so far.
    #[must_use]
    pub fn text_bytes(&self) -> u64 {
        self.progress.whole.text_bytes
    }

    /// Takes the next piece of the text, of any size.
    ///
    /// # Errors
    /// The text cannot be a whole dump any more, whatever follows; or the visitor failed. After an error there is no going on.
    pub fn feed(&mut self, text: &[u8]) -> Result<(), V::Error> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone().into());
        }
        // Should the visitor fail, this is what remains to be said; the scanner's own errors take its place.
        self.failed = Some(NotWhole::GivenUp { line: 0 });
        let nul = memchr(0, text);
        let before = nul.and_then(|nul| text.get(..nul)).unwrap_or(text);
        self.progress.whole.text_bytes = self.progress.whole.text_bytes.saturating_add(before.len() as u64);
        self.open(before)?;
        if nul.is_some() {
            // So soon, the first bytes may still say what this is.
            self.opening_ended()?;
            return Err(self.fail(NotWhole::Nul { line: self.lines + 1 }));
        }
        self.failed = None;
        Ok(())
    }

    /// What the dump holds, once all its text was fed.
    ///
    /// # Errors
    /// It is not whole.
    pub fn finish(self) -> Result<Whole, NotWhole> {
        self.finish_with().map(|(whole, _)| whole)
    }

    /// As [`Self::finish`], and gives the visitor back.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub fn finish_with(mut self) -> Result<(Whole, V), NotWhole> {
        match self.failed.take() {
            Some(NotWhole::GivenUp { .. }) => return Err(NotWhole::GivenUp { line: self.lines + 1 }),
            Some(failed) => return Err(failed),
            None => {}
        }
        let mut line = self.lines;
        if let State::Opening(opening) = &self.state {
            if opening.is_empty() {
                return Err(NotWhole::Empty);
            }
            if let Some(looks_like) = looks_like(opening) {
                return Err(NotWhole::NotADump { looks_like });
            }
            return Err(if b"--\n--".starts_with(opening) { NotWhole::NoClosingLine { database: None, after: None, line: 1 } } else { ANOTHER_TEXT });
        }
        let progress = self.progress;
        let database = progress.database();
        if let State::Rows(block) = self.state {
            return Err(NotWhole::InCopy { table: block.table, database, rows: block.rows });
        }
        let end = self.lexer.end();
        if end != End::Clean {
            line += 1;
        }
        match &end {
            End::Copy(text) => {
                if let Some((table, _)) = statement::copy(text) {
                    return Err(NotWhole::InCopy { table, database, rows: 0 });
                }
            }
            End::Command(text) if progress.ended => {
                let closes = matches!(statement::command(text), Some(Command::Unrestrict(key)) if progress.restricted.as_ref() == Some(&key));
                return if closes { Ok((progress.whole, self.visitor)) } else { Err(NotWhole::StillRestricted { line }) };
            }
            _ => {}
        }
        if progress.in_dump {
            return Err(NotWhole::NoClosingLine { database, after: progress.last_table, line });
        }
        if progress.whole.cluster && !progress.ended {
            return Err(NotWhole::NoClusterClosingLine { databases: progress.whole.sections.len() as u64, line });
        }
        if !progress.ended {
            return Err(NotWhole::NoClosingLine { database, after: None, line });
        }
        if progress.restricted.is_some() {
            return Err(NotWhole::StillRestricted { line });
        }
        match end {
            End::Clean => {}
            End::Comment(text) if text.is_empty() => {}
            _ => return Err(NotWhole::AfterTheEnd { line }),
        }
        Ok((progress.whole, self.visitor))
    }

    fn fail(&mut self, error: NotWhole) -> V::Error {
        self.failed = Some(error.clone());
        error.into()
    }

    /// Reads `text`, unless it is still too short to tell what it is.
    fn open(&mut self, text: &[u8]) -> Result<(), V::Error> {
        let State::Opening(opening) = &mut self.state else { return self.read(text) };
        let (first, rest) = text.split_at_checked(OPENING_BYTES.saturating_sub(opening.len())).unwrap_or((text, &[]));
        opening.extend_from_slice(first);
        if opening.len() < OPENING_BYTES {
            return Ok(());
        }
        self.opening_ended()?;
        self.read(rest)
    }

    /// Decides what the text is by its first bytes.
    fn opening_ended(&mut self) -> Result<(), V::Error> {
        let State::Opening(opening) = &mut self.state else { return Ok(()) };
        let opening = std::mem::take(opening);
        self.state = State::Text;
        match looks_like(&opening) {
            Some(looks_like) => Err(self.fail(NotWhole::NotADump { looks_like })),
            None => self.read(&opening),
        }
    }

    fn read(&mut self, mut text: &[u8]) -> Result<(), V::Error> {
        while !text.is_empty() {
            let read = match &mut self.state {
                State::Rows(block) if block.wanted => self.wanted_rows(text)?,
                State::Rows(_) => self.passed_rows(text)?,
                _ => self.between(text)?,
            };
            text = text.get(read..).unwrap_or_default();
        }
        Ok(())
    }

    /// Reads on outside of rows; stops after what was found.
    fn between(&mut self, text: &[u8]) -> Result<usize, V::Error> {
        let (read, token) = self.lexer.run(text);
        // A token ends with its line, or stands where it begins: its line is the one of its first byte.
        let ends = line_ends(text.get(..read).unwrap_or_default());
        let whole_line = matches!(token, Some(Token::Comment(_) | Token::Command(_) | Token::Copy(_)));
        let line = self.lines + ends + u64::from(!whole_line);
        self.lines += ends;
        match token {
            None => {}
            Some(Token::Odd(what)) => {
                let error = if self.has_begun() { NotWhole::Odd { line, what } } else { ANOTHER_TEXT };
                return Err(self.fail(error));
            }
            Some(Token::CarriageReturn) => return Err(self.fail(NotWhole::CarriageReturn { line })),
            Some(Token::Comment(text)) => self.comment(&text, line)?,
            Some(Token::Command(text)) => self.command(&text, line)?,
            Some(Token::Statement) => {
                self.progress.empty_comment = false;
                if !self.has_begun() {
                    return Err(self.fail(ANOTHER_TEXT));
                }
                if self.progress.ended {
                    return Err(self.fail(NotWhole::AfterTheEnd { line }));
                }
            }
            Some(Token::Copy(text)) => self.copy(&text, line)?,
        }
        Ok(read)
    }

    /// A header was seen.
    fn has_begun(&self) -> bool {
        self.progress.in_dump || self.progress.whole.cluster || self.progress.ended
    }

    fn comment(&mut self, text: &[u8], line: u64) -> Result<(), V::Error> {
        let progress = &mut self.progress;
        let after_empty = std::mem::replace(&mut progress.empty_comment, text.is_empty());
        if progress.ended {
            return if text.is_empty() { Ok(()) } else { Err(self.fail(NotWhole::AfterTheEnd { line })) };
        }
        let value = |prefix: &[u8]| text.strip_prefix(prefix).map(|value| String::from_utf8_lossy(value).into_owned());
        let what = match text {
            HEADER if after_empty => {
                if !progress.in_dump && progress.whole.sections.len() < SECTIONS_MAX {
                    progress.in_dump = true;
                    let database = progress.next_database.take();
                    progress.begin_section(database);
                    return Ok(());
                }
                "one dump within another"
            }
            CLUSTER_HEADER if after_empty => {
                if !progress.in_dump && !progress.whole.cluster {
                    progress.whole.cluster = true;
                    return Ok(());
                }
                "one dump within another"
            }
            CLOSING if after_empty => {
                if progress.in_dump {
                    progress.in_dump = false;
                    progress.ended = !progress.whole.cluster;
                    return Ok(());
                }
                "a closing line without its header"
            }
            CLUSTER_CLOSING if after_empty => {
                if progress.whole.cluster && !progress.in_dump {
                    progress.ended = true;
                    return Ok(());
                }
                "a closing line without its header"
            }
            _ => {
                if let Some(section) = progress.section()
                    && section.tables.is_empty()
                {
                    section.server_version = section.server_version.take().or_else(|| value(SERVER_VERSION));
                    section.program_version = section.program_version.take().or_else(|| value(PROGRAM_VERSION));
                }
                return Ok(());
            }
        };
        Err(self.fail(NotWhole::Odd { line, what }))
    }

    fn command(&mut self, text: &[u8], line: u64) -> Result<(), V::Error> {
        if !self.has_begun() {
            return Err(self.fail(ANOTHER_TEXT));
        }
        let progress = &mut self.progress;
        progress.empty_comment = false;
        match (statement::command(text), progress.restricted.take()) {
            (Some(Command::Unrestrict(key)), Some(known)) if key == known => return Ok(()),
            (Some(_), None) if progress.ended => return Err(self.fail(NotWhole::AfterTheEnd { line })),
            (Some(Command::Restrict(key)), None) => {
                progress.restricted = Some(key);
                return Ok(());
            }
            (Some(Command::Connect(name)), None) => {
                if !progress.in_dump {
                    progress.next_database = Some(name);
                    return Ok(());
                }
                let many = progress.whole.sections.len() >= SECTIONS_MAX;
                match progress.section() {
                    Some(section) if section.tables.is_empty() || section.database.as_ref() == Some(&name) => {
                        section.database = Some(name);
                        return Ok(());
                    }
                    _ if !many => {
                        progress.begin_section(Some(name));
                        return Ok(());
                    }
                    _ => {}
                }
            }
            _ => {}
        }
        Err(self.fail(NotWhole::Odd { line, what: "a psql command" }))
    }

    fn copy(&mut self, text: &[u8], line: u64) -> Result<(), V::Error> {
        let Some((table, columns)) = statement::copy(text) else {
            return Err(self.fail(NotWhole::Odd { line, what: "a COPY statement" }));
        };
        if !self.progress.in_dump {
            return Err(self.fail(NotWhole::Odd { line, what: "rows outside of any database" }));
        }
        if !std::mem::replace(&mut self.progress.told, true) {
            self.visitor.section(self.progress.database().as_deref())?;
        }
        let wanted = self.visitor.copy_began(&table, &columns)?;
        self.state = State::Rows(Block { table, wanted, rows: 0, line: Vec::new(), line_bytes: 0 });
        Ok(())
    }

    /// The line `\.` was read.
    fn rows_ended(&mut self) -> Result<(), V::Error> {
        let State::Rows(block) = std::mem::replace(&mut self.state, State::Text) else { return Ok(()) };
        self.lines += 1;
        let progress = &mut self.progress;
        progress.whole.rows_total = progress.whole.rows_total.saturating_add(block.rows);
        if let Some(section) = progress.whole.sections.last_mut() {
            let rows = section.tables.entry(block.table.clone()).or_insert_with(|| {
                progress.tables += 1;
                0
            });
            *rows = rows.saturating_add(block.rows);
        }
        if progress.tables > TABLES_MAX {
            return Err(self.fail(NotWhole::Odd { line: self.lines, what: "more tables than can be" }));
        }
        progress.last_table = Some(block.table.clone());
        self.visitor.copy_ended(&block.table, block.rows)
    }

    fn no_carriage_return(&mut self, rows: &[u8]) -> Result<(), V::Error> {
        match memchr(b'\r', rows) {
            // In rows it would be written `\r`.
            Some(found) => {
                let line = self.lines + line_ends(rows.get(..found).unwrap_or_default()) + 1;
                Err(self.fail(NotWhole::CarriageReturn { line }))
            }
            None => Ok(()),
        }
    }

    /// Passes over rows that nobody wants: this has to be as fast as memory.
    fn passed_rows(&mut self, text: &[u8]) -> Result<usize, V::Error> {
        let State::Rows(block) = &mut self.state else { return Ok(0) };
        if block.line_bytes > 0 {
            // The rest of a line that began in an earlier piece. Whether it is `\.` its first bytes tell.
            let length = memchr(b'\n', text).unwrap_or(text.len());
            block.line_bytes = block.line_bytes.saturating_add(length as u64);
            block.line.extend(text.iter().take(length.min(3_usize.saturating_sub(block.line.len()))));
            let begun = text.get(..length).unwrap_or_default();
            if length == text.len() {
                self.no_carriage_return(begun)?;
                return Ok(length);
            }
            let is_end = block.line_bytes == 2 && block.line == b"\\.";
            block.line.clear();
            block.line_bytes = 0;
            if is_end {
                self.rows_ended()?;
            } else {
                block.rows += 1;
                self.no_carriage_return(begun)?;
                self.lines += 1;
            }
            return Ok(length + 1);
        }
        if text.starts_with(b"\\.\n") {
            self.rows_ended()?;
            return Ok(3);
        }
        let found = self.end_of_rows.find(text);
        let rows = match found.or_else(|| memrchr(b'\n', text)) {
            Some(last) => text.get(..=last).unwrap_or(text),
            None => &[],
        };
        let count = line_ends(rows);
        block.rows = block.rows.saturating_add(count);
        let begun = if found.is_some() { &[] } else { text.get(rows.len()..).unwrap_or_default() };
        block.line.extend(begun.iter().take(3));
        block.line_bytes = begun.len() as u64;
        self.no_carriage_return(rows)?;
        self.lines += count;
        self.no_carriage_return(begun)?;
        if found.is_some() {
            self.rows_ended()?;
            return Ok(rows.len() + END_OF_ROWS.len() - 1);
        }
        Ok(text.len())
    }

    fn wanted_rows(&mut self, text: &[u8]) -> Result<usize, V::Error> {
        let mut read = 0;
        loop {
            let State::Rows(block) = &mut self.state else { return Ok(read) };
            let rest = text.get(read..).unwrap_or_default();
            let end = memchr(b'\n', rest);
            let part = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
            if block.line.len().saturating_add(part.len()) > DUMP_ROW_BYTES_MAX {
                let error = NotWhole::RowTooLong { table: block.table.clone(), row: block.rows + 1, limit_bytes: DUMP_ROW_BYTES_MAX };
                return Err(self.fail(error));
            }
            if memchr(b'\r', part).is_some() {
                return Err(self.fail(NotWhole::CarriageReturn { line: self.lines + 1 }));
            }
            if end.is_none() {
                block.line.extend_from_slice(part);
                return Ok(text.len());
            }
            read += part.len() + 1;
            let mut begun = std::mem::take(&mut block.line);
            let row = if begun.is_empty() {
                part
            } else {
                begun.extend_from_slice(part);
                begun.as_slice()
            };
            if row == b"\\." {
                self.rows_ended()?;
                return Ok(read);
            }
            block.rows += 1;
            self.lines += 1;
            self.visitor.row(row)?;
        }
    }
}
