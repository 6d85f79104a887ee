//! Packs a directory of kernel modules as a tar archive. The same directory gives the same bytes.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Seek, Write},
    path::{Path, PathBuf},
};

use tar::{Builder, EntryType, Header};

/// Why modules cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory has no modules.
    #[error("there are no kernel modules in {}", .directory.display())]
    Empty {
        /// The directory.
        directory: PathBuf,
    },
    /// The system refused.
    #[error("cannot {doing}")]
    Io {
        /// What was being done, and to what.
        doing: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Error {
    fn io(doing: impl Into<String>, source: io::Error) -> Self {
        Self::Io { doing: doing.into(), source }
    }
}

type Result<T, E = Error> = std::result::Result<T, E>;

/// Packs the modules and module tables below `directory` into an empty file. Returns that file, positioned at its
/// beginning.
///
/// Only regular files are packed: `build` and `source`, links to headers, are left out.
pub fn archive(directory: &Path, into: File) -> Result<File> {
    let mut files = Vec::new();
    collect(directory, Path::new(""), &mut files)?;
    if files.is_empty() {
        return Err(Error::Empty { directory: directory.to_owned() });
    }
    files.sort();
    let failed = |source| Error::io("pack the modules into a file", source);
    let mut builder = Builder::new(BufWriter::new(into));
    let prefix = release_of(directory);
    for file in files {
        append(&mut builder, directory, &prefix, &file)?;
    }
    let mut writer = builder.into_inner().map_err(failed)?;
    writer.flush().map_err(failed)?;
    let mut archive = writer.into_inner().map_err(|error| failed(error.into_error()))?;
    archive.rewind().map_err(failed)?;
    Ok(archive)
}

/// Keeps the release of `…/modules/RELEASE`, so that the service can detect modules of another kernel.
fn release_of(directory: &Path) -> PathBuf {
    let whole = fs::canonicalize(directory).unwrap_or_default();
    let below_modules = whole.parent().and_then(Path::file_name).is_some_and(|parent| parent == "modules");
    match whole.file_name() {
        Some(release) if below_modules => PathBuf::from(release),
        _ => PathBuf::new(),
    }
}

/// Collects the files for the archive, as paths relative to `root`.
fn collect(root: &Path, below: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let directory = root.join(below);
    let failed = |source| Error::io(format!("read {}", directory.display()), source);
    for entry in fs::read_dir(&directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = below.join(entry.file_name());
        // Without following links.
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() {
            collect(root, &path, files)?;
        } else if kind.is_file() && belongs(&path) {
            files.push(path);
        }
    }
    Ok(())
}

/// Returns whether the file is a module, possibly compressed, or a table of depmod(8).
fn belongs(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    let is_module = [".ko", ".ko.gz", ".ko.xz", ".ko.zst"].iter().any(|end| name.ends_with(end));
    let is_table = name.starts_with("modules.") && path.parent() == Some(Path::new(""));
    is_module || is_table
}

fn append<W: Write>(builder: &mut Builder<W>, root: &Path, prefix: &Path, path: &Path) -> Result<()> {
    let whole = root.join(path);
    let failed = |source: io::Error| Error::io(format!("pack {}", whole.display()), source);
    let file = File::open(&whole).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    // A file that grows meanwhile must not extend into the next entry.
    let content = Exactly { file, left: size };
    builder.append_data(&mut header, prefix.join(path), content).map_err(failed)
}

/// Reads as many bytes of a file as it had. Fails if it has fewer by now.
struct Exactly {
    file: File,
    left: u64,
}

impl io::Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.read(&mut buffer[..want])?;
        if count == 0 && want > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{io::Read, os::unix::fs::symlink};

    use super::*;

    /// Creates a directory like `/lib/modules/6.1.0`.
    fn tree() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("lib/modules/6.1.0");
        fs::create_dir_all(root.join("kernel/drivers/virtio")).unwrap();
        for (path, content) in [
            ("modules.dep", "dep"),
            ("kernel/drivers/virtio/virtio.ko.xz", "virtio"),
            ("kernel/a.ko", "a"),
            ("kernel/notes.txt", "not a module"),
            ("kernel/modules.txt", "not a table"),
        ] {
            fs::write(root.join(path), content).unwrap();
        }
        symlink("/usr/src", root.join("build")).unwrap();
        symlink("a.ko", root.join("kernel/b.ko")).unwrap();
        (dir, root)
    }

    fn archive(directory: &Path) -> Result<File> {
        super::archive(directory, tempfile::tempfile().unwrap())
    }

    fn names(archive: File) -> Vec<(String, String)> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            (entry.path().unwrap().to_str().unwrap().to_owned(), content)
        });
        entries.collect()
    }

    #[test]
    fn modules_and_tables_are_packed_in_order_and_nothing_else() {
        let (_dir, root) = tree();
        let expect = [
            ("6.1.0/kernel/a.ko", "a"),
            ("6.1.0/kernel/drivers/virtio/virtio.ko.xz", "virtio"),
            ("6.1.0/modules.dep", "dep"),
        ];
        let expect = expect.map(|(path, content)| (path.to_owned(), content.to_owned()));
        assert_eq!(names(archive(&root).unwrap()), expect);
    }

    #[test]
    fn the_same_modules_give_the_same_bytes() {
        let bytes = || {
            let (_dir, root) = tree();
            let mut bytes = Vec::new();
            archive(&root).unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        };
        assert_eq!(bytes(), bytes());
    }

    #[test]
    fn another_directory_name_is_not_a_release() {
        let (dir, root) = tree();
        let other = dir.path().join("mine");
        fs::rename(root, &other).unwrap();
        assert_eq!(names(archive(&other).unwrap())[0].0, "kernel/a.ko");
    }

    #[test]
    fn a_directory_without_modules_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(archive(dir.path()).unwrap_err().to_string().contains("no kernel modules"));
        assert!(archive(&dir.path().join("nowhere")).is_err());
    }

    #[test]
    fn a_file_that_shrinks_is_an_error() {
        let mut content = Exactly { file: tempfile::tempfile().unwrap(), left: 1 };
        assert!(content.read(&mut [0; 8]).is_err());
    }
}
