//! Writes the file system of all modules of a kernel, as `modprobe` in a guest finds them: decompressed, since not
//! every `modprobe` can do that, and with the tables of depmod(8).

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, Read, Seek},
};

use banger_proto::causes::with_causes;
use banger_proto::size::Bytes;
use mkext4::{FsBuilder, InodeCount, InodeHandle, Meta, Options};
use sha2::{Digest as _, Sha256};

use super::{
    Meter,
    build::{EPOCH, Holes},
    message::{Failure, MadeTree, ModuleTree},
};
use crate::{
    kernel::{
        depmod::{self, Beside, Depmod},
        module_file,
        release::Release,
        tree::Tree,
    },
    rootfs::sparse::BLOCK,
};

const LABEL: &str = "banger-modules";
/// A distribution's kernel with all drivers has about 600 MiB of modules.
const MAX_TREE: Bytes = Bytes::gib(2);
/// Debugging information makes modules large; without it the largest one has about 30 MiB.
const MAX_MODULE: Bytes = Bytes::mib(128);
/// The tables of a kernel's build, the largest of which has about 1 MiB.
const MAX_TABLE: Bytes = Bytes::mib(16);
/// The tables of a kernel's build that are copied as they are.
const KEPT: [&str; 3] = ["modules.builtin", "modules.builtin.modinfo", "modules.order"];
/// The smallest journal that Linux accepts. Nothing is ever written to it.
const JOURNAL: u32 = 1024;
/// The size of an inode, and the space for descriptors, bitmaps and `lost+found`.
const INODE: u64 = 256;
const RESERVE: u64 = 8 << 20;

/// A file of the tree.
struct Planned {
    size: u64,
    from: From,
}

enum From {
    /// A module, perhaps compressed, at this path in the archive.
    Archive(String),
    Memory(Vec<u8>),
}

/// Writes the file system of the modules in a tar archive to a new file. Its root has one directory, named by the
/// release.
pub(super) fn make(
    order: &ModuleTree,
    archive: File,
    image: &File,
    meter: &Meter,
) -> Result<MadeTree, Failure> {
    let release: Release = order.release.parse().map_err(|error| refused(&error))?;
    let mut tree = Tree::open(BufReader::new(archive), &release).map_err(|error| refused(&error))?;
    let (files, modules, skipped) = plan(&mut tree, meter)?;
    let (options, size) = options(&release, &files);
    let unwritten = |error| match error {
        mkext4::Error::Io(error) => Failure::os("write the modules", error),
        other => refused(&other),
    };

    let (builder, handles) = declare(options, &release, &files).map_err(unwritten)?;
    let layout = builder.seal().map_err(unwritten)?;
    image.set_len(size.0).map_err(|error| Failure::os("write the modules", error))?;
    let mut writer = layout.writer(Holes { image, meter }).map_err(unwritten)?;
    // An empty file has no content to write.
    for (file, handle) in files.into_values().zip(handles).filter(|(file, _)| file.size > 0) {
        let content = match file.from {
            From::Memory(content) => content,
            From::Archive(path) => read_module(&mut tree, &path, meter)?,
        };
        writer.fill(handle, &mut content.as_slice()).map_err(unwritten)?;
    }
    writer.finish().map_err(unwritten)?;
    Ok(MadeTree { size, modules, skipped })
}

