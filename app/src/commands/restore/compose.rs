//! `restore --compose-project NAME`: a snapshot into a Compose project, until Immich answers.

use super::{arrange, database_object, database_text, load_text, plan_text, prepare_database, text};
use crate::app::{App, Outcome};
use crate::config::{Origin, UsageError};
use crate::exit::Exit;
use crate::screen;
use immich_backup_core::database::Client;
use immich_backup_core::database::container::ContainerOptions;
use immich_backup_core::database::load::LoadError;
use immich_backup_core::database::version;
use immich_backup_core::event::Event;
use immich_backup_core::find;
use immich_backup_core::listing;
use immich_backup_core::repository::Session;
use immich_backup_core::repository::log::DumpFact;
use immich_backup_core::repository::manifest::{Selector, SnapshotRow};
use immich_backup_core::restore::compose::{self, Destination, Fit, IntoProjectError, Progress, Step};
use immich_backup_core::restore::{self, DatabaseReport, Plan, Prepared, Report, RestoreError};
use immich_backup_core::stack::answer;
use immich_backup_core::stack::discover::{self, Choice, Database, DiscoverError, Site};
use immich_backup_core::stack::engine::Engine;
use immich_backup_core::stack::own::{self, Here, Signs};
use immich_backup_core::stack::project;
use immich_backup_core::stack::ready::{self, Over};
use immich_backup_core::stack::services::journal::{By, Hold};
use immich_backup_core::stack::services::{self, Outage, ServicesError};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

mod lay;

/// Settings of a restore that say where it goes, or that only a part of it is wanted.
const CONTRARY: [&str; 18] = [
    "to",
    "config-to",
    "postgres-to",
    "path",
    "media-mount",
    "database",
    "database-container",
    "database-user",
    "database-name",
    "dump-file",
    "database-in-dump",
    "album",
    "user",
    "person",
    "since",
    "type",
    "trashed",
    "deleted",
];

/// The engine, what it has, and where this program is.
struct Look {
    engine: Engine,
    here: Here,
    site: Result<Site, DiscoverError>,
}

/// All that is known before anything is done.
struct Task<'a> {
    app: &'a App,
    engine: Engine,
    here: Here,
    site: Site,
    destination: Destination,
    snapshot: SnapshotRow,
    dump: DumpFact,
    replace: bool,
    wait: Duration,
}

/// What was done of it.
#[derive(Default)]
struct Done {
    /// From here on Immich must not run before all of it is there.
    changed: bool,
    database: Option<DatabaseReport>,
    /// An earlier try had loaded the database.
    was_loaded: bool,
    /// An earlier try had done all but starting.
    was_placed: bool,
    files: Option<Report>,
    started: Vec<String>,
    ill: Option<ServicesError>,
    answered: Option<(String, Option<String>)>,
}

/// Restores into a project.
pub async fn run(app: &App, name: &str) -> anyhow::Result<Outcome> {
    let said = |name: &str| app.settings.found(name).is_some_and(|found| found.origin == Origin::Flag);
    if let Some(contrary) = CONTRARY.into_iter().find(|name| said(name)) {
        let message = format!("--{contrary} does not go with --compose-project, which brings back all of the snapshot behind the project's own mounts");
        return Err(UsageError(message).into());
    }
    let selector = app.settings.parsed::<Selector>("snapshot")?.unwrap_or(Selector::Latest);
    let dry_run = app.settings.switch("dry-run")?;
    let mut reading = app.reading_until(crate::commands::find::log_end(app)?).await?;
    let snapshot = reading.session.manifest.select(&selector)?;
    let dump = listing::dump_of(&reading.session.manifest, &snapshot)?;
    let mut looked = look(app, name).await?;
    if let Err(DiscoverError::NotThere { services: None, .. }) = &looked.site {
        match lay::lay(app, &reading.session, &snapshot, name, dry_run).await? {
            lay::Laid::Waiting => looked = lay::wait(app, name).await?,
            lay::Laid::Told(outcome) => return Ok(*outcome),
        }
    }
    let Look { engine, here, site } = looked;
    let site = site?;
    let roots = reading.session.manifest.run_started(snapshot.id)?.map(|started| started.roots).unwrap_or_default();
    let externals =
        if said("external") { crate::commands::externals(app)?.into_iter().map(|external| (external.name, external.path)).collect() } else { BTreeMap::new() };
    let destination = Destination::find(&site, &here, &roots, &externals)?;
    let (replace, wait) = (app.settings.switch("replace")?, app.settings.time("wait")?.unwrap_or_default());
    let task = Task { app, engine, here, site, destination, snapshot, dump, replace, wait };
    task.run(&mut reading.session, dry_run).await
}

