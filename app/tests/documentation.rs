//! The documentation says what the program does: settings, command lines and links.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What one command takes: flag → names in the environment, default.
type Flags = BTreeMap<String, (Vec<String>, Option<String>)>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn help(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_immich-backup")).args(arguments).arg("--help").output().unwrap();
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn commands() -> Vec<String> {
    let text = help(&[]);
    let list = text.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// What stands between `[name: ` and `]`.
fn bracket<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.split(&format!("[{name}: ")).nth(1)?.split(']').next()
}

fn flags_of(command: &str) -> Flags {
    let text = help(&[command]);
    let mut blocks: Vec<(String, String)> = Vec::new();
    for line in text.lines().take_while(|line| !line.starts_with("Exit codes")) {
        let line = line.trim();
        let long = line.split_whitespace().take(2).find_map(|word| word.strip_prefix("--").filter(|_| line.starts_with('-')));
        match (long, blocks.last_mut()) {
            (Some(name), _) => blocks.push((name.to_owned(), line.to_owned())),
            (None, Some((_, block))) => *block = format!("{block} {line}"),
            (None, None) => {}
        }
    }
    let own = blocks.into_iter().filter(|(name, _)| name != "help");
    own.map(|(name, text)| {
        let environment = bracket(&text, "env").map_or_else(Vec::new, |names| names.split(", ").map(str::to_owned).collect());
        (name, (environment, bracket(&text, "default").map(str::to_owned)))
    })
    .collect()
}

/// The parts of `text` between backticks.
fn codes(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The table of docs/configuration.md, turned round: what it says each command takes.
fn documented(commands: &[String]) -> BTreeMap<String, Flags> {
    let text = fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let mut all: BTreeMap<String, Flags> = BTreeMap::new();
    for row in text.lines().filter(|line| line.starts_with("| `")) {
        let row = row.replace("\\|", "/");
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, flag, environment, default, takers, ..] = cells[..] else { panic!("not a row of the table: {row}") };
        let name = codes(flag).find_map(|code| code.strip_prefix("--")).unwrap().split(' ').next().unwrap().to_owned();
        let environment: Vec<_> = codes(environment).map(str::to_owned).collect();
        let default = codes(default).next().map(str::to_owned);
        let takers: Vec<_> = if takers == "all" { commands.to_vec() } else { codes(takers).map(str::to_owned).collect() };
        for command in takers {
            all.entry(command).or_default().insert(name.clone(), (environment.clone(), default.clone()));
        }
    }
    all
}

#[test]
fn the_table_of_settings_is_that_of_the_program() {
    let commands = commands();
    let documented = documented(&commands);
    assert!(commands.len() >= 8, "{commands:?}");
    for command in &commands {
        assert_eq!(flags_of(command), documented[command], "left: what `{command} --help` says; right: what docs/configuration.md says");
    }
    assert_eq!(documented.keys().collect::<BTreeSet<_>>(), commands.iter().collect::<BTreeSet<_>>());
}

fn documents(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && (name == ".github" || !name.starts_with('.')) {
                documents(&path, found);
            }
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
}

fn all_documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    documents(&root(), &mut found);
    assert!(found.len() >= 8, "{found:?}");
    found
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_')).collect::<String>();
    kept.replace(' ', "-")
}

