//! Parses the records of an extended header (POSIX.1-2001 `pax`): `LENGTH KEYWORD=VALUE
//! `, where the length is that of the whole record.

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
    pub(super) attributes: Vec<(Vec<u8>, Vec<u8>)>,
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
            text = rest;
        }
        self.check_size()
    }

    /// Checks what several headers can add to: those for all entries stay in memory until the archive ends. Whether
    /// an entry has room for its attributes is known only once it is known what it is.
    fn check_size(&self) -> Result<(), Error> {
        let shown = || self.path.as_deref().unwrap_or(b"of an extended header");
        let size: usize = self.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
        if size as u64 > limits::EXTENDED {
            let most = limits::EXTENDED;
            return Err(Error::entry(shown(), format!("has more than {most} bytes of extended attributes")));
        }
        match self.sparse.map.as_ref().is_some_and(|map| map.len() > limits::SEGMENTS) {
            true => Err(Error::entry(shown(), "has too many pieces of data")),
            false => Ok(()),
        }
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
                    self.attributes.retain(|(known, _)| *known != name);
                    self.attributes.push((name, value.to_vec()));
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
        assert_eq!(records.attributes, [(b"user.a=b%".to_vec(), b"y\0z".to_vec())]);
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
        let huge = record("SCHILY.xattr.user.x", &"v".repeat(limits::EXTENDED as usize));
        assert!(Records::default().read(huge.as_bytes()).is_err());
    }

    #[test]
    fn headers_for_all_entries_cannot_grow_without_limit() {
        let mut records = Records::default();
        let attribute = |n: usize| record(&format!("SCHILY.xattr.user.{n}"), &"v".repeat(100_000));
        assert!((0..11).any(|n| records.read(attribute(n).as_bytes()).is_err()));
        let mut records = Records::default();
        let pair = record("GNU.sparse.offset", "0") + &record("GNU.sparse.numbytes", "0");
        let many = pair.repeat(limits::SEGMENTS / 4);
        assert!((0..5).any(|_| records.read(many.as_bytes()).is_err()));
    }

    #[test]
    fn attributes_of_other_systems_are_left_out_whatever_their_size() {
        let records = records(&[
            ("SCHILY.xattr.com.apple.quarantine", &"v".repeat(9000)),
            ("SCHILY.xattr.system.nfs4_acl", &"v".repeat(9000)),
            ("SCHILY.xattr.user.a", "b"),
        ]);
        assert_eq!(records.attributes, [(b"user.a".to_vec(), b"b".to_vec())]);
    }
}
