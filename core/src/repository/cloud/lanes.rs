//! How many requests with content are on their way at once: as many as get through in time.
//!
//! What has to be there in time, whatever is on its way, takes none: entries of the log, by which others see that a run lives, and all that is as small.
//!
//! Many requests at once hide how far a store is. On a thin line they only share it: each takes longer, until all of them are given up at once for
//! standing still, and begin again. So there is one more while requests are through in time, and half as many where one is not.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit};

/// So many there are at first.
const FIRST: usize = 4;
/// More than these nobody can ask for.
const LANES_MAX: usize = 256;
/// Bytes that have to be through in a quarter of the time after which a request that stands still is given up.
const IN_TIME_BYTES: usize = 1 << 20;

/// The requests on their way to one store.
#[derive(Debug)]
pub(super) struct Lanes {
    free: Semaphore,
    state: Mutex<State>,
    idle: Duration,
}

#[derive(Debug)]
struct State {
    open: usize,
    /// Lanes that are closed as soon as they are left.
    closing: usize,
    /// When they were halved last: a request from before says nothing of what came of it.
    halved: Option<Instant>,
}

/// How a request left its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// All of it got there.
    Through,
    /// It was given up because nothing moved.
    StoodStill,
    /// Some other way, which says nothing of how wide the line is.
    Otherwise,
}

/// A request's own.
#[must_use]
pub(super) struct Lane<'a> {
    lanes: &'a Lanes,
    permit: Option<SemaphorePermit<'a>>,
    entered: Instant,
}

impl Lanes {
    /// A request that stands still is given up after `idle`.
    pub(super) fn new(idle: Duration) -> Self {
        Self { free: Semaphore::new(FIRST), state: Mutex::new(State { open: FIRST, closing: 0, halved: None }), idle }
    }

    /// Waits for a free one.
    pub(super) async fn enter(&self) -> Lane<'_> {
        // Never closed; and where it were, a request more would do no harm.
        let permit = self.free.acquire().await.ok();
        Lane { lanes: self, permit, entered: Instant::now() }
    }

    fn in_time(&self, bytes: usize) -> Duration {
        let times = u32::try_from(bytes.div_ceil(IN_TIME_BYTES)).unwrap_or(u32::MAX).max(1);
        (self.idle / 4).saturating_mul(times)
    }
}

impl Lane<'_> {
    /// From here on its time counts.
    pub(super) fn starts(&mut self) {
        self.entered = Instant::now();
    }

    /// `bytes` were sent, or were to be.
    pub(super) fn leave(mut self, bytes: usize, how: Left) {
        let lanes = self.lanes;
        let mut state = lanes.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_late = how == Left::StoodStill || how == Left::Through && self.entered.elapsed() > lanes.in_time(bytes);
        if state.halved.is_some_and(|halved| self.entered <= halved) {
            // It was under way when all of them were too many.
        } else if is_late {
            let left = (state.open / 2).max(1);
            state.closing += state.open - left;
            state.open = left;
            state.halved = Some(Instant::now());
        } else if how == Left::Through && state.open < LANES_MAX && lanes.free.available_permits() == 0 {
            state.open += 1;
            if state.closing > 0 {
                state.closing -= 1;
            } else {
                lanes.free.add_permits(1);
            }
        }
        if state.closing > 0
            && let Some(permit) = self.permit.take()
        {
            permit.forget();
            state.closing -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{StreamExt as _, stream};

    const IDLE: Duration = Duration::from_secs(60);

    fn open(lanes: &Lanes) -> usize {
        lanes.state.lock().unwrap().open
    }

    /// All that there are at once.
    async fn all(lanes: &Lanes) -> Vec<Lane<'_>> {
        let mut entered = Vec::new();
        while lanes.free.available_permits() > 0 {
            entered.push(lanes.enter().await);
        }
        entered
    }

    #[tokio::test]
    async fn more_while_all_are_in_use_and_in_time() {
        for (workers, at_least, at_most) in [(1, FIRST, FIRST), (44, 44, 45), (300, LANES_MAX, LANES_MAX)] {
            let lanes = Lanes::new(IDLE);
            let requests = stream::iter(0..4_000).for_each_concurrent(workers, |_| async {
                let lane = lanes.enter().await;
                tokio::task::yield_now().await;
                lane.leave(1, Left::Through);
            });
            requests.await;
            assert!((at_least..=at_most).contains(&open(&lanes)), "{workers}: {lanes:?}");
            assert_eq!(all(&lanes).await.len(), open(&lanes), "{workers}");
        }
    }

    #[tokio::test]
    async fn half_as_many_where_they_stand_still_and_once_for_those_that_were_there_together() {
        let lanes = Lanes::new(IDLE);
        for left in [2, 1, 1, 1] {
            for lane in all(&lanes).await {
                lane.leave(1, Left::StoodStill);
            }
            assert_eq!((open(&lanes), all(&lanes).await.len()), (left, left));
        }
        // And back again.
        for _ in 0..3 {
            for lane in all(&lanes).await {
                lane.leave(1, Left::Through);
            }
        }
        assert!(open(&lanes) > 1);
        assert_eq!(open(&lanes), all(&lanes).await.len());
    }

    #[tokio::test]
    async fn who_was_under_way_before_brings_none_back_and_a_line_that_is_down_opens_none() {
        let lanes = Lanes::new(IDLE);
        let mut together = all(&lanes).await;
        together.pop().unwrap().leave(1, Left::StoodStill);
        together.into_iter().for_each(|lane| lane.leave(1, Left::Through));
        assert_eq!((open(&lanes), all(&lanes).await.len()), (FIRST / 2, FIRST / 2));
        for lane in all(&lanes).await {
            lane.leave(1, Left::Otherwise);
        }
        assert_eq!((open(&lanes), all(&lanes).await.len()), (FIRST / 2, FIRST / 2));
        // What it waited for before it was sent does not count.
        let quick = Lanes::new(Duration::from_millis(80));
        let mut lane = quick.enter().await;
        tokio::time::sleep(Duration::from_millis(30)).await;
        lane.starts();
        lane.leave(1, Left::Through);
        assert_eq!(open(&quick), FIRST);
    }

    #[tokio::test]
    async fn late_is_measured_by_size() {
        let lanes = Lanes::new(Duration::from_millis(80));
        for (bytes, left) in [(8 << 20, FIRST), (1, FIRST / 2)] {
            let lane = lanes.enter().await;
            tokio::time::sleep(Duration::from_millis(30)).await;
            lane.leave(bytes, Left::Through);
            assert_eq!(open(&lanes), left, "{bytes}");
        }
    }

    #[tokio::test]
    async fn one_that_is_left_without_a_word_is_free_again() {
        let lanes = Lanes::new(IDLE);
        drop(all(&lanes).await);
        assert_eq!(all(&lanes).await.len(), FIRST);
    }
}
