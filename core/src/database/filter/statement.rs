//! What becomes of one statement of a dump.

use super::token::{Kind, Token, tokens};
use std::borrow::Cow;
use std::collections::BTreeSet;

/// What decides.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// Version of the server, e.g. `180004`.
    pub server_version_num: u32,
    /// Extensions that are there.
    pub installed: &'a BTreeSet<String>,
    /// Extensions for vectors that are done without.
    pub without: &'a BTreeSet<String>,
}

/// A statement that passes.
#[derive(Debug, PartialEq, Eq)]
pub struct Kept<'a> {
    /// As it is to pass.
    pub text: Cow<'a, [u8]>,
    /// The table that it makes.
    pub table: Option<String>,
    /// A type of a missing extension was replaced in it.
    pub as_text: bool,
}

/// A `COPY`.
#[derive(Debug, PartialEq, Eq)]
pub struct RowsOf {
    /// The table, with its schema, where that is not `public`.
    pub table: String,
    /// The first column that is named.
    pub first_column: Option<String>,
}

/// What becomes of a statement.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision<'a> {
    /// It passes.
    Keep(Kept<'a>),
    /// It passes, and rows follow.
    Rows(RowsOf),
    /// It is left out, which goes without saying.
    Drop,
    /// It is left out, which is worth saying.
    LeaveOut(String),
    /// An extension, and whether it passes.
    Extension {
        /// Its name.
        name: String,
        /// Whether the target has to make it.
        keep: bool,
    },
    /// The dump is refused.
    Refuse,
}

/// Settings that pass, and the one value that they may have, if there is but one.
const SETTINGS: [(&str, Option<&str>); 9] = [
    ("statement_timeout", Some("0")),
    ("idle_in_transaction_session_timeout", Some("0")),
    ("transaction_timeout", Some("0")),
    ("client_encoding", Some("'UTF8'")),
    ("standard_conforming_strings", Some("on")),
    ("check_function_bodies", Some("false")),
    ("xmloption", Some("content")),
    ("client_min_messages", Some("warning")),
    ("row_security", Some("off")),
];

/// Settings that say nothing for an empty database of one owner, whatever their value.
const SETTINGS_LEFT_OUT: [&str; 6] =
    ["default_tablespace", "default_table_access_method", "default_transaction_read_only", "default_with_oids", "lock_timeout", "escape_string_warning"];

/// What may be made: all that belongs to the database's owner.
const MADE: [&str; 18] = [
    "table",
    "index",
    "type",
    "function",
    "procedure",
    "aggregate",
    "sequence",
    "view",
    "trigger",
    "domain",
    "statistics",
    "rule",
    "policy",
    "operator",
    "cast",
    "collation",
    "text",
    "conversion",
];

/// What may stand between `CREATE` and what is made.
const ADJECTIVES: [&str; 6] = ["or", "replace", "unique", "unlogged", "materialized", "constraint"];

/// What belongs to the server, and is there or is not.
const OF_THE_SERVER: [&str; 9] = ["database", "role", "user", "group", "tablespace", "schema", "extension", "default", "language"];

/// Languages of functions that can reach nothing outside of the database without a superuser's rights.
const LANGUAGES: [&str; 2] = ["sql", "plpgsql"];

/// Types of the extensions for vectors.
fn types_of(extension: &str) -> &'static [&'static str] {
    match extension {
        "vector" => &["vector", "halfvec", "sparsevec"],
        "vectors" => &["vector", "vecf16", "svector", "bvector", "veci8", "vecf32"],
        "vchord" => &["scalar8", "rabitq8", "rabitq4", "sphere_vector", "sphere_halfvec", "sphere_scalar8"],
        _ => &[],
    }
}

/// Kinds of indexes of the extensions for vectors.
fn indexes_of(extension: &str) -> &'static [&'static str] {
    match extension {
        "vector" => &["hnsw", "ivfflat", "vchordrq", "vchordg"],
        "vectors" => &["vectors"],
        "vchord" => &["vchordrq", "vchordg"],
        _ => &[],
    }
}

