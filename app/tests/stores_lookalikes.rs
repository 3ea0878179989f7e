//! Stores that speak S3 with an accent: without conditional creates, without checksums, without user metadata.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, clippy::print_stderr, reason = "a test may")]

#[path = "support/stores.rs"]
mod stand;
mod support;

use immich_backup_testbed::proxy::{Action, Proxy, Rule};
use immich_backup_testbed::servers::Options;
use stand::Stand;
use std::sync::{Arc, Mutex};
use support::{Ran, Running, World, settle};

/// What a store does with the condition that nothing may be there.
#[derive(Clone, Copy)]
enum Condition {
    /// Overwrites all the same: Wasabi, Garage.
    Ignored,
    /// 501, as Backblaze B2.
    NotImplemented,
}

impl Condition {
    fn rule(self, stand: &Stand) -> Rule {
        match self {
            Self::Ignored => Rule::any().header("if-none-match").then(Action::ignore_conditions(stand.resign())),
            Self::NotImplemented => Rule::any().header("if-none-match").then(Action::s3_error(501u16.try_into().unwrap(), "NotImplemented")),
        }
    }
}

fn warned_of_two_writers(ran: &Ran) -> bool {
    ran.events("warned").iter().any(|event| event["message"].as_str().unwrap().contains("cannot keep two writers apart"))
}

fn a_store_without_conditions_is_used(condition: Condition) {
    let stand = Stand::s3();
    stand.proxy.add(condition.rule(&stand));
    let world = stand.lend("p", World::new());
    world.pictures(100);
    world.file("upload/u/large.mov", 20 << 20, 1);
    settle();
    world.run(&["init"]).ended(0);
    let first_tree = world.tree();
    let first = world.backup(&[]).ended(0);
    assert!(warned_of_two_writers(&first), "{}", first.told());
    let copy = world.at("copy");
    stand.mirror("p", &copy);
    world.assert_restores_by_hand(&copy, &first_tree);
    world.file("upload/u/new.jpg", 500, 1);
    world.file("upload/u0/00/00000.jpg", 777, 2);
    let second = world.backup(&[]).ended(0);
    assert!(warned_of_two_writers(&second), "{}", second.told());
    assert_eq!((second.number("/files/sent"), second.number("/files/unchanged")), (2, 105), "{}", second.told());
    // Log entries bear the run's id, so that no two writers' meet.
    let log: Vec<_> = stand.keys("p").into_iter().filter(|key| key.starts_with("log/")).collect();
    let run = first.summary()["run"].as_str().unwrap().to_owned();
    assert!(log[0] == format!("log/0000000001-{run}.ndjson.zst") && log.len() >= 4, "{log:?}");
    // On a machine that knows nothing.
    support::remove(&world.state);
    world.assert_restores(&first.snapshot(), &first_tree);
    world.assert_restores(&second.snapshot(), &world.tree());
    world.run(&["verify", "--read-data", "--json"]).ended(0);
    world.run(&["doctor"]).ended(0).says("cannot keep two writers apart");
    // Nothing but the object whose bytes are always the same was written again.
    let again: Vec<_> = stand.bucket().versions().unwrap().into_iter().filter(|(key, count)| *count != 1 && key != ".ready").collect();
    assert!(again.iter().all(|(key, _)| key == "p/format.json"), "{again:?}");
}

#[test]
fn a_store_that_ignores_conditions_is_used() {
    a_store_without_conditions_is_used(Condition::Ignored);
}

#[test]
fn a_store_that_answers_501_to_conditions_is_used() {
    a_store_without_conditions_is_used(Condition::NotImplemented);
}

/// Runs `second` while the first run is about to write its `nth` log entry.
fn meanwhile(stand: &Stand, condition: Condition, nth: u64, first: &World, second: impl Fn() -> Vec<Ran> + Send + Sync + 'static) -> (Ran, Vec<Ran>) {
    let said = Arc::new(Mutex::new(Vec::new()));
    stand.proxy.add(Rule::on("PUT").key("/log/").nth(nth).doing({
        let said = Arc::clone(&said);
        move || *said.lock().unwrap() = second()
    }));
    stand.proxy.add(condition.rule(stand));
    let ran = first.backup(&[]);
    let said = std::mem::take(&mut *said.lock().unwrap());
    (ran, said)
}

