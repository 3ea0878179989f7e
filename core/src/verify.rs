//! Is what the log promises there, and whole?

use crate::budget::{CHECKPOINT_FILES_MAX, LISTED_AHEAD_MAX, NAMED_MAX};
use crate::crash::crash_point;
use crate::event::{Event, Monitor, Phase};
use crate::model::{Part, Sample, Sha256};
use crate::repository::fetch::Fetcher;
use crate::repository::key::{self, Key};
use crate::repository::log::{self, Damaged, Fact, Head, Listed, LogError, Read, Sound, Tally};
use crate::repository::manifest::{Expected, ExpectedObject, ManifestError};
use crate::repository::store::{ObjectInfo, Store, StoreError};
use crate::repository::workers::Workers;
use crate::repository::{OpenError, Session};
use crate::task::{blocking, joined};
use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// How closely to look. Every depth reads the whole log and lists the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Every object is there and has its size.
    Listing,
    /// And every byte of these is right.
    Read(Option<Sample>),
}

/// What to verify.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How closely.
    pub depth: Depth,
    /// Objects that are read at once.
    pub workers: Workers,
    /// Whether to write down in the log what was found.
    pub record: bool,
}

/// An object that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The object.
    pub key: String,
    /// What is wrong.
    pub problem: String,
    /// Whether what it should hold is stored elsewhere as well, so that nothing is lost.
    pub replaced: bool,
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Log entries read, chained and right.
    pub entries: u64,
    /// Objects that were there with their size.
    pub listed: Tally,
    /// Objects whose bytes were right.
    pub read: Tally,
    /// Which part was read.
    pub part: Option<Part>,
    /// Objects that nothing names: sent by a run that died, or being sent right now.
    pub unannounced: u64,
    /// The first of them.
    pub unnamed: Vec<String>,
    /// How many objects are not as they should be.
    pub damaged: u64,
    /// How many of these hold content that is stored nowhere else.
    pub lost: u64,
    /// How many of these nobody knew of before.
    pub new: u64,
    /// The first of them.
    pub findings: Vec<Finding>,
    /// Asked to stop before the end: nothing was written down.
    pub interrupted: bool,
}

impl Report {
    /// Whether everything that any snapshot needs is there and whole, as far as was looked.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.lost == 0 && self.new == 0
    }
}

struct Verifier<'a> {
    session: &'a mut Session,
    plan: Plan,
    monitor: &'a dyn Monitor,
    stop: &'a CancellationToken,
    /// The reading of the log, as long as nobody has waited for it.
    log: Option<AbortOnDropHandle<Result<u64, LogError>>>,
    report: Report,
    /// Found now.
    found: BTreeSet<String>,
    /// Of these, what was not judged yet: what is wrong, and what it should hold. Fewer than a checkpoint has facts.
    unjudged: BTreeMap<String, (String, Option<Sha256>)>,
    /// Called damaged by the log already.
    known: BTreeSet<String>,
    /// To be written down.
    facts: Vec<Fact>,
}

/// Verifies.
///
/// # Errors
/// The log is damaged, or the store cannot be asked. Damaged objects are no error; they are in the report.
pub async fn run(session: &mut Session, plan: Plan, monitor: &dyn Monitor, stop: &CancellationToken) -> Result<Report, OpenError> {
    let known = session.manifest.damaged_objects()?.into_iter().map(|(key, _)| key).collect();
    let (store, start, head) = (Arc::clone(&session.repository.store), session.repository.start, session.manifest.head());
    let log = Some(AbortOnDropHandle::new(tokio::spawn(read_log(store, start, head, stop.clone()))));
    let mut verifier =
        Verifier { session, plan, monitor, stop, log, report: Report::default(), found: BTreeSet::new(), unjudged: BTreeMap::new(), known, facts: Vec::new() };
    verifier.run().await?;
    Ok(verifier.report)
}

