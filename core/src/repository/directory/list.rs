//! Objects of a directory in the order of their keys' bytes, a bounded number in memory.

use super::super::key::Key;
use super::super::store::{ObjectInfo, ObjectStream, StoreError};
use super::{TEMPORARY, error};
use crate::task::blocking;
use futures_util::StreamExt as _;
use std::collections::BinaryHeap;
use std::io;
use std::path::{Path, PathBuf};

/// Names of one folder held at a time; a larger folder is read again for each further page.
const PAGE_NAMES: usize = 16_384;

/// Objects handed on at a time.
const BATCH: usize = 1_024;

/// A folder on the way from the root to where the listing is.
struct Frame {
    /// The folder's key with a trailing `/`, empty for the root.
    prefix: String,
    /// Names still to show, last first; folders end in `/`, which puts them where their keys belong.
    page: Vec<String>,
    /// The last name of the page, if there may be more after it.
    more_after: Option<String>,
}

struct Listing {
    root: PathBuf,
    after: Option<String>,
    frames: Vec<Frame>,
    start: Option<String>,
}

pub(super) fn list(root: PathBuf, prefix: String, after: Option<String>) -> ObjectStream {
    let listing = Listing { root, after, frames: Vec::new(), start: Some(prefix) };
    futures_util::stream::try_unfold(listing, |mut listing| {
        blocking(move || {
            let batch = listing.next_batch().map_err(|(key, source)| error("list", &key, source))?;
            Ok::<_, StoreError>((!batch.is_empty()).then_some((batch, listing)))
        })
    })
    .flat_map(|batch| {
        let items = match batch {
            Ok(objects) => objects.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        };
        futures_util::stream::iter(items)
    })
    .boxed()
}

type Failed = (String, io::Error);

impl Listing {
    fn next_batch(&mut self) -> Result<Vec<ObjectInfo>, Failed> {
        if let Some(prefix) = self.start.take() {
            self.open(prefix, None)?;
        }
        let mut batch = Vec::new();
        while batch.len() < BATCH
            && let Some(frame) = self.frames.last_mut()
        {
            let Some(name) = frame.page.pop() else {
                let (prefix, more_after) = (std::mem::take(&mut frame.prefix), frame.more_after.take());
                self.frames.pop();
                if more_after.is_some() {
                    self.open(prefix, more_after)?;
                }
                continue;
            };
            let key = format!("{}{name}", frame.prefix);
            if key.ends_with('/') {
                if self.after.as_ref().is_none_or(|after| key > *after || after.starts_with(&key)) && key.trim_end_matches('/') != TEMPORARY {
                    self.open(key, None)?;
                }
            } else if self.after.as_ref().is_none_or(|after| key > *after)
                && let Ok(parsed) = Key::parse(&key)
            {
                match std::fs::symlink_metadata(self.root.join(&key)) {
                    Ok(found) => batch.push(ObjectInfo { key: parsed, size_bytes: found.len(), checksum: None }),
                    Err(gone) if gone.kind() == io::ErrorKind::NotFound => {}
                    Err(source) => return Err((key, source)),
                }
            }
        }
        Ok(batch)
    }

    fn open(&mut self, prefix: String, after: Option<String>) -> Result<(), Failed> {
        let page = read_page(&self.root.join(&prefix), after.as_deref()).map_err(|source| (prefix.clone(), source))?;
        let more_after = (page.len() == PAGE_NAMES).then(|| page.first().cloned()).flatten();
        self.frames.push(Frame { prefix, page, more_after });
        Ok(())
    }
}

/// The first [`PAGE_NAMES`] names after `after`, last first. Names that are not UTF-8 cannot be ours and are passed over.
fn read_page(folder: &Path, after: Option<&str>) -> io::Result<Vec<String>> {
    let mut first = BinaryHeap::new();
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let Ok(mut name) = entry.file_name().into_string() else { continue };
        let kind = entry.file_type()?;
        if kind.is_dir() {
            name.push('/');
        } else if !kind.is_file() {
            continue;
        }
        if after.is_some_and(|after| name.as_str() <= after) {
            continue;
        }
        first.push(name);
        if first.len() > PAGE_NAMES {
            first.pop();
        }
    }
    let mut page = first.into_sorted_vec();
    page.reverse();
    Ok(page)
}
