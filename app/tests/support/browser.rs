//! A real Chromium, driven from here by way of `app/tests/browser/page.mjs`.

#![allow(dead_code, reason = "each test program uses its part of this")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The browser, with one window at a time. Gone when this is dropped.
pub struct Browser {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

/// Of a window.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    pub name: &'static str,
    pub width: u32,
    pub height: u32,
}

pub const PHONE: Window = Window { name: "phone", width: 390, height: 844 };
pub const DESKTOP: Window = Window { name: "desktop", width: 1_280, height: 900 };

fn tools() -> PathBuf {
    std::env::var_os("IMMICH_BACKUP_TEST_TOOLS").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-tools"), PathBuf::from)
}

impl Browser {
    /// One that knows the page at `base` and nothing else.
    pub fn start(base: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser/page.mjs");
        let installed = tools().join("browser");
        assert!(installed.join("node_modules").is_dir(), "there is no {}: `scripts/test` installs it", installed.display());
        let chromium = std::env::var("CHROMIUM").unwrap_or_else(|_| "/usr/bin/chromium".to_owned());
        let mut command = Command::new("node");
        command.arg(script).arg(installed.canonicalize().unwrap()).arg(chromium).arg(base).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("node");
        let (to, from) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, to, from }
    }

    /// Does something, and says what came of it.
    #[track_caller]
    pub fn does(&mut self, what: &str, given: Value) -> Value {
        let mut line = given;
        line["does"] = what.into();
        let to = self.to.as_mut().unwrap();
        writeln!(to, "{line}").unwrap();
        to.flush().unwrap();
        let mut answer = String::new();
        self.from.read_line(&mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{line}: {error}: {answer}"));
        assert!(answer["failed"].is_null(), "{line}: {}", answer["failed"].as_str().unwrap_or_default());
        answer["done"].clone()
    }

    pub fn window(&mut self, window: Window, scheme: &str) {
        self.does("window", json!({ "width": window.width, "height": window.height, "scheme": scheme }));
    }

    #[track_caller]
    pub fn open(&mut self, path: &str) {
        assert_eq!(self.does("open", json!({ "path": path })), 200, "{path}");
    }

    #[track_caller]
    pub fn fill(&mut self, at: &str, text: &str) {
        self.does("fill", json!({ "at": at, "text": text }));
    }

    #[track_caller]
    pub fn click(&mut self, at: &str) {
        self.does("click", json!({ "at": at }));
    }

    /// What is read there, in one line.
    #[track_caller]
    pub fn text(&mut self, at: &str) -> String {
        self.does("text", json!({ "at": at })).as_str().unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[track_caller]
    pub fn visible(&mut self, at: &str) -> bool {
        self.does("visible", json!({ "at": at })).as_bool().unwrap()
    }

    #[track_caller]
    pub fn path(&mut self) -> String {
        self.does("path", json!({})).as_str().unwrap().to_owned()
    }

    /// Waits until something there has this text.
    #[track_caller]
    pub fn until(&mut self, at: &str, text: &str) {
        self.does("until", json!({ "at": at, "text": text }));
    }

    /// The page shows nothing that axe calls serious, is not wider than its window, has said nothing on the console, and asked nobody else.
    #[track_caller]
    pub fn assert_is_well(&mut self, what: &str) {
        let found = self.does("axe", json!({}));
        let grave: Vec<_> = found.as_array().unwrap().iter().filter(|found| matches!(found["impact"].as_str(), Some("serious" | "critical"))).collect();
        assert!(grave.is_empty(), "{what}: {}", serde_json::to_string_pretty(&grave).unwrap());
        assert!(self.does("overflow", json!({})).as_i64().unwrap() <= 0, "{what} is wider than its window");
        self.assert_is_quiet(what);
    }

    #[track_caller]
    pub fn assert_is_quiet(&mut self, what: &str) {
        assert_eq!(self.does("complaints", json!({})), json!([]), "{what}");
        assert_eq!(self.does("elsewhere", json!({})), json!([]), "{what}");
    }

    /// What is seen, as a picture.
    #[track_caller]
    pub fn shot(&mut self, file: &Path, whole: bool) {
        self.does("shot", json!({ "file": file, "whole": whole }));
        let bytes = std::fs::read(file).unwrap();
        assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 8_000, "{}: {} bytes", file.display(), bytes.len());
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // At the end of its input it closes the browser, and ends.
        drop(self.to.take());
        drop(self.child.wait());
    }
}