/// A name with or without a schema, as a table's name is written in messages; and what follows.
fn qualified<'a, 'b>(tokens: &'b [Token<'a>]) -> Option<(String, &'b [Token<'a>])> {
    let (first, rest) = tokens.split_first()?;
    let first = first.name()?;
    match rest {
        [dot, second, rest @ ..] if dot.is_sign(b'.') => {
            let second = second.name()?;
            Some((if first == "public" { second } else { format!("{first}.{second}") }, rest))
        }
        _ => Some((first, rest)),
    }
}

/// What follows the words, if `tokens` begins with them.
fn after<'a, 'b>(tokens: &'b [Token<'a>], words: &[&str]) -> Option<&'b [Token<'a>]> {
    let (start, rest) = tokens.split_at_checked(words.len())?;
    start.iter().zip(words).all(|(token, word)| token.is(word)).then_some(rest)
}

fn only_end(tokens: &[Token<'_>]) -> bool {
    matches!(tokens, [end] if end.is_sign(b';'))
}

fn keep(text: &[u8]) -> Decision<'_> {
    Decision::Keep(Kept { text: Cow::Borrowed(text), table: None, as_text: false })
}

/// Decides on the statement `text`, which ends with its semicolon.
pub fn decide<'a>(text: &'a [u8], rules: &Rules<'_>) -> Decision<'a> {
    let tokens = tokens(text);
    let Some((first, rest)) = tokens.split_first() else { return Decision::Refuse };
    let Some(word) = (first.kind == Kind::Word).then(|| String::from_utf8_lossy(first.text).to_lowercase()) else { return Decision::Refuse };
    match word.as_str() {
        "create" => create(text, rest, rules),
        "alter" => alter(text, rest, rules),
        "copy" => copy(rest),
        "set" => set(text, rest, rules),
        "select" => select(text, rest),
        "comment" => comment(text, rest, rules),
        "refresh" if after(rest, &["materialized", "view"]).is_some() => keep(text),
        // The target is empty, and everything in it belongs to who loads.
        "drop" | "grant" | "revoke" => Decision::Drop,
        "security" => Decision::LeaveOut("a security label".to_owned()),
        _ => Decision::Refuse,
    }
}

fn create<'a>(text: &'a [u8], rest: &[Token<'_>], rules: &Rules<'_>) -> Decision<'a> {
    let rest = rest.iter().position(|token| !ADJECTIVES.iter().any(|word| token.is(word))).and_then(|start| rest.get(start..)).unwrap_or_default();
    let Some((kind, rest)) = rest.split_first() else { return Decision::Refuse };
    if kind.is("extension") {
        let rest = after(rest, &["if", "not", "exists"]).unwrap_or(rest);
        let Some(name) = rest.first().and_then(Token::name) else { return Decision::Refuse };
        // With the schema that it is to stand in, and nothing else.
        let plain = only_end(rest.get(1..).unwrap_or_default())
            || after(rest.get(1..).unwrap_or_default(), &["with", "schema"]).is_some_and(|rest| rest.len() == 2 && only_end(rest.get(1..).unwrap_or_default()));
        let keep = !rules.installed.contains(&name) && !rules.without.contains(&name);
        return if plain { Decision::Extension { name, keep } } else { Decision::Refuse };
    }
    if kind.is("schema") {
        return match rest {
            [name, end] if end.is_sign(b';') => match name.name().as_deref() {
                Some("public") | None => Decision::Drop,
                Some(_) => Decision::Keep(Kept { text: [b"CREATE SCHEMA IF NOT EXISTS ", name.text, b";"].concat().into(), table: None, as_text: false }),
            },
            _ => Decision::Refuse,
        };
    }
    if !MADE.iter().any(|made| kind.is(made)) {
        let server = OF_THE_SERVER.iter().any(|of_server| kind.is(of_server));
        return if server { Decision::Drop } else { left_out(kind, rest) };
    }
    if kind.is("function") || kind.is("procedure") {
        let foreign = rest.windows(2).any(|pair| match pair {
            [word, language] if word.is("language") => !language.name().is_some_and(|language| LANGUAGES.contains(&language.as_str())),
            _ => false,
        });
        if foreign {
            return left_out(kind, rest);
        }
        if !rules.without.is_empty() && types(rest, rules).next().is_some() {
            return left_out(kind, rest);
        }
    }
    if kind.is("index") {
        let method = rest.windows(2).find_map(|pair| match pair {
            [word, method] if word.is("using") => method.name(),
            _ => None,
        });
        if method.is_some_and(|method| rules.without.iter().any(|extension| indexes_of(extension).contains(&method.as_str()))) {
            return Decision::Drop;
        }
    }
    let table = if kind.is("table") { Some(qualified(rest).map(|(table, _)| table)) } else { None };
    if table == Some(None) {
        return Decision::Refuse;
    }
    let (text, as_text) = without_types(text, rest, rules);
    Decision::Keep(Kept { text, table: table.flatten(), as_text })
}

