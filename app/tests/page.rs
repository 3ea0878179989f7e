//! The page in a real browser, of a real Immich's database: whether it says the truth, while it changes, and can be used by everybody.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

#[path = "support/browser.rs"]
mod browser;
#[path = "support/immich.rs"]
mod immich;
mod support;

use browser::{Browser, DESKTOP, PHONE};
use immich::{Immich, all, installed};
use serde_json::{Value, json};
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use support::{Running, World};
use tempfile::TempDir;

const PASSWORD: &str = "correct horse battery";

/// A port that nobody has.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn password_file(world: &World) -> PathBuf {
    let path = world.at("page-password");
    fs::write(&path, format!("{PASSWORD}\n")).unwrap();
    path
}

/// The daemon of this installation with its page.
fn daemon(immich: &Immich, address: &str, more: &[&str]) -> Command {
    let mut command = immich.world.command(&["daemon", "--json", "--schedule", "@yearly", "--listen", address, "--time-zone", "UTC", "--max-age", "26h"]);
    command.arg("--page-password-file").arg(password_file(&immich.world)).arg("--library").arg(&immich.world.library);
    command.args(all(&[&immich.external(), &immich.database], more));
    command
}

/// Where pictures go: the folder that IMMICH_BACKUP_SCREENSHOTS names, else one that nobody keeps.
struct Pictures {
    folder: PathBuf,
    _kept: Option<TempDir>,
}

impl Pictures {
    fn new() -> Self {
        match std::env::var_os("IMMICH_BACKUP_SCREENSHOTS") {
            Some(folder) => Self { folder: folder.into(), _kept: None },
            None => {
                let folder = tempfile::tempdir().unwrap();
                Self { folder: folder.path().to_owned(), _kept: Some(folder) }
            }
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("page-{name}.png"))
    }
}

fn started(immich: &Immich, more: &[&str]) -> (Running, String) {
    let address = free_address();
    let mut running = Running::start(daemon(immich, &address, more));
    assert!(running.until(|_| std::net::TcpStream::connect(&address).is_ok()), "{}", running.said());
    (running, format!("http://{address}"))
}

fn log_in(browser: &mut Browser) {
    browser.open("/");
    assert_eq!(browser.path(), "/login");
    browser.fill("#password", PASSWORD);
    browser.click("button");
    browser.until("h1", "");
}

/// The process of the job that runs.
fn job_of(running: &Running) -> Option<i32> {
    let tasks = fs::read_dir(format!("/proc/{}/task", running.pid())).ok()?;
    let children: String = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok()).collect();
    children.split_whitespace().next()?.parse().ok()
}

