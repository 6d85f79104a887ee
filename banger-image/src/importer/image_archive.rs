//! Recognises the archive of an image where a root file system is expected: its files would become the files of a guest
//! that cannot boot.

use super::message::Failure;
use crate::rootfs::tree::Tree;

/// Directories of a root file system, of which no image has any.
const ROOT: [&str; 9] = ["bin", "dev", "etc", "lib", "nix", "proc", "sbin", "usr", "var"];

/// Refuses a tree that is an image: an OCI layout, or what `docker save` writes.
pub(super) fn refuse(tree: &Tree) -> Result<(), Failure> {
    let (files, directories) = tree.top_level();
    match kind(&files, &directories) {
        None => Ok(()),
        Some(kind) => Err(Failure::refused(format!(
            "this is the archive of an image ({kind}) and not of a root file system; \
             `banger image register --oci FILE` imports it"
        ))),
    }
}

/// Returns what kind of image has these files and directories in its root. A root file system may have a file of the
/// same name as an image, but not all that make an image.
fn kind(files: &[&[u8]], directories: &[&[u8]]) -> Option<&'static str> {
    if ROOT.iter().any(|name| directories.contains(&name.as_bytes())) {
        return None;
    }
    let has = |name: &str| files.contains(&name.as_bytes());
    let blobs = directories.contains(&b"blobs".as_slice());
    if has("oci-layout") || (has("index.json") && blobs) {
        return Some("an OCI image layout");
    }
    let ends = |name: &[u8], ending: &str| name.ends_with(ending.as_bytes());
    let is_hex = |name: &[u8]| name.len() == 64 && name.iter().all(u8::is_ascii_hexdigit);
    let layers = blobs
        || directories.iter().any(|name| is_hex(name))
        || files.iter().any(|name| ends(name, ".tar") || ends(name, ".tar.gz"));
    ((has("manifest.json") || has("repositories")) && layers).then_some("of `docker save`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[&str], directories: &[&str], expect: Option<&str>) {
        let found = kind(&bytes(files), &bytes(directories));
        assert_eq!(found.is_some(), expect.is_some(), "{files:?} {directories:?}");
        assert!(found.is_none_or(|found| found.contains(expect.unwrap_or_default())), "{found:?}");
    }

    fn bytes<'a>(names: &[&'a str]) -> Vec<&'a [u8]> {
        names.iter().map(|name| name.as_bytes()).collect()
    }

    #[test]
    fn images_are_told_from_root_file_systems() {
        let id = "0".repeat(64);
        check(&["index.json", "oci-layout"], &["blobs"], Some("OCI"));
        check(&["index.json"], &["blobs"], Some("OCI"));
        // Docker 25 and later write both.
        check(&["index.json", "manifest.json", "oci-layout", "repositories"], &["blobs"], Some("OCI"));
        check(&["manifest.json", "repositories", "1.json"], &[&id], Some("docker save"));
        check(&["manifest.json", "1.json", "2.tar"], &[], Some("docker save"));
        check(&["manifest.json", "sha256:1", "2.tar.gz"], &[], Some("docker save"));
        // Docker before 1.10.
        check(&["repositories"], &[&id], Some("docker save"));
        check(&["manifest.json", "index.json"], &["etc", "usr"], None);
        check(&["backup.tar", "manifest.json"], &["etc", "usr"], None);
        check(&[], &["blobs", "etc"], None);
    }
}
