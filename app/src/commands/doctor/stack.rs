//! What was found for what nobody said, and from where.

use super::Check;
use crate::app::App;
use crate::stack::{self, Findings, Unfound};
use immich_backup_core::database::client::Client;
use immich_backup_core::model::RootPath;
use immich_backup_core::stack::discover::{DiscoverError, Found, Media, Place};
use immich_backup_core::stack::project::State;
use std::path::PathBuf;

/// The Immich that was found.
pub(super) struct Looked {
    findings: Findings,
    media: Result<Found<Media>, DiscoverError>,
}

impl Looked {
    /// Looks for what nobody said; `None` where everything was said, or nothing was found: then `checks` says why.
    pub(super) async fn at(app: &App, checks: &mut Vec<Check>) -> Option<Self> {
        let sought = stack::Sought::of(&app.settings);
        if sought.is_nothing() {
            return None;
        }
        let stack = match stack::stack(app).await {
            Ok(stack) => stack,
            Err(error) if sought.is_optional() && error.is_nothing() => return None,
            // Who checks a store from another machine has no Immich here, and needs none.
            Err(error) if error.is_nothing() && !stack::is_place_said(&app.settings) => {
                checks.push(Check::doubtful("immich", format!("none is found on this machine: {error}")));
                return None;
            }
            Err(error) => {
                checks.push(Check::bad("immich", error));
                return None;
            }
        };
        let described = stack.described();
        let server = stack.site.server.state;
        let check = if stack.engine.is_some() && server != State::Running { Check::doubtful } else { Check::good };
        checks.push(check("immich".to_owned(), described.to_string()));
        if let Some(version) = stack.site.version() {
            checks.push(Check::good("version", version.to_string()));
        }
        checks.extend(stack.problems.iter().map(|problem| Check::doubtful("stack", problem.clone())));
        let media = stack.site.media(&stack.here);
        if let Some(other) = sought.other_library(&app.settings, media.as_ref().ok()) {
            checks.push(Check::doubtful("immich", format!("left aside: {other}")));
            return None;
        }
        let database =
            if sought.database { stack.site.database() } else { return Some(Self { findings: Findings { stack, media: None, database: None }, media }) };
        let database = match database {
            Ok(found) => Some(found),
            Err(error) => {
                checks.push(Check::bad("database", Unfound::from(error)));
                None
            }
        };
        Some(Self { findings: Findings { stack, media: None, database }, media })
    }

    /// The media location.
    pub(super) fn check_media(&self) -> Result<&Found<Media>, Check> {
        self.media.as_ref().map_err(|error| Check::bad_with_hint("library", error, error.hint()))
    }

    /// Folders below the media location that are elsewhere.
    pub(super) fn mounts(&self) -> Vec<(RootPath, PathBuf)> {
        self.media.as_ref().ok().and_then(|media| stack::roots(&media.value.mounts).ok()).unwrap_or_default()
    }

    /// The client of the database that was found, and what told of it.
    pub(super) async fn database(&self, app: &App) -> Result<(Box<Client>, Option<String>), Check> {
        let origin = self.findings.database.as_ref().map(|found| found.origin.clone());
        match self.findings.client(app).await {
            Ok(Some(client)) => Ok((Box::new(client), origin)),
            Ok(None) => Err(Check::doubtful("database", "not found: say --database URL or --database-container NAME")),
            Err(error) => Err(Check::bad("database", error)),
        }
    }

    /// The external libraries that the database names.
    pub(super) async fn check_externals(&self, app: &App, client: Option<&Client>) -> Vec<Check> {
        let externals = match self.findings.externals(app, client).await {
            Ok(externals) => externals,
            Err(error) => return vec![Check::bad("external", error)],
        };
        let said = match super::super::externals(app) {
            Ok(said) => said,
            Err(error) => return vec![Check::bad("external", error)],
        };
        let is_said = |path: &std::path::Path| said.iter().any(|one| one.server_path.as_deref().is_some_and(|server| path.starts_with(stack::path_of(server))));
        let mut checks = Vec::new();
        for external in externals.found.iter().filter(|external| !is_said(&external.server_path)) {
            let (name, origin) = (format!("external {}", external.server_path.display()), format!("mount of `{}`", self.findings.stack.site.server.name));
            checks.push(match &external.place {
                Place::Found { path, .. } => super::check_folder(&name, path).told_by(Some(&origin)),
                Place::Unmounted => {
                    Check::doubtful(name, "left out: nothing of the host is mounted there in the server's container; --external-ignore says that this is meant")
                }
                Place::NotHere(error) => Check::bad_with_hint(name, error, error.hint()),
            });
        }
        checks
    }
}
