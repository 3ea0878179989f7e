//! What is to be known of a PostgreSQL server and one of its databases.

use super::error::DatabaseError;
use std::collections::BTreeSet;
use std::str::FromStr;

/// A server and one of its databases, as a connection sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Server {
    /// Its version as a number: major × 10,000 + minor, e.g. 150020.
    pub version_num: u32,
    /// As people read it, e.g. `15.20 (Debian 15.20-0+deb12u1)`.
    pub version: String,
    /// What the database takes on the server's disk.
    pub database_bytes: u64,
    /// The user that we are.
    pub user: String,
    /// Whether that is a superuser.
    pub is_superuser: bool,
    /// Whether that user may make schemas and (trusted) extensions in the database.
    pub may_create_in_database: bool,
    /// Whether that user may make databases.
    pub may_create_databases: bool,
    /// Whether that user owns the schema `public`, or what owns it.
    pub owns_public: bool,
    /// Whether the server is a standby, which takes no writes.
    pub is_standby: bool,
    /// Immich's, by the newest row of its own history; since 1.117 there is one.
    pub immich_version: Option<String>,
    /// How many tables there are in the schema `public`.
    pub tables_in_public: u64,
    /// Extensions that could be made.
    pub extensions_available: BTreeSet<String>,
    /// Extensions that are there.
    pub extensions_installed: BTreeSet<String>,
}

impl Server {
    /// The major version, e.g. 15.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.version_num / 10_000
    }

    /// The version alone, e.g. `15.20`.
    #[must_use]
    pub fn short_version(&self) -> &str {
        self.version.split(' ').next().unwrap_or_default()
    }
}

/// Lines of name, tab and value. Nothing here depends on what the database has in it: the one table that is read is looked for first. Waits
/// are bounded, because a session that holds a lock on it may never end.
pub(super) const QUESTIONS: &str = r#"
SET search_path = pg_catalog;
SET lock_timeout = '10s';
SET statement_timeout = '120s';
SELECT 'version_num', current_setting('server_version_num');
SELECT 'version', current_setting('server_version');
SELECT 'database_bytes', pg_database_size(current_database());
SELECT 'user', regexp_replace(current_user, '[[:cntrl:]]', '?', 'g');
SELECT 'is_superuser', rolsuper FROM pg_roles WHERE rolname = current_user;
SELECT 'may_create_databases', rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user;
SELECT 'may_create_in_database', has_database_privilege(current_database(), 'CREATE');
SELECT 'owns_public', pg_has_role(nspowner, 'MEMBER') FROM pg_namespace WHERE nspname = 'public';
SELECT 'is_standby', pg_is_in_recovery();
SELECT 'tables_in_public', count(*) FROM pg_tables WHERE schemaname = 'public';
SELECT 'available', name FROM pg_available_extensions;
SELECT 'installed', extname FROM pg_extension;
SELECT count(*) = 2 AS has_history FROM pg_class
  JOIN pg_namespace ON pg_namespace.oid = relnamespace JOIN pg_attribute ON attrelid = pg_class.oid
  WHERE nspname = 'public' AND relname = 'version_history' AND relkind = 'r' AND attname IN ('version', 'createdAt')
    AND has_table_privilege(pg_class.oid, 'SELECT') \gset
\if :has_history
SELECT 'immich_version', left(regexp_replace(version::text, '[^0-9A-Za-z.+-]', '', 'g'), 40) FROM public.version_history ORDER BY "createdAt" DESC LIMIT 1;
\endif
"#;

/// The error that `psql` (or another) gave no answer that makes sense.
pub(super) fn no_answer(program: &'static str, wanted: &'static str, answer: &str) -> DatabaseError {
    DatabaseError::Answer { program, wanted, answer: answer.chars().take(200).collect() }
}

fn number<T: FromStr>(wanted: &'static str, value: &str) -> Result<T, DatabaseError> {
    value.parse().map_err(|_| no_answer("psql", wanted, value))
}

/// Reads the answer to [`QUESTIONS`].
pub(super) fn parse(answer: &str) -> Result<Server, DatabaseError> {
    let mut server = Server::default();
    for line in answer.lines() {
        let Some((name, value)) = line.split_once('\t') else { continue };
        let is = value == "t";
        match name {
            "version_num" => server.version_num = number("the server's version", value)?,
            "version" => value.clone_into(&mut server.version),
            "database_bytes" => server.database_bytes = number("the database's size", value)?,
            "user" => value.clone_into(&mut server.user),
            "is_superuser" => server.is_superuser = is,
            "may_create_databases" => server.may_create_databases = is,
            "may_create_in_database" => server.may_create_in_database = is,
            "owns_public" => server.owns_public = is,
            "is_standby" => server.is_standby = is,
            "tables_in_public" => server.tables_in_public = number("the number of tables", value)?,
            "available" => drop(server.extensions_available.insert(value.to_owned())),
            "installed" => drop(server.extensions_installed.insert(value.to_owned())),
            "immich_version" if !value.is_empty() => server.immich_version = Some(value.strip_prefix('v').unwrap_or(value).to_owned()),
            _ => {}
        }
    }
    if server.version_num == 0 || server.version.is_empty() {
        return Err(no_answer("psql", "the server's version", answer));
    }
    Ok(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_nonsense_is_not_taken_for_one() {
        let answer =
            "version_num\t150020\nversion\t15.20 (Debian 15.20-0+deb12u1)\ndatabase_bytes\t7654321\nis_superuser\tf\ninstalled\tvector\nimmich_version\tv3.1.0";
        let server = parse(answer).unwrap();
        assert_eq!((server.major(), server.short_version(), server.database_bytes), (15, "15.20", 7_654_321));
        assert_eq!((server.immich_version.as_deref(), server.extensions_installed.len(), server.is_superuser), (Some("3.1.0"), 1, false));
        for nonsense in ["", "version_num\tmany", "Welcome!\nversion\t15", "version_num\t150020"] {
            assert!(matches!(parse(nonsense), Err(DatabaseError::Answer { .. })), "{nonsense}");
        }
    }
}
