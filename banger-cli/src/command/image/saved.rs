//! Images that other programs saved in files: opens the files as the user, and says what to do when no image can be
//! taken. What is in the files is read by [`banger_image::archive`].

use std::{
    env,
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use banger_image::{
    archive::{self, Image, Source},
    oci::{index::Selector, platform::Platform},
};
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::{
    command::add::open_file,
    error::{Error, Result},
};

/// Where large temporary files go; `/tmp` is in memory on many hosts.
const TEMPORARY: &str = "/var/tmp";

/// Finds the image for a platform in files, and by a tag if there are several. It gets this name; without one it must
/// be a bundle.
pub fn find(path: &Path, platform: &Platform, tag: Option<&str>, name: Option<&str>) -> Result<Image> {
    let source = match path.is_dir() {
        true => Source::directory(open_directory(path)?),
        false => Source::archive(open_file(path)?, &temporary).map_err(|error| explained(path, error))?,
    };
    archive::find(source, Selector { platform, tag }, name, &temporary)
        .map_err(|error| explained(path, error))
}

/// Returns whether these files are an image, rather than a root file system.
pub fn is_image(path: &Path) -> Result<bool> {
    match path.is_dir() {
        true => Ok(true),
        false => Ok(is_archive(&open_file(path)?)),
    }
}

/// Returns whether this file is the archive of an image. The service says what is wrong with a file that is neither
/// that nor a root file system.
pub fn is_archive(file: &File) -> bool {
    archive::is_image(file).unwrap_or(false)
}

/// Returns the error that an image has no name.
pub fn unnamed() -> Error {
    Error::Usage("the image has no name".to_owned()).with_hint("`--name NAME` gives it one.")
}

/// Returns the wanted platform, by default that of the host with this architecture.
pub fn platform(text: Option<&str>, architecture: &str) -> Result<Platform> {
    match text {
        None => Ok(Platform::of_host(architecture)),
        Some(text) => {
            text.parse().map_err(|error| Error::Usage(format!("{text:?} is not a platform: {error}")))
        }
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
        .map_err(|error| Error::io(format!("open {}", path.display()), error.into()))
}

fn explained(path: &Path, error: archive::Error) -> Error {
    let refused = |error: &archive::Error| Error::Refused(format!("cannot use {}: {error}", path.display()));
    match error {
        archive::Error::Io { doing, source } => {
            Error::io(format!("use {}: cannot {doing}", path.display()), source)
        }
        archive::Error::NotAnImage => {
            refused(&error).with_hint("`--rootfs FILE` takes an archive of a root file system.")
        }
        archive::Error::Unnamed => unnamed(),
        archive::Error::Several { .. } => refused(&error).with_hint("`--tag TAG` takes one of them."),
        error => refused(&error),
    }
}

/// Creates an unnamed file that may become large.
pub fn temporary() -> io::Result<File> {
    let wanted = env::var_os("TMPDIR").filter(|path| !path.is_empty());
    tempfile::tempfile_in(wanted.map_or(TEMPORARY.into(), PathBuf::from))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, os::unix::fs::FileExt};

    use banger_image::fixtures::layout::{self, Layout, config_on, tagged};
    use banger_proto::bundle;
    use serde_json::json;

    use super::*;

    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

    fn amd64() -> Platform {
        platform(Some("linux/amd64"), "x86_64").unwrap()
    }

    /// Returns a bundle with an image of one layer.
    fn a_bundle() -> Layout {
        let mut all = Layout::default();
        let layer = b"a layer".to_vec();
        let config =
            layout::configuration(std::slice::from_ref(&layer), &config_on("linux/amd64")).to_string();
        let config = all.blob("application/vnd.oci.image.config.v1+json", config.as_bytes());
        let layer = all.blob("application/vnd.oci.image.layer.v1.tar", &layer);
        let annotations = json!({ bundle::NAME: "tool", bundle::KERNEL: "cloud" });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer],
            "annotations": annotations,
        });
        let image = all.blob(MANIFEST, manifest.to_string().as_bytes());
        all.index(&[image])
    }

    #[test]
    fn an_image_is_found_in_a_directory_and_in_an_archive() {
        let home = tempfile::tempdir().unwrap();
        let (directory, tar) = (home.path().join("layout"), home.path().join("image.tar"));
        a_bundle().write(&directory);
        fs::write(&tar, a_bundle().tar()).unwrap();
        for path in [directory, tar] {
            assert!(is_image(&path).unwrap());
            assert_eq!(find(&path, &amd64(), None, Some("mine")).unwrap().name, "mine");
            let image = find(&path, &amd64(), None, None).unwrap();
            assert_eq!((image.name.as_str(), image.kernel.as_deref()), ("tool", Some("cloud")));
            let (at, length) = image.parts[2];
            let mut bytes = vec![0; length as usize];
            image.file.read_exact_at(&mut bytes, at).unwrap();
            assert_eq!(bytes, b"a layer");
        }
    }

    #[test]
    fn an_error_says_what_to_do() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("image.tar");
        let error = |bytes: Vec<u8>| {
            fs::write(&path, bytes).unwrap();
            let error = find(&path, &amd64(), None, Some("tool")).unwrap_err();
            (error.to_string(), error.hint().unwrap_or_default())
        };
        let (text, hint) = error(banger_image::fixtures::tar::Tar::default().dir("etc").end());
        assert!(text.contains("image.tar: it is not an image") && hint.contains("--rootfs"), "{text} {hint}");
        assert!(!is_image(&path).unwrap());
        let mut two = Layout::default();
        let one = two.image(&[b"1".to_vec()], &config_on("linux/amd64"));
        let other = two.image(&[b"2".to_vec()], &config_on("linux/amd64"));
        let (text, hint) = error(two.index(&[tagged(one, "a"), tagged(other, "b")]).tar());
        assert!(text.contains("a, b") && hint.contains("--tag"), "{text} {hint}");
        fs::write(&path, layout::of(&[b"1".to_vec()], "a").tar()).unwrap();
        let unnamed = find(&path, &amd64(), None, None).unwrap_err();
        assert!(unnamed.hint().is_some_and(|hint| hint.contains("--name")), "{unnamed}");
        assert!(platform(Some("windows"), "x86_64").unwrap_err().to_string().contains("linux/amd64"));
    }

    #[test]
    fn the_platform_is_that_of_the_host_in_use() {
        assert_eq!(platform(None, "aarch64").unwrap().to_string(), "linux/arm64");
        assert!(platform(None, "x86_64").unwrap().to_string().starts_with("linux/amd64"));
        assert_eq!(platform(Some("linux/arm64"), "x86_64").unwrap().to_string(), "linux/arm64");
    }
}
