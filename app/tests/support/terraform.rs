//! What the files below deploy/terraform say, read as text: no provider can be had where the tests run.

#![allow(dead_code, reason = "each test program uses its part of this")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

use std::fs;
use std::path::{Path, PathBuf};

/// The root of the sources.
pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A configuration: all its files, one behind the other, without comments.
pub struct Terraform(String);

impl Terraform {
    /// `gcs` or `s3`.
    pub fn open(name: &str) -> Self {
        let folder = sources().join("deploy/terraform").join(name);
        let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "tf"));
        paths.sort();
        assert!(paths.len() >= 4, "{paths:?}");
        let texts = paths.iter().map(|path| fs::read_to_string(path).unwrap());
        let lines: Vec<String> = texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
        let lines = lines.into_iter().filter(|line| !line.trim_start().starts_with('#'));
        Self(lines.fold(String::new(), |all, line| all + &line + "\n"))
    }

    /// All of it.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The block that `head` begins at the start of a line, e.g. `resource "aws_s3_bucket" "repository"`, as a configuration of its own.
    #[track_caller]
    pub fn block(&self, head: &str) -> Self {
        let start = format!("\n{head} {{\n");
        let (_, rest) = self.0.split_once(&start).unwrap_or_else(|| panic!("there is no `{head}`"));
        Self(rest.split_once("\n}\n").unwrap().0.to_owned() + "\n")
    }

    /// What is assigned to `name`: all to the end of the line, or of the list that begins there.
    #[track_caller]
    pub fn value(&self, name: &str) -> &str {
        let mut lines = self.0.lines();
        let line = lines.find(|line| line.trim_start().strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with("= ")));
        let value = line.unwrap_or_else(|| panic!("nothing is assigned to `{name}`")).split_once("= ").unwrap().1;
        assert!(!value.ends_with('['), "`{name}` takes more than a line");
        value
    }

    /// The texts in the value of `name`.
    #[track_caller]
    pub fn texts(&self, name: &str) -> Vec<String> {
        texts(self.value(name))
    }

    /// Blocks `statement` of a policy document, by their `sid`.
    #[track_caller]
    pub fn statement(&self, document: &str, sid: &str) -> Self {
        let document = self.block(&format!("data \"aws_iam_policy_document\" \"{document}\""));
        let named = format!("sid       = \"{sid}\"\n");
        let statement = document.0.split("\n  statement {\n").find(|statement| statement.contains(&named));
        let statement = statement.unwrap_or_else(|| panic!("no statement {sid}"));
        Self(statement.split_once("\n  }\n").map_or(statement, |(statement, _)| statement).to_owned() + "\n")
    }

    /// Starts of keys that the pruner may remove, and the end that none of them may have.
    pub fn removed(&self) -> (Vec<String>, String) {
        let prefixes = [self.texts("prunable"), self.texts("prunable_derived")].concat();
        (prefixes, self.texts("kept_suffix").remove(0))
    }
}

/// The quoted texts in a line.
pub fn texts(line: &str) -> Vec<String> {
    line.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}
