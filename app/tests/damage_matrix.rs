//! Each kind of object, damaged in each way, and what the program says of it: the tables of docs/damage.md, which are made here and compared.
//!
//! `IMMICH_BACKUP_WRITE_DOCS=1 scripts/test -j 1 damage_matrix` writes them anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, clippy::print_stderr, reason = "a test may")]

mod support;

use immich_backup_core::model::Sha256;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::{Ran, Running, Tree, World, copy, forge_entry, remove, settle, tool, write};

/// Stands between two things that were said; in no message.
const SEPARATOR: &str = "\u{1}";

/// Worlds that are damaged at the same time.
const AT_ONCE: usize = 2;

/// A world that is whole: three snapshots, one of each kind of object, and what was there before.
struct Whole {
    world: World,
    /// What each snapshot has to restore to: the library, oldest first.
    snapshots: Vec<(String, Tree)>,
    /// What a run says of this world even if nothing is damaged.
    usual: Vec<String>,
    /// The state folder as it was after the first run, and a state folder of another repository.
    earlier_state: PathBuf,
    other: World,
}

/// A stack whose library lies beside its folder.
const COMPOSE: &str = "services:\n  immich-server:\n    image: ghcr.io/immich-app/immich-server:v3.1.0\n    volumes: ['${UPLOAD_LOCATION}:/data']\n";

/// The name that is too long for a key of its own.
fn long() -> String {
    format!("upload/u/{}", "%".repeat(200))
}

impl Whole {
    fn new() -> Self {
        let world = World::in_memory();
        world.markers();
        for path in ["upload/u/original.jpg", "upload/u/sibling.jpg", "upload/u/changed.jpg", "upload/u/planned.jpg", &long(), "upload/u/other.jpg"] {
            drop(world.file(path, 300, 1));
        }
        for path in ["thumbs/u/derived.webp", "thumbs/u/other.webp", "upload/u/original.jpg.xmp", "upload/u/sibling.jpg.xmp"] {
            drop(world.file(path, 200, 1));
        }
        // One in twenty may change before a run asks whether that was meant.
        for number in 0..15 {
            drop(world.file(&format!("upload/u/more/{number:02}.jpg"), 20, 1));
        }
        write(&world.at("nas/external.jpg"), &[7; 300], 1_400_000_000, 0, 0o644);
        write(&world.at("stack/docker-compose.yml"), COMPOSE.as_bytes(), 1_400_000_000, 0, 0o644);
        write(&world.at("stack/.env"), b"UPLOAD_LOCATION=../library\n", 1_400_000_000, 0, 0o644);
        settle();
        let mut snapshots = vec![back_up(&world, &[])];
        let earlier_state = world.at("earlier-state");
        copy(&world.own_state(), &earlier_state);
        // Versions, and enough more for a second copy of the manifest.
        drop(world.file("upload/u/changed.jpg", 300, 2));
        for number in 0..6 {
            drop(world.file(&format!("upload/u/later/{number}.jpg"), 100, 2));
        }
        snapshots.push(back_up(&world, &[]));
        put_dumps(&world);
        drop(world.file(&long(), 300, 3));
        drop(world.file("upload/u/third.jpg", 300, 3));
        snapshots.push(back_up(&world, &[]));
        let other = World::new();
        drop(other.file("upload/x.jpg", 10, 1));
        other.backup(&["--no-database"]).ended(0);
        let mut whole = Self { world, snapshots, usual: Vec::new(), earlier_state, other };
        let copied = whole.copied();
        whole.usual = words(&backup_command(&copied, &[]).ended(0), &copied);
        whole
    }

    /// A copy of the world, which may be damaged.
    fn copied(&self) -> World {
        let mut copied = World::in_memory();
        tool("cp", &["-a".as_ref(), self.world.at("nas").as_os_str(), self.world.at("stack").as_os_str(), copied.at("").as_os_str()]);
        for (from, to) in [(&self.world.library, &copied.library), (&self.world.state, &copied.state)] {
            remove(to);
            copy(from, to);
        }
        // Objects are never written to, so links to them will do; damage puts other files in their place.
        tool("cp", &["-al".as_ref(), self.world.repository.as_os_str(), copied.repository.as_os_str()]);
        copied.environment.clone_from(&self.world.environment);
        copied
    }

