//! Which dumps to keep. Pure: dumps × policy → plan.
//!
//! The rules are restic's: each keeps the newest dump of so many periods that have one, and a dump stays if any rule keeps it. Beyond all rules stay the
//! newest proven dump, those of snapshots that are to be kept, and those that no snapshot can have named yet.

use crate::model::RunId;
use crate::repository::manifest::{DumpRow, SnapshotRow};
use crate::verdict::Proof;
use jiff::civil::{Date, ISOWeekDate};
use jiff::tz::TimeZone;
use jiff::{Span, SpanRelativeTo, Timestamp};
use serde::{Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

/// What to keep. A rule that is not set keeps nothing; where none is set, everything is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// So many dumps, the newest.
    pub last: Option<NonZeroU32>,
    /// All that are not older than this before the newest.
    pub within: Option<Within>,
    /// The newest dump of each of so many days that have one.
    pub daily: Option<NonZeroU32>,
    /// Likewise, of ISO weeks (from Monday).
    pub weekly: Option<NonZeroU32>,
    /// Likewise, of months.
    pub monthly: Option<NonZeroU32>,
    /// Likewise, of years.
    pub yearly: Option<NonZeroU32>,
}

/// A text that is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPolicy {
    /// Neither a number nor a span of time.
    #[error("`{0}` is neither a number of dumps (`7`) nor a time (`30d`, `4w`, `36h`)")]
    Unknown(String),
    /// No time, or one whose length depends on the calendar.
    #[error("`{0}` is no time: write days, weeks or hours (`30d`, `4w`, `36h`)")]
    Time(String),
    /// It would keep nothing.
    #[error("`{0}` would keep no dump at all; leave it out to keep all")]
    Nothing(String),
}

/// A span of time, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Within {
    text: String,
    span: Duration,
}

impl Within {
    /// How long.
    #[must_use]
    pub fn span(&self) -> Duration {
        self.span
    }
}

impl FromStr for Within {
    type Err = InvalidPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let invalid = || InvalidPolicy::Time(text.to_owned());
        // A month has no length of its own; ISO 8601's `P30D` is understood too.
        let span: Span = text.parse().map_err(|_| invalid())?;
        let span = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| invalid())?;
        let span = Duration::try_from(span).map_err(|_| invalid())?;
        if span.is_zero() { Err(InvalidPolicy::Nothing(text.to_owned())) } else { Ok(Self { text: text.to_owned(), span }) }
    }
}

impl fmt::Display for Within {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Policy {
    /// What `DB_BACKUP_RETENTION` means: a number of dumps, or, with a unit, a time (`30d`). Nothing said: all are kept.
    ///
    /// # Errors
    /// A text that is neither, or that would keep nothing.
    pub fn from_retention_text(text: &str) -> Result<Self, InvalidPolicy> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(Self::default());
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            // More than anyone has is as good as the largest number.
            let number = text.parse::<u32>().unwrap_or(u32::MAX);
            let last = NonZeroU32::new(number).ok_or_else(|| InvalidPolicy::Nothing(text.to_owned()))?;
            return Ok(Self { last: Some(last), ..Self::default() });
        }
        match text.parse() {
            Ok(within) => Ok(Self { within: Some(within), ..Self::default() }),
            Err(InvalidPolicy::Time(text)) => Err(InvalidPolicy::Unknown(text)),
            Err(error) => Err(error),
        }
    }

    /// Whether no rule is set, so that everything is kept.
    #[must_use]
    pub fn keeps_all(&self) -> bool {
        *self == Self::default()
    }
}

/// The rules as they are written on the command line.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { last, within, daily, weekly, monthly, yearly } = self;
        let counts = [("keep-last", last), ("keep-daily", daily), ("keep-weekly", weekly), ("keep-monthly", monthly), ("keep-yearly", yearly)];
        let mut rules: Vec<_> = counts.iter().filter_map(|(name, count)| count.map(|count| format!("{name} {count}"))).collect();
        rules.extend(within.as_ref().map(|within| format!("keep-within {within}")));
        if rules.is_empty() { f.write_str("keep all") } else { f.write_str(&rules.join(", ")) }
    }
}

