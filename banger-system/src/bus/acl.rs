//! Who may call what, and what a call costs: one table. What is not in it is denied; a test compares it with the
//! interfaces, and with the rule that whatever starts work needs an authorisation of its own.

use banger_proto::bus::names::{
    IMAGE_INTERFACE as IMAGE, JOB_INTERFACE as JOB, KERNEL_INTERFACE as KERNEL, MANAGER_INTERFACE as MANAGER,
    VM_INTERFACE as VM, action,
};

/// What a member asks of its caller. Root may do everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing: what is answered is filtered for the caller.
    Anyone,
    /// A polkit action.
    Action(&'static str),
    /// To own the object, and, where one is named, a polkit action as well; or the polkit action for other
    /// people's objects. A shared object is everybody's to read.
    Object {
        /// What the owner must be allowed.
        own: Option<&'static str>,
        /// What others must be allowed.
        foreign: &'static str,
        /// Whether this only reads.
        reads: bool,
    },
    /// To read all that is in an object: one's own; a shared one by a polkit action; that of others by another.
    Content {
        /// What everybody but the owner must be allowed for a shared one.
        shared: &'static str,
        /// What others must be allowed for a private one.
        foreign: &'static str,
    },
}

/// What a call costs the service, and with that what bounds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// It is answered from memory.
    Reads,
    /// It changes something, and is done when it is answered.
    Changes,
    /// It looks at the host, or asks polkit much: few at once of one user.
    Looks,
    /// It starts a job that takes memory, processors, disk or network. It needs an authorisation of its own, and the
    /// engine counts it.
    Starts,
    /// It starts a job that frees these. Nobody is kept from that.
    Ends,
    /// It hands out something that stays open after it, which is counted by itself.
    Opens,
    /// It waits for a job.
    Waits,
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
const SHARED: Access = change(action::IMAGE_MANAGE_SHARED);
/// What everybody sees is an administrator's to decide, of one's own too.
const SHARE: Access = Access::Object {
    own: Some(action::IMAGE_MANAGE_SHARED),
    foreign: action::IMAGE_MANAGE_SHARED,
    reads: false,
};

/// A property of any name of this interface.
pub const PROPERTIES: &str = "*";

/// Who may run sandboxes reads all of a shared image in one.
const EXPORT: Access = Access::Content { shared: action::VM_RUN, foreign: action::VM_ACCESS_OTHERS };

