//! Listing: page by page, and, where there is much, several parts of the names at once.

use super::super::key::{self, Key};
use super::super::store::{ObjectInfo, ObjectStream, StoreError};
use super::Inner;
use crate::budget::{LISTED_PAGES_AHEAD_MAX, LISTINGS_IN_FLIGHT_MAX};
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::list::{PaginatedListOptions, PaginatedListResult};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::mpsc;

/// What a page is to have.
#[derive(Debug, Default, Clone)]
pub(super) struct PageOptions {
    after: Option<String>,
    token: Option<String>,
    /// One level of folders only.
    folders: bool,
}

impl PageOptions {
    pub(super) fn for_store(&self) -> PaginatedListOptions {
        PaginatedListOptions {
            offset: self.after.clone(),
            delimiter: self.folders.then_some("/".into()),
            page_token: self.token.clone(),
            ..PaginatedListOptions::default()
        }
    }
}

/// A page: names with sizes, folders, and where it goes on.
#[derive(Debug)]
pub(super) struct Page {
    objects: Vec<(String, u64)>,
    folders: Vec<String>,
    token: Option<String>,
}

impl Page {
    pub(super) fn new(listed: PaginatedListResult) -> Self {
        let objects = listed.result.objects.into_iter().map(|object| (object.location.to_string(), object.size));
        // It takes the slash at the end away.
        let folders = listed.result.common_prefixes.into_iter().map(|folder| format!("{folder}/"));
        Self { objects: objects.collect(), folders: folders.collect(), token: listed.page_token }
    }
}

/// A part of the names, in their order.
#[derive(Debug)]
enum Part {
    Object(String, u64),
    /// All that begins with this.
    Below(String),
}

impl Part {
    fn name(&self) -> &str {
        match self {
            Self::Object(name, _) | Self::Below(name) => name,
        }
    }
}

/// The parts of one level; `None` where it has more than a page, and is better listed as it is.
async fn parts(inner: &Inner, prefix: &str) -> Result<Option<Vec<Part>>, StoreError> {
    let page = inner.page(prefix, &PageOptions { folders: true, ..PageOptions::default() }).await?;
    if page.token.is_some() {
        return Ok(None);
    }
    let mut parts: Vec<_> = page.objects.into_iter().map(|(name, size)| Part::Object(name, size)).chain(page.folders.into_iter().map(Part::Below)).collect();
    parts.sort_unstable_by(|a, b| a.name().cmp(b.name()));
    Ok(Some(parts))
}

/// Levels of folders that are looked into for parts: `library/`, `upload/`, a user.
const LEVELS_MAX: u32 = 3;

/// Divides the names until there are enough parts to list at once.
async fn divide(inner: &Inner, prefix: &str) -> Result<Vec<Part>, StoreError> {
    let mut divided = vec![Part::Below(prefix.to_owned())];
    for _ in 0..LEVELS_MAX {
        if divided.iter().filter(|part| matches!(part, Part::Below(_))).count() >= LISTINGS_IN_FLIGHT_MAX {
            break;
        }
        let mut next = Vec::new();
        let mut looked = futures_util::stream::iter(divided)
            .map(|part| async {
                match part {
                    Part::Below(prefix) => Ok::<_, StoreError>(parts(inner, &prefix).await?.unwrap_or_else(|| vec![Part::Below(prefix)])),
                    object @ Part::Object(..) => Ok(vec![object]),
                }
            })
            .buffered(LISTINGS_IN_FLIGHT_MAX);
        while let Some(parts) = looked.try_next().await? {
            next.extend(parts);
        }
        drop(looked);
        divided = next;
    }
    Ok(divided)
}

/// A page, or `None` after the last: a queue that ends without it was cut off.
type Found = Result<Option<Vec<(String, u64)>>, StoreError>;