/// Returns the files by path, the number of modules among them, and the number of skipped files: those named like a
/// module that are none.
fn plan(
    tree: &mut Tree<impl Read + Seek>,
    meter: &Meter,
) -> Result<(BTreeMap<String, Planned>, u32, u32), Failure> {
    let (mut files, mut known) = (BTreeMap::new(), Depmod::default());
    let (mut total, mut modules, mut skipped) = (0, 0, 0);
    let paths: Vec<String> = tree.paths().map(str::to_owned).collect();
    for path in paths {
        let (unpacked, _) = module_file::unpacked_path(&path);
        if !unpacked.ends_with(".ko") || files.contains_key(unpacked) {
            continue;
        }
        let content = read_module(tree, &path, meter)?;
        match known.add(unpacked, &content) {
            Ok(()) => {}
            Err(depmod::Error::NotAModule(_)) => {
                skipped += 1;
                continue;
            }
            Err(error) => return Err(refused(&error)),
        }
        let size = content.len() as u64;
        total += size;
        if total > MAX_TREE.0 {
            return Err(too_large());
        }
        modules += 1;
        files.insert(unpacked.to_owned(), Planned { size, from: From::Archive(path.clone()) });
    }
    let mut beside = Beside::default();
    for name in KEPT {
        let Some(content) = tree.read(name, MAX_TABLE).map_err(|error| refused(&error))? else { continue };
        match name {
            "modules.builtin" => beside.builtin = String::from_utf8_lossy(&content).into_owned(),
            "modules.builtin.modinfo" => beside.builtin_modinfo = content.clone(),
            _ => {}
        }
        files.insert(name.to_owned(), in_memory(content));
    }
    let tables = known.tables(&beside).map_err(|error| refused(&error))?;
    files.extend(tables.into_iter().map(|(name, content)| (name.to_owned(), in_memory(content))));
    Ok((files, modules, skipped))
}

fn in_memory(content: Vec<u8>) -> Planned {
    Planned { size: content.len() as u64, from: From::Memory(content) }
}

fn read_module(tree: &mut Tree<impl Read + Seek>, path: &str, meter: &Meter) -> Result<Vec<u8>, Failure> {
    let content = tree.read(path, MAX_MODULE).map_err(|error| refused(&error))?.unwrap_or_default();
    meter.add_read(content.len());
    module_file::unpack(path, content, MAX_MODULE).map_err(|error| {
        let chain = with_causes(&error);
        Failure::refused(format!("cannot use the modules: cannot unpack {path}: {chain}"))
    })
}

/// Returns the options and the size of a file system for these files.
fn options(release: &Release, files: &BTreeMap<String, Planned>) -> (Options, Bytes) {
    let mut sha256 = Sha256::new();
    sha256.update(format!("banger modules of {release}\n"));
    for (path, file) in files {
        sha256.update(format!("{path} {}\n", file.size));
    }
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&sha256.finalize()[..16]);
    // RFC 9562, version 8: the other bits are free to choose.
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;

    // Each file may have a directory of its own, and each name is shorter than its path.
    let names: u64 = files.keys().map(|path| path.len() as u64 + 8).sum();
    let directories = directories(files) as u64;
    let inodes = files.len() as u64 + directories + 64;
    let content: u64 = files.values().map(|file| file.size.next_multiple_of(BLOCK)).sum();
    let journal = u64::from(JOURNAL) * BLOCK;
    let needed = content + 2 * names + (directories + 4) * BLOCK + 2 * inodes * INODE + journal + RESERVE;
    // Adds the descriptors and bitmaps of each group, and their copies.
    let size = Bytes((needed + needed / 64).max(4 * journal).next_multiple_of(BLOCK));
    let mut options = Options::new(size.0, uuid, EPOCH);
    options.label = Some(LABEL.to_owned());
    options.reserved_percent = 0;
    options.journal_blocks = Some(JOURNAL);
    options.inodes = InodeCount::Exact(u32::try_from(inodes).unwrap_or(u32::MAX));
    (options, size)
}

/// Returns the parent directories of a path, the uppermost first.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

fn directories(files: &BTreeMap<String, Planned>) -> usize {
    files.keys().flat_map(|path| parents(path)).collect::<std::collections::BTreeSet<_>>().len()
}

fn declare(
    options: Options,
    release: &Release,
    files: &BTreeMap<String, Planned>,
) -> Result<(FsBuilder, Vec<InodeHandle>), mkext4::Error> {
    let meta = |mode| Meta::new(mode, 0, 0, (EPOCH, 0));
    let mut builder = FsBuilder::new(options)?;
    let top = builder.mkdir(mkext4::ROOT, release.as_str(), meta(0o755))?;
    let mut directories = BTreeMap::from([("", top)]);
    let mut handles = Vec::new();
    for (path, file) in files {
        for directory in parents(path) {
            if !directories.contains_key(directory) {
                let (above, name) = directory.rsplit_once('/').unwrap_or(("", directory));
                let made = builder.mkdir(directories[above], name, meta(0o755))?;
                directories.insert(directory, made);
            }
        }
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        handles.push(builder.file(directories[directory], name, meta(0o644), file.size)?);
    }
    Ok((builder, handles))
}

