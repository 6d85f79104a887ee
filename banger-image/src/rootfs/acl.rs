//! Access control lists as ext4 keeps them. An archive has them as programs see them (`struct
//! posix_acl_xattr_entry` in `include/uapi/linux/posix_acl_xattr.h` of Linux); on the disk, entries that name
//! nobody are shorter (`fs/ext4/acl.h`).

const SEEN_VERSION: u32 = 2;
const KEPT_VERSION: u32 = 1;
const USER: u16 = 0x02;
const GROUP: u16 = 0x08;
/// Owner, group, mask and others.
const NAMELESS: [u16; 4] = [0x01, 0x04, 0x10, 0x20];

/// The list as ext4 keeps it, of what programs see. `None` when it is no list.
pub fn kept(seen: &[u8]) -> Option<Vec<u8>> {
    let (version, entries) = seen.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != SEEN_VERSION || !entries.len().is_multiple_of(8) {
        return None;
    }
    let mut kept = KEPT_VERSION.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        match tag {
            USER | GROUP => kept.extend(entry),
            _ if NAMELESS.contains(&tag) => kept.extend(&entry[..4]),
            _ => return None,
        }
    }
    Some(kept)
}

/// The list as programs see it, of what ext4 keeps. `None` when it is no list.
pub fn seen(kept: &[u8]) -> Option<Vec<u8>> {
    const NOBODY: [u8; 4] = [0xff; 4];
    let (version, mut entries) = kept.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != KEPT_VERSION {
        return None;
    }
    let mut seen = SEEN_VERSION.to_le_bytes().to_vec();
    while let Some((head, rest)) = entries.split_first_chunk::<4>() {
        seen.extend(head);
        let tag = u16::from_le_bytes([head[0], head[1]]);
        entries = match tag {
            USER | GROUP => {
                let (name, rest) = rest.split_first_chunk::<4>()?;
                seen.extend(name);
                rest
            }
            _ if NAMELESS.contains(&tag) => {
                seen.extend(NOBODY);
                rest
            }
            _ => return None,
        };
    }
    entries.is_empty().then_some(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_entries_with_a_name_keep_one() {
        let seen = [
            2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 5, 0, 0xe8, 3, 0, 0, 0x20, 0, 0, 0, 255, 255,
            255, 255,
        ];
        assert_eq!(kept(&seen), Some(vec![1, 0, 0, 0, 1, 0, 7, 0, 2, 0, 5, 0, 0xe8, 3, 0, 0, 0x20, 0, 0, 0]));
        assert_eq!(super::seen(&kept(&seen).unwrap_or_default()), Some(seen.to_vec()));
        for wrong in [&[1, 0, 0, 0, 2, 0, 0, 0][..], &[1, 0, 0, 0, 9, 0, 0, 0], &[2, 0, 0, 0], &[]] {
            assert_eq!(super::seen(wrong), None);
        }
        for wrong in [&seen[..27], &seen[..3], &[1, 0, 0, 0], &[2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0], &[]] {
            assert_eq!(kept(wrong), None);
        }
    }
}
