#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

use super::*;
use crate::model::Sha256;
use crate::repository::log::{DumpFact, SnapshotFact, Tally, Totals};
use proptest::prelude::*;

fn dump(sequence: u64, taken_at: &str) -> DumpRow {
    let taken_at: Timestamp = taken_at.parse().unwrap();
    DumpRow {
        sequence,
        pruned: false,
        fact: DumpFact {
            key: format!("database/{sequence}"),
            sha256: Sha256([0; 32]),
            size: sequence,
            plain_size: 0,
            taken_at,
            immich_version: None,
            server_version: None,
            program_version: None,
            rows: 0,
            before_restore: false,
            without_data: Vec::new(),
        },
    }
}

/// The snapshot that names `dump`, committed right after it.
fn snapshot(dump: &DumpRow) -> SnapshotRow {
    SnapshotRow {
        sequence: dump.sequence + 1,
        id: RunId(uuid::Uuid::from_u128(dump.sequence.into())),
        fact: SnapshotFact {
            started_at: dump.fact.taken_at,
            taken_at: dump.fact.taken_at,
            label: None,
            immich_version: None,
            totals: Totals::default(),
            sent: Tally::default(),
            archived: 0,
            unread_count: 0,
            unread: Vec::new(),
            bit_rot_count: 0,
            bit_rot: Vec::new(),
            rehashed: None,
            originals_only: false,
            exclude: Vec::new(),
            dump: Some(dump.fact.key.clone()),
            proof: None,
            ignored: 0,
            doubtful_count: 0,
            doubtful: Vec::new(),
        },
    }
}

/// Dumps taken at these times, each with its snapshot.
fn history(times: &[&str]) -> (Vec<DumpRow>, Vec<SnapshotRow>) {
    let dumps: Vec<_> = times.iter().enumerate().map(|(place, time)| dump(place as u64 * 10 + 10, time)).collect();
    let snapshots = dumps.iter().map(snapshot).collect();
    (dumps, snapshots)
}

fn proof(missing: u64) -> Option<Proof> {
    Some(Proof { assets: 10, proven: 10 - missing, missing, ..Proof::default() })
}

fn count(number: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(number)
}

fn last(number: u32) -> Policy {
    Policy { last: count(number), ..Policy::default() }
}

fn planned(dumps: &[DumpRow], snapshots: &[SnapshotRow], policy: &Policy) -> Plan {
    plan(dumps, snapshots, &BTreeSet::new(), policy, &TimeZone::UTC)
}

/// Times of what stays, newest first, with the reasons in words.
fn stays(plan: &Plan) -> Vec<(String, String)> {
    let words = |dump: &PlannedDump| dump.reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    plan.dumps.iter().filter(|dump| dump.is_kept()).map(|dump| (dump.taken_at.to_string(), words(dump))).collect()
}

fn times(plan: &Plan) -> Vec<String> {
    stays(plan).into_iter().map(|(time, _)| time).collect()
}

const WEEKS: [&str; 9] = [
    "2025-12-28T03:00:00Z", // a Sunday: the last day of ISO week 2025-W52
    "2025-12-29T03:00:00Z", // Monday of 2026-W01
    "2025-12-31T03:00:00Z",
    "2026-01-01T03:00:00Z",
    "2026-01-04T03:00:00Z", // Sunday of 2026-W01
    "2026-01-05T03:00:00Z", // Monday of 2026-W02
    "2026-01-05T15:00:00Z",
    "2026-01-06T03:00:00Z",
    "2026-02-10T03:00:00Z",
];

#[test]
fn where_nothing_is_said_all_are_kept() {
    let (dumps, snapshots) = history(&WEEKS);
    let plan = planned(&dumps, &snapshots, &Policy::default());
    assert_eq!(plan.removed().count(), 0);
    assert!(stays(&plan).iter().all(|(_, why)| why.starts_with("no rule is set")));
    assert_eq!(Policy::default().to_string(), "keep all");
}

#[test]
fn keep_last_keeps_the_newest_and_says_which_it_is() {
    let (dumps, snapshots) = history(&WEEKS);
    let kept = stays(&planned(&dumps, &snapshots, &last(2)));
    assert_eq!(
        kept,
        [("2026-02-10T03:00:00Z".to_owned(), "last 1 of 2; newest snapshot".to_owned()), ("2026-01-06T03:00:00Z".to_owned(), "last 2 of 2".to_owned())]
    );
}

