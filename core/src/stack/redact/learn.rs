//! What is known of secrets before anything is taken out: which variables stand where a secret is expected, and what containers were given.

use super::super::variables::{self, mentioned};
use super::super::yaml::{self, Node};
use super::{
    IN_VALUES, LISTS_OF_NAMES, LOOKED_AT_BYTES_MAX, NAMED_PARTS, Redactor, SECRET_PARTS, USER, asks_for_secret, is_secret_option, password_of, takes_secrets,
};

impl Redactor {
    /// Learns a secret that is known from elsewhere, a container's environment.
    pub fn learn(&mut self, name: &str, value: &str) {
        if self.is_secret(name) {
            self.keep(value);
            return;
        }
        for user in USER.iter().flat_map(|pattern| pattern.captures_iter(value)).filter_map(|found| found.name("user")) {
            self.keep(password_before_host(user.as_str()));
        }
    }

    /// Learns which variables a Compose file uses as secrets. What is no YAML teaches nothing.
    pub fn learn_names(&mut self, text: &str) {
        for document in yaml::documents(text).iter().flatten() {
            let parts = yaml::own_pairs(document);
            if parts.is_empty() {
                self.learn_names_of(document);
            }
            for (key, value) in parts {
                let name = yaml::text(key).unwrap_or_default();
                if LISTS_OF_NAMES.contains(&name) {
                    self.learn_sources(value);
                }
                let named = if NAMED_PARTS.contains(&name) { yaml::own_pairs(value) } else { Vec::new() };
                if named.is_empty() {
                    self.learn_pair(key, value);
                }
                for (name, described) in named {
                    if yaml::own_pairs(described).is_empty() { self.learn_pair(name, described) } else { self.learn_names_of(described) }
                }
            }
        }
    }

    /// Learns which variables a file of variables uses as secrets: `BASE`, where `DB_PASSWORD=$BASE` comes after it. What is not understood teaches nothing.
    /// Whether one of them is new.
    pub fn learn_variables(&mut self, text: &str) -> bool {
        let known = self.names.len();
        // A value sees earlier ones only, so that what an earlier one is used for is known when it is its turn.
        for assignment in variables::assignments(text).unwrap_or_default().iter().rev().filter(|assignment| assignment.is_expanded()) {
            let raw = assignment.raw(text);
            if takes_secrets(&assignment.name) || self.names.contains(&assignment.name) {
                self.learn_mentioned(raw);
            } else {
                self.learn_within(raw);
            }
        }
        self.names.len() > known
    }

    fn learn_mentioned(&mut self, value: &str) {
        self.names.extend(mentioned(value).into_iter().map(str::to_owned));
    }

    /// Learns all variables below what is a secret as a whole.
    fn learn_all(&mut self, node: &Node<'_>) {
        yaml::text(node).into_iter().for_each(|text| self.learn_mentioned(text));
        yaml::items(node).unwrap_or_default().iter().for_each(|item| self.learn_all(item));
        for (key, value) in yaml::own_pairs(node) {
            self.learn_all(key);
            self.learn_all(value);
        }
    }

    /// `secrets: {db: {environment: NAME}}`, and what is made of variables there.
    fn learn_sources(&mut self, secrets: &Node<'_>) {
        for (_, described) in yaml::own_pairs(secrets) {
            for (key, value) in yaml::own_pairs(described) {
                match yaml::text(key) {
                    Some("environment") => self.names.extend(yaml::text(value).map(str::to_owned)),
                    Some("content") => self.learn_all(value),
                    _ => {}
                }
            }
        }
    }

    fn learn_pair(&mut self, key: &Node<'_>, value: &Node<'_>) {
        match yaml::text(key) {
            Some(key) if takes_secrets(key) && !LISTS_OF_NAMES.contains(&key) => self.learn_all(value),
            _ => self.learn_names_of(value),
        }
    }

    fn learn_names_of(&mut self, node: &Node<'_>) {
        for (key, value) in yaml::own_pairs(node) {
            self.learn_pair(key, value);
        }
        let mut earlier: Vec<&str> = Vec::new();
        for item in yaml::items(node).unwrap_or_default() {
            let text = yaml::text(item).unwrap_or_default();
            let password = earlier.last().and_then(|last| password_of(last, text));
            match (text.split_once('='), password) {
                (_, Some(password)) => self.learn_mentioned(password),
                (Some((name, value)), _) if takes_secrets(name) => self.learn_mentioned(value),
                _ if asks_for_secret(&earlier, text, takes_secrets) => self.learn_mentioned(text),
                _ => self.learn_names_of(item),
            }
            earlier.push(text);
        }
        if let Some(text) = yaml::text(node) {
            self.learn_within(text);
        }
    }

    /// Learns from assignments, options of commands and URLs in a value.
    fn learn_within(&mut self, whole: &str) {
        for pattern in IN_VALUES.iter().filter_map(|pattern| pattern.as_ref()) {
            let (mut at, mut looked_at) = (0, 0_usize);
            while let Some(captures) = pattern.captures_at(whole, at) {
                let Some(place) = SECRET_PARTS.into_iter().find_map(|name| captures.name(name)) else { break };
                looked_at = looked_at.saturating_add(captures.get_match().len());
                if looked_at > LOOKED_AT_BYTES_MAX {
                    break;
                }
                let name = captures.name("name").map(|found| super::bare(found.as_str()));
                match name {
                    None => self.learn_mentioned(password_before_host(place.as_str())),
                    Some(name) if takes_secrets(name) || is_secret_option(name, whole) => self.learn_mentioned(place.as_str()),
                    Some(name) => password_of(name, super::unquoted(place.as_str())).into_iter().for_each(|password| self.learn_mentioned(password)),
                }
                at = place.start();
            }
        }
    }
}

/// What is secret of `NAME:PASSWORD`, which stands before the host in a URL.
pub(super) fn password_before_host(user: &str) -> &str {
    user.split_once(':').map_or(user, |(_, password)| password)
}
