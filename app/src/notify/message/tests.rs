use super::*;
use crate::standing::tests::standing;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn end(command: &str, summary: Value) -> Message {
    let Value::Object(summary) = summary else { panic!("{summary}") };
    let origin = Origin { repository: "/backup/immich".into(), host: "nas".into() };
    Message::end(command, (at("2026-05-01T03:00Z"), at("2026-05-01T03:03:05Z")), summary, None, &origin)
}

fn proof() -> Proof {
    Proof { assets: 23_033, proven: 23_033, ..Proof::default() }
}

#[test]
fn what_matters_leads() {
    let backup = json!({ "exit_code": 0, "proof": proof(), "files": { "new": 412 }, "bytes": { "sent": 1_800_000_000_u64 } });
    let message = end("backup", backup);
    assert_eq!((message.kind, message.title.as_str()), (Kind::Success, "Immich backup: proven 23,033 of 23,033 · 412 new · 1.80 GB sent · 3 min"));
    assert_eq!(message.body(), "/backup/immich, on nas");

    let missing = NamedVerdict { verdict: immich_backup_core::verdict::Verdict::Missing, thing: None, path: "upload/a.jpg".into(), asset: None, kept: false };
    let lacking = Proof { proven: 23_032, missing: 1, named: vec![missing], ..proof() };
    let message = end("backup", json!({ "exit_code": 3, "proof": lacking, "files": { "new": 0 }, "bytes": { "sent": 0 } }));
    assert_eq!(
        (message.kind, message.title.as_str()),
        (Kind::Partial, "Immich backup INCOMPLETE: proven 23,032 of 23,033, 1 missing · 0 new · 0 B sent · 3 min")
    );
    assert_eq!(message.body(), "missing: upload/a.jpg\n/backup/immich, on nas");

    let message = end("backup", json!({ "exit_code": 1, "errors": [{ "message": "cannot reach\nthe store", "hint": "look at the cable" }] }));
    assert_eq!((message.kind, message.title.as_str()), (Kind::Failure, "Immich backup FAILED: cannot reach the store"));
    assert!(message.body().starts_with("look at the cable\n"));

    let message = end("backup", json!({ "exit_code": 4, "run": "5f", "withheld": "half of the originals are gone", "files": {}, "bytes": {} }));
    assert!(
        message.kind == Kind::Tripwire
            && message.title.starts_with("Immich backup WITHHELD: half of the originals are gone · ")
            && message.body().contains("--accept 5f")
    );

    let message = end("backup", json!({ "exit_code": 3, "bit_rot_count": 2, "bit_rot": ["upload/b.jpg"], "files": {}, "bytes": {} }));
    assert!(
        message.kind == Kind::BitRot && message.title.contains("found DAMAGE: 2 probably damaged in the library") && message.body().contains("upload/b.jpg")
    );

    let verify = json!({ "exit_code": 12, "damaged": 2, "lost": 1, "listed": { "files": 90, "bytes": 1 }, "read": { "files": 0, "bytes": 0 }, "findings": [{ "key": "library/a", "problem": "p" }] });
    let message = end("verify", verify);
    assert_eq!((message.kind, message.title.as_str()), (Kind::BitRot, "Immich verify found DAMAGE: 1 objects lost · 2 objects damaged · 90 listed · 3 min"));

    let message = end("drill", json!({ "exit_code": 12, "verdict": "failed", "problems": ["rows are missing", "and more"], "sampled": 200, "assets": 23_033 }));
    assert_eq!(
        (message.kind, message.title.as_str()),
        (Kind::Failure, "Immich drill FAILED: failed · rows are missing · 200 of 23,033 originals compared · 3 min")
    );
    assert!(message.body().starts_with("and more\n"));
    let message = end("backup", json!({ "exit_code": 130, "errors": [] }));
    assert!(message.kind == Kind::Failure && message.title.starts_with("Immich backup INTERRUPTED: "));
}

#[test]
fn whatever_a_summary_holds_a_message_is_short_and_its_title_one_line() {
    let long = "x\r\n".repeat(10_000);
    let many: Vec<_> = (0..5_000).map(|number| json!({ "path": format!("{number}{long}"), "problem": long })).collect();
    let message = end("backup", json!({ "exit_code": 1, "errors": [{ "message": long, "hint": long }], "unread": many, "proof": "none", "files": 7 }));
    assert!(message.title.chars().count() < 600 && !message.title.contains(['\r', '\n']));
    assert!(message.body().chars().count() < 10_000, "{}", message.body().len());
    assert!(message.json().to_string().len() < 200_000);
    // Nor does a summary that makes no sense matter.
    assert_eq!(end("backup", json!({})).kind, Kind::Failure);
}

#[test]
fn a_drill_that_is_overdue_is_mentioned_each_time_and_takes_the_place_of_success_once_a_week() {
    let summary = || json!({ "exit_code": 0, "proof": proof(), "files": {}, "bytes": {} });
    let first = at("2026-01-01T03:00Z");
    let after = |hours: usize| first + jiff::SignedDuration::from_hours(i64::try_from(hours).unwrap());
    let told = |backup: usize, every_hours: usize| {
        let now = after(backup * every_hours + 1);
        let standing = Standing {
            has_database: true,
            first_snapshot_at: Some(first),
            snapshot_at: Some(now),
            before_at: backup.checked_sub(1).map(|before| after(before * every_hours + 1)),
            ..standing(Some("2026-01-01T03:00Z"))
        };
        let message = end("backup", summary()).with_drill(Some(&standing), now);
        assert_eq!(message.body().contains("no drill"), backup * every_hours + 1 > 35 * 24, "{backup}");
        message.kind == Kind::DrillOverdue
    };
    let days =
        |every_hours: usize| (0..70 * 24 / every_hours).filter(|backup| told(*backup, every_hours)).map(|backup| backup * every_hours / 24).collect::<Vec<_>>();
    assert_eq!(days(24), [35, 42, 49, 56, 63], "each night");
    assert_eq!(days(7 * 24), [35, 42, 49, 56, 63], "each week");
    assert_eq!(days(10 * 24), [40, 50, 60], "less often than that");
    assert_eq!(days(6), days(24), "four times a day");
    let now = after(36 * 24);
    let overdue = Standing { has_database: true, first_snapshot_at: Some(first), snapshot_at: Some(now), ..standing(Some("2026-01-01T03:00Z")) };
    assert_eq!(end("backup", json!({ "exit_code": 1 })).with_drill(Some(&overdue), now).kind, Kind::Failure, "what is worse goes first");
    assert_eq!(end("verify", json!({ "exit_code": 0 })).with_drill(Some(&overdue), now).kind, Kind::Success);
    let drilled = Standing { drill_at: Some(after(30 * 24)), ..overdue };
    assert_eq!(end("backup", summary()).with_drill(Some(&drilled), now).kind, Kind::Success);
}

#[test]
fn kinds_are_asked_for_by_their_names() {
    for kind in Kind::ALL {
        assert_eq!(kind.name().parse(), Ok(kind));
        assert_eq!(json!(kind), kind.name());
    }
    assert!("test".parse::<Kind>().is_err());
}
