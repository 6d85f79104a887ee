//! Converts access control lists between the form that programs and archives use (`struct posix_acl_xattr_entry` in
//! `include/uapi/linux/posix_acl_xattr.h` of Linux) and the form on an ext4 disk, in which entries without an id are
//! shorter (`fs/ext4/acl.h`).

const SEEN_VERSION: u32 = 2;
const KEPT_VERSION: u32 = 1;
const USER: u16 = 0x02;
const GROUP: u16 = 0x08;
/// Owner, group, mask and others.
const NAMELESS: [u16; 4] = [0x01, 0x04, 0x10, 0x20];

/// The number of no user and no group. Linux does not accept a list with an entry for it.
const NOBODY: [u8; 4] = [0xff; 4];

/// Returns the list as ext4 stores it. `None` if the input is not a list.
pub fn to_disk(from_disk: &[u8]) -> Option<Vec<u8>> {
    let (version, entries) = from_disk.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != SEEN_VERSION || !entries.len().is_multiple_of(8) {
        return None;
    }
    let mut to_disk = KEPT_VERSION.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        match tag {
            USER | GROUP if entry[4..] == NOBODY => return None,
            USER | GROUP => to_disk.extend(entry),
            _ if NAMELESS.contains(&tag) => to_disk.extend(&entry[..4]),
            _ => return None,
        }
    }
    Some(to_disk)
}

/// Returns the list as programs see it. `None` if the input is not a list.
pub fn from_disk(to_disk: &[u8]) -> Option<Vec<u8>> {
    let (version, mut entries) = to_disk.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != KEPT_VERSION {
        return None;
    }
    let mut from_disk = SEEN_VERSION.to_le_bytes().to_vec();
    while let Some((head, rest)) = entries.split_first_chunk::<4>() {
        from_disk.extend(head);
        let tag = u16::from_le_bytes([head[0], head[1]]);
        entries = match tag {
            USER | GROUP => {
                let (name, rest) = rest.split_first_chunk::<4>()?;
                from_disk.extend(name);
                rest
            }
            _ if NAMELESS.contains(&tag) => {
                from_disk.extend(NOBODY);
                rest
            }
            _ => return None,
        };
    }
    entries.is_empty().then_some(from_disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_entries_with_a_name_keep_one() {
        let from_disk = [
            2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 5, 0, 0xe8, 3, 0, 0, 0x20, 0, 0, 0, 255, 255,
            255, 255,
        ];
        assert_eq!(
            to_disk(&from_disk),
            Some(vec![1, 0, 0, 0, 1, 0, 7, 0, 2, 0, 5, 0, 0xe8, 3, 0, 0, 0x20, 0, 0, 0])
        );
        assert_eq!(super::from_disk(&to_disk(&from_disk).unwrap_or_default()), Some(from_disk.to_vec()));
        for wrong in [&[1, 0, 0, 0, 2, 0, 0, 0][..], &[1, 0, 0, 0, 9, 0, 0, 0], &[2, 0, 0, 0], &[]] {
            assert_eq!(super::from_disk(wrong), None);
        }
        for wrong in
            [&from_disk[..27], &from_disk[..3], &[1, 0, 0, 0], &[2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0], &[]]
        {
            assert_eq!(to_disk(wrong), None);
        }
    }
}
