//! The page over HTTP, as somebody sees it who means no good.

use super::client::Proxies;
use super::limiter::Limiter;
use super::live::Live;
use super::password::Password;
use super::sessions::Sessions;
use super::setup::Page;
use super::source::{Place, Reading, Source};
use crate::daemon::board::Board;
use crate::daemon::feed::{Happened, Report, Watcher as _};
use crate::daemon::http;
use crate::daemon::memory::Remembered;
use crate::daemon::metrics::MetricsFile;
use crate::exit::Exit;
use crate::schedule::planner::{Job, Why};
use immich_backup_core::model::{Digests, FilePath, FileTimes, RepositoryId, Root, RootPath, RunId, Sha1, Sha256, WriterId};
use immich_backup_core::repository::key;
use immich_backup_core::repository::log::{Fact, Head, Header, StoredFact, Totals};
use immich_backup_core::repository::manifest::Manifest;
use immich_backup_core::verdict::{Age, Ages, Proof};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::json;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;

const PASSWORD: &str = "correct horse battery";

/// Names that mean harm, as raw bytes.
const HOSTILE: [&[u8]; 8] = [
    b"<script>alert(1).jpg",
    b"\"><img src=x onerror=alert(1)>.jpg",
    b"' OR 1=1; DROP TABLE version; --.jpg",
    b"two\nlines\r\nSet-Cookie: a=b.jpg",
    "photo\u{202E}gpj.exe".as_bytes(),
    b"not utf-8 \xFF\xFE.jpg",
    b"{{7*7}}${7*7}%3Cscript%3E.jpg",
    b"&lt;b&gt;&amp;.jpg",
];

struct Site {
    address: SocketAddr,
    page: Arc<Page>,
    id: RunId,
    repository: RepositoryId,
    reading: Arc<Mutex<Reading>>,
    _folder: TempDir,
}

/// A manifest with one snapshot that has these files.
fn manifest(folder: &Path, repository: RepositoryId, files: &[FilePath]) -> (std::path::PathBuf, RunId) {
    let path = folder.join("manifest.db");
    let mut manifest = Manifest::create(&path, repository, &Head { epoch: 0, sequence: 0, sha256: Sha256([0; 32]) }).unwrap();
    let run = RunId::random();
    let header =
        Header { format: 1, epoch: 0, sequence: 1, previous_sha256: Sha256([0; 32]), run: Some(run), written_at: Timestamp::now(), writer: WriterId::random() };
    let started = json!({ "fact": "run_started", "at": Timestamp::now(), "host": "<b>host</b>", "roots": [] });
    let snapshot = json!({
        "fact": "snapshot", "started_at": Timestamp::now(), "taken_at": Timestamp::now(), "label": "<i>label</i>", "totals": Totals::default(),
        "sent": { "files": 0, "bytes": 0 }, "archived": 0, "unread_count": 1, "unread": [{ "path": "<u>unread</u>", "problem": "<u>problem</u>" }],
    });
    let mut facts: Vec<Fact> = vec![serde_json::from_value(started).unwrap()];
    for (number, file) in files.iter().enumerate() {
        let digests = Digests { sha256: Sha256::of(&number.to_le_bytes()), sha1: Sha1::of(&number.to_le_bytes()) };
        let times = FileTimes { size_bytes: 1_000, mtime_ns: 1_700_000_000_000_000_000, ctime_ns: 1, mode: 0o644 };
        facts.push(Fact::Stored(StoredFact::new(file, digests, &times, true, &key::home(file).unwrap(), None)));
    }
    facts.push(serde_json::from_value(snapshot).unwrap());
    manifest.apply_parts(&header, &facts, &Head { epoch: 0, sequence: 1, sha256: Sha256([1; 32]) }).unwrap();
    seen(folder, 1);
    (path, run)
}

/// Adds an entry of one fact.
fn apply(manifest: &mut Manifest, run: RunId, fact: serde_json::Value) {
    let sequence = manifest.head().sequence + 1;
    let header =
        Header { format: 1, epoch: 0, sequence, previous_sha256: Sha256([1; 32]), run: Some(run), written_at: Timestamp::now(), writer: WriterId::random() };
    manifest.apply_parts(&header, &[serde_json::from_value(fact).unwrap()], &Head { epoch: 0, sequence, sha256: Sha256([1; 32]) }).unwrap();
    seen(manifest.path().parent().unwrap(), sequence);
}

/// Notes how far the log was seen.
fn seen(folder: &Path, sequence: u64) {
    fs::write(folder.join("seen.json"), serde_json::to_vec(&Head { epoch: 0, sequence, sha256: Sha256([7; 32]) }).unwrap()).unwrap();
}