fn signal(pid: i32, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn stored(running: &Running) -> usize {
    running.said().matches("\"file_stored\"").count()
}

/// A backup as of so many days ago: the clock on the wall is set back for it, and no other.
fn backed_up_days_ago(immich: &Immich, days: u32) {
    let mut command = immich.backup_command(&[]);
    let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
    let library = if fs::exists(library).unwrap() { library } else { "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1" };
    command.env("LD_PRELOAD", library).env("FAKETIME", format!("-{days}d")).env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("NO_FAKE_STAT", "1");
    Running::start(command).wait().ended(0);
}

/// Pictures that came one day.
fn came(immich: &Immich, day: usize, count: usize) {
    for number in 0..count {
        immich.world.file(&format!("upload/holiday/{day:02}/{number:04}.jpg"), 20_000 + number * 37 % 9_000, day as u64);
    }
}

#[test]
fn the_page_says_whether_it_is_safe_and_changes_its_mind_and_shows_a_run_as_it_runs() {
    let Some((immich, server)) = installed() else { return };
    for (number, days) in [49, 40, 33, 18, 12, 2].into_iter().enumerate() {
        came(&immich, number, 6 + number * number * 5 % 13);
        backed_up_days_ago(&immich, days);
    }
    immich.world.run(&["verify", "--json", "--read-data", "--sample", "1/3"]).ended(0);
    let programs = server.programs();
    immich.world.run(&["drill", "--json", "--postgres-programs", programs.to_str().unwrap()]).ended(0);
    immich.backup(&[]).ended(0);
    let pictures = Pictures::new();
    let (running, base) = started(&immich, &[]);
    let mut browser = Browser::start(&base);

    // Whoever is not logged in sees nothing else.
    browser.window(DESKTOP, "light");
    browser.open("/timeline?before=9");
    assert_eq!(browser.path(), "/login");
    browser.assert_is_well("login");
    browser.shot(&pictures.file("login-desktop-light"), false);
    browser.fill("#password", "a wrong password");
    browser.does("press", json!({ "key": "Enter" }));
    browser.until("[role=alert]", "That is not the password.");
    browser.does("complaints", json!({}));
    browser.fill("#password", PASSWORD);
    browser.does("press", json!({ "key": "Enter" }));
    browser.until("h1", "Timeline");
    browser.assert_is_quiet("a login");
    let cookies = browser.does("cookies", json!({}));
    assert_eq!((&cookies[0]["httpOnly"], &cookies[0]["sameSite"]), (&json!(true), &json!("Strict")), "{cookies}");

    // Safe, in words, in every window and scheme, and on every page.
    browser.open("/");
    let expected = immich.expected();
    assert_eq!(browser.text(".verdict .word"), "Is it safe? Safe");
    assert_eq!(browser.text("h1"), format!("Every photo and video that Immich knows is in the backup: {0} of {0} proven.", expected.proven));
    let latest = immich.world.snapshots().pop().unwrap();
    let folder = format!("/snapshots/{latest}/files?root=&path=upload%2Fholiday");
    let external = format!("/snapshots/{latest}/files?root=nas&path=");
    let pages =
        [("overview", "/"), ("timeline", "/timeline"), ("snapshot", "/snapshots/latest"), ("folder", &folder), ("external", &external), ("now", "/now")];
    for window in [DESKTOP, PHONE] {
        for scheme in ["light", "dark"] {
            browser.window(window, scheme);
            for (name, path) in pages {
                browser.open(path);
                browser.assert_is_well(&format!("{name}, {}, {scheme}", window.name));
                browser.shot(&pictures.file(&format!("{name}-{}-{scheme}", window.name)), false);
            }
        }
    }

    // By keyboard alone: the first stop leads to the content, the second home.
    browser.window(DESKTOP, "light");
    browser.open("/");
    browser.does("press", json!({ "key": "Tab" }));
    assert_eq!(browser.does("focused", json!({})), "Skip to the content");
    browser.does("press", json!({ "key": "Enter" }));
    // Down to a file, through folders.
    browser.click("nav a[href='/snapshots/latest']");
    browser.click("table.files a");
    browser.until("h1", "Library");
    browser.click("table.files a >> text=upload");
    browser.until("h1", "upload");
    browser.click("table.files a >> text=holiday");
    browser.click("table.files a >> text=05");
    browser.until("table.files", "0000.jpg");
    browser.until("table.files .badge", "Untracked");
    browser.open(&external);
    browser.click("table.files a >> text=Trip 2019");
    browser.until("table.files", "Unprovable");

    // An original is lost, and a run notices.
    let lost = immich.plain_asset(0);
    let (path, original) = (immich.shown(&lost.original_path), immich.original(lost));
    let kept = immich.world.at("kept.jpg");
    fs::rename(&original, &kept).unwrap();
    immich.backup(&[]).ended(3);
    browser.open("/");
    assert_eq!(browser.text(".verdict .word"), "Is it safe? Not safe");
    assert_eq!(browser.text("h1"), "1 photo or video is missing from the backup.");
    browser.until("td.path", &path);
    browser.until("td.path", "An earlier version is in the repository.");
    for window in [DESKTOP, PHONE] {
        for scheme in ["light", "dark"] {
            browser.window(window, scheme);
            browser.open("/");
            browser.assert_is_well(&format!("not safe, {}, {scheme}", window.name));
            browser.shot(&pictures.file(&format!("unsafe-{}-{scheme}", window.name)), false);
        }
    }
    browser.open("/timeline");
    browser.until(".timeline .went", "1 went");
    drop(running);

    // A run, watched: its process is stopped in between, so that what is seen is what is so.
    fs::rename(&kept, &original).unwrap();
    came(&immich, 90, 2_500);
    let (mut running, base) = started(&immich, &["--run-now"]);
    assert!(running.until(|running| stored(running) > 50), "{}", running.said());
    let job = job_of(&running).unwrap();
    signal(job, rustix::process::Signal::STOP);
    let mut browser = Browser::start(&base);
    browser.window(DESKTOP, "light");
    log_in(&mut browser);
    assert!(browser.visible(".live"));
    browser.until(".live [data-text=phase]", "Storing what is new");
    browser.assert_is_well("a run on the overview");
    browser.open("/now");
    browser.until(".live [data-text=job]", "backup");
    browser.until(".live [data-text=path]", "upload/holiday/90/");
    let before = browser.text(".live [data-text=path]");
    browser.shot(&pictures.file("running-desktop-light"), false);
    let sofar = stored(&running);
    signal(job, rustix::process::Signal::CONT);
    assert!(running.until(|running| stored(running) > sofar + 300), "{}", running.said());
    signal(job, rustix::process::Signal::STOP);
    // Nobody loaded the page again.
    let mut after = before.clone();
    for _ in 0..600 {
        after = browser.text(".live [data-text=path]");
        if after != before {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_ne!(after, before);
    browser.window(PHONE, "dark");
    browser.open("/now");
    browser.assert_is_well("a run on a phone");
    browser.shot(&pictures.file("running-phone-dark"), false);
    browser.open("/");
    assert_eq!(browser.text(".verdict .word"), "Is it safe? Not safe");
    signal(job, rustix::process::Signal::CONT);
    // It ends, and the page says so by itself.
    browser.until(".verdict .word", "Safe");
    browser.until("h1", &format!("{0} of {0} proven.", expected.proven));
    assert!(!browser.visible(".live"));
    browser.assert_is_quiet("a run that ended");

    // Without a script it says the same.
    browser.does("window", json!({ "width": 1_280, "height": 900, "scheme": "light", "script": false }));
    browser.open("/");
    assert_eq!(browser.text(".verdict .word"), "Is it safe? Safe");
    browser.click("form[action='/logout'] button");
    assert_eq!(browser.path(), "/login");
    browser.open("/");
    assert_eq!(browser.path(), "/login", "logged out");
}

#[test]
fn a_page_without_a_backup_says_so_and_one_that_only_looks_needs_no_schedule() {
    let world = World::new();
    let address = free_address();
    let mut command = world.command(&["daemon", "--json", "--schedule", "@yearly", "--listen", &address, "--time-zone", "UTC", "--no-database"]);
    command.arg("--page-password-file").arg(password_file(&world)).arg("--library").arg(&world.library);
    let mut running = Running::start(command);
    assert!(running.until(|_| std::net::TcpStream::connect(&address).is_ok()), "{}", running.said());
    let pictures = Pictures::new();
    let mut browser = Browser::start(&format!("http://{address}"));
    browser.window(PHONE, "light");
    log_in(&mut browser);
    assert_eq!(browser.text(".verdict .word"), "Is it safe? Not known");
    browser.assert_is_well("nothing yet");
    browser.shot(&pictures.file("nothing-phone-light"), false);
    for (path, text) in [("/snapshots/latest", "Nothing here yet"), ("/now", "Nothing runs.")] {
        browser.open(path);
        browser.until("main", text);
        browser.assert_is_well(path);
    }
    world.pictures(20);
    world.backup(&[]).ended(0);
    browser.open("/");
    assert_eq!(browser.text(".verdict .word"), "Is it safe? Needs attention");
    browser.until("h1", "The backup has no database");
    drop(running);

    let address = free_address();
    let mut command = world.command(&["serve", "--listen", &address]);
    command.arg("--page-password-file").arg(password_file(&world));
    let mut running = Running::start(command);
    assert!(running.until(|_| std::net::TcpStream::connect(&address).is_ok()), "{}", running.said());
    let mut browser = Browser::start(&format!("http://{address}"));
    browser.window(DESKTOP, "dark");
    log_in(&mut browser);
    // It reads the log first.
    for _ in 0..600 {
        if browser.text(".verdict .word").ends_with("Needs attention") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
        browser.open("/");
    }
    browser.until("h1", "The backup has no database");
    browser.open("/now");
    browser.until("main", "Runs are shown where the daemon runs");
    browser.assert_is_well("a page that only looks");
    running.signal("TERM");
    running.wait().ended(0);
    // Without a password there is none.
    let ran = world.run(&["serve", "--listen", "127.0.0.1:0"]).ended(2);
    ran.says("--page-password-file");
    let missing = world.run(&["serve", "--listen", "127.0.0.1:0", "--page-password-file", "/nowhere"]).ended(2);
    assert!(missing.err.contains("cannot read --page-password-file") && Value::from(missing.out).as_str() == Some(""));
}
