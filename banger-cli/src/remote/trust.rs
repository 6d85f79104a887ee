//! What a remote host may say of its objects.
//!
//! Names and ids become host names, arguments of ssh and names of files here. A remote host has no say in what runs on this
//! one, so its objects are checked once, as they come.

use crate::client::object::Object;

/// The longest name: a label of a host name (RFC 1035).
const MAX_NAME: usize = 63;
/// The length of an id.
const ID: usize = 32;

/// Returns whether the properties that lead to programs and files are plain. An object need not have them.
pub fn is_plain(object: &Object) -> bool {
    let has = |property: &str, is_plain: fn(&str) -> bool| {
        let text = object.text(property);
        text.is_empty() || is_plain(text)
    };
    has("Id", is_id) && has("Name", is_name) && has("SshHostKey", is_key)
}

/// Returns whether this is the id of an object: a name of a file that leads nowhere else.
pub fn is_id(text: &str) -> bool {
    text.len() == ID && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Returns whether this is a name as the service gives them: no option, no pattern, and one word.
pub fn is_name(text: &str) -> bool {
    let is_edge = |byte: Option<u8>| byte.is_some_and(|byte| byte != b'-');
    let is_inner = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    text.len() <= MAX_NAME
        && text.bytes().all(is_inner)
        && is_edge(text.bytes().next())
        && is_edge(text.bytes().last())
}

/// Returns whether this is the key of a host: one line with its type and its base64.
pub fn is_key(text: &str) -> bool {
    let is_type = |text: &str| {
        text.starts_with(|first: char| first.is_ascii_lowercase())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-@.".contains(&byte))
    };
    let is_base64 = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte))
    };
    text.split_once(' ').is_some_and(|(kind, key)| is_type(kind) && is_base64(key))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use zbus::{OwnedVariant, Variant};

    use super::*;

    const GOOD: [(&str, &str); 3] = [
        ("Id", "0123456789abcdef0123456789abcdef"),
        ("Name", "web-1"),
        ("SshHostKey", "ssh-ed25519 AAAAC3Nz+/aC1=="),
    ];

    fn object(changed: &str, value: &str) -> Object {
        let text = |(name, good): (&str, &str)| {
            let text = if name == changed { value } else { good };
            (name.to_owned(), OwnedVariant::try_from(Variant::from(text.to_owned())).unwrap())
        };
        Object::new(GOOD.map(text).into())
    }

    #[test]
    fn an_object_of_a_remote_host_names_no_program_and_no_other_file() {
        assert!(is_plain(&object("", "")) && is_plain(&Object::default()));
        // A sandbox that has not booted has no key.
        assert!(is_plain(&object("SshHostKey", "")));
        for (property, value) in [
            ("Name", "x\n    ProxyCommand touch /tmp/owned\nHost y"),
            ("Name", "-oProxyCommand=reboot"),
            ("Name", "*"),
            ("Name", "a b"),
            ("Name", "a%h"),
            ("Name", "Web"),
            ("Name", "web-"),
            ("Name", "../web"),
            ("Name", &"a".repeat(64)),
            ("Id", "../../.ssh"),
            ("Id", "/etc"),
            ("Id", "0123456789abcdef0123456789abcde/"),
            ("Id", "0123456789ABCDEF0123456789ABCDEF"),
            ("Id", "0123"),
            ("SshHostKey", "ssh-ed25519 AAAA\n* ssh-ed25519 BBBB"),
            ("SshHostKey", "ssh-ed25519 AAAA comment"),
            ("SshHostKey", "@cert-authority AAAA"),
            ("SshHostKey", "ssh-ed25519"),
            ("SshHostKey", "ssh-ed25519 "),
        ] {
            assert!(!is_plain(&object(property, value)), "{property} {value:?}");
        }
    }
}
