//! What happened when: each run with its snapshot, and what came, went and changed.

use super::layout::{Tab, badge, empty, shell};
use super::setup::Page;
use super::source::{SourceError, TIMELINE_ROWS};
use super::verdict::Level;
use super::words::{bytes, count, counted, foreign, moment, span};
use crate::standing::is_older;
use immich_backup_core::budget::DEAD_AFTER;
use immich_backup_core::model::RunId;
use immich_backup_core::repository::log::SnapshotFact;
use immich_backup_core::repository::manifest::{CHANGES_COUNTED_MAX, Changes, SizeAt, SnapshotRow, TimelineRow};
use jiff::Timestamp;
use maud::{Markup, html};
use std::collections::HashMap;

/// How snapshots differ from those before them.
pub type Differences = HashMap<RunId, (SizeAt, Changes)>;

/// What is asked for the differences of these rows.
pub fn snapshots_of(rows: &[TimelineRow]) -> Vec<(RunId, u64)> {
    rows.iter().filter_map(|row| row.snapshot.as_ref()).map(|snapshot| (snapshot.id, snapshot.sequence)).collect()
}

/// A page of the timeline, of runs that began before log entry `before`.
pub async fn view(page: &Page, before: Option<u64>) -> Result<Markup, SourceError> {
    let rows = page.source.timeline(before.unwrap_or(u64::MAX)).await?;
    let differences = page.source.changes(snapshots_of(&rows)).await?;
    let more = (rows.len() as u64 == u64::from(TIMELINE_ROWS)).then(|| rows.last().map(|row| row.first_entry)).flatten();
    let content = html! {
        h1 { "Timeline" }
        @if rows.is_empty() {
            (empty("Nothing here yet", "Each run of a backup has its line here: what came, what went, what was sent, and what was proven."))
        } @else {
            (list(page, &rows, Some(&differences), Timestamp::now(), true))
        }
        @if before.is_some() || more.is_some() {
            nav.pages aria-label="Pages" {
                @if before.is_some() { a.button href="/timeline" { "Newest" } }
                @if let Some(entry) = more { a.button rel="next" href=(format!("/timeline?before={entry}")) { "Older" } }
            }
        }
    };
    Ok(shell(page, Tab::Timeline, "Timeline", &content))
}

/// Runs, the newest first; without differences, where those are not known.
pub fn list(page: &Page, rows: &[TimelineRow], differences: Option<&Differences>, now: Timestamp, is_whole: bool) -> Markup {
    // What is on a page of its own stands directly below its title.
    let headed = |title: Markup| html! { @if is_whole { h2 { (title) } } @else { h3 { (title) } } };
    html! {
        ol.timeline {
            @for row in rows {
                li {
                    @match &row.snapshot {
                        Some(snapshot) => (of_snapshot(page, snapshot, differences.map(|all| all.get(&snapshot.id)), now, &headed)),
                        None => (of_failure(page, row, now, &headed)),
                    }
                }
            }
        }
    }
}

/// How well a snapshot is proven.
pub fn proof_badge(fact: &SnapshotFact) -> Markup {
    let (level, word) = match &fact.proof {
        None if fact.dump.is_none() => (Level::Attention, "No database".to_owned()),
        None => (Level::NotSafe, "Not Immich's database".to_owned()),
        Some(_) if fact.is_complete() => (Level::Safe, "Proven".to_owned()),
        Some(proof) if fact.is_proven() => (Level::Attention, format!("Proven {} of {}", count(proof.proven), count(proof.proven))),
        Some(proof) => (Level::NotSafe, format!("Proven {} of {}", count(proof.proven), count(proof.proven + proof.mismatched + proof.missing))),
    };
    badge(level, &word)
}

