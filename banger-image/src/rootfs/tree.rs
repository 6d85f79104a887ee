//! Merges the layers of an image into one tree (OCI image specification, "Image Layer Filesystem Changeset"). Names,
//! symbolic links included, are resolved below the root of the image only; the host's files are never used.

use std::collections::{BTreeMap, btree_map};

use super::{
    Error,
    attribute::{self, Attributes},
    entry::{Entry, Meta, Special, What},
    limits, path,
    sparse::Segment,
};

/// The prefix of an entry that hides another one of the layers below.
const WHITEOUT: &[u8] = b".wh.";
/// Hides everything that the layers below have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The prefix of the metadata of AUFS, a file system with which some layers were made. In the root of a layer they are
/// left out; until the layer ends, hard links may lead to them (`.wh..wh.plnk`).
const AUFS: &[u8] = b".wh..wh.";

/// The id of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(u32);

impl Id {
    /// Returns its number, which is below [`Tree::capacity`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The root of every tree.
pub const ROOT: Id = Id(0);

/// A node of a tree, with one name or several.
#[derive(Debug, Clone)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Owner, permissions and time.
    pub meta: Meta,
    /// Its extended attributes. Access control lists are in ext4's format.
    pub attributes: Option<Attributes>,
    /// The number of its names.
    pub links: u32,
}

/// The kind of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory with its content by name.
    Directory(BTreeMap<Box<[u8]>, Child>),
    /// A regular file.
    File(Content),
    /// A symbolic link to this path.
    Symlink(Box<[u8]>),
    /// A device or a pipe.
    Special(Special),
}

/// A name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Child {
    /// The node.
    pub id: Id,
    /// The layer that added the name last.
    layer: u32,
}

/// Where the data of a file is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// Its offset.
    pub at: u64,
    /// The length of the file.
    pub size: u64,
    /// The ranges of whole blocks with data, in order; `None` if there are no holes.
    pub segments: Option<Box<[Segment]>>,
}

impl Content {
    /// Returns whether it has any data: a file can be empty, or one hole.
    pub fn has_data(&self) -> bool {
        self.segments.as_ref().map_or(self.size > 0, |segments| !segments.is_empty())
    }

    /// Returns the number of its bytes, without holes.
    pub fn data(&self) -> u64 {
        match &self.segments {
            Some(segments) => segments.iter().map(|segment| segment.length).sum(),
            None => self.size,
        }
    }
}

/// The kind of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archive {
    /// A layer of an image, which can hide what is below it.
    Layer,
    /// A whole file system, in which no name is special.
    Whole,
}

/// A tree.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    free: Vec<Id>,
    archive: Archive,
    layer: u32,
    records: u64,
    names: usize,
    directories: usize,
    attributes: usize,
    segments: usize,
}

impl Default for Tree {
    fn default() -> Self {
        let root =
            Node { kind: Kind::Directory(BTreeMap::new()), meta: Meta::IMPLIED, attributes: None, links: 1 };
        Self {
            nodes: vec![root],
            free: Vec::new(),
            archive: Archive::Whole,
            layer: 0,
            records: 0,
            names: 0,
            directories: 1,
            attributes: 0,
            segments: 0,
        }
    }
}

impl Tree {
    /// Returns a node.
    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// Returns the number of nodes, including removed ones.
    pub fn capacity(&self) -> usize {
        self.nodes.len()
    }

    /// Returns the number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// Returns whether nothing has been added.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Starts another archive, on top of everything so far. Call [`Tree::end`] after its last entry.
    pub fn begin(&mut self, archive: Archive) {
        self.layer += 1;
        self.archive = archive;
    }

    /// Ends an archive: removes what a layer has for other file systems alone.
    pub fn end(&mut self) {
        let names = self.children(ROOT).into_iter().flatten().map(|(name, _)| name);
        let notes: Vec<Box<[u8]>> = match self.archive {
            Archive::Layer => names.filter(|name| name.starts_with(AUFS)).cloned().collect(),
            Archive::Whole => Vec::new(),
        };
        for name in notes {
            self.remove(ROOT, &name);
        }
    }

