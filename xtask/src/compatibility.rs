//! What programs of others rely on stays: members of the D-Bus interfaces, keys of the output with `--json`, and exit
//! statuses.
//!
//! The recorded interfaces, schemas and statuses are compared with their earlier versions in git. New ones may come;
//! one that is gone, or has another type, is a finding.

use std::{collections::BTreeSet, path::Path};

use anyhow::Result;
use serde_json::Value;

use crate::run::{command, output};

/// Where the promises are recorded.
const RECORDS: [&str; 3] = ["dbus/interfaces", "docs/schemas", "docs/exit-status.md"];
/// How many of the last commits that changed a record are compared with.
const VERSIONS: &str = "20";
/// What was taken back on purpose, as the findings name it.
const TAKEN_BACK: [&str; 2] = [
    // A detached command has a number, by which its output is read.
    "docs/schemas/log.json: .log: \"string\"",
    // Null if git in the sandbox does not say which files are not committed. An empty list would say that there are none.
    "docs/schemas/fetched.json: .uncommitted: \"array\"",
];

/// Returns what an earlier version promises and the files do not promise any more.
///
/// # Errors
/// If git cannot be asked.
pub fn findings(root: &Path) -> Result<Vec<String>> {
    let git = |arguments: &[&str]| output(command("git", arguments).current_dir(root));
    let mut log = vec!["log", "-n", VERSIONS, "--format=%H", "--"];
    log.extend(RECORDS);
    let mut missing = BTreeSet::new();
    for commit in git(&log)?.lines() {
        let mut list = vec!["ls-tree", "-r", "--name-only", commit, "--"];
        list.extend(RECORDS);
        for file in git(&list)?.lines() {
            let earlier = git(&["show", &format!("{commit}:{file}")])?;
            // A file that is gone keeps none of its promises.
            let now = std::fs::read_to_string(root.join(file)).unwrap_or_default();
            let gone =
                promises(file, &earlier).difference(&promises(file, &now)).cloned().collect::<Vec<_>>();
            missing.extend(gone.into_iter().map(|promise| format!("{file}: {promise}")));
        }
    }
    let taken_back = |finding: &String| TAKEN_BACK.contains(&finding.as_str());
    Ok(missing.into_iter().filter(|finding| !taken_back(finding)).map(|it| format!("{it} is gone")).collect())
}

/// Returns what a record promises, one line each.
fn promises(file: &str, text: &str) -> BTreeSet<String> {
    match Path::new(file).extension().and_then(|extension| extension.to_str()) {
        Some("xml") => members(text),
        Some("json") => {
            let mut keys = BTreeSet::new();
            add_keys("", &serde_json::from_str(text).unwrap_or_default(), &mut keys);
            keys
        }
        _ => statuses(text),
    }
}

/// Returns the members of D-Bus interfaces with the types of their arguments: `Job.Wait in t out s`.
fn members(xml: &str) -> BTreeSet<String> {
    let (mut interface, mut members) = ("", Vec::<String>::new());
    for element in xml.split('<').skip(1) {
        let attribute = |name: &str| {
            let (_, value) = element.split_once(&format!(" {name}=\""))?;
            value.split('"').next()
        };
        match (element.split([' ', '>']).next(), attribute("name")) {
            (Some("interface"), Some(name)) => interface = name.rsplit('.').next().unwrap_or(name),
            (Some(kind @ ("method" | "signal")), Some(name)) => {
                members.push(format!("{kind} {interface}.{name}"))
            }
            (Some("property"), Some(name)) => {
                let of = |name| attribute(name).unwrap_or_default();
                members.push(format!("property {interface}.{name} {} {}", of("type"), of("access")));
            }
            (Some("arg"), _) => {
                if let Some(member) = members.last_mut() {
                    for part in [attribute("direction"), attribute("type")].into_iter().flatten() {
                        *member = format!("{member} {part}");
                    }
                }
            }
            _ => {}
        }
    }
    members.into_iter().collect()
}

/// Adds the keys below a schema with their types: `.ports[].host: integer`.
fn add_keys(path: &str, schema: &Value, keys: &mut BTreeSet<String>) {
    for (name, below) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        keys.insert(format!("{path}: {}", below["type"]));
        add_keys(&path, below, keys);
    }
    if schema["items"].is_object() {
        add_keys(&format!("{path}[]"), &schema["items"], keys);
    }
}

/// Returns the statuses of the first column of the tables.
fn statuses(text: &str) -> BTreeSet<String> {
    let cells = text.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
    cells.map(|cell| format!("status {cell}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn set(lines: &[&str]) -> BTreeSet<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn promises_are_read_from_records() {
        let xml = r#"<node><interface name="dev.banger.Manager1.Job">
            <method name="Wait">
              <arg name="timeout_usec" type="t" direction="in"/>
              <arg name="result" type="s" direction="out"/>
            </method>
            <signal name="Stage"><arg name="stage" type="s"/></signal>
            <property name="Id" type="s" access="read"><annotation name="x" value="const"/></property>
            </interface></node>"#;
        let members = set(&["method Job.Wait in t out s", "signal Job.Stage s", "property Job.Id s read"]);
        assert_eq!(promises("a.xml", xml), members);
        let schema = r#"{"properties": {"ports": {"type": "array", "items": {"properties": {"host": {"type": "integer"}}}}}}"#;
        assert_eq!(promises("a.json", schema), set(&[r#".ports: "array""#, r#".ports[].host: "integer""#]));
        let table = "| status | when |\n|---|---|\n| 0 | success |\n";
        assert_eq!(promises("a.md", table), set(&["status status", "status 0"]));
    }

    #[test]
    fn the_records_have_promises() {
        let root = crate::run::repository();
        for file in
            ["dbus/interfaces/dev.banger.Manager1.VM.xml", "docs/schemas/sandbox.json", "docs/exit-status.md"]
        {
            let found = promises(file, &std::fs::read_to_string(root.join(file)).unwrap());
            assert!(found.len() > 5, "{file}: {found:?}");
        }
    }
}
