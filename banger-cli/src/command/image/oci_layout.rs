//! Reads OCI images from files: an image layout (OCI image specification, "Image Layout"), as a directory or as a tar
//! archive, plain or compressed. It is read with the user's rights; the service gets one open file and the positions
//! of one image's parts in it, and verifies all digests itself.

use std::{
    collections::BTreeMap,
    env,
    fs::File,
    io::{self, Read, Seek},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use banger_proto::bundle;
use flate2::read::MultiGzDecoder;
use serde::Deserialize;

use crate::{
    command::add::open_file,
    error::{Error, Result},
};

/// Limit of the service.
const MAX_DOCUMENT: u64 = 4 << 20;
const MAX_LAYERS: usize = 127;
/// An index may refer to another index, but no deeper.
const MAX_NESTING: usize = 3;
const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
/// Files that the archive of a layout may contain besides an image.
const INDEX: &str = "index.json";
/// Magic numbers of compressed files: RFC 1952, section 2.3.1, and RFC 8878, section 3.1.1.
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Where large temporary files go; `/tmp` is in memory on many hosts.
const TEMPORARY: &str = "/var/tmp";

/// An image in a file: the offset and length of its manifest, its configuration, and its layers.
#[derive(Debug)]
pub struct Image {
    /// The file.
    pub file: File,
    /// The positions of the parts.
    pub parts: Vec<(u64, u64)>,
    /// The name that it should get.
    pub name: Option<String>,
    /// The kernel that it boots.
    pub kernel: Option<String>,
}

/// Finds the image for the host's architecture in a layout.
pub fn read(path: &Path) -> Result<Image> {
    let layout = match path.is_dir() {
        true => Layout::Directory(path.to_owned()),
        false => Layout::of_archive(path)?,
    };
    let mut index: Index = layout.document(INDEX)?;
    for _ in 0..MAX_NESTING {
        let chosen = choose(index, path)?;
        let file_path = chosen.file_path()?;
        if !INDEXES.contains(&chosen.media_type.as_str()) {
            let mut manifest: Manifest = layout.document(&file_path)?;
            if manifest.layers.len() > MAX_LAYERS {
                return Err(unusable(path, &format!("its image has more than {MAX_LAYERS} layers")));
            }
            let mut paths = vec![file_path, manifest.config.file_path()?];
            for layer in &manifest.layers {
                paths.push(layer.file_path()?);
            }
            let (file, parts) = layout.gather(&paths)?;
            let mut said = |annotation| manifest.annotations.remove(annotation);
            return Ok(Image { file, parts, name: said(bundle::NAME), kernel: said(bundle::KERNEL) });
        }
        index = layout.document(&file_path)?;
    }
    Err(unusable(path, "its indexes are nested too deeply"))
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

impl Descriptor {
    /// Returns the path in a layout. An invalid digest could lead anywhere.
    fn file_path(&self) -> Result<String> {
        let digits = self.digest.strip_prefix("sha256:").unwrap_or_default();
        match digits.len() == 64 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            true => Ok(format!("blobs/sha256/{digits}")),
            false => Err(Error::Refused(format!("{:?} is not a known kind of digest", self.digest))),
        }
    }
}

/// Returns the one image that this host can run. An image without a platform may be for this host.
fn choose(index: Index, path: &Path) -> Result<Descriptor> {
    let architecture = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let fits = |descriptor: &Descriptor| {
        let platform = descriptor.platform.as_ref();
        platform.is_none_or(|platform| {
            (platform.os.as_str(), platform.architecture.as_str()) == ("linux", architecture)
        })
    };
    let mut fitting: Vec<Descriptor> = index.manifests.into_iter().filter(fits).collect();
    fitting.dedup_by(|one, other| one.digest == other.digest);
    match (fitting.pop(), fitting.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(_), false) => {
            Err(unusable(path, "it has more than one image for this host; export only one of them"))
        }
        (None, _) => Err(unusable(path, &format!("it has no image for linux/{architecture}"))),
    }
}

fn unusable(path: &Path, why: &str) -> Error {
    Error::Refused(format!("cannot use {}: {why}", path.display()))
}

/// A layout.
enum Layout {
    Directory(PathBuf),
    /// A tar archive, with the position of each file.
    Archive {
        path: PathBuf,
        file: File,
        files: BTreeMap<String, (u64, u64)>,
    },
}