async fn site(guards_status: bool, proxies: &[&str]) -> Site {
    let folder = tempfile::tempdir().unwrap();
    let in_folder = |name: &[u8]| FilePath { root: Root::Library, path: RootPath::from_bytes(&[b"upload/", name, b"/", name].concat()).unwrap() };
    let mut files: Vec<_> = HOSTILE.iter().map(|name| in_folder(name)).collect();
    files.push(FilePath { root: Root::External("nas".parse().unwrap()), path: RootPath::parse("a.jpg").unwrap() });
    for number in 0..1_203 {
        files.push(FilePath::library(RootPath::parse(&format!("upload/many/{number:05}.jpg")).unwrap()));
    }
    let repository = RepositoryId::random();
    let (manifest, id) = manifest(folder.path(), repository, &files);
    let board = Arc::new(Board::new(&Remembered::new(Timestamp::now()), None));
    let proxies: Vec<_> = proxies.iter().map(|text| (*text).to_owned()).collect();
    let reading = Arc::new(Mutex::new(Reading { path: Some(manifest), at: Some(Timestamp::now()), failed: None }));
    let page = Arc::new(Page {
        password: Password::new(PASSWORD).unwrap(),
        sessions: Sessions::default(),
        limiter: Limiter::new(Instant::now()),
        proxies: Proxies::of(&proxies).unwrap(),
        source: Source::new(Place::Told(Arc::clone(&reading))),
        live: Some(Arc::new(Live::new())),
        board: Arc::clone(&board),
        max_age: None,
        zone: TimeZone::UTC,
        repository: "<em>repository</em>".to_owned(),
        streams: Arc::new(Semaphore::new(2)),
        guards_status,
    });
    let listener = http::listen(http::address("127.0.0.1:0").unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let file = MetricsFile { path: "/nowhere/metrics.prom".into(), repository: "r".into() };
    tokio::spawn(http::serve(listener, board, file, Some(Arc::clone(&page))));
    Site { address, page, id, repository, reading, _folder: folder }
}

struct Answer {
    code: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value))
    }
}

impl Site {
    async fn raw_from(&self, local: &str, request: &[u8]) -> Answer {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{local}:0").parse().unwrap()).unwrap();
        let mut stream = socket.connect(self.address).await.unwrap();
        // Refused while it is still being sent, a request ends with a reset.
        drop(stream.write_all(request).await);
        let mut answer = Vec::new();
        drop(tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await.expect("an end"));
        let text = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        Answer { code: head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0), head: head.to_owned(), body: body.to_owned() }
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        self.ask_from("127.0.0.1", method, path, headers, body).await
    }

    async fn ask_from(&self, local: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: nas:9300\r\nConnection: close\r\n");
        for (name, value) in headers {
            write!(request, "{name}: {value}\r\n").unwrap();
        }
        if !body.is_empty() || method == "POST" {
            write!(request, "Content-Length: {}\r\n", body.len()).unwrap();
        }
        self.raw_from(local, format!("{request}\r\n{body}").as_bytes()).await
    }

    async fn log_in_from(&self, local: &str, password: &str, headers: &[(&str, &str)]) -> Answer {
        let body = format!("password={}", password.replace(' ', "+"));
        let headers = [&[("Content-Type", "application/x-www-form-urlencoded")], headers].concat();
        self.ask_from(local, "POST", "/login", &headers, &body).await
    }

    async fn log_in(&self) -> String {
        let answer = self.log_in_from("127.0.0.1", PASSWORD, &[]).await;
        assert_eq!((answer.code, answer.header("location")), (303, Some("/")), "{}", answer.head);
        answer.header("set-cookie").unwrap().split(';').next().unwrap().to_owned()
    }

    async fn get(&self, cookie: &str, path: &str) -> Answer {
        self.ask("GET", path, &[("Cookie", cookie), ("Accept", "text/html")], "").await
    }
}

