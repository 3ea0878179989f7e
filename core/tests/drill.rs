//! Drills on what real Immich servers wrote: they pass where all is well, and fail on each kind of damage.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

mod support;

use immich_backup_core::database::cluster::{Cluster, ClusterPlan};
use immich_backup_core::database::load::LoadError;
use immich_backup_core::database::{Client, Connection};
use immich_backup_core::drill::{self, DrillError, DrillPlan, DrillReport, DrillTarget};
use immich_backup_core::event::{Event, Monitor, Phase, Silent};
use immich_backup_core::model::{Part, Sample};
use immich_backup_core::repository::OpenError;
use immich_backup_core::repository::log::DrillOutcome;
use immich_backup_testbed::fixture::{IMMICH_1, IMMICH_3};
use immich_backup_testbed::postgres::Postgres;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use support::immich::Immich;
use support::{World, workers};
use tokio_util::sync::CancellationToken;

/// A library as a server left it, backed up with the dump of its database.
struct Backup {
    world: World,
    dump: PathBuf,
    servers: tempfile::TempDir,
}

/// Which PostgreSQL the drill finds.
#[derive(Clone, Copy)]
enum Programs {
    /// With all that Immich needs.
    Full,
    /// Without vectors.
    Plain,
}

fn folders(programs: Programs) -> Vec<PathBuf> {
    match programs {
        Programs::Full => vec![PathBuf::from("/nowhere/bin"), Postgres::start().unwrap().programs().to_owned()],
        Programs::Plain => vec![Postgres::start_plain().unwrap().programs().to_owned()],
    }
}

impl Backup {
    async fn make(generation: &str, change: impl FnOnce(String) -> String) -> Option<Self> {
        let immich = Immich::take(generation).await?;
        let mut key = String::new();
        immich.back_up_bytes(change(immich.dump.clone()).as_bytes(), |dump| key.clone_from(&dump.key)).await;
        let world = immich.world;
        let servers = tempfile::Builder::new().prefix("drills-").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(servers.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
        Some(Self { dump: world.repository.join(key), world, servers })
    }

    fn local(&self, programs: Programs) -> DrillTarget {
        DrillTarget::Local { folders: folders(programs), parent: self.servers.path().to_owned(), owner: None }
    }

    async fn drill(&self, target: DrillTarget, sample: &str) -> Result<DrillReport, DrillError> {
        self.drill_told(target, sample, &Silent).await
    }

    async fn drill_told(&self, target: DrillTarget, sample: &str, monitor: &dyn Monitor) -> Result<DrillReport, DrillError> {
        let mut session = self.world.reading("state").await.unwrap();
        let snapshot = session.manifest.latest_snapshot().unwrap().unwrap();
        let plan = DrillPlan { snapshot, sample: sample.parse::<Sample>().unwrap(), target, workers: workers(3), record: true };
        let report = Box::pin(drill::run(&mut session, &plan, monitor, &CancellationToken::new())).await;
        assert_eq!(self.left(), Vec::<PathBuf>::new(), "a drill leaves nothing behind");
        report
    }

    async fn drill_all(&self) -> DrillReport {
        self.drill(self.local(Programs::Full), "1/1").await.unwrap()
    }

    /// What is in the folder of servers.
    fn left(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.servers.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// Objects of originals.
    fn objects(&self) -> Vec<PathBuf> {
        let all = support::files(&self.world.repository.join("library/upload"));
        let originals: Vec<_> = all.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "jpg")).collect();
        assert!(originals.len() > 3, "{originals:?}");
        originals.into_iter().map(|path| self.world.repository.join("library/upload").join(path)).collect()
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_drill_of_each_generation_passes_and_says_what_it_did_not_check() {
    for generation in [IMMICH_3, IMMICH_1] {
        let Some(backup) = Backup::make(generation, |text| text).await else { return };
        let report = backup.drill_all().await;
        assert_eq!((report.outcome, report.problems.as_slice()), (DrillOutcome::Passed, &[][..]), "{generation}");
        assert_eq!((report.assets, report.sampled, report.unchecked()), (93, 93, 0));
        assert!(report.sampled_bytes > 100_000 && report.tables > 40 && report.rows > 200, "{report:?}");
        assert!(report.server_version.as_deref().unwrap().starts_with("18."), "the newest server with all extensions");
        let session = backup.world.reading("state").await.unwrap();
        let fact = session.manifest.last_drill().unwrap().unwrap().fact;
        assert_eq!((fact.outcome, fact.sampled, fact.assets, fact.rows, fact.tables), (DrillOutcome::Passed, 93, 93, report.rows, report.tables));
        assert_eq!(fact.part, Some(Part::ALL));
    }
}

#[tokio::test]
async fn successive_samples_look_at_everything() {
    let Some(backup) = Backup::make(IMMICH_3, |text| text).await else { return };
    let server = Postgres::start().unwrap();
    server.create_database("scratch");
    let target = || DrillTarget::Scratch(Client::local(Connection::parse(&server.url("scratch")).unwrap(), vec![server.programs().to_owned()]));
    let (mut sampled, mut parts) = (0, Vec::new());
    for _ in 0..3 {
        let report = backup.drill(target(), "1/3").await.unwrap();
        assert_eq!((report.outcome, report.assets), (DrillOutcome::Passed, 93));
        assert!(report.sampled > 10 && report.unchecked() == 93 - report.sampled, "{report:?}");
        sampled += report.sampled;
        parts.push(report.part.unwrap().part);
        assert_eq!(server.counts("scratch").len(), 0, "the scratch database is empty again");
        let extensions = server.psql("scratch", "SELECT extname FROM pg_extension ORDER BY 1");
        assert_eq!(extensions.trim(), "plpgsql");
    }
    parts.sort_unstable();
    assert_eq!((sampled, parts.as_slice()), (93, &[0, 1, 2][..]));
}

/// Takes the repository away when a phase ends, or begins.
struct TakesAway<'a> {
    repository: &'a Path,
    when: fn(&Event) -> bool,
    /// In its place stands an empty folder, as where a disk was mounted, or something that cannot be looked at.
    is_folder: bool,
    warnings: Mutex<Vec<String>>,
}

impl Monitor for TakesAway<'_> {
    fn emit(&self, event: Event) {
        if (self.when)(&event) {
            std::fs::rename(self.repository, self.repository.with_extension("aside")).unwrap();
            let there = if self.is_folder { std::fs::create_dir(self.repository) } else { std::os::unix::fs::symlink(self.repository, self.repository) };
            there.unwrap();
        }
        if let Event::Warned { message } = event {
            self.warnings.lock().unwrap().push(message);
        }
    }
}

