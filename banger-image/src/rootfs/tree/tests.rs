//! Tests of the tree that layers are merged into.

#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;
use crate::rootfs::entry::Shape;

/// Builds a tree from the archives of a test. Each entry is a kind and one or two names: `d` directory, `f` file with
/// its number as content, `s` symbolic link, `l` hard link, `p` pipe.
fn tree(layers: &[&[&str]]) -> Result<Tree, Error> {
    let mut tree = Tree::default();
    let mut at = 0;
    for layer in layers {
        tree.begin(Archive::Layer);
        for text in *layer {
            at += 1;
            put(&mut tree, text, at)?;
        }
        tree.end();
    }
    Ok(tree)
}

fn put(tree: &mut Tree, text: &str, at: u64) -> Result<(), Error> {
    let words: Vec<&str> = text.split(' ').collect();
    let target = || words[2].as_bytes().to_vec();
    let what = match words[0] {
        "d" => What::Directory,
        "f" => What::File(Shape { size: 1, segments: None }),
        "s" => What::Symlink(target()),
        "l" => What::Link(target()),
        "p" => What::Special(Special::Fifo),
        other => panic!("{other}"),
    };
    let meta = Meta { modified: (at as i64, 0), ..Meta::IMPLIED };
    let entry = Entry { path: words[1].as_bytes().to_vec(), what, meta, attributes: Vec::new() };
    tree.put(entry, Content { at, size: 1, segments: None })
}

/// Lists a tree: each name with its kind and, for a file, the number of its content.
fn names(tree: &Tree) -> Vec<String> {
    let mut paths = std::collections::HashMap::from([(ROOT, String::new())]);
    tree.walk()
        .map(|(parent, name, id)| {
            let path = format!("{}/{}", paths[&parent], String::from_utf8_lossy(name));
            let text = match &tree.node(id).kind {
                Kind::Directory(_) => format!("d {path}"),
                Kind::File(content) => format!("f {path} {}", content.at),
                Kind::Symlink(target) => format!("s {path} {}", String::from_utf8_lossy(target)),
                Kind::Special(_) => format!("p {path}"),
            };
            paths.insert(id, path);
            text
        })
        .collect()
}

fn check(layers: &[&[&str]], expect: &[&str]) {
    let tree = tree(layers).unwrap();
    assert_eq!(names(&tree), expect, "{layers:?}");
    sound(&tree);
}

fn refused(layers: &[&[&str]], why: &str) {
    let message = tree(layers).unwrap_err().to_string();
    assert!(message.contains(why), "{message}");
}

/// Checks that the tree's counts match its names.
fn sound(tree: &Tree) {
    let mut links = std::collections::HashMap::<Id, u32>::new();
    let mut directories = 1;
    for (_, _, id) in tree.walk() {
        *links.entry(id).or_default() += 1;
        directories += usize::from(tree.children(id).is_some());
    }
    assert_eq!(links.values().sum::<u32>() as usize, tree.names);
    assert_eq!(directories, tree.directories);
    assert_eq!(links.len() + 1, tree.len());
    for (id, count) in links {
        assert_eq!(tree.node(id).links, count);
        assert!(count == 1 || tree.children(id).is_none());
    }
}

#[test]
fn a_layer_is_laid_over_those_below_it() {
    check(&[&["f a", "f b"], &["f b", "f c"]], &["f /a 1", "f /b 3", "f /c 4"]);
    check(&[&["d d", "f d/a"], &["d d", "f d/b"]], &["d /d", "f /d/a 2", "f /d/b 4"]);
    check(&[&["d ./", "f ./a", "d /"]], &["f /a 2"]);
    check(&[&[], &["f a"], &[]], &["f /a 1"]);
}

#[test]
fn a_directory_gives_way_to_a_file_and_a_file_to_a_directory() {
    let below: &[&str] = &["d x", "f x/a", "d x/y", "f x/y/b"];
    check(&[below, &["f x"]], &["f /x 5"]);
    check(&[below, &["f x"], &["d x", "f x/c"]], &["d /x", "f /x/c 7"]);
    check(&[below, &["s x y"]], &["s /x y"]);
    check(&[&["s x y"], &["d x"]], &["d /x"]);
    check(&[&["f x"], &["p x"]], &["p /x"]);
    refused(&[&["f x"], &["f x/a"]], "not a directory");
}

#[test]
fn directories_that_nobody_mentions_are_made() {
    check(&[&["f a/b/c"]], &["d /a", "d /a/b", "f /a/b/c 1"]);
    let tree = tree(&[&["f a/b"]]).unwrap();
    assert_eq!(tree.node(tree.child(ROOT, b"a").unwrap()).meta, Meta::IMPLIED);
}

