//! Whether a dump is whole, and what it holds, whatever is in it and however it comes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

use immich_backup_core::database::text::{NotWhole, Scanner, TableName, Visitor, Whole};
use immich_backup_testbed::fixture::{Fixture, IMMICH_1};
use proptest::prelude::*;

/// Writes down all that it is told.
#[derive(Debug, Clone, Default)]
struct Recorder {
    told: Vec<String>,
}

impl Visitor for Recorder {
    type Error = NotWhole;

    fn section(&mut self, database: Option<&str>) -> Result<(), NotWhole> {
        self.told.push(format!("section {database:?}"));
        Ok(())
    }

    fn copy_began(&mut self, table: &TableName, columns: &[String]) -> Result<bool, NotWhole> {
        self.told.push(format!("copy {table} {}", columns.join("|")));
        // Every other table is passed over.
        Ok(!table.name.starts_with('p'))
    }

    fn row(&mut self, row: &[u8]) -> Result<(), NotWhole> {
        self.told.push(format!("row {}", row.escape_ascii()));
        Ok(())
    }

    fn copy_ended(&mut self, table: &TableName, rows: u64) -> Result<(), NotWhole> {
        self.told.push(format!("end {table} {rows}"));
        Ok(())
    }
}

fn read(pieces: &[&[u8]]) -> Result<(Whole, Vec<String>), NotWhole> {
    let mut scanner = Scanner::with(Recorder::default());
    for piece in pieces {
        scanner.feed(piece)?;
    }
    scanner.finish_with().map(|(whole, recorder)| (whole, recorder.told))
}

fn table(name: &str) -> TableName {
    TableName { schema: "public".to_owned(), name: name.to_owned() }
}

fn rows(whole: &Whole, section: usize, name: &str) -> Option<u64> {
    whole.sections[section].tables.get(&table(name)).copied()
}

const HEAD: &str = "--\n-- PostgreSQL database dump\n--\n\n\\restrict k3y\n\n-- Dumped from database version 18.4 (Debian 18.4-1)\n-- Dumped by pg_dump version 18.4\n\nSET x = 0;\n\n";
const TAIL: &str = "--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict k3y\n\n";

fn around(middle: &str) -> String {
    format!("{HEAD}{middle}{TAIL}")
}

/// Text that looks like what it is not, in every place where people can put text.
fn hostile() -> String {
    let name = "n".repeat(10_000);
    around(&format!(
        "COMMENT ON TABLE public.a IS 'it''s\nCOPY public.x (a) FROM stdin;\n1\n\\.\n--\n-- PostgreSQL database dump complete\n--\n';\n\
         CREATE FUNCTION public.f() RETURNS void LANGUAGE plpgsql AS $_$\nBEGIN\nCOPY public.x (a) FROM stdin;\n$$ $_ $__$ \n--\n-- PostgreSQL database dump complete\n--\n\\connect other\nEND;$_$;\n\
         CREATE VIEW v AS SELECT E'\\\\' || E'\\'; COPY public.y FROM stdin;\n' AS \"od\"\"d;\nCOPY public.z FROM stdin;\", 1 AS a$b$c, $1;\n\
         /* COPY public.x FROM stdin; /* nested */\nCOPY public.x FROM stdin;\n */\n\
         -- COPY public.x FROM stdin;\n\
         CREATE RULE r AS ON INSERT TO t DO (SELECT 1;\nSELECT 2);\n\
         SELECT 1 - -1 / 2;\n\n\
         COPY public.a (id, \"cap tion\") FROM stdin;\n1\tCOPY public.x (a) FROM stdin;\n2\t\\\\.\n3\t\\\\\\\\.\\t\\n\\r\\\\\n4\t--\n--\n-- PostgreSQL database dump complete\n5\t{name}\n'\n$$\n/*\n\\N\n\\.\n\n\n\
         COPY public.p (id) FROM stdin;\n\\\\.\n\\N\n\\.x\n\\\n.\n\\. \n \\.\n\n\\.\n\n\
         COPY public.\"p q\" (id) FROM stdin;\n\\.\n\n\
         COPY public.empty  FROM stdin;\n\n\n\\.\n\n\
         COPY o.\"T\" (a) FROM stdin;\n7\n\\.\n\n"
    ))
}

