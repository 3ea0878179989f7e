//! Is it safe? One level and one sentence, with every reason and what to do about it. Pure: what it weighs is handed to it.

use super::setup::REFRESHED_EVERY;
use super::source::Reading;
use super::words::{count, counted, span};
use crate::daemon::feed::LastRun;
use crate::exit::Exit;
use crate::schedule::planner::Job;
use crate::standing::{Standing, is_older};
use immich_backup_core::budget::DEAD_AFTER;
use immich_backup_core::repository::log::{DrillOutcome, SnapshotFact};
use immich_backup_core::repository::manifest::RunRow;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;

/// Where no `--max-age` is set, a proven snapshot is old after so long ...
const OLD_AFTER: Duration = Duration::from_secs(7 * 86_400);
/// ... and too old after so long.
const TOO_OLD_AFTER: Duration = Duration::from_secs(30 * 86_400);
/// The clocks of two machines differ by so much without anybody minding.
const CLOCKS_DIFFER_MAX: SignedDuration = SignedDuration::from_mins(10);
/// What was read of the log so long ago says little of now: three readings failed.
const UNREAD_MAX: Duration = REFRESHED_EVERY.saturating_mul(3);
/// Objects that nobody has looked at for so long may be gone.
const UNSEEN_MAX: Duration = Duration::from_secs(30 * 86_400);

/// How safe it is, from the worst that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// All that Immich knows is in the backup, and that was looked at not long ago.
    Safe,
    /// It is in the backup as far as is known; something asks for somebody.
    Attention,
    /// Something is not in the backup, or may not come back.
    NotSafe,
    /// Nothing can be said.
    Unknown,
}

impl Level {
    /// In two words.
    pub fn word(self) -> &'static str {
        match self {
            Self::Safe => "Safe",
            Self::Attention => "Needs attention",
            Self::NotSafe => "Not safe",
            Self::Unknown => "Not known",
        }
    }

    /// As a style's name.
    pub fn class(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::Attention => "attention",
            Self::NotSafe => "unsafe",
            Self::Unknown => "unknown",
        }
    }
}

/// Why it is not safer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// How much that weighs.
    pub level: Level,
    /// What is so: a sentence.
    pub text: String,
    /// What to do about it.
    pub advice: &'static str,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// How safe.
    pub level: Level,
    /// One sentence.
    pub sentence: String,
    /// All reasons, the gravest first.
    pub reasons: Vec<Reason>,
}

/// What is weighed.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// What the log says.
    pub standing: &'a Standing,
    /// The newest snapshot.
    pub latest: Option<&'a SnapshotFact>,
    /// The newest runs that the log knows and that no snapshot follows, the newest first.
    pub runs: &'a [&'a RunRow],
    /// The newest that was withheld, while no snapshot follows it.
    pub withheld: Option<&'a RunRow>,
    /// How the daemon's jobs ended; none without a daemon.
    pub jobs: &'a BTreeMap<Job, LastRun>,
    /// Whether a backup runs.
    pub is_running: bool,
    /// How the log was read, where no daemon's jobs do.
    pub reading: Option<&'a Reading>,
    /// `--max-age`.
    pub max_age: Option<Duration>,
    /// The time.
    pub now: Timestamp,
}

const PHOTO: (&str, &str) = ("photo or video", "photos and videos");

/// That nothing can be said, and why.
pub fn unknown(why: impl Into<String>, advice: &'static str) -> Verdict {
    let sentence = why.into();
    Verdict { level: Level::Unknown, reasons: vec![Reason { level: Level::Unknown, text: sentence.clone(), advice }], sentence }
}

/// Weighs.
pub fn of(facts: &Facts<'_>) -> Verdict {
    let mut reasons = Vec::new();
    match facts.latest {
        None => reasons.push(Reason {
            level: Level::NotSafe,
            text: "There is no backup yet.".to_owned(),
            advice: "The first one takes as long as everything takes to be sent; it may be stopped, and goes on from there.",
        }),
        Some(latest) => {
            of_proof(latest, facts.standing, &mut reasons);
            of_files(latest, &mut reasons);
            of_age(facts, &mut reasons);
        }
    }
    of_objects(facts, &mut reasons);
    of_reading(facts, &mut reasons);
    of_drill(facts, &mut reasons);
    of_runs(facts, &mut reasons);
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.level));
    let level = reasons.first().map_or(Level::Safe, |reason| reason.level);
    let sentence = match reasons.first() {
        Some(reason) => reason.text.clone(),
        None => facts.latest.map_or_else(String::new, safe),
    };
    Verdict { level, sentence, reasons }
}