#[test]
fn a_whiteout_hides_what_is_below_and_nothing_else() {
    check(&[&["f a", "f b"], &["f .wh.a"]], &["f /b 2"]);
    check(&[&["d d", "d d/e", "f d/e/a"], &["f d/.wh.e"]], &["d /d"]);
    check(&[&["f a"], &["f .wh.a"], &["f a"]], &["f /a 3"]);
    // It has no effect on its own layer, wherever it is.
    check(&[&["f a"], &["f .wh.a", "f a"]], &["f /a 3"]);
    check(&[&["f a"], &["f a", "f .wh.a"]], &["f /a 2"]);
    check(&[&["d d", "f d/a"], &["d d", "f d/b", "f .wh.d"]], &["d /d", "f /d/b 4"]);
    check(&[&["f .wh.a", "f a"]], &["f /a 2"]);
    // For a missing name, and in a missing directory.
    check(&[&["f a"], &["f .wh.b", "f x/.wh.a"]], &["f /a 1"]);
    // Below what is not a directory, and behind symbolic links that lead nowhere.
    check(&[&["f a"], &["f a/.wh.b", "f a/.wh..wh..opq"]], &["f /a 1"]);
    check(&[&["s a a"], &["f a/.wh.b"]], &["s /a a"]);
    refused(&[&["f a/.wh."], &[]], "not a valid whiteout");
    refused(&[&["f .wh."]], "not a valid whiteout");
    refused(&[&["f .wh..."]], "not a valid whiteout");
}

#[test]
fn an_opaque_directory_has_what_its_layer_has() {
    let below: &[&str] = &["d d", "f d/a", "d d/e", "f d/e/b", "f x"];
    check(&[below, &["d d", "f d/.wh..wh..opq", "f d/c"]], &["d /d", "f /d/c 8", "f /x 5"]);
    check(&[below, &["f d/c", "f d/.wh..wh..opq"]], &["d /d", "f /d/c 6", "f /x 5"]);
    check(&[below, &["f d/e/c", "f d/.wh..wh..opq"]], &["d /d", "d /d/e", "f /d/e/c 6", "f /x 5"]);
    check(&[below, &["f .wh..wh..opq"]], &[]);
    // The metadata of aufs is not a file and hides none.
    check(&[&["f a"], &["f .wh..wh.plnk/x", "f .wh..wh.aufs"]], &["f /a 1"]);
    check(&[&["d .wh..wh.plnk", "f .wh..wh.plnk/1.2", "l a .wh..wh.plnk/1.2"]], &["f /a 2"]);
    check(&[&["f .wh.b"], &["f d/.wh..wh.x"]], &[]);
}

#[test]
fn in_a_whole_file_system_no_name_is_special() {
    let mut tree = Tree::default();
    tree.begin(Archive::Whole);
    put(&mut tree, "f a", 1).unwrap();
    put(&mut tree, "f .wh.a", 2).unwrap();
    assert_eq!(names(&tree), ["f /.wh.a 2", "f /a 1"]);
}

#[test]
fn hard_links_reach_across_layers() {
    check(&[&["f a"], &["l b a"]], &["f /a 1", "f /b 1"]);
    check(&[&["f a"], &["l b a"], &["f .wh.a"]], &["f /b 1"]);
    check(&[&["f a", "l b a"], &["f a"]], &["f /a 3", "f /b 1"]);
    check(&[&["f a", "f b"], &["l b a"]], &["f /a 1", "f /b 1"]);
    // The name of this layer stays, the other one is removed.
    check(&[&["d d", "f d/a"], &["l d/b d/a", "f d/.wh..wh..opq"]], &["d /d", "f /d/b 2"]);
    // The target is in the directory that the link replaces.
    check(&[&["d d", "f d/a"], &["l d d/a"]], &["f /d 2"]);
    check(&[&["s s x", "l t s"]], &["s /s x", "s /t x"]);
}

#[test]
fn links_that_lead_nowhere_are_refused() {
    refused(&[&["l a b", "l b a"]], "not there");
    refused(&[&["f a", "l a a"]], "itself");
    refused(&[&["f a", "l a ./a"]], "itself");
    refused(&[&["d d", "l a d"]], "directory");
    refused(&[&["l a ."]], "not there");
    refused(&[&["f a", "l b ../a"]], "`..`");
    check(&[&["f a", "l b /a", "l c x/../a"]], &["f /a 1", "f /b 1", "f /c 1"]);
    refused(&[&["f a", "f .wh.b", "l c a/b"]], "not a directory");
}

