//! Hints for errors.

use std::fs;

use banger_proto::bus::ErrorName;

/// Hint if there is no system bus.
pub const NO_BUS: &str = "`systemctl status dbus` shows whether the system bus is running.";
/// Hint if the service is not running.
pub const NO_SERVICE: &str = "`sudo systemctl start banger-system` starts it; `journalctl -u banger-system` \
    shows why it does not start.";
/// Hint if the service ended during a call.
pub const SERVICE_ENDED: &str = "try again: sandboxes keep running without it, and the next request starts \
    it; `journalctl -u banger-system` shows why it ended.";
/// Hint if the service is older or newer than this program.
pub const OTHER_VERSION: &str = "after an upgrade, `sudo systemctl restart banger-system` starts the new \
    service; sandboxes keep running.";

/// Hint if a stream to a guest broke.
pub const STREAM_LOST: &str =
    "`banger vm list` shows whether the sandbox is still running, and `banger vm logs NAME` its console.";

/// Hint if the user did not wait for a job of the service.
pub const DETACHED: &str = "the service continues the work, and `banger events` follows it.";

const JOIN_GROUP: &str = "join the group banger with `sudo usermod -aG banger $USER`, then log in again.";
const ASK_ROOT: &str = "an administrator may do this: try again with `sudo`.";

/// Whether the caller is in the group that may use banger without authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// It is.
    Member,
    /// It is not, or this is unknown.
    Outside,
}

impl Membership {
    /// Checks the groups of this process. A group that was joined after the login does not count yet.
    pub fn of_caller() -> Self {
        let Some(gid) = fs::read_to_string("/etc/group").ok().as_deref().and_then(gid_of_banger) else {
            return Self::Outside;
        };
        let groups = rustix::process::getgroups().unwrap_or_default();
        if groups.iter().any(|group| group.as_raw() == gid) { Self::Member } else { Self::Outside }
    }
}

/// Returns the group id from a file in the format of group(5).
fn gid_of_banger(groups: &str) -> Option<u32> {
    let line = groups.lines().find_map(|line| line.strip_prefix("banger:"))?;
    line.split(':').nth(1)?.parse().ok()
}

/// Returns the hint for an error of the service, unless its message says everything.
pub fn hint(name: ErrorName, membership: impl FnOnce() -> Membership) -> Option<String> {
    let hint = match name {
        ErrorName::AccessDenied => match membership() {
            Membership::Member => ASK_ROOT,
            Membership::Outside => JOIN_GROUP,
        },
        ErrorName::InteractiveAuthorizationRequired => match membership() {
            Membership::Member => {
                "this needs an administrator: try again in a terminal, where you can enter a password."
            }
            Membership::Outside => {
                "try again in a terminal, where you can enter a password; to need none, join the group \
                 banger with `sudo usermod -aG banger $USER` and log in again."
            }
        },
        other => fixed(other)?,
    };
    Some(hint.to_owned())
}

fn fixed(name: ErrorName) -> Option<&'static str> {
    HINTS.iter().find(|(known, _)| *known == name).map(|(_, hint)| *hint).filter(|hint| !hint.is_empty())
}

