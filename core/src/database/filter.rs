//! Turning any dump of Immich into text that `psql` can run in one transaction, in an empty database, as its ordinary owner.
//!
//! A dump comes from a store, so it is not to be trusted: `psql` would run programs for who can write `\!` into it. So nothing passes that was not
//! understood. Statements are told apart as `psql` does (14 and later), and each of them has to be of a kind that `pg_dump` writes for tables,
//! types, functions and the like. A backslash outside of quotes and of `COPY` data is refused, but for `\restrict`, `\unrestrict` and `\connect` on lines
//! of their own, which are left out. Transactions cannot be ended from within, and no program or file of the server can be named by `COPY`.
//!
//! What cannot be kept out this way: functions of the dump run with the rights of who loads it. An ordinary owner can do no harm outside of its
//! database; a superuser could. So a superuser should load only what it trusts.
//!
//! Every line of the dump is a line of what comes out, left out or not: `psql` counts lines in its errors.

mod lexer;
mod rows;
mod statement;
mod token;

use lexer::{Lexed, Lexer};
use memchr::memchr;
use rows::Rows;
use statement::{Decision, Rules};
use std::collections::{BTreeMap, BTreeSet};

/// Extensions for vectors: Immich can make again all that is in their columns.
pub const VECTOR_EXTENSIONS: [&str; 3] = ["vector", "vchord", "vectors"];

/// What is kept of a part of the dump before it is known whether it is Immich's.
const PENDING_BYTES_MAX: usize = 4 << 20;

/// Tables that a dump may have.
const TABLES_MAX: usize = 10_000;

/// Extensions that a dump may name; there are some 60 with PostgreSQL itself.
const EXTENSIONS_MAX: usize = 1_000;

/// Things of a dump that are left out and worth naming.
const LEFT_OUT_MAX: usize = 100;

/// Tables that every Immich has had since 1.113: the part of a server's dump that has one of them is Immich's database.
const IMMICH_TABLES: [&str; 2] = ["asset", "assets"];

/// Key of Immich's row that says that it is in maintenance mode.
pub(super) const MAINTENANCE_KEY: &str = "maintenance-mode";

/// Why a dump cannot be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Its end is not there.
    #[error("the dump is cut: it ends at line {line} {place}")]
    Cut {
        /// The last line.
        line: u64,
        /// Where that is.
        place: String,
    },
    /// It is no dump, or none with tables.
    #[error("there is no database with tables in the dump")]
    Nothing,
    /// It holds several databases of Immich.
    #[error("the dump holds several databases of Immich: `{first}` and `{second}`")]
    Several {
        /// One.
        first: String,
        /// Another.
        second: String,
    },
    /// It would make `psql` do something.
    #[error("line {line} of the dump has a command to psql: {command}")]
    Command {
        /// Where.
        line: u64,
        /// What it begins with.
        command: String,
    },
    /// A statement that `pg_dump` does not write.
    #[error("line {line} of the dump has a statement that is not let pass: {what}")]
    Refused {
        /// Where.
        line: u64,
        /// What it begins with.
        what: String,
    },
    /// Text whose meaning could be another to `psql`.
    #[error("line {line} of the dump cannot be understood: {what}")]
    Unclear {
        /// Where.
        line: u64,
        /// What is there.
        what: &'static str,
    },
}

impl FilterError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Cut { .. } => "take another snapshot's dump; `immich-backup snapshots` shows which there are",
            Self::Nothing => "it has to be what pg_dump or pg_dumpall write in their plain format, without --inserts",
            Self::Several { .. } => "say which one with --database-in-dump NAME",
            Self::Command { .. } | Self::Refused { .. } => {
                "neither pg_dump nor Immich write that: find out who wrote the dump; if you trust it, take it from the repository and load it by hand"
            }
            Self::Unclear { .. } => "if a terminal or an editor changed its line ends or its characters, take another dump (`docker exec` without -t)",
        }
    }
}

/// What the target is like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilterOptions {
    /// Version of the server, e.g. `180004`.
    pub server_version_num: u32,
    /// Extensions that are there already.
    pub installed: BTreeSet<String>,
    /// Extensions for vectors that the server lacks, and that are done without: columns of their types become text, their indexes and the functions
    /// that use them are left out.
    pub without: BTreeSet<String>,
    /// The database, where the dump is one of a whole server; else the one that has Immich's tables.
    pub database: Option<String>,
}

