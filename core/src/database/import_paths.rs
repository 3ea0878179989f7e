//! Where Immich looks for external libraries, asked of its database.

use super::client::Client;
use super::error::DatabaseError;
use super::server::no_answer;
use serde::Deserialize;

/// A folder of an external library, as Immich's server sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ImportPath {
    /// The library's name in Immich.
    pub library: String,
    /// The folder.
    pub path: String,
}

/// Lines of JSON. The table is called `library` since 1.136 and `libraries` before; a database that is not Immich's has neither.
const QUESTION: &str = r#"
SET search_path = pg_catalog;
SET lock_timeout = '10s';
SET statement_timeout = '120s';
SELECT coalesce(min(relname), '') AS libraries, count(*) > 0 AS has_libraries FROM pg_class
  JOIN pg_namespace ON pg_namespace.oid = relnamespace JOIN pg_attribute ON attrelid = pg_class.oid
  WHERE nspname = 'public' AND relname IN ('library', 'libraries') AND relkind = 'r' AND attname = 'importPaths'
    AND has_table_privilege(pg_class.oid, 'SELECT') \gset
\if :has_libraries
SELECT json_build_object('library', l.name, 'path', path)::text FROM public.:"libraries" AS l, unnest(l."importPaths") AS path
  WHERE l."deletedAt" IS NULL AND path IS NOT NULL ORDER BY path, l.name;
\endif
"#;

/// The import paths of all external libraries that were not deleted, by path.
///
/// # Errors
/// The database cannot be reached, or answers something else.
pub async fn import_paths(client: &Client) -> Result<Vec<ImportPath>, DatabaseError> {
    let answer = client.query(QUESTION).await?;
    let parse = |line: &str| serde_json::from_str(line).map_err(|_| no_answer("psql", "an import path", line));
    answer.lines().filter(|line| !line.is_empty()).map(parse).collect()
}
