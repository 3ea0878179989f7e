use crate::app::{App, Outcome};
use crate::config::UsageError;
use crate::exit::{Exit, Failure, told_with_hint};
use crate::services::{self, Left, READY, Recovered};
use immich_backup_core::backup::stage::leftovers;
use immich_backup_core::stack::project::{Health, State};
use immich_backup_core::stack::services::journal::{self, By, Hold, Journal};
use immich_backup_core::stack::services::{ServicesError, Status, Up, recover, status};
use serde_json::json;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

/// Another process lets go of what it just ended with in much less.
const HOLD_WAIT: Duration = Duration::from_secs(5);

/// Stops the Compose project's services, starts them again, or says how they are.
pub async fn run(app: &App) -> anyhow::Result<Outcome> {
    match app.argument.as_deref() {
        Some("stop") => stop(app).await,
        Some("start") => start(app).await,
        Some("recover") => recover_dead(app).await,
        Some("status") => show(app).await,
        // Started by a run, for itself.
        Some("watch") => watch(app).await,
        Some(other) => Err(UsageError(format!("`services {other}` is not known: say stop, start, recover or status")).into()),
        None => Err(UsageError("say what to do: services stop, start, recover or status".to_owned()).into()),
    }
}

async fn stop(app: &App) -> anyhow::Result<Outcome> {
    let mut outage = services::prepare(app, By::Hand, false).await?;
    let intent = outage.intent().await?;
    let keep_database = app.settings.switch("keep-database")?;
    let stopped = match outage.stop_all_but_database(&app.stop).await {
        Ok(()) if !keep_database => outage.stop_database(&app.stop).await,
        stopped => stopped,
    };
    if let Err(error) = stopped {
        // What cannot be done as a whole is not left half done.
        outage.up_again().await?;
        return Err(error.into());
    }
    let path = outage.journal_path();
    outage.leave();
    let left: Vec<_> = intent.left.iter().map(|(name, why)| json!({ "container": name, "why": why })).collect();
    let stopped = journal::read(&services::folder(app)?, &project_of(&path)?)?.map_or_else(Vec::new, |journal| stopped_names(&journal));
    let text = format!("stopped: {}\n`immich-backup services start` starts them again; what ran is written down in `{}`", list(&stopped), path.display());
    Ok(Outcome::new(Exit::Done, text, json!({ "stopped": stopped, "left": left, "journal": path, "errors": [] })))
}

/// The project whose journal this is.
fn project_of(path: &std::path::Path) -> anyhow::Result<String> {
    let found = journal::all(path.parent().unwrap_or(path))?.into_iter().find(|(other, _)| other == path);
    Ok(found.map(|(_, journal)| journal).transpose()?.map(|journal| journal.project).unwrap_or_default())
}

