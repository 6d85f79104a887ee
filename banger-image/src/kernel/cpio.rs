//! Writes the kernel's initramfs format: uncompressed cpio "newc", with the same bytes for the same content.
//!
//! Source: the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::collections::BTreeSet;

/// Header fields, name and content each end at a multiple of this.
const ALIGNMENT: usize = 4;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;

/// A file cannot be put into an archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path} is too large for an initramfs")]
pub struct TooLarge {
    /// The path in the archive.
    pub path: String,
}

/// An archive under construction. All entries belong to root and have no time.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    directories: BTreeSet<String>,
}

impl Archive {
    /// Returns an empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory, and those above it with the mode 0755. Adding one again changes nothing.
    pub fn directory(&mut self, path: &str, permissions: u32) {
        if self.directories.contains(path) {
            return;
        }
        self.parents(path);
        self.directories.insert(path.to_owned());
        self.entry(path, DIRECTORY | permissions, 0);
    }

    /// Adds a file, and the directories above it with the mode 0755.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> Result<(), TooLarge> {
        let size = u32::try_from(content.len()).map_err(|_| TooLarge { path: path.to_owned() })?;
        self.parents(path);
        self.entry(path, REGULAR | permissions, size);
        self.bytes.extend_from_slice(content);
        self.align();
        Ok(())
    }

    /// Returns the finished archive. Another one may follow it directly.
    pub fn finish(mut self) -> Vec<u8> {
        self.entries = 0;
        self.header("TRAILER!!!", 0, 1, 0);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent, 0o755);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, size: u32) {
        self.entries += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        self.header(path, mode, links, size);
    }

    fn header(&mut self, path: &str, mode: u32, links: u32, size: u32) {
        let name_size = u32::try_from(path.len()).unwrap_or(u32::MAX).saturating_add(1);
        // ino, mode, uid, gid, nlink, mtime, filesize, dev and rdev (each major and minor), namesize, check
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    pub(in crate::kernel) struct Entry {
        pub path: String,
        pub mode: u32,
        pub content: Vec<u8>,
    }

    /// Reads archives as the kernel does (`init/initramfs.c`): concatenated, each with a trailer.
    pub(in crate::kernel) fn read(bytes: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |n: usize| {
                let text = str::from_utf8(&bytes[at + 6 + 8 * n..][..8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            assert_eq!([field(2), field(3), field(5)], [0; 3], "uid, gid and time");
            let name = at + 110;
            let content = (name + name_size).next_multiple_of(4);
            assert_eq!(bytes[name + name_size - 1], 0);
            let path = String::from_utf8(bytes[name..name + name_size - 1].to_vec()).unwrap();
            if path != "TRAILER!!!" {
                entries.push(Entry { path, mode, content: bytes[content..content + size].to_vec() });
            }
            at = (content + size).next_multiple_of(4);
        }
        assert_eq!(at, bytes.len());
        entries
    }

    fn cpio_tool(arguments: &[&str], directory: &std::path::Path, archive: &[u8]) -> Option<String> {
        let child = Command::new("cpio")
            .args(arguments)
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            println!("skipped: cpio is not installed");
            return None;
        };
        child.stdin.take().unwrap().write_all(archive).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        Some(String::from_utf8(output.stdout).unwrap())
    }

    #[test]
    fn directories_come_before_what_is_in_them_and_only_once() {
        let mut archive = Archive::new();
        archive.file("a/b/one", 0o644, b"1").unwrap();
        archive.directory("a", 0o700);
        archive.file("a/two", 0o600, b"22").unwrap();
        let entries = read(&archive.finish());
        let shown: Vec<_> = entries.iter().map(|entry| (entry.path.as_str(), entry.mode)).collect();
        assert_eq!(shown, [("a", 0o40755), ("a/b", 0o40755), ("a/b/one", 0o100644), ("a/two", 0o100600)]);
    }

    #[test]
    fn the_cpio_tool_unpacks_the_same_files() {
        let directory = tempfile::tempdir().unwrap();
        let mut archive = Archive::new();
        archive.directory("empty", 0o711);
        archive.file("lib/modules/six.ko", 0o644, &[7; 12345]).unwrap();
        archive.file("init", 0o755, b"#!").unwrap();
        let archive = archive.finish();
        let Some(listing) = cpio_tool(&["-t", "--quiet"], directory.path(), &archive) else { return };
        assert_eq!(listing, "empty\nlib\nlib/modules\nlib/modules/six.ko\ninit\n");
        cpio_tool(&["-i", "--quiet"], directory.path(), &archive);
        assert_eq!(std::fs::read(directory.path().join("lib/modules/six.ko")).unwrap(), [7; 12345]);
        assert_eq!(std::fs::read(directory.path().join("init")).unwrap(), b"#!");
        assert!(directory.path().join("empty").is_dir());
    }

    proptest! {
        #[test]
        fn what_was_written_can_be_read_back(
            files in proptest::collection::btree_map("[a-z]{1,9}", proptest::collection::vec(any::<u8>(), 0..64), 0..8),
        ) {
            let write = || {
                let mut archive = Archive::new();
                for (path, content) in &files {
                    archive.file(path, 0o640, content).unwrap();
                }
                archive.finish()
            };
            let expect: Vec<Entry> = files
                .iter()
                .map(|(path, content)| Entry { path: path.clone(), mode: 0o100640, content: content.clone() })
                .collect();
            prop_assert_eq!(read(&write()), expect);
            prop_assert_eq!(write(), write());
        }
    }
}