    fn key(&self, start: &str) -> String {
        let mut found: Vec<_> = keys(&self.world).into_iter().filter(|key| key.starts_with(start)).collect();
        found.sort();
        found.pop().unwrap_or_else(|| panic!("no {start}"))
    }
}

/// All keys of the repository.
fn keys(world: &World) -> Vec<String> {
    Tree::of(&world.repository).0.into_keys().map(|key| String::from_utf8(key).unwrap()).collect()
}

fn back_up(world: &World, more: &[&str]) -> (String, Tree) {
    let ran = backup_command(world, more).ended(0);
    (ran.snapshot(), world.tree())
}

fn backup_command(world: &World, more: &[&str]) -> Ran {
    let external = format!("nas={}", world.at("nas").display());
    let stack = world.at("stack");
    // The library is the one that the stack's files name, so these belong to the backup.
    let arguments = [&["backup", "--init", "--json", "--external", &external, "--immich-dir", stack.to_str().unwrap(), "--no-database"], more].concat();
    Running::start(world.command(&arguments)).wait()
}

/// Two dumps, as a run of another machine would have left them.
fn put_dumps(world: &World) {
    let mut facts = vec![r#"{"fact":"run_started","at":"2026-01-15T03:00:00Z","host":"other","roots":[{"path":"/photos"}]}"#.to_owned()];
    for day in [14, 15] {
        let text = format!("--\n-- PostgreSQL database dump\n--\n\nSET x = {day};\n\n--\n-- PostgreSQL database dump complete\n--\n\n");
        let key = format!("database/2026-01-{day}T03-00-00Z-immich-v3.1.0.sql.zst");
        let (plain, packed) = (world.at("dump.sql"), world.repository.join(&key));
        fs::write(&plain, &text).unwrap();
        fs::create_dir_all(packed.parent().unwrap()).unwrap();
        tool("zstd", &["-q".as_ref(), plain.as_os_str(), "-o".as_ref(), packed.as_os_str()]);
        let bytes = fs::read(&packed).unwrap();
        facts.push(format!(
            r#"{{"fact":"dump","key":"{key}","sha256":"{}","size":{},"plain_size":{},"taken_at":"2026-01-{day}T03:00:00Z","immich_version":"3.1.0","rows":0}}"#,
            Sha256::of(&bytes),
            bytes.len(),
            text.len()
        ));
    }
    facts.push(r#"{"fact":"run_ended","outcome":"interrupted","reason":"it was stopped"}"#.to_owned());
    forge_entry(world, &facts.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Puts other bytes in the place of a file, or none; what is linked to it elsewhere stays.
fn put(path: &Path, bytes: Option<&[u8]>) {
    remove(path);
    if let Some(bytes) = bytes {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// What is done to a world. The name says the way.
struct Damage {
    way: &'static str,
    apply: Box<dyn Fn(&World) + Send + Sync>,
}

fn damage(way: &'static str, apply: impl Fn(&World) + Send + Sync + 'static) -> Damage {
    Damage { way, apply: Box::new(apply) }
}

/// A part of the repository or the state folder, and all that is done to it.
struct Kind {
    name: &'static str,
    /// The object that is damaged and the file that it holds, and the other one that some ways take part of; empty where it is none.
    object: String,
    path: String,
    sibling: String,
    sibling_path: String,
    damages: Vec<Damage>,
}

/// The plain ways: missing, empty, truncated, one bit.
fn plain(path: impl Fn(&World) -> PathBuf + Clone + Send + Sync + 'static, bit_at: fn(usize) -> usize) -> Vec<Damage> {
    let with = |way, change: fn(&mut Vec<u8>)| {
        let path = path.clone();
        damage(way, move |world| {
            let path = path(world);
            let mut bytes = fs::read(&path).unwrap();
            change(&mut bytes);
            put(&path, Some(&bytes));
        })
    };
    let (gone, flipped) = (path.clone(), path.clone());
    vec![
        damage("missing", move |world| put(&gone(world), None)),
        with("empty", Vec::clear),
        with("truncated", |bytes| bytes.truncate(bytes.len() / 2)),
        damage("one bit flipped", move |world| {
            let path = flipped(world);
            let mut bytes = fs::read(&path).unwrap();
            let at = bit_at(bytes.len());
            bytes[at] ^= 1;
            put(&path, Some(&bytes));
        }),
    ]
}

/// An object: the plain ways, exchanged with `sibling`, and replaced by the bytes of `older`.
fn object(name: &'static str, (key, path): (&str, &str), (sibling, sibling_path): (&str, &str), older: &str) -> Kind {
    let at = |key: &str| {
        let key = key.to_owned();
        move |world: &World| world.repository.join(&key)
    };
    let mut damages = plain(at(key), |length| length / 2);
    let (one, two, from) = (at(key), at(sibling), at(older));
    let to = one.clone();
    damages.push(damage("swapped with a sibling", move |world| {
        let (one, two) = (one(world), two(world));
        let (first, second) = (fs::read(&one).unwrap(), fs::read(&two).unwrap());
        put(&one, Some(&second));
        put(&two, Some(&first));
    }));
    damages.push(damage("an older one put back", move |world| put(&to(world), Some(&fs::read(from(world)).unwrap()))));
    let texts = [key, path, sibling, sibling_path].map(str::to_owned);
    let [object, path, sibling, sibling_path] = texts;
    Kind { name, object, path, sibling, sibling_path, damages }
}

/// No object, but a place for several.
fn place(name: &'static str, damages: Vec<Damage>) -> Kind {
    Kind { name, object: String::new(), path: String::new(), sibling: String::new(), sibling_path: String::new(), damages }
}

/// What one row says.
struct Row {
    way: String,
    cells: [String; 6],
}

/// What the program said, without what differs from run to run: warnings, errors, findings.
fn words(ran: &Ran, world: &World) -> Vec<String> {
    let summary = ran.summary();
    let mut words: Vec<String> = ran.events("warned").iter().map(|event| format!("warning: {}", event["message"].as_str().unwrap())).collect();
    let texts = |name: &str| summary[name].as_array().cloned().unwrap_or_default();
    words.extend(texts("errors").iter().map(|error| error["message"].as_str().unwrap().to_owned()));
    words.extend(texts("problems").iter().map(|problem| problem.as_str().unwrap().to_owned()));
    for finding in texts("findings") {
        let replaced = if finding["replaced"] == true { " (what it should hold is stored elsewhere too)" } else { "" };
        words.push(format!("`{}`: {}{replaced}", finding["key"].as_str().unwrap(), finding["problem"].as_str().unwrap()));
    }
    words.extend(texts("failures").iter().map(|failure| format!("`{}`: {}", failure["path"].as_str().unwrap(), failure["problem"].as_str().unwrap())));
    words.extend(texts("unnamed").iter().map(|key| format!("no log entry names `{}`", key.as_str().unwrap())));
    words.iter().map(|text| settled(text, world)).collect()
}

/// Folders, ids, digests and times as the document has them.
fn settled(text: &str, world: &World) -> String {
    let mut text = text.replace(world.own_state_or_none().as_str(), "STATE").replace(world.repository.to_str().unwrap(), "REPOSITORY");
    text = text.replace(world.state.to_str().unwrap(), "STATE").replace(world.at("").to_str().unwrap(), "/").replace(&"%25".repeat(200), "%25…");
    let mut out = String::new();
    let mut word = String::new();
    for character in text.chars().chain(['\0']) {
        if character.is_ascii_hexdigit() && !character.is_ascii_uppercase() || (character == '-' && word.len() >= 8) {
            word.push(character);
            continue;
        }
        let digest = word.len() >= 16 && word.chars().any(|c| c.is_ascii_digit());
        out.push_str(if digest { "…" } else { &word });
        word.clear();
        if character != '\0' {
            out.push(character);
        }
    }
    out
}

trait OwnState {
    fn own_state_or_none(&self) -> String;
}

impl OwnState for World {
    fn own_state_or_none(&self) -> String {
        let folders = fs::read_dir(&self.state).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut folders: Vec<_> = folders.filter(|path| path.is_dir() && !path.ends_with("places")).collect();
        folders.sort();
        folders.first().map_or_else(|| "no state folder".to_owned(), |path| path.display().to_string())
    }
}

fn cell(whole: &Whole, kind: &Kind, ran: &Ran, world: &World) -> String {
    let words = words(ran, world).into_iter().filter(|text| !whole.usual.contains(text));
    let mut said = words.collect::<Vec<_>>().join(SEPARATOR);
    // The damaged object, and the file that it holds: whichever it is, it is named.
    for (name, key, path) in [("OBJECT", &kind.object, &kind.path), ("SIBLING", &kind.sibling, &kind.sibling_path)] {
        if !path.is_empty() {
            // What is left out of a restore is named first, and then its object.
            said = said.replace(&format!("`{}`: its object", settled(&path.replace('%', "%25"), world)), &format!("FILE OF {name}: its object"));
        }
        if !key.is_empty() {
            said = said.replace(&format!("`{}`", settled(key, world)), name);
        }
    }
    let mut said: Vec<_> = said.split(SEPARATOR).map(without_sizes).collect();
    // Of two objects that are read at once, either may be told first.
    said.sort();
    let said = said.join(SEPARATOR);
    if said.is_empty() { ran.code.to_string() } else { format!("{} {said}", ran.code) }
}

/// `it has 0 bytes instead of 300` and `at line 1 column 73`, without the numbers.
fn without_sizes(text: &str) -> String {
    let text = text.split(" at line ").next().unwrap_or(text);
    if text.contains(" bytes instead of ") {
        let words = text.split(' ').map(|word| if word.bytes().all(|byte| byte.is_ascii_digit()) { "N" } else { word });
        return words.collect::<Vec<_>>().join(" ");
    }
    text.to_owned()
}

fn restore_to(world: &World, to: &Path, more: &[&str]) -> Ran {
    let external = format!("nas={}", to.with_extension("nas").display());
    let config = to.with_extension("config");
    let config = config.to_str().unwrap().to_owned();
    world.restore(to, &[&["--external", &external, "--config-to", &config], more].concat())
}

/// Damages the world, asks every command, and holds against it what must hold whatever they say.
fn row(whole: &Whole, kind: &Kind, damage: &Damage, local: bool) -> Row {
    let what = format!("{}, {}", kind.name, damage.way);
    let damaged = || {
        let world = whole.copied();
        (damage.apply)(&world);
        world
    };
    let world = damaged();
    let verify = cell(whole, kind, &world.run(&["verify", "--json"]), &world);
    let world = damaged();
    let read = cell(whole, kind, &world.run(&["verify", "--read-data", "--json"]), &world);
    let world = damaged();
    let status = cell(whole, kind, &world.run(&["status", "--json"]), &world);

    // On another machine, which has no state: that is when a restore is needed. What is local is damaged where it is, of course.
    let mut world = damaged();
    if !local {
        world.state = world.at("fresh-state");
    }
    let to = world.at("restored");
    let ran = restore_to(&world, &to, &[]);
    let restore = cell(whole, kind, &ran, &world);
    assert_nothing_wrong(whole, kind, &ran, &to, &what);
    if ran.code == 11 && !local && whole.world.repository.join("format.json").exists() {
        restore_the_part_before(whole, &world, &ran, &what);
    }

    // A run with new and changed files, then a look at every byte, and another run: what the library still has is in the repository again.
    let world = damaged();
    let new = world.file("upload/u/new.jpg", 300, 4);
    drop(world.file("upload/u/planned.jpg", 300, 4));
    assert!(new.exists());
    let before = inventory(&world);
    let backup = backup_command(&world, &[]);
    let backed_up = cell(whole, kind, &backup, &world);
    assert_written_once(&before, &world, &what);
    let healed = if backup.code == 0 {
        heal(world, &before, &what, verify.starts_with("11") || restore.starts_with("11"))
    } else {
        assert_eq!(before, inventory(&world), "{what}: a run that failed left something in the repository");
        "-".to_owned()
    };
    Row { way: damage.way.to_owned(), cells: [verify, read, restore, backed_up, status, healed] }
}

/// Looks at every byte and backs up again; says what another machine gets of it then.
fn heal(mut world: World, before: &BTreeMap<Vec<u8>, (u64, u64)>, what: &str, log_is_damaged: bool) -> String {
    world.run(&["verify", "--read-data", "--json"]);
    let again = backup_command(&world, &[]);
    assert_eq!(again.code, 0, "{what}\n{}", again.told());
    assert_written_once(before, &world, what);
    let tree = world.tree();
    world.state = world.at("fresh-state");
    let to = world.at("healed");
    let ran = restore_to(&world, &to, &[]);
    if log_is_damaged && ran.code == 11 {
        return "11: the log is not healed by a run".to_owned();
    }
    assert_eq!(ran.code, 0, "{what}: what the library has does not come back\n{}", ran.told());
    Tree::of(&to).without("backups").assert_is(&tree, what);
    let verified = world.run(&["verify", "--read-data", "--json"]);
    if log_is_damaged && verified.code == 11 {
        // A copy of the manifest stands for what is damaged before it.
        return "all, but the log is not healed by a run".to_owned();
    }
    if verified.number("/lost") == 0 { "all".to_owned() } else { "all that the library has".to_owned() }
}

/// Each object: its size and inode.
fn inventory(world: &World) -> BTreeMap<Vec<u8>, (u64, u64)> {
    let tree = Tree::of(&world.repository).without("tmp");
    tree.0.into_iter().map(|(key, leaf)| (key, (leaf.size, leaf.inode))).collect()
}

/// No object that was there is another one now, and none is gone.
fn assert_written_once(before: &BTreeMap<Vec<u8>, (u64, u64)>, world: &World, what: &str) {
    let now = inventory(world);
    for (key, found) in before {
        assert_eq!(now.get(key), Some(found), "{what}: {} was touched", String::from_utf8_lossy(key));
    }
}

/// Whatever was restored is, file by file, what some snapshot held; what is lacking was named, and is what the damaged object held.
fn assert_nothing_wrong(whole: &Whole, kind: &Kind, ran: &Ran, to: &Path, what: &str) {
    let found = if to.exists() { Tree::of(to).without("backups") } else { Tree::default() };
    if !matches!(ran.code, 0 | 3 | 12) {
        assert_eq!(found.len(), 0, "{what}: a restore that was refused wrote something\n{}", ran.told());
        return;
    }
    let lacking = |tree: &Tree| -> Vec<String> {
        tree.0.keys().filter(|path| !found.0.contains_key(*path)).map(|path| String::from_utf8_lossy(path).into_owned()).collect()
    };
    // The newest that is as complete: a log without its end holds earlier ones.
    let (_, tree) =
        whole.snapshots.iter().rev().min_by_key(|(_, tree)| lacking(tree).len() + found.0.keys().filter(|path| !tree.0.contains_key(*path)).count()).unwrap();
    for (path, leaf) in &found.0 {
        let meant = tree.0.get(path).unwrap_or_else(|| panic!("{what}: {} is of no snapshot", String::from_utf8_lossy(path)));
        assert_eq!((leaf.sha256, leaf.size, leaf.mtime_ns, leaf.mode), (meant.sha256, meant.size, meant.mtime_ns, meant.mode), "{what}");
    }
    let lacking = lacking(tree);
    let failures: Vec<_> = ran.summary()["failures"].as_array().unwrap().iter().map(|failure| failure["path"].as_str().unwrap().to_owned()).collect();
    for path in &lacking {
        assert!([&kind.path, &kind.sibling_path].contains(&path), "{what}: {path} is lost, and need not be\n{}", ran.told());
        let canonical = path.replace('%', "%25");
        assert!(failures.contains(&canonical), "{what}: {path} was not restored, and not named: {failures:?}");
    }
    assert_eq!(ran.code == 0, failures.is_empty(), "{what}\n{}", ran.told());
}

/// A damaged log says up to where it is good: that much comes back, whole.
fn restore_the_part_before(whole: &Whole, world: &World, ran: &Ran, what: &str) {
    let hint = ran.summary()["errors"][0]["hint"].as_str().unwrap_or_default().to_owned();
    let Some(until) = hint.split("--until ").nth(1).map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>()) else { return };
    let to = world.at("part");
    let part = restore_to(world, &to, &["--until", &until]);
    if part.code == 0 {
        let found = Tree::of(&to).without("backups");
        let same = whole.snapshots.iter().any(|(_, tree)| {
            tree.len() == found.len()
                && tree.0.iter().all(|(path, leaf)| found.0.get(path).is_some_and(|found| found.sha256 == leaf.sha256 && found.mtime_ns == leaf.mtime_ns))
        });
        assert!(same, "{what}: --until {until} restores what no snapshot was");
    } else {
        // There is no snapshot in that part.
        assert!(until.parse::<u64>().unwrap() < first_snapshot(whole), "{what}\n{}", part.told());
    }
}

/// The number of the entry that has the first snapshot.
fn first_snapshot(whole: &Whole) -> u64 {
    let entries = 1..=whole.world.entries();
    entries
        .into_iter()
        .find(|sequence| tool("zstd", &["-dcq".as_ref(), whole.world.entry(*sequence).as_os_str()]).out.contains(r#"{"fact":"snapshot""#))
        .unwrap()
}

/// The rows of all kinds, made by a few threads.
fn rows(whole: &Whole, kinds: &[Kind], local: bool) -> Vec<(&'static str, Vec<Row>)> {
    let jobs: Vec<(usize, usize)> = kinds.iter().enumerate().flat_map(|(kind, one)| (0..one.damages.len()).map(move |damage| (kind, damage))).collect();
    let (next, made) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((kind, damage)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let row = row(whole, &kinds[*kind], &kinds[*kind].damages[*damage], local);
                    made.lock().unwrap().insert((*kind, *damage), row);
                }
            });
        }
    });
    let mut made = made.into_inner().unwrap();
    assert_eq!(made.len(), jobs.len());
    kinds
        .iter()
        .enumerate()
        .map(|(number, kind)| (kind.name, (0..kind.damages.len()).map(|damage| made.remove(&(number, damage)).unwrap()).collect()))
        .collect()
}

/// The table and its words, as Markdown. Rows that say the same are one.
fn table(rows: &[(&'static str, Vec<Row>)]) -> String {
    let mut notes: Vec<String> = Vec::new();
    let mut out = "| what | how | `verify` | `verify --read-data` | `restore` | `backup` | `status` | after `verify --read-data` and another `backup` |\n|---|---|---|---|---|---|---|---|\n".to_owned();
    for (name, rows) in rows {
        let mut merged: Vec<(String, &[String; 6])> = Vec::new();
        for row in rows {
            match merged.iter_mut().find(|(_, cells)| **cells == row.cells) {
                Some((ways, _)) => write!(ways, "; {}", row.way).unwrap(),
                None => merged.push((row.way.clone(), &row.cells)),
            }
        }
        for (index, (ways, cells)) in merged.into_iter().enumerate() {
            let shown: Vec<_> = cells.iter().map(|cell| noted(cell, &mut notes)).collect();
            writeln!(out, "| {} | {ways} | {} |", if index == 0 { name } else { "" }, shown.join(" | ")).unwrap();
        }
    }
    out.push('\n');
    for (number, note) in notes.iter().enumerate() {
        writeln!(out, "{}. {note}", number + 1).unwrap();
    }
    out
}

/// The exit code, and the numbers of what is said.
fn noted(cell: &str, notes: &mut Vec<String>) -> String {
    let Some((code, said)) = cell.split_once(' ').filter(|(code, _)| code.parse::<i32>().is_ok()) else { return cell.to_owned() };
    let numbers: Vec<_> = said
        .split(SEPARATOR)
        .map(|text| {
            let number = notes.iter().position(|note| note == text).unwrap_or_else(|| {
                notes.push(text.to_owned());
                notes.len() - 1
            });
            (number + 1).to_string()
        })
        .collect();
    format!("{code} ({})", numbers.join(", "))
}

/// The document says what was seen.
fn assert_documented(section: &str, rows: &[(&'static str, Vec<Row>)]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/damage.md");
    let text = fs::read_to_string(&path).unwrap();
    let (begin, end) = (format!("<!-- begin {section} -->\n"), format!("<!-- end {section} -->"));
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("docs/damage.md has no part {section}"));
    let (documented, after) = rest.split_once(&end).unwrap();
    let made = format!("\n{}\n", table(rows));
    if std::env::var_os("IMMICH_BACKUP_WRITE_DOCS").is_some() {
        fs::write(&path, format!("{before}{begin}{made}{end}{after}")).unwrap();
    } else {
        assert!(
            documented == made,
            "docs/damage.md, {section}: IMMICH_BACKUP_WRITE_DOCS=1 scripts/test -j 1 damage_matrix writes it anew; it would be\n{made}"
        );
    }
}

#[test]
fn what_is_said_of_damaged_content_is_documented_and_no_other_file_is_lost() {
    let whole = Whole::new();
    let version = whole.key("versions/upload/u/changed.jpg/");
    // The content that stands, and the one before it.
    let stands = Sha256::of(&fs::read(whole.world.library.join(long())).unwrap()).to_string();
    let (hashed, older_hashed): (Vec<_>, Vec<_>) =
        keys(&whole.world).into_iter().filter(|key| key.starts_with("versions/%hashed/")).partition(|key| key.ends_with(&stands));
    let (hashed, older_hashed) = (&hashed[0], &older_hashed[0]);
    let sibling = ("library/upload/u/sibling.jpg", "upload/u/sibling.jpg");
    let other_thumbnail = ("library/thumbs/u/other.webp", "thumbs/u/other.webp");
    let other_sidecar = ("library/upload/u/sibling.jpg.xmp", "upload/u/sibling.jpg.xmp");
    let (dump, earlier_dump) = (whole.key("database/"), keys(&whole.world).into_iter().find(|key| key.starts_with("database/")).unwrap());
    let kinds = [
        object("an original, at its path", ("library/upload/u/original.jpg", "upload/u/original.jpg"), sibling, "library/upload/u/other.jpg"),
        object("an original, in `versions/`", (&version, "upload/u/changed.jpg"), sibling, "library/upload/u/changed.jpg"),
        object("an original, under a hashed key", (hashed, &long()), sibling, older_hashed),
        object("a derived file", ("library/thumbs/u/derived.webp", "thumbs/u/derived.webp"), other_thumbnail, other_thumbnail.0),
        object("a sidecar", ("library/upload/u/original.jpg.xmp", "upload/u/original.jpg.xmp"), other_sidecar, other_sidecar.0),
        object("the configuration", ("config/docker-compose.yml", "config/docker-compose.yml"), ("config/.env", "config/.env"), "config/.env"),
        object("a dump", (&dump, ""), (&earlier_dump, ""), &earlier_dump),
    ];
    assert_documented("content", &rows(&whole, &kinds, false));
}

#[test]
fn what_is_said_of_a_damaged_log_is_documented_and_the_part_before_comes_back() {
    let whole = Whole::new();
    let last = whole.world.entries();
    let entry = |sequence: u64| format!("log/{sequence:010}.ndjson.zst");
    let middle = last / 2;
    let mut identity = plain(|world| world.repository.join("format.json"), |_| 5);
    let other = fs::read(whole.other.repository.join("format.json")).unwrap();
    identity.push(damage("that of another repository", move |world| put(&world.repository.join("format.json"), Some(&other))));
    let newest_copy = whole.key("manifests/");
    let older_copy = keys(&whole.world).into_iter().find(|key| key.starts_with("manifests/")).unwrap();
    assert_ne!(newest_copy, older_copy);
    let kinds = [
        place("`format.json`", identity),
        object("the first log entry", (&entry(1), ""), (&entry(2), ""), &entry(2)),
        object("one in the middle", (&entry(middle), ""), (&entry(middle + 1), ""), &entry(middle - 1)),
        object("the last one", (&entry(last), ""), (&entry(last - 1), ""), &entry(last - 1)),
        object("the newest copy of the manifest", (&newest_copy, ""), (&older_copy, ""), &older_copy),
    ];
    assert_documented("log", &rows(&whole, &kinds, false));
}

#[test]
fn what_is_said_of_damaged_local_state_is_documented_and_the_repository_says_it_all() {
    let whole = Whole::new();
    let kind = |name: &'static str, file: &'static str| {
        let path = move |world: &World| world.own_state().join(file);
        // In the head of SQLite's file; inside, a bit is content.
        let mut damages = plain(path, |_| 0);
        let earlier = whole.earlier_state.join(file);
        damages.push(damage("an older one put back", move |world| put(&path(world), Some(&fs::read(&earlier).unwrap()))));
        let foreign = whole.other.own_state().join(file);
        damages.push(damage("that of another repository", move |world| put(&path(world), Some(&fs::read(&foreign).unwrap()))));
        place(name, damages)
    };
    let earlier = whole.earlier_state.clone();
    let folder = place(
        "the state folder",
        vec![
            damage("missing", |world| remove(&world.state)),
            damage("an older one put back", move |world| {
                let own = world.own_state();
                remove(&own);
                copy(&earlier, &own);
            }),
        ],
    );
    let kinds = [kind("`manifest.db`", "manifest.db"), kind("`seen.json`, the head that was seen", "seen.json"), kind("`writer`", "writer"), folder];
    assert_documented("state", &rows(&whole, &kinds, true));
}

#[test]
fn what_is_said_of_objects_that_a_thief_created_is_documented_and_they_cost_nothing() {
    let whole = Whole::new();
    let next = whole.world.entries() + 1;
    let planned = {
        // The content that the next run stores.
        let world = whole.copied();
        Sha256::of(&fs::read(world.file("upload/u/planned.jpg", 300, 4)).unwrap()).to_string()
    };
    let newest_copy = whole.key("manifests/");
    let create = |way: &'static str, key: String| {
        damage(way, move |world: &World| {
            let path = world.repository.join(&key);
            assert!(!path.exists(), "a key that may only create cannot have this name");
            put(&path, Some(b"written by a thief"));
        })
    };
    let in_log = place(
        "in `log/`",
        vec![
            create("bytes under the next number", format!("log/{next:010}.ndjson.zst")),
            create("bytes under a later number", format!("log/{:010}.ndjson.zst", next + 5)),
            damage("an entry under the next number, that follows and says nothing", |world| {
                forge_entry(world, &[]);
            }),
            damage("an entry under the next number, that says that a file is gone", |world| {
                forge_entry(world, &[r#"{"fact":"archived","path":"upload/u/original.jpg"}"#]);
            }),
            damage("a second entry of the last number, by its name with a run", move |world| {
                let last = fs::read(world.entry(next - 1)).unwrap();
                put(&world.repository.join(format!("log/{:010}-6fa459ea-ee8a-4ca4-894e-db77e160355e.ndjson.zst", next - 1)), Some(&last));
            }),
            create("a name that is no entry's", "log/readme.txt".to_owned()),
        ],
    );
    let elsewhere = place(
        "elsewhere",
        vec![
            create("the home of a file that is to come", "library/upload/u/new.jpg".to_owned()),
            create("the version of a file that is to come", format!("versions/upload/u/planned.jpg/{}", &planned[..16])),
            create("bytes under the name of a copy of the manifest as of the next entry", format!("manifests/{next:010}.db.zst")),
            create("bytes under the name of a copy of the manifest as of a later entry", format!("manifests/{:010}.db.zst", next + 50)),
            damage("a manifest that says so, under that name", move |world| put_later_copy(world, &newest_copy, next + 50)),
            create("a dump", "database/2030-01-01T03-00-00Z-immich-v3.1.0.sql.gz".to_owned()),
            create("a file in `tmp/`", "tmp/x".to_owned()),
            create("a file where nothing is expected", "library/upload/u/stray.jpg".to_owned()),
            create("a name beside all that", "readme.txt".to_owned()),
        ],
    );
    assert_documented("created", &rows(&whole, &[in_log, elsewhere], false));
}

/// A copy of the manifest that was changed to know of entries which are not there.
fn put_later_copy(world: &World, of: &str, sequence: u64) {
    let (plain, packed) = (world.at("forged.db"), world.repository.join(format!("manifests/{sequence:010}.db.zst")));
    tool("zstd", &["-dq".as_ref(), world.repository.join(of).as_os_str(), "-o".as_ref(), plain.as_os_str()]);
    tool("sqlite3", &["-batch".as_ref(), plain.as_os_str(), std::ffi::OsStr::new(&format!("\nUPDATE manifest_metadata SET last_sequence = {sequence}"))]);
    tool("zstd", &["-q".as_ref(), plain.as_os_str(), "-o".as_ref(), packed.as_os_str()]);
}
