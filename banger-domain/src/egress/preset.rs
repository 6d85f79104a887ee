//! Presets: named lists of entries, from the package and from the administrator.

use std::collections::{BTreeMap, BTreeSet};

use super::{Egress, entry::Entry};
use crate::name::Name;

/// The presets of the host, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Presets(BTreeMap<Name, Vec<Entry>>);

impl Presets {
    /// Adds a preset. It replaces an earlier one of the same name.
    pub fn add(&mut self, name: Name, entries: Vec<Entry>) {
        self.0.insert(name, entries);
    }

    /// Returns the names.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.0.keys()
    }

    /// Returns the first preset of a policy that does not exist.
    pub fn missing_in<'a>(&self, policy: &'a Egress) -> Option<&'a Name> {
        policy.entries().iter().find_map(|entry| match entry {
            Entry::Preset(name) if !self.0.contains_key(name) => Some(name),
            _ => None,
        })
    }

    /// Returns the entries of a policy with presets replaced by theirs, also those that presets name. A preset that
    /// does not exist, or that names itself, adds nothing.
    pub fn expand(&self, policy: &Egress) -> Vec<Entry> {
        let (mut expanded, mut seen) = (Vec::new(), BTreeSet::new());
        let mut left: Vec<&Entry> = policy.entries().iter().collect();
        while let Some(entry) = left.pop() {
            match entry {
                Entry::Preset(name) if seen.insert(name) => {
                    left.extend(self.0.get(name).into_iter().flatten())
                }
                Entry::Preset(_) => {}
                entry => expanded.push(entry.clone()),
            }
        }
        expanded
    }
}
