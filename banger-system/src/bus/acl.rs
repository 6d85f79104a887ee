//! Who may call what: one table. What is not in it is denied; a test compares it with the interfaces.

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
    /// To read all that is in an object: one's own, or a shared one; of others, by a polkit action.
    Content(&'static str),
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

/// The table.
pub const TABLE: &[(&str, &str, Access)] = &[
    (MANAGER, "CreateVM", Access::Action(action::VM_RUN)),
    (MANAGER, "GetVM", Access::Anyone),
    (MANAGER, "ListVMs", Access::Anyone),
    (MANAGER, "ImportImage", Access::Action(action::IMAGE_IMPORT)),
    (MANAGER, "PullImage", Access::Action(action::IMAGE_PULL)),
    (MANAGER, "PruneCache", Access::Action(action::IMAGE_PULL)),
    (MANAGER, "GetImage", Access::Anyone),
    (MANAGER, "ListImages", Access::Anyone),
    (MANAGER, "ImportKernel", Access::Action(action::IMAGE_IMPORT)),
    (MANAGER, "PullKernel", Access::Action(action::IMAGE_PULL)),
    (MANAGER, "ListCatalog", Access::Anyone),
    (MANAGER, "RefreshCatalog", Access::Action(action::IMAGE_PULL)),
    (MANAGER, "GetKernel", Access::Anyone),
    (MANAGER, "ListKernels", Access::Anyone),
    (MANAGER, "GetJob", Access::Anyone),
    (MANAGER, "ListJobs", Access::Anyone),
    (MANAGER, "Subscribe", Access::Anyone),
    (MANAGER, "Unsubscribe", Access::Anyone),
    (MANAGER, "GetPermissions", Access::Anyone),
    (MANAGER, "GetLimits", Access::Anyone),
    (MANAGER, "Diagnose", Access::Anyone),
    (MANAGER, PROPERTIES, Access::Anyone),
    (VM, "Start", RUN),
    (VM, "Stop", MANAGE),
    (VM, "Restart", RUN),
    (VM, "Kill", MANAGE),
    (VM, "Delete", MANAGE),
    (VM, "Rename", MANAGE),
    (VM, "SetLifetime", MANAGE),
    (VM, "Configure", MANAGE),
    (VM, "PublishPort", MANAGE),
    (VM, "UnpublishPort", MANAGE),
    (VM, "OpenAgent", ENTER),
    (VM, "OpenStream", ENTER),
    (VM, "OpenLog", ENTER),
    (VM, PROPERTIES, VIEW),
    (IMAGE, "Delete", SHARED),
    (IMAGE, "SetShared", SHARE),
    (IMAGE, "Export", Access::Content(action::VM_ACCESS_OTHERS)),
    (IMAGE, PROPERTIES, view(action::IMAGE_MANAGE_SHARED)),
    (KERNEL, "Delete", SHARED),
    (KERNEL, PROPERTIES, view(action::IMAGE_MANAGE_SHARED)),
    (JOB, "Cancel", MANAGE),
    (JOB, "Wait", VIEW),
    (JOB, PROPERTIES, VIEW),
];

/// What a member asks of its caller; `None` denies.
pub fn access(interface: &str, member: &str) -> Option<Access> {
    TABLE.iter().find(|row| row.0 == interface && row.1 == member).map(|row| row.2)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

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
    fn what_is_not_in_the_table_is_denied() {
        assert_eq!(access(VM, "FormatHost"), None);
        assert_eq!(access("org.example", "Stop"), None);
    }
}
