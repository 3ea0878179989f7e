use super::*;
use jiff::civil::Time;

const ZONES: [&str; 6] = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "America/Sao_Paulo", "UTC"];

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap()
}

fn calendar(text: &str, name: &str) -> Calendar {
    Calendar::new(text, zone(name)).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// All times in (`from`, `to`].
fn all(calendar: &Calendar, from: Timestamp, to: Timestamp) -> Vec<Timestamp> {
    std::iter::successors(calendar.next_after(from), |time| calendar.next_after(*time)).take_while(|time| *time <= to).collect()
}

/// Each minute of a year, by elapsed time, and what the zone's clock shows then.
fn minutes(zone: &TimeZone, year: i16) -> impl Iterator<Item = (Timestamp, DateTime)> {
    let begin = zone.to_timestamp(DateTime::constant(year, 1, 1, 0, 0, 0, 0)).unwrap();
    let end = zone.to_timestamp(DateTime::constant(year + 1, 1, 1, 0, 0, 0, 0)).unwrap();
    let zone = zone.clone();
    std::iter::successors(Some(begin), |time| Some(*time + jiff::SignedDuration::from_mins(1)))
        .take_while(move |time| *time < end)
        .map(move |time| (time, zone.to_datetime(time)))
}

/// A year as somebody would live it who looks at the clock on the wall each minute: what a schedule by the wall should name, worked out without it.
/// `fits` is asked of each minute that there is, when it comes first, and of each that the clock leaves out.
fn lived(minutes: &[(Timestamp, DateTime)], fits: impl Fn(DateTime) -> bool) -> Vec<Timestamp> {
    let minute = jiff::SignedDuration::from_mins(1);
    let mut times = Vec::new();
    let mut expected = minutes[0].1;
    for (time, civil) in minutes {
        // Before what is expected, the clock was put back; after it, something was left out.
        let mut named = false;
        while expected <= *civil {
            named |= fits(expected);
            expected += minute;
        }
        times.extend(named.then_some(*time));
    }
    times
}

#[test]
fn a_year_minute_by_minute_with_both_changes_of_the_clock_names_each_time_once() {
    type Fits = fn(DateTime) -> bool;
    let schedules: [(&str, Fits); 8] = [
        ("0 3 * * *", |t| t.time() == Time::constant(3, 0, 0, 0)),
        ("30 2 * * *", |t| t.time() == Time::constant(2, 30, 0, 0)),
        ("15 2 * * *", |t| t.time() == Time::constant(2, 15, 0, 0)),
        ("*/20 1-2 * * *", |t| t.minute() % 20 == 0 && matches!(t.hour(), 1 | 2)),
        ("45 1 * * *", |t| t.time() == Time::constant(1, 45, 0, 0)),
        ("@daily", |t| t.time() == Time::constant(0, 0, 0, 0)),
        ("0 2 * * SUN", |t| t.time() == Time::constant(2, 0, 0, 0) && t.weekday() == jiff::civil::Weekday::Sunday),
        ("* 2 * MAR-APR,10,11 *", |t| t.hour() == 2 && matches!(t.month(), 3 | 4 | 10 | 11)),
    ];
    for name in ZONES {
        let zone = zone(name);
        let minutes: Vec<_> = minutes(&zone, 2026).collect();
        for (text, fits) in schedules {
            let calendar = calendar(text, name);
            let begin = zone.to_timestamp(DateTime::constant(2026, 1, 1, 0, 0, 0, 0)).unwrap();
            let end = zone.to_timestamp(DateTime::constant(2027, 1, 1, 0, 0, 0, 0)).unwrap();
            let second = jiff::SignedDuration::from_secs(1);
            let named = all(&calendar, begin - second, end - second);
            let expected = lived(&minutes, fits);
            assert!(named == expected, "{text} in {name}: {:?}", named.iter().zip(&expected).find(|(named, expected)| named != expected));
            assert!(named.len() >= 52, "{text} in {name}");
        }
    }
}

#[test]
fn schedules_of_every_hour_go_by_elapsed_time_all_the_year() {
    type Fits = fn(DateTime) -> bool;
    let schedules: [(&str, Fits); 4] = [
        ("* * * * *", |_| true),
        ("@hourly", |t| t.minute() == 0),
        ("*/15 * * * *", |t| t.minute() % 15 == 0),
        ("10 */2 * * *", |t| t.minute() == 10 && t.hour() % 2 == 0),
    ];
    for name in ZONES {
        let minutes: Vec<_> = minutes(&zone(name), 2026).collect();
        for (text, fits) in schedules {
            let calendar = calendar(text, name);
            let expected: Vec<_> = minutes.iter().filter(|(_, civil)| fits(*civil)).map(|(time, _)| *time).collect();
            let second = jiff::SignedDuration::from_secs(1);
            let named = all(&calendar, expected[0] - second, *expected.last().unwrap());
            assert!(named == expected, "{text} in {name}: {:?}", named.iter().zip(&expected).find(|(named, expected)| named != expected));
        }
    }
}

#[test]
fn a_time_that_is_skipped_counts_as_the_moment_right_after_and_one_that_comes_twice_as_the_first() {
    let spring = calendar("30 2 * * *", "Europe/Berlin");
    assert_eq!(spring.next_after(at("2026-03-28T12:00Z")), Some(at("2026-03-29T01:00Z")));
    assert_eq!(spring.next_after(at("2026-03-29T01:00Z")), Some(at("2026-03-30T00:30Z")));
    assert_eq!(spring.next_after(at("2026-10-24T12:00Z")), Some(at("2026-10-25T00:30Z")));
    assert_eq!(spring.next_after(at("2026-10-25T00:30Z")), Some(at("2026-10-26T01:30Z")));
    // Asked within the second of the two hours.
    assert_eq!(spring.next_after(at("2026-10-25T01:10Z")), Some(at("2026-10-26T01:30Z")));
    // Half an hour: 02:00 becomes 02:30.
    let howe = calendar("15 2 * * *", "Australia/Lord_Howe");
    assert_eq!(howe.next_after(at("2026-10-03T10:00Z")), Some(at("2026-10-03T15:30Z")));
    assert_eq!(howe.next_after(at("2026-04-04T10:00Z")), Some(at("2026-04-04T15:45Z")));
    // 01:45 comes twice there.
    assert_eq!(calendar("45 1 * * *", "Australia/Lord_Howe").next_after(at("2026-04-04T10:00Z")), Some(at("2026-04-04T14:45Z")));
    assert_eq!(calendar("45 1 * * *", "Australia/Lord_Howe").next_after(at("2026-04-04T14:45Z")), Some(at("2026-04-05T15:15Z")));
}

#[test]
fn what_was_passed_is_the_last_time_however_long_ago_the_first_was() {
    let nightly = calendar("0 3 * * *", "UTC");
    assert_eq!(nightly.passed(at("2026-05-01T03:00Z"), at("2026-05-01T23:00Z"), 100), None);
    assert_eq!(nightly.passed(at("2026-05-01T03:00Z"), at("2026-05-04T03:00Z"), 100), Some((at("2026-05-04T03:00Z"), 3)));
    let minutely = calendar("* * * * *", "Europe/Berlin");
    assert_eq!(minutely.passed(at("1999-01-01T00:00Z"), at("2026-05-04T03:00:30Z"), 100), Some((at("2026-05-04T03:00Z"), 100)));
    let yearly = calendar("@yearly", "UTC");
    assert_eq!(yearly.passed(at("1950-06-01T00:00Z"), at("2026-05-04T00:00Z"), 10), Some((at("2026-01-01T00:00Z"), 10)));
    // The clock went back.
    assert_eq!(nightly.passed(at("2030-05-01T03:00Z"), at("2026-05-01T23:00Z"), 100), None);
}

#[test]
fn what_is_no_schedule_is_refused_with_what_to_write() {
    for (text, says) in [
        ("", "empty"),
        ("0 3 * *", "five fields"),
        ("0 0 3 * * *", "five fields"),
        ("60 3 * * *", "0 3 * * *"),
        ("0 24 * * *", "0 3 * * *"),
        ("0 3 * * MOO", "0 3 * * *"),
        ("@reboot", "@daily"),
        ("soon", "@daily"),
        ("0 3 30 2 *", "no time ever fits it"),
    ] {
        let error = Calendar::new(text, TimeZone::UTC).unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
    for text in ["0 3 * * *", "*/10 1-5/2 1,15 jan-MAR mon-fri", "0 3 * * 7", "@Daily", "@midnight", "  @weekly ", "0 3 L * *"] {
        calendar(text, "UTC");
    }
}