/// What is said of a snapshot that lacks nothing but what is left out on purpose, or gone by Immich's own word.
fn safe(latest: &SnapshotFact) -> String {
    let Some(proof) = &latest.proof else { return String::new() };
    let left_out = [(proof.outside.min(latest.ignored), "in external libraries that are left out on purpose"), (proof.offline, "that Immich says are gone")];
    let left_out: Vec<_> = left_out.iter().filter(|(number, _)| *number > 0).map(|(number, what)| format!("{} {what}", count(*number))).collect();
    let proven = format!("{} of {} proven", count(proof.proven), count(proof.proven + proof.mismatched + proof.missing));
    match (proof.proven, proof.unprovable, left_out.join(" and ")) {
        (1.., _, except) if except.is_empty() => format!("Every photo and video that Immich knows is in the backup: {proven}."),
        (1.., _, except) => format!("What Immich knows is in the backup, except {except}: {proven}."),
        (0, 1.., except) => {
            let except = if except.is_empty() { except } else { format!(", except {except}") };
            let all = counted(proof.unprovable, PHOTO.0, PHOTO.1);
            format!("All {all} of external libraries are in the backup{except}; Immich has no checksums to prove them by.")
        }
        (0, 0, except) if except.is_empty() => "Everything that Immich knows is in the backup: it knows of no photo yet.".to_owned(),
        (0, 0, except) => format!("Nothing that should be in the backup is missing: Immich knows of none but {except}."),
    }
}

/// That the repository itself is not well, as far as it could not even be read for that.
pub fn unreadable(failed: &(Exit, String)) -> Option<Reason> {
    let (exit, message) = failed;
    let message = message.trim_end_matches('.');
    match exit {
        Exit::NoRepository => {
            let text = format!("The repository is not there: {message}.");
            Some(Reason { level: Level::NotSafe, text, advice: "Look whether its disk is mounted, or its bucket there." })
        }
        Exit::LogDamaged => Some(Reason {
            level: Level::NotSafe,
            text: format!("The log of the repository is damaged or went back: {message}."),
            advice: "docs/operating.md says what to do; until then nothing is backed up.",
        }),
        _ => None,
    }
}

/// A page without a daemon knows what the log said when it was last read, and no more.
fn of_reading(facts: &Facts<'_>, reasons: &mut Vec<Reason>) {
    let Some(reading) = facts.reading else { return };
    let failed = reading.failed.as_ref();
    if let Some(reason) = failed.and_then(unreadable) {
        reasons.push(reason);
    } else if let Some(at) = reading.at.filter(|at| is_older(*at, UNREAD_MAX, facts.now)) {
        let since = span(u64::try_from(facts.now.duration_since(at).as_secs()).unwrap_or(0));
        let why = failed.map_or_else(String::new, |(_, message)| format!(": {}", message.trim_end_matches('.')));
        reasons.push(Reason {
            level: Level::Attention,
            text: format!("The repository could not be read for {since}{why}."),
            advice: "What stands here is of then: whether a backup was made since, or failed, is not known. Look at the network, and at the credentials.",
        });
    }
}

/// Whether a time lies ahead by more than clocks differ.
fn is_ahead(at: Timestamp, now: Timestamp) -> bool {
    now.duration_until(at) > CLOCKS_DIFFER_MAX
}

/// What to do about a time that lies ahead.
const SET_CLOCKS: &str = "Set the clocks of the machines that back up; ages mean nothing until then.";