#[tokio::test]
async fn without_a_login_there_is_the_login_with_what_it_needs_and_how_the_daemon_is() {
    let site = site(false, &[]).await;
    let forged = format!("immich-backup={}", "a".repeat(64));
    let id = site.id.to_string();
    let paths = [
        "/".to_owned(),
        "/timeline".into(),
        "/snapshots/latest".into(),
        format!("/snapshots/{id}"),
        format!("/snapshots/{id}/files?root=&path=upload"),
        "/now".into(),
        "/now/events".into(),
        "/assets/".into(),
        "/assets/../src/main.rs".into(),
        "/nothing".into(),
        "//".into(),
        "/login/".into(),
        "/index.html".into(),
        "/.env".into(),
    ];
    for cookie in ["", &forged, "immich-backup=", "immich-backup=' OR 1=1", "__Host-immich-backup=../../etc/passwd", "other=1"] {
        for path in &paths {
            let answer = site.ask("GET", path, &[("Accept", "text/html"), ("Cookie", cookie)], "").await;
            assert!(answer.code == 303 && answer.header("location").unwrap().starts_with("/login"), "{path}, {cookie}: {}", answer.head);
            assert_eq!(answer.body, "");
            for (method, code) in [("GET", 401), ("POST", 401), ("DELETE", 401), ("PUT", 401)] {
                assert_eq!(site.ask(method, path, &[("Cookie", cookie)], "").await.code, code, "{method} {path}");
            }
        }
    }
    for (path, kind) in
        [("/login", "text/html"), ("/assets/page.css", "text/css"), ("/assets/page.js", "text/javascript"), ("/assets/icon.svg", "image/svg+xml")]
    {
        let answer = site.ask("GET", path, &[], "").await;
        assert!(answer.code == 200 && answer.header("content-type").unwrap().starts_with(kind), "{path}: {}", answer.head);
        assert!(!answer.body.contains("repository"), "{path} tells nothing of what is backed up");
        let policy = answer.header("content-security-policy").unwrap();
        assert!(
            policy.starts_with("default-src 'none';") && policy.contains("frame-ancestors 'none'") && !policy.contains("-inline") && !policy.contains("-eval"),
            "{policy}"
        );
        assert_eq!((answer.header("x-content-type-options"), answer.header("referrer-policy")), (Some("nosniff"), Some("same-origin")));
    }
    assert_eq!(site.ask("GET", "/login", &[], "").await.header("cache-control"), Some("no-store"));
    for path in ["/healthz", "/status", "/metrics"] {
        assert_eq!(site.ask("GET", path, &[], "").await.code, 200, "{path}");
    }
}

#[tokio::test]
async fn status_and_metrics_need_a_login_where_that_is_asked_for() {
    let site = site(true, &[]).await;
    assert_eq!(site.ask("GET", "/healthz", &[], "").await.code, 200);
    let cookie = site.log_in().await;
    for path in ["/status", "/metrics"] {
        assert_eq!((site.ask("GET", path, &[], "").await.code, site.get(&cookie, path).await.code), (401, 200), "{path}");
    }
}

#[tokio::test]
async fn a_session_that_was_changed_or_ended_opens_nothing_and_nothing_but_a_login_begins_one() {
    let site = site(false, &[]).await;
    assert!(site.ask("GET", "/login", &[], "").await.header("set-cookie").is_none());
    let cookie = site.log_in().await;
    assert_eq!(site.get(&cookie, "/").await.code, 200);
    let (name, token) = cookie.split_once('=').unwrap();
    for other in
        [token[..63].to_owned(), format!("{token}0"), token.to_uppercase() + "0", token.chars().rev().collect(), Sha256::of(token.as_bytes()).to_string()]
    {
        assert_eq!(site.get(&format!("{name}={other}"), "/").await.code, 303, "{other}");
    }
    // Another site's form ends no session, and begins none.
    let evil = [("Origin", "http://evil.example"), ("Cookie", cookie.as_str())];
    assert_eq!(site.ask("POST", "/logout", &evil, "").await.code, 403);
    assert_eq!(site.get(&cookie, "/").await.code, 200);
    let answer = site.log_in_from("127.0.0.1", PASSWORD, &[("Origin", "http://evil.example")]).await;
    assert!(answer.code == 403 && answer.header("set-cookie").is_none());
    // A GET ends none either.
    assert_eq!(site.get(&cookie, "/logout").await.code, 405);
    let answer = site.ask("POST", "/logout", &[("Origin", "http://nas:9300"), ("Cookie", &cookie)], "").await;
    assert_eq!((answer.code, answer.header("location")), (303, Some("/login")));
    assert_eq!(site.get(&cookie, "/").await.code, 303);
    // Behind a proxy that speaks HTTPS, the cookie does, too.
    let answer = site.log_in_from("127.0.0.1", PASSWORD, &[("X-Forwarded-Proto", "https")]).await;
    assert!(answer.header("set-cookie").unwrap().ends_with("; HttpOnly; SameSite=Strict; Secure"), "{}", answer.head);
}

