//! The index of a catalog: JSON, version 1. Unknown keys are ignored; a change of meaning needs a new schema number,
//! which is refused with a message.

use std::{collections::BTreeSet, fmt};

use banger_domain::{id::Timestamp, name::Name};
use banger_proto::size::Bytes;
use jiff::{civil, tz::TimeZone};
use serde::Deserialize;

use super::{RemoteFile, Unusable, location::Joined, printable, signature::Signed};
use crate::oci::{Descriptor, reference::ImageRef};

/// The only supported schema.
const SCHEMA: u64 = 1;
/// An entry takes less than a kilobyte.
pub const MAX_INDEX: Bytes = Bytes::mib(1);
const MAX_ENTRIES: usize = 1000;
const MAX_DESCRIPTION: usize = 200;
const MAX_NOTE: usize = 300;
const MAX_VERSION: usize = 64;
/// The same as for layers of a registry's image.
const MAX_FILE: Bytes = Bytes::gib(64);
/// The same as for files of users.
const MAX_KERNEL: Bytes = Bytes::mib(512);
const MAX_MODULES: Bytes = Bytes::gib(4);

/// An index, reduced to what the host's architecture can use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Increases with each edition.
    pub serial: u64,
    /// When it expires.
    pub expires: Date,
    /// Its images.
    pub images: Vec<Entry<ImageTarget>>,
    /// Its kernels.
    pub kernels: Vec<Entry<KernelTarget>>,
}

/// An entry of a catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<T> {
    /// Its name, unique among its kind in the catalog.
    pub name: Name,
    /// One line for people.
    pub description: String,
    /// The version, for people; for a kernel, what `uname -r` prints.
    pub version: String,
    /// For an image: the kernel of a catalog that it needs, if not the default kernel.
    pub kernel: Option<Name>,
    /// What to do if it is not published, or empty.
    pub note: String,
    /// Its files; `None` if it is not published for this architecture.
    pub target: Option<T>,
}

/// The files of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageTarget {
    /// A registry's image, by digest.
    Reference(ImageRef),
    /// A root file system: an archive or an ext4 file system.
    Archive(RemoteFile),
}

/// The files of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelTarget {
    /// The kernel: a `vmlinuz` or an ELF `vmlinux`.
    pub kernel: RemoteFile,
    /// A tar of its modules; `None` if everything that a guest needs is built in.
    pub modules: Option<RemoteFile>,
}

impl Index {
    /// Parses a signed index.
    pub fn parse(signed: &Signed, architecture: &str) -> Result<Self, Unusable> {
        if signed.bytes().len() as u64 > MAX_INDEX.0 {
            return Err(Unusable::new(format!("it is larger than {MAX_INDEX}")));
        }
        let malformed = |error: serde_json::Error| {
            Unusable::new(format!("it is malformed: {}", printable(&error.to_string())))
        };
        let Schema { schema } = serde_json::from_slice(signed.bytes()).map_err(malformed)?;
        if schema != SCHEMA {
            return Err(Unusable::new(format!(
                "it uses version {schema} of the format, but this version of banger reads version {SCHEMA}"
            )));
        }
        let Text { serial, expires, images, kernels } =
            serde_json::from_slice(signed.bytes()).map_err(malformed)?;
        Ok(Self {
            serial,
            expires: Date::parse(&expires)?,
            images: entries(images, architecture, image_target)?,
            kernels: entries(kernels, architecture, kernel_target)?,
        })
    }

    /// Checks that it has not expired.
    pub fn check_age(&self, now: Timestamp) -> Result<(), Unusable> {
        match now < self.expires.begins() {
            true => Ok(()),
            false => Err(Unusable::new(format!("it expired on {}", self.expires))),
        }
    }

    /// Returns the image of this name.
    pub fn image(&self, name: &Name) -> Option<&Entry<ImageTarget>> {
        self.images.iter().find(|entry| entry.name == *name)
    }