    /// Returns the names in the root that are regular files, and those that are directories.
    pub fn top_level(&self) -> (Vec<&[u8]>, Vec<&[u8]>) {
        let (mut files, mut directories) = (Vec::new(), Vec::new());
        for (name, child) in self.children(ROOT).into_iter().flatten() {
            match self.node(child.id).kind {
                Kind::File(_) => files.push(&**name),
                Kind::Directory(_) => directories.push(&**name),
                _ => {}
            }
        }
        (files, directories)
    }

    /// Returns what a path leads to, following symbolic links as inside of the image.
    pub fn find(&mut self, path: &[u8]) -> Result<Option<&Node>, Error> {
        let components = path::components(path)?;
        let id = self.resolve(&components, path, Goal::Any)?;
        Ok(id.map(|id| self.node(id)))
    }

    /// Adds an entry. The content is used for a file.
    pub fn put(&mut self, entry: Entry, content: Content) -> Result<(), Error> {
        self.records += 1;
        if self.records > limits::RECORDS {
            return Err(Error::TooMany { most: limits::RECORDS, what: "entries in its archives" });
        }
        let shown = entry.path;
        let components = path::components(&shown)?;
        let Some((name, parents)) = components.split_last() else {
            return match entry.what {
                What::Directory => self.change(ROOT, &shown, entry.meta, entry.attributes),
                _ => Err(Error::entry(&shown, "is the root, but not a directory")),
            };
        };
        let is_aufs = |name: &[u8]| name.starts_with(AUFS) && name != OPAQUE;
        let is_note = components.first().is_some_and(|first| is_aufs(first));
        if self.archive == Archive::Layer && name.starts_with(WHITEOUT) && !is_note {
            return self.hide(parents, name, &shown);
        }
        let Some(parent) = self.resolve(parents, &shown, Goal::NewDirectory)? else {
            return Err(Error::entry(&shown, "has no parent directory"));
        };
        let existing = self.child(parent, name);
        let has_user_attributes = matches!(entry.what, What::Directory | What::File(_));
        // Linux ignores the permissions of a symbolic link, and gives each of them these.
        let mode = if let What::Symlink(_) = entry.what { 0o777 } else { entry.meta.mode };
        let meta = Meta { mode, ..entry.meta };
        let kind = match entry.what {
            What::Directory => match existing {
                Some(id) if self.children(id).is_some() => {
                    self.name(parent, name, id);
                    return self.change(id, &shown, entry.meta, entry.attributes);
                }
                _ => Kind::Directory(BTreeMap::new()),
            },
            What::Link(target) => return self.link(parent, name, &target, &shown),
            What::File(_) => Kind::File(content),
            What::Symlink(target) => match target.len() {
                1..=limits::TARGET if !target.contains(&0) => Kind::Symlink(target.into()),
                _ => {
                    return Err(Error::entry(&shown, "is a symbolic link with an empty or too long target"));
                }
            },
            What::Special(special) => Kind::Special(special),
        };
        let attributes = attribute::kept(&shown, has_user_attributes, entry.attributes)?;
        self.remove(parent, name);
        let id = self.make(Node { kind, meta, attributes, links: 0 }, &shown)?;
        self.add(parent, name, id)
    }

    /// Adds a hard link.
    fn link(&mut self, parent: Id, name: &[u8], target: &[u8], shown: &[u8]) -> Result<(), Error> {
        let components = path::components(target)
            .map_err(|error| Error::entry(shown, format!("is a link to an invalid name: {error}")))?;
        let nowhere = || Error::entry(shown, "is a link to a file that is not there");
        let (last, parents) = components.split_last().ok_or_else(nowhere)?;
        let place = self.resolve(parents, shown, Goal::Directory)?.ok_or_else(nowhere)?;
        if (place, *last) == (parent, name) {
            return Err(Error::entry(shown, "is a link to itself"));
        }
        let id = self.child(place, last).ok_or_else(nowhere)?;
        if self.children(id).is_some() {
            return Err(Error::entry(shown, "is a link to a directory"));
        }
        if self.node(id).links >= limits::LINKS {
            return Err(Error::entry(shown, format!("has more than {} names", limits::LINKS)));
        }
        // The link may replace the only other name of its target.
        self.node_mut(id).links += 1;
        self.remove(parent, name);
        self.node_mut(id).links -= 1;
        self.add(parent, name, id)
    }

