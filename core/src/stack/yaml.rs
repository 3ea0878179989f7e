//! YAML, with the place of each value in its text: as Compose's files are read, and as they are copied.

use saphyr::{MarkedYaml, ScanError, YamlData, YamlLoader};
use saphyr_parser::{Event, Parser};
use std::collections::BTreeMap;

/// A value and where it stands.
pub(super) type Node<'a> = MarkedYaml<'a>;

/// A key that brings in another mapping's pairs.
pub(super) const MERGE: &str = "<<";

/// How deep mappings may bring in one another.
const MERGES_MAX: usize = 8;

/// How deep values may lie in one another; Compose's own files have ten levels. Whoever loads, walks or drops them takes a piece of the stack for each.
const DEPTH_MAX: usize = 64;

/// How many values a text may have, those that aliases bring in counted each time: few lines of aliases of aliases make as many as there is memory.
const VALUES_MAX: usize = 200_000;

/// The documents of a text. A mapping with a key twice is an error, as it is for Compose; so is one that is deeper than [`DEPTH_MAX`] or has more than
/// [`VALUES_MAX`] values.
pub(super) fn documents(text: &str) -> Result<Vec<Node<'_>>, ScanError> {
    refuse_endless(text)?;
    let mut loader = YamlLoader::default();
    // What a value is taken for is not of interest, only what it says: an `on` stays one.
    loader.early_parse(false);
    Parser::new_from_str(text).load(&mut loader, true)?;
    match loader.error() {
        Some(error) => Err(error.clone()),
        None => Ok(loader.into_documents()),
    }
}

/// How much lies in a value, itself included.
#[derive(Clone, Copy, Default)]
struct Extent {
    levels: usize,
    values: usize,
}

/// An error where values lie deeper in one another than anybody's do, or are more, those that an alias brings in included.
fn refuse_endless(text: &str) -> Result<(), ScanError> {
    // What is open: the number of its anchor, and what lies in it so far.
    let mut open: Vec<(usize, Extent)> = Vec::new();
    let mut anchored: BTreeMap<usize, Extent> = BTreeMap::new();
    let mut values = 0_usize;
    for event in Parser::new_from_str(text) {
        let (event, place) = event?;
        let (anchor, extent) = match event {
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => {
                open.push((anchor, Extent::default()));
                if open.len() > DEPTH_MAX {
                    return Err(ScanError::new_str(place.start, "values lie too deep in one another"));
                }
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some((anchor, inner)) = open.pop() else { continue };
                (anchor, Extent { levels: inner.levels + 1, values: inner.values.saturating_add(1) })
            }
            Event::Scalar(_, _, anchor, _) => (anchor, Extent { levels: 0, values: 1 }),
            Event::Alias(anchor) => (0, anchored.get(&anchor).copied().unwrap_or_default()),
            _ => continue,
        };
        if anchor > 0 {
            anchored.insert(anchor, extent);
        }
        values = values.max(extent.values);
        if let Some((_, outer)) = open.last_mut() {
            outer.levels = outer.levels.max(extent.levels);
            outer.values = outer.values.saturating_add(extent.values);
            values = values.max(outer.values);
        }
        if open.len() + extent.levels > DEPTH_MAX {
            return Err(ScanError::new_str(place.start, "values lie too deep in one another"));
        }
        if values > VALUES_MAX {
            return Err(ScanError::new_str(place.start, "there are too many values, with those that aliases bring in"));
        }
    }
    Ok(())
}

/// What the node is, whatever its tag.
fn data<'a, 'b>(node: &'b Node<'a>) -> &'b YamlData<'a, Node<'a>> {
    match &node.data {
        YamlData::Tagged(_, inner) => data(inner),
        other => other,
    }
}

/// The text of a scalar.
pub(super) fn text<'b>(node: &'b Node<'_>) -> Option<&'b str> {
    if let YamlData::Representation(text, ..) = data(node) { Some(text) } else { None }
}

/// The items of a sequence.
pub(super) fn items<'a, 'b>(node: &'b Node<'a>) -> Option<&'b [Node<'a>]> {
    if let YamlData::Sequence(items) = data(node) { Some(items) } else { None }
}

/// The pairs of a mapping, in their order, without those that it brings in.
pub(super) fn own_pairs<'a, 'b>(node: &'b Node<'a>) -> Vec<(&'b Node<'a>, &'b Node<'a>)> {
    if let YamlData::Mapping(pairs) = data(node) { pairs.iter().collect() } else { Vec::new() }
}

/// The pairs of a mapping whose keys are texts; its own outweigh those that it brings in by `<<`.
pub(super) fn pairs<'a, 'b>(node: &'b Node<'a>) -> Vec<(&'b str, &'b Node<'a>)> {
    let mut found = Vec::new();
    collect(node, &mut found, 0);
    found
}

fn collect<'a, 'b>(node: &'b Node<'a>, found: &mut Vec<(&'b str, &'b Node<'a>)>, depth: usize) {
    let mut brought = Vec::new();
    for (key, value) in own_pairs(node) {
        match text(key) {
            Some(MERGE) => brought.push(value),
            Some(key) if !found.iter().any(|(earlier, _)| *earlier == key) => found.push((key, value)),
            _ => {}
        }
    }
    if depth < MERGES_MAX {
        for node in brought {
            match items(node) {
                Some(several) => several.iter().for_each(|node| collect(node, found, depth + 1)),
                None => collect(node, found, depth + 1),
            }
        }
    }
}

/// The value of `key`.
pub(super) fn get<'a, 'b>(node: &'b Node<'a>, key: &str) -> Option<&'b Node<'a>> {
    pairs(node).into_iter().find(|(name, _)| *name == key).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first one, 8 KB, ended the program by an overflow of its stack.
    #[test]
    fn what_lies_deeper_in_itself_than_anybodys_files_is_refused() {
        let deep = [
            "- ".repeat(4_000) + "x",
            "[".repeat(4_000) + &"]".repeat(4_000),
            "{a: ".repeat(4_000) + &"}".repeat(4_000),
            (1..4_000).fold("- &a0 [x]\n".to_owned(), |text, number| format!("{text}- &a{number} [*a{}]\n", number - 1)),
        ];
        for text in &deep {
            assert!(documents(text).is_err());
        }
    }

    #[test]
    fn aliases_of_aliases_that_make_more_values_than_there_is_memory_for_are_refused() {
        let nine = |number: usize| format!("[{}]", vec![format!("*a{}", number - 1); 9].join(", "));
        let laughs = |levels: usize| (1..levels).fold("a0: &a0 [x]\n".to_owned(), |text, number| format!("{text}a{number}: &a{number} {}\n", nine(number)));
        assert!(documents(&laughs(30)).is_err());
        assert!(documents(&laughs(4)).is_ok());
        // Of a map that is brought in by many, as people write it, there may be many.
        let services =
            (0..500).fold("x-common: &common {restart: always, logging: {driver: local}}\n".to_owned(), |text, n| format!("{text}s{n}:\n  <<: *common\n"));
        assert!(documents(&services).is_ok());
    }

    #[test]
    fn what_is_as_deep_as_may_be_is_read() {
        let lists = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(documents(&lists(DEPTH_MAX)).is_ok());
        assert!(documents(&lists(DEPTH_MAX + 1)).is_err());
        // In a mapping, the other one by an alias in a list.
        let aliased = |levels: usize| format!("a: &a {}\nb: [*a]\nc: *a\n", lists(levels));
        assert!(documents(&aliased(DEPTH_MAX - 2)).is_ok());
        assert!(documents(&aliased(DEPTH_MAX - 1)).is_err());
    }
}
