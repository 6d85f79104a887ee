//! Indexes: lists of manifests. [`choose`] is the one way in which banger picks an image, whether the list comes from a
//! registry, is the `index.json` of a layout in files, or the `manifest.json` of a Docker archive.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};

use super::{
    Descriptor, Unusable,
    manifest::{self, MANIFESTS, MAX_DOCUMENT},
    platform::{Fit, Platform, Stated},
    printable,
};

/// Indexes of OCI and of Docker, which calls them lists.
pub(super) const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
/// The most manifests in an index.
pub const MAX_ENTRIES: usize = 1024;
/// How many manifests of an index are looked at. Signatures and other artifacts may come before the image.
pub const MAX_TRIES: usize = 16;
/// How many platforms or names a message lists.
const MAX_LISTED: usize = 12;

/// An index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index(Vec<Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    document: RawEntry,
    offer: Offer,
}

/// What a list says about one of its images.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// Its platform; `None` if the list does not say any.
    pub platform: Option<Stated>,
    /// Its tags and references; if it has none, what else it is called in the list.
    pub names: Vec<String>,
    /// Which content it has. Equal offers of one content are one image.
    pub content: String,
}

/// Which image of a list is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Selector<'a> {
    /// The platform that will run it.
    pub platform: &'a Platform,
    /// The tag or the reference that the list has for it.
    pub tag: Option<&'a str>,
}

/// An image of a list that fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its position in the list.
    pub position: usize,
    /// How well it fits.
    pub fit: Fit,
}

/// Returns the images of a list that fit, the best one first. Of equally good ones, the first in the list comes first.
///
/// A list does not say everything: whether an image without a platform is one, and for which platform, is in its
/// documents. So look at the first one, and go on to the next when that is not an image for the platform.
pub fn choose(offers: &[Offer], wanted: Selector<'_>) -> Result<Vec<Candidate>, Unusable> {
    let named =
        |offer: &&Offer| wanted.tag.is_none_or(|tag| offer.names.iter().any(|name| is_named(name, tag)));
    if !offers.iter().any(|offer| named(&offer)) {
        let tags = listed(offers.iter().flat_map(|offer| &offer.names).map(|name| printable(name)));
        let tag = printable(wanted.tag.unwrap_or_default());
        let there = if tags.is_empty() { "no image has a tag".to_owned() } else { format!("only {tags}") };
        return Err(Unusable::new(format!("there is no image with the tag \"{tag}\", {there}")));
    }
    let mut fitting: Vec<Candidate> = Vec::new();
    for (position, offer) in offers.iter().enumerate().filter(|(_, offer)| named(offer)) {
        let fit = offer.platform.as_ref().map_or(Some(Fit::UNSTATED), |stated| wanted.platform.fit(stated));
        let is_new = !fitting.iter().any(|known| offers[known.position].content == offer.content);
        if let Some(fit) = fit.filter(|_| is_new) {
            fitting.push(Candidate { position, fit });
        }
    }
    // The sort is stable.
    fitting.sort_by_key(|candidate| candidate.fit);
    if fitting.is_empty() {
        let named = offers.iter().filter(named);
        let stated = named.filter_map(|offer| offer.platform.as_ref()).filter(|stated| !stated.is_unknown());
        let platforms = listed(stated.map(Stated::to_string));
        let platforms = if platforms.is_empty() { "attestations".to_owned() } else { platforms };
        return Err(Unusable::other(format!(
            "there is no image for {}, only for {platforms}",
            wanted.platform
        )));
    }
    Ok(fitting)
}

/// Returns whether an entry with this name is meant by a tag, or by a reference that a user may write shorter.
fn is_named(name: &str, wanted: &str) -> bool {
    if name == wanted || name.rsplit_once(':').is_some_and(|(_, tag)| tag == wanted && !tag.contains('/')) {
        return true;
    }
    let parse = |text: &str| text.parse::<super::reference::ImageRef>().ok();
    name.contains(['/', ':']) && parse(name).is_some_and(|name| parse(wanted) == Some(name))
}

fn listed(words: impl Iterator<Item = String>) -> String {
    let mut words: Vec<String> = words.collect();
    words.sort();
    words.dedup();
    words.truncate(MAX_LISTED);
    words.join(", ")
}

/// Other keys of a descriptor, such as `urls`, are not read and so never followed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEntry {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    size: u64,
    artifact_type: Option<String>,
    platform: Option<RawPlatform>,
    annotations: Option<RawAnnotations>,
}