#[test]
fn what_looks_like_copy_in_literals_bodies_comments_and_rows_is_not_taken_for_it() {
    let (whole, told) = read(&[hostile().as_bytes()]).unwrap();
    let tables: Vec<_> = whole.sections[0].tables.iter().map(|(table, rows)| format!("{table} {rows}")).collect();
    assert_eq!(tables, ["o.T 1", "a 11", "empty 2", "p 8", "p q 0"]);
    assert_eq!((whole.sections.len(), whole.rows_total, whole.cluster), (1, 22, false));
    assert_eq!(whole.text_bytes, hostile().len() as u64);
    assert_eq!(whole.sections[0].server_version.as_deref(), Some("18.4 (Debian 18.4-1)"));
    assert_eq!(whole.sections[0].program_version.as_deref(), Some("18.4"));
    assert_eq!(told[..3], ["section None", "copy a id|cap tion", "row 1\\tCOPY public.x (a) FROM stdin;"]);
    assert_eq!(told.iter().filter(|line| line.starts_with("row ")).count(), 11 + 2 + 1);
}

/// What a reader that knows nothing of literals says of a cut of a dump that has no hostile ones.
#[derive(Debug, Default)]
struct Naive {
    table: Option<(String, u64)>,
    last: Option<String>,
    /// Closing lines of `pg_dump`, and headers.
    closed: usize,
    opened: usize,
    cluster: bool,
    ended: bool,
    restricted: Option<String>,
    /// In the line that may be cut.
    partial: String,
}

impl Naive {
    fn line(&mut self, line: &str) {
        if let Some((name, rows)) = &mut self.table {
            if line == "\\." {
                self.last = Some(name.clone());
                self.table = None;
            } else {
                *rows += 1;
            }
        } else if let Some(rest) = line.strip_prefix("COPY public.") {
            self.table = Some((rest.split(' ').next().unwrap().replace('"', ""), 0));
        } else if line == "-- PostgreSQL database dump" {
            self.opened += 1;
            self.last = None;
        } else if line == "-- PostgreSQL database dump complete" {
            self.closed += 1;
            self.ended = !self.cluster;
        } else if line == "-- PostgreSQL database cluster dump" {
            self.cluster = true;
        } else if line == "-- PostgreSQL database cluster dump complete" {
            self.ended = true;
        } else if let Some(key) = line.strip_prefix("\\restrict ") {
            self.restricted = Some(key.to_owned());
        } else if line.starts_with("\\unrestrict ") {
            self.restricted = None;
        }
    }

    fn is_whole(&self) -> bool {
        let key = self.restricted.as_ref().map(|key| format!("\\unrestrict {key}"));
        self.ended && (key.is_none() || key.as_ref() == Some(&self.partial))
    }

    /// Compares what the scanner says.
    fn agrees(&self, found: &Result<Whole, NotWhole>, place: usize) {
        match found {
            Ok(_) => assert!(self.is_whole(), "byte {place}: taken for whole"),
            Err(_) if self.is_whole() && self.partial != "-" => panic!("byte {place}: {found:?}"),
            Err(NotWhole::InCopy { table, rows, .. }) => {
                // The statement is known once its semicolon is there.
                let statement = self.partial.strip_prefix("COPY public.").filter(|_| self.table.is_none());
                let begun = statement.map(|rest| (rest.split(" (").next().unwrap().split("  FROM").next().unwrap().replace('"', ""), 0));
                assert_eq!(Some((table.name.clone(), *rows)), self.table.clone().or(begun), "byte {place}");
            }
            Err(NotWhole::NoClosingLine { after, .. }) => {
                assert!(self.table.is_none() && (self.opened > self.closed || !self.cluster) && !self.ended, "byte {place}: {found:?}");
                assert_eq!(after.as_ref().map(|table| table.name.clone()), self.last, "byte {place}");
            }
            Err(NotWhole::NoClusterClosingLine { databases, .. }) => {
                assert!(self.cluster && !self.ended && self.opened == self.closed, "byte {place}: {found:?}");
                assert_eq!(*databases, self.closed as u64);
            }
            Err(NotWhole::StillRestricted { .. }) => assert!(self.ended && self.restricted.is_some(), "byte {place}"),
            Err(NotWhole::AfterTheEnd { .. }) => assert!(self.ended && self.partial == "-", "byte {place}: {found:?}"),
            Err(NotWhole::Empty) => assert_eq!(place, 0),
            Err(other) => panic!("byte {place}: {other:?}"),
        }
    }
}