#[test]
fn symbolic_links_lead_from_the_root_of_the_image() {
    let merged: &[&str] = &["d usr", "d usr/lib", "s lib usr/lib"];
    check(&[merged, &["f lib/a"]], &["s /lib usr/lib", "d /usr", "d /usr/lib", "f /usr/lib/a 4"]);
    check(&[&["s out ../../../etc", "f out/passwd"]], &["d /etc", "f /etc/passwd 2", "s /out ../../../etc"]);
    check(&[&["s out /etc", "f out/passwd"]], &["d /etc", "f /etc/passwd 2", "s /out /etc"]);
    check(&[&["d d", "s d/up ..", "f d/up/a"]], &["f /a 3", "d /d", "s /d/up .."]);
    check(&[&["d d", "f d/a", "s s d", "l b s/a"]], &["f /b 2", "d /d", "f /d/a 2", "s /s d"]);
    check(&[&["d d", "f d/a"], &["s s d"], &["f s/.wh.a"]], &["d /d", "s /s d"]);
    refused(&[&["s a b", "s b a", "f a/x"]], "too many symbolic links");
    refused(&[&["s a a", "f a/x"]], "too many symbolic links");
    refused(&[&["f f", "s a f", "f a/x"]], "not a directory");
}

#[test]
fn the_last_of_two_entries_counts() {
    check(&[&["f a", "f a"]], &["f /a 2"]);
    check(&[&["d a", "f a/b", "d a"]], &["d /a", "f /a/b 2"]);
    check(&[&["d a", "f a/b", "f a"]], &["f /a 3"]);
}

#[test]
fn an_entry_for_a_directory_changes_it() {
    let tree = tree(&[&["d .", "d d", "f d/a"], &["d d", "d ."]]).unwrap();
    let modified = |id| tree.node(id).meta.modified.0;
    assert_eq!((modified(ROOT), modified(tree.child(ROOT, b"d").unwrap())), (5, 4));
    refused(&[&["f ."]], "root");
}

#[test]
fn the_number_of_names_is_limited() {
    let mut tree = Tree { names: limits::ENTRIES - 1, ..Tree::default() };
    put(&mut tree, "f a", 1).unwrap();
    put(&mut tree, "f a", 2).unwrap();
    assert!(put(&mut tree, "f b", 3).unwrap_err().to_string().contains("names"));
    let mut tree = Tree { directories: limits::DIRECTORIES, ..Tree::default() };
    assert!(put(&mut tree, "d b", 3).unwrap_err().to_string().contains("directories"));
    let mut tree = Tree { records: limits::RECORDS, ..Tree::default() };
    assert!(put(&mut tree, "f .wh.a", 3).unwrap_err().to_string().contains("entries"));
    let mut tree = Tree::default();
    put(&mut tree, "f a", 1).unwrap();
    for number in 1..limits::LINKS {
        put(&mut tree, &format!("l {number} a"), 0).unwrap();
    }
    assert!(put(&mut tree, "l last a", 0).unwrap_err().to_string().contains("65000"));
}

#[test]
fn a_deep_tree_needs_no_deep_recursion() {
    let mut tree = Tree::default();
    let deep = "x/".repeat(2000);
    put(&mut tree, &format!("s 0 {deep}"), 1).unwrap();
    for number in 1..30 {
        put(&mut tree, &format!("s {number} {}/{deep}", number - 1), 1).unwrap();
    }
    put(&mut tree, "f 29/f", 1).unwrap();
    assert!(tree.walk().count() > 60_000);
    tree.remove(ROOT, b"x");
    sound(&tree);
}

/// Returns an entry from a few names, so that entries interact.
fn any_entry() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "a",
        "b",
        "c",
        "a/b",
        "a/b/c",
        "b/a",
        "c/..",
        "./c",
        "a/.wh.b",
        ".wh.a",
        "b/.wh..wh..opq",
    ]);
    (prop::sample::select(vec!["d", "f", "s", "l", "p"]), name.clone(), name)
        .prop_map(|(kind, name, target)| format!("{kind} {name} {target}"))
}

proptest! {
    #[test]
    fn whatever_is_put_the_counts_are_right(
        layers in prop::collection::vec(prop::collection::vec(any_entry(), 0..12), 0..5),
    ) {
        let mut tree = Tree::default();
        for layer in layers {
            tree.begin(Archive::Layer);
            for entry in layer {
                // A refused entry would end the import; here the test continues.
                let _ = put(&mut tree, &entry, 0);
            }
            sound(&tree);
        }
    }

    #[test]
    fn a_layer_that_hides_everything_leaves_its_own(
        below in prop::collection::vec(any_entry(), 0..20),
        own in prop::collection::vec(any_entry().prop_filter("no hard link", |e| !e.starts_with('l')), 0..8),
    ) {
        let put_all = |tree: &mut Tree, entries: &[String]| {
            tree.begin(Archive::Layer);
            for entry in entries {
                let _ = put(tree, entry, 7);
            }
        };
        let (mut alone, mut over) = (Tree::default(), Tree::default());
        put_all(&mut alone, &[]);
        put_all(&mut over, &below);
        let opaque: Vec<String> = std::iter::once("f .wh..wh..opq x".to_owned()).chain(own).collect();
        put_all(&mut alone, &opaque);
        put_all(&mut over, &opaque);
        prop_assert_eq!(names(&alone), names(&over));
    }
}
