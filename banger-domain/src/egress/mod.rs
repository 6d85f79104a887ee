//! Egress policies: which names and addresses beyond the host a sandbox may reach.
//!
//! A policy is nothing, everything, or a list of entries: presets, names, addresses and networks, each with a port if
//! need be. [`AllowList`] is a policy whose presets were replaced by their entries. The name server refuses every
//! other name, and the packet filter every other address ([`grants`]).
//!
//! ```text
//!   words of a request ── Egress ── presets ── AllowList ──┬── names: ports_of(name)
//!                          stored                          └── packets: nets, and addresses of allowed names
//! ```

pub mod address;
pub mod allow_list;
pub mod entry;
pub mod grants;
pub mod host_name;
pub mod log;
pub mod nets;
pub mod preset;

use core::fmt;

use self::entry::{Entry, WrongEntry};

/// The most entries of one policy, before presets are replaced by theirs.
pub const MAX_ENTRIES: usize = 256;
/// The word for a policy that allows nothing.
pub const NOTHING: &str = "none";
/// The word for a policy that allows everything.
pub const EVERYTHING: &str = "all";

/// What a sandbox may reach beyond the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Egress {
    /// Nothing.
    #[default]
    Nothing,
    /// Everything.
    Everything,
    /// What the entries allow; at least one, in order, each once.
    Only(Vec<Entry>),
}

/// Why words are not a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An entry is malformed.
    #[error(transparent)]
    Entry(#[from] WrongEntry),
    /// `none` or `all` is among other entries.
    #[error("{0} cannot be combined with other entries")]
    NotAlone(&'static str),
    /// There are too many entries.
    #[error("an egress policy can have at most {MAX_ENTRIES} entries, not {0}")]
    TooMany(usize),
    /// What should be removed is not there.
    #[error("{entry} is not in the egress policy, which is {policy}")]
    NotThere {
        /// The entry.
        entry: String,
        /// The policy.
        policy: Egress,
    },
}

impl Egress {
    /// Parses the words of a policy: `none`, `all`, or entries. No words allow nothing.
    pub fn parse<Word: AsRef<str>>(words: &[Word]) -> Result<Self, Error> {
        if words.len() > MAX_ENTRIES {
            return Err(Error::TooMany(words.len()));
        }
        for (word, policy) in [(NOTHING, Self::Nothing), (EVERYTHING, Self::Everything)] {
            match words.iter().any(|given| given.as_ref() == word) {
                true if words.iter().all(|given| given.as_ref() == word) => return Ok(policy),
                true => return Err(Error::NotAlone(word)),
                false => {}
            }
        }
        let entries = words.iter().map(|word| word.as_ref().parse()).collect::<Result<Vec<Entry>, _>>()?;
        Ok(Self::of(entries))
    }

    /// Returns the policy of these entries.
    pub fn of(mut entries: Vec<Entry>) -> Self {
        entries.sort();
        entries.dedup();
        if entries.is_empty() { Self::Nothing } else { Self::Only(entries) }
    }

    /// Returns this policy with the entries of another one.
    pub fn with(&self, more: &Self) -> Result<Self, Error> {
        if [self, more].contains(&&Self::Everything) {
            return Ok(Self::Everything);
        }
        let joined = Self::of([self.entries(), more.entries()].concat());
        match joined.entries().len() {
            0..=MAX_ENTRIES => Ok(joined),
            count => Err(Error::TooMany(count)),
        }
    }

    /// Returns this policy without the entries of another one, all of which it must have.
    pub fn without(&self, less: &Self) -> Result<Self, Error> {
        if (self, less) == (&Self::Everything, &Self::Everything) {
            return Ok(Self::Nothing);
        }
        let words = self.words();
        if let Some(entry) = less.words().into_iter().find(|word| !words.contains(word)) {
            return Err(Error::NotThere { entry, policy: self.clone() });
        }
        let mut left = self.clone();
        if let Self::Only(entries) = &mut left {
            entries.retain(|entry| !less.entries().contains(entry));
            left = Self::of(std::mem::take(entries));
        }
        Ok(left)
    }

    /// Returns the words of the policy: none, `all`, or its entries.
    pub fn words(&self) -> Vec<String> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Everything => vec![EVERYTHING.to_owned()],
            Self::Only(entries) => entries.iter().map(Entry::to_string).collect(),
        }
    }

    /// Returns the entries, if the policy is a list.
    pub fn entries(&self) -> &[Entry] {
        match self {
            Self::Only(entries) => entries,
            Self::Nothing | Self::Everything => &[],
        }
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str(NOTHING),
            policy => f.write_str(&policy.words().join(" ")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_policy_is_nothing_everything_or_a_list() {
        let check = |words: &[&str], expect: Result<&str, &str>| {
            let parsed = Egress::parse(words);
            let printed = parsed.as_ref().map(Egress::to_string).map_err(Error::to_string);
            assert_eq!(printed, expect.map(str::to_owned).map_err(str::to_owned), "{words:?}");
            if let Ok(policy) = parsed {
                assert_eq!(Egress::parse(&policy.words()), Ok(policy), "it does not read back");
            }
        };
        check(&[], Ok("none"));
        check(&["none"], Ok("none"));
        check(&["all", "all"], Ok("all"));
        check(&["git", "b.example", "a.example", "git"], Ok("git a.example b.example"));
        check(&["all", "git"], Err("all cannot be combined with other entries"));
        check(&["git", "none"], Err("none cannot be combined with other entries"));
        check(&["git", ""], Err("\"\" is neither a preset, a host, an address nor a network"));
    }

    #[test]
    fn entries_are_added_and_removed() {
        let policy = |words: &str| Egress::parse(&words.split_whitespace().collect::<Vec<_>>()).unwrap();
        let check = |now: &str, more: &str, less: &str, expect: &str| {
            let changed = policy(now).with(&policy(more)).and_then(|changed| changed.without(&policy(less)));
            assert_eq!(changed.map_or_else(|error| error.to_string(), |policy| policy.to_string()), expect);
        };
        check("none", "git a.example", "", "git a.example");
        check("git", "git a.example", "", "git a.example");
        check("all", "git", "", "all");
        check("git", "all", "", "all");
        check("git a.example:443", "", "A.example.:443/tcp", "git");
        check("git 2001:db8::/32", "", "2001:DB8::/32 git", "none");
        check("all", "", "all", "none");
        check("git", "", "github.com", "github.com is not in the egress policy, which is git");
        check("git", "", "all", "all is not in the egress policy, which is git");
        check("all", "", "git", "git is not in the egress policy, which is all");
        check("none", "", "git", "git is not in the egress policy, which is none");
        let half: String = (0..MAX_ENTRIES).map(|n| format!("a{n}.example ")).collect();
        check(&half, "git", "", "an egress policy can have at most 256 entries, not 257");
    }

    #[test]
    fn a_list_of_ten_thousand_entries_is_refused() {
        let words: Vec<String> = (0..10_000).map(|n| format!("host{n}.example")).collect();
        assert_eq!(Egress::parse(&words), Err(Error::TooMany(10_000)));
        assert!(Egress::parse(&words[..MAX_ENTRIES]).is_ok());
    }
}