/// Cuts `text` at each of `places`, which ascend. Returns how many cuts were whole.
fn cut(text: &[u8], places: impl IntoIterator<Item = usize>) -> usize {
    let mut scanner = Scanner::new();
    let mut naive = Naive::default();
    let (mut start, mut whole) = (0, 0);
    for place in places {
        scanner.feed(&text[start..place]).unwrap();
        for byte in String::from_utf8_lossy(&text[start..place]).chars() {
            if byte == '\n' {
                let line = std::mem::take(&mut naive.partial);
                naive.line(&line);
            } else {
                naive.partial.push(byte);
            }
        }
        let found = scanner.clone().finish();
        naive.agrees(&found, place);
        whole += usize::from(found.is_ok());
        start = place;
    }
    whole
}

#[test]
fn a_dump_cut_at_any_byte_is_refused_and_the_place_is_named() {
    let plain = around(
        "CREATE FUNCTION f() AS $_$ ; $_$;\n\nCOPY public.asset (id, \"ownerId\") FROM stdin;\n1\ta\n2\t\\\\.\n3\t\\N\n\\.\n\n\nCOPY public.\"user\" (id) FROM stdin;\n\\.\n\nCOPY public.t  FROM stdin;\n\n\\.\n\nALTER TABLE x ADD y 'a;b';\n\n",
    );
    // Of each dump: what may be cut off its end.
    let whole = cut(plain.as_bytes(), 0..=plain.len());
    assert_eq!(whole, "\\unrestrict k3y\n\n".len() - "\\unrestrict k3y".len() + 1);
    let free = plain.replace("\\restrict k3y\n", "").replace("\\unrestrict k3y\n", "");
    // After `--`, all but a cut of its first dash.
    assert_eq!(cut(free.as_bytes(), 0..=free.len()), "--\n\n\n".len());
    let cluster = format!(
        "--\n-- PostgreSQL database cluster dump\n--\n\nSET a = 'b';\nCREATE ROLE postgres;\n\n--\n-- Database \"template1\" dump\n--\n\n\\connect template1\n\n{}--\n-- Database \"immich\" dump\n--\n\n{}--\n-- PostgreSQL database cluster dump complete\n--\n\n",
        around("COPY public.a (b) FROM stdin;\nx\n\\.\n"),
        plain.replace("SET x = 0;", "\\unrestrict k3y\n\\connect immich\n\\restrict k3y\n")
    );
    assert_eq!(cut(cluster.as_bytes(), 0..=cluster.len()), "--\n\n".len());
}

