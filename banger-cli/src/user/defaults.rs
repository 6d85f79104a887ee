//! The options of commands that can have a default, and the values that each source gives them.
//!
//! The command line counts first. Then come the environment, the profile, and `[defaults]` of the user's settings. After
//! them come the repository's devcontainer.json, the image, and the service.
//!
//! `nat` and `egress` are about the same: what a source says with one of them hides the other one of later sources. If a
//! source has both, `egress` counts.

use std::{collections::BTreeMap, env, ffi::OsString, fmt};

use banger_proto::{
    bus::option::{restart, vmm},
    size::Bytes,
};
use serde_json::Value as Json;

use crate::{
    command::vm::{idle_policy::idle_policy, numbers::positive, size_args::size},
    error::{Error, Result},
};

/// An option that can have a default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Image,
    Kernel,
    Pull,
    Vcpus,
    Memory,
    RootSize,
    DiskSize,
    Nat,
    Egress,
    Restart,
    Autostart,
    Vmm,
    ReadyTimeout,
    Timezone,
    User,
    Proxy,
    Wait,
    Bootstrap,
    AutoPrepare,
    Idle,
}

/// What a key takes.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A text that is not empty.
    Text,
    /// A number greater than zero.
    Count,
    Size,
    /// `true` or `false`.
    Switch,
    /// What happens to a sandbox that idles.
    Idle,
    /// One of these words.
    Word(&'static [&'static str]),
}

/// The keys, with their names in the file. The variable of the environment is the name in capitals after `BANGER_`.
const KEYS: [(Key, &str, Kind); 20] = [
    (Key::Image, "image", Kind::Text),
    (Key::Kernel, "kernel", Kind::Text),
    (Key::Pull, "pull", Kind::Word(&["missing", "never", "always"])),
    (Key::Vcpus, "vcpus", Kind::Count),
    (Key::Memory, "memory", Kind::Size),
    (Key::RootSize, "root_size", Kind::Size),
    (Key::DiskSize, "disk_size", Kind::Size),
    (Key::Nat, "nat", Kind::Switch),
    (Key::Egress, "egress", Kind::Text),
    (Key::Restart, "restart", Kind::Word(&[restart::NO, restart::ON_FAILURE, restart::ALWAYS])),
    (Key::Autostart, "autostart", Kind::Switch),
    (Key::Vmm, "vmm", Kind::Word(&[vmm::AUTO, vmm::FIRECRACKER, vmm::QEMU])),
    (Key::ReadyTimeout, "ready_timeout", Kind::Count),
    (Key::Timezone, "timezone", Kind::Text),
    (Key::User, "user", Kind::Text),
    (Key::Proxy, "proxy", Kind::Switch),
    (Key::Wait, "wait", Kind::Word(&["agent", "init", "boot"])),
    (Key::Bootstrap, "bootstrap", Kind::Switch),
    (Key::AutoPrepare, "auto_prepare", Kind::Switch),
    (Key::Idle, "idle", Kind::Idle),
];

impl Key {
    /// Returns every key.
    pub fn all() -> impl Iterator<Item = Self> {
        KEYS.into_iter().map(|(key, ..)| key)
    }

    /// Returns the key with this name in the file.
    pub fn named(name: &str) -> Option<Self> {
        KEYS.into_iter().find(|(_, known, _)| *known == name).map(|(key, ..)| key)
    }

    /// Returns its name in the file.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    fn variable(self) -> String {
        format!("BANGER_{}", self.name().to_ascii_uppercase())
    }

    /// Parses a value that is written as text.
    pub fn parse(self, text: &str) -> Result<Value, String> {
        match self.row().2 {
            Kind::Text if text.is_empty() => Err("it is empty".to_owned()),
            Kind::Text => Ok(Value::Text(text.to_owned())),
            Kind::Count => positive(text).map(Value::Count),
            Kind::Idle => idle_policy(text).map(|_| Value::Text(text.to_owned())),
            Kind::Size => size(text).map(Value::Size),
            Kind::Switch => match text {
                "true" | "1" => Ok(Value::Switch(true)),
                "false" | "0" => Ok(Value::Switch(false)),
                _ => Err("it must be true or false".to_owned()),
            },
            Kind::Word(words) if words.contains(&text) => Ok(Value::Text(text.to_owned())),
            Kind::Word(words) => Err(format!("it must be one of {}", words.join(", "))),
        }
    }

    /// Returns whether the file has its values without quotes.
    pub fn is_unquoted(self) -> bool {
        matches!(self.row().2, Kind::Count | Kind::Switch)
    }

    fn row(self) -> (Key, &'static str, Kind) {
        // They are in the order of the type.
        KEYS[self as usize]
    }
}