fn of_snapshot(
    page: &Page,
    snapshot: &SnapshotRow,
    difference: Option<Option<&(SizeAt, Changes)>>,
    now: Timestamp,
    headed: &dyn Fn(Markup) -> Markup,
) -> Markup {
    let fact = &snapshot.fact;
    let all = fact.totals.all();
    let took = u64::try_from(fact.taken_at.duration_since(fact.started_at).as_secs()).unwrap_or(0);
    html! {
        article {
            header {
                (headed(html! { a href=(format!("/snapshots/{}", snapshot.id)) { (moment(fact.taken_at, now, &page.zone)) } }))
                (proof_badge(fact))
                @if let Some(label) = &fact.label { span.label { (foreign(label)) } }
                p.totals { (counted(all.files, "file", "files")) ", " (bytes(all.bytes)) }
            }
            p.difference {
                @match difference {
                    None => {}
                    Some(Some((before, changes))) => (in_words(all.files, before, changes)),
                    Some(None) => { span.came { "+" (count(all.files)) " came" } },
                }
                span { (bytes(fact.sent.bytes)) " sent" }
                span { @if took == 0 { "took less than a second" } @else { "took " (span(took)) } }
            }
            @for problem in problems(fact) { p.problem { (problem) } }
        }
    }
}

/// What came, went and changed: what came is what the totals do not explain otherwise.
fn in_words(files: u64, before: &SizeAt, changes: &Changes) -> Markup {
    let cut = if changes.is_cut { "more than " } else { "" };
    if changes.is_cut {
        return html! { span { (cut) (count(CHANGES_COUNTED_MAX)) " went or changed" } };
    }
    let came = (files + changes.went).saturating_sub(before.files);
    html! {
        @if came + changes.went + changes.changed == 0 { span { "nothing new" } }
        @if came > 0 { span.came { "+" (count(came)) " came" } }
        @if changes.changed > 0 { span.changed { (count(changes.changed)) " changed" } }
        @if changes.went > 0 { span.went { "−" (count(changes.went)) " went" } }
    }
}

/// What a snapshot's run had to complain about.
fn problems(fact: &SnapshotFact) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(proof) = fact.proof.as_ref().filter(|_| !fact.is_proven()) {
        problems.push(proof.headline());
    }
    for (number, what) in [
        (fact.unread_count, "files or folders could not be read"),
        (fact.bit_rot_count, "files were probably damaged on the disk; the good versions stay"),
        (fact.doubtful_count, "files were not what Immich recorded; the good versions stay"),
    ] {
        if number > 0 {
            problems.push(format!("{} {what}", count(number)));
        }
    }
    problems
}

fn of_failure(page: &Page, row: &TimelineRow, now: Timestamp, headed: &dyn Fn(Markup) -> Markup) -> Markup {
    let run = &row.run;
    let silent = is_older(run.last_entry_at, DEAD_AFTER, now);
    let (level, word, text) = match run.outcome.as_deref() {
        Some("withheld") => (Level::NotSafe, "Withheld", "Something was not as it should be: all that is new was stored, and no snapshot was made of it."),
        Some("interrupted") => (Level::Unknown, "Stopped", "It was asked to stop. What it had stored stays."),
        Some("failed") => (Level::Attention, "Failed", "It came to no end. What it had stored stays."),
        None if !silent => (Level::Unknown, "Running", "It writes to the log at least once a minute."),
        _ => (Level::Attention, "Died", "It ended without a word: no power, perhaps, or it was killed. What it had stored stays."),
    };
    let (gone, changed) = run.withheld;
    html! {
        article {
            header { (headed(moment(run.started.at, now, &page.zone))) (badge(level, word)) }
            p { (text) }
            @if let Some(reason) = &run.reason { p.problem { (foreign(reason)) } }
            @if gone + changed > 0 { p.problem { (counted(gone, "original was gone", "originals were gone")) ", " (counted(changed, "had changed", "had changed")) } }
            @if run.outcome.as_deref() == Some("withheld") { p.totals { "If it was meant: " code { "backup --accept " (run.id.to_string()) } } }
        }
    }
}