/// Asks the engine.
async fn look(app: &App, name: &str) -> anyhow::Result<Look> {
    let engine = Engine::connect(app.settings.text("docker-host").unwrap_or_default()).await?;
    let mut containers = project::containers(&engine).await?;
    let address = engine.address().to_owned();
    let choice = Choice { project: Some(name.to_owned()), folder: None };
    // Looks up a name, perhaps.
    let (here, site) = tokio::task::spawn_blocking(move || {
        let here = own::mark(&mut containers, &Signs::look(), &address);
        let site = discover::choose(&containers, &choice, &here);
        (here, site)
    })
    .await?;
    Ok(Look { engine, here, site })
}

impl Task<'_> {
    async fn run(self, session: &mut Session, dry_run: bool) -> anyhow::Result<Outcome> {
        let (base, project, id) = (self.app.state_base(), self.destination.project.clone(), self.snapshot.id);
        let fit = compose::fit(self.destination.image_version.as_deref(), self.dump.immich_version.as_deref());
        if let (Fit::Older, Some(image), Some(dump)) = (&fit, &self.destination.image_version, &self.dump.immich_version) {
            return Err(IntoProjectError::OlderImage { image: image.clone(), dump: dump.clone() }.into());
        }
        let running: Vec<_> = compose::running(&self.site).into_iter().map(|container| container.name).collect();
        let before = Progress::read(&base, &project)?.filter(|progress| progress.snapshot == id);
        let hold = if dry_run { None } else { Some(compose::hold(&base, &project)?) };
        let standing = hold.as_ref().map(Hold::read).transpose().map_err(IntoProjectError::from)?.flatten();
        if let Some(journal) = &standing {
            compose::may_take(journal)?;
        }
        let is_ours = standing.as_ref().is_some_and(|journal| journal.run == Some(compose::run_of(&id.to_string())));
        // All was in its place, and the start had begun.
        let placed = !self.replace && before.as_ref().is_some_and(|progress| progress.step == Step::Placed) && (is_ours || !running.is_empty());
        if !running.is_empty() && !self.replace && !placed {
            return Err(IntoProjectError::Running { project, containers: running }.into());
        }
        let files = if placed { None } else { Some(self.prepare_files(session, dry_run).await?) };
        self.show(files.as_ref(), &fit, &running)?;
        let Some(hold) = hold else {
            let report = files.map(|prepared| Report { preview: prepared.preview, ..Report::default() });
            let done = Done { files: report, was_placed: placed, ..Done::default() };
            return Ok(Outcome::new(Exit::Done, "dry run: nothing was written, stopped or started".to_owned(), self.fields(&done, true)));
        };
        let mut done = Done { was_placed: placed, ..Done::default() };
        let stopped = !running.is_empty() && !placed;
        let hold = if stopped { self.stop(hold, standing.is_some()).await? } else { self.write_down(hold, standing.is_none())? };
        let mut result = match files {
            Some(files) => Box::pin(self.bring_back(session, files, before, &mut done)).await,
            None => Ok(true),
        };
        if matches!(result, Ok(true)) {
            result = Box::pin(self.start(&hold, &mut done)).await.map(|()| true);
        } else if !done.changed {
            self.undo(&hold, stopped, standing.is_some()).await;
        }
        match result {
            Ok(_) => self.outcome(&done),
            Err(error) if done.changed => {
                Err(error
                    .context(format!("Immich stays down until the restore into `{project}` is complete: run the same command again, it goes on from there")))
            }
            Err(error) => Err(error),
        }
    }

    /// What will be written where; changes nothing.
    async fn prepare_files(&self, session: &Session, dry_run: bool) -> anyhow::Result<Prepared> {
        // Files go where the database expects them, whatever Immich moved while the snapshot was taken.
        let selection = if find::is_out_of_place(&self.snapshot) { arrange(self.app, session, &self.snapshot).await? } else { None };
        let plan = Plan {
            snapshot: self.snapshot.clone(),
            to: Some(self.destination.media.clone()),
            externals: self.destination.externals.clone(),
            mounts: self.destination.mounts.clone(),
            config_to: None,
            postgres_to: None,
            paths: crate::commands::patterns(&[])?,
            chosen: selection.map(|selection| selection.chosen),
            overwrite: self.app.settings.switch("overwrite")?,
            workers: self.app.workers()?,
        };
        if !dry_run {
            // The engine makes such folders when it starts a container; here that comes later.
            std::fs::create_dir_all(&self.destination.media).map_err(|source| RestoreError::Target {
                action: "make",
                path: self.destination.media.clone(),
                source,
            })?;
        }
        Ok(restore::prepare(session, plan, self.app.monitor.as_ref(), &self.app.stop).await?)
    }

    fn show(&self, files: Option<&Prepared>, fit: &Fit, running: &[String]) -> anyhow::Result<()> {
        let (image, dump) = (self.destination.image_version.as_deref(), self.dump.immich_version.as_deref());
        let versions = format!("the dump is of Immich {}, and the stack's is {}", dump.unwrap_or("(not known)"), image.unwrap_or("(not known)"));
        match fit {
            Fit::Same | Fit::Older => {}
            Fit::Newer => self.warn(format!("{versions}: it will migrate the database when it starts, and there is no way back")),
            Fit::Unknown => self.warn(format!("{versions}: see that it is not older, Immich never migrates down")),
        }
        if self.app.json || self.app.settings.switch("quiet")? {
            return Ok(());
        }
        let Destination { project, media, media_location, mounts, externals, database, .. } = &self.destination;
        let mut lines = vec![format!("snapshot {} of {:.0} into the Compose project `{project}`", self.snapshot.id.short(), self.snapshot.fact.taken_at)];
        match files {
            Some(files) => lines.push(plan_text(&files.preview)),
            None => lines.push("  restored       by this command before; what is left is to start it".to_owned()),
        }
        lines.push(format!("  media          {} (the server's {})", media.display(), media_location.display()));
        lines.extend(mounts.iter().map(|(at, path)| format!("  of it, {at}: {}", path.display())));
        lines.extend(externals.iter().map(|(name, path)| format!("  external       {name}: {}", path.display())));
        lines.push(format!("  database       {}, {} rows", database.target(), screen::count(self.dump.rows)));
        lines.push(format!("  versions       {versions}"));
        if !running.is_empty() && files.is_some() {
            lines.push(format!("  to stop first  all services but the database ({} of Immich run)", running.join(", ")));
        }
        lines.push("  then           the services are started, until Immich answers".to_owned());
        screen::print_error(&lines.join("\n"));
        Ok(())
    }

    fn warn(&self, message: String) {
        self.app.monitor.emit(Event::Warned { message });
    }

    fn patience(&self) -> services::Patience {
        services::Patience { engine: self.wait, ..services::Patience::default() }
    }

    /// Stops all but the database, with what ran written down.
    async fn stop(&self, hold: Hold, stands: bool) -> anyhow::Result<Hold> {
        let (base, project) = (self.app.state_base(), self.destination.project.clone());
        if stands {
            // Somebody has started Immich meanwhile, or an earlier restore died while it stopped it: what was written down is up first.
            services::recover(&hold, self.patience(), &self.app.monitor).await?;
        }
        let project_depends = self.site.project.iter().flat_map(|project| &project.services);
        let choice = services::Choice {
            project: project.clone(),
            database: Some(self.destination.database_service().to_owned()),
            depends_on: project_depends.map(|service| (service.name.clone(), service.depends_on.clone())).collect(),
            stop_timeouts: BTreeMap::new(),
        };
        let mut outage = Outage::prepare(self.engine.clone(), choice, By::Hand, hold, self.patience(), Arc::clone(&self.app.monitor)).await?;
        outage.set_run(compose::run_of(&self.snapshot.id.to_string()));
        if let Err(error) = outage.stop_all_but_database(&self.app.stop).await {
            outage.up_again().await?;
            return Err(error.into());
        }
        outage.leave();
        let hold = compose::hold(&base, &project)?;
        self.write_down(hold, false)
    }

    /// Writes down what is to be up in the end.
    fn write_down(&self, hold: Hold, anew: bool) -> anyhow::Result<Hold> {
        let id = self.snapshot.id.to_string();
        let journal = match hold.read().map_err(IntoProjectError::from)?.filter(|_| !anew) {
            Some(mut journal) => {
                compose::add_needed(&mut journal, &self.site, &self.destination, &id);
                journal
            }
            None => compose::to_be_up(&self.site, &self.destination, self.engine.address(), &id),
        };
        hold.write(&journal).map_err(IntoProjectError::from)?;
        Ok(hold)
    }

    /// Nothing was changed: what ran is up again, and what did not run is as it was.
    async fn undo(&self, hold: &Hold, stopped: bool, stood: bool) {
        let undone = if stopped {
            services::recover(hold, self.patience(), &self.app.monitor).await.map(drop)
        } else if stood {
            Ok(())
        } else {
            hold.remove().map_err(ServicesError::from)
        };
        if let Err(error) = undone {
            self.warn(format!("{error}; {}", error.hint().unwrap_or_default()));
        }
    }

    /// Database, files, markers. Whether Immich may be started.
    async fn bring_back(&self, session: &mut Session, files: Prepared, before: Option<Progress>, done: &mut Done) -> anyhow::Result<bool> {
        let (app, base) = (self.app, self.app.state_base());
        let client = self.database_alone().await?;
        let identity = compose::identity(&client).await?;
        let note = |step| Progress::new(self.snapshot.id, identity.clone(), step).write(&base, &self.destination.project);
        let begun = before.is_some_and(|progress| progress.database == identity) && !self.replace;
        let is_empty = client.server().await?.tables_in_public == 0;
        done.was_loaded = begun && !is_empty && compose::holds_dump(session, &self.snapshot, &client, app.monitor.as_ref(), &app.stop).await?;
        if done.was_loaded {
            done.changed = true;
        } else {
            let prepared = prepare_database(app, session, &self.snapshot, client).await.map_err(of_project)?;
            if !app.json && !app.settings.switch("quiet")? {
                screen::print_error(&load_text(&prepared.load));
            }
            note(Step::Loading)?;
            let loaded = Box::pin(prepared.run(session, &app.monitor, &app.stop)).await;
            done.changed = !matches!(&loaded, Err(error) if is_unchanged(error));
            done.database = Some(loaded.map_err(IntoProjectError::from)?);
        }
        note(Step::Loaded)?;
        let report = files.run(session, &app.monitor, &app.stop).await?;
        done.changed = true;
        let (interrupted, lacking) = (report.interrupted, report.failed > report.damaged);
        done.files = Some(report);
        if interrupted {
            return Err(IntoProjectError::Interrupted.into());
        }
        if lacking {
            // The next try may get them. What is damaged in the repository, none will: Immich is better off without these than not at all.
            return Ok(false);
        }
        let made = compose::make_markers(&self.destination.media, &self.destination.mounts)?;
        if let Some(report) = &mut done.files {
            report.markers += made;
        }
        note(Step::Placed)?;
        Ok(true)
    }

    /// Starts the database's container and returns when it could serve Immich.
    async fn database_alone(&self) -> anyhow::Result<Client> {
        let container = &self.destination.database_container;
        let Database::InContainer { container: name, user, name: database, password } = self.destination.database.clone() else {
            return Err(IntoProjectError::DatabaseElsewhere { project: self.destination.project.clone(), target: self.destination.database.target() }.into());
        };
        let options = ContainerOptions { docker: self.engine.address().to_owned(), container: name, user, database, password, run_as: None };
        ready::start(&self.engine, container).await?;
        Ok(ready::until_answers(&self.engine, container, options, self.wait, self.app.monitor.as_ref(), &self.app.stop)
            .await
            .map_err(IntoProjectError::from)?)
    }

    /// All that is to be up, in order, until Immich answers.
    async fn start(&self, hold: &Hold, done: &mut Done) -> anyhow::Result<()> {
        done.changed = false;
        match services::recover(hold, self.patience(), &self.app.monitor).await {
            Ok(up) => done.started = up.map(|up| up.started).unwrap_or_default(),
            // Immich itself may be well all the same.
            Err(error @ ServicesError::NotUp { .. }) => done.ill = Some(error),
            Err(error) => return Err(error.into()),
        }
        let base = self.answer().await?;
        let version = version::of_server(&base).await.ok();
        done.answered = Some((base, version));
        if done.ill.is_none() {
            Progress::remove(&self.app.state_base(), &self.destination.project)?;
        }
        Ok(())
    }

    /// Where Immich answers.
    async fn answer(&self) -> Result<String, IntoProjectError> {
        let said = self.app.settings.found("immich-url").filter(|found| found.origin == Origin::Flag).and_then(|found| found.values.first().cloned());
        let mut patience = ready::Patience::new(self.wait, self.app.monitor.as_ref(), &self.app.stop);
        let name = self.site.server.name.clone();
        loop {
            // Addresses and ports come with the start.
            let server = project::container(&self.engine, &self.site.server.id).await.unwrap_or_else(|_| self.site.server.clone());
            let bases = said.clone().map_or_else(|| answer::addresses(&server, &self.here, self.engine.address()), |url| vec![url]);
            let mut tried = Vec::new();
            for base in bases {
                match answer::ping(&base).await {
                    // Somebody else may answer where this one is not.
                    Ok(()) if server.state.is_up() => return Ok(base),
                    Ok(()) => tried.push(format!("somebody answers at {}, and its container does not run", shown(&base))),
                    Err(told) => tried.push(format!("{}: {told}", shown(&base))),
                }
            }
            let what = if tried.is_empty() { "it publishes no port and has no address".to_owned() } else { tried.join("; ") };
            match patience.wait(|| format!("Immich's server does not answer yet ({what})")).await {
                Ok(()) => {}
                Err(Over::Interrupted) => return Err(IntoProjectError::Interrupted),
                Err(Over::TooLong(waited_s)) => return Err(IntoProjectError::Silent { container: name, waited_s, what }),
            }
        }
    }

    fn outcome(&self, done: &Done) -> anyhow::Result<Outcome> {
        let project = &self.destination.project;
        let exit = match &done.files {
            Some(Report { damaged: 1.., .. }) => Exit::Damaged,
            Some(Report { failed: 1.., .. }) => Exit::Incomplete,
            _ if done.ill.is_some() || done.database.as_ref().is_some_and(|report| !report.differ.is_empty()) => Exit::Incomplete,
            _ => Exit::Done,
        };
        let mut lines = Vec::new();
        if done.was_loaded {
            lines.push("the database was restored by the try before".to_owned());
        }
        lines.extend(done.database.as_ref().map(database_text));
        lines.extend(done.files.as_ref().map(|report| text(if report.failed > 0 { exit } else { Exit::Done }, report)));
        if done.was_placed {
            lines.push("database and files were restored by the try before".to_owned());
        }
        if let Some(error) = &done.ill {
            lines.push(format!("{error}\n  {}", error.hint().unwrap_or_default()));
        }
        match &done.answered {
            Some((base, Some(version))) => lines.push(format!("Immich {version} answers at {}", shown(base))),
            Some((base, None)) => lines.push(format!("Immich answers at {}, and does not say its version", shown(base))),
            None => lines.push(format!("Immich was NOT started in `{project}`: run the same command again, it goes on from there")),
        }
        Ok(Outcome::new(exit, lines.join("\n"), self.fields(done, false)))
    }

    fn fields(&self, done: &Done, dry_run: bool) -> Value {
        let empty = Report::default();
        let report = done.files.as_ref().unwrap_or(&empty);
        let preview = &report.preview;
        let folder = |path: &PathBuf| path.display().to_string();
        let mounts: BTreeMap<_, _> = self.destination.mounts.iter().map(|(at, path)| (at.to_string(), folder(path))).collect();
        let externals: BTreeMap<_, _> = self.destination.externals.iter().map(|(name, path)| (name.to_string(), folder(path))).collect();
        json!({
            "snapshot": self.snapshot.id,
            "dry_run": dry_run,
            "project": self.destination.project,
            "folders": { "media": folder(&self.destination.media), "mounts": mounts, "external": externals },
            "versions": { "image": self.destination.image_version, "dump": self.dump.immich_version },
            "plan": { "write": preview.write, "replace": preview.replace, "right": preview.right, "free_bytes": preview.free_bytes },
            "written": report.written,
            "failed": report.failed,
            "damaged": report.damaged,
            "failures": report.failures,
            "markers_made": report.markers,
            "database": done.database.as_ref().map(database_object),
            "done_before": { "database": done.was_loaded || done.was_placed, "files": done.was_placed },
            "started": done.started,
            "server": done.answered.as_ref().map(|(base, version)| json!({ "url": shown(base), "version": version })),
            "errors": done.ill.iter().map(|error| json!({ "message": error.to_string(), "hint": error.hint() })).collect::<Vec<_>>(),
        })
    }
}

/// A URL without a password.
fn shown(base: &str) -> String {
    immich_backup_core::repository::place::without_secrets(base)
}

/// An error of the database's part, with the hint that fits a project.
fn of_project(error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<RestoreError>() {
        Ok(error) => IntoProjectError::from(error).into(),
        Err(error) => error,
    }
}

/// Whether the database is for certain as it was before.
fn is_unchanged(error: &RestoreError) -> bool {
    !matches!(error, RestoreError::Uncounted { .. } | RestoreError::Load(LoadError::Unknown { .. }))
}
