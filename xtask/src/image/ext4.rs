//! Writes a directory as an ext4 file system, without mounting anything. The same tree gives the same bytes, no matter
//! when and in which order it was created.

use std::{
    collections::HashMap,
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use mkext4::{FsBuilder, InodeHandle, Meta, Options, ROOT, SparseSeg, SpecialKind, sink::FileSink};
use rustix::{
    fs::{SeekFrom, lgetxattr, llistxattr, major, minor, seek},
    io::Errno,
};

/// The longest extended attribute of Linux (`XATTR_SIZE_MAX`).
const MAX_XATTR: usize = 64 << 10;

/// Writes everything below `root` into the new file `image`.
pub fn write(root: &Path, image: &Path, options: Options) -> Result<()> {
    let size = options.size_bytes;
    let mut tree = Tree { builder: FsBuilder::new(options)?, files: Vec::new(), links: HashMap::new() };
    tree.builder.set_meta(ROOT, meta(&fs::symlink_metadata(root)?))?;
    tree.add_directory(root, ROOT)?;
    let layout = tree.builder.seal()?;
    let mut writer = layout.writer(FileSink::create(image, size)?)?;
    for (handle, path, segments) in tree.files {
        let mut content = Data { file: File::open(&path)?, at: 0, segments: segments.into_iter(), left: 0 };
        writer.fill(handle, &mut content).with_context(|| format!("cannot copy {}", path.display()))?;
    }
    writer.finish()?;
    Ok(())
}

/// The tree that is being written.
struct Tree {
    builder: FsBuilder,
    files: Vec<(InodeHandle, PathBuf, Vec<SparseSeg>)>,
    /// Files with several names, by device and inode number.
    links: HashMap<(u64, u64), InodeHandle>,
}

impl Tree {
    fn add_directory(&mut self, directory: &Path, handle: InodeHandle) -> Result<()> {
        let entries = fs::read_dir(directory)?.map(|entry| Ok(entry?.path()));
        let mut paths = entries.collect::<Result<Vec<PathBuf>>>()?;
        paths.sort();
        for path in paths {
            self.add(&path, handle).with_context(|| format!("cannot add {}", path.display()))?;
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, parent: InodeHandle) -> Result<()> {
        let metadata = fs::symlink_metadata(path)?;
        let name = path.file_name().and_then(|name| name.to_str()).context("its name is not UTF-8")?;
        let inode = (metadata.dev(), metadata.ino());
        if let Some(known) = self.links.get(&inode) {
            return Ok(self.builder.hardlink(parent, name, *known)?);
        }
        let (kind, meta) = (metadata.file_type(), meta(&metadata));
        let handle = if kind.is_dir() {
            let handle = self.builder.mkdir(parent, name, meta)?;
            self.add_directory(path, handle)?;
            handle
        } else if kind.is_file() {
            let segments = segments(&File::open(path)?, metadata.len())?;
            let handle = self.builder.file_sparse(parent, name, meta, &segments)?;
            // A file without data has nothing to copy.
            if segments.iter().any(|segment| matches!(segment, SparseSeg::Data(_))) {
                self.files.push((handle, path.to_owned(), segments));
            }
            handle
        } else if kind.is_symlink() {
            let target = fs::read_link(path)?;
            self.builder.symlink(parent, name, target.to_str().context("its target is not UTF-8")?, meta)?
        } else {
            let (major, minor) = (major(metadata.rdev()), minor(metadata.rdev()));
            let special = match kind {
                _ if kind.is_char_device() => SpecialKind::Char { major, minor },
                _ if kind.is_block_device() => SpecialKind::Block { major, minor },
                _ if kind.is_fifo() => SpecialKind::Fifo,
                _ if kind.is_socket() => SpecialKind::Socket,
                _ => bail!("it has an unknown file type"),
            };
            self.builder.mknod(parent, name, meta, special)?
        };
        if metadata.nlink() > 1 && !kind.is_dir() {
            self.links.insert(inode, handle);
        }
        self.add_attributes(path, handle)
    }

    fn add_attributes(&mut self, path: &Path, handle: InodeHandle) -> Result<()> {
        let mut names = vec![0; MAX_XATTR];
        let length = llistxattr(path, &mut names[..])?;
        for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
            let name = std::str::from_utf8(name)?;
            let mut value = vec![0; MAX_XATTR];
            let length = lgetxattr(path, name, &mut value[..])?;
            self.builder.set_xattr(handle, name, &value[..length])?;
        }
        Ok(())
    }
}

/// Returns mode, owner and modification time. The other times would show when and how the tree was created.
fn meta(metadata: &Metadata) -> Meta {
    let time = (metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap_or(0));
    Meta::new((metadata.mode() & 0o7777) as u16, metadata.uid(), metadata.gid(), time)
}

/// Returns the data segments and holes of a file of this length.
fn segments(file: &File, length: u64) -> Result<Vec<SparseSeg>> {
    let (mut segments, mut at) = (Vec::new(), 0);
    while at < length {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start.min(length),
            Err(Errno::NXIO) => length,
            Err(error) => return Err(error.into()),
        };
        if start > at {
            segments.push(SparseSeg::Hole(start - at));
        }
        at = start;
        if at < length {
            let end = seek(file, SeekFrom::Hole(at))?.min(length);
            segments.push(SparseSeg::Data(end - at));
            at = end;
        }
    }
    Ok(segments)
}

/// The data of a file, without its holes.
struct Data {
    file: File,
    at: u64,
    segments: std::vec::IntoIter<SparseSeg>,
    /// Remaining bytes of the segment.
    left: u64,
}

impl io::Read for Data {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            match self.segments.next() {
                None => return Ok(0),
                Some(SparseSeg::Hole(length)) => self.at += length,
                Some(SparseSeg::Data(length)) => self.left = length,
            }
        }
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    /// Creates the same tree, with the files in this order.
    fn tree(names: &[&str]) -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        for name in names {
            fs::create_dir_all(at("dir")).unwrap();
            fs::write(at(&format!("dir/{name}")), name).unwrap();
        }
        let sparse = File::create(at("sparse")).unwrap();
        sparse.set_len(100 << 20).unwrap();
        sparse.write_all_at(b"middle", 50 << 20).unwrap();
        symlink("dir/a", at("link")).unwrap();
        fs::hard_link(at("dir/a"), at("twin")).unwrap();
        let time = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        for name in ["dir/a", "dir/b", "dir/c", "sparse", "dir", "."] {
            File::open(at(name)).unwrap().set_times(time).unwrap();
        }
        let link = rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: link, last_modification: link };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, at("link"), &times, flags).unwrap();
        home
    }

    fn image(names: &[&str]) -> Vec<u8> {
        let (tree, image) = (tree(names), tempfile::NamedTempFile::new().unwrap());
        write(tree.path(), image.path(), Options::new(128 << 20, [7; 16], 0)).unwrap();
        fs::read(image.path()).unwrap()
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes_and_all_of_it_is_there() {
        let one = image(&["a", "b", "c"]);
        assert!(one == image(&["c", "a", "b"]));
        let fs = mkext4::reader::Fs::open(&one[..]).unwrap();
        let content = |path| fs.read_file(fs.resolve(path).unwrap()).unwrap();
        assert_eq!((content("/dir/b"), content("/twin")), (b"b".to_vec(), b"a".to_vec()));
        assert_eq!(fs.resolve("/twin").unwrap(), fs.resolve("/dir/a").unwrap());
        let sparse = content("/sparse");
        assert_eq!((sparse.len(), &sparse[50 << 20..][..6]), (100 << 20, &b"middle"[..]));
    }
}