/// The value of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Count(u32),
    Size(Bytes),
    Switch(bool),
}

impl Value {
    /// Returns the value for programs. Sizes are in bytes.
    pub fn json(&self) -> Json {
        match self {
            Self::Text(text) => text.clone().into(),
            Self::Count(count) => (*count).into(),
            Self::Size(Bytes(size)) => (*size).into(),
            Self::Switch(on) => (*on).into(),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => size.fmt(f),
            other => other.json().fmt(f),
        }
    }
}

/// The values that one source gives.
pub type Values = BTreeMap<Key, Value>;

/// Returns the key that says otherwise what this one does.
fn rival(key: Key) -> Option<Key> {
    match key {
        Key::Nat => Some(Key::Egress),
        Key::Egress => Some(Key::Nat),
        _ => None,
    }
}

/// Reads the values in the environment. An empty variable counts as unset.
pub fn of_environment(variable: impl Fn(&str) -> Option<OsString>) -> Result<Vec<(Values, String)>> {
    let mut found = Vec::new();
    for key in Key::all() {
        let name = key.variable();
        let Some(text) = variable(&name).filter(|text| !text.is_empty()) else { continue };
        let value = key.parse(&text.to_string_lossy());
        let value = value.map_err(|why| Error::Refused(format!("cannot use the variable {name}: {why}")))?;
        found.push((Values::from([(key, value)]), name));
    }
    // Each variable is a source. Of two rivals the one that counts comes first.
    found.sort_by_key(|(values, _)| !values.contains_key(&Key::Egress));
    Ok(found)
}

/// Returns a variable of the caller's environment.
pub fn of_caller(name: &str) -> Option<OsString> {
    env::var_os(name)
}

/// The values in effect.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Defaults {
    values: BTreeMap<Key, (Value, String)>,
    /// Whether a nearer `nat` hides an egress policy.
    hides_egress: bool,
}

impl Defaults {
    /// Merges sources, the first one counting most. Each has a name for people.
    pub fn of(sources: impl IntoIterator<Item = (Values, String)>) -> Self {
        let mut merged: BTreeMap<Key, (Value, String)> = BTreeMap::new();
        let mut hides_egress = false;
        for (mut values, origin) in sources {
            if values.contains_key(&Key::Egress) {
                values.remove(&Key::Nat);
            }
            hides_egress |= values.contains_key(&Key::Egress) && merged.contains_key(&Key::Nat);
            values.retain(|key, _| rival(*key).is_none_or(|rival| !merged.contains_key(&rival)));
            for (key, value) in values {
                merged.entry(key).or_insert_with(|| (value, origin.clone()));
            }
        }
        Self { values: merged, hides_egress }
    }

    /// Returns whether a nearer `nat` hides an egress policy.
    pub fn hides_egress(&self) -> bool {
        self.hides_egress
    }

    /// Returns a value and its source.
    pub fn get(&self, key: Key) -> Option<(&Value, &str)> {
        self.values.get(&key).map(|(value, origin)| (value, origin.as_str()))
    }

    /// Returns a text or a word.
    pub fn text(&self, key: Key) -> Option<&str> {
        match self.values.get(&key) {
            Some((Value::Text(text), _)) => Some(text),
            _ => None,
        }
    }

    pub fn count(&self, key: Key) -> Option<u32> {
        match self.values.get(&key) {
            Some((Value::Count(count), _)) => Some(*count),
            _ => None,
        }
    }

    pub fn size(&self, key: Key) -> Option<Bytes> {
        match self.values.get(&key) {
            Some((Value::Size(size), _)) => Some(*size),
            _ => None,
        }
    }