#[tokio::test]
async fn a_drill_keeps_what_it_found_where_the_repository_goes_away_afterwards_and_blames_nobody_where_it_went_away_before() {
    let Some(backup) = Backup::make(IMMICH_3, |text| text).await else { return };
    let repository = &backup.world.repository;
    let after: fn(&Event) -> bool = |event| matches!(event, Event::PhaseFinished { phase: Phase::ReadBack });
    let before: fn(&Event) -> bool = |event| matches!(event, Event::PhaseStarted { phase: Phase::ReadBack, .. });
    for (when, is_folder, is_kept) in [(after, true, true), (after, false, true), (before, true, false)] {
        let monitor = TakesAway { repository, when, is_folder, warnings: Mutex::default() };
        let drilled = backup.drill_told(backup.local(Programs::Full), "1/1", &monitor).await;
        let warnings = monitor.warnings.into_inner().unwrap();
        match drilled {
            Ok(report) => {
                assert!(is_kept && report.outcome == DrillOutcome::Passed, "{:?}", report.outcome);
                assert!(warnings.iter().any(|warning| warning.contains("could not be written to the log")), "{warnings:?}");
            }
            Err(error) => assert!(!is_kept && matches!(error, DrillError::Open(OpenError::NoRepository { .. })), "{error:?}"),
        }
        if is_folder {
            std::fs::remove_dir(repository).expect("nothing is written where the disk was mounted");
        } else {
            std::fs::remove_file(repository).unwrap();
        }
        std::fs::rename(repository.with_extension("aside"), repository).unwrap();
    }
}

#[tokio::test]
async fn without_vectors_a_drill_is_partial() {
    let Some(backup) = Backup::make(IMMICH_3, |text| text).await else { return };
    let report = backup.drill(backup.local(Programs::Plain), "1/1").await.unwrap();
    assert_eq!((report.outcome, report.sampled, report.problems.as_slice()), (DrillOutcome::Partial, 93, &[][..]));
    assert_eq!(report.as_text.iter().collect::<Vec<_>>(), ["face_search", "smart_search"]);
    let session = backup.world.reading("state").await.unwrap();
    assert_eq!(session.manifest.last_drill().unwrap().unwrap().fact.as_text, ["face_search", "smart_search"]);
}

