//! Names of albums, users and persons that a dump does not have, and those like them that it has.

use super::FindError;
use crate::database::inventory::{Inventory, InventoryError, Meaning, matches};
use std::fmt;

/// What a name was given for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// An album.
    Album,
    /// A user.
    User,
    /// A person in the pictures.
    Person,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Album => "album",
            Self::User => "user",
            Self::Person => "person",
        })
    }
}

/// Names like a wrong one that are told.
const NEAR_MAX: usize = 5;

/// Of a longer name, so many characters are compared.
const COMPARED_CHARS_MAX: usize = 64;

/// A name that was asked for and is not there yet.
#[derive(Debug, Clone)]
struct Sought {
    what: What,
    name: String,
    /// How far names that are there are from it: the nearest first.
    near: Vec<(usize, String)>,
}

impl Sought {
    /// Looks at one thing of the dump, which goes by any of `known`, the first of which people know it by.
    fn look(&mut self, known: &[&str]) {
        for name in known.iter().filter(|name| !name.is_empty()) {
            let Some(distance) = distance(&self.name, name) else { continue };
            let shown = known.iter().find(|name| !name.is_empty()).unwrap_or(name);
            let place = self.near.partition_point(|(other, _)| *other <= distance);
            if !self.near.iter().any(|(_, other)| other == shown) {
                self.near.insert(place, (distance, (*shown).to_owned()));
                self.near.truncate(NEAR_MAX);
            }
        }
    }
}

/// Names that were asked for and are not there.
#[derive(Debug, Clone)]
pub(super) struct Unknown(Vec<Sought>);

impl Unknown {
    /// Those that are unknown here and there.
    pub(super) fn and(mut self, other: &Self) -> Self {
        self.0.retain(|sought| other.0.iter().any(|other| other.what == sought.what && other.name == sought.name));
        self
    }

    /// An error for the first of them.
    pub(super) fn refuse(self) -> Result<(), FindError> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some(Sought { what, name, near }) => Err(FindError::Unknown { what, name, near: near.into_iter().map(|(_, name)| name).collect() }),
        }
    }
}

/// The names in `meaning` that nothing in `inventory` goes by.
pub(super) fn unknown(inventory: &Inventory, meaning: &Meaning) -> Result<Unknown, InventoryError> {
    let sought = |what: What, names: &[String]| names.iter().map(|name| Sought { what, name: name.clone(), near: Vec::new() }).collect::<Vec<_>>();
    let mut albums = sought(What::Album, &meaning.albums);
    let mut after = 0;
    while !albums.is_empty() {
        let page = inventory.albums_page(after)?;
        if page.is_empty() {
            break;
        }
        after += page.len() as u64;
        page.iter().for_each(|album| meet(&mut albums, &[&album.name, &album.id.to_string()]));
    }
    let mut users = sought(What::User, &meaning.users);
    for user in if users.is_empty() { Vec::new() } else { inventory.users()? } {
        meet(&mut users, &[&user.email, &user.name, user.storage_label.as_deref().unwrap_or_default(), &user.id.to_string()]);
    }
    let mut persons = sought(What::Person, &meaning.persons);
    let mut after = 0;
    while !persons.is_empty() {
        let page = inventory.persons_page(after)?;
        if page.is_empty() {
            break;
        }
        after += page.len() as u64;
        page.iter().for_each(|person| meet(&mut persons, &[&person.name, &person.id.to_string()]));
    }
    albums.extend(users);
    albums.extend(persons);
    Ok(Unknown(albums))
}

/// Takes out of `sought` what goes by one of these names; the last is an id, which nothing is like.
fn meet(sought: &mut Vec<Sought>, known: &[&str]) {
    sought.retain_mut(|sought| {
        if known.iter().any(|name| matches(&sought.name, name)) {
            return false;
        }
        sought.look(known.split_last().map_or(&[], |(_, names)| names));
        true
    });
}

/// How far `name`, or one word of it, is from what was `sought`: 0 where one has the other in it, else the edits between them; `None` where that is too many
/// to be a slip.
fn distance(sought: &str, name: &str) -> Option<usize> {
    let plain = |text: &str| text.to_lowercase().chars().filter(|c| *c != '*').take(COMPARED_CHARS_MAX).collect::<Vec<_>>();
    let (sought, whole) = (plain(sought), plain(name));
    let words = whole.split(|c| c.is_whitespace()).filter(|word| word.len() < whole.len() && word.len() >= 3);
    // A slip in a word is a little worse than one in the name.
    let of_word = words.filter_map(|word| slip(&sought, word)).min().map(|edits| edits + 1);
    slip(&sought, &whole).into_iter().chain(of_word).min()
}

fn slip(sought: &[char], name: &[char]) -> Option<usize> {
    if sought.is_empty() || name.is_empty() {
        return None;
    }
    let (short, long) = if sought.len() <= name.len() { (sought, name) } else { (name, sought) };
    // A letter or two stand in any name.
    if short.len() >= 3 && long.windows(short.len()).any(|part| part == short) {
        return Some(0);
    }
    let edits = edits(sought, name);
    (edits <= (sought.len() / 3).max(1)).then_some(edits)
}

/// Levenshtein's distance.
fn edits(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (line, from) in a.iter().enumerate() {
        let mut diagonal = line;
        let mut left = line + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (to, above) in b.iter().zip(row.iter_mut().skip(1)) {
            let cost = (diagonal + usize::from(from != to)).min(left + 1).min(*above + 1);
            diagonal = *above;
            left = cost;
            *above = cost;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn characters(text: &str) -> Vec<char> {
        text.chars().collect()
    }

    #[test]
    fn edits_are_counted() {
        for (a, b, count) in [("", "", 0), ("abc", "abc", 0), ("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2), ("Été", "Ete", 2)] {
            assert_eq!(edits(&characters(a), &characters(b)), count, "{a} {b}");
            assert_eq!(edits(&characters(b), &characters(a)), count, "{b} {a}");
        }
    }

    #[test]
    fn a_slip_is_near_and_another_word_is_not() {
        for (sought, name) in [
            ("sumer", "Summer"),
            ("sumer", "Our Summer 2024"),
            ("summer", "Summer 🌞 'n' sea"),
            ("anna@lab.tst", "anna@lab.test"),
            ("*sea*x", "seax"),
            ("grandma e", "Grandma É"),
        ] {
            assert!(distance(sought, name).is_some(), "{sought} {name}");
        }
        for (sought, name) in [("summer", "winter"), ("a", "Summer"), ("", "x"), ("*", "x"), ("sea", "")] {
            assert!(distance(sought, name).is_none(), "{sought} {name}");
        }
    }

    #[test]
    fn the_nearest_names_come_first_and_are_few() {
        let mut sought = Sought { what: What::Album, name: "holiday".to_owned(), near: Vec::new() };
        for name in ["holydays", "holidax", "Holiday 2024", "other", "holidax", "holiday a", "holiday b", "holiday c", "holiday d"] {
            sought.look(&[name]);
        }
        let names: Vec<_> = sought.near.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["Holiday 2024", "holiday a", "holiday b", "holiday c", "holiday d"]);
    }
}