/// What the beginning of a dump says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    /// Version of the server that it was taken from, e.g. `15.20 (Debian 15.20-1)`.
    pub server_version: Option<String>,
    /// Version of the program that wrote it.
    pub program_version: Option<String>,
    /// Extensions that it makes.
    pub extensions: BTreeSet<String>,
}

impl Head {
    /// The major version of the server that it was taken from.
    #[must_use]
    pub fn server_major(&self) -> Option<u32> {
        let digits: String = self.server_version.as_deref()?.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    }
}

/// What passed, once all of it had.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filtered {
    /// What its beginning says.
    pub head: Head,
    /// Tables (with their schema, where that is not `public`), and how many rows the dump has of each.
    pub rows: BTreeMap<String, u64>,
    /// Rows of [`Self::rows`] that say that Immich is in maintenance mode.
    pub maintenance_rows: u64,
    /// Tables with columns that were loaded as text.
    pub as_text: BTreeSet<String>,
    /// What was left out and is worth naming; the first of it.
    pub left_out: Vec<String>,
}

/// What becomes of the part of the dump that is being read: all of it between two `\connect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Section {
    /// Not known yet; what would pass waits.
    Undecided,
    /// Passes.
    Taken,
    /// Is another database, or none.
    Skipped,
}

/// Takes a dump piece by piece, and gives what `psql` is to have. Memory is bounded by the longest statement.
#[derive(Debug)]
pub struct Filter {
    options: FilterOptions,
    lexer: Lexer,
    rows: Option<Rows>,
    section: Section,
    /// The database that the part belongs to, where a `\connect` said so.
    database: Option<String>,
    /// The one that was taken.
    taken: Option<String>,
    pending: Vec<u8>,
    /// Tables that were made in what waits, and whether they have columns as text.
    pending_tables: Vec<(String, bool)>,
    /// What was wrong in a part that may not be wanted.
    pending_error: Option<FilterError>,
    head: Head,
    found: Filtered,
    /// The closing line of the part that was taken was seen.
    complete: bool,
    /// The dump is one of a whole server, and whether its closing line was seen.
    cluster: Option<bool>,
}

impl Filter {
    /// A filter for what is loaded into such a target.
    #[must_use]
    pub fn new(options: FilterOptions) -> Self {
        Self {
            options,
            lexer: Lexer::default(),
            rows: None,
            section: Section::Undecided,
            database: None,
            taken: None,
            pending: Vec::new(),
            pending_tables: Vec::new(),
            pending_error: None,
            head: Head::default(),
            found: Filtered::default(),
            complete: false,
            cluster: None,
        }
    }

    /// What the beginning of the dump says; `None` as long as it has not all been seen.
    #[must_use]
    pub fn head(&self) -> Option<&Head> {
        self.taken.is_some().then_some(&self.found.head)
    }

    /// Takes the next piece, and adds what passes to `out`.
    ///
    /// # Errors
    /// The dump has what is not let pass.
    pub fn feed(&mut self, mut text: &[u8], out: &mut Vec<u8>) -> Result<(), FilterError> {
        let zero = memchr(0, text);
        text = zero.and_then(|zero| text.get(..zero)).unwrap_or(text);
        while !text.is_empty() {
            text = if self.rows.is_some() && !self.lexer.is_before_rows() { self.feed_rows(text, out)? } else { self.feed_sql(text, out)? };
        }
        if zero.is_some() {
            return Err(FilterError::Unclear { line: self.lexer.line(), what: "a byte that is zero" });
        }
        Ok(())
    }

    /// What passed.
    ///
    /// # Errors
    /// The dump is not whole, or has no database.
    pub fn finish(mut self) -> Result<Filtered, FilterError> {
        let cut = |line, place: &str| Err(FilterError::Cut { line, place: place.to_owned() });
        let line = self.lexer.line();
        if let Some(rows) = &self.rows {
            return cut(line, &format!("within the rows of `{}`", rows.table));
        }
        if let Some(comment) = self.lexer.last_comment() {
            self.comment(&comment);
        } else if !self.lexer.is_between() {
            return cut(line, "within a statement");
        }
        let complete = self.complete && self.cluster != Some(false);
        match self.taken {
            Some(_) if complete => Ok(self.found),
            None if complete => Err(FilterError::Nothing),
            _ => cut(line, "without its closing line"),
        }
    }

