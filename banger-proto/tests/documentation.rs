//! `docs/dbus.md` has every member with its signature, every option key, every error name, and every polkit action with its
//! defaults; and it has no name that does not exist.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{collections::BTreeSet, fs, path::Path};

use banger_proto::bus::{
    ErrorName,
    names::{INTERFACES, SERVICE, action},
};

fn file(path: &str) -> String {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    fs::read_to_string(repository.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn page() -> String {
    file("docs/dbus.md")
}

/// Returns the section of an interface.
fn section(page: &str, interface: &str) -> String {
    let heading = format!("## `{interface}`\n");
    let (_, rest) = page.split_once(&heading).unwrap_or_else(|| panic!("there is no section {interface}"));
    rest.split("\n## ").next().unwrap().to_owned()
}

/// Returns the value of an attribute.
fn attribute<'a>(element: &'a str, name: &str) -> &'a str {
    let (_, rest) = element.split_once(&format!("{name}=\"")).unwrap_or_default();
    rest.split('"').next().unwrap()
}

/// Returns the elements of this kind, with what is in them.
fn elements<'a>(xml: &'a str, kind: &str) -> Vec<&'a str> {
    let (open, close) = (format!("<{kind} "), format!("</{kind}>"));
    // An element without content ends with its own tag.
    let end = |element: &'a str| match element.split_once('>') {
        Some((tag, _)) if tag.ends_with('/') => tag,
        _ => element.split(close.as_str()).next().unwrap(),
    };
    xml.split(open.as_str()).skip(1).map(end).collect()
}

fn arguments(element: &str, direction: &str) -> String {
    let args = elements(element, "arg").into_iter().filter(|arg| attribute(arg, "direction") == direction);
    args.map(|arg| format!("{} {}", attribute(arg, "type"), attribute(arg, "name")))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Returns the beginnings of the rows that an interface must have.
fn rows(xml: &str) -> BTreeSet<String> {
    let method = |element: &&str| {
        let (name, input, output) =
            (attribute(element, "name"), arguments(element, "in"), arguments(element, "out"));
        let returns = if output.is_empty() { String::new() } else { format!(" → {output}") };
        format!("| `{name}({input}){returns}` |")
    };
    let signal = |element: &&str| format!("| `{}({})` |", attribute(element, "name"), arguments(element, ""));
    let property = |element: &&str| {
        let changes = match attribute(element, "value") {
            "const" => "never",
            "false" => "without one",
            _ => "with a signal",
        };
        format!("| `{}` | `{}` | {changes} |", attribute(element, "name"), attribute(element, "type"))
    };
    let methods = elements(xml, "method");
    let signals = elements(xml, "signal");
    let properties = elements(xml, "property");
    let all = methods.iter().map(method).chain(signals.iter().map(signal));
    all.chain(properties.iter().map(property)).collect()
}

#[test]
fn every_member_of_an_interface_is_documented_and_no_other() {
    let page = page();
    for interface in INTERFACES {
        let section = section(&page, interface);
        let expected = rows(&file(&format!("dbus/interfaces/{interface}.xml")));
        assert!(expected.len() > 10, "{interface}: {expected:?}");
        for row in &expected {
            assert!(section.contains(row.as_str()), "{interface} in docs/dbus.md has no row {row}");
        }
        let documented = section.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(documented, expected.len(), "{interface} in docs/dbus.md has rows of other members");
    }
}

#[test]
fn every_error_name_is_documented_and_no_other() {
    let page = page();
    let (_, rest) = page.split_once("\n## Errors\n").unwrap();
    let section = rest.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let documented: BTreeSet<&str> = rows.map(|row| row.split('`').next().unwrap()).collect();
    let names: BTreeSet<&str> = ErrorName::ALL.iter().map(|name| name.as_str()).collect();
    assert_eq!(documented, names);
}

#[test]
fn every_polkit_action_is_documented_with_its_defaults() {
    let (page, policy) = (page(), file("polkit/dev.banger.Manager1.policy"));
    for id in action::ALL {
        let (_, declared) = policy.split_once(&format!("<action id=\"{id}\">")).unwrap();
        let default = |who: &str| {
            declared.split(&format!("<{who}>")).nth(1).unwrap().split('<').next().unwrap().to_owned()
        };
        let [active, inactive, any] = ["allow_active", "allow_inactive", "allow_any"].map(default);
        let row = format!("| `{id}` | `{active}` | `{inactive}` | `{any}` |");
        assert!(page.contains(&row), "docs/dbus.md has no row {row}");
    }
    // An action that is only mentioned exists, too.
    let mentioned = page.split('`').skip(1).step_by(2).filter(|word| {
        ["dev.banger.vm.", "dev.banger.image.", "dev.banger.daemon."]
            .iter()
            .any(|part| word.starts_with(part))
    });
    for word in mentioned {
        assert!(action::ALL.contains(&word), "docs/dbus.md mentions the action {word}");
    }
}

#[test]
fn every_option_key_and_value_is_documented() {
    let page = page();
    let documented: BTreeSet<&str> = page.split('`').skip(1).step_by(2).collect();
    let source = include_str!("../src/bus/option.rs");
    let words: Vec<&str> =
        source.split(": &str = \"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(words.len() > 60, "{words:?}");
    for word in words {
        assert!(documented.contains(word), "docs/dbus.md does not have `{word}`");
    }
}

#[test]
fn the_bus_name_is_documented() {
    assert!(page().contains(&format!("| name | `{SERVICE}` |")));
}

#[test]
fn a_missing_row_is_noticed() {
    let xml = r#"<method name="Do"><arg name="what" type="s" direction="in"/><arg name="job" type="o" direction="out"/>
        </method><method name="Stop"></method><signal name="Done"><arg name="id" type="s"/></signal>
        <property name="Size" type="t" access="read"/>
        <property name="Id" type="s" access="read"><annotation name="x" value="const"/></property>
        <property name="Jobs" type="ao" access="read"><annotation name="x" value="false"/></property>"#;
    let expected = [
        "| `Do(s what) → o job` |",
        "| `Done(s id)` |",
        "| `Id` | `s` | never |",
        "| `Jobs` | `ao` | without one |",
        "| `Size` | `t` | with a signal |",
        "| `Stop()` |",
    ];
    assert_eq!(rows(xml), expected.map(str::to_owned).into());
}
