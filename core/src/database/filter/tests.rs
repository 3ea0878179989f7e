#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

use super::*;

const HEAD: &str = "--\n-- PostgreSQL database dump\n--\n\n\\restrict abc\n\n-- Dumped from database version 15.20 (Debian)\n\nSET client_encoding = 'UTF8';\n\
SELECT pg_catalog.set_config('search_path', '', false);\nCREATE TABLE public.asset (\n    id uuid NOT NULL\n);\n";
const END: &str = "\n--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict abc\n";

fn options() -> FilterOptions {
    FilterOptions { server_version_num: 180_004, ..FilterOptions::default() }
}

fn through(options: &FilterOptions, text: &[u8], piece: usize) -> Result<(String, Filtered), FilterError> {
    let mut filter = Filter::new(options.clone());
    let mut out = Vec::new();
    for piece in text.chunks(piece) {
        filter.feed(piece, &mut out)?;
    }
    let filtered = filter.finish()?;
    Ok((String::from_utf8(out).unwrap(), filtered))
}

fn whole(inner: &str) -> String {
    format!("{HEAD}{inner}{END}")
}

/// What of `inner` passes, with blank lines taken out.
#[track_caller]
fn passed(inner: &str) -> String {
    let text = whole(inner);
    let (out, _) = through(&options(), text.as_bytes(), 1 << 20).unwrap();
    assert_eq!(through(&options(), text.as_bytes(), 1).unwrap().0, out, "a piece at a time");
    let after = out.split_once("NOT NULL\n);\n").unwrap().1;
    after.lines().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn refused(inner: &str) -> FilterError {
    let text = whole(inner);
    let error = through(&options(), text.as_bytes(), 1 << 20).expect_err("this must not pass");
    assert_eq!(through(&options(), text.as_bytes(), 1).unwrap_err(), error);
    error
}

fn fixture(name: &str) -> Option<Vec<u8>> {
    let path = immich_backup_testbed::fixture::folder(name)?.join("dump.sql.gz");
    Some(immich_backup_testbed::postgres::Dump::File(&path).text().unwrap())
}

#[test]
fn every_line_of_a_real_dump_stays_where_it_was_and_rows_pass_untouched() {
    for (name, table, tables) in [("immich-3.1.0", "asset", 66), ("immich-1.135.3", "assets", 41)] {
        let Some(text) = fixture(name) else { return };
        let (out, found) = through(&options(), &text, 1 << 20).unwrap();
        // Behind the database that is wanted nothing passes any more.
        assert!(newlines(out.as_bytes()) + 40 > newlines(&text), "{name}");
        assert_eq!(through(&options(), &text, 7).unwrap(), (out.clone(), found.clone()), "{name} in small pieces");
        assert_eq!(found.rows[table], 97, "{name}");
        assert_eq!(found.rows.len(), tables, "{name}: {:?}", found.rows.keys());
        assert!(found.left_out.is_empty() && found.as_text.is_empty(), "{:?}", found.left_out);
        assert_eq!(found.head.server_major(), Some(15));
        assert!(["cube", "earthdistance", "pg_trgm", "unaccent", "uuid-ossp", "vector"].iter().all(|name| found.head.extensions.contains(*name)));
        for forbidden in ["OWNER TO", "DROP ", "\\connect", "\\restrict", "ROLE", "DATABASE", "COMMENT ON EXTENSION", "search_path', ''"] {
            let sql = out.lines().filter(|line| !line.contains('\t')).find(|line| line.contains(forbidden));
            assert_eq!(sql, None, "{name}");
        }
        let text = String::from_utf8(text).unwrap();
        for (before, after) in text.lines().zip(out.lines()) {
            assert!(after.is_empty() || after == before || after.contains("'public, pg_catalog'"), "`{before}` became `{after}`");
        }
    }
}

#[test]
fn a_dump_that_is_cut_anywhere_is_not_whole() {
    for name in ["immich-3.1.0", "immich-1.135.3"] {
        let Some(text) = fixture(name) else { return };
        let closing = memchr::memmem::rfind(&text, b"dump complete").unwrap() + b"dump complete".len();
        let cuts = (0..closing).step_by(4_999).chain(memchr::memchr_iter(b'\n', &text[..closing]).step_by(97).map(|at| at + 1));
        for cut in cuts.chain([closing - 1]) {
            let error = through(&options(), &text[..cut], 1 << 20).expect_err("a cut dump");
            assert!(matches!(error, FilterError::Cut { .. } | FilterError::Nothing), "{name} cut at {cut}: {error}");
        }
        assert!(through(&options(), &text[..closing], 1 << 20).is_ok(), "{name}");
    }
}

#[test]
fn rows_may_hold_anything() {
    let rows = "COPY public.system_metadata (key, value) FROM stdin;\n\\N\t\\\\! touch /tmp/x\n\n\\! touch\n;--'\"$$\n\\.x\nmaintenance-mode\t{}\nmaintenance-modes\t{}\n\\.\n";
    assert_eq!(passed(rows), rows.replace("\n\n", "\n").trim_end());
    let (_, found) = through(&options(), whole(rows).as_bytes(), 3).unwrap();
    assert_eq!((found.rows["system_metadata"], found.maintenance_rows), (7, 1));
}

#[test]
fn no_command_to_psql_passes_wherever_it_stands() {
    for command in [
        "\\! touch /tmp/x\n",
        "  \\! touch /tmp/x\n",
        "SET row_security = off; \\! touch /tmp/x\n",
        "SET row_security = off \\! touch /tmp/x\n;\n",
        "SET row_security = off\\;\n",
        "-- harmless\r\\! touch /tmp/x\n",
        "/* harmless */ \\! touch /tmp/x\n",
        "/* /* nested */ */ \\! touch /tmp/x\n",
        "\\restrict abc \\! touch /tmp/x\n",
        "\\restrict `touch /tmp/x`\n",
        "\\connect `touch /tmp/x`\n",
        "\\connect immich\r\\! touch\n",
        "\\i /etc/passwd\n",
        "\\copy public.asset from '/etc/passwd'\n",
        "\\gexec\n",
        "\\.\n",
        "CREATE TABLE public.x (a text DEFAULT 'a\\'); \\! touch /tmp/x\n",
        "CREATE TABLE public.x (a text DEFAULT E'\\''); \\! touch /tmp/x\n",
        "CREATE TABLE public.x (a text DEFAULT $a$ $b$ $a$); \\! touch /tmp/x\n",
        "CREATE TABLE public.\"x\"\"\\\" (a text); \\! touch /tmp/x\n",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; \\! touch /tmp/x\nEND;\n",
    ] {
        let error = refused(command);
        assert!(matches!(error, FilterError::Command { .. }), "{command:?}: {error}");
    }
    assert_eq!(
        passed("CREATE TABLE public.x (a text DEFAULT '\\! a', b text DEFAULT E'\\'\\\\' || $$\\! b$$); -- \\! c\n/* \\! d */"),
        "CREATE TABLE public.x (a text DEFAULT '\\! a', b text DEFAULT E'\\'\\\\' || $$\\! b$$);"
    );
}

#[test]
fn what_psql_may_read_otherwise_is_refused() {
    for unclear in [
        "COMMENT ON TABLE x IS E'a'\n'\\'' ;\n",
        "COMMENT ON TABLE x IS E'a'--b\n'\\'' ;\n",
        "COMMENT ON TABLE x IS E'a'/*b*/'\\'' ;\n",
        "COMMENT ON TABLE x IS 1E'\\'' ;\n",
        "COMMENT ON TABLE x IS 1$a$ ;\n",
        "COMMENT ON TABLE x IS $e'\\'' ;\n",
        "COMMENT ON TABLE x IS 'a\0b';\n",
        "COPY public.asset (id) FROM stdin; SET row_security = off;\n\\.\n",
        "COPY public.asset (id) FROM stdin;\r\n\\.\r\n",
        "COPY public.asset (id) FROM stdin;\na\n\\.\r\n",
    ] {
        let error = refused(unclear);
        assert!(matches!(error, FilterError::Unclear { .. }), "{unclear:?}: {error}");
    }
}

#[test]
fn nothing_ends_the_transaction_or_reaches_out_of_the_database() {
    for statement in [
        "COMMIT;",
        "ROLLBACK;",
        "BEGIN;",
        "END;",
        "ABORT;",
        "START TRANSACTION;",
        "PREPARE TRANSACTION 'x';",
        "SAVEPOINT x;",
        "DO $$BEGIN END$$;",
        "CALL f();",
        "LOAD 'x';",
        "UPDATE public.asset SET id = id;",
        "DELETE FROM public.asset;",
        "COPY public.asset FROM PROGRAM 'touch /tmp/x';",
        "COPY public.asset FROM '/etc/passwd';",
        "COPY public.asset TO '/tmp/x';",
        "COPY (SELECT 1) TO PROGRAM 'touch /tmp/x';",
        "COPY public.asset FROM stdin WITH (FORMAT csv);",
        "SELECT pg_read_file('/etc/passwd');",
        "SELECT pg_catalog.lo_import('/etc/passwd');",
        "SELECT pg_catalog.setval('x', 1), pg_read_file('x');",
        "SELECT pg_catalog.setval(pg_read_file('x'), 1);",
        "SET ROLE postgres;",
        "SET search_path = evil;",
        "SET client_encoding = 'SJIS';",
        "SET standard_conforming_strings = off;",
        "ALTER SYSTEM SET archive_command = 'touch /tmp/x';",
        "INSERT INTO public.asset VALUES (1);",
        ";",
        "EXECUTE x;",
        "VACUUM;",
        "\"create\" TABLE x ();",
    ] {
        let error = refused(&format!("{statement}\n"));
        assert!(matches!(error, FilterError::Refused { line: 14, .. }), "{statement}: {error}");
    }
}

#[test]
fn what_is_not_the_owners_is_left_out() {
    for statement in [
        "ALTER TABLE public.asset OWNER TO postgres;",
        "ALTER FUNCTION public.f(a text) OWNER TO \"odd user\";",
        "DROP TABLE IF EXISTS public.asset;",
        "ALTER TABLE IF EXISTS ONLY public.asset DROP CONSTRAINT IF EXISTS x;",
        "ALTER TABLE ONLY public.asset DROP CONSTRAINT x;",
        "ALTER TABLE public.asset ALTER COLUMN id DROP DEFAULT;",
        "GRANT ALL ON SCHEMA public TO x;",
        "REVOKE ALL ON SCHEMA public FROM x;",
        "ALTER DEFAULT PRIVILEGES FOR ROLE x GRANT SELECT ON TABLES TO y;",
        "CREATE SCHEMA public;",
        "COMMENT ON SCHEMA public IS 'x';",
        "COMMENT ON EXTENSION vector IS 'x';",
        "ALTER DATABASE immich SET search_path TO '$user', 'public';",
        "SET SESSION AUTHORIZATION 'x';",
        "SET default_tablespace = 'x';",
        "SET lock_timeout = 0;",
        "CREATE ROLE x;",
        "SELECT * FROM pg_catalog.pg_restore_relation_stats('relation', 'x');",
    ] {
        assert_eq!(passed(&format!("{statement}\n")), "", "{statement}");
    }
    let said = "CREATE PUBLICATION p FOR ALL TABLES;\nCREATE EVENT TRIGGER e ON ddl_command_start EXECUTE FUNCTION f();\nCREATE FUNCTION public.c() RETURNS int LANGUAGE c AS 'x';\nCREATE FUNCTION public.d() RETURNS int LANGUAGE 'c' AS 'x';\n";
    let (_, found) = through(&options(), whole(said).as_bytes(), 100).unwrap();
    assert_eq!(found.left_out, ["publication `p`", "event `trigger`", "function `c`", "function `d`"]);
    let older = FilterOptions { server_version_num: 160_000, ..options() };
    assert!(!through(&older, whole("SET transaction_timeout = 0;\n").as_bytes(), 9).unwrap().0.contains("transaction_timeout"));
    assert_eq!(passed("SET transaction_timeout = 0;\n"), "SET transaction_timeout = 0;");
    assert_eq!(passed("CREATE SCHEMA vectors;\n"), "CREATE SCHEMA IF NOT EXISTS vectors;");
}

#[test]
fn an_extension_that_is_there_is_not_made_again() {
    let there = FilterOptions { installed: ["vector".to_owned()].into(), ..options() };
    let text = whole("CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public;\nCREATE EXTENSION IF NOT EXISTS \"uuid-ossp\" WITH SCHEMA public;\n");
    let (out, found) = through(&there, text.as_bytes(), 100).unwrap();
    assert!(!out.contains("EXISTS vector") && out.contains("EXISTS \"uuid-ossp\""));
    assert_eq!(found.head.extensions, ["uuid-ossp".to_owned(), "vector".to_owned()].into());
}

#[test]
fn without_vectors_their_columns_become_text_and_their_indexes_are_left_out() {
    let without = FilterOptions { without: ["vector".to_owned(), "vchord".to_owned()].into(), ..options() };
    let text = whole(
        "CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public;\nCREATE TABLE public.smart_search (\n    \"assetId\" uuid NOT NULL,\n    embedding public.vector(512) NOT NULL,\n    vector text\n);\n\
         CREATE FUNCTION public.near(a public.vector) RETURNS integer LANGUAGE sql AS $$SELECT 1$$;\nCREATE FUNCTION public.vector_free() RETURNS integer LANGUAGE sql AS $$SELECT 1$$;\n\
         CREATE INDEX clip_index ON public.smart_search USING hnsw (embedding public.vector_cosine_ops);\nCREATE INDEX plain ON public.smart_search USING btree (\"assetId\");\n",
    );
    let (out, found) = through(&without, text.as_bytes(), 100).unwrap();
    assert!(out.contains("    embedding text NOT NULL,\n    vector text\n"), "{out}");
    assert!(!out.contains("EXTENSION") && !out.contains("hnsw") && !out.contains("near") && out.contains("vector_free") && out.contains("plain"), "{out}");
    assert_eq!(found.as_text, ["smart_search".to_owned()].into());
    assert_eq!(found.left_out, ["function `near`"]);
    let vectors = FilterOptions { without: ["vectors".to_owned()].into(), ..options() };
    let (out, _) = through(&vectors, whole("CREATE TABLE public.face_search (embedding vectors.vector(512));\nCREATE INDEX i ON public.face_search USING vectors (embedding vectors.vector_cos_ops);\n").as_bytes(), 100).unwrap();
    assert!(out.contains("(embedding text)") && !out.contains("USING"), "{out}");
}

#[test]
fn of_a_whole_servers_dump_the_database_with_immichs_tables_is_taken() {
    let database = |name: &str, table: &str| {
        format!("\\connect {name}\n\nCREATE TABLE public.{table} (a text);\nCOPY public.{table} (a) FROM stdin;\nof {name}\n\\.\n{END}")
    };
    let start = "--\n-- PostgreSQL database cluster dump\n--\nDROP ROLE IF EXISTS x;\nUPDATE pg_catalog.pg_database SET datistemplate = false;\n";
    let end = "--\n-- PostgreSQL database cluster dump complete\n--\n";
    let server = |databases: &[(&str, &str)]| format!("{start}{}{end}", databases.iter().map(|(name, table)| database(name, table)).collect::<String>());
    let (out, found) = through(&options(), server(&[("other", "notes"), ("immich", "asset"), ("another", "notes")]).as_bytes(), 64).unwrap();
    assert!(out.contains("of immich") && !out.contains("of other") && !out.contains("of another"), "{out}");
    assert_eq!(found.rows, [("asset".to_owned(), 1)].into());

    let two = server(&[("immich", "asset"), ("\"old immich\"", "assets")]);
    assert_eq!(through(&options(), two.as_bytes(), 64).unwrap_err(), FilterError::Several { first: "immich".to_owned(), second: "old immich".to_owned() });
    let old = FilterOptions { database: Some("old immich".to_owned()), ..options() };
    assert_eq!(through(&old, two.as_bytes(), 64).unwrap().1.rows, [("assets".to_owned(), 1)].into());
    assert_eq!(through(&options(), server(&[("other", "notes")]).as_bytes(), 64).unwrap_err(), FilterError::Nothing);
    let cut = two.replace(end, "");
    assert!(matches!(through(&old, cut.as_bytes(), 64), Err(FilterError::Cut { .. })));
}

#[test]
fn memory_is_bounded_by_the_longest_statement() {
    let endless = format!("CREATE TABLE public.x (a text DEFAULT '{}", "x".repeat(5 << 20));
    let mut filter = Filter::new(options());
    assert!(filter.feed(endless.as_bytes(), &mut Vec::new()).is_err());
    let mut filter = Filter::new(options());
    filter.feed(HEAD.as_bytes(), &mut Vec::new()).unwrap();
    filter.feed(b"COPY public.asset (id) FROM stdin;\n", &mut Vec::new()).unwrap();
    for _ in 0..64 {
        let mut out = Vec::new();
        filter.feed(&vec![b'x'; 1 << 20], &mut out).unwrap();
        assert_eq!(out.len(), 1 << 20);
    }
}