    fn feed_sql<'a>(&mut self, text: &'a [u8], out: &mut Vec<u8>) -> Result<&'a [u8], FilterError> {
        let (used, lexed) = self.lexer.scan(text)?;
        let rest = text.get(used..).unwrap_or_default();
        match lexed {
            Lexed::More => {}
            Lexed::Blank { newlines } => self.blank(newlines, out),
            Lexed::Comment { text, newlines } => {
                self.comment(&text);
                self.blank(newlines, out);
            }
            Lexed::Command { line, text } => {
                self.command(line, &text)?;
                self.blank(1, out);
            }
            Lexed::Statement { line, text } => self.statement(line, &text, out)?,
        }
        Ok(rest)
    }

    /// Where what passes goes: away, or to wait.
    fn sink<'a>(&'a mut self, out: &'a mut Vec<u8>) -> &'a mut Vec<u8> {
        if self.section == Section::Undecided { &mut self.pending } else { out }
    }

    fn blank(&mut self, newlines: usize, out: &mut Vec<u8>) {
        let sink = self.sink(out);
        sink.resize(sink.len().saturating_add(newlines), b'\n');
    }

    /// Comments pass as empty lines; some of them are read.
    fn comment(&mut self, comment: &[u8]) {
        let Ok(comment) = std::str::from_utf8(comment) else { return };
        let comment = comment.trim();
        if let Some(version) = comment.strip_prefix("Dumped from database version ") {
            self.head.server_version = Some(version.to_owned());
        } else if let Some(version) = comment.strip_prefix("Dumped by pg_dump version ") {
            self.head.program_version = Some(version.to_owned());
        } else {
            match comment {
                "PostgreSQL database cluster dump" => self.cluster = Some(false),
                "PostgreSQL database cluster dump complete" => self.cluster = Some(true),
                "PostgreSQL database dump complete" if self.section == Section::Taken || self.taken.is_none() => self.complete = true,
                _ => {}
            }
        }
    }

    fn command(&mut self, line: u64, command: &[u8]) -> Result<(), FilterError> {
        let text = String::from_utf8_lossy(command);
        let (name, argument) = text.split_once(' ').unwrap_or((&text, ""));
        match name {
            "\\restrict" | "\\unrestrict" => Ok(()),
            "\\connect" => {
                self.connect(argument);
                Ok(())
            }
            _ => Err(FilterError::Command { line, command: shown(command) }),
        }
    }

    fn connect(&mut self, argument: &str) {
        // As pg_dumpall writes it: a name, one in quotes, or `-reuse-previous=on "dbname='name'"`.
        let name = argument.trim().trim_start_matches("-reuse-previous=on ").trim_matches('"');
        let name = name.strip_prefix("dbname=").map_or(name, |name| name.trim_matches('\''));
        self.database = Some(name.to_owned());
        let newlines = memchr::memchr_iter(b'\n', &self.pending).count();
        self.pending.clear();
        self.pending_tables.clear();
        self.pending.resize(newlines, b'\n');
        self.pending_error = None;
        self.head.extensions.clear();
        self.section = match &self.options.database {
            Some(wanted) if wanted != name => Section::Skipped,
            _ => Section::Undecided,
        };
    }

    fn statement(&mut self, line: u64, text: &[u8], out: &mut Vec<u8>) -> Result<(), FilterError> {
        let rules = Rules { server_version_num: self.options.server_version_num, installed: &self.options.installed, without: &self.options.without };
        let decision = statement::decide(text, &rules);
        if let (Decision::Rows(rows), true) = (&decision, self.section != Section::Taken) {
            // Tables come before rows: what had none of Immich's until here has none.
            self.skip(out);
            self.rows = Some(Rows::of(rows.table.clone(), false));
            self.lexer.expect_rows();
            return Ok(());
        }
        if self.section == Section::Skipped {
            self.blank(newlines(text), out);
            return Ok(());
        }
        match decision {
            Decision::Drop => self.blank(newlines(text), out),
            Decision::LeaveOut(what) => {
                self.blank(newlines(text), out);
                if self.found.left_out.len() < LEFT_OUT_MAX {
                    self.found.left_out.push(what);
                }
            }
            Decision::Refuse => {
                let error = FilterError::Refused { line, what: shown(text) };
                if self.section == Section::Taken {
                    return Err(error);
                }
                self.pending_error.get_or_insert(error);
                self.blank(newlines(text), out);
            }
            Decision::Extension { name, keep } => {
                let extensions = if self.section == Section::Taken { &mut self.found.head.extensions } else { &mut self.head.extensions };
                if extensions.len() < EXTENSIONS_MAX {
                    extensions.insert(name);
                }
                if keep { self.sink(out).extend_from_slice(text) } else { self.blank(newlines(text), out) }
            }
            Decision::Keep(kept) => {
                if let Some(table) = kept.table {
                    self.table(line, table, kept.as_text, out)?;
                }
                let missing = newlines(text).saturating_sub(newlines(&kept.text));
                self.sink(out).extend_from_slice(&kept.text);
                self.blank(missing, out);
            }
            Decision::Rows(rows) => {
                out.extend_from_slice(text);
                let watched = rows.table == "system_metadata" && rows.first_column.as_deref() == Some("key");
                self.rows = Some(Rows::of(rows.table, watched));
                self.lexer.expect_rows();
            }
        }
        if self.section == Section::Undecided && self.pending.len() > PENDING_BYTES_MAX {
            self.skip(out);
        }
        Ok(())
    }

    /// What waited is not wanted: only its lines are.
    fn skip(&mut self, out: &mut Vec<u8>) {
        out.resize(out.len().saturating_add(newlines(&self.pending)), b'\n');
        self.pending = Vec::new();
        self.pending_tables = Vec::new();
        self.pending_error = None;
        self.section = Section::Skipped;
    }

    /// A table is made: now is known what the part is.
    fn table(&mut self, line: u64, table: String, as_text: bool, out: &mut Vec<u8>) -> Result<(), FilterError> {
        let wanted = self.options.database.is_some() && self.options.database == self.database;
        if self.section == Section::Undecided && (wanted || self.database.is_none() || IMMICH_TABLES.contains(&table.as_str())) {
            let database = self.database.clone().unwrap_or_default();
            match &self.taken {
                Some(first) if *first != database || self.complete => return Err(FilterError::Several { first: first.clone(), second: database }),
                _ => self.taken = Some(database),
            }
            if let Some(error) = self.pending_error.take() {
                return Err(error);
            }
            self.section = Section::Taken;
            self.complete = false;
            self.found.head = self.head.clone();
            out.append(&mut self.pending);
        }
        if self.pending_tables.len() >= TABLES_MAX {
            return Err(FilterError::Unclear { line, what: "more tables than any Immich has" });
        }
        self.pending_tables.push((table, as_text));
        if self.section == Section::Taken {
            for (table, as_text) in std::mem::take(&mut self.pending_tables) {
                if as_text {
                    self.found.as_text.insert(table.clone());
                }
                self.count(line, table, 0)?;
            }
        }
        Ok(())
    }

    fn count(&mut self, line: u64, table: String, rows: u64) -> Result<(), FilterError> {
        if self.found.rows.len() >= TABLES_MAX && !self.found.rows.contains_key(&table) {
            return Err(FilterError::Unclear { line, what: "more tables than any Immich has" });
        }
        let counted = self.found.rows.entry(table).or_default();
        *counted = counted.saturating_add(rows);
        Ok(())
    }
}

fn newlines(text: &[u8]) -> usize {
    memchr::memchr_iter(b'\n', text).count()
}

/// The beginning of what is not let pass, fit for a message.
fn shown(text: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 60;
    let start = text.get(..SHOWN_BYTES_MAX).unwrap_or(text);
    let line = String::from_utf8_lossy(start.split(|byte| *byte == b'\n').next().unwrap_or_default()).escape_debug().to_string();
    if start.len() < text.len() { format!("`{line}…`") } else { format!("`{line}`") }
}

#[cfg(test)]
mod tests;
