//! *Is it safe?*

use super::chart;
use super::layout::{Tab, empty, shell, sign};
use super::now;
use super::setup::Page;
use super::source::{Known, Reading, SourceError};
use super::timeline;
use super::verdict::{self, Facts, Verdict};
use super::words::{bytes, count, counted, foreign, time};
use crate::daemon::board::Status;
use crate::schedule::planner::Job;
use immich_backup_core::repository::log::{DrillOutcome, Drilled};
use immich_backup_core::verdict::{Age, NamedVerdict, Proof, Thing, Verdict as Asset};
use jiff::Timestamp;
use maud::{Markup, html};

/// Names that the overview shows; the snapshot's own page has all that the log names.
const NAMED_SHOWN: usize = 20;
/// Runs that it shows.
const RUNS_SHOWN: usize = 5;
/// Damaged objects that it shows.
const DAMAGED_SHOWN: usize = 10;

/// The overview.
pub async fn view(page: &Page) -> Markup {
    let now = Timestamp::now();
    let status = page.board.status(now);
    let reading = page.source.reading();
    let content = match page.source.known().await {
        Ok(known) => {
            let rows = known.recent.get(..RUNS_SHOWN.min(known.recent.len())).unwrap_or_default();
            let differences = page.source.changes(timeline::snapshots_of(rows)).await.ok();
            let runs: Vec<_> = known.recent.iter().take_while(|row| row.snapshot.is_none()).map(|row| &row.run).collect();
            let verdict = verdict::of(&Facts {
                standing: &known.standing,
                latest: known.latest.as_ref().map(|latest| &latest.fact),
                runs: &runs,
                withheld: known.withheld.as_ref(),
                jobs: &status.last_runs(),
                is_running: status.jobs_running().any(|(job, runs)| runs && job == Job::Backup),
                reading: reading.as_ref(),
                max_age: page.max_age,
                now,
            });
            html! {
                (now::strip(page))
                (card(page, &verdict, Some(&known), now))
                (not_well(&known))
                (evidence(page, &known, now))
                (checks(page, &known, &status, now))
                (chart::growth(&known.sizes, &page.zone))
                @if !rows.is_empty() {
                    section aria-labelledby="recent" {
                        h2 #recent { "Last runs" }
                        (timeline::list(page, rows, differences.as_ref(), now, false))
                        p { a.button href="/timeline" { "Whole timeline" } }
                    }
                }
            }
        }
        Err(error) => html! {
            (now::strip(page))
            (card(page, &of_unknown(&error, reading.as_ref()), None, now))
            (checks_of_jobs(page, &status, now))
        },
    };
    shell(page, Tab::Overview, "Is it safe?", &content)
}

/// What is said where nothing is known: where the log was never read, why.
fn of_unknown(error: &SourceError, reading: Option<&Reading>) -> Verdict {
    let failed = reading.and_then(|reading| reading.failed.as_ref());
    match (failed, error) {
        (Some(failed), SourceError::Nothing | SourceError::Behind { .. }) => match verdict::unreadable(failed) {
            Some(reason) => Verdict { level: reason.level, sentence: reason.text.clone(), reasons: vec![reason] },
            None => verdict::unknown(
                format!("The repository could not be read: {}.", failed.1.trim_end_matches('.')),
                "It is tried again every few minutes. Look at the network, and at the credentials.",
            ),
        },
        (None, SourceError::Nothing) if reading.is_some_and(|reading| reading.at.is_none()) => {
            verdict::unknown("The repository's log is being read.", "The first time that takes a while.")
        }
        _ => of_error(error),
    }
}

/// What is said where nothing is known.
pub fn of_error(error: &SourceError) -> Verdict {
    match error {
        SourceError::Nothing => verdict::unknown(
            "Nothing is known of the repository here yet.",
            "After the first backup this page says whether everything is in it. If there were backups before, the next one reads their log.",
        ),
        SourceError::Behind { .. } => verdict::unknown(
            format!("{}.", capital(&error.to_string())),
            "The log is read anew, after an update for instance. It takes minutes, and loses nothing.",
        ),
        SourceError::Slow => verdict::unknown(
            format!("{}.", capital(&error.to_string())),
            "Load the page again. If it stays so, look at the disk of the state folder; the backup itself is elsewhere.",
        ),
        SourceError::Failed => {
            verdict::unknown(format!("{}.", capital(&error.to_string())), "That is a mistake of the program. Its own output has more; please report it.")
        }
        SourceError::Manifest(_) | SourceError::Tree(_) => verdict::unknown(
            format!("The local manifest cannot be read: {error}."),
            "It is only a cache of the log: the next backup makes it anew. `immich-backup status` says more.",
        ),
    }
}

