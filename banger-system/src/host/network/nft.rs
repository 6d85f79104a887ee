//! The two ways to change the packet filter: rules by the program `nft`, elements by netlink.

use std::{
    io::{self, Read, Write},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use banger_domain::{
    id::VmId,
    net::{
        TABLE,
        element::{Element, Set},
    },
};
use crabtables::{Batch, Family, SetElem, SetElemList};

use crate::ports::{
    FromHost as _,
    network::{Error, Result},
};

/// Where distributions install it.
pub(super) const PROGRAM: &str = "/usr/sbin/nft";
/// How long it may take: some milliseconds, or longer while others change the packet filter.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Adds elements of a guest. Existing ones are kept.
pub(super) fn add_to(batch: &mut Batch, vm: VmId, elements: &[Element]) {
    for element in elements {
        let mut added = encoded(element);
        if element.set == Set::Source4 {
            added = added.with_comment(&vm.to_string());
        }
        batch.add_elems(&list_of(element.set, added));
    }
}

/// Removes elements, whether they exist or not.
///
/// Each element is added before it is deleted, since deleting a missing one would fail the whole batch. Kernels since
/// 6.3 have a message for this, but not every distribution has such a kernel.
pub(super) fn remove_from(batch: &mut Batch, elements: &[Element]) {
    for element in elements {
        batch.add_elems(&list_of(element.set, encoded(element)));
        batch.delete_elems(&list_of(element.set, SetElem::new(element.key.clone())));
    }
}

fn encoded(element: &Element) -> SetElem {
    let added = SetElem::new(element.key.clone());
    match &element.value {
        Some(value) => added.with_data(value.clone()),
        None => added,
    }
}

fn list_of(set: Set, element: SetElem) -> SetElemList {
    SetElemList::new(Family::Inet, TABLE, set.name()).with(element)
}

/// Applies rules with `nft`, completely or not at all.
pub(super) fn apply(rules: &str) -> Result<()> {
    const DOING: &str = "apply the rules of the packet filter";
    let started = Command::new(PROGRAM)
        .args(["-f", "-"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut nft = started.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => {
            Error::not_ready(format!("{PROGRAM} is missing; install the package nftables"))
        }
        _ => Error::os(format!("start {PROGRAM}"), source),
    })?;
    // If it stops reading, its exit status says why.
    let _ = nft.stdin.take().map(|mut stdin| stdin.write_all(rules.as_bytes()));
    let began = Instant::now();
    loop {
        match nft.try_wait().map_err(|source| Error::os(DOING, source))? {
            Some(status) if status.success() => return Ok(()),
            Some(_) => {
                let mut said = String::new();
                let _ = nft.stderr.take().map(|mut stderr| stderr.read_to_string(&mut said));
                let first = said.lines().next().unwrap_or("nft gave no reason").to_owned();
                return Err(Error::other(DOING, first));
            }
            None if began.elapsed() > TIMEOUT => {
                // It may exit just now.
                let _ = nft.kill();
                let _ = nft.wait();
                return Err(Error::timeout("applying the rules of the packet filter", TIMEOUT));
            }
            None => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Returns the error of a request made for `doing`.
pub(super) fn failed(doing: impl Into<String>, error: crabtables::Error) -> Error {
    Error::other(doing, error)
}