fn of_proof(latest: &SnapshotFact, standing: &Standing, reasons: &mut Vec<Reason>) {
    let mut add = |level, text, advice| reasons.push(Reason { level, text, advice });
    // What counts for --max-age is the newest snapshot itself only where no other ever had a database.
    let had_database = standing.proven_at.is_some() || standing.guarded_at.is_none();
    if latest.dump.is_none() && had_database {
        add(
            Level::NotSafe,
            "The newest backup has no database, though earlier ones had: files alone do not bring Immich back.".to_owned(),
            "Say where Immich's database is (`--database` or `--database-container`). The newest backup that has one lacks what came since.",
        );
        return;
    }
    if latest.dump.is_none() {
        add(
            Level::Attention,
            "The backup has no database: files alone do not bring Immich back.".to_owned(),
            "Say where Immich's database is (`--database` or `--database-container`). Albums, people and users are only there.",
        );
        return;
    }
    let Some(proof) = &latest.proof else {
        add(
            Level::NotSafe,
            "The database that is backed up is not one of Immich.".to_owned(),
            "Look at the name of the database: nothing can be proven by this one.",
        );
        return;
    };
    if proof.assets == 0 && latest.totals.original.files > 0 {
        let originals = latest.totals.original.files;
        add(
            Level::Attention,
            format!("Immich's database knows of no photo, and the library has {}.", counted(originals, "original", "originals")),
            "Look whether it is the database of this library, and whether Immich shows its photos: nothing is proven by this one.",
        );
    }
    let is = |number| if number == 1 { "is" } else { "are" };
    let photos = |number| format!("{} {}", counted(number, PHOTO.0, PHOTO.1), is(number));
    if proof.missing > 0 {
        add(
            Level::NotSafe,
            format!("{} missing from the backup.", photos(proof.missing)),
            "They are named below. Where a file is gone from the disk too, bring it back from an older copy or Immich's trash; where it is there, back up again.",
        );
    }
    if proof.mismatched > 0 {
        let what = if proof.mismatched == 1 { "other content than Immich recorded" } else { "contents other than Immich recorded" };
        add(
            Level::NotSafe,
            format!("{} stored with {what}.", photos(proof.mismatched)),
            "They were changed or damaged before they were first backed up. Look at them in Immich, and replace what is broken by another copy.",
        );
    }
    if proof.companions.missing > 0 {
        let number = proof.companions.missing;
        add(
            Level::NotSafe,
            format!("{} {} missing.", counted(number, "sidecar or profile picture", "sidecars or profile pictures"), is(number)),
            "They are named below. Immich cannot make them again.",
        );
    }
    let outside = proof.outside.saturating_sub(latest.ignored);
    if outside > 0 {
        add(
            Level::NotSafe,
            format!("{} in an external library that is not backed up.", photos(outside)),
            "Add that library with `--external`, or say with `--external-ignore` that it is left out on purpose.",
        );
    }
}

fn of_files(latest: &SnapshotFact, reasons: &mut Vec<Reason>) {
    let mut add = |text, advice| reasons.push(Reason { level: Level::Attention, text, advice });
    let could = |number| if number == 1 { "file or folder could" } else { "files or folders could" };
    if latest.unread_count > 0 {
        add(
            format!("{} {} not be read at the last backup.", count(latest.unread_count), could(latest.unread_count)),
            "Look at their permissions, and at the disk. What the backup has of them is older, or nothing.",
        );
    }
    if latest.bit_rot_count > 0 {
        add(
            format!("{} of the library changed without a new time: probably damaged on the disk.", counted(latest.bit_rot_count, "file", "files")),
            "The good versions are kept. Look at the disk, and bring them back with `restore --path`.",
        );
    }
    if latest.doubtful_count > 0 {
        add(
            format!(
                "{} of the library no longer what Immich recorded.",
                if latest.doubtful_count == 1 { "1 file is".to_owned() } else { format!("{} files are", count(latest.doubtful_count)) }
            ),
            "The good versions are kept. Bring them back with `restore --path`.",
        );
    }
}

fn of_age(facts: &Facts<'_>, reasons: &mut Vec<Reason>) {
    // Where nothing was ever proven, that was said; how old it is, is another matter.
    let Some(at) = facts.standing.guarded_at.or(facts.standing.snapshot_at) else { return };
    if is_ahead(at, facts.now) {
        // To --max-age it is too old: whoever watches that has an alarm.
        let level = if facts.max_age.is_some() { Level::NotSafe } else { Level::Attention };
        reasons.push(Reason { level, text: "The newest backup is of the future: a clock is wrong.".to_owned(), advice: SET_CLOCKS });
        return;
    }
    let what = if facts.standing.proven_at.is_some() { "proven backup" } else { "backup" };
    let age = span(u64::try_from(facts.now.duration_since(at).as_secs()).unwrap_or(0));
    let level = match facts.max_age {
        Some(max_age) => is_older(at, max_age, facts.now).then_some(Level::NotSafe),
        None if is_older(at, TOO_OLD_AFTER, facts.now) => Some(Level::NotSafe),
        None => is_older(at, OLD_AFTER, facts.now).then_some(Level::Attention),
    };
    if let Some(level) = level {
        let advice = "What came into the library since is in no proven backup. Look why the runs below failed, or whether any runs at all.";
        reasons.push(Reason { level, text: format!("The last {what} is {age} old."), advice });
    }
}