fn capital(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

fn card(page: &Page, verdict: &Verdict, known: Option<&Known>, now: Timestamp) -> Markup {
    html! {
        section.verdict.(verdict.level.class()) aria-labelledby="verdict" {
            (sign(verdict.level))
            div {
                p.word { span.unseen { "Is it safe? " } (verdict.level.word()) }
                h1 #verdict { (foreign(&verdict.sentence)) }
                // page.js says here that it cannot ask any more.
                p.stale role="status" data-stale {}
                @if let Some(latest) = known.and_then(|known| known.latest.as_ref()) {
                    p.lead {
                        "Newest backup " (time(latest.fact.taken_at, now, &page.zone)) ": " (counted(latest.fact.totals.all().files, "file", "files")) ", " (bytes(latest.fact.totals.all().bytes)) "."
                        @if let Some(proof) = latest.fact.proof.as_ref().filter(|proof| proof.unprovable > 0 && proof.proven > 0) {
                            " " (count(proof.unprovable)) " more of external libraries are stored; Immich has no checksums of those."
                        }
                    }
                }
                @if let [first, rest @ ..] = verdict.reasons.as_slice() {
                    p.advice { (commands(first.advice)) }
                    @if !rest.is_empty() {
                        ul.reasons {
                            @for reason in rest { li.(reason.level.class()) { (sign(reason.level)) div { strong { (foreign(&reason.text)) } " " (commands(reason.advice)) } } }
                        }
                    }
                }
            }
        }
    }
}

/// A text of ours with `commands` in it.
fn commands(text: &str) -> Markup {
    html! { @for (number, part) in text.split('`').enumerate() { @if number % 2 == 1 { code { (part) } } @else { (part) } } }
}

/// How it is known that the bytes are there.
fn evidence(page: &Page, known: &Known, now: Timestamp) -> Markup {
    let Some(proof) = known.latest.as_ref().and_then(|latest| latest.fact.proof.as_ref()) else { return html! {} };
    let all = proof.proven + proof.unprovable;
    if all == 0 {
        return html! {};
    }
    let look = |name: &str, how: &str, age: Age, all_at: Option<Timestamp>| {
        html! {
            li {
                h3 { (name) }
                p.figure { strong { (count(age.assets)) } " of " (count(all)) }
                progress max=(all) value=(age.assets.min(all)) aria-label=(format!("{name}: {} of {}", count(age.assets), count(all))) {}
                p.how { (how) }
                p.how {
                    @match (all_at, age.oldest) {
                        // The proof is as of the snapshot, and the whole repository may have been looked at since.
                        (Some(at), _) if age.assets >= all => { "All of them " (time(at, now, &page.zone)) }
                        (Some(at), _) => { "As of that snapshot. The whole repository was last looked at " (time(at, now, &page.zone)) }
                        (None, Some(at)) => { "The oldest of these " (time(at, now, &page.zone)) }
                        (None, None) => { "Never" }
                    }
                }
            }
        }
    };
    html! {
        section aria-labelledby="evidence" {
            h2 #evidence { "How that is known" }
            ul.evidence {
                (look("Recorded", "The store took the bytes and checked their sum as they came.", proof.ages.recorded, None))
                (look("Seen", "The file was in a listing of the store, with its size.", proof.ages.listed, known.standing.listed_at))
                (look("Read back", "Every byte was fetched again and compared.", proof.ages.read, known.standing.read_at))
            }
        }
    }
}

/// When what was looked at, and when what runs next.
fn checks(page: &Page, known: &Known, status: &Status, now: Timestamp) -> Markup {
    let standing = &known.standing;
    let when = |at: Option<Timestamp>| html! { @if let Some(at) = at { (time(at, now, &page.zone)) } @else { span.never { "never" } } };
    html! {
        section aria-labelledby="checks" {
            h2 #checks { "When" }
            dl.facts {
                div { dt { "Last backup" } dd { (when(standing.snapshot_at)) } }
                @if standing.has_database { div { dt { "Last one that was all proven" } dd { (when(standing.proven_at)) } } }
                div { dt { "Last verification" } dd { (when(standing.verified_at)) } }
                div { dt { "All read back" } dd { (when(standing.read_at)) } }
                div { dt { "Last drill" } dd { (when(standing.drill_at)) @if let Some(drill) = &known.drill { (drill_words(&drill.fact)) } } }
                (next_runs(page, status, now))
            }
        }
    }
}

fn checks_of_jobs(page: &Page, status: &Status, now: Timestamp) -> Markup {
    html! {
        @if page.live.is_some() {
            section aria-labelledby="checks" { h2 #checks { "When" } dl.facts { (next_runs(page, status, now)) } }
        } @else {
            (empty("Waiting for the log", "This page only looks: it reads the repository's log every few minutes."))
        }
    }
}

fn next_runs(page: &Page, status: &Status, now: Timestamp) -> Markup {
    let of = |job| match job {
        Job::Backup => "Next backup",
        Job::Verify => "Next verification",
        Job::Drill => "Next drill",
        Job::Prune => "Next removal of old dumps",
    };
    html! { @for (job, at) in status.next_runs() { div { dt { (of(job)) } dd { (time(at, now, &page.zone)) } } } }
}

fn drill_words(drill: &Drilled) -> Markup {
    let outcome = match drill.outcome {
        DrillOutcome::Passed => "passed",
        DrillOutcome::Partial => "passed in part",
        DrillOutcome::Failed => "failed",
    };
    html! {
        ", " (outcome) ": " (counted(drill.rows, "row", "rows")) " restored, " (count(drill.sampled)) " of " (counted(drill.assets, "original", "originals")) " compared"
        @for problem in drill.problems.iter().take(3) { span.problem { (foreign(problem)) } }
    }
}

/// What is not well, by name.
fn not_well(known: &Known) -> Markup {
    let latest = known.latest.as_ref();
    let proof = latest.and_then(|latest| latest.fact.proof.as_ref());
    let href = latest.map(|latest| format!("/snapshots/{}", latest.id)).unwrap_or_default();
    html! {
        @if let Some(proof) = proof { (named(proof, NAMED_SHOWN, Some(&href))) }
        @if known.damaged.1 > 0 {
            section aria-labelledby="damaged" {
                h2 #damaged { "Damaged in the repository" }
                ul.names { @for (key, problem) in known.damaged.0.iter().take(DAMAGED_SHOWN) { li { code { (foreign(key)) } " " (foreign(problem)) } } }
                @if known.damaged.1 > DAMAGED_SHOWN as u64 { p { "and " (count(known.damaged.1 - DAMAGED_SHOWN as u64)) " more" } }
            }
        }
    }
}

fn is_bad(named: &NamedVerdict) -> bool {
    matches!(named.verdict, Asset::Missing | Asset::Mismatched | Asset::Outside) && named.thing != Some(Thing::Derived)
}

/// What a proof names that should be there, by name.
pub fn named(proof: &Proof, shown: usize, more: Option<&str>) -> Markup {
    let bad: Vec<_> = proof.named.iter().filter(|named| is_bad(named)).collect();
    let all = proof.missing + proof.mismatched + proof.outside + proof.companions.missing;
    html! {
        @if !bad.is_empty() {
            section aria-labelledby="missing" {
                h2 #missing { "By name" }
                div.scroll tabindex="0" role="region" aria-label="What is not well, by name" {
                    table {
                        thead { tr { th scope="col" { "What" } th scope="col" { "File" } } }
                        tbody { @for named in bad.iter().take(shown) { tr { td { (word(named)) } td.path { (foreign(&named.path)) @if named.kept { span.note { "An earlier version is in the repository." } } } } } }
                    }
                }
                @let told = bad.len().min(shown) as u64;
                @if all > told {
                    p { "and " (count(all - told)) " more" @if let Some(href) = more.filter(|_| bad.len() > shown) { ": " a href=(href) { "see the snapshot" } } }
                }
            }
        }
    }
}

fn word(named: &NamedVerdict) -> &'static str {
    match (named.verdict, named.thing) {
        (Asset::Missing, Some(Thing::Sidecar)) => "Sidecar missing",
        (Asset::Missing, Some(Thing::Profile)) => "Profile picture missing",
        (Asset::Missing, _) => "Missing",
        (Asset::Mismatched, _) => "Other content",
        (Asset::Outside, _) => "Not backed up",
        _ => "Doubtful",
    }
}
