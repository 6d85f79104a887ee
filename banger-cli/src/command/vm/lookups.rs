//! Explains failed look-ups of names in a sandbox without internet access.

use std::io::{self, IsTerminal};

use banger_proto::bus::names::VM_INTERFACE;
use zbus::OwnedObjectPath;

use crate::{
    client::{bus::Bus, object::Object},
    error::Result,
};

/// Look-ups during a session on a terminal. The service counts those that it refuses.
pub struct Lookups<'a> {
    bus: &'a Bus,
    vm: &'a OwnedObjectPath,
    /// The sandbox at the start of the session; none if there is no terminal.
    before: Option<Object>,
}

impl<'a> Lookups<'a> {
    /// Begins a session.
    pub async fn begin(bus: &'a Bus, vm: &'a OwnedObjectPath) -> Self {
        let before = match io::stderr().is_terminal() {
            true => bus.properties(vm, VM_INTERFACE).await.ok(),
            false => None,
        };
        Self { bus, vm, before }
    }

    /// Returns an explanation if look-ups were refused, and if that is why the session's command may have failed. A
    /// shell ends with any status.
    pub async fn explain(&self, status: &Result<u8>, is_shell: bool, is_kept: bool) -> Option<String> {
        let before = self.before.as_ref().filter(|_| is_shell || !matches!(status, Ok(0)))?;
        let after = self.bus.properties(self.vm, VM_INTERFACE).await.ok()?;
        explanation(before, &after, is_kept)
    }
}

fn explanation(before: &Object, after: &Object, is_kept: bool) -> Option<String> {
    let refused = |sandbox: &Object| sandbox.number("RefusedLookups");
    if after.flag("Nat") || refused(after) <= refused(before) {
        return None;
    }
    if after.has_egress() {
        let name = after.name();
        return Some(format!(
            "note: names were refused to the sandbox; `banger vm egress {name}` lists them, and `banger vm egress allow \
             {name} HOST` allows one."
        ));
    }
    let remedy = if is_kept { format!("banger vm set --nat {}", after.name()) } else { "--nat".to_owned() };
    Some(format!("note: the sandbox has no internet access; `{remedy}` gives it."))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use zbus::{OwnedVariant, Variant};

    use super::*;

    #[test]
    fn refused_look_ups_are_explained_and_nothing_else() {
        let sandbox = |refused: u64, nat: bool| {
            let values =
                [("Name", Variant::from("web")), ("RefusedLookups", refused.into()), ("Nat", nat.into())];
            let values =
                values.map(|(name, value)| (name.to_owned(), OwnedVariant::try_from(value).unwrap()));
            Object::new(HashMap::from(values))
        };
        let explained =
            |before, after, nat, is_kept| explanation(&sandbox(before, false), &sandbox(after, nat), is_kept);
        assert_eq!(
            explained(0, 2, false, true).unwrap(),
            "note: the sandbox has no internet access; `banger vm set --nat web` gives it."
        );
        assert_eq!(
            explained(0, 1, false, false).unwrap(),
            "note: the sandbox has no internet access; `--nat` gives it."
        );
        let restricted =
            [("Name", Variant::from("web")), ("RefusedLookups", 3u64.into()), ("Egress", vec!["git"].into())];
        let restricted =
            restricted.map(|(name, value)| (name.to_owned(), OwnedVariant::try_from(value).unwrap()));
        let told = explanation(&sandbox(2, false), &Object::new(HashMap::from(restricted)), true).unwrap();
        assert!(told.contains("`banger vm egress web` lists them"), "{told}");
        assert_eq!(explained(2, 2, false, true), None);
        assert_eq!(explained(2, 3, true, true), None, "it has got access meanwhile");
        // The service, or the sandbox, was started again.
        assert_eq!(explained(2, 0, false, true), None);
    }
}
