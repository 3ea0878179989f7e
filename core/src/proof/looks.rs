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

    /// How the object is known that log entry `since` speaks of. `key` makes its key, and is asked only where looks at a part of all objects are known.
    ///
    /// A path may have got an object that had been there for long: looks at the object from before then do not count for it.
    #[must_use]
    pub fn of<K: AsRef<str>>(&self, since: u64, key: impl Fn() -> K) -> Known {
        let recorded = self.snapshots.range(since..).next().map_or(self.now, |(_, taken_at)| *taken_at);
        let mut position = None;
        let readings = self.read.iter().filter_map(|(of, parts)| {
            let part = if *of == 1 { 0 } else { Part::at(*of, *position.get_or_insert_with(|| Part::position(key().as_ref()))).part };
            parts.get(&part)?.newest(since)
        });
        Known { recorded, listed: self.listed.newest(since), read: readings.max() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn what_was_stored_is_recorded_by_the_next_snapshot_or_now() {
        let looks = Looks::new([(10, at(100)), (20, at(200))], at(300));
        assert_eq!([1, 10, 11, 20, 21].map(|since| looks.of(since, || "k").recorded), [at(100), at(100), at(200), at(200), at(300)]);
        assert_eq!((looks.of(1, || "k").listed, looks.of(1, || "k").read), (None, None));
    }

    #[test]
    fn a_look_says_nothing_of_what_was_stored_after_what_it_covers() {
        let mut looks = Looks::new([], at(0));
        looks.add_listing(10, at(1));
        looks.add_reading(10, at(2), Part::ALL);
        assert_eq!((looks.of(10, || "k").listed, looks.of(10, || "k").read), (Some(at(1)), Some(at(2))));
        assert_eq!((looks.of(11, || "k").listed, looks.of(11, || "k").read), (None, None));
    }

    #[test]
    fn a_reading_says_nothing_of_other_parts() {
        let mut looks = Looks::new([], at(0));
        let part = Part { of: 7, part: 3 };
        looks.add_reading(10, at(2), part);
        let keys: Vec<_> = (0..50).map(|number| format!("library/{number}")).collect();
        assert!(keys.iter().any(|key| part.has(key)) && keys.iter().any(|key| !part.has(key)));
        for key in &keys {
            assert_eq!(looks.of(1, || key).read.is_some(), part.has(key), "{key}");
        }
        looks.add_reading(10, at(1), Part::ALL);
        for key in &keys {
            assert_eq!(looks.of(1, || key).read, Some(if part.has(key) { at(2) } else { at(1) }), "{key}");
        }
    }

    #[test]
    fn looks_that_were_superseded_are_forgotten() {
        let mut looks = Looks::new([], at(0));
        for day in 0..1_000 {
            looks.add_listing(10 + day, at(i64::try_from(day).unwrap()));
            looks.add_reading(10 + day, at(i64::try_from(day).unwrap()), Part { of: 4, part: day % 4 });
        }
        assert_eq!(looks.listed.0.len(), 1);
        looks.add_listing(2_000, at(999));
        assert_eq!(looks.listed.0, BTreeMap::from([(2_000, at(999))]), "no newer, and of more objects");
        looks.add_listing(5, at(998));
        looks.add_listing(5, at(1_000));
        assert_eq!(looks.listed.0, BTreeMap::from([(5, at(1_000)), (2_000, at(999))]));
        assert_eq!(looks.read.values().flat_map(BTreeMap::values).map(|series| series.0.len()).collect::<Vec<_>>(), [1, 1, 1, 1]);
    }

    #[test]
    fn a_log_that_names_no_parts_divides_by_nothing() {
        let mut looks = Looks::new([], at(0));
        looks.add_reading(10, at(1), Part { of: 0, part: 0 });
        looks.add_reading(10, at(2), Part { of: 2, part: 9 });
        assert_eq!(looks.of(1, || "k").read, Some(at(1)));
    }

    proptest! {
        #[test]
        fn looks_answer_as_if_all_of_them_were_kept(
            listings in prop::collection::vec((0..8_u64, 0..20_i64), 0..12),
            readings in prop::collection::vec((0..8_u64, 0..20_i64, 1..4_u64, 0..4_u64), 0..12),
            snapshots in prop::collection::btree_map(0..8_u64, 0..20_i64, 0..4),
        ) {
            let mut looks = Looks::new(snapshots.iter().map(|(entry, second)| (*entry, at(*second))), at(99));
            for (covers, second) in &listings {
                looks.add_listing(*covers, at(*second));
            }
            for (covers, second, of, part) in &readings {
                looks.add_reading(*covers, at(*second), Part { of: *of, part: part % of });
            }
            for since in 0..9 {
                for key in ["a", "b", "c", "d", "e"] {
                    let known = looks.of(since, || key);
                    let listed = listings.iter().filter(|(covers, _)| *covers >= since).map(|(_, second)| at(*second)).max();
                    let read = readings.iter().filter(|(covers, _, of, part)| *covers >= since && Part { of: *of, part: part % of }.has(key));
                    let recorded = snapshots.iter().find(|(entry, _)| **entry >= since).map_or(at(99), |(_, second)| at(*second));
                    prop_assert_eq!(known, Known { recorded, listed, read: read.map(|(_, second, ..)| at(*second)).max() });
                }
            }
        }
    }
}
