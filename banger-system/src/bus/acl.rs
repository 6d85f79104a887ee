//! The access table: who may call which member, and what a call costs. A member that is not in it is denied. Tests
//! compare it with the interfaces, and check that every member that starts a job needs its own authorisation.

use banger_proto::bus::names::{
    IMAGE_INTERFACE as IMAGE, JOB_INTERFACE as JOB, KERNEL_INTERFACE as KERNEL, MANAGER_INTERFACE as MANAGER,
    VM_INTERFACE as VM, action,
};

/// What a caller needs for a member. Root may do everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing: the answer is filtered for the caller.
    Anyone,
    /// A polkit action.
    Action(&'static str),
    /// To own the object and, if one is named, an additional polkit action; else a polkit action for other users'
    /// objects. Everybody may read a shared object.
    Object {
        /// The action that the owner needs.
        own: Option<&'static str>,
        /// The action that others need.
        foreign: &'static str,
        /// Whether the member only reads.
        reads: bool,
    },
    /// To read all the data in an object: one's own, a shared one with a polkit action, or another user's with
    /// another action.
    Content {
        /// The action that others need for a shared object.
        shared: &'static str,
        /// The action that others need for a private object.
        foreign: &'static str,
    },
}

/// What a call costs the service, which decides how it is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// It is answered from memory.
    Read,
    /// It changes something, and is done when it returns.
    Change,
    /// It inspects the host, or asks polkit several times: a few at once for each user.
    Inspect,
    /// It starts a job that takes memory, processors, disk or network. It needs its own authorisation, and the engine
    /// limits it.
    StartJob,
    /// It starts a job that frees resources, which is always possible.
    EndJob,
    /// It returns something that stays open, which has a limit of its own.
    Open,
    /// It waits for a job.
    Wait,
}

const fn view(foreign: &'static str) -> Access {
    Access::Object { own: None, foreign, reads: true }
}

const fn change(foreign: &'static str) -> Access {
    Access::Object { own: None, foreign, reads: false }
}

const VIEW: Access = view(action::VM_VIEW_OTHERS);
const MANAGE: Access = change(action::VM_MANAGE_OTHERS);
const ENTER: Access = change(action::VM_ACCESS_OTHERS);
const RUN: Access =
    Access::Object { own: Some(action::VM_RUN), foreign: action::VM_MANAGE_OTHERS, reads: false };
/// An image has all that is on a sandbox's system disk.
const COMMIT: Access =
    Access::Object { own: Some(action::IMAGE_IMPORT), foreign: action::VM_ACCESS_OTHERS, reads: false };
/// It makes sandboxes or a snapshot, with all that is on the disks of this one.
const FORK: Access =
    Access::Object { own: Some(action::VM_RUN), foreign: action::VM_ACCESS_OTHERS, reads: false };
const SHARED: Access = change(action::IMAGE_MANAGE_SHARED);
/// Sharing concerns everybody, and so an administrator decides, even about the caller's own images.
const SHARE: Access = Access::Object {
    own: Some(action::IMAGE_MANAGE_SHARED),
    foreign: action::IMAGE_MANAGE_SHARED,
    reads: false,
};

/// Stands for all properties of an interface.
pub const PROPERTIES: &str = "*";

/// A user who may run sandboxes can read all of a shared image from inside one. Another name for it is as good as a copy.
const READ: Access = Access::Content { shared: action::VM_RUN, foreign: action::VM_ACCESS_OTHERS };

