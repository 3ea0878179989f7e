//! What the program says to programs and to people.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "a test may"
)]

mod support;

use serde_json::Value;
use std::fs;
use std::path::Path;
use support::{Ran, Running, World, program, remove, write};

/// Every line is JSON; the last, and only the last, is the summary, and it tells the real exit code.
#[track_caller]
fn speaks_json(ran: &Ran, command: &str) -> Value {
    let lines = ran.lines();
    let summaries = lines.iter().filter(|line| line["type"] == "summary").count();
    assert_eq!(summaries, 1, "{}", ran.told());
    let summary = ran.summary();
    assert_eq!(summary["command"], command);
    assert_eq!(summary["outcome"] == "done", ran.code == 0, "{summary}");
    for line in &lines {
        assert!(line["type"].is_string(), "{line}");
    }
    assert_eq!(ran.err, "", "something was said beside the JSON lines");
    // These two have words of their own for what is wrong.
    let told = ["checks", "problems"].iter().any(|name| summary[*name].as_array().is_some_and(|list| !list.is_empty()));
    if matches!(ran.code, 1 | 2 | 10 | 11) && !told {
        assert!(summary["errors"][0]["message"].as_str().is_some_and(|message| !message.is_empty()), "{summary}");
    }
    summary
}

#[test]
fn every_command_speaks_json_and_ends_with_its_exit_code() {
    let world = World::new();
    world.pictures(10);
    let library = world.library.to_str().unwrap().to_owned();
    let to = world.at("restored");
    let to = to.to_str().unwrap();
    let all: &[(&[&str], i32)] = &[
        (&["ls"], 10),
        (&["snapshots"], 10),
        (&["status"], 10),
        (&["verify"], 10),
        (&["restore", "--to", to], 10),
        (&["doctor", "--library", &library], 10),
        (&["backup", "--library", &library], 10),
        (&["init"], 0),
        (&["init"], 1),
        (&["status"], 1),
        (&["ls"], 1),
        (&["snapshots"], 0),
        (&["restore", "--to", to], 1),
        (&["backup", "--library", &library, "--dry-run"], 0),
        (&["backup", "--library", &library], 0),
        (&["backup", "--library", &library], 0),
        (&["backup", "--library", "/nonexistent"], 1),
        (&["backup"], 2),
        (&["backup", "--library", &library, "--workers", "x"], 2),
        (&["ls"], 0),
        (&["ls", "upload/u0"], 0),
        (&["ls", "--summary"], 0),
        (&["ls", "--archived"], 0),
        (&["ls", "--snapshot", "ffff"], 1),
        (&["snapshots"], 0),
        (&["status"], 0),
        (&["status", "--max-age", "1h"], 0),
        (&["verify"], 0),
        (&["verify", "--read-data", "--sample", "1/2"], 0),
        (&["verify", "--read-data"], 0),
        (&["restore", "--to", to, "--dry-run"], 0),
        (&["restore", "--to", to], 0),
        (&["restore", "--to", to], 0),
        (&["doctor", "--library", &library], 0),
        (&["ls", "--show-config"], 0),
    ];
    for (arguments, code) in all {
        let ran = world.run(&[arguments, &["--json"][..]].concat()).ended(*code);
        speaks_json(&ran, arguments[0]);
    }
    // Damage, a withheld snapshot, a damaged log.
    fs::remove_file(world.repository.join("library/upload/u0/00/00000.jpg")).unwrap();
    for number in 1..8 {
        remove(&world.library.join(format!("upload/u{}/{:02x}/{number:05}.jpg", number % 3, number % 16)));
    }
    speaks_json(&world.run(&["verify", "--json"]).ended(12), "verify");
    speaks_json(&world.run(&["status", "--json"]).ended(12), "status");
    let withheld = speaks_json(&world.backup(&[]).ended(4), "backup");
    assert!(withheld["withheld"].as_str().unwrap().contains("originals"));
    fs::remove_file(world.entry(2)).unwrap();
    remove(&world.state);
    remove(&world.repository.join("manifests"));
    for command in ["ls", "status", "snapshots", "verify"] {
        speaks_json(&world.run(&[command, "--json"]).ended(11), command);
    }
    // By the environment, too.
    let mut command = world.command(&["ls"]);
    command.env("IMMICH_BACKUP_JSON", "true");
    speaks_json(&Running::start(command).wait().ended(11), "ls");
}