/// Why a dump stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// No rule is set.
    NoRule,
    /// It is the `number`th newest of the `of` to be kept by this rule (`last`, `daily`, …).
    Count {
        /// The rule.
        rule: &'static str,
        /// From 1.
        number: u32,
        /// How many the rule keeps.
        of: NonZeroU32,
    },
    /// It is not older than that before the newest.
    Within(Within),
    /// The snapshot that names it is the newest whose files are all proven.
    NewestProven,
    /// The newest snapshot with a dump names it.
    NewestSnapshot,
    /// A snapshot with this label names it.
    Label(String),
    /// It is younger than the newest snapshot: its run is going on, or ended without one.
    NoSnapshotYet,
    /// It was taken of what a restore replaced: nothing else has that.
    BeforeRestore,
    /// It is known to be damaged: it does not count, and is not touched before someone has looked at it.
    Damaged,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRule => f.write_str("no rule is set"),
            Self::Count { rule, number, of } => write!(f, "{rule} {number} of {of}"),
            Self::Within(within) => write!(f, "within {within}"),
            Self::NewestProven => f.write_str("newest proven"),
            Self::NewestSnapshot => f.write_str("newest snapshot"),
            Self::Label(label) => write!(f, "label `{}`", label.escape_debug()),
            Self::NoSnapshotYet => f.write_str("newer than the newest snapshot"),
            Self::BeforeRestore => f.write_str("what a restore replaced"),
            Self::Damaged => f.write_str("damaged, not counted"),
        }
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What becomes of one dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedDump {
    /// Its object.
    pub key: String,
    /// When `pg_dump` began.
    pub taken_at: Timestamp,
    /// Of the object.
    #[serde(rename = "size")]
    pub size_bytes: u64,
    /// The newest snapshot that names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<RunId>,
    /// Why it stays; empty: it goes.
    pub reasons: Vec<Reason>,
}

impl PlannedDump {
    /// Whether it stays.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        !self.reasons.is_empty()
    }
}

/// What becomes of all dumps that there are, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Each of them.
    pub dumps: Vec<PlannedDump>,
}

impl Plan {
    /// Those that go.
    pub fn removed(&self) -> impl Iterator<Item = &PlannedDump> {
        self.dumps.iter().filter(|dump| !dump.is_kept())
    }
}

/// Whether all that was asked for was proven, and there was anything to prove: the dump of a database that was made anew by mistake names nothing.
fn is_complete(proof: &Proof) -> bool {
    proof.assets > 0 && proof.is_complete_inside()
}

/// Whether a label is no more than a date: such a label names every run (`BACKUP_DATE`), and so marks none.
fn is_date(label: &str) -> bool {
    let digits = label.bytes().filter(u8::is_ascii_digit).count();
    digits >= 8 && label.chars().all(|c| c.is_ascii_digit() || matches!(c, '-' | '_' | '.' | ':' | '/' | '+' | ' ' | 'T' | 'Z'))
}

/// A period of the calendar; larger is later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Period {
    Each,
    Day(Date),
    Week(ISOWeekDate),
    Month(i16, i8),
    Year(i16),
}

type PeriodOf = fn(Date) -> Period;

/// Each dump that a rule keeps, and which it is of how many: the newest of each of the first `count` periods. `newest_first` are places in the plan.
fn kept(newest_first: &[(usize, Date)], count: NonZeroU32, period_of: PeriodOf) -> Vec<(usize, u32)> {
    let mut kept: Vec<(usize, u32)> = Vec::new();
    let (mut number, mut last) = (0, None);
    for (place, date) in newest_first {
        let period = period_of(*date);
        if last == Some(period) && period != Period::Each {
            continue;
        }
        if number == count.get() {
            break;
        }
        number += 1;
        last = Some(period);
        kept.push((*place, number));
    }
    kept
}