    pub fn switch(&self, key: Key) -> Option<bool> {
        match self.values.get(&key) {
            Some((Value::Switch(on), _)) => Some(*on),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::ValueEnum;

    use super::*;
    use crate::{client::pull::PullPolicy, command::vm::Wait};

    #[test]
    fn keys_are_in_the_order_of_their_type() {
        for (at, (key, name, _)) in KEYS.into_iter().enumerate() {
            assert_eq!((key as usize, key.name()), (at, name));
            assert_eq!(Key::named(name), Some(key));
        }
        assert_eq!(Key::named("colour"), None);
    }

    #[test]
    fn words_are_those_of_the_options() {
        fn words<T: ValueEnum>() -> Vec<String> {
            let names = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
            names.map(|word| word.get_name().to_owned()).collect()
        }
        for (key, mut expect) in [(Key::Pull, words::<PullPolicy>()), (Key::Wait, words::<Wait>())] {
            let Kind::Word(known) = key.row().2 else { panic!() };
            let mut known = known.to_vec();
            known.sort_unstable();
            expect.sort_unstable();
            assert_eq!(known, expect);
        }
    }

    #[test]
    fn the_first_source_that_has_a_key_counts() {
        let source = |values: &[(Key, &str)], name: &str| {
            let values = values.iter().map(|(key, text)| (*key, key.parse(text).unwrap()));
            (values.collect::<Values>(), name.to_owned())
        };
        let merged = Defaults::of([
            source(&[(Key::Image, "a")], "first"),
            source(&[(Key::Image, "b"), (Key::Nat, "true"), (Key::Memory, "2GiB")], "second"),
            source(&[(Key::Nat, "false"), (Key::Vcpus, "3")], "third"),
        ]);
        assert_eq!((merged.text(Key::Image), merged.switch(Key::Nat)), (Some("a"), Some(true)));
        assert_eq!((merged.size(Key::Memory), merged.count(Key::Vcpus)), (Some(Bytes::gib(2)), Some(3)));
        assert_eq!(merged.text(Key::User), None);
        let origin = |key| merged.get(key).unwrap().1;
        assert_eq!([Key::Image, Key::Nat, Key::Vcpus].map(origin), ["first", "second", "third"]);
    }

    #[test]
    fn the_nearest_source_decides_about_nat_and_egress() {
        let check = |sources: &[&[(Key, &str)]], expect: (Option<bool>, Option<&str>)| {
            let sources = sources.iter().map(|values| {
                let values = values.iter().map(|(key, text)| (*key, key.parse(text).unwrap()));
                (values.collect::<Values>(), String::new())
            });
            let merged = Defaults::of(sources);
            assert_eq!((merged.switch(Key::Nat), merged.text(Key::Egress)), expect);
        };
        const NAT: (Key, &str) = (Key::Nat, "true");
        const NO_NAT: (Key, &str) = (Key::Nat, "false");
        const GIT: (Key, &str) = (Key::Egress, "git");
        check(&[&[NAT], &[GIT]], (Some(true), None));
        check(&[&[NO_NAT], &[GIT]], (Some(false), None));
        check(&[&[GIT], &[NAT]], (None, Some("git")));
        check(&[&[(Key::Egress, "none")], &[NAT]], (None, Some("none")));
        check(&[&[NAT, GIT], &[NO_NAT]], (None, Some("git")));
        check(&[&[(Key::Image, "x")], &[GIT], &[NAT]], (None, Some("git")));
        check(&[&[], &[NAT]], (Some(true), None));
        let of = |values: &[(Key, &str)]| {
            let values = values.iter().map(|(key, text)| (*key, key.parse(text).unwrap()));
            (values.collect::<Values>(), String::new())
        };
        assert!(Defaults::of([of(&[NO_NAT]), of(&[GIT])]).hides_egress());
        assert!(!Defaults::of([of(&[GIT]), of(&[NAT])]).hides_egress());
        assert!(
            !Defaults::of([of(&[NAT, GIT])]).hides_egress() && !Defaults::of([of(&[NO_NAT])]).hides_egress()
        );
        let both = |name: &str| Some(if name == "BANGER_NAT" { "1".into() } else { "git".into() });
        let both =
            of_environment(|name| both(name).filter(|_| ["BANGER_NAT", "BANGER_EGRESS"].contains(&name)));
        let merged = Defaults::of(both.unwrap());
        assert_eq!((merged.switch(Key::Nat), merged.text(Key::Egress)), (None, Some("git")));
    }

    #[test]
    fn variables_of_the_environment_are_parsed_and_empty_ones_ignored() {
        let read = |set: &[(&str, &str)]| {
            let set: BTreeMap<String, OsString> =
                set.iter().map(|(name, text)| ((*name).to_owned(), (*text).into())).collect();
            of_environment(|name| set.get(name).cloned()).map_err(|error| error.to_string())
        };
        let found = read(&[("BANGER_DISK_SIZE", "9GiB"), ("BANGER_NAT", "1"), ("BANGER_IMAGE", "")]);
        let merged = Defaults::of(found.unwrap());
        assert_eq!((merged.size(Key::DiskSize), merged.switch(Key::Nat)), (Some(Bytes::gib(9)), Some(true)));
        assert_eq!(merged.text(Key::Image), None);
        assert_eq!(merged.get(Key::Nat).unwrap().1, "BANGER_NAT");
        let refused = read(&[("BANGER_VCPUS", "many")]).unwrap_err();
        assert_eq!(refused, "cannot use the variable BANGER_VCPUS: it must be a whole number");
    }
}