#[test]
fn arguments_that_cannot_be_understood_are_named() {
    let world = World::new();
    let ran = world.run(&["backup", "--json", "--no-such-flag"]).ended(2);
    assert!(ran.err.contains("--no-such-flag"), "{}", ran.told());
}

#[test]
fn the_manifest_answers_with_sqlite3_what_people_ask() {
    let world = World::new();
    world.pictures(20);
    // Twins.
    write(&world.library.join("library/a/one.jpg"), b"the same", 1_500_000_000, 0, 0o644);
    write(&world.library.join("library/b/two.jpg"), b"the same", 1_600_000_000, 0, 0o644);
    write(&world.library.join("library/it's 100% \"ü\".jpg"), b"odd", 1_500_000_000, 0, 0o644);
    let first = world.backup(&["--label", "before", "--immich-version", "3.1.0"]).ended(0).snapshot();
    fs::remove_file(world.library.join("upload/u0/00/00000.jpg")).unwrap();
    world.file("upload/u1/01/00001.jpg", 777, 9);
    world.file("library/new.jpg", 778, 9);
    world.backup(&[]).ended(0);

    assert_eq!(world.ask("SELECT file_path FROM files WHERE archived"), "upload/u0/00/00000.jpg");
    // One row a path, however many versions it had.
    assert_eq!(world.ask("SELECT count(*), count(DISTINCT file_path) FROM files"), "29|29");
    assert_eq!(world.ask("SELECT checksum, size, archived FROM files WHERE file_path = 'library/a/one.jpg'"), format!("{}|8|0", sha256(b"the same")));
    // In whatever order the folders were met.
    let twins = "SELECT file_path FROM files WHERE NOT archived AND checksum IN (SELECT checksum FROM files WHERE NOT archived GROUP BY 1 HAVING count(*) > 1) ORDER BY 1";
    assert_eq!(world.ask(twins), "library/a/one.jpg\nlibrary/b/two.jpg");
    let since = format!("(SELECT sequence FROM snapshots WHERE id = '{first}')");
    assert_eq!(world.ask(&format!("SELECT DISTINCT file_path FROM versions WHERE since > {since} ORDER BY 1")), "library/new.jpg\nupload/u1/01/00001.jpg");
    assert_eq!(world.ask(&format!("SELECT count(*) FROM versions WHERE since <= {since} AND (until IS NULL OR until > {since})")), "28");
    assert_eq!(world.ask("SELECT label, files FROM snapshots ORDER BY sequence LIMIT 1"), "before|28");
    assert_eq!(world.ask("SELECT version, length(last_backup) > 0, immich_version FROM manifest_metadata").split('|').nth(1), Some("1"));
    assert_eq!(
        world.ask("SELECT object_key FROM versions WHERE file_path = 'library/b/two.jpg'").split('/').next_back(),
        Some("one.jpg").filter(|_| first_is_one(&world)).or(Some("two.jpg"))
    );
    // The README's own questions, word for word.
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let sql = readme.split("```sql\n").nth(1).and_then(|rest| rest.split("```").next()).expect("the README has questions in SQL");
    let questions: Vec<_> = sql.split(';').map(str::trim).filter(|question| !question.is_empty()).collect();
    assert_eq!(questions.len(), 3, "what is archived, what changed, duplicates");
    assert_eq!(world.ask(questions[0]).split('|').next(), Some("upload/u0/00/00000.jpg"));
    let changed = world.ask(&questions[1].replace("352fcaf3", &first[..8]));
    let mut changed: Vec<_> = changed.lines().collect();
    changed.sort_unstable();
    assert_eq!(
        changed,
        [
            "library/new.jpg|stored",
            "upload/u0/00/00000.jpg|replaced or archived",
            "upload/u1/01/00001.jpg|replaced or archived",
            "upload/u1/01/00001.jpg|stored"
        ]
    );
    assert_eq!(world.ask(questions[2]), "2|8|library/a/one.jpg");
    // The copy in the repository answers alike.
    let copy = fs::read_dir(world.repository.join("manifests")).unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
    let plain = world.at("copy.db");
    support::tool("zstd", &["-q".as_ref(), "-d".as_ref(), copy.as_os_str(), "-o".as_ref(), plain.as_os_str()]);
    let counted = support::tool("sqlite3", &[plain.as_os_str(), "SELECT count(*) FROM files".as_ref()]).out;
    assert!(matches!(counted.trim(), "28" | "29"), "{counted}");
}

