//! Reads the options (`a{sv}`) of a call, key by key. An unknown key or a wrong type is refused: an ignored option
//! would seem to work.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::{AsFd, OwnedFd},
};

use zbus::{OwnedVariant, Variant};

use super::error::{Error, Result};

/// Keys with this prefix belong to others, and are ignored.
const FOREIGN: &str = "x-";

/// A D-Bus dictionary of variants: `a{sv}`.
pub type Dict = HashMap<String, OwnedVariant>;

/// The options of a call.
pub struct Options(Dict);

impl Options {
    pub fn new(options: Dict) -> Self {
        Self(options)
    }

    pub fn string(&mut self, key: &'static str) -> Result<Option<String>> {
        self.take(key, "a string", |value| match value {
            Variant::Str(text) => Some(text.to_string()),
            _ => None,
        })
    }

    pub fn boolean(&mut self, key: &'static str) -> Result<Option<bool>> {
        self.take(key, "true or false", |value| match value {
            Variant::Bool(value) => Some(*value),
            _ => None,
        })
    }

    /// Reads a number of 0 or more, of any integer type.
    pub fn number(&mut self, key: &'static str) -> Result<Option<u64>> {
        self.take(key, "a number of 0 or more", |value| match value {
            Variant::U8(n) => Some(u64::from(*n)),
            Variant::U16(n) => Some(u64::from(*n)),
            Variant::U32(n) => Some(u64::from(*n)),
            Variant::U64(n) => Some(*n),
            Variant::I16(n) => u64::try_from(*n).ok(),
            Variant::I32(n) => u64::try_from(*n).ok(),
            Variant::I64(n) => u64::try_from(*n).ok(),
            _ => None,
        })
    }

    pub fn small_number(&mut self, key: &'static str) -> Result<Option<u32>> {
        let Some(number) = self.number(key)? else { return Ok(None) };
        u32::try_from(number).map(Some).map_err(|_| Error::invalid_option(format!("{key} is too large")))
    }

    /// Reads a file descriptor, and duplicates it.
    pub fn file(&mut self, key: &'static str) -> Result<Option<OwnedFd>> {
        self.take(key, "a file descriptor", |value| match value {
            Variant::Fd(fd) => fd.as_fd().try_clone_to_owned().ok(),
            _ => None,
        })
    }

    pub fn strings(&mut self, key: &'static str) -> Result<BTreeMap<String, String>> {
        let map = self.take(key, "a dictionary of strings", |value| {
            HashMap::<String, String>::try_from(value.try_clone().ok()?).ok()
        })?;
        Ok(map.unwrap_or_default().into_iter().collect())
    }

    pub fn list(&mut self, key: &'static str) -> Result<Vec<String>> {
        Ok(self.optional_list(key)?.unwrap_or_default())
    }

    /// Reads a list that may be empty on purpose.
    pub fn optional_list(&mut self, key: &'static str) -> Result<Option<Vec<String>>> {
        self.take(key, "a list of strings", |value| Vec::<String>::try_from(value.try_clone().ok()?).ok())
    }

    /// Reads a list of pairs of numbers.
    pub fn ranges(&mut self, key: &'static str) -> Result<Vec<(u64, u64)>> {
        let ranges = self.take(key, "a list of pairs of numbers", |value| {
            Vec::<(u64, u64)>::try_from(value.try_clone().ok()?).ok()
        })?;
        Ok(ranges.unwrap_or_default())
    }

    /// Reads a list of ports: protocol, port of the guest, port of the host, scope.
    pub fn ports(&mut self, key: &'static str) -> Result<Vec<(String, u16, u16, String)>> {
        let ports = self.take(key, "a list of ports", |value| {
            Vec::<(String, u16, u16, String)>::try_from(value.try_clone().ok()?).ok()
        })?;
        Ok(ports.unwrap_or_default())
    }

    /// Checks that all options were read. Others are unknown.
    pub fn finish(self) -> Result<()> {
        let unknown = self.0.into_keys().filter(|key| !key.starts_with(FOREIGN)).min();
        match unknown {
            Some(key) => {
                let key: String = key.chars().take(60).collect();
                Err(Error::invalid_option(format!("unknown option {key:?}")))
            }
            None => Ok(()),
        }
    }

    fn take<T>(
        &mut self,
        key: &'static str,
        form: &str,
        read: impl FnOnce(&Variant<'_>) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.0.remove(key) else { return Ok(None) };
        match read(&value) {
            Some(value) => Ok(Some(value)),
            None => Err(Error::invalid_option(format!("the option {key} must be {form}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn options(pairs: &[(&str, Variant<'_>)]) -> Options {
        let own = |value: &Variant<'_>| OwnedVariant::try_from(value.try_clone().unwrap()).unwrap();
        Options::new(pairs.iter().map(|(key, value)| ((*key).to_owned(), own(value))).collect())
    }

    #[test]
    fn options_are_read_by_type() {
        let mut read =
            options(&[("a", "text".into()), ("b", true.into()), ("c", 7u32.into()), ("d", 7i64.into())]);
        assert_eq!(read.string("a").unwrap().as_deref(), Some("text"));
        assert_eq!(read.boolean("b").unwrap(), Some(true));
        assert_eq!(read.number("c").unwrap(), Some(7));
        assert_eq!(read.small_number("d").unwrap(), Some(7));
        assert_eq!(read.string("absent").unwrap(), None);
        read.finish().unwrap();
    }

    #[test]
    fn wrong_types_and_unknown_keys_are_refused() {
        assert_eq!(
            options(&[("a", 1u32.into())]).string("a").unwrap_err().message,
            "the option a must be a string"
        );
        assert!(options(&[("a", (-1i32).into())]).number("a").is_err());
        assert!(options(&[("a", u64::MAX.into())]).small_number("a").is_err());
        assert_eq!(
            options(&[("typo", 1u32.into())]).finish().unwrap_err().message,
            "unknown option \"typo\""
        );
        options(&[("x-mine", 1u32.into())]).finish().unwrap();
    }
}