#[test]
fn keep_daily_keeps_the_newest_of_each_day_that_has_one() {
    let (dumps, snapshots) = history(&WEEKS);
    let policy = Policy { daily: count(3), ..Policy::default() };
    let kept = stays(&planned(&dumps, &snapshots, &policy));
    assert_eq!(kept.iter().map(|(time, _)| time.as_str()).collect::<Vec<_>>(), ["2026-02-10T03:00:00Z", "2026-01-06T03:00:00Z", "2026-01-05T15:00:00Z"]);
    assert_eq!(kept[2].1, "daily 3 of 3");
}

#[test]
fn keep_weekly_goes_by_iso_weeks_across_the_year() {
    let (dumps, snapshots) = history(&WEEKS);
    let policy = Policy { weekly: count(4), ..Policy::default() };
    // 2026-W07, W02, W01 (which began in 2025), 2025-W52.
    assert_eq!(times(&planned(&dumps, &snapshots, &policy)), ["2026-02-10T03:00:00Z", "2026-01-06T03:00:00Z", "2026-01-04T03:00:00Z", "2025-12-28T03:00:00Z"]);
}

#[test]
fn keep_monthly_and_keep_yearly_go_by_the_calendar() {
    let (dumps, snapshots) = history(&WEEKS);
    let monthly = Policy { monthly: count(2), ..Policy::default() };
    assert_eq!(times(&planned(&dumps, &snapshots, &monthly)), ["2026-02-10T03:00:00Z", "2026-01-06T03:00:00Z"]);
    let yearly = Policy { yearly: count(5), ..Policy::default() };
    assert_eq!(times(&planned(&dumps, &snapshots, &yearly)), ["2026-02-10T03:00:00Z", "2025-12-31T03:00:00Z"]);
}

#[test]
fn the_same_month_of_another_year_is_another_month() {
    let (dumps, snapshots) = history(&["2024-03-05T00:00:00Z", "2025-03-05T00:00:00Z", "2026-03-05T00:00:00Z"]);
    let monthly = Policy { monthly: count(3), ..Policy::default() };
    assert_eq!(times(&planned(&dumps, &snapshots, &monthly)).len(), 3);
}

#[test]
fn keep_within_counts_from_the_newest_dump() {
    let (dumps, snapshots) = history(&WEEKS);
    let within = |text: &str| Policy { within: Some(text.parse().unwrap()), ..Policy::default() };
    assert_eq!(times(&planned(&dumps, &snapshots, &within("35d"))), ["2026-02-10T03:00:00Z", "2026-01-06T03:00:00Z"], "the limit itself is within");
    assert_eq!(times(&planned(&dumps, &snapshots, &within("34d"))), ["2026-02-10T03:00:00Z"]);
    assert_eq!(times(&planned(&dumps, &snapshots, &within("6w"))).len(), 7, "2025-12-31 is 41 days before");
}

#[test]
fn a_dump_stays_if_any_rule_keeps_it_and_all_that_do_are_named() {
    let (dumps, snapshots) = history(&WEEKS);
    let policy = Policy { last: count(1), daily: count(1), yearly: count(2), within: Some("1d".parse().unwrap()), ..Policy::default() };
    let kept = stays(&planned(&dumps, &snapshots, &policy));
    assert_eq!(kept[0].1, "last 1 of 1; daily 1 of 1; yearly 1 of 2; within 1d; newest snapshot");
    assert_eq!(kept[1], ("2025-12-31T03:00:00Z".to_owned(), "yearly 2 of 2".to_owned()));
    assert_eq!(policy.to_string(), "keep-last 1, keep-daily 1, keep-yearly 2, keep-within 1d");
}

#[test]
fn days_are_those_of_the_zone() {
    let (dumps, snapshots) = history(&["2026-01-05T22:30:00Z", "2026-01-05T23:30:00Z"]);
    let daily = Policy { daily: count(7), ..Policy::default() };
    assert_eq!(times(&planned(&dumps, &snapshots, &daily)).len(), 1);
    let berlin = TimeZone::fixed(jiff::tz::offset(1));
    assert_eq!(times(&plan(&dumps, &snapshots, &BTreeSet::new(), &daily, &berlin)).len(), 2);
}

