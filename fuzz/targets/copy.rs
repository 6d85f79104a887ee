//! Archives that a sandbox sends as a copy. Nothing outside the destination changes, nothing gets the rights of the user, and no file
//! below `.git` is written where that is refused.
#![no_main]

use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
};

use banger_copy::{Access, Names, Owner, Rules, Target, UNFINISHED, receive};
use banger_fuzz::Archives;
use libfuzzer_sys::fuzz_target;

const SECRET: &[u8] = b"this is outside of the destination";

fuzz_target!(
    init: { banger_fuzz::sow("copy") },
    |input: &[u8]| {
        let Some(Archives { are_layers, lie, tars, .. }) = Archives::of(input) else { return };
        let place = banger_fuzz::place("copy");
        let destination = place.join("destination");
        fs::create_dir_all(destination.join("directory")).unwrap();
        fs::write(place.join("outside"), SECRET).unwrap();
        symlink("../outside", destination.join("outward")).unwrap();
        symlink("..", destination.join("up")).unwrap();
        let names = if lie { Names::NoGit } else { Names::Any };
        let rules =
            Rules { owner: Owner::Caller, access: Access::untrusted(0o022), through_links: are_layers, names };
        for tar in &tars {
            let received = receive(tar.as_slice(), None, &Target::of(&destination, None), rules);
            // The archive may have such names itself.
            let has_prefix = input.windows(UNFINISHED.len()).any(|window| window == UNFINISHED.as_bytes());
            check(&destination, names, received.is_ok() && !has_prefix);
        }
        assert_eq!(fs::read(place.join("outside")).unwrap(), SECRET);
        assert_eq!(fs::metadata(place.join("outside")).unwrap().nlink(), 1, "a link to it was created");
        assert_eq!(fs::read_dir(&place).unwrap().count(), 2, "something was created outside");
        fs::remove_dir_all(&place).unwrap();
    }
);

/// Looks at everything in a directory.
fn check(directory: &Path, names: Names, complete: bool) {
    for entry in fs::read_dir(directory).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(names == Names::Any || !name.eq_ignore_ascii_case(".git"), "{path:?} was written");
        assert!(!complete || !name.starts_with(UNFINISHED), "{path:?} was left");
        let metadata = fs::symlink_metadata(&path).unwrap();
        let kind = metadata.file_type();
        assert!(kind.is_file() || kind.is_dir() || kind.is_symlink(), "{path:?} is of another kind");
        assert!(
            kind.is_symlink() || metadata.mode() & 0o6000 == 0,
            "{path:?} has the rights of its owner or group"
        );
        if kind.is_dir() {
            check(&path, names, complete);
        }
    }
}
