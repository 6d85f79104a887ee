//! Values that people and programs write as text. A text that is accepted reads back as the same value once it is printed.
#![no_main]

use std::{fmt::Display, str::FromStr};

use banger_domain::{
    digest::Digest,
    egress::{
        entry::Entry,
        host_name::{HostName, Pattern},
    },
    id::VmId,
    name::{Name, Reference},
    net::{port::Port, prefix::Prefix4, subnet::Subnet},
    ssh::AuthorizedKey,
    timezone::Timezone,
};
use banger_image::{
    catalog::{Provenance, location::Location},
    kernel::release::Release,
    oci::platform::Platform,
};
use banger_proto::size::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: { banger_fuzz::sow("values") },
    |input: &[u8]| {
        let Some((kind, rest)) = input.split_first() else { return };
        let Ok(text) = std::str::from_utf8(rest) else { return };
        match kind {
            // Printed for people: rounded.
            b'b' => drop(text.parse::<Bytes>()),
            b'd' => keeps::<Digest>(text),
            b'e' => keeps::<Entry>(text),
            b'f' => keeps::<Platform>(text),
            b'h' => keeps::<HostName>(text),
            b'i' => keeps::<VmId>(text),
            b'l' => drop(text.parse::<Location>()),
            b'n' => {
                keeps::<Name>(text);
                if let Ok(name) = text.parse::<Name>() {
                    // It becomes a label of the DNS and a part of file names.
                    let name = name.to_string();
                    assert!(name.len() <= 63 && !name.contains(['/', '.', '\0', '\n']), "{name:?}");
                }
            }
            b'o' => keeps::<Port>(text),
            b'p' => keeps::<Pattern>(text),
            b'r' => drop(text.parse::<Reference>()),
            b's' => keeps::<Subnet>(text),
            b't' => keeps::<Timezone>(text),
            b'u' => keeps_as(text, |key: &AuthorizedKey| key.as_str().to_owned()),
            b'v' => drop(text.parse::<Provenance>()),
            b'w' => keeps::<Prefix4>(text),
            b'y' => keeps::<Release>(text),
            _ => {}
        }
    }
);

fn keeps<T: FromStr + Display + PartialEq>(text: &str) {
    keeps_as(text, T::to_string);
}

fn keeps_as<T: FromStr + PartialEq>(text: &str, print: impl Fn(&T) -> String) {
    let Ok(value) = text.parse::<T>() else { return };
    let printed = print(&value);
    assert!(printed.parse::<T>().is_ok_and(|again| again == value), "{text:?} is printed as {printed:?}");
    assert!(!printed.contains(['\n', '\r', '\0', '\u{1b}']), "{printed:?} is not a line");
}