fn left_out<'a>(kind: &Token<'_>, rest: &[Token<'_>]) -> Decision<'a> {
    let kind = String::from_utf8_lossy(kind.text).to_lowercase();
    let name = qualified(rest).map_or_else(String::new, |(name, _)| format!(" `{}`", name.escape_debug()));
    Decision::LeaveOut(format!("{kind}{name}"))
}

/// The types of missing extensions among `tokens`: where each begins and ends. Dumps name them with their schema.
fn types<'b>(tokens: &'b [Token<'_>], rules: &Rules<'_>) -> impl Iterator<Item = (usize, usize)> + 'b {
    let known: Vec<&str> = rules.without.iter().flat_map(|extension| types_of(extension)).copied().collect();
    tokens.windows(3).enumerate().filter_map(move |(index, window)| {
        let [schema, dot, name] = window else { return None };
        let is_type = dot.is_sign(b'.') && schema.name().is_some() && name.name().is_some_and(|name| known.contains(&name.as_str()));
        let dimensions = match tokens.get(index + 3..index + 6) {
            Some([open, number, close]) if open.is_sign(b'(') && number.kind == Kind::Number && close.is_sign(b')') => Some(close.end()),
            _ => None,
        };
        is_type.then(|| (schema.start, dimensions.unwrap_or_else(|| name.end())))
    })
}

/// The statement with such types replaced, and whether there were any.
fn without_types<'a>(text: &'a [u8], rest: &[Token<'_>], rules: &Rules<'_>) -> (Cow<'a, [u8]>, bool) {
    if rules.without.is_empty() {
        return (Cow::Borrowed(text), false);
    }
    let mut replaced = Vec::new();
    let mut from = 0;
    for (start, end) in types(rest, rules) {
        replaced.extend_from_slice(text.get(from..start).unwrap_or_default());
        replaced.extend_from_slice(b"text");
        from = end;
    }
    if from == 0 {
        return (Cow::Borrowed(text), false);
    }
    replaced.extend_from_slice(text.get(from..).unwrap_or_default());
    (Cow::Owned(replaced), true)
}

fn alter<'a>(text: &'a [u8], rest: &[Token<'_>], rules: &Rules<'_>) -> Decision<'a> {
    let owner = matches!(rest, [.., owner, to, _, end] if owner.is("owner") && to.is("to") && end.is_sign(b';'));
    let Some((kind, mut rest)) = rest.split_first() else { return Decision::Refuse };
    if kind.is("system") {
        return Decision::Refuse;
    }
    if owner || OF_THE_SERVER.iter().any(|of_server| kind.is(of_server)) {
        return Decision::Drop;
    }
    if !kind.is("materialized") && !MADE.iter().any(|made| kind.is(made)) {
        return left_out(kind, rest);
    }
    if kind.is("index") && !rules.without.is_empty() {
        return Decision::Drop;
    }
    if kind.is("table") {
        if after(rest, &["if", "exists"]).is_some() {
            // Only `--clean --if-exists` writes that: it takes away what is not there.
            return Decision::Drop;
        }
        rest = after(rest, &["only"]).unwrap_or(rest);
        let Some((_, action)) = qualified(rest) else { return Decision::Refuse };
        let takes_away = matches!(action, [drop, ..] if drop.is("drop"))
            || matches!(action, [alter, column, _, drop, ..] if alter.is("alter") && column.is("column") && drop.is("drop"));
        if takes_away {
            return Decision::Drop;
        }
    }
    let (text, as_text) = without_types(text, rest, rules);
    Decision::Keep(Kept { text, table: None, as_text })
}

