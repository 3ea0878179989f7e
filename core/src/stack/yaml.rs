//! YAML, with the place of each value in its text: as Compose's files are read, and as they are copied.

use saphyr::{MarkedYaml, ScanError, YamlData, YamlLoader};
use saphyr_parser::Parser;

/// A value and where it stands.
pub(super) type Node<'a> = MarkedYaml<'a>;

/// A key that brings in another mapping's pairs.
pub(super) const MERGE: &str = "<<";

/// How deep mappings may bring in one another.
const MERGES_MAX: usize = 8;

/// The documents of a text. A mapping with a key twice is an error, as it is for Compose.
pub(super) fn documents(text: &str) -> Result<Vec<Node<'_>>, ScanError> {
    let mut loader = YamlLoader::default();
    // What a value is taken for is not of interest, only what it says: an `on` stays one.
    loader.early_parse(false);
    Parser::new_from_str(text).load(&mut loader, true)?;
    match loader.error() {
        Some(error) => Err(error.clone()),
        None => Ok(loader.into_documents()),
    }
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
