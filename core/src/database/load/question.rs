//! What is asked of the database that a dump is loaded into.

use super::LoadError;
use crate::database::client::Client;
use crate::database::error::DatabaseError;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};

/// Tables that are counted by one query.
const COUNTED_AT_ONCE_MAX: usize = 200;

/// Schemas that are not the system's.
const OWN_SCHEMAS: &str = "n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'";

/// Relations, routines and types in schemas of our own that belong to no extension: `schema`, `name`, `kind`, `owner`, `command` to drop it, and `step`:
/// tables go first, with what depends on them.
const OBJECTS: &str = "\
    SELECT n.nspname AS schema, c.relname::text AS name, c.relkind::text AS kind, c.relowner AS owner, CASE WHEN c.relkind IN ('r', 'p') THEN 1 ELSE 2 END AS step, \
           format('DROP %s IF EXISTS %I.%I CASCADE', CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE' \
                  WHEN 'f' THEN 'FOREIGN TABLE' WHEN 'c' THEN 'TYPE' ELSE 'TABLE' END, n.nspname, c.relname) AS command \
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c') \
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid AND d.deptype = 'e') \
    UNION ALL \
    SELECT n.nspname, p.proname::text, 'routine', p.proowner, 3, \
           format('DROP ROUTINE IF EXISTS %I.%I(%s) CASCADE', n.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)) \
      FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
     WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.objid = p.oid AND d.deptype = 'e') \
    UNION ALL \
    SELECT n.nspname, t.typname::text, 'type', t.typowner, 4, format('DROP TYPE IF EXISTS %I.%I CASCADE', n.nspname, t.typname) \
      FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace \
     WHERE t.typtype IN ('e', 'd', 'r') \
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND d.objid = t.oid AND d.deptype = 'e')";

/// Something of a database.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Object {
    pub(super) schema: String,
    pub(super) name: String,
    kind: String,
    /// Whether the user may drop it.
    pub(super) owned: bool,
}

impl Object {
    /// As people read it: tables by their name alone.
    pub(super) fn shown(&self) -> String {
        let name = named(&self.schema, &self.name);
        if matches!(self.kind.as_str(), "routine" | "type") { format!("{} {name}", self.kind) } else { name }
    }
}

/// What a target is like.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Target {
    pub(super) encoding: String,
    /// Whether the user may make tables in the schema `public`; `None` where there is no such schema.
    pub(super) may_create: Option<bool>,
    /// Extensions that an owner of a database may make.
    pub(super) trusted: BTreeSet<String>,
    pub(super) others: Vec<String>,
    pub(super) objects: Vec<Object>,
}

fn named(schema: &str, name: &str) -> String {
    if schema == "public" { name.to_owned() } else { format!("{schema}.{name}") }
}

async fn ask<T: DeserializeOwned>(client: &Client, wanted: &'static str, sql: &str) -> Result<T, LoadError> {
    let answer = client.query(sql).await?;
    serde_json::from_str(&answer).map_err(|_| DatabaseError::Answer { program: "psql", wanted, answer: answer.chars().take(200).collect() }.into())
}

/// Looks at the target.
pub(super) async fn target(client: &Client) -> Result<Target, LoadError> {
    // What somebody else's session is called is hidden from an ordinary user; that it is there is not.
    let sql = format!(
        "SELECT json_build_object( \
           'encoding', (SELECT pg_encoding_to_char(encoding) FROM pg_catalog.pg_database WHERE datname = current_database()), \
           'may_create', (SELECT has_schema_privilege(oid, 'CREATE') FROM pg_catalog.pg_namespace WHERE nspname = 'public'), \
           'trusted', (SELECT coalesce(json_agg(DISTINCT name), '[]') FROM pg_catalog.pg_available_extension_versions WHERE trusted), \
           'others', (SELECT coalesce(json_agg(DISTINCT coalesce(nullif(application_name, ''), usename)), '[]') FROM pg_catalog.pg_stat_activity \
                       WHERE datname = current_database() AND pid <> pg_backend_pid() AND usesysid IS NOT NULL \
                         AND coalesce(backend_type, 'client backend') = 'client backend' AND coalesce(application_name, '') NOT LIKE 'immich-backup%'), \
           'objects', (SELECT coalesce(json_agg(o), '[]') FROM ( \
                        SELECT schema, name, kind, pg_has_role(owner, 'USAGE') AS owned FROM ({OBJECTS}) n WHERE {OWN} ORDER BY step, name) o));\n",
        OWN = OWN_SCHEMAS.replace("n.nspname", "n.schema"),
    );
    ask(client, "what the target is like", &sql).await
}

