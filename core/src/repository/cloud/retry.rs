//! Trying again: how often, after which wait, and telling of it.

use super::super::store::StoreError;
use super::answer::Fault;
use crate::event::{Event, Monitor};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often and after which wait a request is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts after the first.
    pub retries: u32,
    /// The wait before the first of them; it doubles each time.
    pub first_wait: Duration,
}

impl Default for RetryPolicy {
    /// Five, after about 2, 4, 8, 16 and 32 seconds.
    fn default() -> Self {
        Self { retries: 5, first_wait: Duration::from_secs(2) }
    }
}

impl RetryPolicy {
    /// The wait before retry `number` (from 1): doubled each time, by chance up to a quarter shorter or longer, so that many who were refused at
    /// once do not come back at once; at least what the store asked for.
    fn wait(&self, number: u32, asked: Option<Duration>) -> Duration {
        let doubled = self.first_wait.saturating_mul(2_u32.saturating_pow(number.saturating_sub(1)));
        let chance = rand::random_range(0.75..1.25);
        doubled.mul_f64(chance).max(asked.unwrap_or_default())
    }
}

/// The retries of one request.
pub(super) struct Retries<'a> {
    policy: RetryPolicy,
    monitor: &'a Arc<dyn Monitor>,
    action: &'static str,
    key: &'a str,
    done: u32,
    /// Nothing is tried again once this is set.
    stop: &'a CancellationToken,
    /// Whether any attempt so far may have happened.
    pub(super) perhaps_done: bool,
}

impl<'a> Retries<'a> {
    pub(super) fn new(policy: RetryPolicy, monitor: &'a Arc<dyn Monitor>, stop: &'a CancellationToken, action: &'static str, key: &'a str) -> Self {
        Self { policy, monitor, action, key, done: 0, stop, perhaps_done: false }
    }

    /// The same, where `done` of them were used up before.
    pub(super) fn that_follow(self, done: u32) -> Self {
        Self { done, ..self }
    }

    /// Waits where another attempt may help; an error where it will not, or where there have been enough.
    pub(super) async fn after(&mut self, fault: Fault) -> Result<(), StoreError> {
        let (action, key) = (self.action, self.key.to_owned());
        let (problem, wait) = match fault {
            Fault::Final(error) => return Err(error),
            Fault::Unknown(problem) => return Err(StoreError::Io { action, key, source: io::Error::other(problem) }),
            Fault::Passing { problem, wait, perhaps_done } => {
                self.perhaps_done |= perhaps_done;
                (problem, wait)
            }
        };
        if self.done >= self.policy.retries || self.stop.is_cancelled() {
            let source = io::Error::other(if self.done == 0 { problem } else { format!("{problem} (tried {} times)", self.done + 1) });
            return Err(if self.perhaps_done { StoreError::Unanswered { action, key, source } } else { StoreError::Unreachable { action, key, source } });
        }
        self.done += 1;
        let wait = self.policy.wait(self.done, wait);
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        self.monitor.emit(Event::Retrying { action: action.into(), key, retry: self.done, of: self.policy.retries, wait_ms, problem });
        // Woken early it is tried once more, the last time.
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = self.stop.cancelled() => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Recorder;

    #[test]
    fn waits_double_and_vary_and_the_store_is_heeded() {
        let policy = RetryPolicy::default();
        for (number, seconds) in [(1, 2.0), (2, 4.0), (3, 8.0), (4, 16.0), (5, 32.0)] {
            let waits: Vec<_> = (0..50).map(|_| policy.wait(number, None).as_secs_f64()).collect();
            assert!(waits.iter().all(|wait| (seconds * 0.75..seconds * 1.25).contains(wait)), "{waits:?}");
            assert!(waits.iter().any(|wait| (wait - waits[0]).abs() > 0.001), "no chance in it");
        }
        assert_eq!(policy.wait(1, Some(Duration::from_secs(60))), Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn five_retries_and_no_more_and_each_is_told() {
        let (recorder, stop) = (Arc::new(Recorder::default()), CancellationToken::new());
        let monitor: Arc<dyn Monitor> = recorder.clone();
        let mut retries = Retries::new(RetryPolicy::default(), &monitor, &stop, "store", "library/a");
        let begun = tokio::time::Instant::now();
        let passing = || Fault::Passing { problem: "503".to_owned(), wait: None, perhaps_done: false };
        for _ in 0..5 {
            retries.after(passing()).await.unwrap();
        }
        assert!(matches!(retries.after(passing()).await, Err(StoreError::Unreachable { .. })));
        assert!((46.0..78.0).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());
        assert_eq!(recorder.events().len(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_have_happened_is_not_called_failed() {
        let monitor: Arc<dyn Monitor> = Arc::new(crate::event::Silent);
        let policy = RetryPolicy { retries: 1, ..RetryPolicy::default() };
        let stop = CancellationToken::new();
        let mut retries = Retries::new(policy, &monitor, &stop, "store", "k");
        retries.after(Fault::Passing { problem: String::new(), wait: None, perhaps_done: true }).await.unwrap();
        let ended = retries.after(Fault::Passing { problem: String::new(), wait: None, perhaps_done: false }).await;
        assert!(matches!(ended, Err(StoreError::Unanswered { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_the_wait_and_there_is_no_further_retry() {
        let monitor: Arc<dyn Monitor> = Arc::new(crate::event::Silent);
        let stop = CancellationToken::new();
        let mut retries = Retries::new(RetryPolicy::default(), &monitor, &stop, "store", "k");
        let passing = || Fault::Passing { problem: "503".to_owned(), wait: Some(Duration::from_secs(300)), perhaps_done: false };
        let begun = tokio::time::Instant::now();
        let (waited, ()) = tokio::join!(retries.after(passing()), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            stop.cancel();
        });
        waited.unwrap();
        assert!(retries.after(passing()).await.is_err());
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
}
