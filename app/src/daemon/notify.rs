//! Telling of the daemon's jobs, and of what it has noticed. Jobs do not tell of themselves: one that is killed could not.

use super::feed::{Happened, Notice, Report, Watcher};
use crate::notify::{Message, Notifiers, Origin};
use crate::schedule::planner::{Job, Why};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Messages that wait to be delivered; more are not kept.
const WAITING_MAX: usize = 64;
/// How long the end of the daemon waits for them.
const END_WITHIN: Duration = Duration::from_secs(45);
/// The clock of a machine that slept over night went ahead: that is told in the log, and to nobody else.
const JUMP_TOLD_S: i64 = 86_400;

/// What waits to be delivered.
enum Waiting {
    /// A message, and the failure that it tells of: which job's, and what it said.
    Message(Box<Message>, Option<(Job, String)>),
    /// Nothing comes behind this.
    End,
}

#[derive(Default)]
struct Seen {
    /// Whether the job that runs is one that failed and is tried again.
    is_retry: bool,
    /// What each job's last failure said.
    failures: BTreeMap<Job, String>,
}

impl Seen {
    /// Nobody was told of this failure: when it comes again, it is news.
    fn forget(&mut self, failure: &(Job, String)) {
        if self.failures.get(&failure.0) == Some(&failure.1) {
            self.failures.remove(&failure.0);
        }
    }
}

/// Makes messages of what happens.
pub struct Teller {
    queue: mpsc::Sender<Waiting>,
    origin: Origin,
    seen: Arc<Mutex<Seen>>,
    log: Arc<dyn Watcher>,
}

/// Delivers them, one after the other.
pub struct Delivery {
    queue: mpsc::Sender<Waiting>,
    task: JoinHandle<()>,
}

impl Teller {
    /// A teller, and the delivery of what it tells. What cannot be delivered is told to `log`.
    #[must_use]
    pub fn start(notifiers: Notifiers, origin: Origin, log: Arc<dyn Watcher>) -> (Arc<Self>, Delivery) {
        let (queue, mut waiting) = mpsc::channel::<Waiting>(WAITING_MAX);
        let (warned, seen) = (Arc::clone(&log), Arc::<Mutex<Seen>>::default());
        let task = tokio::spawn({
            let seen = Arc::clone(&seen);
            async move {
                while let Some(Waiting::Message(message, failure)) = waiting.recv().await {
                    let told = notifiers.tell(&message).await;
                    for problem in &told.problems {
                        warned.notice(&Happened::Warned(problem));
                    }
                    if let Some(failure) = failure.filter(|_| told.in_vain) {
                        seen.lock().unwrap_or_else(PoisonError::into_inner).forget(&failure);
                    }
                }
            }
        });
        (Arc::new(Self { queue: queue.clone(), origin, seen, log }), Delivery { queue, task })
    }

    fn tell(&self, message: Message, failure: Option<(Job, String)>) {
        if self.queue.try_send(Waiting::Message(Box::new(message), failure.clone())).is_err() {
            self.log.notice(&Happened::Warned("nobody takes notifications: one more is not delivered"));
            if let Some(failure) = failure {
                self.seen.lock().unwrap_or_else(PoisonError::into_inner).forget(&failure);
            }
        }
    }

    fn began(&self, job: Job, why: Why, at: Timestamp) {
        let is_retry = matches!(why, Why::Retry { .. });
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).is_retry = is_retry;
        if !is_retry {
            self.tell(Message::start(job.name(), at, &self.origin), None);
        }
    }

    fn ended(&self, report: &Report) {
        let last = &report.last;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = if last.is_well() { seen.failures.remove(&report.job) } else { seen.failures.insert(report.job, last.message.clone()) };
        // The same failure again, a quarter of an hour later, is no news.
        let is_news = !seen.is_retry || before.is_none_or(|before| before != last.message);
        drop(seen);
        if is_news || last.is_well() {
            let died = report.summary.is_empty().then_some(last.message.as_str());
            let message = Message::end(report.job.name(), (last.began_at, last.ended_at), report.summary.clone(), died, &self.origin);
            self.tell(message, (!last.is_well()).then(|| (report.job, last.message.clone())));
        }
    }
}

impl Watcher for Teller {
    fn notice(&self, happened: &Happened<'_>) {
        match happened {
            Happened::Began { job, why, at } => self.began(*job, *why, *at),
            Happened::Ended(report) => self.ended(report),
            Happened::Noticed(Notice::ClockJumped { by_s: 0..JUMP_TOLD_S }) => {}
            Happened::Noticed(notice) => self.tell(Message::noticed(notice, Timestamp::now(), &self.origin), None),
            Happened::Emitted(_) | Happened::Wrote(_) | Happened::Planned(_) | Happened::Warned(_) => {}
        }
    }
}

impl Delivery {
    /// Waits until all that was told is delivered, or has been tried for long enough.
    pub async fn end(self) {
        let delivered = async {
            // Behind all that waits.
            if self.queue.send(Waiting::End).await.is_ok() {
                self.task.await.unwrap_or_default();
            }
        };
        tokio::time::timeout(END_WITHIN, delivered).await.unwrap_or_default();
    }
}