    /// Returns the kernel of this name.
    pub fn kernel(&self, name: &Name) -> Option<&Entry<KernelTarget>> {
        self.kernels.iter().find(|entry| entry.name == *name)
    }
}

/// A day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Date(civil::Date);

impl Date {
    /// Parses a date such as `2027-01-31`.
    pub fn parse(text: &str) -> Result<Self, Unusable> {
        let wrong = || Unusable::new(format!("{} is not a date such as 2027-01-31", printable(text)));
        let is_well_formed = text.len() == 10
            && text.bytes().enumerate().all(|(at, b)| match at {
                4 | 7 => b == b'-',
                _ => b.is_ascii_digit(),
            });
        if !is_well_formed {
            return Err(wrong());
        }
        let date: civil::Date = text.parse().map_err(|_| wrong())?;
        if date.year() < 1970 { Err(wrong()) } else { Ok(Self(date)) }
    }

    /// Returns its first moment, in UTC.
    fn begins(&self) -> Timestamp {
        let first = self.0.to_zoned(TimeZone::UTC).map(|first| first.timestamp().as_microsecond());
        // A day that cannot be represented is one at the end of the calendar.
        Timestamp(first.map_or(u64::MAX, |usec| u64::try_from(usec).unwrap_or_default()))
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Deserialize)]
struct Schema {
    schema: u64,
}

#[derive(Deserialize)]
struct Text {
    serial: u64,
    expires: String,
    #[serde(default)]
    images: Vec<TextEntry>,
    #[serde(default)]
    kernels: Vec<TextEntry>,
}

#[derive(Deserialize)]
struct TextEntry {
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    note: String,
    kernel: Option<String>,
    #[serde(default)]
    targets: std::collections::BTreeMap<String, TextTarget>,
}

/// The files of an entry. Keys of other kinds are ignored.
#[derive(Deserialize)]
struct TextTarget {
    reference: Option<String>,
    archive: Option<TextFile>,
    kernel: Option<TextFile>,
    modules: Option<TextFile>,
}

#[derive(Deserialize)]
struct TextFile {
    location: String,
    digest: String,
    size: u64,
}

fn entries<T>(
    texts: Vec<TextEntry>,
    architecture: &str,
    target: impl Fn(TextTarget) -> Result<T, Unusable>,
) -> Result<Vec<Entry<T>>, Unusable> {
    if texts.len() > MAX_ENTRIES {
        return Err(Unusable::new(format!("it has more than {MAX_ENTRIES} entries of one kind")));
    }
    let mut names = BTreeSet::new();
    let entry = |mut text: TextEntry| {
        let name: Name =
            text.name.parse().map_err(|error| Unusable::new(format!("an entry's name: {error}")))?;
        if !names.insert(name.clone()) {
            return Err(Unusable::new(format!("it has two entries named {name}")));
        }
        let of_entry = |Unusable(why): Unusable| Unusable::new(format!("its entry {name}: {why}"));
        let kernel = text.kernel.map(|kernel| kernel.parse());
        let kernel = kernel
            .transpose()
            .map_err(|error: banger_domain::name::Error| of_entry(Unusable::new(error.to_string())))?;
        Ok(Entry {
            description: line("description", text.description, MAX_DESCRIPTION).map_err(of_entry)?,
            version: line("version", text.version, MAX_VERSION).map_err(of_entry)?,
            note: line("note", text.note, MAX_NOTE).map_err(of_entry)?,
            kernel,
            target: text.targets.remove(architecture).map(&target).transpose().map_err(of_entry)?,
            name,
        })
    };
    texts.into_iter().map(entry).collect()
}

fn line(what: &str, text: String, limit: usize) -> Result<String, Unusable> {
    match text.chars().count() <= limit && !text.chars().any(char::is_control) {
        true => Ok(text),
        false => Err(Unusable::new(format!("the {what} is not a single line of at most {limit} characters"))),
    }
}