#[test]
fn dumps_of_real_servers_are_whole_and_no_cut_of_them_is() {
    for fixture in Fixture::all() {
        let (text, version) = (fixture.dump_text(), &fixture.expected.version);
        let mut places: Vec<_> = (0..text.len()).step_by(997).collect();
        places.extend(text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').flat_map(|(at, _)| [at, at + 1]));
        // Every byte near the end, where a closing line can be half there.
        places.extend(text.len() - 400..=text.len());
        places.sort_unstable();
        places.dedup();
        // What may be missing: line ends and `--` after the last closing line, and the line end of an `\unrestrict`.
        let whole = cut(&text, places);
        assert_eq!(whole, if version == "3.1.0" { 3 } else { 4 }, "{version}");
    }
}

#[test]
fn the_sections_of_a_cluster_have_their_databases_and_their_rows() {
    let Some(fixture) = Fixture::open(IMMICH_1) else { return };
    let (whole, _) = read(&[&fixture.dump_text()]).unwrap();
    let names: Vec<_> = whole.sections.iter().map(|section| section.database.as_deref().unwrap()).collect();
    assert!(whole.cluster);
    assert_eq!(names, ["template1", "immich", "postgres"]);
    assert_eq!((rows(&whole, 1, "assets"), rows(&whole, 1, "users"), rows(&whole, 0, "assets")), (Some(97), Some(3), None));
    for section in &whole.sections {
        assert_eq!(section.server_version.as_deref(), Some("15.20 (Debian 15.20-0+deb12u1)"));
    }
    let odd = around("COPY public.a (b) FROM stdin;\nx\n\\.\n")
        .replace("SET x = 0;", "\\unrestrict k3y\n\\connect -reuse-previous=on \"dbname='my db'\"\n\\restrict k3y\n");
    assert_eq!(read(&[odd.as_bytes()]).unwrap().0.sections[0].database.as_deref(), Some("my db"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn pieces_of_any_size_give_the_same(sizes in prop::collection::vec(prop_oneof![1_usize..4, 1_usize..200, 1_usize..20_000], 1..60)) {
        let text = hostile();
        let text = text.as_bytes();
        let mut pieces = Vec::new();
        let mut rest = text;
        for size in sizes.iter().cycle() {
            let (piece, after) = rest.split_at((*size).min(rest.len()));
            pieces.push(piece);
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(read(&pieces).unwrap(), read(&[text]).unwrap());
    }

    #[test]
    fn no_bytes_make_it_panic(text in prop::collection::vec(prop::sample::select(b"ab'\"$\\;-/*\n\tE.COPY FROM stdin(){}\0\r".to_vec()), 0..300), start in any::<bool>()) {
        let mut whole = if start { HEAD.as_bytes().to_vec() } else { Vec::new() };
        whole.extend_from_slice(&text);
        let one = read(&[&whole]);
        let pieces: Vec<&[u8]> = whole.chunks(1).collect();
        prop_assert_eq!(read(&pieces), one);
    }
}

#[test]
fn real_dumps_give_the_same_byte_by_byte() {
    for fixture in Fixture::all() {
        let text = fixture.dump_text();
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(read(&bytes).unwrap(), read(&[&text]).unwrap(), "{}", fixture.expected.version);
    }
}

#[test]
fn what_is_no_plain_dump_is_named() {
    for (text, name) in [
        (&b"PGDMP\x01\x0e\x00"[..], "custom format"),
        (b"toc.dat\0\0\0", "tar format"),
        (&[0x1F, 0x8B, 8, 0, 0, 0], "gzip"),
        (&[0x28, 0xB5, 0x2F, 0xFD, 0, 0], "zstd"),
        (&[0xFF, 0xFE, b'-', 0, b'-', 0], "UTF-16"),
        (b"hello, world\n", "another text"),
        (b"SELECT 1;\n--\n-- PostgreSQL database dump\n--\n", "another text"),
        (b"COPY public.asset (id) FROM stdin;\n1\n\\.\n", "another text"),
        (b"\\! rm -rf /\n", "another text"),
        (b"x", "another text"),
    ] {
        for pieces in [vec![text], text.chunks(1).collect()] {
            let error = read(&pieces).unwrap_err();
            assert!(matches!(error, NotWhole::NotADump { looks_like } if looks_like.contains(name)), "{} {error:?}", text.escape_ascii());
        }
    }
    assert_eq!(read(&[b"", b""]).unwrap_err(), NotWhole::Empty);
}

#[test]
fn what_a_terminal_or_a_damaged_disk_makes_of_a_dump_is_named() {
    let good = around("COPY public.asset (id) FROM stdin;\n1\n2\n\\.\n\nCOPY public.person (id) FROM stdin;\n1\n2\n\\.\n\n");
    let crlf = good.replace('\n', "\r\n");
    assert_eq!(read(&[crlf.as_bytes()]).unwrap_err(), NotWhole::CarriageReturn { line: 1 });
    for (place, text) in
        [("2\n\\.\n\nCOPY", "2\r\n\\.\n\nCOPY"), ("2\n\\.\n\n--", "2\r\n\\.\n\n--"), ("2\n\\.\n\n--", "2\n\\.\r\n\n--"), ("2\n\\.\n\nCOPY", "2\n\\.\r\n\nCOPY")]
    {
        assert!(good.contains(place));
        let bad = good.replace(place, text);
        let line = bad.split('\r').next().unwrap().matches('\n').count() as u64 + 1;
        assert_eq!(read(&[bad.as_bytes()]).unwrap_err(), NotWhole::CarriageReturn { line }, "{text:?}");
        let bytes: Vec<&[u8]> = bad.as_bytes().chunks(1).collect();
        assert_eq!(read(&bytes).unwrap_err(), NotWhole::CarriageReturn { line }, "{text:?}");
    }
    for at in [40, good.find("stdin;\n1").unwrap() + 7, good.rfind("\n2").unwrap() + 1, good.len() - 1] {
        let mut bad = good.clone().into_bytes();
        bad[at] = 0;
        let line = bad[..at].iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
        assert_eq!(read(&[&bad]).unwrap_err(), NotWhole::Nul { line }, "{at}");
    }
}

#[test]
fn what_pg_dump_does_not_write_is_refused() {
    for (middle, line) in [
        ("\\! touch /tmp/x\n", 12),
        ("\\connect other\n", 12),
        ("\\unrestrict other\n", 12),
        ("SELECT 1 \\gexec\n", 12),
        ("\nCOPY public.a FROM '/etc/passwd';\n", 13),
        ("COPY public.a FROM PROGRAM 'id';\n", 12),
        ("copy public.a from stdin with csv;\n1\n", 12),
        ("COPY public.a (b) FROM stdin; \n1\n", 12),
        ("COPY public.a (b) FROM stdin; SELECT 1;\n", 12),
        ("COPY/**/public.a (b) FROM stdin;\n", 12),
        ("COPY public.a (b) -- x\nFROM stdin;\n", 12),
        ("COPY public.a $$x$$ FROM stdin;\n", 12),
        ("--\n-- PostgreSQL database dump\n--\n", 13),
        ("--\n-- PostgreSQL database cluster dump complete\n--\n", 13),
    ] {
        let error = read(&[around(middle).as_bytes()]).unwrap_err();
        assert!(matches!(error, NotWhole::Odd { line: found, .. } if found == line), "{middle:?} {error:?}");
    }
    for after in ["SELECT 1;\n", "x", "-- more\n", "\\connect x\n", "--\n-- PostgreSQL database dump\n--\n"] {
        let text = format!("{}{after}", around(""));
        assert!(matches!(read(&[text.as_bytes()]).unwrap_err(), NotWhole::AfterTheEnd { .. }), "{after:?}");
    }
    // In lower case psql takes it too.
    let (whole, _) = read(&[around("copy public.a (b) from stdin;\n1\n\\.\n").as_bytes()]).unwrap();
    assert_eq!(rows(&whole, 0, "a"), Some(1));
    // Nor may a closing line stand alone: pg_dump frames it.
    let alone = format!("{HEAD}-- x\n-- PostgreSQL database dump complete\n\n\\unrestrict k3y\n");
    assert!(matches!(read(&[alone.as_bytes()]).unwrap_err(), NotWhole::NoClosingLine { .. }));
}

#[test]
fn a_row_may_have_any_length_where_nobody_wants_it_and_else_has_a_limit() {
    let long = vec![b'x'; 1 << 20];
    for (name, fails) in [("passed", false), ("asset", true)] {
        let mut scanner = Scanner::with(Recorder::default());
        scanner.feed(format!("{HEAD}COPY public.{name} (id) FROM stdin;\n1\n").as_bytes()).unwrap();
        let fed = (0..40).try_for_each(|_| scanner.feed(&long));
        if fails {
            let error = fed.unwrap_err();
            assert!(matches!(&error, NotWhole::RowTooLong { table, row: 2, .. } if table.name == name), "{error:?}");
            assert_eq!(scanner.feed(b"\n").unwrap_err(), error);
            assert_eq!(scanner.finish().unwrap_err(), error);
        } else {
            fed.unwrap();
            scanner.feed(format!("\n\\.\n\n{TAIL}").as_bytes()).unwrap();
            assert_eq!(rows(&scanner.finish().unwrap(), 0, name), Some(2));
        }
    }
}

#[test]
fn messages_say_where_a_dump_was_cut() {
    let text = around("COPY public.asset (id) FROM stdin;\n1\n2\n3\n\\.\n\n");
    let message = |end: usize| read(&[&text.as_bytes()[..end]]).unwrap_err().to_string();
    assert_eq!(message(text.find("\n3").unwrap() + 1), "the dump is cut in table `asset`, after 2 rows of it");
    assert_eq!(
        message(text.find("-- PostgreSQL database dump complete").unwrap()),
        "the dump is cut at line 18: pg_dump's closing line is not there; the last table that is whole is `asset`"
    );
}