#[tokio::test]
async fn no_address_leads_anywhere_but_into_the_manifest() {
    let site = site(false, &[]).await;
    let cookie = site.log_in().await;
    let id = site.id.to_string();
    for path in ["upload", "upload/many"] {
        assert_eq!(site.get(&cookie, &format!("/snapshots/{id}/files?root=&path={}", super::layout::encoded(path))).await.code, 200, "{path}");
    }
    let texts = [
        "..",
        "../../etc/passwd",
        "upload/../..",
        "/etc/passwd",
        "upload/",
        "upload//many",
        "%00",
        "upload\0",
        "' OR 1=1 --",
        "\"; DROP TABLE folder; --",
        "%",
        "_",
        "upload%",
        "\u{202E}",
        ".",
    ];
    for text in texts {
        for place in ["root=&path=", "path=upload&root=", "root=nas&path=", "root=%25config&path="] {
            let answer = site.get(&cookie, &format!("/snapshots/{id}/files?{place}{}", super::layout::encoded(text))).await;
            assert!(answer.code == 404 && !answer.body.contains("root:"), "{place}{text}: {}", answer.head);
        }
        let encoded = super::layout::encoded(text);
        for path in [format!("/snapshots/{encoded}"), format!("/snapshots/{encoded}/files?root=&path="), format!("/assets/{encoded}"), format!("/{encoded}")] {
            assert_eq!(site.get(&cookie, &path).await.code, 404, "{path}");
        }
    }
    for path in [
        "/../../../etc/passwd",
        "/assets/../../../../etc/passwd",
        "/assets/%2e%2e/%2e%2e/etc/passwd",
        "/snapshots/../../etc/passwd",
        "/etc/passwd",
        "//etc/passwd",
    ] {
        let answer = site.get(&cookie, path).await;
        assert!(answer.code == 404 && !answer.body.contains("root:"), "{path}: {}", answer.head);
    }
    for odd in ["page=0", "page=18446744073709551615", "page=-1", "page=x", "gone=9", "gone=1&gone=1", "page=99&page=1"] {
        let code = site.get(&cookie, &format!("/snapshots/{id}/files?root=&path=upload&{odd}")).await.code;
        assert!(code == 200 || code == 404, "{odd}: {code}");
    }
    for odd in ["/timeline?before=x", "/timeline?before=0", "/timeline?before=18446744073709551615"] {
        assert_eq!(site.get(&cookie, odd).await.code, 200, "{odd}");
    }
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
        let answer = site.ask(method, "/timeline", &[("Cookie", &cookie)], "").await;
        assert_eq!(answer.code, 405, "{method}");
    }
}

#[tokio::test]
async fn names_that_mean_harm_are_only_names() {
    let site = site(false, &[]).await;
    let cookie = site.log_in().await;
    let id = site.id.to_string();
    let mut all = Vec::new();
    for path in ["/", "/timeline", "/now", "/snapshots/latest"] {
        all.push(site.get(&cookie, path).await);
    }
    let folders = site.get(&cookie, &format!("/snapshots/{id}/files?root=&path=upload")).await;
    assert!(folders.body.contains("&lt;script&gt;alert(1).jpg") && folders.body.contains("not utf-8 %FF%FE.jpg") && folders.body.contains("two%0Alines%0D%0A"));
    assert!(folders.body.contains("photo\u{FFFD}gpj.exe") && !folders.body.contains('\u{202E}'));
    // Each link leads to its folder, whatever it is called.
    let links: Vec<_> =
        folders.body.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()).filter(|href| href.contains("path=upload%2F")).collect();
    assert_eq!(links.len(), HOSTILE.len() + 1);
    for link in links {
        let answer = site.get(&cookie, &link.replace("&amp;", "&")).await;
        assert!(answer.code == 200 && (answer.body.contains(".jpg") || answer.body.contains(".exe")), "{link}");
        all.push(answer);
    }
    all.push(folders);
    for answer in all {
        assert_eq!(answer.code, 200);
        for word in ["<script>", "<img", "<b>", "<i>", "<u>", "<em>", "onerror=alert(1)>", " style=", "javascript:"] {
            assert!(!answer.body.contains(word), "{word}: {}", answer.body);
        }
        // Nothing of a name became a header.
        assert!(answer.header("set-cookie").is_none() && answer.head.lines().count() < 16, "{}", answer.head);
    }
}

