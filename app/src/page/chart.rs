//! How the backup grew, drawn on the server: two lines, and the same as a table for who does not see them.

use super::words::{bytes, clock, count};
use immich_backup_core::repository::manifest::SizeAt;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use maud::{Markup, PreEscaped, html};

/// Points of a line; of more snapshots, every so many are drawn, the last always.
const POINTS_MAX: usize = 160;
/// Rows of the table.
const ROWS_MAX: usize = 24;
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 132.0;
/// Room for the line's own width.
const MARGIN: f64 = 5.0;

/// Every so many, so that there are at most `max`, with the last.
fn thinned<T: Copy>(all: &[T], max: usize) -> Vec<T> {
    let step = all.len().div_ceil(max).max(1);
    let mut kept: Vec<T> = all.iter().rev().step_by(step).copied().collect();
    kept.reverse();
    kept
}

/// The end of the axis: one, two or five, with noughts.
fn ceiling(value: u64) -> u64 {
    let mut unit = 1_u64;
    loop {
        for step in [1, 2, 5] {
            let end = unit.saturating_mul(step);
            if end >= value || end == u64::MAX {
                return end;
            }
        }
        unit = unit.saturating_mul(10);
    }
}

/// Both lines and the table; nothing for fewer than two snapshots.
pub fn growth(sizes: &[SizeAt], zone: &TimeZone) -> Markup {
    let [first, .., last] = sizes else { return html! {} };
    let points = thinned(sizes, POINTS_MAX);
    html! {
        section aria-labelledby="growth" {
            h2 #growth { "How it grew" }
            div.charts {
                (line("Size", &points, |size| size.bytes, bytes, zone))
                (line("Files", &points, |size| size.files, count, zone))
            }
            details {
                summary { "The same as a table" }
                div.scroll tabindex="0" role="region" aria-label="Size and files by snapshot" {
                    table {
                        caption.unseen { "Size and files of snapshots, from " (clock(first.taken_at, zone)) " to " (clock(last.taken_at, zone)) }
                        thead { tr { th scope="col" { "Snapshot" } th.number scope="col" { "Size" } th.number scope="col" { "Files" } } }
                        tbody {
                            @for size in thinned(sizes, ROWS_MAX).iter().rev() {
                                tr { th scope="row" { (clock(size.taken_at, zone)) } td.number { (bytes(size.bytes)) } td.number { (count(size.files)) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a place on the screen")]
fn line(title: &str, points: &[SizeAt], of: impl Fn(&SizeAt) -> u64, show: impl Fn(u64) -> String, zone: &TimeZone) -> Markup {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return html! {} };
    // With room above the line for what the axis says.
    let highest = points.iter().map(&of).max().unwrap_or(0).max(1);
    let top = ceiling(highest.saturating_add(highest / 6));
    let second = |at: Timestamp| at.as_second() as f64;
    let (start, span) = (second(first.taken_at), (second(last.taken_at) - second(first.taken_at)).max(1.0));
    let x = |at: Timestamp| MARGIN + ((second(at) - start) / span).clamp(0.0, 1.0) * (WIDTH - 2.0 * MARGIN);
    let y = |value: u64| HEIGHT - MARGIN - value as f64 / top as f64 * (HEIGHT - 2.0 * MARGIN);
    let path: Vec<_> = points.iter().map(|point| format!("{:.1} {:.1}", x(point.taken_at), y(of(point)))).collect();
    let line = format!("M{}", path.join("L"));
    let floor = HEIGHT - MARGIN;
    let area = format!("{line}L{:.1} {floor}L{:.1} {floor}Z", x(last.taken_at), x(first.taken_at));
    let middle = y(top / 2);
    let (end_x, end_y) = (x(last.taken_at), y(of(last)));
    let label = format!("{title}: from {} on {} to {} on {}", show(of(first)), clock(first.taken_at, zone), show(of(last)), clock(last.taken_at, zone));
    html! {
        figure.chart {
            figcaption { span { (title) } strong { (show(of(last))) } }
            div.plot {
                svg role="img" aria-label=(label) viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) preserveAspectRatio="none" {
                    (PreEscaped(format!(
                        r#"<path class="grid" d="M0 {MARGIN}H{WIDTH}M0 {middle:.1}H{WIDTH}M0 {floor}H{WIDTH}" vector-effect="non-scaling-stroke"/><path class="area" d="{area}"/><path class="line" d="{line}" vector-effect="non-scaling-stroke"/><path class="end" d="M{end_x:.1} {end_y:.1}h.01" vector-effect="non-scaling-stroke"/>"#
                    )))
                }
                span.axis aria-hidden="true" { (show(top)) }
            }
            p.ends aria-hidden="true" { span { (day(first.taken_at, zone)) } span { (day(last.taken_at, zone)) } }
        }
    }
}

fn day(at: Timestamp, zone: &TimeZone) -> String {
    at.to_zoned(zone.clone()).strftime("%-d %b %Y").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(count: i64) -> Vec<SizeAt> {
        let at = |day: i64| SizeAt {
            sequence: day.unsigned_abs(),
            taken_at: Timestamp::from_second(1_700_000_000 + day * 86_400).unwrap(),
            files: 1_000 + day.unsigned_abs(),
            bytes: 9_000_000 * day.unsigned_abs(),
        };
        (0..count).map(at).collect()
    }

    #[test]
    fn a_line_has_so_many_points_at_most_and_always_the_last_and_the_table_says_the_same() {
        let shown = growth(&sizes(3_650), &TimeZone::UTC).into_string();
        assert!(shown.len() < 20_000, "{}", shown.len());
        assert_eq!(shown.matches("<tr>").count(), ROWS_MAX + 1);
        assert!(shown.contains("<td class=\"number\">4,649</td>") && shown.contains("to 4,649 on"), "{shown}");
        assert!(!shown.contains("NaN") && !shown.contains("inf") && !shown.contains("style="));
        assert_eq!(growth(&sizes(1), &TimeZone::UTC).into_string(), "");
        // Two of the same time, and nothing in them.
        let same = vec![SizeAt { files: 0, bytes: 0, ..sizes(1)[0] }; 2];
        assert!(growth(&same, &TimeZone::UTC).into_string().contains("<svg"));
    }

    #[test]
    fn an_axis_ends_at_a_round_number() {
        assert_eq!([1, 3, 10, 11, 999, 5_000_001].map(ceiling), [1, 5, 10, 20, 1_000, 10_000_000]);
        assert!(ceiling(u64::MAX) >= u64::MAX / 2);
    }
}