/// Rows come with the dump, never out of a program or a file of the server.
fn copy<'a>(rest: &[Token<'_>]) -> Decision<'a> {
    let Some((table, rest)) = qualified(rest) else { return Decision::Refuse };
    let (columns, rest) = match rest {
        [open, inner @ ..] if open.is_sign(b'(') => {
            let Some(close) = inner.iter().position(|token| token.is_sign(b')')) else { return Decision::Refuse };
            inner.split_at(close)
        }
        _ => (&[][..], rest),
    };
    let rest = if columns.is_empty() { rest } else { rest.get(1..).unwrap_or_default() };
    let plain = columns.iter().all(|token| token.name().is_some() || token.is_sign(b','));
    match after(rest, &["from", "stdin"]) {
        Some(end) if only_end(end) && plain => Decision::Rows(RowsOf { table, first_column: columns.first().and_then(Token::name) }),
        _ => Decision::Refuse,
    }
}

fn set<'a>(text: &'a [u8], rest: &[Token<'_>], rules: &Rules<'_>) -> Decision<'a> {
    if after(rest, &["session", "authorization"]).is_some() {
        return Decision::Drop;
    }
    let [name, equals, value, end] = rest else { return Decision::Refuse };
    if !(equals.is_sign(b'=') || equals.is("to")) || !end.is_sign(b';') {
        return Decision::Refuse;
    }
    if SETTINGS_LEFT_OUT.iter().any(|setting| name.is(setting)) {
        return Decision::Drop;
    }
    let known = SETTINGS.iter().find(|(setting, _)| name.is(setting));
    let right = known.is_some_and(|(_, only)| only.is_none_or(|only| value.text.eq_ignore_ascii_case(only.as_bytes())));
    if name.is("transaction_timeout") && rules.server_version_num < 170_000 {
        return Decision::Drop;
    }
    if right { keep(text) } else { Decision::Refuse }
}

fn select<'a>(text: &'a [u8], rest: &[Token<'_>]) -> Decision<'a> {
    let rest = match rest {
        [all, from, rest @ ..] if all.is_sign(b'*') && from.is("from") => rest,
        _ => rest,
    };
    let [schema, dot, function, open, arguments @ .., close, end] = rest else { return Decision::Refuse };
    if !(schema.is("pg_catalog") && dot.is_sign(b'.') && open.is_sign(b'(') && close.is_sign(b')') && end.is_sign(b';')) {
        return Decision::Refuse;
    }
    // Values, and no calls of anything.
    let plain = |token: &Token<'_>| {
        matches!(token.kind, Kind::Text | Kind::Number) || token.is_sign(b',') || token.is_sign(b'-') || token.is("true") || token.is("false")
    };
    if function.is("set_config") {
        return match arguments {
            [name, _, value, ..] if name.text == b"'search_path'" && value.kind == Kind::Text => {
                // As Immich's own restore does: with an empty path, functions of earthdistance do not find their types.
                let text = &b"SELECT pg_catalog.set_config('search_path', 'public, pg_catalog', true);"[..];
                Decision::Keep(Kept { text: text.into(), table: None, as_text: false })
            }
            _ => Decision::Refuse,
        };
    }
    if function.is("setval") && arguments.iter().all(plain) {
        return keep(text);
    }
    // What the planner had counted: it counts again.
    let statistics = function.is("pg_restore_relation_stats") || function.is("pg_restore_attribute_stats");
    if statistics { Decision::Drop } else { Decision::Refuse }
}

fn comment<'a>(text: &'a [u8], rest: &[Token<'_>], rules: &Rules<'_>) -> Decision<'a> {
    let Some([kind, ..]) = after(rest, &["on"]) else { return Decision::Refuse };
    let of_server = OF_THE_SERVER.iter().any(|of_server| kind.is(of_server));
    let of_missing = !rules.without.is_empty() && (kind.is("index") || kind.is("function"));
    let known = kind.is("column") || kind.is("materialized") || kind.is("constraint") || MADE.iter().any(|made| kind.is(made));
    if of_server || of_missing || !known { Decision::Drop } else { keep(text) }
}
