//! Parses the records of an extended header (POSIX.1-2001 `pax`): `LENGTH KEYWORD=VALUE
//! `, where the length is that of the whole record.

use std::collections::BTreeMap;

use super::{
    Error, attribute,
    entry::Time,
    limits,
    sparse::{self, Segment},
};

/// The prefix of extended attributes, which star introduced and GNU tar, libarchive and Go write.
const ATTRIBUTE: &[u8] = b"SCHILY.xattr.";

/// The values of extended headers for the next entry. A later record replaces an earlier one.
#[derive(Debug, Default, Clone)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) user: Option<i64>,
    pub(super) group: Option<i64>,
    pub(super) modified: Option<Time>,
    pub(super) attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) sparse: Sparse,
}

/// The values for a sparse file.
#[derive(Debug, Default, Clone)]
pub(super) struct Sparse {
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    pub(super) map: Option<Vec<Segment>>,
    /// Whether the map is at the beginning of the data.
    pub(super) map_is_data: bool,
}

impl Records {
    /// Adds the records of a header.
    pub(super) fn read(&mut self, mut text: &[u8]) -> Result<(), Error> {
        const NO_RECORD: Error = Error::Damaged("an extended header is invalid");
        let mut begun = None;
        while !text.is_empty() {
            let space = text.iter().position(|&byte| byte == b' ').ok_or(NO_RECORD)?;
            let length = sparse::decimal(&text[..space]).and_then(|length| usize::try_from(length).ok());
            let length =
                length.filter(|length| (space + 1..=text.len()).contains(length)).ok_or(NO_RECORD)?;
            let (record, rest) = text.split_at(length);
            let record = record.get(space + 1..).and_then(|record| record.strip_suffix(b"\n"));
            let record = record.ok_or(NO_RECORD)?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or(NO_RECORD)?;
            self.put(&record[..equals], &record[equals + 1..], &mut begun)
                .ok_or(Error::Damaged("an extended header has an invalid value"))?;
            if self.attributes.len() > limits::ATTRIBUTE_NAMES {
                let most = limits::ATTRIBUTE_NAMES;
                return Err(Error::entry(self.shown(), format!("has more than {most} extended attributes")));
            }
            text = rest;
        }
        // Whether an entry has room for its attributes is known only once it is known what it is.
        match self.sparse.map.as_ref().is_some_and(|map| map.len() > limits::SEGMENTS) {
            true => Err(Error::entry(self.shown(), "has too many pieces of data")),
            false => Ok(()),
        }
    }

    /// Adds the records of a header for all entries. They stay in memory until the archive ends.
    pub(super) fn read_global(&mut self, text: &[u8]) -> Result<(), Error> {
        self.read(text)?;
        match self.size() > limits::GLOBALS {
            true => Err(Error::TooMany {
                most: limits::GLOBALS as u64,
                what: "bytes in its headers for all entries",
            }),
            false => Ok(()),
        }
    }

    fn shown(&self) -> &[u8] {
        self.path.as_deref().unwrap_or(b"of an extended header")
    }

    /// Returns the size of everything that can be long.
    fn size(&self) -> usize {
        let texts = [&self.path, &self.link, &self.sparse.name].into_iter().flatten().map(Vec::len);
        let attributes = self.attributes.iter().map(|(name, value)| name.len() + value.len());
        let map = self.sparse.map.as_deref().map_or(0, size_of_val);
        texts.chain(attributes).sum::<usize>() + map
    }

    /// Adds a record. `begun` is the offset of a range whose length has not come yet.
    fn put(&mut self, key: &[u8], value: &[u8], begun: &mut Option<u64>) -> Option<()> {
        // An empty value removes an earlier one.
        let given = !value.is_empty();
        let number = || if given { sparse::decimal(value).map(Some) } else { Some(None) };
        let id = || number()?.map(i64::try_from).transpose().ok();
        let text = || given.then(|| value.to_vec());
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link = text(),
            b"size" => self.size = number()?,
            b"uid" => self.user = id()?,
            b"gid" => self.group = id()?,
            b"mtime" => self.modified = if given { Some(time(value)?) } else { None },
            b"GNU.sparse.name" => self.sparse.name = text(),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse.real_size = number()?,
            b"GNU.sparse.major" => self.sparse.map_is_data = value == b"1",
            b"GNU.sparse.map" => self.sparse.map = Some(sparse::in_a_line(value)?),
            b"GNU.sparse.offset" => *begun = number()?,
            b"GNU.sparse.numbytes" => {
                let (at, length) = (begun.take()?, number()??);
                self.sparse.map.get_or_insert_default().push(Segment { at, length });
            }
            _ => {
                let name = key.strip_prefix(ATTRIBUTE).map(without_escapes);
                // Others are left out, whatever their size.
                if let Some(name) = name.filter(|name| attribute::is_of_linux(name)) {
                    self.attributes.insert(name, value.to_vec());
                }
            }
        }
        Some(())
    }
}

/// Decodes `%3D` and `%25`, with which GNU tar escapes the names of attributes.
fn without_escapes(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, behind)) = rest.split_first() {
        let (byte, behind) = match rest {
            [b'%', b'3', b'D', behind @ ..] => (b'=', behind),
            [b'%', b'2', b'5', behind @ ..] => (b'%', behind),
            _ => (*first, behind),
        };
        plain.push(byte);
        rest = behind;
    }
    plain
}