/// What becomes of `dumps`. `snapshots` are all there are, in the order of the log; `damaged` are the keys of objects known to be missing or damaged;
/// days, weeks, months and years are those of `zone`.
///
/// The dumps of snapshots are counted among themselves, so that a run that died after its dump costs no snapshot its own; other dumps are kept where they
/// would be if all counted alike.
#[must_use]
pub fn plan(dumps: &[DumpRow], snapshots: &[SnapshotRow], damaged: &BTreeSet<String>, policy: &Policy, zone: &TimeZone) -> Plan {
    let mut there: Vec<&DumpRow> = dumps.iter().filter(|dump| !dump.pruned).collect();
    there.sort_by(|a, b| (b.fact.taken_at, b.sequence, &b.fact.key).cmp(&(a.fact.taken_at, a.sequence, &a.fact.key)));
    let mut named_by: BTreeMap<&str, Vec<&SnapshotRow>> = BTreeMap::new();
    for snapshot in snapshots {
        if let Some(key) = &snapshot.fact.dump {
            named_by.entry(key).or_default().push(snapshot);
        }
    }
    let by_snapshots = |dump: &DumpRow| named_by.get(dump.fact.key.as_str()).map_or(&[][..], Vec::as_slice);
    let mut planned: Vec<PlannedDump> = there
        .iter()
        .map(|dump| PlannedDump {
            key: dump.fact.key.clone(),
            taken_at: dump.fact.taken_at,
            size_bytes: dump.fact.size,
            snapshot: by_snapshots(dump).last().map(|snapshot| snapshot.id),
            reasons: Vec::new(),
        })
        .collect();
    let newest_with = |wanted: &dyn Fn(&SnapshotRow) -> bool, whole: bool| {
        let named = |dump: &&DumpRow| by_snapshots(dump).iter().filter(|snapshot| wanted(snapshot)).map(|snapshot| snapshot.sequence).max();
        let candidates = there.iter().enumerate().filter(|(_, dump)| !whole || !damaged.contains(&dump.fact.key));
        candidates.filter_map(|(place, dump)| Some((named(dump)?, place))).max().map(|(_, place)| place)
    };
    let newest_proven = newest_with(&|snapshot| snapshot.fact.proof.as_ref().is_some_and(is_complete), true);
    let newest_snapshot = newest_with(&|_| true, false);
    // What is damaged brings nothing back: were it counted, a good one would go in its place.
    let counted = |place: usize| there.get(place).is_some_and(|dump| !damaged.contains(&dump.fact.key));
    let all: Vec<(usize, Date)> =
        there.iter().enumerate().filter(|(place, _)| counted(*place)).map(|(place, dump)| (place, zone.to_datetime(dump.fact.taken_at).date())).collect();
    let of_snapshots: Vec<(usize, Date)> =
        all.iter().copied().filter(|(place, _)| there.get(*place).is_some_and(|dump| !by_snapshots(dump).is_empty())).collect();
    let rules: [(&'static str, Option<NonZeroU32>, PeriodOf); 5] = [
        ("last", policy.last, |_| Period::Each),
        ("daily", policy.daily, Period::Day),
        ("weekly", policy.weekly, |date| Period::Week(monday(date))),
        ("monthly", policy.monthly, |date| Period::Month(date.year(), date.month())),
        ("yearly", policy.yearly, |date| Period::Year(date.year())),
    ];
    let mut give = |place: usize, reason: Reason| {
        if let Some(dump) = planned.get_mut(place) {
            dump.reasons.push(reason);
        }
    };
    for (rule, count, period_of) in rules {
        let Some(count) = count else { continue };
        for (place, number) in kept(&of_snapshots, count, period_of) {
            give(place, Reason::Count { rule, number, of: count });
        }
        for (place, number) in kept(&all, count, period_of) {
            if there.get(place).is_some_and(|dump| by_snapshots(dump).is_empty()) {
                give(place, Reason::Count { rule, number, of: count });
            }
        }
    }
    if let (Some(within), Some((newest, _))) = (&policy.within, all.first()) {
        let newest = there.get(*newest).map(|dump| dump.fact.taken_at).unwrap_or_default();
        for (place, _) in &all {
            let age = there.get(*place).map(|dump| newest.duration_since(dump.fact.taken_at)).unwrap_or_default();
            // None is younger than the newest, so it is never negative.
            if Duration::try_from(age).unwrap_or_default() <= within.span() {
                give(*place, Reason::Within(within.clone()));
            }
        }
    }
    let last_snapshot = snapshots.iter().map(|snapshot| snapshot.sequence).max();
    for (place, dump) in there.iter().enumerate() {
        if policy.keeps_all() {
            give(place, Reason::NoRule);
        }
        if Some(place) == newest_proven {
            give(place, Reason::NewestProven);
        }
        if Some(place) == newest_snapshot {
            give(place, Reason::NewestSnapshot);
        }
        for snapshot in by_snapshots(dump) {
            if let Some(label) = snapshot.fact.label.as_deref().filter(|label| !label.is_empty() && !is_date(label)) {
                give(place, Reason::Label(label.to_owned()));
            }
        }
        if dump.fact.before_restore {
            give(place, Reason::BeforeRestore);
        }
        if last_snapshot.is_none_or(|last| dump.sequence > last) {
            give(place, Reason::NoSnapshotYet);
        }
        if damaged.contains(&dump.fact.key) {
            give(place, Reason::Damaged);
        }
    }
    Plan { dumps: planned }
}

/// The first day of the ISO week of `date`.
fn monday(date: Date) -> ISOWeekDate {
    let week = date.iso_week_date();
    week.first_of_week().unwrap_or(week)
}

#[cfg(test)]
mod tests;
