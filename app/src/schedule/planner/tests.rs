use super::*;
use jiff::tz::TimeZone;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn minutes(minutes: i64) -> SignedDuration {
    SignedDuration::from_mins(minutes)
}

fn calendars(schedules: &[(Job, &str)], zone: &str) -> BTreeMap<Job, Calendar> {
    schedules.iter().map(|(job, text)| (*job, Calendar::new(text, TimeZone::get(zone).unwrap()).unwrap())).collect()
}

/// A planner, and a clock that goes when somebody waits.
struct Life {
    planner: Planner,
    now: Timestamp,
    jitter: Duration,
    schedules: Vec<(Job, &'static str)>,
    zone: &'static str,
}

#[derive(Debug, Clone, PartialEq)]
struct Ran {
    job: Job,
    at: Timestamp,
    why: Why,
}

impl Life {
    fn new(schedules: &[(Job, &'static str)], zone: &'static str, now: &str) -> Self {
        Self::with_jitter(schedules, zone, now, Duration::ZERO)
    }

    fn with_jitter(schedules: &[(Job, &'static str)], zone: &'static str, now: &str, jitter: Duration) -> Self {
        let now = at(now);
        let planner = Planner::new(calendars(schedules, zone), BTreeMap::new(), jitter, Duration::from_secs(900), now);
        Self { planner, now, jitter, schedules: schedules.to_vec(), zone }
    }

    /// Ends the program and starts it again, after `off`.
    fn off(&mut self, off: SignedDuration) {
        let memory = self.planner.memory();
        let stored = serde_json::to_string(&memory).unwrap();
        self.now += off;
        let memory = serde_json::from_str(&stored).unwrap();
        self.planner = Planner::new(calendars(&self.schedules, self.zone), memory, self.jitter, Duration::from_secs(900), self.now);
    }

    /// Waits until something runs, but not past `until`; it takes as long as `takes` says, and ends so.
    fn step(&mut self, until: Timestamp, takes: SignedDuration, ended: Ended) -> Option<Ran> {
        loop {
            match self.planner.decide(self.now) {
                Decision::Run(job, why) => {
                    let ran = Ran { job, at: self.now, why };
                    self.planner.began(job, self.now, why);
                    self.now += takes;
                    self.planner.ended(job, self.now, ended);
                    return Some(ran);
                }
                Decision::Wait(wait) => {
                    assert!(wait <= LOOK_EVERY && wait > Duration::ZERO, "{wait:?}");
                    if self.now >= until {
                        return None;
                    }
                    self.now += SignedDuration::try_from(wait).unwrap();
                }
            }
        }
    }

    fn run_until(&mut self, until: &str, takes: SignedDuration, ended: Ended) -> Vec<Ran> {
        let until = at(until);
        std::iter::from_fn(|| if self.now < until { self.step(until, takes, ended) } else { None }).collect()
    }
}

fn planned(planned: &str, missed: u32, overrun: bool) -> Why {
    Why::Planned { planned: at(planned), missed, overrun }
}

#[test]
fn a_year_of_nights_is_backed_up_once_each_through_both_changes_of_the_clock() {
    let zone = TimeZone::get("Europe/Berlin").unwrap();
    let mut life = Life::new(&[(Job::Backup, "30 2 * * *")], "Europe/Berlin", "2026-01-01T00:00Z");
    let ran = life.run_until("2027-01-01T00:00Z", minutes(20), Ended::Done);
    let days: std::collections::BTreeSet<_> = ran.iter().map(|ran| zone.to_datetime(ran.at).date()).collect();
    assert_eq!((ran.len(), days.len()), (365, 365));
    assert!(ran.iter().all(|ran| matches!(ran.why, Why::Planned { missed: 0, overrun: false, planned } if planned == ran.at)));
}

#[test]
fn what_was_missed_in_three_days_without_power_is_made_up_for_once() {
    let mut life = Life::new(&[(Job::Backup, "0 3 * * *"), (Job::Verify, "0 4 * * *")], "UTC", "2026-05-01T00:00Z");
    let before = life.run_until("2026-05-01T12:00Z", minutes(10), Ended::Done);
    assert_eq!(before.iter().map(|ran| ran.job).collect::<Vec<_>>(), [Job::Backup, Job::Verify]);
    life.off(minutes(3 * 24 * 60));
    let after = life.run_until("2026-05-05T02:00Z", minutes(10), Ended::Done);
    let missed = |job, time: &str, day: &str| Ran { job, at: at(time), why: planned(day, 2, false) };
    assert_eq!(after, [missed(Job::Backup, "2026-05-04T12:00Z", "2026-05-04T03:00Z"), missed(Job::Verify, "2026-05-04T12:10Z", "2026-05-04T04:00Z")]);
    // A machine that sleeps looks at the clock when it wakes.
    life.now += minutes(2 * 24 * 60);
    assert_eq!(life.step(at("2026-05-08T00:00Z"), minutes(1), Ended::Done).unwrap().why, planned("2026-05-06T03:00Z", 1, false));
    assert_eq!(life.step(at("2026-05-08T00:00Z"), minutes(1), Ended::Done).unwrap().job, Job::Verify);
}

#[test]
fn a_schedule_that_is_new_or_was_changed_makes_up_for_nothing() {
    let mut life = Life::new(&[(Job::Backup, "0 3 * * *")], "UTC", "2026-05-01T10:00Z");
    assert_eq!(life.run_until("2026-05-02T02:00Z", minutes(1), Ended::Done), []);
    life.schedules = vec![(Job::Backup, "0 12 * * *")];
    life.off(minutes(15 * 60));
    assert_eq!(life.now, at("2026-05-02T17:00Z"));
    assert_eq!(life.step(at("2026-05-03T13:00Z"), minutes(1), Ended::Done).unwrap().at, at("2026-05-03T12:00Z"));
}

#[test]
fn a_run_that_takes_longer_than_its_interval_is_followed_by_one_at_once_that_says_so() {
    let mut life = Life::new(&[(Job::Backup, "0 * * * *")], "UTC", "2026-05-01T00:30Z");
    let ran = life.run_until("2026-05-01T08:00Z", minutes(150), Ended::Done);
    let expected = [
        Ran { job: Job::Backup, at: at("2026-05-01T01:00Z"), why: planned("2026-05-01T01:00Z", 0, false) },
        Ran { job: Job::Backup, at: at("2026-05-01T03:30Z"), why: planned("2026-05-01T03:00Z", 1, true) },
        Ran { job: Job::Backup, at: at("2026-05-01T06:00Z"), why: planned("2026-05-01T06:00Z", 2, true) },
    ];
    assert_eq!(ran, expected);
}

#[test]
fn what_is_due_together_runs_in_order_and_what_is_to_look_at_a_backup_waits_for_it() {
    let all = [(Job::Prune, "0 3 * * *"), (Job::Drill, "0 3 * * *"), (Job::Verify, "0 3 * * *"), (Job::Backup, "0 3 * * *")];
    for jitter in [0, 1_800] {
        let mut life = Life::with_jitter(&all, "UTC", "2026-05-01T00:00Z", Duration::from_secs(jitter));
        for day in 1..28 {
            let ran = life.run_until(&format!("2026-05-{day:02}T23:00Z"), minutes(40), Ended::Done);
            assert_eq!(ran.iter().map(|ran| ran.job).collect::<Vec<_>>()[0], Job::Backup, "{ran:?}");
            assert_eq!(ran.len(), 4, "{ran:?}");
        }
    }
}

#[test]
fn a_backup_that_is_always_due_leaves_room_for_the_others() {
    let mut life = Life::new(&[(Job::Backup, "* * * * *"), (Job::Verify, "0 0 * * *"), (Job::Prune, "0 0 * * *")], "UTC", "2026-05-01T12:00Z");
    let ran = life.run_until("2026-05-03T12:00Z", minutes(7), Ended::Done);
    let of = |job| ran.iter().filter(|ran| ran.job == job).count();
    assert_eq!((of(Job::Verify), of(Job::Prune)), (2, 2));
    assert!(of(Job::Backup) > 400);
}

#[test]
fn a_clock_that_is_set_back_stops_nothing_and_one_that_is_corrected_a_little_repeats_nothing() {
    let mut life = Life::new(&[(Job::Backup, "0 3 * * *")], "UTC", "2041-05-01T00:00Z");
    assert_eq!(life.run_until("2041-05-01T04:00Z", minutes(1), Ended::Done).len(), 1);
    // The battery was empty, and the time came from the network later.
    life.now = at("2026-05-01T12:00Z");
    assert_eq!(life.step(at("2026-05-02T04:00Z"), minutes(1), Ended::Done).unwrap().at, at("2026-05-02T03:00Z"));
    life.now = at("2026-05-02T02:55Z");
    assert_eq!(life.run_until("2026-05-03T02:00Z", minutes(1), Ended::Done), []);
    assert_eq!(life.step(at("2026-05-03T04:00Z"), minutes(1), Ended::Done).unwrap().at, at("2026-05-03T03:00Z"));
}

#[test]
fn jitter_is_uniform_stays_below_its_bound_and_within_the_interval() {
    let mut delays = Vec::new();
    for _ in 0..20 {
        let mut life = Life::with_jitter(&[(Job::Backup, "0 * * * *")], "UTC", "2026-05-01T00:30Z", Duration::from_secs(1_200));
        for ran in life.run_until("2026-05-02T00:30Z", minutes(1), Ended::Done) {
            let Why::Planned { planned, missed: 0, overrun: false } = ran.why else { panic!("{ran:?}") };
            let delay = ran.at.duration_since(planned).as_secs();
            assert!((0..=1_200).contains(&delay), "{ran:?}");
            delays.push(delay);
        }
    }
    assert_eq!(delays.len(), 480);
    let mean = delays.iter().sum::<i64>() / 480;
    // Its deviation is 346 s / √480 = 16 s: six of these.
    assert!((500..=700).contains(&mean), "{mean}");
    assert!(delays.iter().any(|delay| *delay < 120) && delays.iter().any(|delay| *delay > 1_080));
    // A day of jitter for a job of each five minutes: still each of them.
    let mut life = Life::with_jitter(&[(Job::Backup, "*/5 * * * *")], "UTC", "2026-05-01T00:02Z", Duration::from_secs(86_400));
    let mut delays = BTreeMap::new();
    for ran in life.run_until("2026-05-01T06:00Z", minutes(0), Ended::Done) {
        let Why::Planned { planned, missed: 0, .. } = ran.why else { panic!("{ran:?}") };
        assert!(delays.insert(planned, ran.at.duration_since(planned)).is_none());
    }
    assert!(delays.values().all(|delay| (SignedDuration::ZERO..minutes(5)).contains(delay)), "{delays:?}");
    assert_eq!(delays.keys().filter(|planned| **planned <= at("2026-05-01T05:00Z")).count(), 60);
}

#[test]
fn a_failed_backup_is_tried_again_with_growing_waits_until_its_next_time() {
    let mut life = Life::new(&[(Job::Backup, "0 3 * * *"), (Job::Verify, "0 4 * * *")], "UTC", "2026-05-01T00:00Z");
    let ran = life.run_until("2026-05-02T03:30Z", minutes(0), Ended::Failed);
    let times: Vec<_> = ran.iter().filter(|ran| ran.job == Job::Backup).map(|ran| (ran.at.to_string(), ran.why)).collect();
    let retry = |time: &str, attempt| (format!("2026-05-0{time}:00Z"), Why::Retry { attempt });
    let expected = [
        ("2026-05-01T03:00:00Z".to_owned(), planned("2026-05-01T03:00Z", 0, false)),
        retry("1T03:15", 1),
        retry("1T03:45", 2),
        retry("1T04:45", 3),
        retry("1T06:45", 4),
        retry("1T10:45", 5),
        retry("1T16:45", 6),
        retry("1T22:45", 7),
        ("2026-05-02T03:00:00Z".to_owned(), planned("2026-05-02T03:00Z", 0, false)),
        retry("2T03:15", 1),
    ];
    assert_eq!(times, expected);
    // What looks at the backup is not tried again.
    assert_eq!(ran.iter().filter(|ran| ran.job == Job::Verify).count(), 1);
    // A start of the program changes nothing of that, and once it went well there is peace.
    life.off(minutes(1));
    assert_eq!(life.step(at("2026-05-02T12:00Z"), minutes(1), Ended::Done).unwrap().why, Why::Retry { attempt: 2 });
    assert_eq!(life.run_until("2026-05-03T02:59Z", minutes(1), Ended::Done).iter().filter(|ran| ran.job == Job::Backup).count(), 0);
}

#[test]
fn what_somebody_asks_for_runs_at_once_and_the_schedule_goes_on() {
    let mut life = Life::new(&[(Job::Backup, "0 3 * * *")], "UTC", "2026-05-01T12:00Z");
    life.planner.ask(Job::Backup);
    life.planner.ask(Job::Drill);
    assert_eq!(life.planner.next(Job::Backup, life.now), Some(life.now));
    assert_eq!(life.step(at("2026-05-01T13:00Z"), minutes(1), Ended::Done).unwrap().why, Why::Asked);
    assert_eq!(life.planner.next(Job::Backup, life.now), Some(at("2026-05-02T03:00Z")));
    assert_eq!(life.planner.next(Job::Drill, life.now), None);
    assert_eq!(life.step(at("2026-05-02T04:00Z"), minutes(1), Ended::Done).unwrap().at, at("2026-05-02T03:00Z"));
}

#[test]
fn a_backup_that_died_with_the_machine_is_tried_again() {
    let mut life = Life::new(&[(Job::Backup, "0 3 * * *"), (Job::Verify, "30 3 * * *")], "UTC", "2026-05-01T00:00Z");
    life.now = at("2026-05-01T03:00Z");
    let Decision::Run(Job::Backup, why) = life.planner.decide(life.now) else { panic!("it is three") };
    life.planner.began(Job::Backup, life.now, why);
    life.off(minutes(5));
    let ran = life.step(at("2026-05-01T12:00Z"), minutes(1), Ended::Done).unwrap();
    assert_eq!(ran, Ran { job: Job::Backup, at: at("2026-05-01T03:15Z"), why: Why::Retry { attempt: 1 } });
    assert_eq!(life.step(at("2026-05-01T12:00Z"), minutes(1), Ended::Done).unwrap().job, Job::Verify);
    assert_eq!(life.step(at("2026-05-02T02:00Z"), minutes(1), Ended::Done), None);
}