#[test]
fn the_newest_proven_dump_is_never_removed() {
    let (dumps, mut snapshots) = history(&WEEKS);
    snapshots[1].fact.proof = proof(0);
    snapshots[3].fact.proof = proof(0);
    snapshots[5].fact.proof = proof(1);
    // A proof of nothing proves nothing.
    snapshots[6].fact.proof = Some(Proof::default());
    snapshots[7].fact.proof = Some(Proof { assets: 10, proven: 9, mismatched: 1, ..Proof::default() });
    let kept = stays(&planned(&dumps, &snapshots, &last(1)));
    assert_eq!(kept[1], ("2026-01-01T03:00:00Z".to_owned(), "newest proven".to_owned()));
    assert_eq!(kept.len(), 2);
}

#[test]
fn a_damaged_dump_is_neither_counted_nor_called_the_newest_proven() {
    let (dumps, mut snapshots) = history(&WEEKS);
    for snapshot in &mut snapshots {
        snapshot.fact.proof = proof(0);
    }
    let damaged = BTreeSet::from([dumps[8].fact.key.clone(), dumps[6].fact.key.clone()]);
    let kept = stays(&plan(&dumps, &snapshots, &damaged, &last(2), &TimeZone::UTC));
    let expected = [
        ("2026-02-10T03:00:00Z", "newest snapshot; damaged, not counted"),
        ("2026-01-06T03:00:00Z", "last 1 of 2; newest proven"),
        ("2026-01-05T15:00:00Z", "damaged, not counted"),
        ("2026-01-05T03:00:00Z", "last 2 of 2"),
    ];
    assert_eq!(kept, expected.map(|(time, why)| (time.to_owned(), why.to_owned())));
}

#[test]
fn the_dump_of_a_snapshot_with_a_label_stays_unless_the_label_is_a_mere_date() {
    let (dumps, mut snapshots) = history(&WEEKS);
    snapshots[0].fact.label = Some("before 2.0".to_owned());
    snapshots[1].fact.label = Some("2025-12-29".to_owned());
    snapshots[2].fact.label = Some("20251231T030000Z".to_owned());
    snapshots[3].fact.label = Some("2025".to_owned());
    snapshots[4].fact.label = Some(String::new());
    let kept = stays(&planned(&dumps, &snapshots, &last(1)));
    assert_eq!(
        kept[1..],
        [("2026-01-01T03:00:00Z".to_owned(), "label `2025`".to_owned()), ("2025-12-28T03:00:00Z".to_owned(), "label `before 2.0`".to_owned())]
    );
}

#[test]
fn a_dump_that_a_labelled_snapshot_shares_with_a_newer_one_stays() {
    let (dumps, mut snapshots) = history(&WEEKS[..2]);
    snapshots[0].fact.label = Some("mine".to_owned());
    snapshots.push(SnapshotRow { sequence: 99, id: RunId::random(), fact: snapshots[0].fact.clone() });
    snapshots[2].fact.label = None;
    let kept = stays(&planned(&dumps, &snapshots, &last(1)));
    assert_eq!(kept[1].1, "newest snapshot; label `mine`");
}

#[test]
fn where_the_newest_snapshot_has_no_dump_that_of_the_one_before_stays() {
    let (dumps, mut snapshots) = history(&WEEKS[..3]);
    snapshots[2].fact.dump = None;
    // Its dump belongs to no snapshot then, and is counted apart.
    let kept = stays(&planned(&dumps, &snapshots, &last(1)));
    assert_eq!(
        kept,
        [("2025-12-31T03:00:00Z".to_owned(), "last 1 of 1".to_owned()), ("2025-12-29T03:00:00Z".to_owned(), "last 1 of 1; newest snapshot".to_owned())]
    );
}

#[test]
fn the_dump_of_a_run_that_is_not_over_stays() {
    let (mut dumps, snapshots) = history(&WEEKS[..3]);
    // Its clock is behind: by its time it is the oldest.
    dumps.push(dump(1_000, "2020-01-01T00:00:00Z"));
    let kept = stays(&planned(&dumps, &snapshots, &last(1)));
    assert_eq!(kept[1], ("2020-01-01T00:00:00Z".to_owned(), "newer than the newest snapshot".to_owned()));
    let without_any = stays(&planned(&dumps, &[], &last(1)));
    assert_eq!(without_any.len(), 4, "as long as there is no snapshot, all may be needed");
}