/// Parses a time: seconds with any number of decimals.
fn time(text: &[u8]) -> Option<Time> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = match digits.iter().position(|&byte| byte == b'.') {
        Some(point) => (&digits[..point], &digits[point + 1..]),
        None => (digits, &digits[..0]),
    };
    let seconds = i64::try_from(sparse::decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nine = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = nine.fold(0u32, |number, digit| number * 10 + u32::from(digit - b'0'));
    Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        // Nanoseconds count forwards from the second before.
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn records(pairs: &[(&str, &str)]) -> Records {
        let mut records = Records::default();
        let text: String = pairs.iter().map(|(key, value)| record(key, value)).collect();
        records.read(text.as_bytes()).unwrap();
        records
    }

    fn record(key: &str, value: &str) -> String {
        let rest = key.len() + value.len() + 3;
        let length = (rest..).find(|length| length.to_string().len() + rest == *length).unwrap();
        format!("{length} {key}={value}\n")
    }

    #[test]
    fn records_say_what_a_header_has_no_room_for() {
        let records = records(&[
            ("path", "a=b\nc"),
            ("size", "8589934592"),
            ("uid", "2097152"),
            ("mtime", "1.5"),
            ("SCHILY.xattr.user.a%3Db%25", "x"),
            ("SCHILY.xattr.user.a%3Db%25", "y\0z"),
            ("comment", "whatever"),
            ("linkpath", "x"),
            ("linkpath", ""),
        ]);
        assert_eq!(records.path.unwrap(), b"a=b\nc");
        assert_eq!((records.size, records.user, records.link), (Some(8 << 30), Some(2 << 20), None));
        assert_eq!(records.modified, Some((1, 500_000_000)));
        assert_eq!(records.attributes, BTreeMap::from([(b"user.a=b%".to_vec(), b"y\0z".to_vec())]));
    }

    #[test]
    fn times_are_exact_on_both_sides_of_1970() {
        let check = |text: &str, expect| assert_eq!(time(text.as_bytes()), expect, "{text}");
        check("0", Some((0, 0)));
        check("1.000000001", Some((1, 1)));
        check("4102444800.9999999999", Some((4_102_444_800, 999_999_999)));
        check("-1", Some((-1, 0)));
        check("-1.25", Some((-2, 750_000_000)));
        check("-0.5", Some((-1, 500_000_000)));
        for wrong in ["", "-", ".5", "1.x", "--1", "1e3", "99999999999999999999"] {
            check(wrong, None);
        }
    }

    #[test]
    fn maps_of_both_old_forms_are_read() {
        let map = vec![Segment { at: 0, length: 5 }, Segment { at: 4096, length: 1 }];
        let line = records(&[("GNU.sparse.map", "0,5,4096,1"), ("GNU.sparse.size", "9000")]);
        let many = records(&[
            ("GNU.sparse.offset", "0"),
            ("GNU.sparse.numbytes", "5"),
            ("GNU.sparse.offset", "4096"),
            ("GNU.sparse.numbytes", "1"),
        ]);
        assert_eq!((line.sparse.map, line.sparse.real_size), (Some(map.clone()), Some(9000)));
        assert_eq!(many.sparse.map, Some(map));
    }

    #[test]
    fn an_invalid_record_is_refused() {
        for wrong in [
            "x",
            "5 a=b",
            "6 a=b",
            "5 abc\n",
            "0 a=b\n",
            "99 a=b\n",
            "-6 a=b\n",
            "7 size=x\n",
            "11 size=-10\n",
        ] {
            assert!(Records::default().read(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_header_with_too_many_attributes_is_refused_by_name() {
        let attributes = |count: usize| -> String {
            (0..count).map(|n| record(&format!("SCHILY.xattr.user.{n}"), "v")).collect()
        };
        let read = |count| Records::default().read((record("path", "etc/a") + &attributes(count)).as_bytes());
        assert!(read(limits::ATTRIBUTE_NAMES).is_ok());
        let error = read(limits::ATTRIBUTE_NAMES + 1).unwrap_err().to_string();
        assert_eq!(error, "the entry etc/a has more than 256 extended attributes");
        // One name again and again is one attribute.
        let again = record("SCHILY.xattr.user.x", "v").repeat(40_000);
        assert!(Records::default().read(again.as_bytes()).is_ok());
    }

    #[test]
    fn headers_for_all_entries_cannot_grow_without_limit() {
        let comment = record("comment", &"v".repeat(100_000));
        assert!(Records::default().read_global(comment.as_bytes()).is_ok());
        let mut records = Records::default();
        let attribute = |n: usize| record(&format!("SCHILY.xattr.user.{n}"), &"v".repeat(1000));
        assert!((0..5).any(|n| records.read_global(attribute(n).as_bytes()).is_err()));
        let mut records = Records::default();
        let pair = record("GNU.sparse.offset", "0") + &record("GNU.sparse.numbytes", "0");
        assert!((0..300).any(|_| records.read_global(pair.as_bytes()).is_err()));
        for key in ["path", "linkpath", "GNU.sparse.name"] {
            let long = record(key, &"v".repeat(limits::GLOBALS + 1));
            assert!(Records::default().read_global(long.as_bytes()).is_err(), "{key}");
        }
    }

    #[test]
    fn attributes_of_other_systems_are_left_out_whatever_their_size() {
        let records = records(&[
            ("SCHILY.xattr.com.apple.quarantine", &"v".repeat(9000)),
            ("SCHILY.xattr.system.nfs4_acl", &"v".repeat(9000)),
            ("SCHILY.xattr.user.a", "b"),
        ]);
        assert_eq!(records.attributes, BTreeMap::from([(b"user.a".to_vec(), b"b".to_vec())]));
    }
}