impl Verifier<'_> {
    async fn run(&mut self) -> Result<(), OpenError> {
        let at = Timestamp::now();
        let sequence = self.session.manifest.head().sequence;
        let listed = self.collect_and_list().await;
        // What is wrong with the log is said first, and nothing is written to it before.
        self.log_is_read().await?;
        let expected = listed?;
        self.judge()?;
        if !self.stop.is_cancelled() {
            self.facts.push(Fact::Listed(Listed { at, sequence, objects: self.report.listed.files, damaged: self.report.damaged }));
        }
        if let Depth::Read(sample) = self.plan.depth {
            let (objects, _) = expected.totals()?;
            let part = self.choose_part(sample, objects)?;
            let before = self.report.damaged;
            self.read_objects(&expected, part).await?;
            self.read_copies().await?;
            self.judge()?;
            if !self.stop.is_cancelled() {
                let Tally { files, bytes } = self.report.read;
                self.facts.push(Fact::Read(Read { at, sequence, sample: part, objects: files, bytes, damaged: self.report.damaged - before }));
            }
        }
        self.report.interrupted = self.stop.is_cancelled();
        if !self.report.interrupted {
            self.recall(&expected).await?;
            self.judge()?;
        }
        crash_point!("verified, not recorded");
        self.write_facts().await
    }

    /// What the log calls damaged stays so until its bytes were read and are right: a look that did not read them clears nothing.
    async fn recall(&mut self, expected: &Expected) -> Result<(), OpenError> {
        for key in self.known.clone() {
            let content = expected.content_of(&key)?;
            if content.is_some() || key.starts_with(key::MANIFESTS) {
                self.damaged(&key, "it was found damaged before, and has not been read since", content).await?;
            }
        }
        Ok(())
    }

    /// The next part of a sample: the one after the last reading of as many parts.
    fn choose_part(&mut self, sample: Option<Sample>, objects: u64) -> Result<Part, ManifestError> {
        let of = sample.map_or(1, |sample| sample.parts(objects));
        let manifest = &self.session.manifest;
        let part = manifest.last_reading_of(of)?.map_or(manifest.head().sequence, |last| last.part + 1) % of;
        let part = Part { of, part };
        self.report.part = Some(part);
        Ok(part)
    }

    /// Waits until the whole log has been read.
    async fn log_is_read(&mut self) -> Result<(), OpenError> {
        if let Some(reading) = self.log.take() {
            self.report.entries = joined(reading.await)?;
        }
        Ok(())
    }

    async fn collect_and_list(&mut self) -> Result<Expected, OpenError> {
        let listing = Listing::start(&self.session.repository.store);
        let (manifest, scratch) = (self.session.state.manifest(), self.session.state.own_scratch("expected.db"));
        let expected = blocking(move || Expected::collect(&manifest, &scratch)).await?;
        self.list(&expected, listing).await?;
        Ok(expected)
    }

    /// Walks the listing and what is expected side by side: both come in the order of keys, mostly. A store that lists folder by folder shows some
    /// names earlier or later; and file systems that do not tell `a` from `A` show another spelling. So what a listing lacks is noted, taken off when
    /// it comes after all, and at last asked for by name.
    async fn list(&mut self, expected: &Expected, mut listing: Listing) -> Result<(), OpenError> {
        let (objects, _) = expected.totals()?;
        self.monitor.emit(Event::PhaseStarted { phase: Phase::List, total_files: Some(objects), total_bytes: None });
        let mut pages = Pages::new(expected);
        let mut wanted = pages.next()?;
        let mut passed: Option<Key> = None;
        while let Some(found) = listing.next().await? {
            if self.stop.is_cancelled() {
                return Ok(());
            }
            if passed.as_ref().is_some_and(|passed| found.key < *passed) {
                match expected.take_absent(found.key.as_str())? {
                    Some(object) => self.compare_listed(&object, &found).await?,
                    None => self.unannounced(found.key),
                }
                continue;
            }
            while let Some(missing) = wanted.take_if(|wanted| wanted.key.as_str() < found.key.as_str()) {
                expected.note_absent(&missing.key)?;
                wanted = pages.next()?;
            }
            match wanted.take_if(|wanted| wanted.key == found.key.as_str()) {
                Some(object) => {
                    self.compare_listed(&object, &found).await?;
                    wanted = pages.next()?;
                }
                None => self.unannounced(found.key.clone()),
            }
            passed = Some(found.key);
        }
        while let Some(missing) = wanted {
            expected.note_absent(&missing.key)?;
            wanted = pages.next()?;
        }
        self.look_for_absent(expected).await?;
        self.monitor.emit(Event::PhaseFinished { phase: Phase::List });
        Ok(())
    }

    fn unannounced(&mut self, key: Key) {
        // A damaged object in whose place another one counts is nobody's any more, and no news.
        if self.known.contains(key.as_str()) {
            return;
        }
        self.report.unannounced += 1;
        if self.report.unnamed.len() < NAMED_MAX {
            self.report.unnamed.push(key.to_string());
        }
    }

    async fn look_for_absent(&mut self, expected: &Expected) -> Result<(), OpenError> {
        let store = Arc::clone(&self.session.repository.store);
        let mut last = String::new();
        loop {
            let page = expected.absent_page(&last)?;
            let Some(end) = page.last() else { return Ok(()) };
            last.clone_from(&end.key);
            let mut looks = futures_util::stream::iter(page)
                .map(|object| {
                    let store = Arc::clone(&store);
                    async move {
                        let found = store.head(&Key::parse(&object.key)?).await?;
                        Ok::<_, StoreError>((object, found))
                    }
                })
                .buffered(self.plan.workers.count(&*self.session.repository.store));
            while let Some((object, found)) = looks.try_next().await? {
                if self.stop.is_cancelled() {
                    return Ok(());
                }
                match found {
                    Some(found) => self.compare_listed(&object, &found).await?,
                    None => self.damaged(&object.key, "it is missing", Some(object.sha256)).await?,
                }
            }
        }
    }

    async fn compare_listed(&mut self, object: &ExpectedObject, found: &ObjectInfo) -> Result<(), OpenError> {
        if found.size_bytes == object.size_bytes {
            self.report.listed.add(found.size_bytes);
            self.monitor.emit(Event::ObjectChecked { size_bytes: 0 });
            return Ok(());
        }
        let problem = format!("it has {} bytes instead of {}", found.size_bytes, object.size_bytes);
        self.damaged(&object.key, &problem, Some(object.sha256)).await
    }

    async fn read_objects(&mut self, expected: &Expected, part: Part) -> Result<(), OpenError> {
        let (objects, bytes) = expected.totals()?;
        self.monitor.emit(Event::PhaseStarted { phase: Phase::ReadBack, total_files: Some(objects / part.of), total_bytes: Some(bytes / part.of) });
        let mut pages = Pages::new(expected);
        let fetcher = Arc::new(Fetcher::new(Arc::clone(&self.session.repository.store)));
        let mut reading = JoinSet::new();
        let mut more = true;
        let workers = self.plan.workers.count(&*self.session.repository.store);
        while more || !reading.is_empty() {
            while more && reading.len() < workers {
                match pages.next()? {
                    Some(object) if !self.stop.is_cancelled() => {
                        // What the listing found missing needs no second look.
                        if part.has(&object.key) && !self.found.contains(&object.key) {
                            let fetcher = Arc::clone(&fetcher);
                            reading.spawn(async move { (hash_object(&fetcher, &object.key, object.size_bytes, &object.sha256).await, object) });
                        }
                    }
                    _ => more = false,
                }
            }
            let Some(read) = reading.join_next().await else { continue };
            let (read, object) = joined(read);
            self.compare_read(read, &object.key, object.sha256, Some(object.sha256)).await?;
        }
        self.monitor.emit(Event::PhaseFinished { phase: Phase::ReadBack });
        Ok(())
    }

    async fn compare_read(&mut self, read: Result<(Sha256, u64), StoreError>, key: &str, right: Sha256, content: Option<Sha256>) -> Result<(), OpenError> {
        match read {
            Ok((sha256, size_bytes)) if sha256 == right => {
                self.report.read.add(size_bytes);
                self.monitor.emit(Event::ObjectChecked { size_bytes });
                if self.known.remove(key) {
                    self.facts.push(Fact::Sound(Sound { key: key.to_owned() }));
                }
                Ok(())
            }
            Ok(_) => self.damaged(key, "its bytes have another SHA-256", content).await,
            Err(StoreError::NotFound { .. }) => self.damaged(key, "it is missing", content).await,
            // The disk under a directory answers with an error where it cannot read: that is damage of this object alone.
            Err(error) if error.is_of_medium() => {
                let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
                self.damaged(key, &format!("{error}{cause}"), content).await
            }
            // Anything else says nothing of the object: too many open files, no rights, a mount that went away.
            Err(error) => Err(error.into()),
        }
    }

    async fn read_copies(&mut self) -> Result<(), OpenError> {
        let fetcher = Fetcher::new(Arc::clone(&self.session.repository.store));
        for (key, sha256, ..) in self.session.manifest.copies()? {
            // Its size is not in the log; it is read in one go.
            let read = hash_object(&fetcher, &key, 0, &sha256).await;
            self.compare_read(read, &key, sha256, None).await?;
        }
        Ok(())
    }

    /// Notes that an object is not as it should be. `content` is what it should hold; `None` for a copy of the manifest, which the log can replace.
    async fn damaged(&mut self, key: &str, problem: &str, content: Option<Sha256>) -> Result<(), OpenError> {
        if !self.found.insert(key.to_owned()) {
            return Ok(());
        }
        self.monitor.emit(Event::ObjectDamaged { key: key.to_owned(), problem: problem.to_owned() });
        self.report.damaged += 1;
        self.unjudged.insert(key.to_owned(), (problem.to_owned(), content));
        if !self.known.contains(key) {
            self.report.new += 1;
        }
        if !self.known.contains(key) {
            self.facts.push(Fact::Damaged(Damaged { key: key.to_owned(), problem: problem.to_owned() }));
        }
        if self.unjudged.len() >= CHECKPOINT_FILES_MAX || self.facts.len() >= CHECKPOINT_FILES_MAX {
            // Before the manifest is told: what it knows to be damaged replaces nothing.
            self.judge()?;
        }
        if self.facts.len() >= CHECKPOINT_FILES_MAX {
            self.write_facts().await?;
        }
        Ok(())
    }

    /// Says of what was found whether it is lost, in the order of keys: not in the order in which readings happened to end. Of all that hold the same, one
    /// is lost, and the others are replaced by it.
    fn judge(&mut self) -> Result<(), ManifestError> {
        while let Some((key, (problem, content))) = self.unjudged.pop_first() {
            let replaced = self.is_replaced(&key, content)?;
            if !replaced {
                self.report.lost += 1;
            }
            if self.report.findings.len() < NAMED_MAX {
                self.report.findings.push(Finding { key, problem, replaced });
            }
        }
        Ok(())
    }

    /// Whether another object has what this one should hold, as far as was judged yet.
    fn is_replaced(&self, key: &str, content: Option<Sha256>) -> Result<bool, ManifestError> {
        let manifest = &self.session.manifest;
        let is_judged = |other: &str| self.found.contains(other) && !self.unjudged.contains_key(other);
        let is_sound = |other: &str| !self.known.contains(other) && !is_judged(other);
        Ok(if key.starts_with(key::DUMPS) {
            // A later dump says what this one said, and more; the snapshots up to this one have lost their database all the same.
            let later = manifest.dumps()?;
            let taken_at = later.iter().find(|dump| dump.fact.key == key).map(|dump| dump.fact.taken_at);
            later.iter().any(|other| !other.pruned && Some(other.fact.taken_at) > taken_at && is_sound(&other.fact.key))
        } else if let Some(content) = content {
            manifest.objects_with(&content)?.iter().any(|other| other.key != key && !is_judged(&other.key))
        } else {
            manifest.copies()?.iter().any(|(other, ..)| other.as_str() > key && is_sound(other))
        })
    }

    /// What cannot be written down was still found: the report says it all.
    async fn write_facts(&mut self) -> Result<(), OpenError> {
        let facts = std::mem::take(&mut self.facts);
        if !self.plan.record {
            return Ok(());
        }
        self.log_is_read().await?;
        match self.session.note(&facts, self.monitor).await {
            Err(error) if error.is_of_writing() => {
                self.monitor.emit(Event::Warned { message: format!("what was found could not be written to the log: {error}") });
                Ok(())
            }
            other => other,
        }
    }
}

