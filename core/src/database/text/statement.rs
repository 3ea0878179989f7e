//! The few lines of a dump that are understood: `COPY … FROM stdin;`, and psql's commands.

use super::TableName;

/// Splits off one name: bare, or in double quotes.
fn name(text: &str) -> Option<(String, &str)> {
    let Some(mut rest) = text.strip_prefix('"') else {
        let end = text.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '$'))).unwrap_or(text.len());
        let (word, rest) = text.split_at_checked(end)?;
        return (!word.is_empty()).then(|| (word.to_owned(), rest));
    };
    let mut name = String::new();
    loop {
        let (part, after) = rest.split_once('"')?;
        name.push_str(part);
        match after.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None => return (!name.is_empty()).then_some((name, after)),
        }
    }
}

fn word<'a>(text: &'a str, wanted: &str) -> Option<&'a str> {
    let (first, rest) = text.split_at_checked(wanted.len())?;
    first.eq_ignore_ascii_case(wanted).then_some(rest)
}

/// The table and columns of `COPY schema.table (a, "b") FROM stdin;`. `None` for any other `COPY`.
pub(super) fn copy(statement: &[u8]) -> Option<(TableName, Vec<String>)> {
    let text = word(std::str::from_utf8(statement).ok()?, "COPY")?.trim_start();
    let (first, mut rest) = name(text)?;
    let mut table = TableName { schema: "public".to_owned(), name: first };
    if let Some(after) = rest.strip_prefix('.') {
        let (second, after) = name(after)?;
        table = TableName { schema: table.name, name: second };
        rest = after;
    }
    let mut columns = Vec::new();
    rest = rest.trim_start();
    if let Some(mut inner) = rest.strip_prefix('(') {
        loop {
            let (column, after) = name(inner.trim_start())?;
            columns.push(column);
            let after = after.trim_start();
            match after.strip_prefix(',') {
                Some(more) => inner = more,
                None => {
                    rest = after.strip_prefix(')')?.trim_start();
                    break;
                }
            }
        }
    }
    let rest = word(word(rest, "FROM")?.strip_prefix([' ', '\n'])?.trim_start(), "stdin")?.trim_start();
    (rest == ";").then_some((table, columns))
}

/// A psql command that `pg_dump` and `pg_dumpall` write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// What follows belongs to this database.
    Connect(String),
    /// Nothing but this key ends the restriction to SQL.
    Restrict(String),
    /// Ends it.
    Unrestrict(String),
}

/// The command in `line`, which has no backslash at its start any more. `None` for all others.
pub(super) fn command(line: &[u8]) -> Option<Command> {
    let line = std::str::from_utf8(line).ok()?;
    let (command, rest) = line.split_once(' ')?;
    let is_key = |key: &str| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric());
    match command {
        "connect" | "c" => database(rest.trim()).map(Command::Connect),
        "restrict" => is_key(rest).then(|| Command::Restrict(rest.to_owned())),
        "unrestrict" => is_key(rest).then(|| Command::Unrestrict(rest.to_owned())),
        _ => None,
    }
}

/// The database that `\connect` names: `NAME`, `"NAME"`, or `-reuse-previous=on "dbname='NAME'"`, as `appendPsqlMetaConnect` of
/// PostgreSQL writes them.
fn database(text: &str) -> Option<String> {
    let connection_string = text.strip_prefix("-reuse-previous=on ");
    let (found, rest) = match connection_string.unwrap_or(text).trim_start() {
        quoted if quoted.starts_with('"') => name(quoted)?,
        // A bare name may have dots, and dashes in what people wrote by hand.
        bare => {
            let (word, rest) = bare.split_once(' ').unwrap_or((bare, ""));
            let plain = !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '$'));
            (plain.then(|| word.to_owned())?, rest)
        }
    };
    if !rest.trim().is_empty() {
        return None;
    }
    if connection_string.is_none() {
        return Some(found);
    }
    let value = found.strip_prefix("dbname=")?;
    let Some(quoted) = value.strip_prefix('\'') else { return Some(value.to_owned()) };
    let mut name = String::new();
    let mut characters = quoted.chars();
    loop {
        match characters.next()? {
            '\'' => break,
            '\\' => name.push(characters.next()?),
            other => name.push(other),
        }
    }
    characters.next().is_none().then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(schema: &str, name: &str) -> TableName {
        TableName { schema: schema.to_owned(), name: name.to_owned() }
    }

    #[test]
    fn every_form_of_copy_that_pg_dump_writes_is_read() {
        let (name, columns) = copy(b"COPY public.asset (id, \"ownerId\", \"a \"\"b\"\"\", \"x)y\") FROM stdin;").unwrap();
        assert_eq!((name, columns.join("|")), (table("public", "asset"), "id|ownerId|a \"b\"|x)y".to_owned()));
        assert_eq!(copy(b"COPY public.\"user\" (id) FROM stdin;").unwrap().0, table("public", "user"));
        assert_eq!(copy("COPY \"o.d\".\"t\u{fc} t\" (id) FROM stdin;".as_bytes()).unwrap().0, table("o.d", "t\u{fc} t"));
        assert_eq!(copy(b"COPY public.t  FROM stdin;").unwrap(), (table("public", "t"), vec![]));
        assert_eq!(copy(b"COPY t (a) FROM stdin;").unwrap().0, table("public", "t"));
    }

    #[test]
    fn other_forms_of_copy_are_not_taken_for_it() {
        for text in [
            "COPY public.t (a) FROM stdin WITH (FORMAT csv);",
            "COPY public.t (a) TO stdout;",
            "COPY public.t (a) FROM PROGRAM stdin;",
            "COPY (SELECT 1) TO stdout;",
            "COPY public.t (a,) FROM stdin;",
            "COPY public.t (a FROM stdin;",
            "COPY public.\"t (a) FROM stdin;",
            "COPY public. (a) FROM stdin;",
            "COPY public.t (a) FROMstdin;",
        ] {
            assert_eq!(copy(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn every_form_of_connect_names_its_database() {
        for (line, name) in [
            ("connect immich", "immich"),
            ("c immich", "immich"),
            ("connect \"Immich\"", "Immich"),
            ("connect -reuse-previous=on \"dbname='my db'\"", "my db"),
            ("connect -reuse-previous=on \"dbname='it\\\\'s \"\"q\"\"'\"", "it\\"),
        ] {
            let found = command(line.as_bytes());
            if name.ends_with('\\') {
                // `\\` stands for one backslash, so the quote after it ends the value, and what follows makes it senseless.
                assert_eq!(found, None, "{line}");
            } else {
                assert_eq!(found, Some(Command::Connect(name.to_owned())), "{line}");
            }
        }
        assert_eq!(command(b"connect -reuse-previous=on \"dbname='it\\'s \"\"q\"\"'\""), Some(Command::Connect("it's \"q\"".to_owned())));
        for line in ["! rm -rf /", "i /etc/passwd", "connect", "connect a b", "connect $(x)", "copy t from 'x'", "restrict a b", "unrestrict "] {
            assert_eq!(command(line.as_bytes()), None, "{line}");
        }
    }
}
