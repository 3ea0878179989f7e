//! What is known of a dump once its text has ended.

use std::collections::BTreeMap;
use std::fmt;

/// A table, by the names that the database has for it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// The schema; `public` where the dump names none.
    pub schema: String,
    /// The table.
    pub name: String,
}

impl TableName {
    /// Schema and table as SQL takes them, each in double quotes.
    #[must_use]
    pub fn quoted(&self) -> String {
        let quoted = |name: &str| name.replace('"', "\"\"");
        format!("\"{}\".\"{}\"", quoted(&self.schema), quoted(&self.name))
    }
}

/// The table, with its schema in front of it where that is not `public`.
impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.schema == "public" { f.write_str(&self.name) } else { write!(f, "{}.{}", self.schema, self.name) }
    }
}

/// What a dump holds of one database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Section {
    /// The database's name, where the dump says it: always in `pg_dumpall`'s, in `pg_dump`'s only with `--create`.
    pub database: Option<String>,
    /// What the server said of its version: `15.20 (Debian 15.20-0+deb12u1)`.
    pub server_version: Option<String>,
    /// What `pg_dump` said of its own version.
    pub program_version: Option<String>,
    /// Rows of each table that has a `COPY` block, also where it is empty.
    pub tables: BTreeMap<TableName, u64>,
}

/// A dump that has its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Whole {
    /// One for `pg_dump`, one for each database for `pg_dumpall`.
    pub sections: Vec<Section>,
    /// Whether `pg_dumpall` wrote it.
    pub cluster: bool,
    /// Bytes of text.
    pub text_bytes: u64,
    /// Rows of all tables of all databases.
    pub rows_total: u64,
}

/// Why a text is no whole dump, and where it stops being one. Lines are counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotWhole {
    /// Not one byte.
    #[error("the dump is empty")]
    Empty,
    /// Not text of `pg_dump` at all.
    #[error("this is no plain dump: it looks like {looks_like}")]
    NotADump {
        /// As what it was recognised.
        looks_like: &'static str,
    },
    /// It ends among the rows of a table.
    #[error("the dump is cut in table `{table}`{}, after {rows} rows of it", of_database(.database.as_ref()))]
    InCopy {
        /// The table.
        table: TableName,
        /// Its database, where the dump says so.
        database: Option<String>,
        /// Rows that are there whole.
        rows: u64,
    },
    /// It ends elsewhere.
    #[error("the dump is cut at line {line}: pg_dump's closing line is not there{}", last_whole(.after.as_ref()))]
    NoClosingLine {
        /// The database, where the dump says so.
        database: Option<String>,
        /// The last table whose rows are whole.
        after: Option<TableName>,
        /// The last line.
        line: u64,
    },
    /// It ends between two databases, or after the last one, without `pg_dumpall`'s last word.
    #[error("the dump is cut at line {line}: pg_dumpall's closing line is not there, after {databases} databases")]
    NoClusterClosingLine {
        /// Databases that are there whole.
        databases: u64,
        /// The last line.
        line: u64,
    },
    /// The `\unrestrict` that belongs to its `\restrict` is not there.
    #[error("the dump is cut at line {line}: it lacks the `\\unrestrict` that ends it")]
    StillRestricted {
        /// The last line.
        line: u64,
    },
    /// Something follows its end.
    #[error("the dump goes on in line {line}, after its closing line")]
    AfterTheEnd {
        /// Where.
        line: u64,
    },
    /// Lines end in CR LF: a terminal did that.
    #[error("line {line} of the dump has a carriage return that pg_dump did not write: it went through a terminal, or was converted")]
    CarriageReturn {
        /// Where.
        line: u64,
    },
    /// PostgreSQL's text never has one.
    #[error("line {line} of the dump has a NUL byte: it is damaged, or not text")]
    Nul {
        /// Where.
        line: u64,
    },
    /// A row that is needed is longer than fits.
    #[error("row {row} of table `{table}` in the dump is longer than {limit_bytes} bytes")]
    RowTooLong {
        /// The table.
        table: TableName,
        /// Which row, counted from 1.
        row: u64,
        /// The limit.
        limit_bytes: usize,
    },
    /// What `pg_dump` does not write, and what could be taken for something else.
    #[error("line {line} of the dump has {what}, which pg_dump does not write")]
    Odd {
        /// Where.
        line: u64,
        /// What.
        what: &'static str,
    },
    /// Whoever read it gave up.
    #[error("reading the dump was given up at line {line}")]
    GivenUp {
        /// Where.
        line: u64,
    },
}

fn of_database(database: Option<&String>) -> String {
    database.map_or_else(String::new, |name| format!(" of database `{name}`"))
}

fn last_whole(after: Option<&TableName>) -> String {
    after.map_or_else(String::new, |table| format!("; the last table that is whole is `{table}`"))
}

impl NotWhole {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::CarriageReturn { .. } => Some("dump without a terminal: `docker exec` without -t, or let this program dump"),
            Self::NotADump { .. } => Some("give a dump in plain format, gzip or zstd: pg_dump without --format, or what Immich itself wrote"),
            Self::Empty | Self::InCopy { .. } | Self::NoClosingLine { .. } | Self::NoClusterClosingLine { .. } | Self::StillRestricted { .. } => {
                Some("take another dump; nothing of this one should be restored")
            }
            _ => None,
        }
    }
}
