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

/// The documents of a text. A mapping with a key twice is an error, as it is for Compose; so is one that is deeper than [`DEPTH_MAX`].
pub(super) fn documents(text: &str) -> Result<Vec<Node<'_>>, ScanError> {
    refuse_deep(text)?;
    let mut loader = YamlLoader::default();
    // What a value is taken for is not of interest, only what it says: an `on` stays one.
    loader.early_parse(false);
    Parser::new_from_str(text).load(&mut loader, true)?;
    match loader.error() {
        Some(error) => Err(error.clone()),
        None => Ok(loader.into_documents()),
    }
}

/// An error where values lie deeper in one another than anybody's do, those that an alias brings in included.
fn refuse_deep(text: &str) -> Result<(), ScanError> {
    // What is open: the number of its anchor, and the most levels below it so far.
    let mut open: Vec<(usize, usize)> = Vec::new();
    let mut anchored: BTreeMap<usize, usize> = BTreeMap::new();
    for event in Parser::new_from_str(text) {
        let (event, place) = event?;
        let levels = match event {
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => {
                open.push((anchor, 0));
                0
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some((anchor, levels)) = open.pop() else { continue };
                if anchor > 0 {
                    anchored.insert(anchor, levels + 1);
                }
                levels + 1
            }
            Event::Alias(anchor) => anchored.get(&anchor).copied().unwrap_or_default(),
            _ => continue,
        };
        if open.len() + levels > DEPTH_MAX {
            return Err(ScanError::new_str(place.start, "values lie too deep in one another"));
        }
        if let Some((_, most)) = open.last_mut() {
            *most = levels.max(*most);
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

    /// The loader's own limit holds that.
    #[test]
    fn aliases_of_aliases_that_make_more_values_than_there_is_memory_for_are_refused() {
        let nine = |number: usize| format!("[{}]", vec![format!("*a{}", number - 1); 9].join(", "));
        let laughs = |levels: usize| (1..levels).fold("a0: &a0 [x]\n".to_owned(), |text, number| format!("{text}a{number}: &a{number} {}\n", nine(number)));
        assert!(documents(&laughs(30)).is_err());
        assert!(documents(&laughs(4)).is_ok());
        // Many may bring in the same few.
        let common = "x-common: &common {restart: always, logging: {driver: local}}\n";
        let services = (0..500).fold(common.to_owned(), |text, number| format!("{text}s{number}:\n  <<: *common\n"));
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