#[tokio::test]
async fn a_drill_fails_on_a_damaged_and_on_a_missing_object() {
    let Some(backup) = Backup::make(IMMICH_3, |text| text).await else { return };
    let objects = backup.objects();
    flip(&objects[0], 50);
    std::fs::remove_file(&objects[1]).unwrap();
    let report = backup.drill_all().await;
    assert_eq!((report.outcome, report.sampled, report.problem_count), (DrillOutcome::Failed, 93, 2), "{:?}", report.problems);
    let key = |path: &Path| path.strip_prefix(&backup.world.repository).unwrap().to_str().unwrap().to_owned();
    let says = |path: &Path, what: &str| report.problems.iter().any(|problem| problem.contains(&key(path)) && problem.contains(what));
    assert!(says(&objects[0], "another SHA-1") && says(&objects[1], "missing"), "{:?}", report.problems);
    let session = backup.world.reading("state").await.unwrap();
    let damaged: Vec<_> = session.manifest.damaged_objects().unwrap().into_iter().map(|(key, _)| key).collect();
    let mut expected = vec![key(&objects[0]), key(&objects[1])];
    expected.sort();
    assert_eq!(damaged, expected, "the next backup knows, and sends them again");
    let fact = session.manifest.last_drill().unwrap().unwrap().fact;
    assert_eq!((fact.outcome, fact.problems.len()), (DrillOutcome::Failed, 2));
    // Known to be damaged now, they are not taken for good either.
    assert_eq!(backup.drill_all().await.problem_count, 2);
}

#[tokio::test]
async fn a_drill_fails_on_a_dump_that_is_damaged_cut_or_gone() {
    let Some(backup) = Backup::make(IMMICH_3, |text| text).await else { return };
    let whole = std::fs::read(&backup.dump).unwrap();
    std::fs::set_permissions(&backup.dump, std::fs::Permissions::from_mode(0o644)).unwrap();
    for at in [200, whole.len() / 2, whole.len() - 3] {
        flip(&backup.dump, at);
        let report = backup.drill_all().await;
        assert_eq!((report.outcome, report.problem_count, report.sampled), (DrillOutcome::Failed, 1, 0), "flipped at {at}: {:?}", report.problems);
        std::fs::write(&backup.dump, &whole).unwrap();
    }
    std::fs::write(&backup.dump, &whole[..whole.len() - 1_000]).unwrap();
    assert_eq!(backup.drill_all().await.outcome, DrillOutcome::Failed);
    std::fs::remove_file(&backup.dump).unwrap();
    let report = backup.drill_all().await;
    assert_eq!(report.outcome, DrillOutcome::Failed);
    assert!(report.problems[0].contains("there is no object"), "{:?}", report.problems);
}

#[tokio::test]
async fn a_drill_fails_on_a_dump_that_was_cut_before_it_was_stored() {
    let cut = |text: String| {
        let at = text.find("COPY public.asset (").unwrap() + 4_000;
        text[..at + text[at..].find('\n').unwrap() + 1].to_owned()
    };
    let Some(backup) = Backup::make(IMMICH_3, cut).await else { return };
    let report = backup.drill_all().await;
    assert_eq!(report.outcome, DrillOutcome::Failed);
    assert!(report.problems[0].contains("within the rows of `asset`"), "{:?}", report.problems);
}

#[tokio::test]
async fn a_drill_fails_where_a_row_is_missing_afterwards() {
    // A rule that drops what is written is the shortest way to a database that does not hold what its dump says.
    let losing = |text: String| {
        let rule = "CREATE FUNCTION public.lose() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.name = 'de' THEN RETURN NULL; END IF; RETURN NEW; END $$;\n\
                    CREATE TRIGGER lose BEFORE INSERT ON public.kysely_migrations FOR EACH ROW EXECUTE FUNCTION public.lose();\n";
        let rows = "COPY public.kysely_migrations (name, \"timestamp\") FROM stdin;\n";
        text.replacen(rows, &format!("{rule}{rows}de\t2026-01-01\n"), 1)
    };
    let Some(backup) = Backup::make(IMMICH_3, losing).await else { return };
    let report = backup.drill_all().await;
    assert_eq!((report.outcome, report.problem_count), (DrillOutcome::Failed, 1));
    assert!(report.problems[0].starts_with("table `kysely_migrations` has"), "{:?}", report.problems);
}

#[tokio::test]
async fn a_drill_fails_where_the_database_names_content_that_nothing_has() {
    let Some(fixture) = Immich::take(IMMICH_3).await else { return };
    let text = fixture.dump;
    let row = text.lines().find(|line| line.contains("\t/data/upload/") && line.contains("\tIMAGE\t")).unwrap();
    let checksum = row.split('\t').find(|field| field.starts_with("\\\\x") && field.len() == 43).unwrap().to_owned();
    let other = format!("\\\\x{}", "ab".repeat(20));
    let Some(backup) = Backup::make(IMMICH_3, |text| text.replace(&checksum, &other)).await else { return };
    let report = backup.drill_all().await;
    assert_eq!((report.outcome, report.problem_count, report.sampled), (DrillOutcome::Failed, 1, 93));
    assert!(report.problems[0].contains("no whole object has the content"), "{:?}", report.problems);
}

