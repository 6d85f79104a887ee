//! Presets: named lists of entries, from the package and from the administrator.

use std::collections::{BTreeMap, BTreeSet};

use super::{EVERYTHING, Egress, NOTHING, entry::Entry};
use crate::name::{self, Name};

/// The presets of the host, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Presets {
    by_name: BTreeMap<Name, Vec<Entry>>,
    faults: Vec<String>,
}

/// Why a text is not the name of a preset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WrongPresetName {
    /// It is no name.
    #[error(transparent)]
    Name(#[from] name::Error),
    /// It has another meaning in policies.
    #[error("`{0}` is a policy of its own, and not the name of a preset")]
    Reserved(Name),
}

impl Presets {
    /// Parses the name of a preset.
    pub fn parse_name(text: &str) -> Result<Name, WrongPresetName> {
        let name: Name = text.parse()?;
        match [NOTHING, EVERYTHING].contains(&name.as_str()) {
            true => Err(WrongPresetName::Reserved(name)),
            false => Ok(name),
        }
    }

    /// Adds a preset. It replaces an earlier one of the same name.
    pub fn add(&mut self, name: Name, entries: Vec<Entry>) {
        self.by_name.insert(name, entries);
    }

    /// Adds what is wrong with a preset, as a sentence without a full stop.
    pub fn add_fault(&mut self, fault: String) {
        self.faults.push(fault);
    }

    /// Returns what is wrong with presets.
    pub fn faults(&self) -> &[String] {
        &self.faults
    }

    /// Returns the names.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.by_name.keys()
    }

    /// Returns the first preset of a policy that does not exist.
    pub fn missing_in<'a>(&self, policy: &'a Egress) -> Option<&'a Name> {
        policy.entries().iter().find_map(|entry| match entry {
            Entry::Preset(name) if !self.by_name.contains_key(name) => Some(name),
            _ => None,
        })
    }

    /// Returns the entries of a policy with presets replaced by theirs, also those that presets name. A preset that
    /// does not exist, or that names itself, adds nothing.
    pub fn expand(&self, policy: &Egress) -> Vec<Entry> {
        self.walk(policy).0.into_iter().cloned().collect()
    }

    /// Returns the presets that a policy and its presets name, and that do not exist, in order.
    pub fn all_missing_in<'a>(&'a self, policy: &'a Egress) -> BTreeSet<&'a Name> {
        let (_, mut named) = self.walk(policy);
        named.retain(|name| !self.by_name.contains_key(*name));
        named
    }

    /// Returns the entries of a policy and its presets, and the presets that it names, also by other presets.
    fn walk<'a>(&'a self, policy: &'a Egress) -> (Vec<&'a Entry>, BTreeSet<&'a Name>) {
        let (mut entries, mut named) = (Vec::new(), BTreeSet::new());
        let mut left: Vec<&Entry> = policy.entries().iter().collect();
        while let Some(entry) = left.pop() {
            match entry {
                Entry::Preset(name) if named.insert(name) => {
                    left.extend(self.by_name.get(name).into_iter().flatten())
                }
                Entry::Preset(_) => {}
                entry => entries.push(entry),
            }
        }
        (entries, named)
    }
}
