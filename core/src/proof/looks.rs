//! How it is known that an object is there, and since when: from the snapshots and the looks that the log tells of.

use crate::model::Part;
use jiff::Timestamp;
use std::collections::BTreeMap;

/// How it is known of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// When the snapshot was taken whose run stored it.
    pub recorded: Timestamp,
    /// When it was last in a listing.
    pub listed: Option<Timestamp>,
    /// When it was last read back.
    pub read: Option<Timestamp>,
}

/// Looks of one kind at one part: the last log entry whose objects were looked at, and when. None of them is both earlier and of fewer objects than another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Series(BTreeMap<u64, Timestamp>);

impl Series {
    fn add(&mut self, covers: u64, at: Timestamp) {
        if self.newest(covers).is_some_and(|newest| newest >= at) {
            return;
        }
        self.0.retain(|other, earlier| *other > covers || *earlier > at);
        self.0.insert(covers, at);
    }

    /// The newest look at what log entry `since` stored.
    fn newest(&self, since: u64) -> Option<Timestamp> {
        // A look at more objects is an earlier one, or it would stand alone.
        self.0.range(since..).next().map(|(_, at)| *at)
    }
}

/// All looks that the log tells of, and the snapshots.
///
/// Looks are many over the years, but of each part only those are kept that were not superseded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looks {
    /// The log entry of each snapshot, and when it was taken.
    snapshots: BTreeMap<u64, Timestamp>,
    /// When what no snapshot has yet is recorded.
    now: Timestamp,
    listed: Series,
    /// By the number of parts, and the part.
    read: BTreeMap<u64, BTreeMap<u64, Series>>,
}

impl Looks {
    /// Of snapshots (log entry, time) alone; what was stored after the last of them is recorded `now`.
    #[must_use]
    pub fn new(snapshots: impl IntoIterator<Item = (u64, Timestamp)>, now: Timestamp) -> Self {
        Self { snapshots: snapshots.into_iter().collect(), now, listed: Series::default(), read: BTreeMap::new() }
    }

    /// Adds a listing that began at `at` and looked for the objects of all log entries up to `covers`.
    pub fn add_listing(&mut self, covers: u64, at: Timestamp) {
        self.listed.add(covers, at);
    }

    /// Adds a reading that began at `at`, of the objects of all log entries up to `covers` whose keys are in `part`.
    pub fn add_reading(&mut self, covers: u64, at: Timestamp, part: Part) {
        // The log is not to be trusted to have at least one part.
        self.read.entry(part.of.max(1)).or_default().entry(part.part).or_default().add(covers, at);
    }

    /// How the object `key` is known that log entry `since` speaks of.
    ///
    /// A path may have got an object that had been there for long: looks at the object from before then do not count for it.
    #[must_use]
    pub fn of(&self, since: u64, key: &str) -> Known {
        let recorded = self.snapshots.range(since..).next().map_or(self.now, |(_, taken_at)| *taken_at);
        let mut position = None;
        let readings = self.read.iter().filter_map(|(of, parts)| {
            let part = if *of == 1 { 0 } else { Part::at(*of, *position.get_or_insert_with(|| Part::position(key))).part };
            parts.get(&part)?.newest(since)
        });
        Known { recorded, listed: self.listed.newest(since), read: readings.max() }
    }
}