/// The table.
pub const TABLE: &[(&str, &str, Access, Cost)] = &[
    (MANAGER, "CreateVM", Access::Action(action::VM_RUN), Cost::StartJob),
    (MANAGER, "GetVM", Access::Anyone, Cost::Read),
    (MANAGER, "ListVMs", Access::Anyone, Cost::Read),
    (MANAGER, "ImportImage", Access::Action(action::IMAGE_IMPORT), Cost::StartJob),
    (MANAGER, "PullImage", Access::Action(action::IMAGE_PULL), Cost::StartJob),
    (MANAGER, "PruneCache", Access::Action(action::IMAGE_MANAGE_SHARED), Cost::StartJob),
    (MANAGER, "GetImage", Access::Anyone, Cost::Read),
    (MANAGER, "ListImages", Access::Anyone, Cost::Read),
    (MANAGER, "ImportKernel", Access::Action(action::IMAGE_IMPORT), Cost::StartJob),
    (MANAGER, "PullKernel", Access::Action(action::IMAGE_PULL), Cost::StartJob),
    (MANAGER, "ListCatalog", Access::Anyone, Cost::Read),
    (MANAGER, "RefreshCatalog", Access::Action(action::IMAGE_PULL), Cost::StartJob),
    (MANAGER, "GetKernel", Access::Anyone, Cost::Read),
    (MANAGER, "ListKernels", Access::Anyone, Cost::Read),
    (MANAGER, "GetJob", Access::Anyone, Cost::Read),
    (MANAGER, "ListJobs", Access::Anyone, Cost::Read),
    (MANAGER, "Subscribe", Access::Anyone, Cost::Change),
    (MANAGER, "Unsubscribe", Access::Anyone, Cost::Change),
    (MANAGER, "GetPermissions", Access::Anyone, Cost::Inspect),
    (MANAGER, "GetLimits", Access::Anyone, Cost::Read),
    (MANAGER, "Diagnose", Access::Anyone, Cost::Inspect),
    (MANAGER, "Repair", Access::Action(action::HOST_REPAIR), Cost::Inspect),
    (MANAGER, "OpenMetrics", Access::Anyone, Cost::Inspect),
    (MANAGER, PROPERTIES, Access::Anyone, Cost::Read),
    (VM, "Start", RUN, Cost::StartJob),
    (VM, "Stop", MANAGE, Cost::EndJob),
    (VM, "Restart", RUN, Cost::StartJob),
    (VM, "Kill", MANAGE, Cost::EndJob),
    (VM, "Pause", MANAGE, Cost::Change),
    (VM, "Unpause", MANAGE, Cost::Change),
    (VM, "Suspend", RUN, Cost::StartJob),
    (VM, "Resume", RUN, Cost::StartJob),
    (VM, "Delete", MANAGE, Cost::EndJob),
    (VM, "Rename", MANAGE, Cost::Change),
    (VM, "SetLifetime", MANAGE, Cost::Change),
    (VM, "Configure", MANAGE, Cost::Change),
    (VM, "SetEgress", MANAGE, Cost::Change),
    (VM, "ChangeEgress", MANAGE, Cost::Change),
    (VM, "Commit", COMMIT, Cost::StartJob),
    (VM, "Fork", FORK, Cost::StartJob),
    (VM, "CreateSnapshot", FORK, Cost::StartJob),
    (VM, "ListSnapshots", VIEW, Cost::Read),
    (VM, "RestoreSnapshot", MANAGE, Cost::StartJob),
    (VM, "DeleteSnapshot", MANAGE, Cost::Change),
    (VM, "PublishPort", MANAGE, Cost::Change),
    (VM, "UnpublishPort", MANAGE, Cost::Change),
    (VM, "OpenAgent", ENTER, Cost::Open),
    (VM, "OpenStream", ENTER, Cost::Open),
    (VM, "OpenLog", ENTER, Cost::Open),
    (VM, "GetHistory", VIEW, Cost::Read),
    (VM, PROPERTIES, VIEW, Cost::Read),
    (IMAGE, "Delete", SHARED, Cost::Change),
    (IMAGE, "Rename", SHARED, Cost::Change),
    (IMAGE, "SetShared", SHARE, Cost::Change),
    (IMAGE, "Tag", READ, Cost::Change),
    (IMAGE, "Export", READ, Cost::StartJob),
    (IMAGE, PROPERTIES, view(action::IMAGE_MANAGE_SHARED), Cost::Read),
    (KERNEL, "Delete", SHARED, Cost::Change),
    (KERNEL, "Rename", SHARED, Cost::Change),
    (KERNEL, PROPERTIES, view(action::IMAGE_MANAGE_SHARED), Cost::Read),
    (JOB, "Cancel", MANAGE, Cost::Change),
    (JOB, "Wait", VIEW, Cost::Wait),
    (JOB, PROPERTIES, VIEW, Cost::Read),
];

/// Returns the text for a dialog about a member whose object is not on the bus.
pub fn object_of(interface: &str, member: &str) -> Option<&'static str> {
    match (interface, member) {
        (MANAGER, "PruneCache") => Some("the cache of layers"),
        _ => None,
    }
}

/// Returns what a caller needs for a member; `None` denies.
pub fn access(interface: &str, member: &str) -> Option<Access> {
    row(interface, member).map(|row| row.2)
}

/// Returns what a call costs; `None` for an unknown member.
pub fn cost(interface: &str, member: &str) -> Option<Cost> {
    row(interface, member).map(|row| row.3)
}

