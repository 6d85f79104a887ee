//! A header of a tar archive: a block of 512 bytes with fields at fixed offsets (POSIX.1-1988 `ustar`, and GNU tar's
//! variant, `tar.h` in its manual).

use std::ops::Range;

use super::{Error, sparse::Segment};

/// The unit of an archive.
pub(super) const BLOCK: usize = 512;

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const USER: Range<usize> = 108..116;
const GROUP: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MODIFIED: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const TYPE: usize = 156;
const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..265;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;
const PREFIX: Range<usize> = 345..500;

const POSIX: &[u8] = b"ustar\0";
const GNU: &[u8] = b"ustar  \0";

/// GNU tar's fields of a sparse file: the first ranges, whether more follow, and the length of the file.
const GNU_MAP: Range<usize> = 386..482;
const GNU_MORE: usize = 482;
const GNU_REAL_SIZE: Range<usize> = 483..495;
/// The next ranges in the blocks that follow, and whether more follow.
const NEXT_MAP: Range<usize> = 0..504;
const NEXT_MORE: usize = 504;

/// A header, or a block of ranges that follows one.
pub(super) struct Header(pub(super) [u8; BLOCK]);

impl Header {
    /// Returns whether the block is one of those that end an archive.
    pub(super) fn is_zero(&self) -> bool {
        self.0 == [0; BLOCK]
    }

    /// Returns whether its checksum is right.
    pub(super) fn is_whole(&self) -> bool {
        let without = |index: usize| if CHECKSUM.contains(&index) { b' ' } else { self.0[index] };
        let unsigned: i64 = (0..BLOCK).map(|index| i64::from(without(index))).sum();
        // Some old programs summed signed bytes.
        let signed: i64 = (0..BLOCK).map(|index| i64::from(without(index).cast_signed())).sum();
        self.number(CHECKSUM).is_some_and(|sum| sum == unsigned || sum == signed)
    }

    pub(super) fn kind(&self) -> u8 {
        self.0[TYPE]
    }

    /// Returns the name, with the prefix from its field.
    pub(super) fn path(&self) -> Vec<u8> {
        let (name, prefix) = (self.text(NAME), self.text(PREFIX));
        if !self.0[MAGIC].starts_with(POSIX) || prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    pub(super) fn link(&self) -> &[u8] {
        self.text(LINK)
    }

    pub(super) fn mode(&self) -> Result<u16, Error> {
        // Some programs include the file type.
        self.number(MODE)
            .map(|mode| (mode & 0o7777) as u16)
            .ok_or(Error::Damaged("the mode of an entry is not a number"))
    }

    pub(super) fn user(&self) -> Result<i64, Error> {
        self.number(USER).ok_or(Error::Damaged("the owner of an entry is not a number"))
    }

    pub(super) fn group(&self) -> Result<i64, Error> {
        self.number(GROUP).ok_or(Error::Damaged("the group of an entry is not a number"))
    }

    pub(super) fn size(&self) -> Result<u64, Error> {
        self.unsigned(SIZE).ok_or(Error::Damaged("the size of an entry is not a number"))
    }

    pub(super) fn modified(&self) -> Result<i64, Error> {
        self.number(MODIFIED).ok_or(Error::Damaged("the time of an entry is not a number"))
    }

    /// Returns the device numbers.
    pub(super) fn device(&self) -> Result<(u64, u64), Error> {
        let numbers = self.unsigned(MAJOR).zip(self.unsigned(MINOR));
        numbers.ok_or(Error::Damaged("the number of a device is not a number"))
    }

    /// Returns whether it has GNU tar's own fields.
    pub(super) fn is_gnu(&self) -> bool {
        self.0[MAGIC] == *GNU
    }

    /// Returns the length of a sparse file.
    pub(super) fn gnu_real_size(&self) -> Result<u64, Error> {
        self.unsigned(GNU_REAL_SIZE).ok_or(Error::Damaged("the size of a sparse file is not a number"))
    }

    /// Returns the ranges in a header, and whether a block with more follows.
    pub(super) fn gnu_map(&self) -> Result<(Vec<Segment>, bool), Error> {
        Ok((self.map(GNU_MAP)?, self.0[GNU_MORE] != 0))
    }

    /// Returns the ranges in a block after a header, and whether another one follows.
    pub(super) fn next_map(&self) -> Result<(Vec<Segment>, bool), Error> {
        Ok((self.map(NEXT_MAP)?, self.0[NEXT_MORE] != 0))
    }

    fn map(&self, place: Range<usize>) -> Result<Vec<Segment>, Error> {
        let mut segments = Vec::new();
        for at in place.step_by(24) {
            if self.0[at] == 0 {
                break;
            }
            let pair = self.unsigned(at..at + 12).zip(self.unsigned(at + 12..at + 24));
            let (at, length) = pair.ok_or(Error::Damaged("the map of a sparse file is invalid"))?;
            segments.push(Segment { at, length });
        }
        Ok(segments)
    }

    /// Returns a field up to its first zero.
    fn text(&self, place: Range<usize>) -> &[u8] {
        let field = &self.0[place];
        field.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    fn unsigned(&self, place: Range<usize>) -> Option<u64> {
        self.number(place).and_then(|number| number.try_into().ok())
    }

    /// Parses a number: octal digits among spaces and zeros, or two's complement after a marker byte. An empty field
    /// is 0.
    fn number(&self, place: Range<usize>) -> Option<i64> {
        let field = &self.0[place];
        if field[0] & 0x80 != 0 {
            // The second highest bit is the sign; bits beyond 64 must repeat it.
            let first = (field[0] << 1).cast_signed() >> 1;
            return field[1..].iter().try_fold(i64::from(first), |number, byte| {
                Some(number.checked_mul(256)? | i64::from(*byte))
            });
        }
        let is_filler = |byte: &u8| matches!(byte, b' ' | 0);
        let start = field.iter().position(|byte| !is_filler(byte)).unwrap_or(field.len());
        let end = field[start..].iter().position(is_filler).map_or(field.len(), |length| start + length);
        if !field[end..].iter().all(is_filler) {
            return None;
        }
        field[start..end].iter().try_fold(0i64, |number, byte| {
            let digit = i64::from(byte.wrapping_sub(b'0'));
            (digit < 8).then_some(())?;
            number.checked_mul(8)?.checked_add(digit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(field: &[u8]) -> Option<i64> {
        let mut header = Header([0; BLOCK]);
        header.0[MODIFIED][..field.len()].copy_from_slice(field);
        header.number(MODIFIED.start..MODIFIED.start + field.len())
    }

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"77777777777\0"), Some(0o77_777_777_777));
        assert_eq!(number(&[0; 8]), Some(0));
        assert_eq!(number(b"        "), Some(0));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]), Some(-2));
        for wrong in [b"8       ".as_slice(), b"1 2\0\0\0\0\0", b"-1\0\0\0\0\0\0", b"0x1\0\0\0\0\0"] {
            assert_eq!(number(wrong), None, "{wrong:?}");
        }
        let mut huge = [0x80; 12];
        huge[1..].fill(0xff);
        assert_eq!(number(&huge), None);
    }
}
