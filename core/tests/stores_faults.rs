//! Lines and stores that fail, each request in each way: a backup ends right, nothing is stored twice, and nothing is taken for somebody else's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]
#![allow(clippy::print_stderr, reason = "it says which case is looked at")]

mod support;

use immich_backup_core::backup::Ending;
use immich_backup_core::event::{Event, Monitor};
use immich_backup_core::repository::init;
use immich_backup_testbed::gcs::{self, Double};
use immich_backup_testbed::proxy::{Action, Rule};
use immich_backup_testbed::servers::{self, Azurite, SeaweedFs};
use http::StatusCode;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};
use support::behind::{Behind, Line};
use support::{World, noise};

/// Two parts and a bit.
static FILM: LazyLock<Vec<u8>> = LazyLock::new(|| noise(77, (33 << 20) + 7));
/// Where it lies.
const FILM_KEY: &str = "library/upload/u0/film.mp4";
const PHOTO_KEY: &str = "library/upload/u1/photo-001.jpg";
/// The first entry that names files.
const ENTRY_KEY: &str = "log/0000000002.ndjson.zst";
/// Cases that are looked at at once.
const AT_ONCE: usize = 4;
/// A line that is silent for so long is given up; long enough for a busy server.
const IDLE: Duration = Duration::from_secs(3);

/// The request that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// A file in one request.
    OneShot,
    /// The beginning of an upload, or of a session.
    Begin,
    /// The second part, block or piece of a file.
    Part,
    /// What makes an object of parts or blocks; the last piece of a session.
    Complete,
    /// A log entry.
    Entry,
}

impl Target {
    fn key(self) -> &'static str {
        match self {
            Self::OneShot => PHOTO_KEY,
            Self::Begin | Self::Part | Self::Complete => FILM_KEY,
            Self::Entry => ENTRY_KEY,
        }
    }

    /// It alone.
    fn rule(self, behind: &Behind) -> Rule {
        let rule = |method| Rule::on(method).key(self.key());
        match (self, behind) {
            (Self::OneShot | Self::Entry, _) => rule("PUT"),
            (Self::Begin, Behind::S3(_)) => rule("POST").query("uploads"),
            (Self::Part, Behind::S3(_)) => rule("PUT").query("partNumber=2"),
            (Self::Complete, Behind::S3(_)) => rule("POST").query("uploadId"),
            (Self::Begin, Behind::Gcs(_)) => rule("POST").query("uploadType=resumable"),
            (Self::Part, Behind::Gcs(_)) => rule("PUT").query("upload_id").after(1),
            (Self::Complete, Behind::Gcs(_)) => rule("PUT").query("upload_id").after(2),
            (Self::Part, Behind::Azure(_)) => rule("PUT").query("comp=block").after(1),
            (Self::Complete, Behind::Azure(_)) => rule("PUT").query("comp=blocklist"),
            (Self::Begin, Behind::Azure(_)) => panic!("blocks need no beginning"),
        }
    }
}

/// What goes wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Refused,
    ResetBefore,
    ResetAfter,
    HangBefore,
    HangAfter,
    InternalError,
    SlowDown,
    Conflict,
    OkWithError,
    OkWithErrorThoughDone,
    WrongBytes,
}

impl Fault {
    const ALL: [Self; 11] = [
        Self::Refused,
        Self::ResetBefore,
        Self::ResetAfter,
        Self::HangBefore,
        Self::HangAfter,
        Self::InternalError,
        Self::SlowDown,
        Self::Conflict,
        Self::OkWithError,
        Self::OkWithErrorThoughDone,
        Self::WrongBytes,
    ];

