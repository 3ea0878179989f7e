//! One run at a time: by a lock within this state folder, by heartbeats in the log across machines.

use super::{BackupError, Plan};
use crate::budget::DEAD_AFTER;
use crate::event::{Event, Monitor};
use crate::repository::state::StateFolder;
use crate::repository::{Repository, Session};
use jiff::Timestamp;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How often a waiting run looks.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Opens the repository for a run: waits until no other process writes from this state folder.
///
/// # Errors
/// Still busy after `wait`, or see [`crate::repository::OpenError`].
pub async fn open(repository: Repository, state: StateFolder, wait: Duration, monitor: &dyn Monitor, stop: &CancellationToken) -> Result<Session, BackupError> {
    let patience = Patience::new(wait);
    let lock = loop {
        if let Some(lock) = state.try_lock().map_err(crate::repository::OpenError::from)? {
            break lock;
        }
        let who = "another process on this machine holds its state folder".to_owned();
        patience.wait(who, monitor, stop).await?;
    };
    Ok(Session::open(repository, state, lock, monitor).await?)
}

struct Patience {
    until: Instant,
}

impl Patience {
    fn new(wait: Duration) -> Self {
        Self { until: Instant::now() + wait }
    }

    async fn wait(&self, who: String, monitor: &dyn Monitor, stop: &CancellationToken) -> Result<(), BackupError> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(BackupError::Busy { who });
        }
        monitor.emit(Event::Waiting { what: format!("{who}; waiting at most {} s more", left.as_secs()) });
        tokio::select! {
            () = stop.cancelled() => Err(BackupError::Interrupted),
            () = tokio::time::sleep(LOOK_EVERY.min(left)) => Ok(()),
        }
    }
}

/// Waits until no other writer's run is alive. One's own unfinished run is dead: its lock is ours.
pub(super) async fn wait_for_others(session: &mut Session, plan: &Plan, monitor: &dyn Monitor, stop: &CancellationToken) -> Result<(), BackupError> {
    let patience = Patience::new(plan.wait);
    let mut last_seen = (0, Instant::now());
    loop {
        let Some(other) = session.manifest.runs(1)?.into_iter().find(|run| run.outcome.is_none()) else { return Ok(()) };
        if plan.shard.is_some_and(|shard| shard.run == other.id) {
            return Ok(());
        }
        if last_seen.0 != other.last_entry {
            last_seen = (other.last_entry, Instant::now());
        }
        // Its clock may be wrong: what was waited for here counts as well.
        let by_its_clock = Timestamp::now().duration_since(other.last_entry_at);
        let silent_for = Duration::try_from(by_its_clock).unwrap_or_default().max(last_seen.1.elapsed());
        // Shards are several writers: that one of them was here says nothing of the others.
        let is_own = other.writer == session.writer && other.started.shard.is_none();
        if is_own || silent_for > DEAD_AFTER || plan.take_over {
            monitor.emit(Event::DeadRunFound { run: other.id });
            return Ok(());
        }
        let who = format!("run {} on `{}` wrote {} s ago", other.id.short(), crate::model::encode_segment(other.started.host.as_bytes()), silent_for.as_secs());
        patience.wait(who, monitor, stop).await?;
        session.refresh(monitor).await?;
    }
}