fn too_large() -> Failure {
    Failure::refused(format!("cannot use the modules: unpacked, they have more than {MAX_TREE}"))
}

fn refused(error: &dyn std::error::Error) -> Failure {
    Failure::refused(format!("cannot use the modules: {}", with_causes(error)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use mkext4::reader::Fs;

    use super::*;
    use crate::{
        fixtures::kernel::{RELEASE, module_needing, pack, tar},
        kernel::decompress::Compression,
    };

    fn made(files: &[(&str, Vec<u8>)]) -> Result<(MadeTree, File), Failure> {
        let mut archive = tempfile::tempfile().unwrap();
        archive.write_all(&tar(files).into_inner()).unwrap();
        archive.rewind().unwrap();
        let image = tempfile::tempfile().unwrap();
        let order = ModuleTree { release: RELEASE.to_owned() };
        make(&order, archive, &image, &Meter::default()).map(|made| (made, image))
    }

    #[test]
    fn modules_are_unpacked_into_one_directory_with_their_tables() {
        let (bridge, llc) = (module_needing("llc"), module_needing(""));
        let (tree, image) = made(&[
            ("kernel/net/bridge/bridge.ko.xz", pack(Compression::Xz, &bridge)),
            ("kernel/net/llc/llc.ko.zst", pack(Compression::Zstd, &llc)),
            ("kernel/net/llc/llc.ko", llc.clone()),
            ("kernel/odd.ko", b"text".to_vec()),
            ("kernel/notes", b"text".to_vec()),
            ("modules.builtin", b"kernel/fs/ext4/ext4.ko\n".to_vec()),
            ("modules.dep", b"a lie".to_vec()),
        ])
        .unwrap();
        assert_eq!((tree.modules, tree.skipped), (2, 1));
        assert_eq!(image.metadata().unwrap().len(), tree.size.0);
        let fs = Fs::open(image).unwrap();
        let file = |path: &str| {
            fs.resolve(&format!("/{RELEASE}/{path}")).ok().map(|inode| fs.read_file(inode).unwrap())
        };
        assert_eq!(file("kernel/net/bridge/bridge.ko"), Some(bridge));
        assert_eq!(file("kernel/net/llc/llc.ko"), Some(llc));
        assert_eq!(file("modules.builtin"), Some(b"kernel/fs/ext4/ext4.ko\n".to_vec()));
        let dep = "kernel/net/bridge/bridge.ko: kernel/net/llc/llc.ko\nkernel/net/llc/llc.ko:\n";
        assert_eq!(file("modules.dep"), Some(dep.as_bytes().to_vec()));
        assert!(file("modules.dep.bin").is_some() && file("modules.alias.bin").is_some());
        assert!(file("kernel/odd.ko").is_none() && file("kernel/notes").is_none());
    }

    #[test]
    fn the_same_modules_give_the_same_bytes() {
        let bytes = || {
            let (_, mut image) =
                made(&[("a.ko", module_needing("")), ("modules.builtin", b"".to_vec())]).unwrap();
            let mut bytes = Vec::new();
            image.rewind().unwrap();
            image.read_to_end(&mut bytes).unwrap();
            bytes
        };
        assert!(bytes() == bytes());
    }

    #[test]
    fn an_invalid_tree_of_modules_is_refused_with_the_reason() {
        let check = |files: &[(&str, Vec<u8>)], expect: &str| {
            let error = made(files).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        check(&[], "the tar archive has no kernel modules");
        check(
            &[("a.ko.xz", b"\xfd7zXZ\0no more".to_vec())],
            "cannot unpack a.ko.xz: the xz data are damaged",
        );
        check(&[("a.ko", module_needing("")), ("a.ko/b.ko", module_needing(""))], "cannot use the modules");
    }
}