/// The hint for each error; empty if there is nothing to add to the service's message.
const HINTS: &[(ErrorName, &str)] = &[
    (ErrorName::NoSuchVm, "`banger vm list` shows your sandboxes."),
    (
        ErrorName::NoSuchImage,
        "`banger image list` shows the images; `banger image pull REFERENCE` fetches one from a registry.",
    ),
    (
        ErrorName::NoSuchKernel,
        "`banger kernel list` shows the kernels, `banger kernel list --available` those of the catalogs; \
         `banger kernel import --name NAME --vmlinuz FILE --modules DIRECTORY` adds one.",
    ),
    (ErrorName::NoSuchJob, "jobs are forgotten a few minutes after they end."),
    (ErrorName::NoSuchSnapshot, "`banger vm snapshot list NAME` shows its snapshots."),
    (ErrorName::AmbiguousRef, "give the name, or more digits of the id."),
    (ErrorName::NoAddress, "`banger vm list` shows your sandboxes, and `banger vm delete NAME` removes one."),
    (ErrorName::NameTaken, "choose another name, or delete what has this one."),
    (ErrorName::InvalidName, ""),
    (ErrorName::InvalidOption, ""),
    (
        ErrorName::DiskTooSmall,
        "`banger vm show NAME` shows the sizes of its disks, as root_size and disk_size.",
    ),
    (ErrorName::InvalidState, "`banger vm show NAME` shows the state of the sandbox."),
    (ErrorName::BadFileDescriptor, ""),
    (ErrorName::QuotaExceeded, "delete what you do not need, or ask an administrator for a higher limit."),
    (ErrorName::TooManyRequests, "wait until some of your requests have finished."),
    (
        ErrorName::HasSnapshots,
        "`banger vm snapshot list NAME` shows them; `banger vm delete --force NAME` deletes them with the sandbox.",
    ),
    (ErrorName::ImageInUse, "first delete the sandboxes that use it."),
    (ErrorName::KernelInUse, "first delete the images and sandboxes that use it."),
    (ErrorName::Paused, "`banger vm unpause NAME` continues it."),
    (
        ErrorName::Suspended,
        "`banger vm resume NAME` continues it; `banger vm start --cold NAME` boots it without its memory.",
    ),
    (
        ErrorName::CannotResume,
        "`banger vm start --cold NAME` boots it; what was in its memory is lost, and its disks stay.",
    ),
    (ErrorName::NotReady, "wait a moment; `banger vm logs NAME` shows how far the guest has booted."),
    (
        ErrorName::AgentUnavailable,
        "`banger vm logs NAME` shows the console; `banger vm restart NAME` boots the guest again.",
    ),
    (ErrorName::GuestTimeout, "`banger vm logs NAME` shows the console."),
    (ErrorName::Canceled, ""),
    (ErrorName::NotCancelable, ""),
    (ErrorName::UnsupportedImage, ""),
    (
        ErrorName::DigestMismatch,
        "try again: the wrong data was discarded; if it happens again, tell the operator of the registry.",
    ),
    (
        ErrorName::RegistryUnreachable,
        "try again: what was fetched is kept; `journalctl -u banger-system` shows more.",
    ),
    (
        ErrorName::RegistryAuthRequired,
        "log in with `docker login REGISTRY` or `podman login REGISTRY`, and check the spelling of the \
         image: registries give the same answer for an image that does not exist.",
    ),
    (ErrorName::RegistryError, ""),
    (
        ErrorName::CatalogRefused,
        "`banger image list --available --refresh` and `banger kernel list --available --refresh` fetch the \
         catalogs again; they and their keys are configured in /etc/banger.",
    ),
    (
        ErrorName::NotPublished,
        "`banger image list --available` and `banger kernel list --available` show what is published.",
    ),
    (
        ErrorName::NoSpace,
        "`banger vm list`, `banger image list` and `banger kernel list` show what you could delete.",
    ),
    (ErrorName::HostNotReady, "`banger doctor` shows what this host lacks."),
    (ErrorName::VmmFailed, "`banger vm logs --vmm NAME` and `banger doctor` show more."),
    (ErrorName::AlreadyInUse, "choose another one, or stop what uses it."),
    (
        ErrorName::TooDeep,
        "`banger vm commit NAME IMAGE` makes an image of its system disk, which has no such layers and lacks /root.",
    ),
    (ErrorName::Busy, "try again when that has finished."),
    (ErrorName::Internal, "`journalctl -u banger-system` shows more."),
    (ErrorName::InvalidArgs, ""),
    (ErrorName::UnknownObject, "it was deleted meanwhile."),
    (ErrorName::NotSupported, "`banger doctor` shows what this host can do."),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_of_the_service_has_a_hint_or_none_on_purpose() {
        for name in ErrorName::ALL {
            let rows = HINTS.iter().filter(|(known, _)| known == name).count();
            let by_membership =
                matches!(name, ErrorName::AccessDenied | ErrorName::InteractiveAuthorizationRequired);
            assert_eq!(rows, usize::from(!by_membership), "{name}");
        }
    }

    #[test]
    fn hints_are_sentences() {
        for (name, hint) in HINTS {
            assert!(hint.is_empty() || hint.ends_with('.'), "{name}: {hint}");
            assert!(!hint.contains('\n') && !hint.contains("  "), "{name}: {hint}");
        }
    }

    /// An error about one kind of object suggests nothing about another.
    #[test]
    fn hints_name_the_commands_that_fit_their_error() {
        for (name, hint) in HINTS {
            let expect: &[&str] = match name {
                ErrorName::NoSuchVm
                | ErrorName::NoSuchSnapshot
                | ErrorName::HasSnapshots
                | ErrorName::NoAddress
                | ErrorName::DiskTooSmall
                | ErrorName::InvalidState
                | ErrorName::Paused
                | ErrorName::Suspended
                | ErrorName::CannotResume
                | ErrorName::NotReady
                | ErrorName::AgentUnavailable
                | ErrorName::GuestTimeout
                | ErrorName::TooDeep => &["vm"],
                ErrorName::NoSuchImage => &["image"],
                ErrorName::NoSuchKernel => &["kernel"],
                ErrorName::CatalogRefused | ErrorName::NotPublished => &["image", "kernel"],
                ErrorName::NoSpace => &["image", "kernel", "vm"],
                ErrorName::VmmFailed => &["doctor", "vm"],
                ErrorName::HostNotReady | ErrorName::NotSupported => &["doctor"],
                _ => &[],
            };
            let words = hint.split("`banger ").skip(1).filter_map(|rest| rest.split([' ', '`']).next());
            let words: std::collections::BTreeSet<&str> = words.collect();
            assert_eq!(words.into_iter().collect::<Vec<_>>(), expect, "{name}: {hint}");
        }
    }

    #[test]
    fn only_non_members_are_told_to_join_the_group() {
        let hint = |name, membership| hint(name, || membership).unwrap_or_default();
        for name in [ErrorName::AccessDenied, ErrorName::InteractiveAuthorizationRequired] {
            assert!(hint(name, Membership::Outside).contains("sudo usermod -aG banger $USER"), "{name}");
            assert!(!hint(name, Membership::Member).contains("usermod"), "{name}");
        }
    }

    #[test]
    fn the_group_is_found_by_its_name() {
        assert_eq!(gid_of_banger("root:x:0:\nbanger:x:998:alice,bob\n"), Some(998));
        assert_eq!(gid_of_banger("bangers:x:998:\n"), None);
        assert_eq!(gid_of_banger(""), None);
    }
}
