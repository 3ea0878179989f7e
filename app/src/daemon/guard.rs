//! What nobody else would notice, since nothing happens: that the newest proven snapshot has become too old, that a drill is due, that the clock jumped.

use super::board::Board;
use super::feed::{Feed, Happened, Notice};
use crate::standing::{Standing, is_older};
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// What is still so is told again after this.
const STALE_AGAIN: Duration = Duration::from_secs(86_400);
/// And of a drill, which nobody does at once, after this.
const DRILL_AGAIN: Duration = Duration::from_secs(7 * 86_400);
/// A clock that is corrected by no more than this is as it should be.
const JUMP_MIN: SignedDuration = SignedDuration::from_mins(10);

/// What was told, and when.
#[derive(Debug)]
pub struct Guard {
    max_age: Option<Duration>,
    /// Before this nobody was there who could have made a snapshot.
    since: Timestamp,
    seen: (Timestamp, Instant),
    stale_told: Option<Timestamp>,
    drill_told: Option<Timestamp>,
}

impl Guard {
    /// A guard that begins at `now`.
    #[must_use]
    pub fn new(max_age: Option<Duration>, since: Timestamp, now: (Timestamp, Instant)) -> Self {
        Self { max_age, since, seen: now, stale_told: None, drill_told: None }
    }

    /// What there is to tell at `now`, by the clock on the wall and by one that nobody sets.
    pub fn look(&mut self, standing: Option<&Standing>, now: (Timestamp, Instant)) -> Vec<Notice> {
        let mut notices = Vec::new();
        let (wall, steady) = now;
        let passed = SignedDuration::try_from(steady.duration_since(self.seen.1)).unwrap_or(SignedDuration::MAX);
        let jump = wall.duration_since(self.seen.0).saturating_sub(passed);
        self.seen = now;
        if jump.abs() > JUMP_MIN {
            notices.push(Notice::ClockJumped { by_s: jump.as_secs() });
        }
        let guarded_at = standing.and_then(|standing| standing.guarded_at);
        let stale = self.max_age.is_some_and(|max_age| is_older(guarded_at.unwrap_or(self.since), max_age, wall));
        if is_to_be_told(&mut self.stale_told, stale, STALE_AGAIN, wall) {
            notices.push(Notice::Stale { guarded_at });
        }
        let overdue = standing.is_some_and(|standing| standing.drill_is_overdue(wall));
        if is_to_be_told(&mut self.drill_told, overdue, DRILL_AGAIN, wall) {
            notices.push(Notice::DrillOverdue { drill_at: standing.and_then(|standing| standing.drill_at) });
        }
        notices
    }
}

/// Once when it begins, and again after a while; when it is over, it may begin anew.
fn is_to_be_told(told: &mut Option<Timestamp>, is_so: bool, again: Duration, now: Timestamp) -> bool {
    if !is_so {
        *told = None;
        return false;
    }
    let due = told.is_none_or(|at| is_older(at, again, now));
    if due {
        *told = Some(now);
    }
    due
}

/// Looks for as long as the daemon lives.
pub async fn watch(feed: Feed, board: Arc<Board>, max_age: Option<Duration>, since: Timestamp) {
    let mut guard = Guard::new(max_age, since, (Timestamp::now(), Instant::now()));
    loop {
        for notice in guard.look(board.standing().as_ref(), (Timestamp::now(), Instant::now())) {
            feed.tell(&Happened::Noticed(&notice));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::standing::tests::standing;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn what_is_too_old_is_told_once_a_day_until_it_is_not() {
        let start = Instant::now();
        let begin = at("2026-05-01T03:00Z");
        let mut guard = Guard::new(Some(26 * HOUR), begin, (begin, start));
        let after = |hours: u32| (begin + SignedDuration::from_hours(hours.into()), start + HOUR * hours);
        assert_eq!(guard.look(None, after(26)), [], "there was time for a first one");
        assert_eq!(guard.look(None, after(27)), [Notice::Stale { guarded_at: None }]);
        assert_eq!(guard.look(None, after(28)), []);
        assert_eq!(guard.look(None, after(52)), [Notice::Stale { guarded_at: None }]);
        let good = standing(Some("2026-05-03T08:00Z"));
        assert_eq!(guard.look(Some(&good), after(53)), []);
        let stale = Notice::Stale { guarded_at: good.guarded_at };
        assert_eq!(guard.look(Some(&good), after(80)), [stale], "begins anew");
        // A snapshot without a proof does not count.
        let unproven = Standing { snapshot_at: Some(after(81).0), ..standing(None) };
        assert_eq!(guard.look(Some(&unproven), after(120)), [Notice::Stale { guarded_at: None }]);
        let mut nobody_asked = Guard::new(None, begin, (begin, start));
        assert_eq!(nobody_asked.look(None, after(1_000)), []);
    }

    #[test]
    fn a_drill_is_asked_for_once_a_week_and_not_before_the_first_is_due() {
        let start = Instant::now();
        let begin = at("2026-05-01T03:00Z");
        let mut guard = Guard::new(None, begin, (begin, start));
        let after = |days: u32| (begin + SignedDuration::from_hours(i64::from(days) * 24), start + HOUR * 24 * days);
        let never = Standing { has_database: true, first_snapshot_at: Some(begin), ..standing(Some("2026-05-01T03:00Z")) };
        assert_eq!(guard.look(Some(&never), after(34)), []);
        assert_eq!(guard.look(Some(&never), after(36)), [Notice::DrillOverdue { drill_at: None }]);
        assert_eq!(guard.look(Some(&never), after(40)), []);
        assert_eq!(guard.look(Some(&never), after(44)), [Notice::DrillOverdue { drill_at: None }]);
        let drilled = Standing { drill_at: Some(after(44).0), ..never.clone() };
        assert_eq!(guard.look(Some(&drilled), after(60)), []);
        let files_only = Standing { has_database: false, ..never };
        assert_eq!(guard.look(Some(&files_only), after(99)), []);
    }

    #[test]
    fn a_clock_that_jumps_is_noticed_and_one_that_is_corrected_a_little_is_not() {
        let start = Instant::now();
        let begin = at("2026-05-01T03:00Z");
        let mut guard = Guard::new(None, begin, (begin, start));
        let mut wall = begin;
        for (step, by_s) in [(60 - 3 * 86_400, Some(-3 * 86_400)), (60, None), (60 + 599, None), (60 - 599, None), (60 + 7_200, Some(7_200))] {
            wall += SignedDuration::from_secs(step);
            let steady = guard.seen.1 + Duration::from_secs(60);
            assert_eq!(guard.look(None, (wall, steady)), by_s.map(|by_s| Notice::ClockJumped { by_s }).into_iter().collect::<Vec<_>>(), "{step}");
        }
    }
}