/// Lists page after page into a queue; ends when nobody reads it.
async fn list_below(inner: Arc<Inner>, prefix: String, after: Option<String>, pages: mpsc::Sender<Found>) {
    let mut options = PageOptions { after: after.filter(|_| inner.provider.lists_after()), ..PageOptions::default() };
    loop {
        let (found, token) = match inner.page(&prefix, &options).await {
            Ok(page) => (Ok(Some(page.objects)), page.token),
            Err(error) => (Err(error), None),
        };
        let failed = found.is_err();
        if pages.send(found).await.is_err() || failed {
            return;
        }
        if token.is_none() {
            // Nobody may want it any more.
            drop(pages.send(Ok(None)).await);
            return;
        }
        options.token = token;
    }
}

/// See `Store::list`.
pub(super) fn list(inner: Arc<Inner>, prefix: String, after: Option<Key>) -> ObjectStream {
    let whole = format!("{}{prefix}", inner.prefix);
    let after_path = after.as_ref().map(|after| inner.path(after));
    // The log and the manifests lie in one folder each, and are read from somewhere on; the library is large.
    let flat = after.is_some() || prefix == key::DUMPS || !key::CONTENT.contains(&prefix.as_str());
    let own = inner.prefix.len();
    let after = after.map(|after| after.as_str().to_owned());
    let parts = async move {
        let parts = if flat { vec![Part::Below(whole)] } else { divide(&inner, &whole).await? };
        Ok::<_, StoreError>(Running { inner, parts: parts.into(), running: VecDeque::new(), after: after_path })
    };
    futures_util::stream::once(parts)
        .map_ok(|running| futures_util::stream::try_unfold(running, next_page))
        .try_flatten()
        .map_ok(move |page| {
            let after = after.clone();
            let objects = page.into_iter().filter_map(move |(name, size_bytes)| {
                // Names that are none of ours say nothing.
                let key = Key::parse(name.get(own..)?).ok()?;
                let wanted = after.as_deref().is_none_or(|after| key.as_str() > after);
                wanted.then_some(ObjectInfo { key, size_bytes, checksum: None })
            });
            futures_util::stream::iter(objects.map(Ok))
        })
        .try_flatten()
        .boxed()
}

async fn next_page(mut running: Running) -> Result<Option<(Vec<(String, u64)>, Running)>, StoreError> {
    Ok(running.next().await?.map(|page| (page, running)))
}

/// Listings that run ahead of whoever reads them, in the order of their names.
struct Running {
    inner: Arc<Inner>,
    parts: VecDeque<Part>,
    running: VecDeque<Source>,
    after: Option<String>,
}

enum Source {
    Object(String, u64),
    Pages(mpsc::Receiver<Found>),
}

impl Running {
    async fn next(&mut self) -> Result<Option<Vec<(String, u64)>>, StoreError> {
        loop {
            while self.running.iter().filter(|source| matches!(source, Source::Pages(_))).count() < LISTINGS_IN_FLIGHT_MAX {
                let Some(part) = self.parts.pop_front() else { break };
                self.running.push_back(match part {
                    Part::Object(name, size) => Source::Object(name, size),
                    Part::Below(prefix) => {
                        let (sender, receiver) = mpsc::channel(LISTED_PAGES_AHEAD_MAX);
                        tokio::spawn(list_below(Arc::clone(&self.inner), prefix, self.after.clone(), sender));
                        Source::Pages(receiver)
                    }
                });
            }
            match self.running.front_mut() {
                None => return Ok(None),
                Some(Source::Pages(pages)) => {
                    let cut_off =
                        || StoreError::Io { action: "list", key: self.inner.prefix.clone(), source: std::io::Error::other("the listing was cut off") };
                    match pages.recv().await.ok_or_else(cut_off)?? {
                        Some(page) => return Ok(Some(page)),
                        None => drop(self.running.pop_front()),
                    }
                }
                Some(Source::Object(..)) => {
                    if let Some(Source::Object(name, size)) = self.running.pop_front() {
                        return Ok(Some(vec![(name, size)]));
                    }
                }
            }
        }
    }
}