#[test]
fn dumps_of_runs_that_died_do_not_take_the_place_of_a_snapshots() {
    let (mut dumps, snapshots) = history(&["2026-01-01T03:00:00Z", "2026-01-02T03:00:00Z", "2026-01-03T03:00:00Z"]);
    for (sequence, time) in [(12, "2026-01-01T23:00:00Z"), (22, "2026-01-02T23:00:00Z"), (23, "2026-01-02T23:30:00Z")] {
        dumps.push(dump(sequence, time));
    }
    let kept = |policy: &Policy| times(&planned(&dumps, &snapshots, policy));
    let daily = Policy { daily: count(3), ..Policy::default() };
    assert_eq!(kept(&daily), ["2026-01-03T03:00:00Z", "2026-01-02T23:30:00Z", "2026-01-02T03:00:00Z", "2026-01-01T23:00:00Z", "2026-01-01T03:00:00Z"]);
    assert_eq!(kept(&last(2)), ["2026-01-03T03:00:00Z", "2026-01-02T23:30:00Z", "2026-01-02T03:00:00Z"]);
}

#[test]
fn what_was_pruned_is_not_there_any_more() {
    let (mut dumps, mut snapshots) = history(&WEEKS);
    snapshots[8].fact.proof = proof(0);
    snapshots[4].fact.proof = proof(0);
    dumps[8].pruned = true;
    let plan = planned(&dumps, &snapshots, &last(1));
    assert_eq!(plan.dumps.len(), 8);
    assert_eq!(stays(&plan)[0].1, "last 1 of 1; newest snapshot");
    assert_eq!(stays(&plan)[1], ("2026-01-04T03:00:00Z".to_owned(), "newest proven".to_owned()));
}

#[test]
fn the_retention_that_people_have_set_is_understood() {
    let parse = Policy::from_retention_text;
    assert_eq!(parse("14").unwrap(), last(14));
    assert_eq!(parse(" 7 ").unwrap(), last(7));
    assert_eq!(parse("").unwrap(), Policy::default());
    for (text, hours) in [("30d", 720), ("4w", 672), ("36h", 36), ("1d12h", 36), ("P30D", 720)] {
        let policy = parse(text).unwrap();
        assert_eq!(policy.within.as_ref().unwrap().span(), Duration::from_secs(hours * 3_600), "{text}");
        assert_eq!(policy, Policy { within: policy.within.clone(), ..Policy::default() });
    }
    assert_eq!(parse("99999999999999999999").unwrap(), last(u32::MAX));
    for bad in ["0", "0d", "-1", "-30d", "many", "3 months", "1y", "30x", "7.5"] {
        assert!(parse(bad).is_err(), "{bad} was taken");
    }
    assert!(parse("0").unwrap_err().to_string().contains("would keep no dump"));
}

fn arbitrary_policy() -> impl Strategy<Value = Policy> {
    let number = || prop_oneof![3 => Just(None), 2 => (1_u32..6).prop_map(NonZeroU32::new)];
    let within = prop_oneof![2 => Just(None), 1 => (1_u32..60).prop_map(|days| Some(format!("{days}d").parse().unwrap()))];
    (number(), within, number(), number(), number(), number()).prop_map(|(last, within, daily, weekly, monthly, yearly)| Policy {
        last,
        within,
        daily,
        weekly,
        monthly,
        yearly,
    })
}

/// Dumps with odd times, some without a snapshot, some proven, labelled, damaged or pruned.
fn arbitrary_history() -> impl Strategy<Value = (Vec<DumpRow>, Vec<SnapshotRow>, BTreeSet<String>)> {
    prop::collection::vec((0_i64..40_000, 0_u8..10, 0_u8..6, 0_u8..8, 0_u8..10), 0..40).prop_map(|runs| {
        let (mut dumps, mut snapshots, mut damaged) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (place, (hours, named, proven, label, state)) in runs.into_iter().enumerate() {
            let mut dump = dump(place as u64 * 10 + 10, "2021-06-01T00:00:00Z");
            dump.fact.taken_at += jiff::SignedDuration::from_hours(hours);
            if state == 0 {
                dump.pruned = true;
            } else if state == 1 {
                damaged.insert(dump.fact.key.clone());
            }
            if named > 1 {
                let mut snapshot = snapshot(&dump);
                snapshot.fact.proof = if proven > 2 { proof(u64::from(proven) - 3) } else { None };
                snapshot.fact.label = (label == 0).then(|| "kept".to_owned());
                snapshots.push(snapshot);
            }
            dumps.push(dump);
        }
        (dumps, snapshots, damaged)
    })
}

fn removed(plan: &Plan) -> BTreeSet<String> {
    plan.removed().map(|dump| dump.key.clone()).collect()
}