    /// Hides what the layers below have, but nothing of this layer.
    fn hide(&mut self, parents: &[&[u8]], name: &[u8], shown: &[u8]) -> Result<(), Error> {
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Error::entry(shown, "is not a valid whiteout"));
        }
        // Below a missing name, and below one that is not a directory, there is nothing to hide.
        let Ok(Some(parent)) = self.resolve(parents, shown, Goal::Directory) else {
            return Ok(());
        };
        if name == OPAQUE {
            self.remove_older(parent);
            return Ok(());
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        match self.children(parent).and_then(|children| children.get(hidden)).copied() {
            Some(child) if child.layer != self.layer => self.remove(parent, hidden),
            Some(child) if self.children(child.id).is_some() => self.remove_older(child.id),
            _ => {}
        }
        Ok(())
    }

    /// Resolves a path from the root, following symbolic links as inside of the image. `None` if it does not exist and
    /// should not be made.
    fn resolve(&mut self, names: &[&[u8]], shown: &[u8], goal: Goal) -> Result<Option<Id>, Error> {
        let (mut way, mut links) = (vec![ROOT], 0);
        let mut ahead: Vec<Box<[u8]>> = names.iter().rev().map(|&name| name.into()).collect();
        while let Some(name) = ahead.pop() {
            let here = way.last().copied().unwrap_or(ROOT);
            match &*name {
                b"" | b"." => continue,
                b".." => {
                    // The parent of the root is the root.
                    if way.len() > 1 {
                        way.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let Some(id) = self.child(here, &name) else {
                if goal != Goal::NewDirectory {
                    return Ok(None);
                }
                if name.len() > limits::NAME {
                    return Err(Error::entry(shown, "is behind a symbolic link to a name that is too long"));
                }
                let kind = Kind::Directory(BTreeMap::new());
                let node = Node { kind, meta: Meta::IMPLIED, attributes: None, links: 0 };
                let id = self.make(node, shown)?;
                self.add(here, &name, id)?;
                way.push(id);
                continue;
            };
            match &self.node(id).kind {
                Kind::Directory(_) => {
                    if goal == Goal::NewDirectory {
                        self.name(here, &name, id);
                    }
                    way.push(id);
                }
                Kind::Symlink(target) => {
                    links += 1;
                    if links > limits::SYMLINKS {
                        return Err(Error::entry(shown, "is behind too many symbolic links"));
                    }
                    if target.starts_with(b"/") {
                        way.truncate(1);
                    }
                    ahead.extend(target.split(|&byte| byte == b'/').rev().map(Box::from));
                }
                _ if goal == Goal::Any && ahead.is_empty() => return Ok(Some(id)),
                _ => {
                    let name = super::error::Shown::of(&name);
                    return Err(Error::entry(shown, format!("is below {name}, which is not a directory")));
                }
            }
        }
        Ok(way.last().copied())
    }

    /// Updates an existing directory with an entry for it.
    fn change(
        &mut self,
        id: Id,
        shown: &[u8],
        meta: Meta,
        attributes: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<(), Error> {
        let attributes = attribute::kept(shown, true, attributes)?;
        self.attributes -= size_of_attributes(self.node(id));
        let node = self.node_mut(id);
        node.meta = meta;
        node.attributes = attributes;
        self.count_attributes(id)
    }

    fn make(&mut self, node: Node, shown: &[u8]) -> Result<Id, Error> {
        let id = match self.free.pop() {
            Some(id) => id,
            None => {
                let id = u32::try_from(self.nodes.len());
                let id = Id(id.map_err(|_| Error::entry(shown, "is one entry too many"))?);
                self.nodes.push(node.clone());
                id
            }
        };
        match &node.kind {
            Kind::Directory(_) => self.directories += 1,
            Kind::File(Content { segments: Some(segments), .. }) => self.segments += segments.len(),
            _ => {}
        }
        *self.node_mut(id) = node;
        if self.directories > limits::DIRECTORIES {
            return Err(Error::TooMany { most: limits::DIRECTORIES as u64, what: "directories" });
        }
        if self.segments > limits::ALL_SEGMENTS {
            return Err(Error::TooMany {
                most: limits::ALL_SEGMENTS as u64,
                what: "pieces of data in sparse files",
            });
        }
        self.count_attributes(id)?;
        Ok(id)
    }

    fn count_attributes(&mut self, id: Id) -> Result<(), Error> {
        self.attributes += size_of_attributes(self.node(id));
        if self.attributes > limits::ALL_ATTRIBUTES {
            return Err(Error::TooMany {
                most: limits::ALL_ATTRIBUTES as u64,
                what: "bytes of extended attributes",
            });
        }
        Ok(())
    }

    /// Adds a free name to a node.
    fn add(&mut self, parent: Id, name: &[u8], id: Id) -> Result<(), Error> {
        self.names += 1;
        self.node_mut(id).links += 1;
        self.name(parent, name, id);
        if self.names > limits::ENTRIES {
            return Err(Error::TooMany { most: limits::ENTRIES as u64, what: "names" });
        }
        Ok(())
    }

    /// Records that this layer has the name.
    fn name(&mut self, parent: Id, name: &[u8], id: Id) {
        let layer = self.layer;
        if let Kind::Directory(children) = &mut self.node_mut(parent).kind {
            match children.get_mut(name) {
                Some(child) => *child = Child { id, layer },
                None => drop(children.insert(name.into(), Child { id, layer })),
            }
        }
    }

    /// Removes a name, if it exists, and every node that is left without a name.
    fn remove(&mut self, parent: Id, name: &[u8]) {
        let Kind::Directory(children) = &mut self.node_mut(parent).kind else { return };
        let Some(child) = children.remove(name) else { return };
        let mut nameless = vec![child.id];
        while let Some(id) = nameless.pop() {
            self.names -= 1;
            let node = self.node_mut(id);
            node.links -= 1;
            if node.links > 0 {
                continue;
            }
            let (kind, attributes) =
                (std::mem::replace(&mut node.kind, Kind::Symlink(Box::default())), size_of_attributes(node));
            node.attributes = None;
            self.attributes -= attributes;
            match kind {
                Kind::Directory(children) => {
                    self.directories -= 1;
                    nameless.extend(children.values().map(|child| child.id));
                }
                Kind::File(Content { segments: Some(segments), .. }) => self.segments -= segments.len(),
                _ => {}
            }
            self.free.push(id);
        }
    }

    /// Removes what is below a directory and was not added by this layer.
    fn remove_older(&mut self, directory: Id) {
        let mut directories = vec![directory];
        while let Some(directory) = directories.pop() {
            let Some(children) = self.children(directory) else { continue };
            let (own, older): (Vec<_>, Vec<_>) =
                children.iter().partition(|(_, child)| child.layer == self.layer);
            directories.extend(own.into_iter().map(|(_, child)| child.id));
            let older: Vec<Box<[u8]>> = older.into_iter().map(|(name, _)| name.clone()).collect();
            for name in older {
                self.remove(directory, &name);
            }
        }
    }

    fn child(&self, parent: Id, name: &[u8]) -> Option<Id> {
        Some(self.children(parent)?.get(name)?.id)
    }

    fn children(&self, id: Id) -> Option<&BTreeMap<Box<[u8]>, Child>> {
        match &self.node(id).kind {
            Kind::Directory(children) => Some(children),
            _ => None,
        }
    }

    fn node_mut(&mut self, id: Id) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }
}

/// What a path should lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    /// A directory, which is made if it is missing, with those on the way.
    NewDirectory,
    /// An existing directory.
    Directory,
    /// Anything that exists, behind symbolic links.
    Any,
}

fn size_of_attributes(node: &Node) -> usize {
    node.attributes.iter().flatten().map(|(name, value)| name.len() + value.len()).sum()
}

/// The remaining names of a directory.
type Names<'a> = btree_map::Iter<'a, Box<[u8]>, Child>;

/// An iterator over all names of a tree. A directory's name comes before its content, which is sorted.
#[derive(Debug)]
pub struct Walk<'a> {
    tree: &'a Tree,
    directories: Vec<(Id, Names<'a>)>,
}

impl Tree {
    /// Returns every name except the root: its directory, the name, and its node.
    pub fn walk(&self) -> Walk<'_> {
        let directories = self.children(ROOT).map(|children| (ROOT, children.iter())).into_iter().collect();
        Walk { tree: self, directories }
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = (Id, &'a [u8], Id);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (parent, children) = self.directories.last_mut()?;
            let parent = *parent;
            let Some((name, child)) = children.next() else {
                self.directories.pop();
                continue;
            };
            if let Some(children) = self.tree.children(child.id) {
                self.directories.push((child.id, children.iter()));
            }
            return Some((parent, name, child.id));
        }
    }
}

#[cfg(test)]
mod tests;
