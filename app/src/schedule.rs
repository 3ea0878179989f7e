//! When jobs run: pure. Whoever asks says what time it is.
//!
//! [`Calendar`] is one cron expression in one time zone; [`planner`] says which job is to run now, of several, and when to look again.

pub mod planner;

use croner::Cron;
use croner::errors::CronError;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};

/// An expression that is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CalendarError {
    /// It cannot be understood.
    #[error("{0}; write `minute hour day month weekday`, e.g. `0 3 * * *`, or @hourly, @daily, @weekly, @monthly, @yearly")]
    Expression(String),
    /// There is no such time, e.g. the 30th of February.
    #[error("no time ever fits it")]
    Never,
}

/// The times that a cron expression names in a time zone.
///
/// Where the hour is `*` or `*/N`, it goes by elapsed time: what falls into an hour that comes twice runs in both, what falls into an hour that is skipped
/// does not run. With any other hour it goes by the clock on the wall, as people mean it: a time that is skipped counts as the moment right after, once
/// however many of the expression's times were skipped, and a time that comes twice counts when it comes first.
#[derive(Debug, Clone)]
pub struct Calendar {
    cron: Cron,
    zone: TimeZone,
    by_elapsed_time: bool,
    text: String,
}

/// Names for five fields, as cron has them. Those that croner knows too are here as well: whether the hour is `*` is read off the fields.
const NICKNAMES: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

/// A change of the clock repeats three hours at most, of which each minute may be named: then another day comes.
const REPEATED_MAX: usize = 3 * 60 + 1;

impl Calendar {
    /// The calendar of `text`: five fields of numbers or names, or a nickname like `@daily`.
    ///
    /// # Errors
    /// It cannot be understood, or names no time that will ever be.
    pub fn new(text: &str, zone: TimeZone) -> Result<Self, CalendarError> {
        let text = text.trim();
        let fields = NICKNAMES.iter().find(|(name, _)| text.eq_ignore_ascii_case(name)).map_or(text, |(_, fields)| fields);
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(fields).map_err(|error| CalendarError::Expression(shown(&error)))?;
        let by_elapsed_time = fields.split_whitespace().nth(1).is_some_and(|hour| hour.starts_with('*'));
        let calendar = Self { cron, zone, by_elapsed_time, text: text.to_owned() };
        // Any start will do: what ever comes, comes within a cycle of leap years.
        calendar.next_civil(DateTime::constant(2024, 1, 1, 0, 0, 0, 0), true).map(|_| calendar).ok_or(CalendarError::Never)
    }

    /// The expression, as it was given.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Its time zone.
    #[must_use]
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// The first time after `after`. `None` only at the end of time.
    #[must_use]
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        if self.by_elapsed_time { self.next_elapsed(after) } else { self.next_on_the_wall(after) }
    }

    /// The last time after `after` and not after `now`, and how many there are, counted up to `count_max`.
    #[must_use]
    pub fn passed(&self, after: Timestamp, now: Timestamp, count_max: u32) -> Option<(Timestamp, u32)> {
        let mut found = None;
        let mut from = after;
        while let Some(next) = self.next_after(from).filter(|next| *next <= now) {
            let count = found.map_or(0, |(_, count): (_, u32)| count) + 1;
            if count > count_max {
                // Long ago: the last one is looked for near the end, in steps that double.
                return Some((self.last_before(from, now), count_max));
            }
            found = Some((next, count));
            from = next;
        }
        found
    }

    /// The last time in (`after`, `now`], where there is one.
    fn last_before(&self, after: Timestamp, now: Timestamp) -> Timestamp {
        let mut back = 60_i64;
        let mut found = after;
        loop {
            let from = now.checked_sub(jiff::SignedDuration::from_secs(back)).map_or(after, |from| from.max(after));
            let mut next = self.next_after(from).filter(|next| *next <= now);
            while let Some(time) = next {
                found = time;
                next = self.next_after(time).filter(|next| *next <= now);
            }
            if found > after || from <= after {
                return found;
            }
            back = back.saturating_mul(2);
        }
    }

    fn next_civil(&self, after: DateTime, inclusive: bool) -> Option<DateTime> {
        self.cron.find_next_occurrence(&after, inclusive).ok()
    }

    /// While the zone's offset stays, its clock is a straight line: the next time is looked for on each of these lines.
    fn next_elapsed(&self, after: Timestamp) -> Option<Timestamp> {
        let (mut from, mut inclusive) = (after, false);
        loop {
            let offset = self.zone.to_offset(from);
            let until = self.zone.following(from).next().map(|change| change.timestamp());
            let time = self.next_civil(offset.to_datetime(from), inclusive).and_then(|civil| offset.to_timestamp(civil).ok());
            match (time, until) {
                (Some(time), Some(until)) if time < until => return Some(time),
                (time, None) => return time,
                (_, Some(until)) => (from, inclusive) = (until, true),
            }
        }
    }

    fn next_on_the_wall(&self, after: Timestamp) -> Option<Timestamp> {
        let mut civil = self.zone.to_datetime(after);
        // Only times of a range that repeats, or is skipped, lead back to `after` or before.
        for _ in 0..=REPEATED_MAX {
            civil = self.next_civil(civil, false)?;
            let ambiguous = self.zone.to_ambiguous_timestamp(civil);
            let time = match ambiguous.offset() {
                // By the offset after it, a time in the gap lies before the change: the next change is the one.
                AmbiguousOffset::Gap { after: new, .. } => self.zone.following(new.to_timestamp(civil).ok()?).next()?.timestamp(),
                AmbiguousOffset::Unambiguous { .. } | AmbiguousOffset::Fold { .. } => ambiguous.compatible().ok()?,
            };
            if time > after {
                return Some(time);
            }
        }
        None
    }
}

/// What croner says, without its own name in it.
fn shown(error: &CronError) -> String {
    match error {
        CronError::EmptyPattern => "it is empty".to_owned(),
        CronError::InvalidPattern(text) | CronError::IllegalCharacters(text) | CronError::ComponentError(text) => {
            let text = text.replace("Pattern must have 5 fields when seconds are disallowed", "it has not five fields");
            text.trim_end_matches('.').to_owned()
        }
        other => other.to_string().trim_end_matches('.').to_owned(),
    }
}

#[cfg(test)]
mod tests;