fn of_objects(facts: &Facts<'_>, reasons: &mut Vec<Reason>) {
    let standing = facts.standing;
    if standing.damaged_objects > 0 {
        let (number, are) = (standing.damaged_objects, if standing.damaged_objects == 1 { "is" } else { "are" });
        reasons.push(Reason {
            level: Level::NotSafe,
            text: format!("{} in the repository {are} missing or damaged.", counted(number, "object", "objects")),
            advice: "The next backup stores again what the library still has. Then run `immich-backup verify --read-data`.",
        });
    }
    let looked = standing.listed_at.or(standing.first_snapshot_at);
    if standing.listed_at.is_some_and(|at| is_ahead(at, facts.now)) {
        let text = "The last look at the store is of the future: a clock is wrong.".to_owned();
        reasons.push(Reason { level: Level::Attention, text, advice: SET_CLOCKS });
    } else if looked.is_some_and(|at| is_ahead(at, facts.now)) {
        // That of the newest backup is said.
    } else if looked.is_some_and(|at| is_older(at, UNSEEN_MAX, facts.now)) {
        reasons.push(Reason {
            level: Level::Attention,
            text: "For more than 30 days nobody has looked whether the stored files are still there.".to_owned(),
            advice: "Run `immich-backup verify`, or give the backup's credentials the right to list: it looks by itself every 7 days then.",
        });
    }
}

fn of_drill(facts: &Facts<'_>, reasons: &mut Vec<Reason>) {
    if facts.standing.drill == Some(DrillOutcome::Failed) {
        reasons.push(Reason {
            level: Level::NotSafe,
            text: "The last drill failed: this backup may not come back.".to_owned(),
            advice: "Run `immich-backup drill` and read what it says.",
        });
    } else if facts.standing.drill_at.is_some_and(|at| is_ahead(at, facts.now)) {
        reasons.push(Reason { level: Level::Attention, text: "The last drill is of the future: a clock is wrong.".to_owned(), advice: SET_CLOCKS });
    } else if facts.standing.drill_at.or(facts.standing.first_snapshot_at).is_some_and(|at| !is_ahead(at, facts.now))
        && facts.standing.drill_is_overdue(facts.now)
    {
        reasons.push(Reason {
            level: Level::Attention,
            text: "For more than 35 days nobody has tried whether this backup comes back.".to_owned(),
            advice: "Run `immich-backup drill`, or give the daemon a `--drill-schedule`: it restores into a database that is thrown away.",
        });
    }
}

/// The newest run that is over: one that goes on says nothing yet, and takes nothing back of what the one before it said.
fn last_ended<'a>(facts: &Facts<'a>) -> Option<&'a RunRow> {
    let goes_on = |run: &RunRow| run.outcome.is_none() && (facts.is_running || !is_older(run.last_entry_at, DEAD_AFTER, facts.now));
    match facts.runs {
        [first, rest @ ..] if goes_on(first) => rest.iter().find(|run| run.outcome.is_some() || is_older(run.last_entry_at, DEAD_AFTER, facts.now)).copied(),
        runs => runs.first().copied(),
    }
}

