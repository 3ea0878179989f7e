//! What a run would do. Nothing is read but names and times, nothing is written but a scratch file.

use super::checkpoint::LINK_IS_NOT_FOLLOWED;
use super::scan::{Scan, scan};
use super::{BackupError, Counts, Done, Ending, OpenSource, Plan, Report};
use crate::budget::{NAMED_MAX, QUEUE_PATHS_PER_WORKER};
use crate::event::{Event, Monitor, Phase};
use crate::library::walk::SYMBOLIC_LINK;
use crate::model::{Root, RunId};
use crate::repository::Session;
use crate::repository::log::Unread;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub(super) fn run(session: &Session, plan: &Plan, sources: &[OpenSource], monitor: &Arc<dyn Monitor>, stop: &CancellationToken) -> Result<Report, BackupError> {
    let scan_plan = Scan {
        sources: sources.to_vec(),
        scope: Arc::new(plan.scope.clone()),
        walkers: plan.walkers,
        rehash: None,
        count: false,
        shard: None,
        manifest: session.manifest.path().to_owned(),
        halt: stop.child_token(),
    };
    let (items, mut queue) = mpsc::channel(plan.workers.local().saturating_mul(QUEUE_PATHS_PER_WORKER));
    let (done, mut outcomes) = mpsc::channel(64);
    let mut counts = Counts::default();
    let mut unread = Vec::new();
    monitor.emit(Event::PhaseStarted { phase: Phase::Store, total_files: None, total_bytes: None });
    let seen = std::thread::scope(|scope| {
        let scan_plan = &scan_plan;
        let walking = scope.spawn(move || scan(scan_plan, &items, &done, monitor));
        let (mut new, mut changed) = (counts.new, counts.changed);
        let counting = scope.spawn(move || {
            while let Some(item) = queue.blocking_recv() {
                if item.current.is_some() { changed.add(item.size_bytes) } else { new.add(item.size_bytes) }
            }
            (new, changed)
        });
        let mut fatal = None;
        while let Some(outcome) = outcomes.blocking_recv() {
            match outcome {
                Done::Vanished(file) => {
                    if let Some(standing) = session.manifest.standing(&file)? {
                        counts.archived.add(standing.size_bytes);
                    }
                }
                Done::Unread { path, problem } => {
                    counts.unread += 1;
                    monitor.emit(Event::FileFailed { path: path.clone(), problem: problem.clone() });
                    if unread.len() < NAMED_MAX {
                        unread.push(Unread { path, problem });
                    }
                }
                Done::Special { file, kind } => {
                    counts.special += 1;
                    if kind == SYMBOLIC_LINK {
                        counts.unread += 1;
                        unread.push(Unread { path: file.to_string(), problem: LINK_IS_NOT_FOLLOWED.to_owned() });
                        unread.truncate(NAMED_MAX);
                    }
                }
                // The walk must be able to end: what it says is heard to the last.
                Done::Fatal(error) => fatal = Some(error),
                Done::Same { .. } | Done::Left | Done::Slipped | Done::Stored(_) | Done::BitRot(_) | Done::Postponed(_) | Done::Claim(_) => {}
            }
        }
        if let Ok((new, changed)) = counting.join() {
            (counts.new, counts.changed) = (new, changed);
        }
        let seen = walking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        fatal.map_or(seen, Err)
    })?;
    counts.seen = seen.files;
    counts.unchanged = seen.unchanged;
    monitor.emit(Event::PhaseFinished { phase: Phase::Store });
    // Folders that are gone altogether.
    let lookup = crate::repository::manifest::Lookup::open(session.manifest.path())?;
    let mut folders = session.manifest.folders();
    loop {
        let page = folders.next_page()?;
        if page.is_empty() {
            break;
        }
        for (number, root, folder) in page {
            let stays = root == Root::Config && sources.iter().all(|open| open.source.root != root);
            if !stays && !seen.has_folder(number) && !seen.is_unknown(&root, &folder) {
                counts.archived.files += lookup.count(number)?;
            }
        }
    }
    let totals = session.manifest.totals();
    Ok(Report {
        run: RunId::random(),
        ending: Ending::DryRun,
        counts,
        totals,
        unread,
        bit_rot: Vec::new(),
        doubtful: Vec::new(),
        dump: None,
        proof: None,
        ignored: 0,
        downtime: None,
        not_up: None,
    })
}
