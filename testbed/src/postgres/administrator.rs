//! What the administrator of a PostgreSQL server does for a test, wherever the server runs.
//!
//! It panics with what the server says where it refuses: these are for tests.

#![allow(clippy::panic, reason = "for tests: what a server refuses is shown")]

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use super::Dump;
use super::psql::{self, Psql};

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The administrator of a server.
pub struct Administrator {
    psql: Psql,
}

/// Somebody who is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// What it calls itself (`application_name`).
    pub application: String,
    /// `active`, `idle`, `idle in transaction`, …
    pub state: String,
    /// What it asks, or asked last.
    pub query: String,
}

impl Administrator {
    pub(crate) fn new(psql: Psql) -> Self {
        Self { psql }
    }

    /// What the administrator is answered: a line for each row, tabs between columns.
    ///
    /// # Panics
    ///
    /// If the server refuses.
    #[track_caller]
    pub fn psql(&self, database: &str, sql: &str) -> String {
        shown(self.try_psql(database, sql))
    }

    /// What the administrator is answered, or what is said against it.
    ///
    /// # Errors
    ///
    /// If the server refuses.
    pub fn try_psql(&self, database: &str, sql: &str) -> Result<String, String> {
        self.psql.run(database, sql)
    }

    /// What somebody else is answered, or what is said against it.
    ///
    /// # Errors
    ///
    /// If the server refuses.
    pub fn psql_as(&self, user: &str, password: &str, database: &str, sql: &str) -> Result<String, String> {
        self.psql.clone().with_user(user, password).run(database, sql)
    }

    /// Makes an empty database.
    ///
    /// # Panics
    ///
    /// If the server refuses.
    #[track_caller]
    pub fn create_database(&self, name: &str) {
        self.psql("postgres", &format!("CREATE DATABASE {}", identifier(name)));
    }

    /// Makes a role that may log in; `attributes` as in `CREATE ROLE`, e.g. `CREATEDB`, or nothing.
    ///
    /// # Panics
    ///
    /// If the server refuses.
    #[track_caller]
    pub fn create_role(&self, name: &str, password: &str, attributes: &str) {
        self.psql("postgres", &format!("CREATE ROLE {} LOGIN {attributes} PASSWORD {}", identifier(name), literal(password)));
    }

    /// Loads a dump into a database that is there and empty, in one transaction.
    ///
    /// # Panics
    ///
    /// If the dump cannot be read, or the server refuses a part of it.
    #[track_caller]
    pub fn load(&self, database: &str, dump: Dump<'_>) {
        shown(self.psql.load(database, dump));
    }

    /// Makes a database and loads a dump into it.
    ///
    /// # Panics
    ///
    /// If the dump cannot be read, or the server refuses.
    #[track_caller]
    pub fn create_loaded(&self, database: &str, dump: Dump<'_>) {
        self.create_database(database);
        self.load(database, dump);
    }

    /// Adds assets to an Immich 3.1 database, without files and without the indexes of vectors: 250,000 make it about 2 GB.
    ///
    /// # Panics
    ///
    /// If the server refuses.
    #[track_caller]
    pub fn fill(&self, database: &str, assets: u64) {
        shown(self.psql.fill(database, assets, false));
    }

    /// All rows of the tables in schema `public`, as `COPY` writes them, sorted: of two databases with the same content they are equal.
    ///
    /// # Panics
    ///
    /// If the server refuses.
    #[track_caller]
    pub fn rows(&self, database: &str) -> BTreeMap<String, Vec<String>> {
        psql::by_table(&self.psql(database, psql::ROWS))
    }

    /// How many rows each table in schema `public` has.
    ///
    /// # Panics
    ///
    /// If the server refuses.
    #[track_caller]
    pub fn counts(&self, database: &str) -> BTreeMap<String, u64> {
        psql::counted(&self.psql(database, psql::COUNTS))
    }

    /// The names of all databases that can be connected to.
    ///
    /// # Panics
    ///
    /// If the server refuses.
    #[track_caller]
    pub fn databases(&self) -> Vec<String> {
        let databases = self.psql("postgres", "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY datname");
        databases.lines().map(ToString::to_string).collect()
    }

    /// Returns when nobody is connected to a database. A server takes a moment to see that somebody has left.
    ///
    /// # Panics
    ///
    /// If somebody still is after `within`, or the server refuses.
    #[track_caller]
    pub fn wait_until_alone(&self, database: &str, within: Duration) {
        let began = Instant::now();
        loop {
            let connections = self.connections(database);
            if connections.is_empty() {
                return;
            }
            assert!(began.elapsed() < within, "connected to `{database}` after {within:?}: {connections:?}");
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Who is connected to a database, perhaps with those who are just leaving: see [`Administrator::wait_until_alone`].
    ///
    /// # Panics
    ///
    /// If the server refuses.
    #[track_caller]
    pub fn connections(&self, database: &str) -> Vec<Connection> {
        let of = format!(
            "SELECT application_name, state, translate(query, E'\\t\\r\\n', '   ') FROM pg_stat_activity
             WHERE datname = {} AND backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY backend_start",
            literal(database)
        );
        let answer = self.psql("postgres", &of);
        let connection = |line: &str| {
            let mut columns = line.splitn(3, '\t').map(ToString::to_string);
            let mut next = || columns.next().unwrap_or_default();
            Connection { application: next(), state: next(), query: next() }
        };
        answer.lines().map(connection).collect()
    }
}

#[track_caller]
fn shown<T>(result: Result<T, String>) -> T {
    match result {
        Ok(value) => value,
        Err(said) => panic!("{said}"),
    }
}

/// A name as SQL has it.
pub(crate) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as SQL has it.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