#[tokio::test]
async fn a_folder_of_many_files_has_pages_of_bounded_size_that_show_each_once() {
    let site = site(false, &[]).await;
    let cookie = site.log_in().await;
    let link = format!("/snapshots/{}/files?root=&path=upload%2Fmany", site.id);
    let mut seen = Vec::new();
    for page in 1..=3 {
        let answer = site.get(&cookie, &format!("{link}&page={page}")).await;
        assert!(answer.body.len() < 600_000, "{}", answer.body.len());
        let names: Vec<_> =
            answer.body.split("<bdi>").filter_map(|rest| rest.split("</bdi>").next()).filter(|name| name.ends_with(".jpg")).map(str::to_owned).collect();
        assert!(names.len() <= 500 && answer.body.contains(&format!("Page {page} of 3")), "{}", names.len());
        seen.extend(names);
    }
    let expected: Vec<_> = (0..1_203).map(|number| format!("{number:05}.jpg")).collect();
    assert_eq!(seen, expected);
    // Beyond the end is the end.
    assert!(site.get(&cookie, &format!("{link}&page=400")).await.body.contains("Page 3 of 3"));
}

#[tokio::test]
async fn what_is_too_large_or_no_login_is_refused() {
    let site = site(false, &[]).await;
    let form = ("Content-Type", "application/x-www-form-urlencoded");
    assert_eq!(site.ask("POST", "/login", &[form], &format!("password={}", "x".repeat(100_000))).await.code, 413);
    assert_eq!(site.ask("POST", "/login", &[form], &format!("password={}", "x".repeat(5_000))).await.code, 403, "longer than any password");
    assert_eq!(site.ask("POST", "/login", &[("Content-Type", "application/json")], "{}").await.code, 415);
    assert_eq!(site.ask("POST", "/login", &[form], "").await.code, 403);
    assert_eq!(site.ask("POST", "/login", &[form], "password=%FF%FE%00").await.code, 403);
    let chunked =
        b"POST /login HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\nTransfer-Encoding: chunked\r\n\r\n";
    let endless = [&chunked[..], &[b"2000\r\n".to_vec(), vec![b'x'; 0x2000], b"\r\n".to_vec()].concat().repeat(8)].concat();
    let answer = site.raw_from("127.0.0.1", &endless).await;
    assert!(answer.code == 413 || answer.code == 0, "{}", answer.head);
    let cookie = format!("immich-backup={}", "a".repeat(20_000));
    assert_ne!(site.ask("GET", "/", &[("Cookie", &cookie)], "").await.code, 200);
    assert_eq!(site.ask("GET", "/healthz", &[], "").await.code, 200);
}

