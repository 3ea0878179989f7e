//! Whether a dump can be loaded into a database, looked at before anything is done.

use super::question::{self, Object};
use super::{LOCK_TIMEOUT, LoadError, PSQL_MAJOR_MIN};
use crate::database::client::{Client, Version};
use crate::database::filter::{FilterOptions, Head, VECTOR_EXTENSIONS};
use std::collections::BTreeSet;

/// What is wanted of a load.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Drop what is in the schema `public` first, in the same transaction.
    pub replace: bool,
    /// Nothing of anybody's may be in the database, in no schema: it is to be thrown away afterwards.
    pub scratch: bool,
    /// Where the server lacks extensions for vectors, load their columns as text. Immich could not use the result.
    pub vectors_as_text: bool,
    /// The database, where the dump is one of a whole server; else the one that has Immich's tables.
    pub database_in_dump: Option<String>,
}

/// What a load will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadPlan {
    /// The database, as people call it.
    pub target: String,
    /// The server's version, e.g. `18.4`.
    pub server_version: String,
    /// Extensions that the dump will make, and that the server has.
    pub makes: BTreeSet<String>,
    /// What is in the schema `public`, and will be dropped first.
    pub replaces: Vec<String>,
    /// What is worth knowing.
    pub warnings: Vec<String>,
    /// Size of the text, where it is known, for who shows how far it is.
    pub text_bytes: Option<u64>,
    pub(super) filter: FilterOptions,
    /// Whether `psql` knows `\restrict`.
    pub(super) restricts: bool,
    drops: bool,
    makes_schema: bool,
}

/// How to get an extension.
pub(super) fn remedy(extension: &str) -> String {
    match extension {
        "vchord" => "use Immich's own image of the database (ghcr.io/immich-app/postgres), or install VectorChord and put it into shared_preload_libraries".to_owned(),
        "vectors" => "the dump is of an Immich before 1.133 with pgvecto.rs: restore into the image of the database that it had (tensorchord/pgvecto-rs), then upgrade Immich".to_owned(),
        "vector" => "install pgvector (Debian and Ubuntu: postgresql-N-pgvector), or use Immich's own image of the database".to_owned(),
        other => format!("install the extension `{other}` (most are in PostgreSQL's package of contributed modules, postgresql-contrib)"),
    }
}

/// Whether this `psql` knows `\restrict`: since the minor releases of August 2025 (CVE-2025-8714).
fn knows_restrict((major, minor): Version) -> bool {
    match major {
        0..=13 => false,
        14 => minor >= 19,
        15 => minor >= 14,
        16 => minor >= 10,
        17 => minor >= 6,
        _ => true,
    }
}

/// Looks at the target, and says what loading a dump that begins with `head` would do. Changes nothing.
///
/// # Errors
/// It cannot be done.
pub async fn preflight(client: &Client, head: &Head, options: &LoadOptions) -> Result<LoadPlan, LoadError> {
    let server = client.server().await?;
    let target = question::target(client).await?;
    let name = client.target();
    let psql @ (major, minor) = client.psql_version().await?;
    if major < PSQL_MAJOR_MIN {
        return Err(LoadError::Psql { major, minor });
    }
    if server.is_standby {
        return Err(LoadError::Standby { target: name });
    }
    if target.encoding != "UTF8" {
        return Err(LoadError::Encoding { target: name, encoding: target.encoding });
    }
    let in_public = |object: &&Object| object.schema == "public";
    let there: Vec<&Object> = if options.scratch { target.objects.iter().collect() } else { target.objects.iter().filter(in_public).collect() };
    let replace = options.replace && !options.scratch;
    if !there.is_empty() && !replace {
        return Err(LoadError::NotEmpty { target: name, there: there.iter().map(|object| object.shown()).collect() });
    }
    let foreign: Vec<_> = there.iter().filter(|object| !object.owned).map(|object| object.shown()).collect();
    if !foreign.is_empty() {
        return Err(LoadError::NotOwner { target: name, there: foreign });
    }
    let mut warnings = Vec::new();
    if !target.others.is_empty() {
        if !there.is_empty() {
            return Err(LoadError::InUse { target: name, who: target.others });
        }
        warnings.push(format!("others are connected to {name}: {}; if one of them is Immich, stop it first", super::listed(&target.others)));
    }
    let wanted: BTreeSet<_> = head.extensions.difference(&server.extensions_installed).cloned().collect();
    let lacking: BTreeSet<_> = wanted.difference(&server.extensions_available).cloned().collect();
    let mut without = BTreeSet::new();
    if options.vectors_as_text {
        without = lacking.iter().filter(|name| VECTOR_EXTENSIONS.contains(&name.as_str())).cloned().collect();
        if without.contains("vector") && wanted.contains("vchord") {
            // It builds on the other.
            without.insert("vchord".to_owned());
        }
    }
    let missing: Vec<_> = lacking.difference(&without).cloned().collect();
    if !missing.is_empty() {
        return Err(LoadError::Extensions { target: name, extensions: missing });
    }
    let makes: BTreeSet<_> = wanted.difference(&without).cloned().collect();
    let may_make = |extension: &&String| server.is_superuser || (server.may_create_in_database && target.trusted.contains(extension.as_str()));
    let refused: Vec<_> = makes.iter().filter(|extension| !may_make(extension)).cloned().collect();
    if !refused.is_empty() {
        return Err(LoadError::ExtensionRights { user: format!("`{}`", server.user), target: name, extensions: refused });
    }
    if !target.may_create.unwrap_or(server.may_create_in_database) {
        return Err(LoadError::Rights { user: server.user, target: name });
    }
    if let Some(taken_from) = head.server_major().filter(|major| *major > server.major()) {
        warnings.push(format!(
            "the dump is of PostgreSQL {taken_from}, and {name} is PostgreSQL {}: an older server may not understand it, and then nothing is changed",
            server.major()
        ));
    }
    let filter = FilterOptions {
        server_version_num: server.version_num,
        installed: server.extensions_installed.clone(),
        without,
        database: options.database_in_dump.clone(),
    };
    Ok(LoadPlan {
        target: name,
        server_version: server.short_version().to_owned(),
        makes,
        replaces: there.iter().map(|object| object.shown()).collect(),
        warnings,
        text_bytes: None,
        filter,
        restricts: knows_restrict(psql),
        drops: replace,
        makes_schema: target.may_create.is_none(),
    })
}

impl LoadPlan {
    /// What comes before the dump: [`super::OWN_LINES`] lines.
    pub(super) fn opening(&self, key: &str) -> String {
        let restrict = if self.restricts { format!("\\restrict {key}") } else { String::new() };
        let schema = if self.makes_schema { "CREATE SCHEMA public; " } else { "" };
        let first = if self.drops { question::drop_all() } else { question::assert_empty() };
        format!(
            "{restrict}\nSET standard_conforming_strings = on; SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; \
             SET lock_timeout = '{LOCK_TIMEOUT}'; SET client_min_messages = warning; BEGIN; {schema}{first}\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restrict_is_asked_of_those_who_know_it() {
        let knowing = [(14, 19), (15, 14), (16, 10), (17, 6), (18, 0), (19, 0)];
        let older = [(13, 22), (14, 18), (15, 13), (16, 9), (17, 5)];
        assert!(knowing.into_iter().all(knows_restrict) && !older.into_iter().any(knows_restrict));
    }
}
