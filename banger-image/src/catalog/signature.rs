//! Signatures of minisign (<https://jedisct1.github.io/minisign/>): Ed25519 over a digest of the content.

use minisign_verify::{PublicKey, Signature};

use super::{Unusable, printable};

/// A signature has four short lines.
pub const MAX_SIGNATURE: u64 = 4 << 10;
/// More keys than a rotation needs.
const MAX_KEYS: usize = 16;
/// The prefix of the first line of a key file.
const COMMENT: &str = "untrusted comment:";

/// Public keys, each of which may sign.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys(Vec<PublicKey>);

impl Keys {
    /// Parses the keys in a text, one per line. Comments, as `minisign` writes them, are skipped.
    pub fn parse(text: &str) -> Result<Self, Unusable> {
        let lines = text.lines().map(str::trim);
        let lines =
            lines.filter(|line| !line.is_empty() && !line.starts_with(COMMENT) && !line.starts_with('#'));
        let key = |line: &str| {
            PublicKey::from_base64(line)
                .map_err(|_| Unusable::new(format!("{} is not a public key of minisign", printable(line))))
        };
        let keys: Vec<PublicKey> = lines.map(key).collect::<Result<_, _>>()?;
        match keys.len() <= MAX_KEYS {
            true => Ok(Self(keys)),
            false => Err(Unusable::new(format!("there are more than {MAX_KEYS} keys"))),
        }
    }

    /// Returns the keys of both.
    pub fn and(&self, more: &Keys) -> Self {
        Self(self.0.iter().chain(&more.0).cloned().collect())
    }

    /// Returns whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Content with a verified signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed(Vec<u8>);

impl Signed {
    /// Verifies a signature. Only minisign's current format is accepted, which signs a digest.
    pub fn verify(bytes: Vec<u8>, signature: &[u8], keys: &Keys) -> Result<Self, Unusable> {
        if keys.is_empty() {
            return Err(Unusable::new("no key is configured for it"));
        }
        let text = str::from_utf8(signature).ok().filter(|text| text.len() as u64 <= MAX_SIGNATURE);
        let signature = text.and_then(|text| Signature::decode(text).ok());
        let signature =
            signature.ok_or_else(|| Unusable::new("its signature is not a minisign signature"))?;
        match keys.0.iter().any(|key| key.verify(&bytes, &signature, false).is_ok()) {
            true => Ok(Self(bytes)),
            false => Err(Unusable::new(
                "it is not signed by a key that is configured for it, or was changed afterwards",
            )),
        }
    }

    /// Returns the content.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
pub(crate) mod fixture {
    //! A publisher with a new key.
    #![allow(clippy::unwrap_used)]
    use minisign::KeyPair;

    use super::Keys;

    pub(crate) struct Signer(KeyPair);

    impl Signer {
        pub(crate) fn new() -> Self {
            Self(KeyPair::generate_unencrypted_keypair().unwrap())
        }

        pub(crate) fn key(&self) -> String {
            self.0.pk.to_base64()
        }

        pub(crate) fn keys(&self) -> Keys {
            Keys::parse(&self.key()).unwrap()
        }

        pub(crate) fn sign(&self, bytes: &[u8]) -> String {
            minisign::sign(Some(&self.0.pk), &self.0.sk, bytes, None, None).unwrap().into_string()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::{fixture::Signer, *};

    const TEXT: &[u8] = b"what is signed";

    fn verify(bytes: &[u8], signature: &str, keys: &Keys) -> Result<Signed, String> {
        Signed::verify(bytes.to_vec(), signature.as_bytes(), keys).map_err(|error| error.to_string())
    }

    #[test]
    fn content_signed_by_one_of_the_keys_is_accepted_and_nothing_else() {
        let (signer, other) = (Signer::new(), Signer::new());
        let signature = signer.sign(TEXT);
        assert_eq!(verify(TEXT, &signature, &signer.keys()).unwrap().bytes(), TEXT);
        assert!(verify(TEXT, &signature, &other.keys().and(&signer.keys())).is_ok());
        for (bytes, signature, keys, why) in [
            (TEXT, signature.as_str(), other.keys(), "not signed by a key"),
            (b"what is signeD", &signature, signer.keys(), "not signed by a key"),
            (TEXT, &other.sign(TEXT), signer.keys(), "not signed by a key"),
            (TEXT, &signature, Keys::default(), "no key is configured"),
            (TEXT, "", signer.keys(), "not a minisign signature"),
            (TEXT, "a\nb\nc\nd\n", signer.keys(), "not a minisign signature"),
            (TEXT, &format!("{signature}{}", " ".repeat(5000)), signer.keys(), "not a minisign signature"),
        ] {
            let error = verify(bytes, signature, &keys).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn the_comment_that_is_signed_cannot_be_changed() {
        let signer = Signer::new();
        let signature = signer.sign(TEXT).replace("trusted comment: ", "trusted comment: not ");
        assert!(verify(TEXT, &signature, &signer.keys()).is_err());
    }

    #[test]
    fn keys_stand_on_lines_with_comments_between_them() {
        let (one, other) = (Signer::new(), Signer::new());
        let text =
            format!("untrusted comment: the old one\n{}\n\n# the next one\n{}\n", one.key(), other.key());
        let keys = Keys::parse(&text).unwrap();
        for signer in [&one, &other] {
            assert!(verify(TEXT, &signer.sign(TEXT), &keys).is_ok());
        }
        assert!(Keys::parse("nonsense").is_err());
        assert!(Keys::parse(&format!("{}\n", one.key()).repeat(17)).is_err());
        assert!(Keys::parse("").unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn no_signature_makes_it_panic(text in "\\PC{0,40}(\n\\PC{0,120}){0,5}") {
            let signer = Signer::new();
            let _ = verify(TEXT, &text, &signer.keys());
        }
    }
}