#[tokio::test]
async fn a_drill_never_touches_a_database_that_is_not_empty() {
    let Some(backup) = Backup::make(IMMICH_3, |text| text).await else { return };
    let server = Postgres::start().unwrap();
    for (name, sql) in [("live", "CREATE TABLE asset (id int)"), ("other", "CREATE SCHEMA own; CREATE TABLE own.notes (id int)")] {
        server.create_database(name);
        server.psql(name, sql);
        let client = Client::local(Connection::parse(&server.url(name)).unwrap(), vec![server.programs().to_owned()]);
        let error = backup.drill(DrillTarget::Scratch(client), "200").await.unwrap_err();
        assert!(matches!(error, DrillError::Load(LoadError::NotEmpty { .. })), "{error:?}");
        assert!(error.hint().unwrap().contains("never Immich's"));
        let tables = server.psql(name, "SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')");
        assert_eq!(tables.trim(), "1");
    }
    let session = backup.world.reading("state").await.unwrap();
    assert!(session.manifest.last_drill().unwrap().is_none(), "what could not be tried is no drill");
}

#[tokio::test]
async fn a_drill_that_is_stopped_leaves_no_server_and_no_word() {
    let Some(backup) = Backup::make(IMMICH_3, |text| text).await else { return };
    let mut session = backup.world.reading("state").await.unwrap();
    let snapshot = session.manifest.latest_snapshot().unwrap().unwrap();
    let plan = DrillPlan { snapshot, sample: "200".parse().unwrap(), target: backup.local(Programs::Full), workers: workers(1), record: true };
    let stop = CancellationToken::new();
    stop.cancel();
    let report = Box::pin(drill::run(&mut session, &plan, &Silent, &stop)).await.unwrap();
    assert!(report.interrupted);
    assert_eq!(backup.left(), Vec::<PathBuf>::new());
    assert!(session.manifest.last_drill().unwrap().is_none());
}

/// Processes whose command line has `text`, and the line.
fn processes(text: &str) -> Vec<(i32, String)> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = String::from_utf8_lossy(&std::fs::read(entry.path().join("cmdline")).ok()?).replace('\0', " ");
        // The test itself, and what merely mentions the folder as its own.
        (line.contains(text) && !line.contains("a_server_that_is_held")).then_some((pid, line))
    });
    lines.collect()
}

fn kill(pid: i32) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}

fn gone_within(text: &str, time: Duration) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < time {
        if processes(text).is_empty() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

const HOLD: &str = "IMMICH_BACKUP_TEST_HOLD_A_SERVER_IN";

/// Not a test: what the one below kills.
#[tokio::test]
#[ignore = "it never ends by itself"]
async fn a_server_that_is_held() {
    let Some(parent) = std::env::var_os(HOLD) else { return };
    let plan = ClusterPlan { folders: folders(Programs::Plain), parent: parent.into(), ..ClusterPlan::default() };
    let cluster = Cluster::start(&plan).await.unwrap();
    std::fs::write(cluster.folder().parent().unwrap().join("ready"), cluster.folder().to_str().unwrap()).unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_drill_that_is_killed_leaves_nothing_running() {
    let Some(backup) = Backup::make(IMMICH_3, |text| text).await else { return };
    for shell_too in [false, true] {
        let mut holder = Command::new(std::env::current_exe().unwrap())
            .args(["a_server_that_is_held", "--exact", "--ignored", "--nocapture"])
            .env(HOLD, backup.servers.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let ready = backup.servers.path().join("ready");
        let begun = Instant::now();
        while !ready.exists() {
            assert!(begun.elapsed() < Duration::from_secs(60), "no server");
            std::thread::sleep(Duration::from_millis(50));
        }
        let folder = std::fs::read_to_string(&ready).unwrap();
        std::fs::remove_file(&ready).unwrap();
        let running = processes(&folder);
        assert!(running.iter().any(|(_, line)| line.contains("postgres")), "{running:?}");
        if shell_too {
            // Nobody is left who could end the server.
            for (pid, line) in &running {
                if line.starts_with("/bin/sh") {
                    kill(*pid);
                }
            }
        }
        kill(i32::try_from(holder.id()).unwrap());
        assert_eq!(holder.wait().unwrap().signal(), Some(9));
        if shell_too {
            std::thread::sleep(Duration::from_millis(500));
            assert!(!processes(&folder).is_empty(), "the server goes on");
        } else {
            assert!(gone_within(&folder, Duration::from_secs(10)), "{:?}", processes(&folder));
        }
        let report = backup.drill_all().await;
        assert_eq!(report.outcome, DrillOutcome::Passed);
        let left = || (Path::new(&folder).exists(), processes(&folder));
        assert!(gone_within(&folder, Duration::from_secs(10)), "after a drill, shell killed: {shell_too}, (folder, processes): {:?}", left());
        assert!(!Path::new(&folder).exists());
    }
}