fn of_runs(facts: &Facts<'_>, reasons: &mut Vec<Reason>) {
    let mut add = |level, text, advice| reasons.push(Reason { level, text, advice });
    let words = |run: &RunRow| run.reason.as_deref().map_or_else(String::new, |reason| format!(": {}", reason.trim_end_matches('.')));
    // What the daemon saw of its last backup says more than the log, which a run that fails early never reaches.
    let is_past = |last: &LastRun| facts.standing.snapshot_at.is_some_and(|at| at > last.ended_at);
    let failed = |exit: Exit| facts.jobs.get(&Job::Backup).filter(|last| last.exit_code == exit.code() && !is_past(last));
    // It stands until a snapshot follows: no run that begins, fails or is stopped after it makes it good.
    let told = || failed(Exit::Withheld).map(|last| format!(": {}", last.message.trim_end_matches('.')));
    if let Some(reason) = facts.withheld.map(words).or_else(told) {
        add(
            Level::NotSafe,
            format!("A backup was withheld{reason}."),
            "There was none since; everything new is stored. If it was meant, say so once with `backup --accept` and the run's id; if not, look at the library and the database first.",
        );
    }
    let gone = [Exit::NoRepository, Exit::LogDamaged].into_iter().find_map(|exit| unreadable(&(exit, failed(exit)?.message.clone())));
    if let Some(reason) = gone {
        reasons.push(reason);
        return;
    }
    let mut add = |level, text, advice| reasons.push(Reason { level, text, advice });
    if let Some(last) = failed(Exit::Failed).or_else(|| failed(Exit::Usage)) {
        add(
            Level::Attention,
            format!("The last backup failed: {}.", last.message.trim_end_matches('.')),
            "It is tried again by itself; what was stored stays, and the next run goes on from there.",
        );
    } else if let Some(run) = last_ended(facts) {
        let text = match run.outcome.as_deref() {
            Some("failed") => Some(format!("The last backup failed{}.", words(run))),
            Some("interrupted") => Some("The last backup was stopped before its end.".to_owned()),
            Some("died") | None => Some("The last backup died before its end.".to_owned()),
            _ => None,
        };
        if let Some(text) = text {
            add(Level::Attention, text, "What it stored stays, and the next run goes on from there.");
        }
    }
    for (job, what) in [(Job::Verify, "verification"), (Job::Drill, "drill"), (Job::Prune, "removal of old dumps")] {
        // What a verification or a drill has found stands in the log, and was said.
        let ended = facts.jobs.get(&job).filter(|last| ![Exit::Done.code(), Exit::Damaged.code(), Exit::Interrupted.code()].contains(&last.exit_code));
        if let Some(last) = ended {
            add(
                Level::Attention,
                format!("The last {what} did not end well: {}.", last.message.trim_end_matches('.')),
                "Its log has the rest; it runs again at its next time.",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::standing::tests::standing;
    use immich_backup_core::model::{RunId, WriterId};
    use immich_backup_core::repository::log::{RunStarted, Tally, Totals};
    use immich_backup_core::verdict::{Presence, Proof};

    const NOON: &str = "2026-05-02T12:00:00Z";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn fact(proof: Option<Proof>) -> SnapshotFact {
        let all = serde_json::json!({
            "started_at": "2026-05-02T03:00:00Z", "taken_at": "2026-05-02T03:10:00Z", "totals": Totals::default(), "sent": Tally::default(), "archived": 0,
            "unread_count": 0, "dump": proof.as_ref().map(|_| "database/x.sql.gz"), "proof": proof,
        });
        serde_json::from_value(all).unwrap()
    }

    fn proven() -> Proof {
        Proof { assets: 23_033, proven: 23_033, ..Proof::default() }
    }

    fn good() -> Standing {
        let listed = Some(at("2026-05-01T03:00Z"));
        Standing { proven_at: Some(at("2026-05-02T03:10Z")), has_database: true, drill_at: listed, listed_at: listed, ..standing(Some("2026-05-02T03:10:00Z")) }
    }

    fn run(outcome: Option<&str>, reason: Option<&str>) -> RunRow {
        RunRow {
            id: RunId::random(),
            writer: WriterId::random(),
            last_entry_at: at("2026-05-02T03:20Z"),
            last_entry: 9,
            outcome: outcome.map(str::to_owned),
            reason: reason.map(str::to_owned),
            withheld: (0, 0),
            started: RunStarted { at: at("2026-05-02T03:15Z"), host: "h".into(), roots: Vec::new(), accepts: None, shard: None },
        }
    }

    fn ended(code: Exit, message: &str) -> LastRun {
        let at = at("2026-05-02T04:00Z");
        LastRun { began_at: at, ended_at: at, exit_code: code.code(), outcome: code.outcome().to_owned(), message: message.to_owned(), snapshot: None }
    }

    /// Of this newest snapshot, changed so.
    fn weighed(
        latest: Option<SnapshotFact>,
        change: impl FnOnce(&mut Standing, &mut Vec<RunRow>, &mut BTreeMap<Job, LastRun>, &mut Option<Duration>),
    ) -> Verdict {
        let (mut standing, mut runs, mut jobs, mut max_age) = (good(), Vec::new(), BTreeMap::new(), Some(Duration::from_secs(26 * 3_600)));
        change(&mut standing, &mut runs, &mut jobs, &mut max_age);
        of_all(&standing, latest.as_ref(), &runs, &jobs, max_age)
    }

    fn of_all(standing: &Standing, latest: Option<&SnapshotFact>, runs: &[RunRow], jobs: &BTreeMap<Job, LastRun>, max_age: Option<Duration>) -> Verdict {
        let withheld = runs.iter().find(|run| run.outcome.as_deref() == Some("withheld"));
        let runs: Vec<_> = runs.iter().collect();
        of(&Facts { standing, latest, runs: &runs, withheld, jobs, is_running: false, reading: None, max_age, now: at(NOON) })
    }

    fn of_latest(latest: SnapshotFact) -> (Level, String) {
        let verdict = weighed(Some(latest), |_, _, _, _| {});
        assert_eq!(verdict.reasons.is_empty(), verdict.level == Level::Safe);
        (verdict.level, verdict.sentence)
    }

    #[test]
    fn all_proven_and_young_is_safe_and_says_so_with_the_numbers() {
        let safe = "Every photo and video that Immich knows is in the backup: 23,033 of 23,033 proven.";
        assert_eq!(of_latest(fact(Some(proven()))), (Level::Safe, safe.to_owned()));
        assert_eq!(of_latest(fact(Some(Proof { assets: 23_037, unprovable: 4, ..proven() }))).1, safe);
        // Left out on purpose.
        let except = SnapshotFact { ignored: 5_000, ..fact(Some(Proof { outside: 5_000, offline: 12, ..proven() })) };
        let said = "What Immich knows is in the backup, except 5,000 in external libraries that are left out on purpose and 12 that Immich says are gone: 23,033 of 23,033 proven.";
        assert_eq!(of_latest(except), (Level::Safe, said.to_owned()));
        let only = SnapshotFact { ignored: 2, ..fact(Some(Proof { assets: 2, outside: 2, ..Proof::default() })) };
        assert!(of_latest(only.clone()).1.ends_with("knows of none but 2 in external libraries that are left out on purpose."), "{:?}", of_latest(only));
        let external = of_latest(fact(Some(Proof { assets: 4, unprovable: 4, ..Proof::default() })));
        assert!(external.0 == Level::Safe && external.1.contains("no checksums"), "{external:?}");
        assert_eq!(of_latest(fact(Some(Proof::default()))).0, Level::Safe);
        let mut other = fact(Some(Proof::default()));
        other.totals.original.files = 88;
        assert_eq!(of_latest(other), (Level::Attention, "Immich's database knows of no photo, and the library has 88 originals.".to_owned()));
    }

    #[test]
    fn whatever_is_missing_makes_it_unsafe_and_is_said_first() {
        let told = |proof: Proof| of_latest(fact(Some(proof)));
        assert_eq!(told(Proof { missing: 3, ..proven() }), (Level::NotSafe, "3 photos and videos are missing from the backup.".to_owned()));
        assert_eq!(told(Proof { missing: 1, ..proven() }).1, "1 photo or video is missing from the backup.");
        assert_eq!(told(Proof { mismatched: 1, ..proven() }).1, "1 photo or video is stored with other content than Immich recorded.");
        assert_eq!(told(Proof { outside: 5, ..proven() }).1, "5 photos and videos are in an external library that is not backed up.");
        assert_eq!(told(Proof { companions: Presence { present: 0, missing: 1 }, ..proven() }).1, "1 sidecar or profile picture is missing.");
        let both = weighed(Some(SnapshotFact { unread_count: 2, ..fact(Some(Proof { missing: 3, ..proven() })) }), |_, _, _, _| {});
        assert_eq!(both.reasons.iter().map(|reason| reason.level).collect::<Vec<_>>(), [Level::NotSafe, Level::Attention]);
        let nothing = weighed(None, |standing, _, _, _| {
            *standing = Standing { drill_at: None, listed_at: None, proven_at: None, ..crate::standing::tests::standing(None) }
        });
        assert_eq!((nothing.level, nothing.sentence.as_str()), (Level::NotSafe, "There is no backup yet."));
        let other = fact(Some(proven()));
        assert_eq!(of_latest(SnapshotFact { proof: None, ..other }).1, "The database that is backed up is not one of Immich.");
    }

    #[test]
    fn files_that_are_doubted_or_unread_and_a_backup_without_a_database_ask_for_somebody() {
        for latest in [
            SnapshotFact { unread_count: 1, ..fact(Some(proven())) },
            SnapshotFact { bit_rot_count: 1, ..fact(Some(proven())) },
            SnapshotFact { doubtful_count: 1, ..fact(Some(proven())) },
        ] {
            assert_eq!(of_latest(latest).0, Level::Attention);
        }
        // As standing.rs has it: without any database, what counts is the newest snapshot; with one that was never proven, nothing does.
        let without = |proven: Option<&str>, guarded: Option<&str>| {
            let verdict = weighed(Some(fact(None)), |standing, _, _, max_age| {
                (standing.proven_at, standing.guarded_at, standing.has_database) = (proven.map(at), guarded.map(at), false);
                (standing.snapshot_at, *max_age) = (Some(at("2026-05-02T03:10Z")), None);
            });
            verdict.level
        };
        let newest = Some("2026-05-02T03:10Z");
        assert_eq!(without(None, newest), Level::Attention);
        assert_eq!(without(Some("2026-05-01T03:10Z"), Some("2026-05-01T03:10Z")), Level::NotSafe, "there was a proven one before");
        assert_eq!(without(None, None), Level::NotSafe, "there was one before that was never proven");
    }

    #[test]
    fn what_is_proven_grows_old() {
        let told = |proven: &str, max: Option<u64>| {
            let verdict = weighed(Some(fact(Some(self::proven()))), |standing, _, _, max_age| {
                (standing.proven_at, standing.guarded_at) = (Some(at(proven)), Some(at(proven)));
                *max_age = max.map(|hours| Duration::from_secs(hours * 3_600));
            });
            (verdict.level, verdict.sentence)
        };
        assert_eq!(told("2026-05-01T09:00Z", Some(26)), (Level::NotSafe, "The last proven backup is 27 hours old.".to_owned()));
        assert_eq!(told("2026-05-01T09:00Z", None).0, Level::Safe);
        assert_eq!(told("2026-04-20T09:00Z", None), (Level::Attention, "The last proven backup is 12 days old.".to_owned()));
        assert_eq!(told("2026-04-01T09:00Z", None).0, Level::NotSafe);
        assert_eq!(told("2026-05-03T09:00Z", None).0, Level::Attention, "of the future");
        assert_eq!(told("2026-05-03T09:00Z", Some(26)).0, Level::NotSafe, "to --max-age that is too old");
        // What was never proven grows old, too.
        let never = weighed(Some(fact(Some(proven()))), |standing, _, _, max_age| {
            (standing.proven_at, standing.guarded_at, standing.snapshot_at, *max_age) = (None, None, Some(at("2026-03-01T00:00Z")), None);
        });
        assert_eq!((never.level, never.sentence.as_str()), (Level::NotSafe, "The last backup is 2 months old."));
    }

    #[test]
    fn objects_and_drills_count() {
        let told = |change: fn(&mut Standing)| weighed(Some(fact(Some(proven()))), |standing, _, _, _| change(standing));
        assert_eq!(told(|standing| standing.damaged_objects = 2).sentence, "2 objects in the repository are missing or damaged.");
        assert_eq!(told(|standing| standing.drill = Some(DrillOutcome::Failed)).level, Level::NotSafe);
        assert_eq!(told(|standing| standing.drill = Some(DrillOutcome::Partial)).level, Level::Safe);
        assert_eq!(told(|standing| standing.drill_at = Some(at("2026-03-01T00:00Z"))).level, Level::Attention);
        assert_eq!(told(|standing| standing.listed_at = Some(at("2026-03-01T00:00Z"))).level, Level::Attention);
        assert_eq!(told(|standing| standing.listed_at = None).level, Level::Safe, "the first snapshot is young");
        let ahead = told(|standing| (standing.listed_at, standing.drill_at) = (Some(at("2027-01-01T00:00Z")), Some(at("2027-01-01T00:00Z"))));
        assert!(
            ahead.level == Level::Attention && ahead.reasons.len() == 2 && ahead.reasons.iter().all(|reason| reason.text.contains("of the future")),
            "{ahead:?}"
        );
    }

    #[test]
    fn runs_that_went_wrong_are_told_by_the_daemon_or_by_the_log() {
        let of_log = |outcome, reason| weighed(Some(fact(Some(proven()))), |_, runs, _, _| runs.push(run(outcome, reason)));
        assert_eq!(of_log(Some("snapshot"), None).level, Level::Safe);
        assert_eq!(of_log(Some("withheld"), Some("9 of 88 are gone")).sentence, "A backup was withheld: 9 of 88 are gone.");
        assert_eq!(of_log(Some("withheld"), None).level, Level::NotSafe);
        for outcome in [Some("failed"), Some("died"), Some("interrupted"), None] {
            assert_eq!(of_log(outcome, None).level, Level::Attention, "{outcome:?}");
        }
        let of_job = |job, exit, message: &str| weighed(Some(fact(Some(proven()))), |_, _, jobs, _| drop(jobs.insert(job, ended(exit, message))));
        let later = weighed(Some(fact(Some(proven()))), |standing, _, jobs, _| {
            drop(jobs.insert(Job::Backup, ended(Exit::Failed, "x")));
            standing.snapshot_at = Some(at("2026-05-02T05:00Z"));
        });
        assert_eq!(later.level, Level::Safe, "somebody has backed up by hand since");
        assert_eq!(of_job(Job::Backup, Exit::Failed, "no route to host").sentence, "The last backup failed: no route to host.");
        assert_eq!(of_job(Job::Backup, Exit::NoRepository, "x").level, Level::NotSafe);
        assert_eq!(of_job(Job::Backup, Exit::LogDamaged, "x").level, Level::NotSafe);
        assert_eq!(of_job(Job::Verify, Exit::Failed, "x").level, Level::Attention);
        for (job, exit) in [(Job::Backup, Exit::Done), (Job::Backup, Exit::Incomplete), (Job::Verify, Exit::Damaged), (Job::Drill, Exit::Done)] {
            assert_eq!(of_job(job, exit, "x").level, Level::Safe, "what it found stands in the log");
        }
    }

    #[test]
    fn a_page_that_could_not_read_the_repository_is_not_green_for_long() {
        let (standing, jobs, latest) = (good(), BTreeMap::new(), fact(Some(proven())));
        let told = |at: &str, failed: Option<(Exit, &str)>| {
            let reading = Reading { path: None, at: Some(self::at(at)), failed: failed.map(|(exit, message)| (exit, message.to_owned())) };
            let facts = Facts {
                standing: &standing,
                latest: Some(&latest),
                runs: &[],
                withheld: None,
                jobs: &jobs,
                is_running: false,
                reading: Some(&reading),
                max_age: None,
                now: self::at(NOON),
            };
            let verdict = of(&facts);
            (verdict.level, verdict.sentence)
        };
        assert_eq!(told("2026-05-02T11:56Z", None).0, Level::Safe);
        assert_eq!(told("2026-05-02T11:50Z", Some((Exit::Failed, "no route to host"))).0, Level::Safe, "the next reading may do");
        let said = (Level::Attention, "The repository could not be read for 2 hours: no route to host.".to_owned());
        assert_eq!(told("2026-05-02T10:00Z", Some((Exit::Failed, "no route to host"))), said);
        assert_eq!(told("2026-05-02T10:00Z", None).0, Level::Attention, "it hangs");
        assert_eq!(told("2026-05-02T11:59Z", Some((Exit::NoRepository, "x"))), (Level::NotSafe, "The repository is not there: x.".to_owned()));
        assert_eq!(told("2026-05-02T11:59Z", Some((Exit::LogDamaged, "x"))).0, Level::NotSafe);
    }

    #[test]
    fn a_run_that_goes_on_is_no_reason_to_worry_and_takes_nothing_back() {
        let (standing, jobs, latest) = (good(), BTreeMap::new(), fact(Some(proven())));
        let told = |runs: &[RunRow], is_running| {
            let withheld = runs.iter().find(|run| run.outcome.as_deref() == Some("withheld"));
            let runs: Vec<_> = runs.iter().collect();
            of(&Facts {
                standing: &standing,
                latest: Some(&latest),
                runs: &runs,
                withheld,
                jobs: &jobs,
                is_running,
                reading: None,
                max_age: None,
                now: at(NOON),
            })
            .level
        };
        assert_eq!(told(&[run(None, None)], true), Level::Safe);
        assert_eq!(told(&[run(None, None)], false), Level::Attention);
        // It may run elsewhere.
        let elsewhere = RunRow { last_entry_at: at("2026-05-02T11:59Z"), ..run(None, None) };
        assert_eq!(told(&[elsewhere], false), Level::Safe);
        for outcome in [Some("failed"), Some("died"), Some("interrupted"), None] {
            assert_eq!(told(&[run(None, None), run(outcome, None)], true), Level::Attention, "{outcome:?}");
        }
        for after in [None, Some("failed"), Some("died"), Some("interrupted")] {
            for is_running in [true, false] {
                assert_eq!(told(&[run(after, None), run(Some("withheld"), None)], is_running), Level::NotSafe, "{after:?}");
            }
        }
        let failed_since = weighed(Some(fact(Some(proven()))), |_, runs, jobs, _| {
            runs.extend([run(Some("failed"), None), run(Some("withheld"), None)]);
            jobs.insert(Job::Backup, ended(Exit::Failed, "no route to host"));
        });
        assert_eq!((failed_since.level, failed_since.reasons.len()), (Level::NotSafe, 2));
    }
}
