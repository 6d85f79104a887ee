//! Makes the blobs of a push from an exported image: the archive of an OCI layout, whose layer is not compressed.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    sync::Arc,
};

use clap::ValueEnum;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::ui::progress::{Meter, Metered};

/// The media type of manifests.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Limit on a document of a layout.
const MAX_DOCUMENT: u64 = 4 << 20;
/// Limit on the files of a layout with one layer, which has six.
const MAX_FILES: usize = 16;
/// How much is read at a time.
const BUFFER: usize = 1 << 20;

/// How layers are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Compression {
    /// Every program reads it
    #[default]
    Gzip,
    /// Smaller and faster; for banger, podman and Docker 23 or newer
    Zstd,
    /// Not at all
    None,
}

/// Content with its digest, in a part of a file.
#[derive(Debug, Clone)]
pub struct Blob {
    /// The digest, with `sha256:`.
    pub digest: String,
    /// The number of bytes.
    pub size: u64,
    file: Arc<File>,
    offset: u64,
}

impl Blob {
    /// Reads from this byte on, at most as much as the buffer takes.
    pub fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let left = usize::try_from(self.size.saturating_sub(at)).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        self.file.read_exact_at(&mut buffer[..length], self.offset + at)?;
        Ok(length)
    }
}

/// An image as it is pushed.
#[derive(Debug)]
pub struct Image {
    /// The layers and the configuration.
    pub blobs: Vec<Blob>,
    /// The manifest.
    pub manifest: Vec<u8>,
    /// The digest of the manifest.
    pub digest: String,
}

impl Image {
    /// Returns how many bytes the image has at a registry.
    pub fn size(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.size).sum::<u64>() + self.manifest.len() as u64
    }
}

/// Reads an exported archive and compresses its layers. `temporary` makes an unnamed file. An archive whose content does not
/// have the digests that it names is refused.
pub fn pack(
    archive: File,
    compression: Compression,
    temporary: impl Fn() -> io::Result<File>,
    meter: &Meter,
) -> io::Result<Image> {
    let archive = Arc::new(archive);
    let files = files(&archive)?;
    let find = |name: &str| files.get(name).ok_or_else(|| invalid(format!("it has no {name}")));
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap_or_default();
        let hex = digest.strip_prefix("sha256:").ok_or_else(|| invalid("a digest is not of sha256"))?;
        let &(offset, size) = find(&format!("blobs/sha256/{hex}"))?;
        Ok::<_, io::Error>(Blob { digest: digest.to_owned(), size, file: Arc::clone(&archive), offset })
    };

    let &(offset, size) = find("index.json")?;
    let index = Blob { digest: String::new(), size, file: Arc::clone(&archive), offset };
    let index: Value = parse(&document(&index)?)?;
    let manifest = blob(&index["manifests"][0])?;
    let mut manifest: Value = parse(&verified(&manifest)?)?;
    let config = blob(&manifest["config"])?;
    verified(&config)?;

    // An exported image has one. The archive may come from another host, which is not trusted to know that.
    let [layer] = manifest["layers"].as_array_mut().map(Vec::as_mut_slice).unwrap_or_default() else {
        return Err(invalid("its manifest has not one layer"));
    };
    let plain = blob(layer)?;
    let is_plain = layer["mediaType"] == LAYER;
    let compression = if is_plain { compression } else { Compression::None };
    let packed = compress(&plain, compression, &temporary, meter)?;
    layer["digest"] = json!(packed.digest);
    layer["size"] = json!(packed.size);
    match compression {
        Compression::Gzip => layer["mediaType"] = json!(format!("{LAYER}+gzip")),
        Compression::Zstd => layer["mediaType"] = json!(format!("{LAYER}+zstd")),
        Compression::None => {}
    }
    let blobs = vec![packed, config];
    let manifest = manifest.to_string().into_bytes();
    let digest = name(Sha256::digest(&manifest));
    Ok(Image { blobs, manifest, digest })
}

/// Returns where the files of an archive are, by name.
fn files(archive: &File) -> io::Result<HashMap<String, (u64, u64)>> {
    let mut archive = archive;
    archive.seek(SeekFrom::Start(0))?;
    let mut files = HashMap::new();
    let mut read = tar::Archive::new(archive);
    // Long names, which would be read whole, are none of a layout.
    for entry in read.entries_with_seek()?.raw(true) {
        let entry = entry?;
        if files.len() == MAX_FILES {
            return Err(invalid("it has too many files"));
        }
        let name = String::from_utf8_lossy(&entry.header().path_bytes()).into_owned();
        files.insert(name, (entry.raw_file_position(), entry.size()));
    }
    Ok(files)
}

