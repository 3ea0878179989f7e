//! How a repository stands, as samples.

use super::text::Sample;
use super::{REPOSITORY, number, seconds};
use crate::standing::Standing;
use immich_backup_core::repository::log::DrillOutcome;
use immich_backup_core::verdict::Proof;

/// The samples of `standing`. What is not known has none: an alert on it says `absent`.
pub(super) fn samples(repository: &str, standing: &Standing) -> Vec<Sample> {
    let plain = |name, value| Sample::new(name, &[(REPOSITORY, repository)], value);
    let labelled = |name, label: &str, word: &str, value| Sample::new(name, &[(REPOSITORY, repository), (label, word)], value);
    let times = [
        ("last_success_timestamp_seconds", standing.success_at),
        ("last_proven_timestamp_seconds", standing.proven_at),
        ("last_snapshot_timestamp_seconds", standing.snapshot_at),
        ("first_snapshot_timestamp_seconds", standing.first_snapshot_at),
        ("last_drill_timestamp_seconds", standing.drill_at),
        ("last_verify_timestamp_seconds", standing.verified_at),
        ("last_listed_timestamp_seconds", standing.listed_at),
        ("last_read_timestamp_seconds", standing.read_at),
    ];
    let mut samples: Vec<_> = times.into_iter().filter_map(|(name, at)| Some(plain(name, seconds(at?)))).collect();
    if let Some(ended) = standing.drill {
        let outcomes = [("passed", DrillOutcome::Passed), ("partial", DrillOutcome::Partial), ("failed", DrillOutcome::Failed)];
        samples.extend(outcomes.map(|(word, outcome)| labelled("last_drill_outcome", "outcome", word, f64::from(u8::from(outcome == ended)))));
    }
    if let Some(proof) = &standing.proof {
        let Proof { proven, unprovable, outside, offline, mismatched, missing, untracked, ages, .. } = proof;
        // What was left out on purpose is nothing to be alarmed about.
        let ignored = standing.ignored.min(*outside);
        let verdicts = [
            ("proven", *proven),
            ("unprovable", *unprovable),
            ("outside", outside.saturating_sub(ignored)),
            ("ignored", ignored),
            ("offline", *offline),
            ("mismatched", *mismatched),
            ("missing", *missing),
            ("untracked", *untracked),
        ];
        samples.extend(verdicts.map(|(word, count)| labelled("assets", "verdict", word, number(count))));
        for (look, age) in [("recorded", ages.recorded), ("listed", ages.listed), ("read", ages.read)] {
            samples.push(labelled("proof_assets", "look", look, number(age.assets)));
            samples.extend(age.oldest.map(|at| labelled("proof_oldest_timestamp_seconds", "look", look, seconds(at))));
        }
    }
    if let Some(totals) = &standing.totals {
        for (class, tally) in [("original", totals.original), ("derived", totals.derived), ("marker", totals.marker)] {
            samples.push(labelled("snapshot_files", "class", class, number(tally.files)));
            samples.push(labelled("snapshot_bytes", "class", class, number(tally.bytes)));
        }
    }
    samples.push(plain("damaged_objects", number(standing.damaged_objects)));
    samples
}
