//! Who is told how a command ended: by pings, a webhook and mail, each with a real receiver; and that receivers which are down, slow or refuse change nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

#[path = "support/receiver.rs"]
mod receiver;
mod support;

use immich_backup_testbed::servers::{MailAccount, MailMode, MailServer, MailWay};
use receiver::Receiver;
use serde_json::Value;
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;
use support::{Ran, Running, World, remove, tool};

/// A text that stands in every secret of these tests.
const SECRET: &str = "Tr0ub4dor";

#[track_caller]
fn silent(ran: Ran) -> Ran {
    assert!(!ran.out.contains(SECRET) && !ran.err.contains(SECRET), "a secret was told\n{}", ran.told());
    ran
}

fn set(world: &mut World, name: &str, value: &str) {
    let name = format!("IMMICH_BACKUP_NOTIFY_{name}");
    world.environment.retain(|(before, _)| *before != name);
    world.environment.push((name, value.to_owned()));
}

fn secret_file(world: &World, name: &str, text: &str) -> String {
    let path = world.at(name);
    fs::write(&path, format!("{text}\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

/// An address where nobody is.
fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn a_backup_is_pinged_when_it_begins_and_as_it_ends_and_a_verification_only_if_it_fails() {
    let mut world = World::new();
    world.pictures(20);
    let receiver = Receiver::start(&[200]);
    let file = secret_file(&world, "ping", &receiver.url(&format!("/{SECRET}/")));
    set(&mut world, "PING", &format!("@{file}"));
    silent(world.backup(&[]).ended(0));
    let at = |end: &str| format!("/{SECRET}{end}");
    assert_eq!(receiver.paths(), [at("/start"), at("/")]);
    let last = receiver.requests().pop().unwrap();
    assert!(last.method == "POST" && last.body.starts_with("Immich backup: 25 new · ") && last.body.contains(world.repository.to_str().unwrap()), "{last:?}");
    // Others may not stand for a backup that did not run.
    silent(world.run(&["verify"]).ended(0));
    silent(world.run(&["prune"]).ended(0));
    silent(world.backup(&["--dry-run"]).ended(0));
    assert_eq!(receiver.paths().len(), 2);
    // Most originals are gone: the tripwire.
    for folder in ["u0", "u1"] {
        remove(&world.library.join("upload").join(folder));
    }
    let withheld = silent(world.backup(&[]).ended(4));
    assert_eq!(receiver.paths()[2..], [at("/start"), at("/fail")]);
    let body = receiver.requests()[3].body.clone();
    assert!(body.starts_with("Immich backup WITHHELD: ") && body.contains(&format!("--accept {}", withheld.summary()["run"].as_str().unwrap())), "{body}");
    // What fails before it has begun, too.
    fs::rename(&world.library, world.at("gone")).unwrap();
    silent(world.backup(&[]).ended(1));
    assert_eq!(receiver.paths()[4..], [at("/start"), at("/fail")]);
    assert!(receiver.requests()[5].body.starts_with("Immich backup FAILED: "));
    // And what a verification finds.
    let lost = fs::read_dir(world.repository.join("library/upload/u2")).unwrap().next().unwrap().unwrap().path();
    remove(&lost);
    silent(world.run(&["verify"]).ended(12));
    assert_eq!(receiver.paths()[6..], [at("/fail")]);
}

#[test]
fn shards_tell_no_start_and_only_the_one_that_commits_or_fails_tells_an_end() {
    let mut world = World::new();
    world.pictures(10);
    let receiver = Receiver::start(&[200]);
    set(&mut world, "PING", &receiver.url("/p"));
    let run = immich_backup_core::model::RunId::random().to_string();
    let shard = |index: &str| world.backup(&["--shard", index, "--run-id", &run]);
    shard("1/2").ended(0);
    assert_eq!(receiver.paths(), Vec::<String>::new());
    shard("2/2").ended(2);
    shard("0/2").ended(0);
    assert_eq!(receiver.paths(), ["/p/fail", "/p"]);
}

#[test]
fn a_webhook_is_told_what_its_receiver_understands() {
    let mut world = World::new();
    world.pictures(3);
    let receiver = Receiver::start(&[200]);
    let token = secret_file(&world, "token", SECRET);
    set(&mut world, "WEBHOOK_TOKEN_FILE", &token);
    set(&mut world, "ON", "success, partial");
    let told = |world: &mut World, style: &str, path: &str| {
        set(world, "WEBHOOK", &receiver.url(path));
        set(world, "WEBHOOK_AS", style);
        silent(world.backup(&[]).ended(0));
        receiver.requests().pop().unwrap()
    };
    let request = told(&mut world, "json", "/hook?key=Tr0ub4dor");
    let json = request.json();
    assert_eq!(
        (&json["version"], &json["kind"], &json["command"], &json["outcome"], &json["exit_code"]),
        (&1.into(), &"success".into(), &"backup".into(), &"done".into(), &0.into())
    );
    assert!(json["title"].as_str().unwrap().starts_with("Immich backup: 8 new · ") && json["summary"]["files"]["new"] == 8, "{json}");
    let times = ["began_at", "ended_at"].map(|name| json[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap());
    assert!(times[0] <= times[1] && json["repository"] == world.repository.to_str().unwrap());
    assert!(request.headers.contains(&format!("authorization: bearer {}\r\n", SECRET.to_lowercase())) && request.path == "/hook?key=Tr0ub4dor", "{request:?}");

    let request = told(&mut world, "ntfy", "/my-topic");
    let json = request.json();
    assert_eq!((request.path.as_str(), &json["topic"], &json["priority"], &json["tags"][0]), ("/", &"my-topic".into(), &2.into(), &"white_check_mark".into()));
    assert!(json["title"].as_str().unwrap().starts_with("Immich backup: 0 new") && json["message"].is_string(), "{json}");

    let request = told(&mut world, "gotify", "/sub");
    assert!(request.path == "/sub/message" && request.headers.contains(&format!("x-gotify-key: {}\r\n", SECRET.to_lowercase())), "{request:?}");
    assert_eq!(request.json()["priority"], 4);

    assert!(told(&mut world, "discord", "/api").json()["content"].as_str().unwrap().starts_with("**Immich backup: 0 new"));
    assert!(told(&mut world, "slack", "/services").json()["text"].as_str().unwrap().starts_with("*Immich backup: 0 new"));
    // What it does not want to know, it is not told.
    let before = receiver.requests().len();
    set(&mut world, "ON", "failure");
    silent(world.backup(&[]).ended(0));
    assert_eq!(receiver.requests().len(), before);
    // What is quoted calls nobody.
    world.repository = world.at("a <!channel> & b");
    set(&mut world, "WEBHOOK_AS", "slack");
    silent(world.run(&["notify", "--test"]).ended(0));
    let text = receiver.requests().pop().unwrap().json()["text"].as_str().unwrap().to_owned();
    assert!(text.contains("/a &lt;!channel&gt; &amp; b"), "{text}");
    // A configuration that is shown shows no secret.
    silent(world.run(&["backup", "--show-config"]).ended(0)).says("http://127.0.0.1").says("notify-webhook");
}

fn certificate(world: &World) -> PathBuf {
    let (key, certificate, both) = (world.at("key.pem"), world.at("certificate.pem"), world.at("both.pem"));
    let (key_text, certificate_text) = (key.to_str().unwrap(), certificate.to_str().unwrap());
    let subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"];
    let how =
        ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-keyout", key_text, "-out", certificate_text];
    tool("openssl", &[&how[..], &subject[..]].concat());
    fs::write(&both, [fs::read(&certificate).unwrap(), fs::read(&key).unwrap()].concat()).unwrap();
    both
}

fn mail(received: &[String]) -> Vec<Value> {
    received.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn mail_is_sent_encrypted_and_with_its_account() {
    let mut world = World::new();
    world.pictures(3);
    let both = certificate(&world);
    let account = MailAccount { certificate: &both, user: "me", password: SECRET };
    let password = secret_file(&world, "password", SECRET);
    set(&mut world, "MAIL_TO", "Anna <anna@example.org>, ben@example.org");
    set(&mut world, "ON", "success,start");
    set(&mut world, "MAIL_USER", "me");
    set(&mut world, "MAIL_PASSWORD_FILE", &password);
    world.environment.push(("SSL_CERT_FILE".to_owned(), world.at("certificate.pem").to_str().unwrap().to_owned()));
    for (scheme, way) in [("smtp", MailWay::StartTls(account)), ("smtps", MailWay::Smtps(account))] {
        let server = MailServer::start(way, MailMode::Take).unwrap();
        set(&mut world, "MAIL_SERVER", &format!("{scheme}://localhost:{}", server.port()));
        let ran = silent(world.backup(&[]).ended(0));
        assert!(!ran.told().contains("cannot tell"), "{}", ran.told());
        let received = mail(&server.received());
        let mut to: Vec<_> = received.iter().map(|mail| mail["to"].to_string()).collect();
        to[2..].sort();
        assert_eq!(to[2..], [r#"["anna@example.org"]"#, r#"["ben@example.org"]"#], "each has their own: {received:?}");
        assert_eq!(to.len(), 4);
        let last = &received[3];
        assert_eq!((&last["authenticated"], &last["encrypted"], &last["from"]), (&true.into(), &true.into(), &"anna@example.org".into()));
        let content = last["content"].as_str().unwrap();
        assert!(content.contains("Auto-Submitted: auto-generated") && content.contains("Subject: ") && content.contains("text/plain"), "{content}");
        set(&mut world, "ON", "success");
        let wrong = secret_file(&world, "wrong", "Tr0ub4dor-no-more");
        set(&mut world, "MAIL_PASSWORD_FILE", &wrong);
        silent(world.backup(&[]).ended(0)).says("cannot tell by mail: ");
        set(&mut world, "MAIL_PASSWORD_FILE", &password);
        assert_eq!(server.received().len(), 4);
        set(&mut world, "ON", "success,start");
    }
    set(&mut world, "ON", "success");
    // Whose certificate nobody knows gets no password.
    world.environment.retain(|(name, _)| name != "SSL_CERT_FILE");
    let server = MailServer::start(MailWay::Smtps(account), MailMode::Take).unwrap();
    set(&mut world, "MAIL_SERVER", &format!("smtps://localhost:{}", server.port()));
    silent(world.backup(&[]).ended(0)).says("cannot tell by mail: ");
    assert_eq!(server.received().len(), 0);
    // A server that does not encrypt is not spoken to in the clear.
    let server = MailServer::start(MailWay::Plain, MailMode::Take).unwrap();
    set(&mut world, "MAIL_SERVER", &format!("smtp://localhost:{}", server.port()));
    silent(world.backup(&[]).ended(0)).says("cannot tell by mail: ");
    assert_eq!(server.received().len(), 0);
}

#[test]
fn an_address_that_is_refused_keeps_nobody_from_their_mail_and_each_try_is_the_same_mail() {
    let mut world = World::new();
    let server = MailServer::start(MailWay::Plain, MailMode::Take).unwrap();
    set(&mut world, "MAIL_TO", "anna@example.org, refused@example.org, ben@example.org");
    set(&mut world, "MAIL_SERVER", &format!("smtp-plain://127.0.0.1:{}", server.port()));
    world.run(&["notify", "--test"]).ended(1).says("cannot tell by mail: refused@example.org: ").says("550");
    let mut to: Vec<_> = mail(&server.received()).iter().map(|mail| mail["to"].to_string()).collect();
    to.sort();
    assert_eq!(to, [r#"["anna@example.org"]"#, r#"["ben@example.org"]"#]);

    let server = MailServer::start(MailWay::Plain, MailMode::Hesitate).unwrap();
    set(&mut world, "MAIL_TO", "anna@example.org");
    set(&mut world, "MAIL_SERVER", &format!("smtp-plain://127.0.0.1:{}", server.port()));
    for _ in 0..2 {
        world.run(&["notify", "--test"]).ended(0).says("told by mail");
    }
    let received = mail(&server.received());
    let name = |mail: &Value| mail["content"].as_str().unwrap().lines().find(|line| line.starts_with("Message-ID: <")).unwrap().to_owned();
    let names: Vec<_> = received.iter().map(name).collect();
    assert!(names.len() == 3 && names[0] == names[1] && names[1] != names[2], "{names:?}");
}

/// Ping, webhook and mail at these ports of this machine: a backup ends as it would, no later than this, and says that it could tell nobody.
fn changes_nothing(ping: &str, webhook: &str, mail: u16, within_s: u64) -> World {
    let mut world = World::new();
    world.pictures(5);
    set(&mut world, "PING", &format!("http://{ping}/{SECRET}"));
    set(&mut world, "WEBHOOK", &format!("http://{webhook}/{SECRET}"));
    set(&mut world, "MAIL_SERVER", &format!("smtp-plain://127.0.0.1:{mail}"));
    set(&mut world, "MAIL_TO", "anna@example.org");
    set(&mut world, "ON", "start,success,failure");
    let ran = silent(world.backup(&[]).ended(0));
    assert_eq!(world.snapshots(), [ran.snapshot()]);
    assert!(ran.took < Duration::from_secs(within_s), "it took {:?}", ran.took);
    let warned: Vec<_> = ran.events("warned").into_iter().map(|event| event["message"].as_str().unwrap().to_owned()).collect();
    for way in ["ping", "webhook", "mail"] {
        assert!(warned.iter().any(|message| message.starts_with(&format!("cannot tell by {way}: "))), "{way}: {warned:?}");
    }
    world
}

/// A failure stays the failure that it was, and `notify --test` says what is wrong.
fn fails_as_before(world: &World) {
    fs::rename(&world.library, world.at("gone")).unwrap();
    let failed = silent(world.backup(&[]).ended(1));
    assert!(!failed.summary()["errors"][0]["message"].as_str().unwrap().contains("tell"));
    let tried = silent(world.run(&["notify", "--test", "--json"]).ended(1));
    assert_eq!(tried.summary()["errors"].as_array().unwrap().len(), 3);
}

#[test]
fn receivers_that_are_down_change_nothing_and_are_reported() {
    let world = changes_nothing(&nobody(), &nobody(), nobody().rsplit(':').next().unwrap().parse().unwrap(), 30);
    fails_as_before(&world);
}

#[test]
fn receivers_that_refuse_change_nothing_and_are_reported() {
    let server = MailServer::start(MailWay::Plain, MailMode::Refuse).unwrap();
    let world = changes_nothing(&Receiver::start(&[403]).address, &Receiver::start(&[500]).address, server.port(), 30);
    fails_as_before(&world);
}

#[test]
fn receivers_that_never_answer_change_nothing_and_are_reported() {
    let server = MailServer::start(MailWay::Plain, MailMode::Hang).unwrap();
    changes_nothing(&Receiver::start(&[0]).address, &Receiver::start(&[0]).address, server.port(), 50);
}

#[test]
fn what_passes_is_tried_again_and_what_does_not_is_not() {
    let mut world = World::new();
    let receiver = Receiver::start(&[503, 429, 200]);
    set(&mut world, "WEBHOOK", &receiver.url("/hook"));
    world.run(&["notify", "--test"]).ended(0).says("told by webhook");
    assert_eq!(receiver.requests().len(), 3);
    assert_eq!(receiver.requests()[2].json()["kind"], "test");
    let receiver = Receiver::start(&[404]);
    set(&mut world, "WEBHOOK", &receiver.url("/hook"));
    world.run(&["notify", "--test"]).ended(1).says("it answers 404");
    assert_eq!(receiver.requests().len(), 1);
    world.run(&["notify"]).ended(0).says("partial, failure, tripwire, bit-rot, drill-overdue, stale");
    set(&mut world, "WEBHOOK", "@/nowhere/hook");
    world.run(&["notify", "--test"]).ended(1).says("cannot read `/nowhere/hook`");
    let fifo = world.at("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    set(&mut world, "WEBHOOK", &format!("@{}", fifo.display()));
    let ran = world.run(&["notify", "--test"]).ended(1).says("fifo`: it is no regular file");
    assert!(ran.took < Duration::from_secs(5), "{:?}", ran.took);
    world.environment.clear();
    world.run(&["notify", "--test"]).ended(2).says("--notify-ping");
    world.backup(&["--notify-on", "sometimes"]).ended(2).says("drill-overdue");
}

#[test]
fn a_failure_that_reached_nobody_is_told_at_the_next_try_and_then_no_more() {
    let mut world = World::new();
    fs::rename(&world.library, world.at("gone")).unwrap();
    let receiver = Receiver::start(&[404, 200]);
    set(&mut world, "WEBHOOK", &receiver.url("/hook"));
    let mut command = world.command(&["daemon", "--json", "--schedule", "@yearly", "--run-now", "--init", "--no-database", "--retry-after", "1s"]);
    command.arg("--library").arg(&world.library);
    let mut running = Running::start(command);
    assert!(running.until(|running| running.said().matches("\"job_ended\"").count() >= 4), "{}", running.said());
    running.signal("TERM");
    running.wait().ended(0);
    let kinds: Vec<_> = receiver.requests().iter().map(|request| request.json()["kind"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds, ["failure", "failure"]);
}

#[test]
fn the_daemon_tells_of_each_job_once_also_of_one_that_was_killed_and_that_nothing_comes_any_more() {
    let mut world = World::new();
    world.pictures(3_000);
    let receiver = Receiver::start(&[200]);
    let ping = Receiver::start(&[200]);
    set(&mut world, "WEBHOOK", &receiver.url("/hook"));
    set(&mut world, "PING", &ping.url("/p"));
    set(&mut world, "ON", "start,success,failure,stale");
    let mut command =
        world.command(&["daemon", "--json", "--schedule", "@yearly", "--run-now", "--init", "--no-database", "--retry-after", "1s", "--max-age", "15s"]);
    command.arg("--library").arg(&world.library);
    let mut running = Running::start(command);
    assert!(running.until(|running| running.said().contains("file_stored")));
    let tasks = fs::read_dir(format!("/proc/{}/task", running.pid())).unwrap();
    let children: String = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok()).collect();
    let job = rustix::process::Pid::from_raw(children.split_whitespace().next().unwrap().parse().unwrap()).unwrap();
    rustix::process::kill_process(job, rustix::process::Signal::KILL).unwrap();
    let kinds = || receiver.requests().iter().map(|request| request.json()["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    // Both ways are told at the same time, and either may be the first.
    assert!(running.until(|_| kinds().contains(&"success".to_owned()) && ping.paths().len() >= 3), "{}", running.said());
    assert_eq!(kinds(), ["start", "failure", "success"], "the second try is told by its end");
    assert!(receiver.requests()[1].json()["title"].as_str().unwrap().contains("signal 9 ended it"));
    assert_eq!(ping.paths(), ["/p/start", "/p/fail", "/p"]);
    // Nothing is planned for this year.
    assert!(running.until(|_| kinds().last().is_some_and(|kind| kind == "stale")), "{}", running.said());
    assert_eq!(ping.paths().len(), 3, "a service that notices silence does so by itself");
    running.signal("TERM");
    running.wait().ended(0);
    assert_eq!(kinds().len(), 4);
}