/// What this process has in memory that is of no file, in KiB.
fn memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_wrong_passwords_are_refused_and_the_right_one_from_elsewhere_is_not() {
    let site = Arc::new(site(false, &[]).await);
    let before = memory_kib();
    let mut guessers = Vec::new();
    for guesser in 0..20 {
        let site = Arc::clone(&site);
        guessers.push(tokio::spawn(async move {
            let (mut wrong, mut waits) = (0, 0);
            for number in 0..500 {
                // To claim another address each time helps nobody whom no proxy speaks for.
                let claimed = format!("192.0.2.{}", number % 250);
                let answer = site.log_in_from("127.0.0.1", &format!("guess {guesser} {number}"), &[("X-Forwarded-For", &claimed)]).await;
                assert!(answer.header("set-cookie").is_none());
                match answer.code {
                    403 => wrong += 1,
                    // On a machine that has no time it is not even looked at.
                    429 | 503 => waits += 1,
                    code => panic!("{code}: {}", answer.head),
                }
            }
            (wrong, waits)
        }));
    }
    let (mut wrong, mut waits) = (0, 0);
    for guesser in guessers {
        let (one, other) = guesser.await.unwrap();
        (wrong, waits) = (wrong + one, waits + other);
    }
    assert_eq!(wrong + waits, 10_000);
    assert!(wrong < 20, "{wrong} were compared");
    // From there not even the right one, for now; from elsewhere at once.
    let answer = site.log_in_from("127.0.0.1", PASSWORD, &[]).await;
    assert!(answer.code == 429 && answer.header("retry-after").unwrap().parse::<u64>().unwrap() <= 901, "{}", answer.head);
    let answer = site.log_in_from("127.0.0.2", PASSWORD, &[]).await;
    assert!(answer.code == 303 && answer.header("set-cookie").is_some(), "{}", answer.head);
    let grown = memory_kib().saturating_sub(before) / 1_024;
    assert!(grown < 100, "{grown} MiB more");
    assert_eq!(site.ask("GET", "/healthz", &[], "").await.code, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guesses_from_thousands_of_addresses_are_few_altogether_and_do_not_lock_out_who_was_right_before() {
    let site = site(false, &["127.0.0.1"]).await;
    let owner = [("X-Forwarded-For", "198.51.100.7")];
    assert_eq!(site.log_in_from("127.0.0.1", PASSWORD, &owner).await.code, 303);
    let mut codes = std::collections::BTreeMap::new();
    let began = Instant::now();
    for number in 0..2_000_u32 {
        let address = std::net::Ipv4Addr::from(0x0A00_0000 + number).to_string();
        let answer = site.log_in_from("127.0.0.1", "guess guess", &[("X-Forwarded-For", &address)]).await;
        *codes.entry(answer.code).or_insert(0_u64) += 1;
    }
    // So many at once, and one more every two seconds.
    assert!(codes[&403] <= 31 + began.elapsed().as_secs() / 2 && codes.keys().all(|code| [403, 429].contains(code)), "{codes:?}");
    assert_eq!(site.log_in_from("127.0.0.1", PASSWORD, &owner).await.code, 303);
}

#[tokio::test]
async fn a_few_may_watch_and_one_more_is_told_to_wait_while_all_else_is_answered() {
    let site = site(false, &[]).await;
    let cookie = site.log_in().await;
    let request = format!("GET /now/events HTTP/1.1\r\nHost: nas\r\nCookie: {cookie}\r\n\r\n");
    let mut watchers = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(site.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        watchers.push(stream);
    }
    let live = site.page.live.clone().unwrap();
    live.notice(&Happened::Began { job: Job::Backup, why: Why::Asked, at: Timestamp::now() });
    for stream in &mut watchers {
        let mut told = String::new();
        let mut piece = [0; 4_096];
        while !told.contains("\"job\":\"backup\"") {
            let count = tokio::time::timeout(Duration::from_secs(30), stream.read(&mut piece)).await.expect("an event").unwrap();
            assert!(count > 0, "{told}");
            told.push_str(&String::from_utf8_lossy(&piece[..count]));
        }
        assert!(told.starts_with("HTTP/1.1 200") && told.contains("text/event-stream"), "{told}");
    }
    assert_eq!(site.ask("GET", "/now/events", &[("Cookie", &cookie)], "").await.code, 503);
    assert_eq!(site.get(&cookie, "/now").await.code, 200);
    // Whose session ends is told no more.
    let token = cookie.split_once('=').unwrap().1;
    site.page.sessions.end(token);
    for mut stream in watchers {
        live.notice(&Happened::Began { job: Job::Verify, why: Why::Asked, at: Timestamp::now() });
        let mut rest = Vec::new();
        let mut piece = [0; 4_096];
        while !rest.ends_with(b"0\r\n\r\n") {
            let count = tokio::time::timeout(Duration::from_secs(30), stream.read(&mut piece)).await.expect("an end").unwrap();
            assert!(count > 0, "cut");
            rest.extend_from_slice(&piece[..count]);
        }
        assert!(!String::from_utf8_lossy(&rest).contains("verify"));
    }
}

#[tokio::test]
async fn a_backup_that_was_withheld_is_not_safe_while_others_run_or_fail_and_until_one_is_made() {
    let site = site(false, &[]).await;
    let cookie = site.log_in().await;
    let path = site._folder.path().join("manifest.db");
    let mut manifest = Manifest::open(&path, site.repository).unwrap().unwrap();
    let mut apply = |run: RunId, fact: serde_json::Value| self::apply(&mut manifest, run, fact);
    let started = || json!({ "fact": "run_started", "at": Timestamp::now(), "host": "h", "roots": [] });
    let withheld = "A backup was withheld: 9 of 88 are gone.";
    let (first, second) = (RunId::random(), RunId::random());
    apply(first, started());
    assert!(!site.get(&cookie, "/").await.body.contains("withheld"));
    apply(first, json!({ "fact": "run_ended", "outcome": "withheld", "reason": "9 of 88 are gone", "gone": 9, "changed": 0 }));
    assert!(site.get(&cookie, "/").await.body.contains(withheld));
    apply(second, started());
    site.page.board.notice(&Happened::Began { job: Job::Backup, why: Why::Asked, at: Timestamp::now() });
    assert!(site.get(&cookie, "/").await.body.contains(withheld));
    apply(second, json!({ "fact": "run_ended", "outcome": "failed", "reason": "no route" }));
    // More of them than the timeline has on a page.
    for _ in 0..40 {
        let run = RunId::random();
        apply(run, started());
        apply(run, json!({ "fact": "run_ended", "outcome": "interrupted" }));
    }
    let body = site.get(&cookie, "/").await.body;
    assert!(body.contains(withheld) && body.contains("Not safe"), "{body}");
    let last = RunId::random();
    apply(last, started());
    apply(
        last,
        json!({
            "fact": "snapshot", "started_at": Timestamp::now(), "taken_at": Timestamp::now(), "totals": Totals::default(),
            "sent": { "files": 0, "bytes": 0 }, "archived": 0, "unread_count": 0,
        }),
    );
    assert!(!site.get(&cookie, "/").await.body.contains(withheld));
}

#[tokio::test]
async fn numbers_of_the_snapshot_and_times_of_later_looks_do_not_contradict_each_other_and_what_is_unknown_is_not_made_up() {
    let site = site(false, &[]).await;
    let cookie = site.log_in().await;
    let mut manifest = Manifest::open(&site._folder.path().join("manifest.db"), site.repository).unwrap().unwrap();
    let run = RunId::random();
    apply(&mut manifest, run, json!({ "fact": "run_started", "at": Timestamp::now(), "host": "h", "roots": [] }));
    let recorded = Age { assets: 4, oldest: Some(Timestamp::now()) };
    let proof = Proof { assets: 4, proven: 4, ages: Ages { recorded, ..Ages::default() }, ..Proof::default() };
    let snapshot = json!({
        "fact": "snapshot", "started_at": Timestamp::now(), "taken_at": Timestamp::now(), "totals": Totals::default(), "sent": { "files": 0, "bytes": 0 },
        "archived": 0, "unread_count": 0, "dump": "database/x.sql.gz", "proof": proof,
    });
    apply(&mut manifest, run, snapshot);
    assert!(!site.get(&cookie, "/").await.body.contains("All of them"));
    let covers = manifest.head().sequence;
    apply(&mut manifest, run, json!({ "fact": "listed", "at": Timestamp::now(), "sequence": covers, "objects": 9, "damaged": 0 }));
    let body = site.get(&cookie, "/").await.body;
    // Nothing was seen when the snapshot was made, and all of it since.
    assert!(body.contains("<strong>0</strong> of 4") && body.contains("The whole repository was last looked at") && !body.contains("All of them"), "{body}");

    let rows = site.page.source.timeline(u64::MAX).await.unwrap();
    let told = |differences| super::timeline::list(&site.page, &rows, differences, Timestamp::now(), false).into_string();
    let first = std::collections::HashMap::new();
    assert!(told(Some(&first)).contains(" came"));
    assert!(!told(None).contains(" came"), "how they differ could not be read");
}

/// The folders are kept in memory, of all snapshots at once.
#[tokio::test]
async fn folders_that_are_kept_are_made_anew_when_damage_is_found_or_healed_or_there_is_a_newer_snapshot() {
    let site = site(false, &[]).await;
    let mut manifest = Manifest::open(&site._folder.path().join("manifest.db"), site.repository).unwrap().unwrap();
    let run = RunId::random();
    let key = "library/upload/many/00007.jpg";
    let below = async |sequence| {
        let tree = site.page.source.tree(sequence).await.unwrap();
        let below = tree.folder(sequence, &Root::Library, "upload/many").unwrap().below;
        (below.files, below.damaged, tree)
    };
    let (files, damaged, first) = below(1).await;
    assert_eq!((files, damaged), (1_203, 0));
    // An entry of a run that goes on changes no snapshot.
    apply(&mut manifest, run, json!({ "fact": "run_started", "at": Timestamp::now(), "host": "h", "roots": [] }));
    assert!(Arc::ptr_eq(&below(1).await.2, &first));
    apply(&mut manifest, run, json!({ "fact": "damaged", "key": key, "problem": "missing" }));
    assert_eq!(below(1).await.1, 1);
    apply(&mut manifest, run, json!({ "fact": "sound", "key": key }));
    assert_eq!(below(1).await.1, 0);
    apply(&mut manifest, run, json!({ "fact": "archived", "path": "upload/many/00007.jpg" }));
    apply(
        &mut manifest,
        run,
        json!({
            "fact": "snapshot", "started_at": Timestamp::now(), "taken_at": Timestamp::now(), "totals": Totals::default(),
            "sent": { "files": 0, "bytes": 0 }, "archived": 1, "unread_count": 0,
        }),
    );
    let sequence = manifest.head().sequence;
    assert_eq!((below(sequence).await.0, below(1).await.0), (1_202, 1_203));
}

/// Whoever opens the page finds the folders there.
#[tokio::test]
async fn the_folders_are_made_ahead_when_a_job_has_ended_and_when_somebody_logs_in() {
    for logs_in in [true, false] {
        let site = site(false, &[]).await;
        assert!(!site.page.source.has_folders());
        if logs_in {
            site.log_in().await;
        } else {
            let report = Report::new(Job::Backup, Timestamp::now(), Timestamp::now(), serde_json::Map::new(), None);
            site.page.notice(&Happened::Ended(&report));
        }
        let began = Instant::now();
        while !site.page.source.has_folders() {
            assert!(began.elapsed() < Duration::from_secs(30), "logs in: {logs_in}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn what_an_open_tab_asks_for_by_itself_is_no_use_of_the_session() {
    let site = site(false, &[]).await;
    let token = site.page.sessions.begin(Instant::now() - super::sessions::IDLE_MAX + Duration::from_secs(20)).unwrap();
    let cookie = format!("immich-backup=of-another-port; immich-backup={token}");
    let by_itself = [("Cookie", cookie.as_str()), ("X-Page-Refresh", "1")];
    let later = Instant::now() + Duration::from_secs(30);
    assert_eq!(site.ask("GET", "/", &by_itself, "").await.code, 200);
    let mut stream = TcpStream::connect(site.address).await.unwrap();
    stream.write_all(format!("GET /now/events HTTP/1.1\r\nHost: nas\r\nCookie: {cookie}\r\n\r\n").as_bytes()).await.unwrap();
    let mut piece = [0; 4_096];
    let count = stream.read(&mut piece).await.unwrap();
    assert!(String::from_utf8_lossy(&piece[..count]).starts_with("HTTP/1.1 200"));
    assert!(!site.page.sessions.lasts(&token, later), "it ends though a tab asks");
    assert_eq!(site.get(&cookie, "/").await.code, 200);
    assert!(site.page.sessions.lasts(&token, later), "somebody asked");
}

#[tokio::test]
async fn whoever_sends_a_login_byte_by_byte_is_dropped_and_whether_the_daemon_lives_is_told_meanwhile() {
    let site = site(false, &[]).await;
    let head = b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 1000\r\n\r\np";
    let mut slow = Vec::new();
    for _ in 0..32 {
        let mut stream = TcpStream::connect(site.address).await.unwrap();
        stream.write_all(head).await.unwrap();
        slow.push(stream);
    }
    assert_eq!(site.ask("GET", "/healthz", &[], "").await.code, 200);
    for mut stream in slow {
        let mut answer = Vec::new();
        drop(tokio::time::timeout(Duration::from_secs(25), stream.read_to_end(&mut answer)).await.expect("sooner than a connection ends"));
        assert!(String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 408"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(site.ask("GET", "/login", &[], "").await.code, 200);
}

#[tokio::test]
async fn a_manifest_that_is_not_there_or_is_damaged_or_behind_is_said_and_never_a_verdict() {
    let site = site(false, &[]).await;
    let cookie = site.log_in().await;
    let path = site._folder.path().join("manifest.db");
    let shown = async |text: &str| {
        let answer = site.get(&cookie, "/").await;
        assert!(answer.code == 200 && answer.body.contains("Not known") && answer.body.contains(text), "{text}: {}", answer.body);
        assert_eq!(site.get(&cookie, "/timeline").await.code, 503);
    };
    assert!(site.get(&cookie, "/").await.body.contains("The backup has no database"));
    // As while the log is read anew.
    seen(site._folder.path(), 300);
    shown("The log is being read: entry 1 of 300.").await;
    // As while it is read for the first time: half a log is none.
    fs::remove_file(site._folder.path().join("seen.json")).unwrap();
    shown("The log is being read: entry 1.").await;
    seen(site._folder.path(), 1);
    assert!(site.get(&cookie, "/").await.body.contains("The backup has no database"));
    std::fs::write(&path, vec![b'x'; 100_000]).unwrap();
    shown("cannot be read").await;
    std::fs::remove_file(&path).unwrap();
    shown("Nothing is known of the repository here yet").await;
    *site.reading.lock().unwrap() = Reading::default();
    shown("The repository's log is being read").await;
    site.reading.lock().unwrap().failed = Some((Exit::Failed, "no <b>route</b>".to_owned()));
    shown("The repository could not be read: no &lt;b&gt;route&lt;/b&gt;.").await;
    site.reading.lock().unwrap().failed = Some((Exit::LogDamaged, "x".to_owned()));
    assert!(site.get(&cookie, "/").await.body.contains("Not safe"));
}