fn document(blob: &Blob) -> io::Result<Vec<u8>> {
    if blob.size > MAX_DOCUMENT {
        return Err(invalid("a document in it is too large"));
    }
    let mut bytes = vec![0; usize::try_from(blob.size).map_err(io::Error::other)?];
    blob.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn verified(blob: &Blob) -> io::Result<Vec<u8>> {
    let bytes = document(blob)?;
    check(blob, Sha256::digest(&bytes))?;
    Ok(bytes)
}

fn check(blob: &Blob, found: impl AsRef<[u8]>) -> io::Result<()> {
    match name(found) == blob.digest {
        true => Ok(()),
        false => Err(invalid(format!("{} has another content", blob.digest))),
    }
}

fn parse(bytes: &[u8]) -> io::Result<Value> {
    serde_json::from_slice(bytes).map_err(|_| invalid("a document in it is not valid JSON"))
}

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

fn name(digest: impl AsRef<[u8]>) -> String {
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Compresses a layer into a file, and checks its digest on the way.
fn compress(
    plain: &Blob,
    compression: Compression,
    temporary: &impl Fn() -> io::Result<File>,
    meter: &Meter,
) -> io::Result<Blob> {
    let mut from = Metered { from: Hashed::new(Reader { blob: plain, at: 0 }), meter };
    let mut buffer = vec![0; BUFFER];
    let packed = match compression {
        Compression::None => {
            copy(&mut from, &mut io::sink(), &mut buffer)?;
            plain.clone()
        }
        Compression::Gzip => {
            let to = flate2::write::GzEncoder::new(Hashed::new(temporary()?), flate2::Compression::default());
            let mut to = to;
            copy(&mut from, &mut to, &mut buffer)?;
            to.finish()?.blob()
        }
        Compression::Zstd => {
            let mut to = zstd::Encoder::new(Hashed::new(temporary()?), zstd::DEFAULT_COMPRESSION_LEVEL)?;
            copy(&mut from, &mut to, &mut buffer)?;
            to.finish()?.blob()
        }
    };
    check(plain, from.from.sha256.finalize())?;
    Ok(packed)
}

fn copy(from: &mut impl Read, to: &mut impl Write, buffer: &mut [u8]) -> io::Result<()> {
    loop {
        let length = from.read(buffer)?;
        if length == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..length])?;
    }
}

/// Reads a blob from its beginning to its end.
struct Reader<'a> {
    blob: &'a Blob,
    at: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.blob.read_at(buffer, self.at)?;
        self.at += length as u64;
        Ok(length)
    }
}

/// Hashes and counts the bytes that pass.
struct Hashed<T> {
    inner: T,
    sha256: Sha256,
    size: u64,
}

impl<T> Hashed<T> {
    fn new(inner: T) -> Self {
        Self { inner, sha256: Sha256::new(), size: 0 }
    }

    fn count(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.size += bytes.len() as u64;
    }
}

impl Hashed<File> {
    /// Returns what was written.
    fn blob(self) -> Blob {
        Blob { digest: name(self.sha256.finalize()), size: self.size, file: Arc::new(self.inner), offset: 0 }
    }
}

impl<T: Read> Read for Hashed<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.count(&buffer[..length]);
        Ok(length)
    }
}

impl<T: Write> Write for Hashed<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.inner.write(bytes)?;
        self.count(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use banger_image::fixtures::layout;

    use super::*;

    fn archive(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn packed(bytes: &[u8], compression: Compression) -> io::Result<Image> {
        pack(archive(bytes), compression, tempfile::tempfile, &Meter::none())
    }

    fn content(blob: &Blob) -> Vec<u8> {
        let mut bytes = vec![0; blob.size as usize];
        assert_eq!(blob.read_at(&mut bytes, 0).unwrap(), bytes.len());
        bytes
    }

    #[test]
    fn layers_are_packed_and_the_rest_is_as_it_was() {
        let layer: Vec<u8> = (0..3 << 20).map(|number: u32| (number >> 4) as u8).collect();
        let exported = layout::of(std::slice::from_ref(&layer), "latest").tar();
        for (compression, kind) in [
            (Compression::Gzip, "application/vnd.oci.image.layer.v1.tar+gzip"),
            (Compression::Zstd, "application/vnd.oci.image.layer.v1.tar+zstd"),
            (Compression::None, LAYER),
        ] {
            let image = packed(&exported, compression).unwrap();
            let manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
            let [first, config] = image.blobs.as_slice() else { panic!("{image:?}") };
            let described = &manifest["layers"][0];
            assert_eq!(
                (&described["mediaType"], &described["digest"], &described["size"]),
                (&json!(kind), &json!(first.digest), &json!(first.size))
            );
            assert_eq!(manifest["config"]["digest"], json!(config.digest));
            let bytes = content(first);
            assert_eq!(name(Sha256::digest(&bytes)), first.digest);
            let mut plain = Vec::new();
            match compression {
                Compression::Gzip => flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut plain),
                Compression::Zstd => zstd::Decoder::new(&bytes[..]).unwrap().read_to_end(&mut plain),
                Compression::None => Ok(plain.write(&bytes).unwrap()),
            }
            .unwrap();
            assert!(plain == layer, "{compression:?}");
            assert_eq!(image.digest, name(Sha256::digest(&image.manifest)));
            // The same image is the same again, so that the registry has it already.
            assert_eq!(packed(&exported, compression).unwrap().digest, image.digest);
        }
    }

    #[test]
    fn an_archive_that_orders_more_work_is_refused() {
        let two = layout::of(&[vec![1; 1000], vec![2; 1000]], "latest").tar();
        let error = packed(&two, Compression::Gzip).unwrap_err();
        assert!(error.to_string().contains("not one layer"), "{error}");
        let many =
            (0..20).fold(layout::Layout::default(), |many, number| many.with(&number.to_string(), "x"));
        let error = packed(&many.tar(), Compression::Gzip).unwrap_err();
        assert!(error.to_string().contains("too many files"), "{error}");
    }

    #[test]
    fn a_part_of_an_archive_is_refused() {
        let exported = layout::of(&[vec![7; 100_000]], "latest").tar();
        for bytes in [&exported[..100_000], &exported[..0], b"nothing"] {
            assert!(packed(bytes, Compression::Gzip).is_err());
        }
        let mut changed = exported;
        let layer = changed.windows(1000).position(|part| part.iter().all(|byte| *byte == 7)).unwrap();
        changed[layer] = 8;
        let error = packed(&changed, Compression::None).unwrap_err();
        assert!(error.to_string().ends_with("has another content"), "{error}");
    }
}
