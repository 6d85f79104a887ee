//! The conditions of `banger vm list --filter`.

use serde_json::Value;

use crate::ui::suggest;

/// A condition on sandboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// It is in this state.
    State(&'static str),
    /// The name with this key contains this text.
    Name(&'static str, String),
    /// It has this label, with this value if given.
    Label(String, Option<String>),
}

/// What can be asked for.
pub const KEYS: [&str; 5] = ["state", "name", "image", "kernel", "label"];
/// The states of a sandbox (`docs/lifecycle.md`).
pub const STATES: [&str; 8] =
    ["created", "starting", "running", "paused", "stopping", "stopped", "failed", "deleting"];

impl Filter {
    /// Parses `WHAT=VALUE`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        // Users of docker write `status`.
        let key = if key == "status" { "state" } else { key };
        if !KEYS.contains(&key) {
            return Err(unknown("key", key, &KEYS));
        }
        if value.is_empty() {
            return Err(format!("{key} needs a value: write {key}=VALUE"));
        }
        let (name, value) = (value.to_owned(), value);
        Ok(match key {
            "state" => match STATES.iter().find(|state| **state == value) {
                Some(state) => Self::State(state),
                None => return Err(unknown("state", value, &STATES)),
            },
            "image" => Self::Name("image_name", name),
            "kernel" => Self::Name("kernel_name", name),
            "label" => match value.split_once('=') {
                Some((key, value)) => Self::Label(key.to_owned(), Some(value.to_owned())),
                None => Self::Label(name, None),
            },
            _ => Self::Name("name", name),
        })
    }

    fn fits(&self, sandbox: &Value) -> bool {
        match self {
            Self::State(state) => sandbox["state"] == **state,
            Self::Name(key, part) => sandbox[key].as_str().is_some_and(|name| name.contains(part.as_str())),
            Self::Label(key, wanted) => {
                let value = sandbox["labels"][key].as_str();
                value.is_some_and(|value| wanted.as_deref().is_none_or(|wanted| wanted == value))
            }
        }
    }

    /// Returns whether another condition is an alternative to this one.
    fn is_alternative(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::State(_), Self::State(_)) => true,
            (Self::Name(one, _), Self::Name(other, _)) => one == other,
            _ => false,
        }
    }
}

/// Returns whether a sandbox fits the conditions, as in docker: any of those about the same thing, and all labels.
pub fn fit_all(filters: &[Filter], sandbox: &Value) -> bool {
    filters.iter().all(|filter| {
        filter.fits(sandbox)
            || filters.iter().any(|other| filter.is_alternative(other) && other.fits(sandbox))
    })
}

/// Returns the message about an unknown word.
fn unknown(what: &str, word: &str, known: &[&str]) -> String {
    let suggestion = suggest::closest(word, known.iter().copied());
    let suggestion = suggestion.map(|word| format!("did you mean {word}? ")).unwrap_or_default();
    format!("there is no {what} {word:?}; {suggestion}choose one of {}", known.join(", "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::ui::schema;

    #[test]
    fn filters_are_read_as_in_docker() {
        let sandbox = json!({
            "state": "running", "name": "web-1", "image_name": "debian-bookworm", "kernel_name": "host",
            "labels": {"team": "web"},
        });
        let fit = |texts: &[&str]| {
            let filters: Vec<Filter> = texts.iter().map(|text| Filter::parse(text).unwrap()).collect();
            fit_all(&filters, &sandbox)
        };
        for (texts, expect) in [
            (&[][..], true),
            (&["state=running"], true),
            (&["status=running"], true),
            (&["state=stopped"], false),
            (&["name=web"], true),
            (&["name=b-1"], true),
            (&["name=Web"], false),
            (&["image=bookworm", "kernel=host"], true),
            (&["image=alpine", "name=web"], false),
            (&["state=stopped", "state=running"], true),
            (&["name=db", "name=web"], true),
            (&["name=db", "state=running"], false),
            (&["label=team"], true),
            (&["label=team=web"], true),
            (&["label=team=db"], false),
            (&["label=team", "label=other"], false),
        ] {
            assert_eq!(fit(texts), expect, "{texts:?}");
        }
    }

    #[test]
    fn unknown_keys_and_states_are_refused_with_a_suggestion() {
        for (text, part) in [
            ("colour=red", "there is no key \"colour\"; choose one of state, name"),
            ("nmae=web", "did you mean name?"),
            ("state=runing", "there is no state \"runing\"; did you mean running? choose one of created"),
            ("state=exited", "there is no state \"exited\"; choose one of created"),
            ("running", "there is no key \"running\""),
            ("state=", "state needs a value: write state=VALUE"),
            ("label", "label needs a value: write label=VALUE"),
        ] {
            let message = Filter::parse(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn the_states_are_those_of_the_schema() {
        let schema = schema::of_verb("vm show").unwrap();
        assert_eq!(schema["properties"]["state"]["enum"], json!(STATES));
    }
}
