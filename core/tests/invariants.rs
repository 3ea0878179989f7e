//! What the architecture promises by absence, read off the sources. See ARCHITECTURE.md.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

use std::collections::BTreeMap;
use std::path::Path;

/// The sources below `folder` (relative to this crate), without comments and without what tests alone compile.
fn sources(folder: &str) -> BTreeMap<String, String> {
    fn collect(folder: &Path, found: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
                let lines: Vec<_> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
                let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
                found.insert(path.strip_prefix(root).unwrap_or(&path).to_str().unwrap().to_owned(), lines.join("\n"));
            }
        }
    }
    let mut found = BTreeMap::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut found);
    assert!(!found.is_empty(), "{folder} is not where it was");
    found
}

/// Sources of one module: its file and those in its folder.
fn module(name: &str) -> BTreeMap<String, String> {
    let of_module = |path: &String| *path == format!("{name}.rs") || path.starts_with(&format!("{name}/"));
    let found: BTreeMap<_, _> = sources("src").into_iter().filter(|(path, _)| of_module(path)).collect();
    assert!(!found.is_empty(), "there is no module {name}");
    found
}

/// The modules of this crate that a source names: `crate::a`, `crate::{a, b::c}`, and `super::…` that leads as far up.
fn modules_named(path: &str, code: &str) -> Vec<String> {
    let mut named = Vec::new();
    for (position, _) in code.match_indices("crate::") {
        let rest = &code[position + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => {
                let mut depth = 0;
                let mut start = true;
                for (index, character) in group.char_indices() {
                    match character {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        _ if start && character.is_alphabetic() => {
                            named.push(word(&group[index..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
            None => named.push(word(rest)),
        }
    }
    // How many `super::` lead out of the module at the top: `a/b.rs` is two deep.
    let depth = path.trim_end_matches(".rs").split('/').count();
    for (position, _) in code.match_indices(&"super::".repeat(depth)) {
        if !code[..position].ends_with("super::") {
            named.push(word(&code[position + 7 * depth..]));
        }
    }
    named
}

fn word(text: &str) -> String {
    text.chars().take_while(|character| character.is_alphanumeric() || *character == '_').collect()
}

/// The module `name` uses none of `others`, but for `exceptions`: (source, module).
fn uses_none_of(name: &str, others: &[&str], exceptions: &[(&str, &str)]) {
    for (path, code) in module(name) {
        for named in modules_named(&path, &code) {
            let allowed = exceptions.contains(&(path.as_str(), named.as_str()));
            assert!(allowed || !others.contains(&named.as_str()), "{path} uses `{named}`");
        }
    }
}

/// What a person asks for.
const OPERATIONS: [&str; 8] = ["backup", "verify", "restore", "drill", "find", "prune", "estimate", "repair"];

/// What operations are made of: they may use one another, and nothing that they are used by.
const PARTS: [&str; 4] = ["listing", "proof", "prove", "retention"];

fn all_but(names: &[&'static str], but: &[&str]) -> Vec<&'static str> {
    names.iter().chain(&OPERATIONS).chain(&PARTS).copied().filter(|name| !but.contains(name)).collect()
}

#[test]
fn this_test_sees_every_way_to_name_a_module() {
    let code =
        "use crate::backup::Plan;\nuse crate::{event::Event, model::{A, B}, verify};\nfn f() { crate::restore::run() }\nuse super::super::library::walk;\n";
    assert_eq!(modules_named("repository/open.rs", code), ["backup", "event", "model", "verify", "restore", "library"]);
    assert_eq!(modules_named("repository/log/read.rs", "use super::super::key;"), Vec::<String>::new());
}

#[test]
fn the_core_reads_no_environment_prints_nothing_and_never_exits() {
    let forbidden = [
        "std::env",
        "env::var",
        "env!(",
        "print!(",
        "println!(",
        "eprint!(",
        "eprintln!(",
        "dbg!(",
        "process::exit",
        "process::abort",
        "stdout()",
        "stderr()",
        "stdin()",
    ];
    for (path, code) in sources("src") {
        for word in forbidden {
            assert!(!code.contains(word), "{path} has `{word}`");
        }
    }
}

#[test]
fn nothing_is_unsafe() {
    for (path, code) in sources("src").into_iter().chain(sources("../app/src")) {
        // As a text it is a word like others.
        assert!(!code.replace("\"unsafe\"", "").split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe"), "{path} has `unsafe`");
    }
    let workspace = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml")).unwrap();
    assert!(workspace.contains("unsafe_code = \"forbid\""));
}

#[test]
fn the_model_uses_nothing_of_the_crate() {
    for (path, code) in module("model") {
        for named in modules_named(&path, &code) {
            assert_eq!(named, "model", "{path}");
        }
    }
}

#[test]
fn the_library_knows_nothing_of_a_repository_or_an_operation() {
    uses_none_of("library", &all_but(&["repository", "database"], &[]), &[]);
}

#[test]
fn the_repository_knows_nothing_of_an_operation_and_of_the_library_only_what_a_path_means() {
    // The manifest keeps totals by class, and what class a path has is known to the layout alone.
    uses_none_of("repository", &all_but(&["library", "database"], &[]), &[("repository/manifest/apply.rs", "library")]);
    let apply = &sources("src")["repository/manifest/apply.rs"];
    assert_eq!(apply.matches("crate::library").count(), apply.matches("crate::library::layout::class_of").count());
}

#[test]
fn what_knows_postgresql_knows_nothing_of_an_operation() {
    // A dump is sent to a store and read from it; what a derived file is, the layout knows.
    uses_none_of("database", &all_but(&["backup"], &[]), &[]);
}

#[test]
fn the_stack_knows_of_the_database_only_how_one_is_reached_and_nothing_of_a_repository() {
    uses_none_of("stack", &all_but(&["library", "repository"], &[]), &[]);
    // Whether a database is ready, only it can say.
    for (path, code) in module("stack").into_iter().filter(|(path, _)| path != "stack/ready.rs") {
        assert_eq!(code.matches("crate::database").count(), code.matches("crate::database::connection::").count(), "{path}");
    }
    for (path, code) in module("database") {
        assert_eq!(code.matches("crate::stack").count(), code.matches("crate::stack::engine::").count(), "{path}");
    }
}

#[test]
fn the_proof_and_the_retention_ask_nobody() {
    // What they compare is handed to them: types of the inventory and the repository, and no connection to anything.
    for part in ["proof", "retention"] {
        uses_none_of(part, &all_but(&[], &[part]), &[]);
        for (path, code) in module(part).into_iter().filter(|(path, _)| !path.ends_with("/tests.rs")) {
            for word in ["async ", "rusqlite", "std::fs", "Timestamp::now", "Session", "dyn Store"] {
                assert!(!code.contains(word), "{path} has `{word}`");
            }
        }
    }
    for part in ["prove", "listing"] {
        uses_none_of(part, &OPERATIONS, &[]);
    }
}

#[test]
fn no_operation_uses_another() {
    for operation in OPERATIONS {
        let others: Vec<_> = OPERATIONS.into_iter().filter(|other| *other != operation).collect();
        uses_none_of(operation, &others, &[]);
    }
}

#[test]
fn every_module_has_its_place() {
    // A new one at the top has to be given its rules here.
    let known = [
        "backup",
        "budget",
        "crash",
        "database",
        "drill",
        "durable",
        "estimate",
        "event",
        "find",
        "library",
        "listing",
        "model",
        "proof",
        "prove",
        "prune",
        "repair",
        "repository",
        "restore",
        "retention",
        "stack",
        "target",
        "task",
        "told",
        "verdict",
        "verify",
    ];
    let code = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let mut modules: Vec<_> = code.lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';')).collect();
    // One is public for tests alone, and stands there twice.
    modules.dedup();
    assert_eq!(modules, known);
    uses_none_of("event", &all_but(&["library", "repository", "database"], &[]), &[]);
    uses_none_of("verdict", &all_but(&["library", "repository", "database"], &[]), &[]);
}

#[test]
fn the_program_starts_in_thirty_lines() {
    let main = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../app/src/main.rs")).unwrap();
    assert!(main.lines().count() <= 30);
}
