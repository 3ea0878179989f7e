//! `--shard` and `--run-id`: one of several processes that make one run.

use crate::app::App;
use crate::config::UsageError;
use crate::screen;
use immich_backup_core::backup::{Report, Shard};
use immich_backup_core::budget::SHARDS_MAX;
use immich_backup_core::model::Part;

/// Where an indexed Job of Kubernetes says which of its pods this is, from 0
/// (<https://kubernetes.io/docs/concepts/workloads/controllers/job/#completion-mode>).
const INDEX: &str = "JOB_COMPLETION_INDEX";

/// What a shard cannot do: it is for a machine that has the whole stack, or for a person.
const ALONE: [&str; 2] = ["stop-services", "dry-run"];

/// Which part of which run this process is to do; `None` for all of one of its own.
///
/// # Errors
/// It cannot be understood, or does not go with what else was said.
pub fn of(app: &App) -> Result<Option<Shard>, UsageError> {
    let settings = &app.settings;
    let (shard, run) = (settings.text("shard"), settings.text("run-id"));
    let Some(shard) = shard else {
        return match run {
            Some(_) => Err(UsageError("--run-id goes with --shard I/N: it is what the shards of one run have in common".to_owned())),
            None => Ok(None),
        };
    };
    let part = parse(shard, std::env::var(INDEX).ok().as_deref())?;
    for name in ALONE {
        if settings.switch(name)? {
            return Err(UsageError(format!("--{name} does not go with --shard")));
        }
    }
    let Some(run) = settings.parsed("run-id")? else {
        return Err(UsageError("--shard needs --run-id UUID: the same for all shards of a run, and another one for each run".to_owned()));
    };
    Ok(Some(Shard { part, run }))
}

/// The folder of this shard's own state: several of them may run on one machine, or have one volume.
///
/// # Errors
/// As [`of`].
pub fn folder(app: &App) -> Result<Option<String>, UsageError> {
    Ok(of(app)?.map(|shard| format!("shard-{}-of-{}", shard.part.part, shard.part.of)))
}

fn parse(text: &str, index: Option<&str>) -> Result<Part, UsageError> {
    let wrong = |why: String| UsageError(format!("--shard `{text}`: {why}"));
    let number = |text: &str| text.parse::<u64>().map_err(|_| wrong("it takes I/N, e.g. 0/8 to 7/8, or N alone".to_owned()));
    let (part, of) = match (text.split_once('/'), index) {
        (Some((part, of)), _) => (number(part)?, number(of)?),
        (None, Some(index)) => (index.parse().map_err(|_| wrong(format!("{INDEX} is `{index}`, which is no number")))?, number(text)?),
        (None, None) => return Err(wrong(format!("{INDEX} is not set, so say which one of them this is: I/{text}"))),
    };
    if of == 0 || of > SHARDS_MAX {
        return Err(wrong(format!("a run has 1 to {SHARDS_MAX} shards")));
    }
    if part >= of {
        return Err(wrong(format!("the shards of {of} are 0 to {}", of - 1)));
    }
    Ok(Part { of, part })
}

/// What is said first of a shard that is done.
pub fn headline(report: &Report, waiting_for: &[u64], seconds: f64) -> String {
    let run = report.run.short();
    if waiting_for.is_empty() {
        return format!("this shard of run {run} is done, and another one makes the snapshot, or has made it · {seconds:.1} s");
    }
    let others = waiting_for.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    format!(
        "this shard of run {run} is done · {} sent · {seconds:.1} s; the snapshot is made once the shards {others} are done, too",
        screen::bytes(report.counts.sent.bytes)
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may")]

    use super::*;

    #[test]
    fn a_shard_is_said_whole_or_has_its_number_from_the_job() {
        assert_eq!(parse("3/8", None).unwrap(), Part { of: 8, part: 3 });
        assert_eq!(parse("0/1", Some("7")).unwrap(), Part { of: 1, part: 0 });
        assert_eq!(parse("8", Some("7")).unwrap(), Part { of: 8, part: 7 });
    }

    #[test]
    fn what_is_no_shard_is_refused_by_name() {
        for (text, index, why) in [
            ("8/8", None, "0 to 7"),
            ("0/0", None, "1 to 64"),
            ("1/65", None, "1 to 64"),
            ("8", None, "JOB_COMPLETION_INDEX is not set"),
            ("8", Some("x"), "`x`"),
            ("8", Some("8"), "0 to 7"),
            ("a/8", None, "takes I/N"),
            ("-1/8", None, "takes I/N"),
            ("", Some("0"), "takes I/N"),
        ] {
            let error = parse(text, index).unwrap_err().to_string();
            assert!(error.contains("--shard") && error.contains(why), "{text}: {error}");
        }
    }
}