fn a_second_writer_is_noticed(condition: Condition) {
    let stand = Stand::s3_with(Options::default());
    let other_way: Proxy = stand.another_proxy();
    other_way.add(condition.rule(&stand));
    let (first, second) = (stand.lend("p", World::new()), stand.lend_by(&other_way, "p", World::new()));
    first.pictures(30);
    second.pictures(30);
    second.file("upload/u/second.jpg", 900, 1);
    let backup = |world: &World, more: &'static [&'static str]| {
        let (arguments, envs): (Vec<_>, Vec<_>) = {
            let command = world.backup_command(more);
            (command.get_args().map(ToOwned::to_owned).collect(), world.environment.clone())
        };
        move || {
            let mut command = support::program();
            command.args(&arguments).envs(envs.clone());
            Running::start(command).wait()
        }
    };
    let (waits_not, takes_over) = (backup(&second, &["--wait", "0"]), backup(&second, &["--take-over"]));
    // The first run has said that it began, and is about to say what it stored.
    let (ran, others) = meanwhile(&stand, condition, 2, &first, move || vec![waits_not(), takes_over()]);
    let [busy, forced]: [Ran; 2] = others.try_into().unwrap_or_else(|_| panic!("the second writer did not run\n{}", ran.told()));
    busy.ended(1).says("another run has the repository").says("--take-over");
    // One of the two sees both entries: the one that wrote last.
    let forced = forced.ended(0);
    let entries: Vec<_> = stand.keys("p").into_iter().filter(|key| key.starts_with("log/0000000002-")).collect();
    assert_eq!(entries.len(), 2, "the writers did not meet: {:?}", stand.keys("p"));
    let ran = ran.ended(11).says("forks at entry 2").says(&entries[0]).says(&entries[1]).says("--until 1").says("--keep RUN");
    drop(ran);
    // So does whoever reads the log from then on, and what was before can be read.
    let reader = stand.lend("p", World::bare());
    for arguments in [&["verify"][..], &["ls"], &["snapshots"], &["status"]] {
        reader.run(arguments).ended(11).says(&entries[0]).says(&entries[1]);
    }
    reader.run(&["snapshots", "--until", "1"]).ended(0);
    // The remedy: the first one yields.
    let run = forced.summary()["run"].as_str().unwrap().to_owned();
    let yields = entries.iter().find(|entry| !entry.contains(&run)).unwrap();
    let undecided = reader.run(&["repair"]).ended(11).says(&run).says("which one is to count");
    assert!(yields.split_once('-').is_some_and(|(_, other)| undecided.told().contains(&other[..36])), "{}", undecided.told());
    reader.run(&["repair", "--apply"]).ended(11).says("nobody but you");
    reader.run(&["repair", "--keep", &run[..8], "--apply"]).ended(0).says("epoch 1");
    assert!(stand.keys("p").iter().any(|key| key.starts_with("log/9000000001-opening-")), "{:?}", stand.keys("p"));
    assert!(stand.keys("p").contains(yields), "nothing was removed");
    reader.run(&["verify", "--read-data"]).ended(0);
    reader.assert_restores("latest", &second.tree());
    stand.proxy.clear_rules();
    stand.proxy.add(condition.rule(&stand));
    first.file("upload/u/first.jpg", 700, 1);
    let again = first.backup(&["--take-over"]).ended(0);
    // What the run that yielded had stored is taken up.
    assert_eq!(again.number("/files/sent"), 1, "{}", again.told());
    first.assert_restores("latest", &first.tree());
    first.assert_restores(&forced.snapshot(), &second.tree());
    first.run(&["verify", "--read-data"]).ended(0);
}

#[test]
fn a_second_writer_is_noticed_where_conditions_are_ignored() {
    a_second_writer_is_noticed(Condition::Ignored);
}

#[test]
fn a_second_writer_is_noticed_where_conditions_are_answered_with_501() {
    a_second_writer_is_noticed(Condition::NotImplemented);
}