fn image_target(text: TextTarget) -> Result<ImageTarget, Unusable> {
    match (text.reference, text.archive) {
        (Some(reference), None) => {
            let parsed: ImageRef = reference.parse().map_err(|error| Unusable::new(format!("{error}")))?;
            match parsed.digest() {
                Some(_) => Ok(ImageTarget::Reference(parsed)),
                None => {
                    Err(Unusable::new(format!("{parsed} has no digest, so it could change to another image")))
                }
            }
        }
        (None, Some(archive)) => file(archive, MAX_FILE).map(ImageTarget::Archive),
        _ => Err(Unusable::new("an image needs either a reference or an archive")),
    }
}

fn kernel_target(text: TextTarget) -> Result<KernelTarget, Unusable> {
    let kernel = text.kernel.ok_or_else(|| Unusable::new("a kernel needs a kernel file"))?;
    let modules = text.modules.map(|modules| file(modules, MAX_MODULES)).transpose()?;
    Ok(KernelTarget { kernel: file(kernel, MAX_KERNEL)?, modules })
}

fn file(text: TextFile, limit: Bytes) -> Result<RemoteFile, Unusable> {
    let location: Joined = text.location.parse()?;
    let digest = text.digest.parse().map_err(|error| Unusable::new(format!("{error}")))?;
    match Bytes(text.size) {
        size if size.0 > 0 && size <= limit => {
            Ok(RemoteFile { location, content: Descriptor { digest, size } })
        }
        size => Err(Unusable::new(format!("a file of {size} is refused; the limit is {limit}"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::catalog::signature::fixture;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(bytes: &[u8]) -> Result<Index, String> {
        let signer = fixture::Signer::new();
        let signed = Signed::verify(bytes.to_vec(), signer.sign(bytes).as_bytes(), &signer.keys()).unwrap();
        Index::parse(&signed, "x86_64").map_err(|error| error.to_string())
    }

    fn file() -> Value {
        json!({ "location": "files/a.tar.zst", "digest": DIGEST, "size": 5 })
    }

    fn index() -> Value {
        json!({
            "schema": 1, "serial": 7, "expires": "2027-01-31",
            "images": [
                { "name": "debian", "description": "Debian", "version": "12", "kernel": "generic", "added": "later",
                  "targets": { "x86_64": { "archive": file() }, "aarch64": { "unknown": 1 } } },
                { "name": "tool", "targets": { "x86_64": { "reference": format!("example.org/a/tool:1@{DIGEST}") } } },
                { "name": "later", "note": "Make it yourself." },
            ],
            "kernels": [
                { "name": "generic", "version": "6.12.1",
                  "targets": { "x86_64": { "kernel": file(), "modules": file() } } },
            ],
        })
    }

    fn check_refused(change: impl FnOnce(&mut Value), expect: &str) {
        let mut index = index();
        change(&mut index);
        let error = parse(&serde_json::to_vec(&index).unwrap()).unwrap_err();
        assert!(error.contains(expect), "{error}");
        assert!(!error.chars().any(char::is_control), "{error:?}");
    }

    #[test]
    fn an_index_has_the_entries_for_this_architecture() {
        let index = parse(&serde_json::to_vec(&index()).unwrap()).unwrap();
        assert_eq!((index.serial, index.images.len(), index.kernels.len()), (7, 3, 1));
        let debian = index.image(&"debian".parse().unwrap()).unwrap();
        assert!(matches!(&debian.target, Some(ImageTarget::Archive(file)) if file.size() == Bytes(5)));
        assert_eq!(debian.kernel.as_ref().unwrap().as_str(), "generic");
        let tool = index.image(&"tool".parse().unwrap()).unwrap();
        assert!(
            matches!(&tool.target, Some(ImageTarget::Reference(reference)) if reference.digest().is_some())
        );
        assert_eq!(index.image(&"later".parse().unwrap()).unwrap().target, None);
        assert!(
            index.kernel(&"generic".parse().unwrap()).unwrap().target.as_ref().unwrap().modules.is_some()
        );
    }

    #[test]
    fn an_index_that_is_not_understood_is_refused_with_a_reason() {
        check_refused(
            |index| index["schema"] = json!(2),
            "version 2 of the format, but this version of banger reads version 1",
        );
        // Whatever else it has.
        check_refused(|index| *index = json!({ "schema": 9, "images": 5 }), "version 9");
        check_refused(|index| *index = json!([]), "malformed");
        check_refused(|index| index["serial"] = json!(-1), "malformed");
        check_refused(|index| index["expires"] = json!("soon"), "not a date");
        check_refused(|index| index["images"][0]["name"] = json!("a/b\u{1b}[31m"), "not a valid name");
        check_refused(|index| index["images"][1]["name"] = json!("debian"), "two entries named debian");
        check_refused(
            |index| index["images"][0]["description"] = json!("a\nb"),
            "its entry debian: the description",
        );
        check_refused(|index| index["images"][0]["note"] = json!("x".repeat(301)), "the note");
        check_refused(
            |index| index["images"][0]["targets"]["x86_64"] = json!({}),
            "either a reference or an archive",
        );
        check_refused(
            |index| index["images"][1]["targets"]["x86_64"]["reference"] = json!("example.org/a/tool:1"),
            "has no digest",
        );
        check_refused(|index| index["kernels"][0]["targets"]["x86_64"] = json!({}), "needs a kernel file");
        let at = |part: &'static str, value: Value| {
            move |index: &mut Value| index["images"][0]["targets"]["x86_64"]["archive"][part] = value
        };
        check_refused(at("location", json!("../../etc/shadow")), "not a path relative to the index");
        check_refused(at("location", json!("http://example.org/a")), "not encrypted");
        check_refused(at("digest", json!("md5:0")), "64 lower-case hexadecimal digits");
        check_refused(at("size", json!(0)), "is refused");
        check_refused(at("size", json!(u64::MAX)), "is refused");
        check_refused(
            |index| {
                index["images"] =
                    (0..=MAX_ENTRIES).map(|n| json!({ "name": format!("image-{n}") })).collect();
            },
            "more than 1000 entries",
        );
        check_refused(|index| index["padding"] = json!("x".repeat(1 << 20)), "larger than 1 MiB");
    }

    #[test]
    fn an_index_is_believed_until_the_day_on_which_it_expires() {
        let index = parse(&serde_json::to_vec(&index()).unwrap()).unwrap();
        // `date -u -d 2027-01-31 +%s`
        let day = 1_801_353_600_000_000;
        assert!(index.check_age(Timestamp(day - 1)).is_ok());
        let error = index.check_age(Timestamp(day)).unwrap_err();
        assert_eq!(error.to_string(), "it expired on 2027-01-31");
    }

    #[test]
    fn the_index_of_the_package_is_one() {
        let text = include_str!("../../../packaging/catalog/index.json");
        let index = parse(text.as_bytes()).unwrap();
        let unpublished = index.images.iter().filter(|entry| entry.target.is_none());
        // An unpublished entry says what to do instead.
        assert!(unpublished.into_iter().all(|entry| !entry.note.is_empty()));
        assert!(index.kernels.iter().all(|entry| entry.target.is_some() || !entry.note.is_empty()));
        assert!(index.image(&"debian-bookworm".parse().unwrap()).is_some());
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        let check = |text: &str, seconds: u64| {
            assert_eq!(Date::parse(text).unwrap().begins(), Timestamp(seconds * 1_000_000), "{text}");
        };
        // As printed by `date -u -d TEXT +%s`.
        check("1970-01-01", 0);
        check("2000-02-29", 951_782_400);
        check("2024-12-31", 1_735_603_200);
        check("2100-03-01", 4_107_542_400);
        for text in [
            "",
            "2027-1-31",
            "2027-13-01",
            "2027-00-10",
            "2027-01-32",
            "2027-02-29",
            "1969-12-31",
            "2027/01/31",
            "+027-01-31",
        ] {
            assert!(Date::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_change_of_a_signed_index_makes_it_panic(at in any::<prop::sample::Index>(), byte: u8) {
            let mut bytes = serde_json::to_vec(&index()).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = parse(&bytes);
        }
    }
}
