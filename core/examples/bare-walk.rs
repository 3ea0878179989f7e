//! What looking at every file costs without a backup around it: walks a folder in parallel and asks the file system for size and times of each file, with
//! the code that backups use. `bench/compare` compares repeated backups with it.
//!
//! `bare-walk FOLDER`
#![allow(clippy::print_stdout, reason = "it is a program of its own")]

use immich_backup_core::library::tree::Tree;
use immich_backup_core::library::walk::{self, Visitor};
use immich_backup_core::model::FileTimes;
use std::error::Error;
use std::io;
use std::path::Path;

/// As many as backups have.
const WALKERS: usize = 4;

#[derive(Default)]
struct Counter {
    files: u64,
    bytes: u64,
    failed: Option<String>,
}

impl Visitor for Counter {
    fn enter(&mut self, _: &str) -> bool {
        true
    }

    fn file(&mut self, _: &str, _: &str, times: FileTimes) -> bool {
        self.files += 1;
        self.bytes += times.size_bytes;
        true
    }

    fn special(&mut self, _: &str, _: &str, _: &'static str) {}

    fn failed(&mut self, folder: &str, _: Option<&str>, error: &io::Error) {
        self.failed = Some(format!("{folder}: {error}"));
    }

    fn leave(&mut self, _: &str, _: bool) {}
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: bare-walk FOLDER")?;
    let tree = Tree::open(Path::new(&folder), &[])?;
    let mut counters: Vec<_> = (0..WALKERS).map(|_| Counter::default()).collect();
    walk::walk(&tree, &mut counters);
    if let Some(failed) = counters.iter().find_map(|counter| counter.failed.clone()) {
        return Err(failed.into());
    }
    let sum = |of: fn(&Counter) -> u64| counters.iter().map(of).sum::<u64>();
    println!("{} files, {} bytes", sum(|counter| counter.files), sum(|counter| counter.bytes));
    Ok(())
}