/// SQL on one line that drops all in the schema `public` that belongs to no extension.
pub(super) fn drop_all() -> String {
    format!(
        "DO $immich_backup$ DECLARE command text; BEGIN FOREACH command IN ARRAY ARRAY(SELECT n.command FROM ({OBJECTS}) n WHERE n.schema = 'public' ORDER BY n.step) \
         LOOP EXECUTE command; END LOOP; END $immich_backup$;"
    )
}

/// SQL on one line that fails where the schema `public` is not empty.
pub(super) fn assert_empty() -> String {
    format!(
        "DO $immich_backup$ BEGIN IF EXISTS (SELECT FROM ({OBJECTS}) n WHERE n.schema = 'public') THEN RAISE EXCEPTION 'the database is not empty any more'; \
         END IF; END $immich_backup$;"
    )
}

/// Takes out of a database all that was loaded into it when it was empty: everything in the schema `public`, and the extensions `made`.
///
/// # Errors
/// The database cannot be spoken to, or does not let it happen.
pub async fn clear(client: &Client, made: &BTreeSet<String>) -> Result<(), LoadError> {
    let extensions: Vec<_> = made.iter().map(|name| format!("DROP EXTENSION IF EXISTS \"{}\" CASCADE;", name.replace('"', "\"\""))).collect();
    client.query(&format!("BEGIN;\n{}\n{}\nCOMMIT;\n", drop_all(), extensions.join("\n"))).await?;
    Ok(())
}

/// The rows of each table of the database, counted one by one, at one moment for up to 200 tables. Tables of extensions are not counted.
/// Names have their schema in front, where that is not `public`. Of other schemas, only tables that are `expected` are counted: the others belong to
/// somebody else, and may not be ours to read.
///
/// # Errors
/// The database cannot be spoken to.
pub async fn count_rows(client: &Client, expected: &BTreeMap<String, u64>) -> Result<BTreeMap<String, u64>, LoadError> {
    let sql = format!(
        "SELECT coalesce(json_agg(json_build_array(n.schema, n.name)), '[]') FROM ({OBJECTS}) n WHERE n.kind IN ('r', 'p') AND {OWN};\n",
        OWN = OWN_SCHEMAS.replace("n.nspname", "n.schema")
    );
    let mut tables: Vec<(String, String)> = ask(client, "the names of tables", &sql).await?;
    tables.retain(|(schema, name)| schema == "public" || expected.contains_key(&named(schema, name)));
    let mut counted = BTreeMap::new();
    for tables in tables.chunks(COUNTED_AT_ONCE_MAX) {
        let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        let counts = tables
            .iter()
            .enumerate()
            .map(|(place, (schema, name))| format!("SELECT {place} AS place, count(*) AS rows FROM ONLY {}.{}", quoted(schema), quoted(name)));
        let sql = format!("SELECT coalesce(json_agg(n.rows ORDER BY n.place), '[]') FROM ({}) n;\n", counts.collect::<Vec<_>>().join("\nUNION ALL "));
        let rows: Vec<u64> = ask(client, "the number of rows", &sql).await?;
        counted.extend(tables.iter().map(|(schema, name)| named(schema, name)).zip(rows));
    }
    Ok(counted)
}

/// A table that does not have the rows that it should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowsDiffer {
    /// The table.
    pub table: String,
    /// How many rows it should have; `None` where it should not be there.
    pub expected: Option<u64>,
    /// How many it has; `None` where it is not there.
    pub found: Option<u64>,
}

impl std::fmt::Display for RowsDiffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let table = self.table.escape_debug();
        match (self.expected, self.found) {
            (Some(expected), Some(found)) => write!(f, "table `{table}` has {found} rows, and the dump has {expected}"),
            (Some(expected), None) => write!(f, "table `{table}` is not there, and the dump has {expected} rows of it"),
            (None, Some(found)) => write!(f, "table `{table}` has {found} rows, and the dump does not have it"),
            (None, None) => write!(f, "table `{table}` is not there"),
        }
    }
}

/// The tables whose rows are not as many as expected.
#[must_use]
pub fn differences(expected: &BTreeMap<String, u64>, found: &BTreeMap<String, u64>) -> Vec<RowsDiffer> {
    let tables: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    let compared =
        tables.into_iter().map(|table| RowsDiffer { table: table.clone(), expected: expected.get(table).copied(), found: found.get(table).copied() });
    compared.filter(|rows| rows.expected != rows.found).collect()
}
