//! The packaged policy and rule, evaluated as polkit does. A check in the private host includes this file, and compares
//! it with a real polkit.

use std::{fs, path::PathBuf};

/// What polkit decides without asking anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Yes,
    No,
    /// An administrator has to authenticate.
    Password,
}

/// The kinds of sessions that a policy tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// On the host's display, in use.
    Active,
    /// On the host's display, behind another one.
    Inactive,
    /// Anywhere else: ssh, cron, services.
    Elsewhere,
}

/// Whether a user is in the group banger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    Member,
    Other,
}

/// Returns what polkit answers about an action.
pub fn decide(action: &str, session: Session, group: Group) -> Decision {
    let rule = read("60-banger.rules");
    assert!(rule.contains("subject.isInGroup(\"banger\")"), "the rule is of another form");
    if group == Group::Member && rule.contains(&format!("action.id == \"{action}\"")) {
        return Decision::Yes;
    }
    let policy = read("dev.banger.Manager1.policy");
    let own = between(&policy, &format!("<action id=\"{action}\">"), "</action>");
    let element = match session {
        Session::Active => "allow_active",
        Session::Inactive => "allow_inactive",
        Session::Elsewhere => "allow_any",
    };
    match between(own, &format!("<{element}>"), &format!("</{element}>")) {
        "yes" => Decision::Yes,
        "no" => Decision::No,
        "auth_admin" | "auth_admin_keep" => Decision::Password,
        other => panic!("{action}: unknown default {other:?}"),
    }
}

fn between<'t>(text: &'t str, start: &str, end: &str) -> &'t str {
    let rest = text.split_once(start).unwrap_or_else(|| panic!("there is no {start}")).1;
    rest.split_once(end).unwrap().0
}

fn read(name: &str) -> String {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../polkit");
    fs::read_to_string(directory.join(name)).unwrap()
}