/// Reads all of the log from its beginning to `end`; gives how many entries it has read. Asked to stop, it has not read them all.
async fn read_log(store: Arc<dyn Store>, start: Head, end: Head, stop: CancellationToken) -> Result<u64, LogError> {
    let entries = log::chain_after(&*store, &start).await?.entries;
    let mut walk = log::Walk::new(&store, start, entries.range(..=end.sequence).map(|(_, key)| key.clone()));
    while walk.next().await?.is_some() {
        if stop.is_cancelled() {
            return Ok(walk.head().sequence);
        }
    }
    let head = walk.head();
    if head.sequence < end.sequence {
        return Err(LogError::WentBack { seen: end.sequence, now: head.sequence });
    }
    if head != end {
        return Err(LogError::Rewritten { sequence: head.sequence });
    }
    Ok(head.sequence)
}

/// The SHA-256 and the size of an object. One bad transfer is no damage: where it is not the `right` one, a second reading decides.
async fn hash_object(fetcher: &Fetcher, key: &str, size_bytes: u64, right: &Sha256) -> Result<(Sha256, u64), StoreError> {
    fetcher.sha256(&Key::parse(key)?, size_bytes, right).await
}

/// All content that the store lists, which goes on while what it says is compared.
struct Listing {
    objects: mpsc::Receiver<Result<ObjectInfo, StoreError>>,
    task: AbortOnDropHandle<()>,
}