#[test]
fn every_link_within_the_documentation_leads_somewhere() {
    let mut broken = Vec::new();
    for document in all_documents() {
        let text = fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { document.clone() } else { document.parent().unwrap().join(path) };
            let headings =
                || fs::read_to_string(&target).unwrap_or_default().lines().any(|line| line.starts_with('#') && anchor(line.trim_start_matches('#')) == heading);
            if !target.exists() || (!heading.is_empty() && !headings()) {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The command lines of this program in a line of text: the words after its name, up to the end of the command.
fn command_lines(line: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (start, name) in line.match_indices("immich-backup ") {
        let before = line[..start].chars().next_back();
        if !before.is_none_or(|c| matches!(c, ' ' | '`' | '/' | '=' | '"' | '\'')) {
            continue;
        }
        let rest = line[start + name.len()..].split(['`', '#']).next().unwrap();
        let words = rest.split_whitespace().take_while(|word| !matches!(*word, "|" | "||" | "&&" | ">" | ";" | "\\"));
        let words: Vec<_> = words.map(|word| word.trim_end_matches(['"', ',', ';', '.', ':']).to_owned()).collect();
        if words.first().is_some_and(|word| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase())) {
            found.push(words);
        }
    }
    found
}

/// The names of a flag that stands in a row of docs/configuration.md by its one letter.
fn short_flags() -> BTreeMap<String, String> {
    let text = fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `-") && !line.starts_with("| `--"));
    rows.map(|row| {
        let mut flags = codes(row);
        let (short, long) = (flags.next().unwrap(), flags.next().unwrap());
        (short.to_owned(), long.trim_start_matches("--").split(' ').next().unwrap().to_owned())
    })
    .collect()
}

#[test]
fn every_command_line_in_the_documentation_uses_what_exists() {
    let known: BTreeMap<String, Flags> = commands().into_iter().map(|command| (command.clone(), flags_of(&command))).collect();
    let short = short_flags();
    let (mut lines, mut wrong) = (0, Vec::new());
    for document in all_documents() {
        let text = fs::read_to_string(&document).unwrap();
        let mut fenced = false;
        for line in text.lines() {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
            }
            // In prose, only what stands between backticks is a command line.
            let spans: Vec<&str> = if fenced { vec![line] } else { codes(line).collect() };
            for words in spans.into_iter().flat_map(command_lines) {
                lines += 1;
                let Some(flags) = known.get(&words[0]) else {
                    wrong.push(format!("{}: there is no command `{}`", document.display(), words[0]));
                    continue;
                };
                for word in words.iter().filter(|word| word.starts_with('-')) {
                    let name = short.get(word).map_or_else(|| word.trim_start_matches("--"), String::as_str);
                    let name = name.split('=').next().unwrap();
                    if !flags.contains_key(name) && name != "help" {
                        wrong.push(format!("{}: `{}` does not take {word}", document.display(), words[0]));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(lines >= 20, "only {lines} command lines were found");
}

/// The sources that have tests.
fn sources(folder: &Path, found: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

/// Whether `name` could be a test's: a sentence in small letters, perhaps cut with an ellipsis.
fn is_sentence(name: &str) -> bool {
    name.matches('_').count() >= 3 && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '…'))
}

/// Whether `name` is `function`, but for what an ellipsis stands for.
fn is_cut_of(name: &str, function: &str) -> bool {
    let mut rest = function;
    for (number, part) in name.split('…').enumerate() {
        match rest.find(part) {
            Some(at) if number > 0 || at == 0 => rest = &rest[at + part.len()..],
            _ => return false,
        }
    }
    name.ends_with('…') || rest.is_empty()
}

#[test]
fn every_test_that_holds_a_promise_in_the_documentation_exists() {
    let mut code = String::new();
    for member in ["core", "app", "sample", "testbed"] {
        sources(&root().join(member), &mut code);
    }
    let functions: BTreeSet<&str> = code.split("fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next()).collect();
    let (mut named, mut missing) = (0, Vec::new());
    for document in ["SECURITY.md", "docs/reliability.md"] {
        let text = fs::read_to_string(root().join(document)).unwrap();
        for name in text.lines().flat_map(codes) {
            if is_sentence(name) {
                named += 1;
                let exists = functions.iter().any(|function| is_cut_of(name, function));
                if !exists {
                    missing.push(format!("{document}: there is no test `{name}`"));
                }
            }
            // A file of tests, named by its path.
            if name.contains("/tests/") && !root().join(name).exists() {
                missing.push(format!("{document}: there is no `{name}`"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(named >= 80, "only {named} tests were found named");
}
