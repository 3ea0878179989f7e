//! Which files belong to a backup.

use super::layout;
use crate::model::{Class, FilePath};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use std::collections::BTreeSet;

/// A pattern that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("cannot understand the pattern `{pattern}`")]
pub struct InvalidPattern {
    /// The pattern.
    pub pattern: String,
    #[source]
    source: globset::Error,
}

/// A set of globs over paths as people see them (`upload/…`, `external/<name>/…`). `*` stops at `/`, `**` does not; a pattern that
/// matches a folder matches all below it.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    texts: Vec<String>,
    set: GlobSet,
}

impl Patterns {
    /// The set of `patterns`.
    ///
    /// # Errors
    /// Names the first pattern that is no glob.
    pub fn new(patterns: &[String]) -> Result<Self, InvalidPattern> {
        let mut builder = GlobSetBuilder::new();
        for pattern in patterns {
            let trimmed = trimmed(pattern);
            for text in [trimmed.to_owned(), format!("{trimmed}/**")] {
                let glob = GlobBuilder::new(&text).literal_separator(true).backslash_escape(true).build();
                builder.add(glob.map_err(|source| InvalidPattern { pattern: pattern.clone(), source })?);
            }
        }
        let set = builder.build().map_err(|source| InvalidPattern { pattern: patterns.join(" "), source })?;
        Ok(Self { texts: patterns.to_vec(), set })
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// The patterns as they were given.
    #[must_use]
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// Whether one of them is about `folder` by name: about it as a whole, or about what lies in it.
    #[must_use]
    pub fn name(&self, folder: &str) -> bool {
        self.texts.iter().any(|text| trimmed(text).strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    }

    /// Whether one of them matches.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        self.set.is_match(path)
    }
}

fn trimmed(pattern: &str) -> &str {
    pattern.trim_start_matches("./").trim_start_matches('/').trim_end_matches('/')
}

/// What is taken: everything but Immich's own dumps and temporary files, unless narrowed down.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Leave out what Immich could make again.
    pub originals_only: bool,
    /// Leave out what these match.
    pub exclude: Patterns,
    /// But take what these match.
    pub include: Patterns,
    /// Files at places of derived files that are originals all the same: an asset row of the database names them.
    pub assets: BTreeSet<FilePath>,
}

impl Scope {
    /// Whether anything is left out that the database might name.
    #[must_use]
    pub fn is_narrowed(&self) -> bool {
        self.originals_only || !self.exclude.is_empty()
    }

    /// Whether a file belongs to the backup. Markers always do: they tell a mounted folder from an empty mount point.
    #[must_use]
    pub fn takes(&self, file: &FilePath) -> bool {
        if !file.root.is_of_immich() {
            // Given or not given; patterns and classes are about Immich's files.
            return true;
        }
        if layout::is_own_dump(file) || layout::is_temporary(file.path.split().1) || layout::is_of_file_system(&file.path) {
            return false;
        }
        let class = layout::class_of(file);
        if class == Class::Marker {
            return true;
        }
        let narrowed = (self.originals_only && class == Class::Derived && !self.assets.contains(file)) || self.is_excluded(file);
        !narrowed || (!self.include.is_empty() && self.include.matches(&file.to_string()))
    }

    fn is_excluded(&self, file: &FilePath) -> bool {
        !self.exclude.is_empty() && self.exclude.matches(&file.to_string())
    }

    /// Whether nothing below this folder can belong to the backup, so that it need not be walked.
    #[must_use]
    pub fn skips_folder(&self, folder: &FilePath) -> bool {
        layout::is_of_file_system(&folder.path) || (folder.root.is_of_immich() && (layout::is_own_dump(folder) || self.excludes_folder(folder)))
    }

    fn excludes_folder(&self, folder: &FilePath) -> bool {
        // The markers in Immich's own folders are taken whatever is left out.
        let may_have_marker = layout::FOLDERS.contains(&folder.path.as_str());
        self.include.is_empty() && self.is_excluded(folder) && !may_have_marker
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RootPath;

    fn scope(originals_only: bool, exclude: &[&str], include: &[&str]) -> Scope {
        let patterns = |texts: &[&str]| Patterns::new(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).unwrap();
        Scope { originals_only, exclude: patterns(exclude), include: patterns(include), assets: BTreeSet::new() }
    }

    fn takes(scope: &Scope, path: &str) -> bool {
        scope.takes(&FilePath::library(RootPath::parse(path).unwrap()))
    }

    #[test]
    fn all_but_own_dumps_and_temporary_files_is_taken() {
        let scope = scope(false, &[], &[]);
        assert!(takes(&scope, "thumbs/a.webp") && takes(&scope, "anything/else") && takes(&scope, "backups2/x"));
        assert!(!takes(&scope, "backups/immich-db-backup.sql.gz") && !takes(&scope, "upload/.immich-backup.00.part"));
    }

    #[test]
    fn what_a_file_system_keeps_for_itself_is_left_out_and_not_looked_into() {
        let scope = scope(false, &["anna", "thumbs"], &[]);
        let skips = |path: &str| scope.skips_folder(&FilePath::library(RootPath::parse(path).unwrap()));
        assert!(skips("lost+found") && !takes(&scope, "lost+found/#1234"));
        assert!(!skips("library/lost+found") && takes(&scope, "library/lost+found/x.jpg"));
        let external = FilePath { root: crate::model::Root::External("nas".parse().unwrap()), path: RootPath::parse("lost+found").unwrap() };
        assert!(scope.skips_folder(&external));
        // Nobody may be able to read a folder that is left out; but Immich's own have markers.
        assert!(skips("anna") && !skips("thumbs"));
    }

    #[test]
    fn originals_only_keeps_motion_videos_and_markers() {
        let scope = scope(true, &[], &[]);
        assert!(takes(&scope, "encoded-video/u/x-MP.mp4") && takes(&scope, "thumbs/.immich") && takes(&scope, "upload/x.jpg"));
        assert!(!takes(&scope, "thumbs/u/x.webp") && !takes(&scope, "encoded-video/u/x.mp4"));
    }

    #[test]
    fn an_excluded_folder_is_left_out_whole_and_an_include_wins() {
        let without = scope(false, &["library/anna", "*.tmp"], &[]);
        assert!(!takes(&without, "library/anna/2024/x.jpg") && takes(&without, "library/annabel/x.jpg"));
        assert!(!takes(&without, "x.tmp") && takes(&without, "upload/x.tmp"));
        let with = scope(false, &["thumbs"], &["thumbs/**/*_preview.jpeg"]);
        assert!(takes(&with, "thumbs/u/x_preview.jpeg") && !takes(&with, "thumbs/u/x_thumbnail.webp") && takes(&with, "thumbs/.immich"));
    }

    #[test]
    fn a_bad_pattern_is_named() {
        let error = Patterns::new(&["a[".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("`a[`"));
    }
}