fn first_is_one(world: &World) -> bool {
    world.repository.join("library/library/a/one.jpg").exists()
}

fn sha256(bytes: &[u8]) -> String {
    immich_backup_core::model::Sha256::of(bytes).to_string()
}

#[test]
fn ls_shows_files_folders_globs_archived_ones_and_sums() {
    let world = World::new();
    world.pictures(10);
    world.file("thumbs/u/a.webp", 1_000, 0);
    let one = world.backup(&[]).ended(0).snapshot();
    fs::remove_file(world.library.join("upload/u0/00/00000.jpg")).unwrap();
    world.backup(&[]).ended(0);
    let files = |arguments: &[&str]| {
        let ran = world.run(&[&["ls", "--json"], arguments].concat()).ended(0);
        ran.events("file").iter().map(|file| file["path"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(files(&[]).len(), 15);
    assert_eq!(files(&["--snapshot", &one]).len(), 16);
    assert_eq!(files(&["upload/u1"]).len(), 3);
    assert_eq!(files(&["upload/u1/"]).len(), 3);
    assert_eq!(files(&["/upload/u1"]).len(), 3);
    assert_eq!(files(&["**/*.webp"]), ["thumbs/u/a.webp"]);
    assert_eq!(files(&["--archived"]), ["upload/u0/00/00000.jpg"]);
    assert_eq!(files(&["--archived", "--snapshot", &one]), Vec::<String>::new());
    assert_eq!(files(&["no/such"]), Vec::<String>::new());
    let people = world.run(&["ls"]).ended(0);
    assert_eq!(people.out.lines().count(), 15);
    people.says("thumbs/u/a.webp").says("1.00 kB");
    let sums = world.run(&["ls", "--summary"]).ended(0).says("total in snapshot").says("derived").says("original").says("marker");
    assert!(sums.out.lines().last().unwrap().contains("15"), "{}", sums.told());
    let sums = world.run(&["ls", "--summary", "--json"]).ended(0);
    assert_eq!(sums.number("/files"), 15);
    let file = &world.run(&["ls", "--json", "thumbs/u/a.webp"]).ended(0).events("file")[0];
    assert_eq!((file["size"].as_u64(), file["class"].as_str()), (Some(1_000), Some("derived")));
    assert_eq!(file["sha256"], sha256(&fs::read(world.library.join("thumbs/u/a.webp")).unwrap()));
}

#[test]
fn names_that_would_play_with_a_terminal_are_shown_encoded() {
    let world = World::new();
    write(&world.library.join("upload/\u{1b}[31mred\n.jpg"), b"x", 1_500_000_000, 0, 0o644);
    world.backup(&["--label", "\u{1b}[31mlabel"]).ended(0);
    for arguments in [&["ls"][..], &["snapshots"], &["status"], &["ls", "--json"]] {
        let ran = world.run(arguments).ended(0);
        assert!(!ran.out.contains('\u{1b}') && !ran.err.contains('\u{1b}'), "{}", ran.told());
    }
    world.run(&["ls"]).ended(0).says("%1B[31mred%0A.jpg");
}

#[test]
fn snapshots_and_status_tell_ages_and_what_is_wrong() {
    let world = World::new();
    world.pictures(10);
    world.run(&["init"]).ended(0);
    world.run(&["status"]).ended(1).says("there is no snapshot yet");
    world.run(&["snapshots"]).ended(0).says("no snapshot");
    let id = world.backup(&["--label", "first one"]).ended(0).snapshot();
    let ran = world.run(&["snapshots"]).ended(0).says(&id[..8]).says("first one").says("15 files");
    assert_eq!(ran.out.lines().count(), 1);
    world.run(&["status"]).ended(0).says("sound").says("never").says("s ago");
    world.run(&["status", "--max-age", "26h"]).ended(0);
    std::thread::sleep(std::time::Duration::from_millis(1_200));
    let ran = world.run(&["status", "--max-age", "1s"]).ended(1).says("NOT WELL");
    assert!(!ran.out.contains("older than 0 h"), "an age in whole hours says nothing here\n{}", ran.told());
    world.run(&["verify", "--read-data"]).ended(0).says("sound");
    let ran = world.run(&["status"]).ended(0);
    assert!(!ran.out.contains("never"), "{}", ran.told());
    world.run(&["doctor", "--library", world.library.to_str().unwrap()]).ended(0).says("all six folders").says("log");
    remove(&world.library.join("profile"));
    world.run(&["doctor", "--library", world.library.to_str().unwrap()]).ended(0).says("profile/.immich");
    world.run(&["doctor", "--library", "/nonexistent"]).ended(1).says("BAD");
}

#[test]
fn a_dry_run_of_a_backup_says_what_would_be_done_and_does_nothing() {
    let world = World::new();
    world.pictures(20);
    world.backup(&[]).ended(0);
    let entries = world.entries();
    world.file("upload/u0/new.jpg", 500, 1);
    fs::remove_file(world.library.join("upload/u0/00/00000.jpg")).unwrap();
    remove(&world.library.join("upload/u1"));
    let ran = world.backup(&["--dry-run"]).ended(0);
    assert_eq!((ran.number("/files/new"), ran.number("/files/archived")), (1, 8), "{}", ran.told());
    assert_eq!(world.entries(), entries);
    assert!(ran.summary()["snapshot"].is_null());
    world.run(&["backup", "--dry-run", "--library", world.library.to_str().unwrap()]).ended(0).says("nothing was done").says("archived");
    // Without a repository, a dry run makes none.
    let fresh = World::new();
    fresh.pictures(1);
    fresh.backup(&["--dry-run"]).ended(10);
    assert!(!fresh.repository.exists());
}

#[test]
fn show_config_tells_where_each_value_comes_from() {
    let world = World::new();
    let file = world.at("c.toml");
    fs::write(&file, "workers = 7\nlabel = 'from file'\nexclude = ['a', 'b']\n").unwrap();
    let mut command = world.command(&["backup", "--show-config", "--config", file.to_str().unwrap(), "--label", "from flag"]);
    command.env("UPLOAD_LOCATION", "/photos").env("IMMICH_BACKUP_WAIT", "3m");
    let ran = Running::start(command).wait().ended(0);
    let line = |name: &str| ran.out.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}\n{}", ran.told())).to_owned();
    assert!(line("label").contains("from flag") && line("label").contains("command line"));
    assert!(line("workers").contains('7') && line("workers").contains("c.toml"));
    assert!(line("library").contains("/photos") && line("library").contains("UPLOAD_LOCATION"));
    assert!(line("wait").contains("3m") && line("wait").contains("IMMICH_BACKUP_WAIT"));
    assert!(line("exclude").contains("a, b"));
    assert!(line("rehash").contains("not set"));
    assert!(!world.repository.exists() && !world.state.exists(), "--show-config did something");
}

#[test]
fn names_that_people_have_in_their_environment_are_read() {
    for library in ["LIBRARY_DIR", "UPLOAD_LOCATION", "IMMICH_BACKUP_LIBRARY"] {
        let world = World::new();
        world.pictures(3);
        let mut command = program();
        command
            .args(["backup", "--init", "--json"])
            .env(library, &world.library)
            .env("IMMICH_BACKUP_REPOSITORY", &world.repository)
            .env("IMMICH_BACKUP_STATE_DIR", &world.state)
            .env("UPLOAD_WORKERS", "2")
            .env("BACKUP_DATE", "2026-01-15")
            .env("IMMICH_VERSION", "v3.1.0");
        Running::start(command).wait().ended(0);
        let line = world.run(&["snapshots", "--json"]).ended(0).events("snapshot").remove(0);
        assert_eq!((line["fact"]["label"].as_str(), line["fact"]["immich_version"].as_str()), (Some("2026-01-15"), Some("v3.1.0")));
        world.assert_restores("latest", &world.tree());
    }
    let world = World::new();
    world.pictures(1);
    let mut command = world.backup_command(&[]);
    command.env("UPLOAD_WORKERS", "lots");
    Running::start(command).wait().ended(2).says("UPLOAD_WORKERS").says("lots");
}

#[test]
fn a_configuration_file_is_found_and_a_typo_in_it_is_named() {
    let world = World::new();
    world.pictures(2);
    let folder = world.at("config");
    let text = format!(
        "repository = '{}'\nstate_dir = '{}'\nlibrary = '{}'\ninit = true\n",
        world.repository.display(),
        world.state.display(),
        world.library.display()
    );
    write(&folder.join("immich-backup.toml"), text.as_bytes(), 1, 0, 0o644);
    let mut command = program();
    command.arg("backup").current_dir(&folder);
    Running::start(command).wait().ended(0);
    let mut command = program();
    command.arg("ls").env("XDG_CONFIG_HOME", &folder);
    Running::start(command).wait().ended(0).says("upload/u0/00/00000.jpg");
    write(&folder.join("immich-backup.toml"), b"repositori = 'x'\n", 1, 0, 0o644);
    let mut command = program();
    command.arg("ls").current_dir(&folder);
    Running::start(command).wait().ended(2).says("`repositori`");
}

#[test]
fn help_man_pages_and_completions_are_there() {
    let mut command = program();
    command.arg("--help");
    let help = Running::start(command).wait().ended(0).says("Exit codes").out;
    let beside = Path::new(env!("CARGO_BIN_EXE_immich-backup")).parent().unwrap();
    for name in ["init", "backup", "snapshots", "ls", "status", "verify", "restore", "doctor"] {
        assert!(help.contains(name));
        let page = fs::read_to_string(beside.join(format!("man/immich-backup-{name}.1"))).unwrap();
        assert!(page.contains(".TH") && page.contains("repository"), "{name}");
        let mut command = program();
        command.args([name, "--help"]);
        Running::start(command).wait().ended(0).says("Exit codes").says("IMMICH_BACKUP_REPOSITORY");
    }
    assert!(beside.join("man/immich-backup.1").exists());
    for name in ["immich-backup.bash", "_immich-backup", "immich-backup.fish"] {
        let script = fs::read_to_string(beside.join("completions").join(name)).unwrap();
        assert!(script.contains("restore") && script.contains("read-data"), "{name}");
    }
    support::tool("bash", &["-n".as_ref(), beside.join("completions/immich-backup.bash").as_os_str()]);
    let mut command = program();
    command.arg("--version");
    Running::start(command).wait().ended(0).says(env!("CARGO_PKG_VERSION"));
}

#[test]
fn quiet_says_only_the_result_and_what_is_wrong_verbose_names_every_file() {
    let world = World::new();
    world.pictures(3);
    let library = world.library.to_str().unwrap();
    let loud = world.run(&["backup", "--init", "-v", "--library", library]).ended(0);
    assert!(loud.err.contains("upload/u0/00/00000.jpg"), "{}", loud.told());
    let quiet = world.run(&["backup", "-q", "--library", library]).ended(0);
    assert_eq!(quiet.err, "", "{}", quiet.told());
    let plain = world.run(&["backup", "--library", library]).ended(0);
    assert!(!plain.err.contains('\u{1b}') && !plain.err.contains('\r'), "no bars where there is no terminal\n{}", plain.told());
    assert!(!plain.err.contains("00000.jpg"));
}

#[test]
fn a_reader_that_goes_away_does_no_harm() {
    let world = World::new();
    world.pictures(500);
    world.backup(&[]).ended(0);
    let mut command = support::clean(std::process::Command::new("bash"));
    let line = format!(
        "set -o pipefail; {} ls -r {} --state-dir {} | head -n 1",
        env!("CARGO_BIN_EXE_immich-backup"),
        world.repository.display(),
        world.state.display()
    );
    command.args(["-c", &line]);
    let ran = Running::start(command).wait().ended(0);
    assert_eq!((ran.out.lines().count(), ran.err.as_str()), (1, ""));
}

/// Names of the places in the core's sources at which a test build stops dead.
fn places_to_die_at(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            places_to_die_at(&path, found);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        found.extend(code.filter_map(|line| Some(line.split_once("crash_point!(\"")?.1.split_once('"')?.0.to_owned())));
    }
}

#[test]
fn the_program_has_no_place_at_which_tests_let_it_die() {
    let mut names = Vec::new();
    places_to_die_at(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/src"), &mut names);
    assert!(names.len() > 30, "they are not where they were: {names:?}");
    let list = tempfile::NamedTempFile::new().unwrap();
    fs::write(list.path(), names.join("\n") + "\n").unwrap();
    let look = |there: &Path| {
        let mut grep = std::process::Command::new("grep");
        grep.args(["-a", "-o", "-F", "-f"]).arg(list.path()).arg(there);
        Running::start(grep).wait()
    };
    look(list.path()).ended(0);
    look(Path::new(env!("CARGO_BIN_EXE_immich-backup"))).ended(1);
}