#[test]
fn a_second_writer_that_had_written_more_can_yield_as_well() {
    let (stand, condition) = (Stand::s3_with(Options::default()), Condition::Ignored);
    let other_way = stand.another_proxy();
    other_way.add(condition.rule(&stand));
    let (first, second) = (stand.lend("p", World::new()), stand.lend_by(&other_way, "p", World::new()));
    first.pictures(10);
    second.pictures(20);
    let (arguments, envs): (Vec<_>, _) = (second.backup_command(&["--take-over"]).get_args().map(ToOwned::to_owned).collect(), second.environment.clone());
    let (ran, others) = meanwhile(&stand, condition, 2, &first, move || {
        let mut command = support::program();
        command.args(&arguments).envs(envs.clone());
        vec![Running::start(command).wait()]
    });
    let run = others[0].summary()["run"].as_str().unwrap().to_owned();
    ran.ended(11).says("--keep RUN");
    let theirs: Vec<_> = stand.keys("p").into_iter().filter(|key| key.starts_with("log/") && key.contains(&run)).collect();
    assert!(theirs.len() > 1, "{theirs:?}");
    stand.proxy.clear_rules();
    stand.proxy.add(condition.rule(&stand));
    let own = stand.keys("p").into_iter().find(|key| key.starts_with("log/0000000002-") && !key.contains(&run)).unwrap();
    let keep = own.strip_prefix("log/0000000002-").unwrap()[..8].to_owned();
    first.run(&["repair", "--keep", &keep, "--apply"]).ended(0);
    first.backup(&[]).ended(0);
    first.assert_restores("latest", &first.tree());
    // The one that yielded has seen what does not count any more, and says so.
    second.backup(&[]).ended(11).says("--accept-epoch 1").says("--reject-epoch 1");
    second.run(&["repair"]).ended(11).says("--accept-epoch 1");
    second.run(&["repair", "--accept-epoch", "1", "--apply"]).ended(0);
    let again = second.backup(&["--take-over"]).ended(0);
    assert_eq!(again.number("/files/sent"), 0, "{}", again.told());
    second.assert_restores("latest", &second.tree());
}

fn is_used_whole(stand: &Stand, prefix: &str, more: &str) -> Ran {
    let mut world = stand.lend(prefix, World::new());
    world.repository = format!("{}{more}", world.repository.display()).into();
    world.pictures(30);
    world.file("upload/u/large.mov", 33 << 20, 1);
    settle();
    let first = world.backup(&[]).ended(0);
    world.file("upload/u/new.jpg", 900, 1);
    let second = world.backup(&[]).ended(0);
    assert_eq!((second.number("/files/sent"), second.number("/files/unchanged")), (1, 36), "{}", second.told());
    world.assert_restores("latest", &world.tree());
    world.run(&["verify", "--read-data", "--json"]).ended(0);
    first
}

#[test]
fn a_store_that_refuses_checksums_is_recognised_and_gets_md5() {
    for (code, error) in [(501_u16, "NotImplemented"), (400, "InvalidArgument")] {
        let stand = Stand::s3();
        let refused = stand.proxy.add(Rule::on("PUT").header("x-amz-checksum-sha256").then(Action::Status {
            code: code.try_into().unwrap(),
            headers: vec![("content-type", "application/xml".to_owned())],
            body: format!("<Error><Code>{error}</Code><Message>Unsupported header: x-amz-checksum-sha256</Message></Error>"),
        }));
        let first = is_used_whole(&stand, "p", "");
        assert!(first.events("warned").iter().any(|event| event["message"].as_str().unwrap().contains("checksum")), "{code}: {}", first.told());
        assert!(!warned_of_two_writers(&first), "{code}: conditions are kept there\n{}", first.told());
        let without = stand.proxy.count(|record| record.method == "PUT" && record.headers.contains_key("content-md5"));
        assert!(without > 30, "{code}: only {without} requests had an MD5");
        assert!(refused.count() < 10, "{code}: {} requests were refused before it was learnt", refused.count());
        assert!(stand.assert_written_once() > 30);
    }
}

#[test]
fn options_in_the_url_leave_out_what_a_store_does_not_take() {
    let stand = Stand::s3().append_only(true);
    is_used_whole(&stand, "all-off", "&checksum=off&payload=unsigned&metadata=off");
    let puts: Vec<_> = stand.proxy.log().into_iter().filter(|record| record.method == "PUT").collect();
    let has = |name: &str| puts.iter().filter(|record| record.headers.contains_key(name)).count();
    assert_eq!((has("x-amz-checksum-sha256"), has("x-amz-meta-mtime"), has("x-amz-meta-sha256")), (0, 0, 0));
    assert!(puts.iter().all(|record| record.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"), "a payload was signed");
    assert_eq!(has("content-md5"), puts.len(), "content went out without anything that verifies it");
    stand.assert_written_once();
    for (more, name) in [("&checksum=off", "x-amz-checksum-sha256"), ("&metadata=off", "x-amz-meta-mtime")] {
        stand.proxy.clear_log();
        is_used_whole(&stand, &more[1..4], more);
        assert_eq!(stand.proxy.count(|record| record.headers.contains_key(name)), 0, "{more}");
    }
    println!("{} keys with one version each", stand.assert_written_once());
}
