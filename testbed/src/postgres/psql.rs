//! `psql`, run as a test needs it: nothing of the user's own settings, the first error is the last.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;

use super::{Dump, Postgres, clean};

/// All rows of schema `public`: the table's name, then the row as `COPY` writes it; and a line with nothing but its name for each table.
pub(super) const ROWS: &str = r"
SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r';
SELECT format('COPY (SELECT %L, t.* FROM public.%I AS t) TO STDOUT', relname, relname)
FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' \gexec";

/// How many rows each table of schema `public` has.
pub(super) const COUNTS: &str = r"
SELECT format('SELECT %L, count(*) FROM public.%I', relname, relname)
FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' \gexec";

/// What [`ROWS`] answers, by table.
pub(super) fn by_table(answer: &str) -> BTreeMap<String, Vec<String>> {
    let mut tables: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in answer.lines() {
        match line.split_once('\t') {
            Some((table, row)) => tables.entry(table.to_string()).or_default().push(row.to_string()),
            None => {
                tables.entry(line.to_string()).or_default();
            }
        }
    }
    tables.values_mut().for_each(|rows| rows.sort_unstable());
    tables
}

/// What [`COUNTS`] answers.
pub(super) fn counted(answer: &str) -> BTreeMap<String, u64> {
    let counted = |line: &str| line.split_once('\t').and_then(|(table, rows)| Some((table.to_string(), rows.parse().ok()?)));
    answer.lines().filter_map(counted).collect()
}

/// How `psql` is reached and whom it asks.
#[derive(Clone)]
pub(crate) struct Psql {
    /// The program and what comes before the arguments that all have.
    command: Vec<String>,
    /// `None` if the environment says all that is needed.
    password: Option<String>,
}

impl Psql {
    /// Of a server on this machine, as its administrator.
    pub(crate) fn local(programs: &Path, socket_folder: &Path, port: u16) -> Self {
        let command = vec![
            programs.join("psql").display().to_string(),
            format!("--host={}", socket_folder.display()),
            format!("--port={port}"),
            format!("--username={}", Postgres::USER),
        ];
        Self { command, password: Some(Postgres::PASSWORD.to_string()) }
    }

    /// By any other way; it is not asked for a password there.
    pub(crate) fn through(command: Vec<String>) -> Self {
        Self { command, password: Some(String::new()) }
    }

    /// To wherever the database's address and the environment say.
    pub(crate) fn anywhere(programs: &Path) -> Self {
        Self { command: vec![programs.join("psql").display().to_string()], password: None }
    }

    pub(crate) fn with_user(mut self, user: &str, password: &str) -> Self {
        self.command.push(format!("--username={user}"));
        self.password = Some(password.to_string());
        self
    }

    /// What is answered, without its last line feed: a line for each row, tabs between columns.
    pub(crate) fn run(&self, database: &str, sql: &str) -> Result<String, String> {
        let answer = self.feed(database, &[], |to| to.write_all(sql.as_bytes()))?;
        let mut answer = String::from_utf8(answer).map_err(|error| format!("psql's answer is not UTF-8: {error}"))?;
        if answer.ends_with('\n') {
            answer.pop();
        }
        Ok(answer)
    }

    /// Loads a dump in one transaction.
    pub(crate) fn load(&self, database: &str, dump: Dump<'_>) -> Result<(), String> {
        self.feed(database, &["--single-transaction", "--output=/dev/null"], |to| dump.write_loadable(to)).map(drop)
    }

    /// Adds assets to an Immich 3.1 database; the indexes of vectors, which take longest, only where they are wanted.
    pub(crate) fn fill(&self, database: &str, assets: u64, vector_indexes: bool) -> Result<(), String> {
        let variables = format!("\\set assets {assets}\n\\set vector_indexes {vector_indexes}\n");
        self.run(database, &format!("{variables}{}", include_str!("synthetic.sql"))).map(drop)
    }

    fn feed(&self, database: &str, arguments: &[&str], input: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send) -> Result<Vec<u8>, String> {
        let [program, before @ ..] = self.command.as_slice() else { return Err("no command".to_string()) };
        let mut command = match &self.password {
            Some(password) => {
                let mut command = clean(Command::new(program));
                command.env("PGPASSWORD", password);
                command
            }
            None => Command::new(program),
        };
        command.args(before).args(["-X", "-A", "-t", "-q", "-F", "\t", "-v", "ON_ERROR_STOP=1"]).args(arguments).arg(format!("--dbname={database}"));
        command.env("PGCLIENTENCODING", "UTF8");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("cannot start `{program}`: {error}"))?;
        let stdin = child.stdin.take();
        let (output, fed) = thread::scope(|scope| {
            let feeder = scope.spawn(move || {
                let mut to = io::BufWriter::with_capacity(1 << 16, stdin.ok_or(io::ErrorKind::BrokenPipe)?);
                input(&mut to)?;
                to.flush()
            });
            let output = child.wait_with_output();
            (output, feeder.join().unwrap_or_else(|_| Err(io::Error::other("what feeds psql has panicked"))))
        });
        let Output { status, stdout, stderr } = output.map_err(|error| format!("cannot run `{program}`: {error}"))?;
        if !status.success() {
            return Err(format!("psql ended with {status}: {}", String::from_utf8_lossy(&stderr)));
        }
        fed.map_err(|error| format!("cannot feed psql: {error}"))?;
        Ok(stdout)
    }
}
