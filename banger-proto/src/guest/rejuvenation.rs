//! What a guest that continues from a capture gets before it runs on: randomness, time and a token that the capture does
//! not have, and in a copy of a sandbox also an identity of its own.

use serde::{Deserialize, Serialize};

use super::config::{Entropy, GuestNetwork, GuestSsh};

/// What makes a guest that continues from a capture different from it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Rejuvenation {
    /// Random bytes of the host. The guest's random number generator continues from them.
    pub entropy: Entropy,
    /// The time of the host, in microseconds since the Unix epoch.
    pub unix_usec: u64,
    /// The token that a host must present from now on: 32 hexadecimal digits.
    pub token: String,
    /// The identity of a copy. Absent if the same sandbox continues.
    #[serde(default)]
    pub identity: Option<Identity>,
}

/// Omits the secrets.
impl std::fmt::Debug for Rejuvenation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rejuvenation").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// The identity of a sandbox that was copied while it ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Identity {
    /// The host name.
    pub hostname: String,
    /// The guest's own names, the fully qualified name first.
    pub names: Vec<String>,
    /// The machine id: 32 lower-case hexadecimal digits (machine-id(5)). An image without one gets none.
    pub machine_id: String,
    /// A random number that no other copy has: 32 lower-case hexadecimal digits. Programs find it in
    /// [`GENERATION_PATH`].
    pub generation: String,
    /// The network interface.
    pub network: Option<NewNetwork>,
    /// The host key of an ssh server in the image, and the public keys that it accepts.
    pub ssh: Option<GuestSsh>,
}

/// The interface of a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NewNetwork {
    /// The hardware address in the capture, by which the interface is found.
    pub replaces: [u8; 6],
    /// Its new configuration. All other addresses of the interface are removed, and connections that use them are
    /// ended.
    pub network: GuestNetwork,
}

/// The file with the [generation](Identity::generation), one line. It is replaced as a whole, so that programs can watch
/// it.
pub const GENERATION_PATH: &str = "/run/banger/generation";

/// Digits of a machine id and of a generation.
const ID_LENGTH: usize = 32;

/// Returns whether a text is valid as [`Identity::machine_id`] or [`Identity::generation`].
pub fn is_id(text: &str) -> bool {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.len() == ID_LENGTH && text.bytes().all(is_digit) && text.bytes().any(|byte| byte != b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_32_lower_case_digits_and_not_zero() {
        for (text, expect) in [
            ("0123456789abcdef0123456789abcdef", true),
            ("0123456789ABCDEF0123456789ABCDEF", false),
            ("0123456789abcdef0123456789abcde", false),
            ("0123456789abcdef0123456789abcdef0", false),
            ("00000000000000000000000000000000", false),
            ("0123456789abcdef0123456789abcde\n", false),
            ("", false),
        ] {
            assert_eq!(is_id(text), expect, "{text:?}");
        }
    }
}
