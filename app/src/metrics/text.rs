//! The text that Prometheus reads, and that is read here again to carry over what another command wrote.

use super::{METRICS, PREFIX, metric};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// One value of a metric.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The metric's name, without the prefix.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

impl Sample {
    /// A sample with these labels.
    #[must_use]
    pub fn new(name: &'static str, labels: &[(&str, &str)], value: f64) -> Self {
        Self { name: name.to_owned(), labels: labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(), value }
    }

    /// The value of a label.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }
}

/// `samples` as text, each metric with its help, in the order of the table.
#[must_use]
pub fn render(samples: &[Sample]) -> String {
    let mut text = String::new();
    for metric in METRICS {
        let name = format!("{PREFIX}{}", metric.name);
        let mut of_metric = samples.iter().filter(|sample| sample.name == metric.name).peekable();
        if of_metric.peek().is_some() {
            let help = metric.help.replace('\\', "\\\\").replace('\n', "\\n");
            // Nothing can go wrong with writing into a string.
            write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n").unwrap_or_default();
        }
        for sample in of_metric {
            let labels: Vec<_> = sample.labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            writeln!(text, "{name}{labels} {}", sample.value).unwrap_or_default();
        }
    }
    text
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// What [`render`] wrote; lines that are not understood are passed over.
#[must_use]
pub fn parse(text: &str) -> Vec<Sample> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let line = line.strip_prefix(PREFIX)?;
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at_checked(end)?;
    metric(name)?;
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    let value = rest.trim().parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// The labels up to the closing brace, and what follows it.
fn labels(mut text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        text = text.trim_start_matches(',');
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, quoted) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        let end = loop {
            match characters.next()? {
                (end, '"') => break end,
                (_, '\\') => match characters.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        labels.insert(name.to_owned(), value);
        text = quoted.get(end.saturating_add(1)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_again_and_what_is_odd_is_passed_over() {
        let samples = [
            Sample::new("last_snapshot_timestamp_seconds", &[("repository", "/a \"b\\\n{c},d")], 1_763_816_827.0),
            Sample::new("assets", &[("repository", "r"), ("verdict", "missing")], 0.0),
            Sample::new("assets", &[("repository", "r"), ("verdict", "proven")], 23_033.0),
            Sample::new("last_run_duration_seconds", &[], 0.25),
        ];
        let text = render(&samples);
        assert_eq!(parse(&text), samples);
        assert_eq!(text.matches("# TYPE immich_backup_assets gauge").count(), 1, "{text}");
        let odd = ["", "immich_backup_assets", "immich_backup_assets{", "immich_backup_assets{a=\"b} 1", "immich_backup_assets{} x", "node_load1 2", "\u{0}"];
        for line in odd {
            assert_eq!(parse(line), [], "{line}");
        }
    }
}
