//! Archives are read and merged. The result is a tree of valid names or an error, and does not depend on how the
//! bytes are split.
#![no_main]

use std::io::{BufRead, BufReader};

use banger_fuzz::Archives;
use banger_image::rootfs::{
    Error,
    entry::{Entry, What},
    limits,
    tar::Tar,
    tree::{Archive, Content, Kind, Tree},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: { banger_fuzz::sow("rootfs") },
    |input: &[u8]| {
        let Some(archives) = Archives::of(input) else { return };
        let kind = if archives.are_layers { Archive::Layer } else { Archive::Whole };
        let (mut tree, mut whole) = (Tree::default(), true);
        for tar in &archives.tars {
            let (entries, error) = read(&tar[..]);
            let (in_pieces, same_error) = read(BufReader::with_capacity(7, &tar[..]));
            assert_eq!(entries, in_pieces);
            assert_eq!(error.as_ref().map(Error::to_string), same_error.as_ref().map(Error::to_string));
            whole &= error.is_none();
            tree.begin(kind);
            for (entry, content) in entries {
                whole &= tree.put(entry, content).is_ok();
            }
            tree.end();
        }
        // A tree is not used after it refused an entry.
        if whole {
            check(&tree);
        }
    }
);

/// Reads all entries up to an error, each file with the number of its bytes that were there.
fn read(bytes: impl BufRead) -> (Vec<(Entry, Content)>, Option<Error>) {
    let (mut tar, mut entries) = (Tar::new(bytes), Vec::new());
    loop {
        match tar.next_entry() {
            Ok(Some(entry)) => {
                let mut content = Content::default();
                if let What::File(shape) = &entry.what {
                    content.size = shape.size;
                    content.segments = shape.segments.clone().map(Vec::into_boxed_slice);
                }
                loop {
                    match tar.data() {
                        Ok([]) => break,
                        Ok(bytes) => {
                            let count = bytes.len();
                            content.at += count as u64;
                            tar.consume(count);
                        }
                        Err(error) => return (entries, Some(error)),
                    }
                }
                entries.push((entry, content));
            }
            Ok(None) => return (entries, None),
            Err(error) => return (entries, Some(error)),
        }
    }
}

fn check(tree: &Tree) {
    let mut links = vec![0; tree.capacity()];
    let (mut last, mut names) = (None, 0);
    for (parent, name, id) in tree.walk() {
        assert!((1..=limits::NAME).contains(&name.len()) && name != b"." && name != b"..");
        assert!(!name.contains(&b'/') && !name.contains(&0));
        assert!(matches!(tree.node(parent).kind, Kind::Directory(_)));
        if let Some((before, name_before)) = last
            && before == parent
        {
            assert!(name_before < name, "names of a directory are in order, and no two are the same");
        }
        links[id.index()] += 1;
        last = Some((parent, name));
        names += 1;
        if let Kind::Symlink(target) = &tree.node(id).kind {
            assert!((1..=limits::TARGET).contains(&target.len()));
        }
    }
    for (_, _, id) in tree.walk() {
        assert_eq!(tree.node(id).links, links[id.index()]);
    }
    assert!(names <= limits::ENTRIES);
}