fn stopped_names(journal: &Journal) -> Vec<String> {
    journal.services.iter().filter(|service| service.asked && service.taken().next().is_some()).map(|service| service.name.clone()).collect()
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

/// The project whose services are to be started: the one that is said, else the only one that has a journal.
fn journaled(app: &App) -> anyhow::Result<Option<String>> {
    if let Some(project) = app.settings.text("compose-project") {
        return Ok(Some(project.to_owned()));
    }
    let mut all = journal::all(&services::folder(app)?)?;
    if all.len() > 1 {
        let names: Vec<_> =
            all.iter().map(|(path, journal)| journal.as_ref().map_or_else(|_| path.display().to_string(), |journal| journal.project.clone())).collect();
        return Err(UsageError(format!("services of several projects are stopped ({}): name one with --compose-project", names.join(", "))).into());
    }
    match all.pop() {
        None => Ok(None),
        Some((_, journal)) => Ok(Some(journal?.project)),
    }
}

async fn start(app: &App) -> anyhow::Result<Outcome> {
    let nothing = || Outcome::new(Exit::Done, "nothing is stopped".to_owned(), json!({ "started": [], "downtime_ms": null, "errors": [] }));
    let Some(project) = journaled(app)? else { return Ok(nothing()) };
    let hold = services::hold(app, &project, "`services start`", HOLD_WAIT).await?;
    let Some(up) = recover(&hold, services::patience(app)?, &app.monitor).await? else { return Ok(nothing()) };
    Ok(Outcome::new(Exit::Done, up_text(&project, &up), json!({ "project": project, "started": up.started, "downtime_ms": milliseconds(&up), "errors": [] })))
}

fn up_text(project: &str, up: &Up) -> String {
    let downtime = up.downtime.map_or_else(String::new, |downtime| format!("; down for {:.1} s", downtime.as_secs_f64()));
    format!("`{project}` is up again (started: {}){downtime}", list(&up.started))
}

fn milliseconds(up: &Up) -> Option<u64> {
    up.downtime.map(|downtime| u64::try_from(downtime.as_millis()).unwrap_or(u64::MAX))
}

async fn recover_dead(app: &App) -> anyhow::Result<Outcome> {
    let all = services::recover_all(app, app.settings.text("compose-project"), services::patience(app)?).await?;
    let (mut lines, mut projects, mut errors, mut exit) = (Vec::new(), Vec::new(), Vec::new(), Exit::Done);
    for Recovered { project, result } in all {
        match result {
            Ok(Left::Up(up)) => {
                lines.push(up_text(&project, &up));
                projects.push(json!({ "project": project, "result": "up", "started": up.started, "downtime_ms": milliseconds(&up) }));
            }
            Ok(Left::InHands(who)) => {
                lines.push(format!("`{project}` is in the hands of another process, and left to it: {who}"));
                projects.push(json!({ "project": project, "result": "in_hands", "who": who }));
            }
            Ok(Left::ByHand) => {
                lines.push(format!("`{project}` was stopped by `services stop`, and stays so until `services start`"));
                projects.push(json!({ "project": project, "result": "by_hand" }));
            }
            Ok(Left::Nothing) => {}
            Err(error) => {
                exit = Exit::Failed;
                projects.push(json!({ "project": project, "result": "failed" }));
                let failure = Failure::from(error);
                lines.push(format!("`{project}`: {}{}", failure.message, failure.hint.as_ref().map_or_else(String::new, |hint| format!("\n  {hint}"))));
                errors.push(failure);
            }
        }
    }
    let mut stages = Vec::new();
    if let Some(folder) = app.settings.text("stage").filter(|folder| !folder.is_empty()) {
        for leftover in leftovers(Path::new(folder))? {
            let (path, run) = (leftover.path().to_owned(), leftover.run());
            let result = if leftover.is_complete() {
                // It may have what is nowhere else any more.
                lines.push(format!(
                    "`{}` holds what run {} could not send any more: the next `backup --stop-services --stage` sends it",
                    path.display(),
                    run.short()
                ));
                "kept"
            } else {
                leftover.remove()?;
                lines.push(format!("removed `{}`, the copy that run {} did not get done with", path.display(), run.short()));
                "removed"
            };
            stages.push(json!({ "path": path, "run": run, "result": result }));
        }
    }
    if lines.is_empty() {
        lines.push("nothing is to be brought back".to_owned());
    }
    Ok(Outcome::new(exit, lines.join("\n"), json!({ "projects": projects, "stages": stages, "errors": errors })))
}

async fn show(app: &App) -> anyhow::Result<Outcome> {
    let folder = services::folder(app)?;
    let (mut lines, mut journals, mut errors, mut exit) = (Vec::new(), Vec::new(), Vec::new(), Exit::Done);
    for (path, journal) in journal::all(&folder)? {
        match journal {
            Ok(journal) => {
                let holder = journal::holder(&folder, &journal.project)?;
                lines.push(journal_text(&journal, holder.as_deref()));
                journals.push(json!({ "path": path, "project": journal.project, "phase": journal.phase, "by": journal.by, "since": journal.begun_at,
                    "older_boot": journal.is_of_an_older_boot(), "in_hands": holder, "stopped": stopped_names(&journal) }));
            }
            Err(error) => {
                exit = Exit::Failed;
                lines.push(told_with_hint(journal::JournalError::into(error)));
                journals.push(json!({ "path": path, "damaged": true }));
            }
        }
    }
    let found = async {
        let (engine, project) = match app.settings.text("compose-project") {
            Some(project) => (services::engine(app).await?, project.to_owned()),
            None => {
                let (engine, choice) = services::choice(app).await?;
                (engine, choice.project)
            }
        };
        let statuses = status(&engine, &project, services::patience(app)?).await?;
        if statuses.is_empty() {
            return Err(ServicesError::NoProject { project, engine: engine.address().to_owned() }.into());
        }
        Ok::<_, anyhow::Error>((project, statuses))
    };
    let mut containers = Vec::new();
    let mut project = None;
    match found.await {
        Ok((name, statuses)) => {
            lines.push(format!("`{name}`"));
            for status in &statuses {
                lines.push(format!("  {:<28} {:<28} {}", status.service, status.container, state_text(status)));
                containers.push(json!({ "service": status.service, "container": status.container, "state": status.state, "health": status.health }));
            }
            project = Some(name);
        }
        // Journals are shown all the same.
        Err(error) if !lines.is_empty() => {
            exit = Exit::Failed;
            let failure = Failure::from(error);
            lines.push(failure.message.clone());
            lines.extend(failure.hint.iter().map(|hint| format!("  {hint}")));
            errors.push(failure);
        }
        Err(error) => return Err(error),
    }
    Ok(Outcome::new(exit, lines.join("\n"), json!({ "project": project, "containers": containers, "journals": journals, "errors": errors })))
}

fn state_text(status: &Status) -> String {
    let state = match status.state {
        State::Running => "running",
        State::Paused => "paused",
        State::Restarting => "restarting",
        State::Created => "never started",
        State::Exited => "stopped",
        State::Dead => "dead",
    };
    let health = match status.health {
        Some(Health::Starting) => ", not yet known to be well",
        Some(Health::Healthy) => ", well",
        Some(Health::Unhealthy) => ", NOT WELL",
        None => "",
    };
    format!("{state}{health}")
}

fn journal_text(journal: &Journal, holder: Option<&str>) -> String {
    let whose = match (journal.by, holder) {
        (_, Some(who)) => format!("in the hands of {who}"),
        (By::Run, None) => "a run died over it: `immich-backup services recover` starts them".to_owned(),
        (By::Hand, None) => "by `services stop`: `immich-backup services start` starts them".to_owned(),
    };
    format!("`{}` is {} since {} ({whose})", journal.project, journal.phase.text(), journal.begun_at)
}

/// Waits until nobody has the services in hand, and brings back what then is still down. Whoever had them has died, or is done.
async fn watch(app: &App) -> anyhow::Result<Outcome> {
    let project = app.settings.required("compose-project")?;
    let folder = services::folder(app)?;
    // A session of its own: what ends the run's terminal or process group does not end this.
    rustix::process::setsid().map_err(|error| anyhow::anyhow!("cannot begin a session: {}", std::io::Error::from(error)))?;
    // The run waits for this word before it stops anything.
    drop(std::io::stdout().write_all(READY.as_bytes()).and_then(|()| std::io::stdout().flush()));
    let hold = tokio::task::block_in_place(|| Hold::wait(&folder, project, &format!("the watcher of a run that died, process {}", std::process::id())))?;
    let nothing = || Outcome::new(Exit::Done, String::new(), json!({ "errors": [] }));
    let Some(left) = hold.read()?.filter(|left| left.by == By::Run) else { return Ok(nothing()) };
    crate::screen::print_error(&format!(
        "{} the run that stopped `{project}` is gone ({}): its services are started",
        jiff::Timestamp::now(),
        left.phase.text()
    ));
    let up = recover(&hold, services::patience(app)?, &app.monitor).await?;
    if let Some(up) = up {
        crate::screen::print_error(&format!("{} {}", jiff::Timestamp::now(), up_text(project, &up)));
    }
    Ok(nothing())
}