/// The table.
pub const TABLE: &[(&str, &str, Access, Work)] = &[
    (MANAGER, "CreateVM", Access::Action(action::VM_RUN), Work::Starts),
    (MANAGER, "GetVM", Access::Anyone, Work::Reads),
    (MANAGER, "ListVMs", Access::Anyone, Work::Reads),
    (MANAGER, "ImportImage", Access::Action(action::IMAGE_IMPORT), Work::Starts),
    (MANAGER, "PullImage", Access::Action(action::IMAGE_PULL), Work::Starts),
    (MANAGER, "PruneCache", Access::Action(action::IMAGE_MANAGE_SHARED), Work::Starts),
    (MANAGER, "GetImage", Access::Anyone, Work::Reads),
    (MANAGER, "ListImages", Access::Anyone, Work::Reads),
    (MANAGER, "ImportKernel", Access::Action(action::IMAGE_IMPORT), Work::Starts),
    (MANAGER, "PullKernel", Access::Action(action::IMAGE_PULL), Work::Starts),
    (MANAGER, "ListCatalog", Access::Anyone, Work::Reads),
    (MANAGER, "RefreshCatalog", Access::Action(action::IMAGE_PULL), Work::Starts),
    (MANAGER, "GetKernel", Access::Anyone, Work::Reads),
    (MANAGER, "ListKernels", Access::Anyone, Work::Reads),
    (MANAGER, "GetJob", Access::Anyone, Work::Reads),
    (MANAGER, "ListJobs", Access::Anyone, Work::Reads),
    (MANAGER, "Subscribe", Access::Anyone, Work::Changes),
    (MANAGER, "Unsubscribe", Access::Anyone, Work::Changes),
    (MANAGER, "GetPermissions", Access::Anyone, Work::Looks),
    (MANAGER, "GetLimits", Access::Anyone, Work::Reads),
    (MANAGER, "Diagnose", Access::Anyone, Work::Looks),
    (MANAGER, PROPERTIES, Access::Anyone, Work::Reads),
    (VM, "Start", RUN, Work::Starts),
    (VM, "Stop", MANAGE, Work::Ends),
    (VM, "Restart", RUN, Work::Starts),
    (VM, "Kill", MANAGE, Work::Ends),
    (VM, "Delete", MANAGE, Work::Ends),
    (VM, "Rename", MANAGE, Work::Changes),
    (VM, "SetLifetime", MANAGE, Work::Changes),
    (VM, "Configure", MANAGE, Work::Changes),
    (VM, "PublishPort", MANAGE, Work::Changes),
    (VM, "UnpublishPort", MANAGE, Work::Changes),
    (VM, "OpenAgent", ENTER, Work::Opens),
    (VM, "OpenStream", ENTER, Work::Opens),
    (VM, "OpenLog", ENTER, Work::Opens),
    (VM, PROPERTIES, VIEW, Work::Reads),
    (IMAGE, "Delete", SHARED, Work::Changes),
    (IMAGE, "SetShared", SHARE, Work::Changes),
    (IMAGE, "Export", EXPORT, Work::Starts),
    (IMAGE, PROPERTIES, view(action::IMAGE_MANAGE_SHARED), Work::Reads),
    (KERNEL, "Delete", SHARED, Work::Changes),
    (KERNEL, PROPERTIES, view(action::IMAGE_MANAGE_SHARED), Work::Reads),
    (JOB, "Cancel", MANAGE, Work::Changes),
    (JOB, "Wait", VIEW, Work::Waits),
    (JOB, PROPERTIES, VIEW, Work::Reads),
];

/// What a dialog calls the object of a member that has none on the bus.
pub fn object_of(interface: &str, member: &str) -> Option<&'static str> {
    match (interface, member) {
        (MANAGER, "PruneCache") => Some("the cache of layers"),
        _ => None,
    }
}

/// What a member asks of its caller; `None` denies.
pub fn access(interface: &str, member: &str) -> Option<Access> {
    row(interface, member).map(|row| row.2)
}

/// What a call of a member costs; `None` for one that does not exist.
pub fn work(interface: &str, member: &str) -> Option<Work> {
    row(interface, member).map(|row| row.3)
}

fn row(interface: &str, member: &str) -> Option<&'static (&'static str, &'static str, Access, Work)> {
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
    fn whatever_starts_work_needs_an_authorisation_of_its_own() {
        let starts: Vec<_> = TABLE.iter().filter(|row| row.3 == Work::Starts).collect();
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
        let counted = |row: &&(&'static str, &'static str, Access, Work)| {
            matches!(row.3, Work::Starts) || (row.3 == Work::Ends && row.1 != "Kill")
        };
        let rows: BTreeSet<_> = TABLE.iter().filter(counted).map(|row| (row.0, row.1.to_owned())).collect();
        assert_eq!(rows, with_a_job);
    }

    #[test]
    fn what_everybody_may_call_costs_nothing_that_lasts() {
        for (_, member, access, work) in TABLE {
            if *access == Access::Anyone {
                // Subscriptions are counted by themselves.
                let is_cheap = matches!(work, Work::Reads | Work::Looks)
                    || ["Subscribe", "Unsubscribe"].contains(member);
                assert!(is_cheap, "{member}");
            }
        }
    }

    #[test]
    fn dialogs_name_nothing_that_polkit_is_not_told() {
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
    fn what_is_not_in_the_table_is_denied() {
        assert_eq!(access(VM, "FormatHost"), None);
        assert_eq!(access("org.example", "Stop"), None);
    }
}
