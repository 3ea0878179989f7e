//! Which uploads this state folder began and did not end: what a dead run left is ended by the next, and nobody else's is touched.

use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufReader, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// An upload that was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Begun {
    /// The object's name, with the repository's prefix.
    pub(super) path: String,
    /// What the store calls the upload.
    pub(super) id: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Begun(Begun),
    Ended(String),
}

/// The file that says so.
#[derive(Debug)]
pub(super) struct Journal(Mutex<File>);

impl Journal {
    /// Opens the journal at `file` anew, and gives what was begun and not ended before.
    pub(super) fn open(file: &Path) -> io::Result<(Self, Vec<Begun>)> {
        let left = match File::open(file) {
            Ok(opened) => left(BufReader::new(opened))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        // Whoever ends here has them in hand; they are noted again first, should this process end as well.
        let fresh = file.with_extension("new");
        let mut journal = File::create(&fresh)?;
        for begun in &left {
            write(&mut journal, &Line::Begun(begun.clone()))?;
        }
        std::fs::rename(&fresh, file)?;
        Ok((Self(Mutex::new(journal)), left))
    }

    pub(super) fn begun(&self, path: &str, id: &str) {
        self.note(&Line::Begun(Begun { path: path.to_owned(), id: id.to_owned() }));
    }

    pub(super) fn ended(&self, id: &str) {
        self.note(&Line::Ended(id.to_owned()));
    }

    /// A line that cannot be written costs room in the store, until its own rule removes the upload.
    fn note(&self, line: &Line) {
        drop(write(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), line));
    }
}

fn write(file: &mut File, line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_string(line)?;
    text.push('\n');
    file.write_all(text.as_bytes())
}

fn left(lines: impl io::BufRead) -> io::Result<Vec<Begun>> {
    let mut open: Vec<Begun> = Vec::new();
    for line in lines.split(b'\n') {
        // A line that was being written when its process or its machine ended says nothing.
        match serde_json::from_slice(&line?) {
            Ok(Line::Begun(begun)) => open.push(begun),
            Ok(Line::Ended(id)) => open.retain(|begun| begun.id != id),
            Err(_) => {}
        }
    }
    Ok(open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_ended_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("uploads.ndjson");
        let (journal, left) = Journal::open(&file).unwrap();
        assert!(left.is_empty());
        journal.begun("library/a", "1");
        journal.begun("library/b", "2");
        journal.ended("1");
        File::options().append(true).open(&file).unwrap().write_all(b"{\"begun\":{\"pa\xff\xfe\0").unwrap();
        let (_journal, left) = Journal::open(&file).unwrap();
        assert_eq!(left, [Begun { path: "library/b".to_owned(), id: "2".to_owned() }]);
        let (_journal, again) = Journal::open(&file).unwrap();
        assert_eq!(again, left, "not ended yet");
    }
}
