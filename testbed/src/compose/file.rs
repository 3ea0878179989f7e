//! The files of a stack's folder, as Immich's own look: `docker-compose.yml` and `.env`.

use super::{Ports, Stack, StackOptions};

/// Service of Immich's server.
pub const SERVER: &str = "immich-server";
/// Service of Immich's machine learning.
pub const MACHINE_LEARNING: &str = "immich-machine-learning";
/// Service of Redis.
pub const REDIS: &str = "redis";
/// Service of the database.
pub const DATABASE: &str = "database";

/// Image of Immich's server, without its tag and the registry's host.
pub const SERVER_IMAGE: &str = "immich-app/immich-server";
/// Image of Immich's database, without the registry's host.
pub const DATABASE_IMAGE: &str = "immich-app/postgres:18-vectorchord0.5.3";
pub(super) const MACHINE_LEARNING_IMAGE: &str = "immich-app/immich-machine-learning";
pub(super) const REDIS_IMAGE: &str = "valkey/valkey:9";

/// `docker-compose.yml`.
pub(super) fn compose(options: &StackOptions, media_location: &str, version: &str) -> String {
    let name = |name: &str| if options.container_names { format!("    container_name: {name}\n") } else { String::new() };
    let restart = format!("    network_mode: host\n    restart: \"{}\"\n", options.restart);
    let grace = options.stop_grace_seconds.map(|seconds| format!("    stop_grace_period: {seconds}s\n")).unwrap_or_default();
    let external = if options.external { "      - ${EXTERNAL_PATH}:/mnt/external:ro\n" } else { "" };
    let mounted: String = options.mounted.iter().map(|folder| format!("      - ../elsewhere/{folder}:{media_location}/{folder}\n")).collect();
    let health = match options.database_health.as_deref() {
        // Immich's file says `disable: false`, which Compose 1.29 takes for `true`.
        None => String::new(),
        Some("NONE") => "    healthcheck:\n      disable: true\n".to_string(),
        Some(command) => format!("    healthcheck:\n      test: {command:?}\n      interval: 1s\n      retries: 1\n      start_period: 0s\n"),
    };
    let (stop_seconds, writes_every, extra) = (options.stop_seconds, options.writes_every_seconds, &options.extra_services);
    format!(
        "version: \"3.8\"
services:
  {SERVER}:
{}    image: {SERVER_IMAGE}:${{IMMICH_VERSION:-release}}
    volumes:
      # Do not edit the next line. If you want to change the media storage location on your system, edit the value of UPLOAD_LOCATION in the .env file
      - ${{UPLOAD_LOCATION}}:{media_location}
      - /etc/localtime:/etc/localtime:ro
{mounted}{external}    env_file:
      - .env
    environment:
      STAND_IN_VERSION: {version}
      STAND_IN_MEDIA_LOCATION: {media_location}
      STAND_IN_STOP_SECONDS: \"{stop_seconds}\"
      STAND_IN_WRITES_EVERY: \"{writes_every}\"
    depends_on:
      - {REDIS}
      - {DATABASE}
{restart}{grace}
  {MACHINE_LEARNING}:
{}    image: {MACHINE_LEARNING_IMAGE}:${{IMMICH_VERSION:-release}}
    volumes:
      - model-cache:/cache
    env_file:
      - .env
{restart}
  {REDIS}:
{}    image: {REDIS_IMAGE}
{restart}    healthcheck:
      test: kill -0 1 || exit 1
      interval: 1s

  {DATABASE}:
{}    image: {DATABASE_IMAGE}
    environment:
      POSTGRES_PASSWORD: ${{DB_PASSWORD}}
      POSTGRES_USER: ${{DB_USERNAME}}
      POSTGRES_DB: ${{DB_DATABASE_NAME}}
      POSTGRES_INITDB_ARGS: '--data-checksums'
      PGPORT: ${{DB_PORT}}
    volumes:
      # Do not edit the next line. If you want to change the database storage location on your system, edit the value of DB_DATA_LOCATION in the .env file
      - ${{DB_DATA_LOCATION}}:/var/lib/postgresql/data
    shm_size: 128mb
    stop_signal: SIGINT
{restart}{health}
{extra}
volumes:
  model-cache:
",
        name("immich_server"),
        name("immich_machine_learning"),
        name("immich_redis"),
        name("immich_postgres"),
    )
}

/// `.env`.
pub(super) fn environment(options: &StackOptions, ports: Ports, version: &str) -> String {
    let (user, password, database, project) = (Stack::USER, Stack::PASSWORD, Stack::DATABASE_NAME, &options.project);
    format!(
        "# You can find documentation for all the supported env variables at https://docs.immich.app/install/environment-variables

# The location where your uploaded files are stored
UPLOAD_LOCATION=./library

# The location where your database files are stored. Network shares are not supported for the database
DB_DATA_LOCATION=./postgres

# The Immich version to use. You can pin this to a specific version like \"v2.1.0\"
IMMICH_VERSION={version}

# Connection secret for postgres. You should change it to a random password
# Please use only the characters `A-Za-z0-9`, without special characters or spaces
DB_PASSWORD={password}

# The values below this line do not need to be changed
###################################################################################
DB_USERNAME={user}
DB_DATABASE_NAME={database}
DB_HOSTNAME=127.0.0.1
DB_PORT={}
IMMICH_PORT={}
EXTERNAL_PATH=../photos
COMPOSE_PROJECT_NAME={project}
",
        ports.database, ports.server
    )
}