impl Listing {
    fn start(store: &Arc<dyn Store>) -> Self {
        let store = Arc::clone(store);
        let (sender, objects) = mpsc::channel(LISTED_AHEAD_MAX);
        let task = tokio::spawn(async move {
            for prefix in key::CONTENT {
                let mut listing = store.list(prefix, None);
                while let Some(found) = listing.next().await {
                    // Whoever asked may have gone.
                    if sender.send(found).await.is_err() {
                        return;
                    }
                }
            }
        });
        Self { objects, task: AbortOnDropHandle::new(task) }
    }

    async fn next(&mut self) -> Result<Option<ObjectInfo>, StoreError> {
        match self.objects.recv().await {
            Some(found) => found.map(Some),
            // That it has ended is no end of the listing where it broke down.
            None => {
                joined((&mut self.task).await);
                Ok(None)
            }
        }
    }
}

/// Expected objects one by one, read a page at a time.
struct Pages<'a> {
    expected: &'a Expected,
    page: std::vec::IntoIter<ExpectedObject>,
    last: String,
}

impl<'a> Pages<'a> {
    fn new(expected: &'a Expected) -> Self {
        Self { expected, page: Vec::new().into_iter(), last: String::new() }
    }

    fn next(&mut self) -> Result<Option<ExpectedObject>, ManifestError> {
        if let Some(object) = self.page.next() {
            return Ok(Some(object));
        }
        let page = self.expected.page(&self.last)?;
        if let Some(last) = page.last() {
            last.key.clone_into(&mut self.last);
        }
        self.page = page.into_iter();
        Ok(self.page.next())
    }
}