proptest! {
    #[test]
    fn what_has_to_stay_is_never_removed((dumps, snapshots, damaged) in arbitrary_history(), policy in arbitrary_policy()) {
        let plan = plan(&dumps, &snapshots, &damaged, &policy, &TimeZone::UTC);
        let removed = removed(&plan);
        let there = |key: &String| dumps.iter().any(|dump| dump.fact.key == *key && !dump.pruned);
        let named: Vec<_> = snapshots.iter().filter(|snapshot| snapshot.fact.dump.as_ref().is_some_and(there)).collect();
        for snapshot in &named {
            let key = snapshot.fact.dump.as_ref().unwrap();
            prop_assert!(snapshot.fact.label.is_none() || !removed.contains(key), "of a label");
        }
        if let Some(newest) = named.last() {
            prop_assert!(!removed.contains(newest.fact.dump.as_ref().unwrap()), "of the newest snapshot");
        }
        let proven = named.iter().rev().find(|snapshot| {
            snapshot.fact.proof.as_ref().is_some_and(|proof| proof.missing == 0) && !damaged.contains(snapshot.fact.dump.as_ref().unwrap())
        });
        if let Some(proven) = proven {
            prop_assert!(!removed.contains(proven.fact.dump.as_ref().unwrap()), "the newest proven");
        }
        let last = snapshots.last().map_or(0, |snapshot| snapshot.sequence);
        for dump in dumps.iter().filter(|dump| dump.sequence > last || damaged.contains(&dump.fact.key)) {
            prop_assert!(!removed.contains(&dump.fact.key));
        }
        prop_assert_eq!(plan.dumps.len(), dumps.iter().filter(|dump| !dump.pruned).count());
        if policy.keeps_all() {
            prop_assert!(removed.is_empty());
        }
    }

    #[test]
    fn a_second_prune_removes_nothing((mut dumps, snapshots, damaged) in arbitrary_history(), policy in arbitrary_policy()) {
        let first = plan(&dumps, &snapshots, &damaged, &policy, &TimeZone::UTC);
        let gone = removed(&first);
        for dump in &mut dumps {
            dump.pruned |= gone.contains(&dump.fact.key);
        }
        prop_assert_eq!(removed(&plan(&dumps, &snapshots, &damaged, &policy, &TimeZone::UTC)), BTreeSet::new());
    }

    #[test]
    fn a_rule_that_keeps_more_never_keeps_less((dumps, snapshots, damaged) in arbitrary_history(), policy in arbitrary_policy(), which in 0_u8..6, more in 1_u32..5) {
        let raise = |number: Option<NonZeroU32>| NonZeroU32::new(number.map_or(0, NonZeroU32::get) + more);
        let mut raised = policy.clone();
        match which {
            0 => raised.last = raise(policy.last),
            1 => raised.daily = raise(policy.daily),
            2 => raised.weekly = raise(policy.weekly),
            3 => raised.monthly = raise(policy.monthly),
            4 => raised.yearly = raise(policy.yearly),
            _ => {
                let days = policy.within.as_ref().map_or(0, |within| within.span().as_secs() / 86_400);
                raised.within = Some(format!("{}d", days + u64::from(more)).parse().unwrap());
            }
        }
        let kept = |policy: &Policy| removed(&plan(&dumps, &snapshots, &damaged, policy, &TimeZone::UTC));
        // A first rule is the exception: without any, all are kept.
        prop_assume!(!policy.keeps_all());
        prop_assert!(kept(&raised).is_subset(&kept(&policy)));
    }

    #[test]
    fn no_rule_keeps_more_than_it_says((dumps, snapshots, _) in arbitrary_history(), policy in arbitrary_policy()) {
        let plan = plan(&dumps, &snapshots, &BTreeSet::new(), &policy, &TimeZone::UTC);
        for (name, limit) in [("last", policy.last), ("daily", policy.daily), ("weekly", policy.weekly), ("monthly", policy.monthly), ("yearly", policy.yearly)] {
            let of_rule = |dump: &&PlannedDump| dump.reasons.iter().any(|reason| matches!(reason, Reason::Count { rule, .. } if *rule == name));
            let kept = plan.dumps.iter().filter(|dump| dump.snapshot.is_some()).filter(of_rule).count();
            prop_assert!(kept <= limit.map_or(0, NonZeroU32::get) as usize);
        }
    }

    #[test]
    fn no_text_of_a_retention_breaks_anything(text in "\\PC{0,20}|[0-9]{1,30}[dwhmy]?") {
        if let Ok(policy) = Policy::from_retention_text(&text) {
            prop_assert!(policy.keeps_all() == text.trim().is_empty());
        }
    }
}