/// The entries of an index: of too many, only as many as tell that. The others would take memory before they are
/// counted.
#[derive(Debug, Default)]
pub(super) struct RawEntries(Vec<RawEntry>);

impl<'de> Deserialize<'de> for RawEntries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = RawEntries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of manifests")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RawEntries, A::Error> {
                let mut entries = Vec::new();
                while entries.len() <= MAX_ENTRIES
                    && let Some(entry) = list.next_element()?
                {
                    entries.push(entry);
                }
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(RawEntries(entries))
            }
        }

        deserializer.deserialize_seq(Entries)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct RawPlatform {
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct RawAnnotations {
    /// The tag of an entry in a layout (OCI image specification, "Pre-Defined Annotation Keys").
    #[serde(rename = "org.opencontainers.image.ref.name")]
    ref_name: Option<String>,
    /// The whole reference of an entry, which containerd and Docker write.
    #[serde(rename = "io.containerd.image.name")]
    image_name: Option<String>,
    /// Marks what belongs to another entry, such as BuildKit's attestations.
    #[serde(rename = "vnd.docker.reference.type")]
    reference_type: Option<String>,
}

impl Index {
    /// Reads the entries that can be images, or indexes of images. Others are passed over, as the specification asks.
    pub(super) fn read(RawEntries(entries): RawEntries) -> Result<Self, Unusable> {
        if entries.is_empty() {
            return Err(Unusable::other("its index is empty"));
        }
        if entries.len() > MAX_ENTRIES {
            return Err(Unusable::new(format!("its index lists more than {MAX_ENTRIES} manifests")));
        }
        let entries: Vec<Entry> = entries.into_iter().filter_map(Entry::of).collect();
        match entries.is_empty() {
            true => Err(Unusable::other("its index lists no image")),
            false => Ok(Self(entries)),
        }
    }

    /// Reads the `index.json` of a layout in files. `None` if it lists nothing.
    pub fn of_layout(bytes: &[u8]) -> Result<Option<Self>, Unusable> {
        #[derive(Deserialize)]
        struct Raw {
            manifests: Option<RawEntries>,
        }
        if bytes.len() as u64 > MAX_DOCUMENT.0 {
            return Err(Unusable::new(format!("its index.json is larger than {MAX_DOCUMENT}")));
        }
        let raw: Raw =
            serde_json::from_slice(bytes).map_err(|error| Unusable::json("its index.json", &error))?;
        raw.manifests.filter(|RawEntries(entries)| !entries.is_empty()).map(Self::read).transpose()
    }

    /// Returns the documents that may be the wanted image, the best one first.
    pub fn choose(&self, wanted: Selector<'_>) -> Result<Vec<Candidate>, Unusable> {
        let offers: Vec<Offer> = self.0.iter().map(|entry| entry.offer.clone()).collect();
        choose(&offers, wanted)
    }

    /// Returns where the document of a candidate is.
    pub fn document(&self, candidate: Candidate) -> Result<Descriptor, Unusable> {
        let entry = self.0.get(candidate.position).map(|entry| &entry.document);
        let RawEntry { digest, size, .. } = entry.ok_or_else(|| Unusable::new("its index is shorter"))?;
        manifest::descriptor(digest, *size, 1, MAX_DOCUMENT, "a manifest")
    }

    /// Returns the names of a candidate; its digest if it has none.
    pub fn names(&self, candidate: Candidate) -> &[String] {
        self.0.get(candidate.position).map_or(&[], |entry| &entry.offer.names)
    }
}

impl Entry {
    fn of(mut document: RawEntry) -> Option<Self> {
        let is_known = |kind: &str| MANIFESTS.contains(&kind) || INDEXES.contains(&kind);
        let platform = document.platform.take().map(|platform| Stated {
            os: platform.os.unwrap_or_default(),
            architecture: platform.architecture.unwrap_or_default(),
            variant: platform.variant.unwrap_or_default(),
        });
        let annotations = document.annotations.take();
        let belongs = annotations.as_ref().is_some_and(|its| its.reference_type.is_some());
        let is_artifact = document.artifact_type.is_some() && platform.is_none();
        if !document.media_type.as_deref().is_none_or(is_known) || belongs || is_artifact {
            return None;
        }
        let names = annotations.map(|its| [its.ref_name, its.image_name]);
        let mut names: Vec<String> =
            names.into_iter().flatten().flatten().filter(|name| !name.is_empty()).collect();
        if names.is_empty() {
            names.push(document.digest.clone());
        }
        let offer = Offer { platform, names, content: document.digest.clone() };
        Some(Self { document, offer })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn offer(platform: Option<&str>, names: &[&str]) -> Offer {
        let platform = platform.map(|text| {
            let mut parts = text.split('/').map(str::to_owned);
            let mut next = || parts.next().unwrap_or_default();
            Stated { os: next(), architecture: next(), variant: next() }
        });
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        Offer { content: format!("{platform:?} {names:?}"), platform, names }
    }

    fn chosen(offers: &[Offer], platform: &str, tag: Option<&str>) -> Result<Vec<usize>, String> {
        let platform = platform.parse().unwrap();
        let chosen = choose(offers, Selector { platform: &platform, tag });
        chosen.map(|all| all.iter().map(|one| one.position).collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_best_platform_comes_first_and_what_states_none_comes_last() {
        let offers = [
            offer(None, &[]),
            offer(Some("linux/amd64/v3"), &[]),
            offer(Some("linux/amd64"), &["a"]),
            offer(Some("linux/amd64"), &["b"]),
            offer(Some("unknown/unknown"), &[]),
            offer(Some("windows/amd64"), &[]),
        ];
        assert_eq!(chosen(&offers, "linux/amd64", None), Ok(vec![2, 3, 0]));
        assert_eq!(chosen(&offers, "linux/amd64/v3", None), Ok(vec![1, 2, 3, 0]));
        assert_eq!(chosen(&offers, "linux/amd64", Some("b")), Ok(vec![3]));
        let error = chosen(&offers[1..], "linux/arm64/v9", None).unwrap_err();
        assert_eq!(
            error,
            "there is no image for linux/arm64/v9, only for linux/amd64, linux/amd64/v3, windows/amd64"
        );
    }

    #[test]
    fn too_many_entries_are_counted_without_keeping_them() {
        let index = |count: usize| format!("{{\"manifests\":[{}]}}", vec!["{}"; count].join(","));
        let million = index(1_300_000);
        let entries = |text: &str| {
            let raw: std::collections::BTreeMap<String, RawEntries> = serde_json::from_str(text).unwrap();
            raw["manifests"].0.len()
        };
        assert_eq!((entries(&index(MAX_ENTRIES)), entries(&million)), (MAX_ENTRIES, MAX_ENTRIES + 1));
        assert!(Index::of_layout(index(MAX_ENTRIES).as_bytes()).is_ok());
        let error = Index::of_layout(million.as_bytes()).unwrap_err().to_string();
        assert_eq!(error, "its index lists more than 1024 manifests");
        // What is not kept is read nevertheless.
        let broken = million.replace("{}]", "{]");
        assert!(Index::of_layout(broken.as_bytes()).unwrap_err().to_string().contains("malformed"));
        for (none, is_none) in [("null", true), ("[]", true), ("{}", false), ("7", false)] {
            let text = format!("{{\"manifests\":{none}}}");
            assert_eq!(
                Index::of_layout(text.as_bytes()).is_ok_and(|index| index.is_none()),
                is_none,
                "{none}"
            );
        }
    }

    #[test]
    fn one_content_is_one_image_whatever_its_names() {
        let mut offers = [offer(None, &["a"]), offer(None, &["b"])];
        offers[1].content = offers[0].content.clone();
        assert_eq!(chosen(&offers, "linux/amd64", None), Ok(vec![0]));
        assert_eq!(chosen(&offers, "linux/amd64", Some("b")), Ok(vec![1]));
    }

    #[test]
    fn a_tag_is_a_tag_or_a_whole_reference() {
        let offers = [offer(None, &["3.20", "docker.io/library/alpine:3.20"]), offer(None, &["x/y:edge"])];
        for tag in ["3.20", "alpine:3.20", "docker.io/alpine:3.20", "docker.io/library/alpine:3.20"] {
            assert_eq!(chosen(&offers, "linux/amd64", Some(tag)), Ok(vec![0]), "{tag}");
        }
        assert_eq!(chosen(&offers, "linux/amd64", Some("edge")), Ok(vec![1]));
        let error = chosen(&offers, "linux/amd64", Some("4")).unwrap_err();
        assert_eq!(
            error,
            "there is no image with the tag \"4\", only 3.20, docker.io/library/alpine:3.20, x/y:edge"
        );
        assert!(
            chosen(&[offer(None, &[])], "linux/amd64", Some("4")).unwrap_err().contains("no image has a tag")
        );
    }
}
