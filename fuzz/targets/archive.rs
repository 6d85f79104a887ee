//! Images in files are found, with all parts in the file, or an error says why not.
#![no_main]

use std::{fs::File, io::Write};

use banger_fuzz::Archives;
use banger_image::{
    archive::{Source, find, is_image},
    oci::{index::Selector, platform::Platform},
};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};

fuzz_target!(
    init: { banger_fuzz::sow("archive") },
    |input: &[u8]| {
        let Some(archives) = Archives::of(input) else { return };
        let platform = Platform::of_host("x86_64");
        for tar in &archives.tars {
            let mut file = memory().unwrap();
            file.write_all(tar).unwrap();
            let _ = is_image(&file);
            // Without a name it must be a bundle.
            for (tag, name) in [(None, Some("image")), (Some("1"), Some("image")), (None, None)] {
                let Ok(source) = Source::archive(file.try_clone().unwrap(), &memory) else { return };
                let wanted = Selector { platform: &platform, tag };
                let Ok(image) = find(source, wanted, name, &memory) else { continue };
                let length = image.file.metadata().unwrap().len();
                assert!(image.parts.len() >= 2);
                assert!(image.parts.iter().all(|(at, size)| at.checked_add(*size).unwrap() <= length));
            }
        }
    }
);

fn memory() -> std::io::Result<File> {
    Ok(memfd_create("fuzz", MemfdFlags::CLOEXEC)?.into())
}