fn row(interface: &str, member: &str) -> Option<&'static (&'static str, &'static str, Access, Cost)> {
    TABLE.iter().find(|row| row.0 == interface && row.1 == member)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use banger_proto::bus::names::detail;

    use super::*;

    #[test]
    fn the_table_has_every_method_and_nothing_else() {
        let mut methods = BTreeSet::new();
        for (interface, xml) in super::super::interfaces() {
            for part in xml.split("<method name=\"").skip(1) {
                methods.insert((interface, part.split('"').next().unwrap_or_default().to_owned()));
            }
            methods.insert((interface, PROPERTIES.to_owned()));
        }
        let rows: BTreeSet<_> = TABLE.iter().map(|row| (row.0, row.1.to_owned())).collect();
        assert_eq!(rows, methods);
        assert_eq!(rows.len(), TABLE.len(), "a row stands twice");
    }

    #[test]
    fn every_member_that_starts_a_job_needs_its_own_authorisation() {
        let starts: Vec<_> = TABLE.iter().filter(|row| row.3 == Cost::StartJob).collect();
        let free: Vec<_> = starts
            .iter()
            .filter(|row| match row.2 {
                Access::Action(_) | Access::Content { .. } => false,
                Access::Object { own, .. } => own.is_none(),
                Access::Anyone => true,
            })
            .map(|row| row.1)
            .collect();
        assert_eq!(free, Vec::<&str>::new());
        // A method that answers with a job starts it, or ends something.
        let mut with_a_job = BTreeSet::new();
        for (interface, xml) in super::super::interfaces() {
            for part in xml.split("<method name=\"").skip(1) {
                let (name, rest) = part.split_once('"').unwrap_or_default();
                let body = rest.split("</method>").next().unwrap_or_default();
                if body.contains("name=\"job\"") && !["GetJob"].contains(&name) {
                    with_a_job.insert((interface, name.to_owned()));
                }
            }
        }
        let counted = |row: &&(&'static str, &'static str, Access, Cost)| {
            matches!(row.3, Cost::StartJob) || (row.3 == Cost::EndJob && row.1 != "Kill")
        };
        let rows: BTreeSet<_> = TABLE.iter().filter(counted).map(|row| (row.0, row.1.to_owned())).collect();
        assert_eq!(rows, with_a_job);
    }

    #[test]
    fn every_action_of_the_policy_guards_something() {
        let mut asked: BTreeSet<&str> = TABLE
            .iter()
            .flat_map(|row| match row.2 {
                Access::Anyone => vec![],
                Access::Action(action) => vec![action],
                Access::Object { own, foreign, .. } => own.into_iter().chain([foreign]).collect(),
                Access::Content { shared, foreign } => vec![shared, foreign],
            })
            .collect();
        // Asked where the port is known.
        asked.insert(action::VM_PUBLISH);
        assert_eq!(asked, action::ALL.into_iter().collect());
    }

    #[test]
    fn members_that_anyone_may_call_are_cheap() {
        for (_, member, access, cost) in TABLE {
            if *access == Access::Anyone {
                // Subscriptions are counted by themselves.
                let is_cheap = matches!(cost, Cost::Read | Cost::Inspect)
                    || ["Subscribe", "Unsubscribe"].contains(member);
                assert!(is_cheap, "{member}");
            }
        }
    }

    #[test]
    fn dialogs_use_only_details_that_polkit_gets() {
        let policy = include_str!("../../../polkit/dev.banger.Manager1.policy");
        for part in policy.split("<action id=\"").skip(1) {
            let (action, rest) = part.split_once('"').unwrap_or_default();
            let message = rest.split("<message>").nth(1).and_then(|rest| rest.split("</message>").next());
            let named: Vec<_> = message
                .unwrap_or_default()
                .split("$(")
                .skip(1)
                .filter_map(|rest| rest.split(')').next())
                .collect();
            // Publishing is authorised where the port is known, and names it.
            let told = [detail::OBJECT, detail::OWNER, detail::PORT];
            assert!(named.iter().all(|name| told.contains(name)), "{action}: {named:?}");
            assert!(!named.contains(&detail::PORT) || action == action::VM_PUBLISH, "{action}");
            for (interface, member, access, _) in TABLE.iter().filter(|_| !named.is_empty()) {
                if *access == Access::Action(static_name(action)) {
                    assert!(object_of(interface, member).is_some() && named == [detail::OBJECT], "{member}");
                }
            }
        }
    }

    /// The action of the table with this name.
    fn static_name(action: &str) -> &'static str {
        let named = TABLE.iter().filter_map(|row| match row.2 {
            Access::Action(name) => Some(name),
            _ => None,
        });
        named.into_iter().find(|name| *name == action).unwrap_or_default()
    }

    #[test]
    fn a_member_that_is_not_in_the_table_is_denied() {
        assert_eq!(access(VM, "FormatHost"), None);
        assert_eq!(access("org.example", "Stop"), None);
    }
}
