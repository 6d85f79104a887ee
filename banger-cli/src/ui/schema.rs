//! JSON schemas of the output with `--json`. The files in `docs/schemas/`, one for each kind of object, are embedded
//! in this program.

use serde_json::{Value, json};

/// How often the described object is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Once.
    One,
    /// As the items of an array.
    Array,
    /// On each line.
    Lines,
}

/// Embeds a file of `docs/schemas/`.
macro_rules! of {
    ($name:literal) => {
        include_str!(concat!("../../../docs/schemas/", $name, ".json"))
    };
}

/// The output of each verb.
const VERBS: &[(&str, Form, &str)] = &[
    ("agent", Form::One, of!("run")),
    ("agent list", Form::Array, of!("agent_preset")),
    ("agent show", Form::One, of!("agent_preset")),
    ("config show", Form::One, of!("settings")),
    ("context list", Form::Array, of!("context")),
    ("context show", Form::One, of!("context")),
    ("doctor", Form::Array, of!("check")),
    ("events", Form::Lines, of!("event")),
    ("image build", Form::Lines, of!("build_event")),
    ("image cache prune", Form::One, of!("pruned")),
    ("image delete", Form::Array, of!("outcome")),
    ("image export", Form::One, of!("exported")),
    ("image list", Form::Array, of!("listed_image")),
    ("image promote", Form::Array, of!("outcome")),
    ("image pull", Form::One, of!("image")),
    ("image prune", Form::Array, of!("outcome")),
    ("image push", Form::One, of!("pushed")),
    ("image register", Form::One, of!("image")),
    ("image rename", Form::One, of!("image")),
    ("image tag", Form::One, of!("image")),
    ("image show", Form::One, of!("image")),
    ("kernel delete", Form::Array, of!("outcome")),
    ("kernel import", Form::One, of!("kernel")),
    ("kernel list", Form::Array, of!("listed_kernel")),
    ("kernel pull", Form::One, of!("kernel")),
    ("kernel rename", Form::One, of!("kernel")),
    ("kernel show", Form::One, of!("kernel")),
    ("version", Form::One, of!("version")),
    ("vm commands", Form::Array, of!("command")),
    ("vm commit", Form::One, of!("image")),
    ("vm create", Form::One, of!("sandbox")),
    ("vm delete", Form::Array, of!("outcome")),
    ("vm egress", Form::One, of!("egress")),
    ("vm exec", Form::One, of!("detached")),
    ("vm files", Form::Array, of!("file")),
    ("vm fork", Form::Array, of!("outcome")),
    ("vm forward", Form::Array, of!("forward")),
    ("vm health", Form::Array, of!("health")),
    ("vm pause", Form::Array, of!("outcome")),
    ("vm resume", Form::Array, of!("outcome")),
    ("vm suspend", Form::Array, of!("outcome")),
    ("vm unpause", Form::Array, of!("outcome")),
    ("vm kill", Form::Array, of!("outcome")),
    ("vm list", Form::Array, of!("sandbox")),
    ("vm ping", Form::Lines, of!("ping")),
    ("vm ports", Form::Array, of!("listening_port")),
    ("vm prune", Form::Array, of!("outcome")),
    ("vm publish", Form::Array, of!("published_port")),
    ("vm rename", Form::One, of!("sandbox")),
    ("vm restart", Form::Array, of!("outcome")),
    ("vm run", Form::One, of!("run")),
    ("vm sessions", Form::Array, of!("command")),
    ("vm snapshot create", Form::One, of!("snapshot")),
    ("vm snapshot list", Form::Array, of!("snapshot")),
    ("vm set", Form::Array, of!("outcome")),
    ("vm show", Form::One, of!("sandbox")),
    ("vm start", Form::Array, of!("outcome")),
    ("vm stats", Form::Array, of!("stats")),
    ("vm stop", Form::Array, of!("outcome")),
    ("vm top", Form::Array, of!("process")),
    ("vm wait", Form::Array, of!("waited")),
    ("vm workspace export", Form::One, of!("export")),
    ("vm workspace fetch", Form::One, of!("fetched")),
    ("vm workspace prepare", Form::One, of!("prepared")),
    ("vm workspace sync", Form::Lines, of!("synced")),
];

/// Files that others refer to.
const SHARED: &[(&str, &str)] = &[
    ("available.json", of!("available")),
    ("image.json", of!("image")),
    ("kernel.json", of!("kernel")),
    ("sandbox.json", of!("sandbox")),
];

/// Returns the verbs that have a schema.
pub fn verbs() -> impl Iterator<Item = &'static str> {
    VERBS.iter().map(|(verb, ..)| *verb)
}

/// Returns the self-contained schema of a verb's output (JSON Schema, draft 2020-12), if it has one. Aliases, and verbs
/// of `banger vm` without `vm`, name the same verbs as on the command line.
pub fn of_verb(verb: &str) -> Option<Value> {
    let (group, word) = verb.rsplit_once(' ').unwrap_or(("", verb));
    let word = match word {
        "rm" => "delete",
        "ls" | "ps" => "list",
        "inspect" => "show",
        word => word,
    };
    let verb = format!("{group} {word}");
    let verb = verb.trim_start();
    let is_it = |known: &str| known == verb || known.strip_prefix("vm ") == Some(verb);
    let (verb, form, text) = VERBS.iter().find(|(known, ..)| is_it(known))?;
    let item = with_references(parse(text));
    let mut schema = match form {
        Form::One | Form::Lines => item,
        Form::Array => json!({"type": "array", "items": item}),
    };
    if let Value::Object(fields) = &mut schema {
        let title = match form {
            Form::Lines => format!("A line of banger {verb} --json"),
            Form::One | Form::Array => format!("banger {verb} --json"),
        };
        fields.insert("title".to_owned(), title.into());
        fields.insert("$schema".to_owned(), "https://json-schema.org/draft/2020-12/schema".into());
    }
    Some(schema)
}