impl Layout {
    fn of_archive(path: &Path) -> Result<Self> {
        let failed = |source| Error::io(format!("read the archive {}", path.display()), source);
        let file = unpacked(open_file(path)?).map_err(failed)?;
        let mut files = BTreeMap::new();
        let mut archive = tar::Archive::new(&file);
        for entry in archive.entries_with_seek().map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
            files.insert(name, (entry.raw_file_position(), entry.size()));
        }
        if !files.contains_key(INDEX) {
            return Err(unusable(
                path,
                "it is not a tar archive of an OCI image layout, because it has no index.json",
            )
            .with_hint("`--rootfs FILE` takes an archive of a root file system."));
        }
        Ok(Self::Archive { path: path.to_owned(), file, files })
    }

    fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Archive { path, .. } => path,
        }
    }

    /// Reads a JSON document.
    fn document<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<T> {
        let mut bytes = Vec::new();
        let failed = |source| Error::io(format!("read {name} of {}", self.path().display()), source);
        match self {
            Self::Directory(path) => {
                open_file(&path.join(name))?
                    .take(MAX_DOCUMENT + 1)
                    .read_to_end(&mut bytes)
                    .map_err(failed)?;
            }
            Self::Archive { path, file, files } => {
                let missing = || unusable(path, &format!("{name} is missing"));
                let (offset, length) = files.get(name).copied().ok_or_else(missing)?;
                let length = usize::try_from(length.min(MAX_DOCUMENT + 1)).unwrap_or(usize::MAX);
                bytes.resize(length, 0);
                file.read_exact_at(&mut bytes, offset).map_err(failed)?;
            }
        }
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(unusable(self.path(), &format!("{name} is larger than {MAX_DOCUMENT} bytes")));
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| unusable(self.path(), &format!("{name} is malformed: {error}")))
    }

    /// Returns one file that contains all of these. For a directory, this is an unnamed copy.
    fn gather(self, names: &[String]) -> Result<(File, Vec<(u64, u64)>)> {
        let directory = match self {
            Self::Directory(directory) => directory,
            Self::Archive { path, file, files } => {
                let missing = |name: &String| unusable(&path, &format!("{name} is missing"));
                let part = |name: &String| files.get(name).copied().ok_or_else(|| missing(name));
                let parts = names.iter().map(part).collect::<Result<_>>()?;
                return Ok((file, parts));
            }
        };
        let failed = |source| Error::io("copy the image into a temporary file", source);
        let mut whole = temporary().map_err(failed)?;
        let (mut parts, mut at) = (Vec::new(), 0);
        for name in names {
            let length = io::copy(&mut open_file(&directory.join(name))?, &mut whole).map_err(failed)?;
            parts.push((at, length));
            at += length;
        }
        Ok((whole, parts))
    }
}

/// Returns the file itself, or its decompressed content.
fn unpacked(file: File) -> io::Result<File> {
    let mut magic = [0; 4];
    let length = file.read_at(&mut magic, 0)?;
    let mut reader: Box<dyn Read> = match &magic[..length] {
        start if start.starts_with(&GZIP) => Box::new(MultiGzDecoder::new(file)),
        start if start.starts_with(&ZSTD) => Box::new(zstd::Decoder::new(file)?),
        _ => return Ok(file),
    };
    let mut unpacked = temporary()?;
    io::copy(&mut reader, &mut unpacked)?;
    unpacked.rewind()?;
    Ok(unpacked)
}

