//! The environment that a devcontainer.json asks for.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::fill::{self, Guest};

/// Limit on the variables.
const MAX_VARIABLES: usize = 256;
/// Limit on their names and values, in bytes. A request to the agent holds them with a command.
const MAX_LENGTH: usize = 16 << 10;

/// Names of variables with their values; `None` unsets one.
pub type Wanted = BTreeMap<String, Option<String>>;

/// Variables to set, or to unset.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Environment {
    /// `containerEnv`.
    pub container: Wanted,
    /// `remoteEnv`, which may refer to the environment of the sandbox.
    pub remote: Wanted,
    /// Names of variables that may hold something of the user's environment. Nothing but a command gets them.
    pub private: BTreeSet<String>,
}

/// The variables of a workspace's commands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Variables {
    /// Those to set.
    pub set: BTreeMap<String, String>,
    /// Those to unset.
    pub unset: BTreeSet<String>,
    /// Those that are too long.
    pub left: Vec<String>,
}

impl Environment {
    /// Returns whether a value refers to the environment of the sandbox.
    pub fn needs_environment(&self) -> bool {
        self.container
            .values()
            .chain(self.remote.values())
            .flatten()
            .any(|text| fill::needs_environment(text))
    }

    /// Returns the variables that do not refer to the environment of the sandbox.
    pub fn without_references(&self) -> Self {
        let plain = |all: &Wanted| {
            let refers = |value: &Option<String>| value.as_deref().is_some_and(fill::needs_environment);
            all.iter()
                .filter(|(_, value)| !refers(value))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect()
        };
        let private = self.private.clone();
        Self { container: plain(&self.container), remote: plain(&self.remote), private }
    }

    /// Fills in what was left open, `containerEnv` first.
    pub fn resolve(&self, guest: &mut Guest) -> Variables {
        let mut all = Variables::default();
        for (name, value) in &self.container {
            all.put(name, value.as_ref().map(|text| guest.fill(text)));
        }
        all.unset.iter().for_each(|name| drop(guest.env.remove(name)));
        guest.env.extend(all.set.clone());
        for (name, value) in &self.remote {
            all.put(name, value.as_ref().map(|text| guest.fill(text)));
        }
        all
    }
}

impl Variables {
    fn put(&mut self, name: &str, value: Option<String>) {
        let Some(value) = value else {
            self.set.remove(name);
            self.unset.insert(name.to_owned());
            return;
        };
        let before = self.set.get(name).map_or(0, |value| name.len() + value.len());
        let length: usize = self.set.iter().map(|(name, value)| name.len() + value.len()).sum();
        if length - before + name.len() + value.len() > MAX_LENGTH || value.contains('\0') {
            return self.left.push(name.to_owned());
        }
        self.unset.remove(name);
        self.set.insert(name.to_owned(), value);
    }
}

/// Returns the names of variables whose values, not filled in yet, refer to an environment: that of the user, or that
/// of the sandbox, which may have got it from the user's.
pub fn private(fields: &Map<String, Value>) -> impl Iterator<Item = String> {
    const REFERENCES: [&str; 3] = ["${localEnv", "${env", "${containerEnv"];
    let refers = |text: &str| REFERENCES.iter().any(|reference| text.contains(reference));
    let private = fields.iter().filter(move |(_, value)| value.as_str().is_some_and(refers));
    private.map(|(name, _)| name.clone())
}

/// Reads variables. The second value lists those that cannot be used, with the reason.
pub fn read(
    key: &str,
    fields: &Map<String, Value>,
    filled: &impl Fn(&str) -> Result<String, String>,
) -> (Wanted, Vec<(String, String)>) {
    let (mut variables, mut ignored) = (BTreeMap::new(), Vec::new());
    for (name, value) in fields {
        let value = match value {
            _ if name.is_empty() || name.contains(['=', '\0']) => {
                Err("it is not a name for a variable".to_owned())
            }
            _ if variables.len() == MAX_VARIABLES => Err(format!("there are more than {MAX_VARIABLES}")),
            Value::Null => Ok(None),
            Value::String(text) => filled(text).map(Some),
            Value::Bool(value) => Ok(Some(value.to_string())),
            Value::Number(number) => Ok(Some(match number.as_f64().filter(|_| number.is_f64()) {
                Some(number) => number.to_string(),
                None => number.to_string(),
            })),
            Value::Array(_) | Value::Object(_) => Err("it is not a string".to_owned()),
        };
        match value {
            Ok(value) => drop(variables.insert(name.clone(), value)),
            Err(why) => ignored.push((format!("{key}.{name}"), why)),
        }
    }
    (variables, ignored)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, Option<&str>)]) -> Wanted {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned))).collect()
    }

    #[test]
    fn remote_variables_see_those_of_the_container() {
        let environment = Environment {
            private: BTreeSet::new(),
            container: variables(&[("A", Some("${containerEnv:PATH}/a")), ("GONE", None), ("B", Some("1"))]),
            remote: variables(&[
                ("PATH", Some("${containerEnv:PATH}:${containerEnv:A}")),
                ("B", None),
                ("C", Some("${containerEnv:GONE:unset}")),
            ]),
        };
        assert!(environment.needs_environment());
        let plain = environment.without_references();
        assert!(!plain.needs_environment() && (plain.container.len(), plain.remote.len()) == (2, 1));
        let env = [("PATH", "/bin"), ("GONE", "x")];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let all = environment.resolve(&mut Guest { id: String::new(), env: env.into() });
        let set: Vec<_> = all.set.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(set, ["A=/bin/a", "C=unset", "PATH=/bin:/bin/a"]);
        assert_eq!(all.unset.into_iter().collect::<Vec<_>>(), ["B", "GONE"]);
    }

    #[test]
    fn what_the_guest_fills_in_is_bounded() {
        let remote = variables(&[("A", Some("${containerEnv:LONG}${containerEnv:LONG}")), ("B", Some("b"))]);
        let environment = Environment { remote, ..Environment::default() };
        let env = BTreeMap::from([("LONG".to_owned(), "x".repeat(MAX_LENGTH / 2))]);
        let all = environment.resolve(&mut Guest { id: String::new(), env });
        assert_eq!((all.left, all.set.len()), (vec!["A".to_owned()], 1));
    }
}