/// Returns the keys of the objects that a verb prints.
pub fn keys(verb: &str) -> Vec<String> {
    let Some((.., text)) = VERBS.iter().find(|(known, ..)| *known == verb) else { return Vec::new() };
    let schema = with_references(parse(text));
    let alternatives = schema["anyOf"].as_array().cloned().unwrap_or_else(|| vec![schema]);
    let mut keys = Vec::new();
    for key in
        alternatives.iter().filter_map(|schema| schema["properties"].as_object()).flat_map(|keys| keys.keys())
    {
        if !keys.contains(key) {
            keys.push(key.clone());
        }
    }
    keys
}

/// Parses an embedded file; a test parses each of them.
fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

/// Replaces references in a schema with their targets.
fn with_references(schema: Value) -> Value {
    match schema {
        Value::Object(fields) => {
            let file = fields.get("$ref").and_then(Value::as_str);
            match SHARED.iter().find(|(name, _)| Some(*name) == file) {
                Some((_, text)) => parse(text),
                None => fields.into_iter().map(|(key, value)| (key, with_references(value))).collect(),
            }
        }
        Value::Array(items) => items.into_iter().map(with_references).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{collections::BTreeSet, fs, path::PathBuf};

    use clap::{Command, CommandFactory};

    use super::*;
    use crate::cli::Cli;

    /// Verbs whose standard output has no form of ours, or that have no output.
    const WITHOUT: &[(&str, &str)] = &[
        ("completion", "a script for a shell"),
        ("context add", "the name"),
        ("context delete", "the names"),
        ("context use", "the name"),
        ("metrics", "OpenMetrics text"),
        ("mcp", "the messages of a protocol, which are JSON"),
        ("schema", "a schema is JSON already, and the list of verbs is a word a line"),
        ("ssh-config", "a file for ssh"),
        ("vm attach", "what the session writes"),
        ("vm cp", "nothing, or an archive"),
        ("vm snapshot restore", "nothing"),
        ("vm egress allow", "nothing"),
        ("vm egress deny", "nothing"),
        ("vm logs", "what the guest wrote"),
        ("vm shell", "what the shell writes"),
        ("vm snapshot delete", "nothing"),
        ("vm ssh", "what ssh writes"),
        ("vm unpublish", "nothing"),
    ];

    /// Collects each verb that does something, and whether it has the option `--json`.
    fn verbs_of(command: &Command, words: &[&str], into: &mut Vec<(String, bool)>) {
        let verbs: Vec<_> = command
            .get_subcommands()
            .filter(|verb| !verb.is_hide_set() && verb.get_name() != "help")
            .collect();
        if verbs.is_empty() || command.is_args_conflicts_with_subcommands_set() {
            let has = command.get_arguments().any(|arg| arg.get_long() == Some("json"));
            into.push((words.join(" "), has));
        }
        for verb in verbs {
            verbs_of(verb, &[words, &[verb.get_name()]].concat(), into);
        }
    }

    #[test]
    fn aliases_have_the_schema_of_their_verb() {
        assert_eq!(of_verb("kernel rm"), of_verb("kernel delete"));
        assert_eq!(of_verb("vm ls"), of_verb("vm list"));
        for alias in ["ls", "ps", "vm ps"] {
            assert_eq!(of_verb(alias), of_verb("vm list"), "{alias}");
        }
        assert_eq!(of_verb("inspect"), of_verb("vm show"));
        assert!(of_verb("kernel rm").is_some() && of_verb("kernel erase").is_none());
    }

    #[test]
    fn every_verb_that_prints_has_a_schema() {
        let mut all = Vec::new();
        verbs_of(&Cli::command(), &[], &mut all);
        let of_vm: BTreeSet<String> =
            all.iter().filter_map(|(verb, _)| Some(verb.strip_prefix("vm ")?.to_owned())).collect();
        all.retain(|(verb, _)| !of_vm.contains(verb));
        assert!(all.len() > 30, "{all:?}");
        let without: BTreeSet<&str> = WITHOUT.iter().map(|(verb, _)| *verb).collect();
        let with: BTreeSet<&str> = verbs().collect();
        assert_eq!(with.len(), VERBS.len());
        for (verb, json) in &all {
            let verb = verb.as_str();
            assert_eq!(*json, with.contains(verb), "{verb} has --json, or a schema in VERBS, but not both");
            assert_ne!(*json, without.contains(verb), "{verb} needs --json, or a reason in WITHOUT");
        }
        let known: BTreeSet<&str> = all.iter().map(|(verb, _)| verb.as_str()).collect();
        assert!(with.union(&without).all(|verb| known.contains(verb)), "{with:?} {without:?}");
    }

    #[test]
    fn every_schema_file_is_used_and_complete() {
        for verb in verbs() {
            let schema = of_verb(verb).unwrap();
            let inner = if schema["type"] == "array" { &schema["items"] } else { &schema };
            assert!(inner["description"].is_string(), "{verb}");
            assert!(!schema.to_string().contains("\"$ref\""), "{verb}");
        }
        let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/schemas");
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            let mut used = VERBS.iter().map(|(.., used)| *used).chain(SHARED.iter().map(|(_, used)| *used));
            assert!(used.any(|used| used == text), "{} is of no use", path.display());
        }
    }
}