/// Creates an unnamed file that may become large.
fn temporary() -> io::Result<File> {
    tempfile::tempfile_in(env::var_os("TMPDIR").map_or(TEMPORARY.into(), PathBuf::from))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use serde_json::{Value, json};

    use super::*;

    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

    /// Returns a string in the form of a digest. Nothing compares it here.
    fn digest(n: u8) -> String {
        format!("sha256:{}", format!("{n:02x}").repeat(32))
    }

    fn descriptor(kind: &str, n: u8, architecture: &str) -> Value {
        json!({ "mediaType": kind, "digest": digest(n), "size": 1,
                "platform": { "os": "linux", "architecture": architecture } })
    }

    /// Creates a layout with an image for this host behind an index, and one for another platform.
    fn layout() -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        let put = |name: &str, content: &[u8]| {
            let path = home.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        let blob = |n: u8| format!("blobs/{}", digest(n).replace(':', "/"));
        let index =
            json!({ "manifests": [descriptor(MANIFEST, 2, "amd64"), descriptor(MANIFEST, 9, "s390x")] });
        let manifest = json!({
            "config": { "mediaType": "c", "digest": digest(3), "size": 6 },
            "layers": [{ "mediaType": "l", "digest": digest(4), "size": 5 }, { "digest": digest(5), "size": 6 }],
            "annotations": { bundle::NAME: "tool", bundle::KERNEL: "cloud" },
        });
        put(
            INDEX,
            json!({ "manifests": [{ "mediaType": INDEXES[0], "digest": digest(1) }] }).to_string().as_bytes(),
        );
        put(&blob(1), index.to_string().as_bytes());
        put(&blob(2), manifest.to_string().as_bytes());
        for (n, content) in [(3, "config"), (4, "lower"), (5, "higher")] {
            put(&blob(n), content.as_bytes());
        }
        home
    }

    fn packed(tar: &Path, ending: &str, pack: impl Fn(&[u8]) -> Vec<u8>) -> PathBuf {
        let path = tar.with_extension(ending);
        fs::write(&path, pack(&fs::read(tar).unwrap())).unwrap();
        path
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut read = flate2::read::GzEncoder::new(bytes, flate2::Compression::fast());
        let mut packed = Vec::new();
        read.read_to_end(&mut packed).unwrap();
        packed
    }

    fn archive(layout: &Path) -> PathBuf {
        let path = layout.with_extension("tar");
        let mut builder = tar::Builder::new(File::create(&path).unwrap());
        builder.append_dir_all(".", layout).unwrap();
        builder.finish().unwrap();
        path
    }

    fn contents(image: &Image) -> Vec<String> {
        let part = |(offset, length): &(u64, u64)| {
            let mut bytes = vec![0; usize::try_from(*length).unwrap()];
            image.file.read_exact_at(&mut bytes, *offset).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        image.parts.iter().map(part).collect()
    }

    #[test]
    fn the_parts_of_the_image_for_this_host_are_found_in_directories_and_archives() {
        let home = layout();
        let tar = archive(home.path());
        let gzip = packed(&tar, "tar.gz", gzip);
        let zstd = packed(&tar, "tar.zst", |bytes| zstd::encode_all(bytes, 1).unwrap());
        for path in [home.path(), &tar, &gzip, &zstd] {
            let image = read(path).unwrap();
            let found = contents(&image);
            assert!(found[0].contains("layers"), "{found:?}");
            assert_eq!(found[1..], ["config", "lower", "higher"], "{}", path.display());
            assert_eq!((image.name.as_deref(), image.kernel.as_deref()), (Some("tool"), Some("cloud")));
        }
        let half = fs::read(&zstd).unwrap();
        fs::write(&zstd, &half[..half.len() / 2]).unwrap();
        let error = read(&zstd).unwrap_err().to_string();
        assert!(error.contains("cannot read the archive"), "{error}");
        for path in [tar, gzip, zstd] {
            fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn invalid_layouts_are_refused_with_a_reason() {
        let check = |change: &dyn Fn(&Path), expect: &str| {
            let home = layout();
            change(home.path());
            let error = read(home.path()).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        let index = |value: Value| move |home: &Path| fs::write(home.join(INDEX), value.to_string()).unwrap();
        check(&|home| fs::remove_file(home.join(INDEX)).unwrap(), "index.json");
        check(&|home| fs::write(home.join(INDEX), "{").unwrap(), "index.json is malformed");
        check(&index(json!({ "manifests": [descriptor(MANIFEST, 2, "s390x")] })), "no image for linux/");
        check(
            &index(
                json!({ "manifests": [descriptor(MANIFEST, 2, "amd64"), descriptor(MANIFEST, 3, "amd64")] }),
            ),
            "more than one image",
        );
        check(
            &index(json!({ "manifests": [{ "digest": "sha256:../../../etc/shadow" }] })),
            "not a known kind of digest",
        );
        check(
            &index(json!({ "manifests": [{ "mediaType": INDEXES[1], "digest": digest(3) }] })),
            "malformed",
        );
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("image.tar");
        fs::write(&path, vec![0; 1024]).unwrap();
        let error = read(&path).unwrap_err();
        assert!(error.hint().unwrap().contains("--rootfs"), "{error}");
    }
}
