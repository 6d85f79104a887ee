//! The installed configuration files match the names in this crate.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{collections::BTreeSet, fs, path::Path};

use banger_proto::bus::names::{INTERFACES, SERVICE, action};

fn file(path: &str) -> String {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    fs::read_to_string(repository.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns every text between `before` and the next quotation mark.
fn quoted<'a>(text: &'a str, before: &str) -> Vec<&'a str> {
    text.split(before).skip(1).map(|rest| rest.split('"').next().unwrap()).collect()
}

fn set<'a>(words: impl IntoIterator<Item = &'a str>) -> BTreeSet<&'a str> {
    words.into_iter().collect()
}

/// Returns the values of a key in a file in systemd's format.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

#[test]
fn the_policy_declares_every_action_and_no_other() {
    let policy = file("polkit/dev.banger.Manager1.policy");
    let declared = quoted(&policy, "<action id=\"");
    assert_eq!(set(declared.iter().copied()), set(action::ALL));
    assert_eq!(declared.len(), action::ALL.len(), "an action is declared twice");
}

#[test]
fn every_implied_action_exists() {
    let policy = file("polkit/dev.banger.Manager1.policy");
    for implied in policy.split("policykit.imply\">").skip(1) {
        let implied = implied.split('<').next().unwrap();
        for action in implied.split_ascii_whitespace() {
            assert!(action::ALL.contains(&action), "{action}");
        }
    }
}

#[test]
fn actions_on_objects_of_others_need_authentication() {
    let policy = file("polkit/dev.banger.Manager1.policy");
    for declared in policy.split("<action id=\"").skip(1) {
        let id = declared.split('"').next().unwrap();
        let default = |who: &str| declared.split(&format!("<{who}>")).nth(1)?.split('<').next();
        for who in ["allow_any", "allow_inactive"] {
            assert_eq!(default(who), Some("auth_admin"), "{who} of {id}");
        }
        let active = default("allow_active").unwrap();
        assert_eq!(active == "yes", action::OF_GROUP.contains(&id), "{id}: {active}");
    }
}

#[test]
fn the_rules_cover_the_actions_of_the_group() {
    let rules = file("polkit/60-banger.rules");
    assert_eq!(set(quoted(&rules, "action.id == \"")), set(action::OF_GROUP));
    assert_eq!(quoted(&rules, "isInGroup(\""), ["banger"]);
    assert!(file("systemd/banger.sysusers.conf").lines().any(|line| line.starts_with("g banger ")));
}

#[test]
fn everybody_may_call_the_interfaces_and_only_root_may_own_the_name() {
    let policy = file("dbus/dev.banger.Manager1.conf");
    assert_eq!(quoted(&policy, "own=\""), [SERVICE]);
    assert_eq!(set(quoted(&policy, "send_destination=\"")), set([SERVICE]));
    let (root, everybody) = policy.split_once("context=\"default\"").unwrap();
    assert!(root.contains("<policy user=\"root\">") && root.contains("own="));
    let open = set(quoted(everybody, "send_interface=\""));
    let standard = ["Introspectable", "Peer", "Properties", "ObjectManager"];
    let standard = standard.map(|name| format!("org.freedesktop.DBus.{name}"));
    assert_eq!(open, set(INTERFACES.into_iter().chain(standard.iter().map(String::as_str))));
    // A rule without an interface would allow every interface, including the one for the log level.
    assert_eq!(quoted(everybody, "send_destination=\"").len(), open.len());
}

#[test]
fn the_bus_starts_the_unit_that_owns_the_name() {
    let activation = file(&format!("dbus/{SERVICE}.service"));
    assert_eq!(values(&activation, "Name"), [SERVICE]);
    let unit = values(&activation, "SystemdService");
    let unit = file(&format!("systemd/{}", unit.first().unwrap()));
    assert_eq!(values(&unit, "BusName"), [SERVICE]);
}

#[test]
fn every_interface_has_its_description() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let files = fs::read_dir(repository.join("dbus/interfaces")).unwrap();
    let described: BTreeSet<String> =
        files.map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    for interface in INTERFACES {
        assert!(described.contains(interface), "{interface}");
    }
}