    fn action(self) -> Action {
        match self {
            Self::Refused => Action::Refuse,
            Self::ResetBefore => Action::ResetBefore { after_bytes: 100 },
            Self::ResetAfter => Action::ResetAfter,
            Self::HangBefore => Action::HangBefore,
            Self::HangAfter => Action::HangAfter,
            Self::InternalError => Action::s3_error(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
            Self::SlowDown => Action::slow_down(1),
            Self::Conflict => Action::s3_error(StatusCode::CONFLICT, "ConditionalRequestConflict"),
            Self::OkWithError => Action::OkWithError { error: "InternalError", forwarded: false },
            Self::OkWithErrorThoughDone => Action::OkWithError { error: "InternalError", forwarded: true },
            Self::WrongBytes => Action::CorruptRequest { offset: 60 },
        }
    }
}

/// Three photos, and where `film` says so a large file, in a repository below `prefix`.
async fn world(behind: &Behind, prefix: &str, film: bool) -> World {
    let world = World::empty();
    for number in 0..3 {
        world.write(&format!("upload/u{number}/photo-00{number}.jpg"), &noise(number, 200 + usize::try_from(number).unwrap()));
    }
    if film {
        world.write(FILM_KEY.trim_start_matches("library/"), &FILM);
    }
    init(behind.direct(prefix), "test").await.unwrap();
    world
}

/// A backup during which one request fails so often.
async fn survives(behind: Behind, target: Target, fault: Fault, times: u64) {
    let prefix = format!("{target:?}-{fault:?}-{times}");
    let world = world(&behind, &prefix, target.key() == FILM_KEY).await;
    let line = Line::to(&behind, &prefix);
    let fired = line.proxy.add(target.rule(&behind).times(times).then(fault.action()));
    let monitor: Arc<dyn Monitor> = line.recorder.clone();
    let store = line.store_with(|options| options.idle = IDLE);
    let report = world.back_up_with(store, "state", &monitor, |_| {}).await.unwrap();
    assert_eq!((report.ending, report.counts.unread), (Ending::Snapshot, 0));
    let files = support::files(&world.library).len() as u64;
    assert_eq!((report.counts.sent.files, report.counts.adopted.files, report.counts.known.files), (files, 0, 0));
    assert_eq!(fired.count(), times);
    let retries = line.retries(target.key());
    assert_eq!(retries.len() as u64, times, "{retries:?}");
    if fault == Fault::SlowDown {
        assert!(retries.iter().all(|(_, wait_ms)| *wait_ms >= 1_000), "{retries:?}");
    }
    let lost: Vec<_> = line.recorder.events().into_iter().filter(|event| matches!(event, Event::ObjectLost { .. } | Event::Warned { .. })).collect();
    assert!(lost.is_empty(), "{lost:?}");
    line.assert_nothing_was_made_twice();
    behind.assert_whole(&prefix, &world).await;
}

type Case = (Target, Fault, u64);

/// Looks at some cases at once, and names all that fail.
fn each(behind: &Behind, cases: Vec<Case>) {
    let count = cases.len();
    let (cases, failed) = (Mutex::new(cases.into_iter()), Mutex::new(Vec::new()));
    let next = || cases.lock().unwrap().next();
    let look = || {
        while let Some((target, fault, times)) = next() {
            let begun = Instant::now();
            let behind = behind.clone();
            // A runtime to itself: what is left of a case ends with it.
            let looking = std::thread::spawn(move || runtime().block_on(survives(behind, target, fault, times)));
            if looking.join().is_err() {
                failed.lock().unwrap().push((target, fault, times));
            }
            eprintln!("{target:?} {fault:?} {times}: {} ms", begun.elapsed().as_millis());
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(look);
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {count} failed: {failed:?}", failed.len());
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Each of these requests with each fault.
fn all(targets: &[Target]) -> Vec<Case> {
    targets.iter().flat_map(|target| Fault::ALL.map(|fault| (*target, fault, 1))).collect()
}

#[test]
fn s3_survives_each_fault_of_each_request() {
    let server = SeaweedFs::start(servers::Options { versioning: true, ..Default::default() }).unwrap();
    let mut cases = all(&[Target::OneShot, Target::Part, Target::Complete, Target::Entry]);
    // As often as it is tried again.
    cases.extend([Target::OneShot, Target::Part, Target::Complete, Target::Entry].map(|target| (target, Fault::ResetBefore, 5)));
    // What is begun and not heard of stays, without parts: it costs nothing.
    cases.extend([Fault::Refused, Fault::ResetBefore, Fault::HangBefore, Fault::InternalError, Fault::OkWithError].map(|fault| (Target::Begin, fault, 1)));
    each(&Behind::S3(server.bucket().clone()), cases);
}

#[test]
fn google_cloud_storage_survives_each_fault_of_each_request() {
    let double = Arc::new(Double::start(gcs::Options::default()));
    let mut cases = all(&[Target::OneShot, Target::Part, Target::Complete, Target::Entry]);
    cases.extend([Fault::Refused, Fault::ResetBefore, Fault::HangBefore, Fault::InternalError, Fault::OkWithError].map(|fault| (Target::Begin, fault, 1)));
    each(&Behind::Gcs(double), cases);
}

#[test]
fn azure_survives_each_fault_of_each_request() {
    let server = Azurite::start().unwrap();
    each(&Behind::Azure(server.container().clone()), all(&[Target::OneShot, Target::Part, Target::Complete, Target::Entry]));
}
