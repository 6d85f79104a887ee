//! Shared by the fuzz targets: seeds, and archives whose checksums are made right whatever else is wrong with them.
//! The targets cover banger-image, which reads hostile files, banger-copy, banger-mount, the values and policies of banger-domain, and the
//! guest protocol of banger-proto. They do not need banger-system, which would take a quarter of an hour to build for libFuzzer.

mod seeds;

use std::{
    fs,
    path::{Path, PathBuf},
};

use banger_image::packing::Packing;

/// Writes the seeds of a target to where libFuzzer looks for them.
pub fn sow(target: &str) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&directory).unwrap();
    for (number, seed) in seeds::of(target).into_iter().enumerate() {
        fs::write(directory.join(format!("seed-{number}")), seed).unwrap();
    }
}

/// Returns a directory in memory that is this process's own, and not there yet.
pub fn place(target: &str) -> PathBuf {
    let place = Path::new("/dev/shm").join(format!("banger-fuzz-{target}-{}", std::process::id()));
    // An earlier input may have ended the process, or have made a directory that nobody may enter.
    if place.exists() {
        fs::remove_dir_all(&place).unwrap();
    }
    place
}

const BLOCK: usize = 512;

/// The archives of an image as encoded in a target's input: a byte of flags, two of lengths in blocks, and the
/// archives.
pub struct Archives {
    /// Whether they are layers; whole file systems otherwise.
    pub are_layers: bool,
    /// How they are compressed.
    pub packing: Packing,
    /// Whether the claims about them are false.
    pub lie: bool,
    /// The lowest first.
    pub tars: Vec<Vec<u8>>,
}

impl Archives {
    /// Reads them from an input, and corrects the checksums of their headers.
    pub fn of(input: &[u8]) -> Option<Self> {
        let ([flags, first, second], mut rest) = input.split_first_chunk()?;
        let mut tars = Vec::new();
        for length in [*first, *second].iter().take(usize::from(flags & 3).min(2)) {
            let (tar, others) = rest.split_at(rest.len().min(usize::from(*length) * BLOCK));
            tars.push(tar.to_vec());
            rest = others;
        }
        tars.push(rest.to_vec());
        tars.iter_mut().for_each(|tar| right_sums(tar));
        let packing = match flags >> 2 & 3 {
            0 | 1 => Packing::Plain,
            2 => Packing::Gzip,
            _ => Packing::Zstd,
        };
        Some(Self { are_layers: flags & 16 == 0, packing, lie: flags & 32 != 0, tars })
    }

    /// Returns the input that encodes these layers.
    fn input(packing: u8, tars: &[Vec<u8>]) -> Vec<u8> {
        let blocks = |tar: &Vec<u8>| u8::try_from(tar.len() / BLOCK).unwrap();
        let mut input = vec![(tars.len() as u8 - 1) | packing << 2, 0, 0];
        for (length, tar) in input[1..].iter_mut().zip(&tars[..tars.len() - 1]) {
            *length = blocks(tar);
        }
        input.extend(tars.concat());
        input
    }
}

/// Goes from header to header, as a reader does, and corrects the checksums.
fn right_sums(tar: &mut [u8]) {
    let mut at = 0;
    while let Some(block) = tar.get_mut(at..at + BLOCK) {
        let header: &mut [u8; BLOCK] = block.try_into().unwrap();
        if header == &[0; BLOCK] {
            return;
        }
        banger_image::fixtures::tar::sum(header);
        let digits = header[124..136].iter().take_while(|byte| (b'0'..=b'7').contains(byte));
        let size = digits.fold(0usize, |size, byte| size << 3 | usize::from(byte - b'0'));
        let has_data = !matches!(header[156], b'1'..=b'6');
        at += BLOCK + if has_data { size.min(tar.len()).next_multiple_of(BLOCK) } else { 0 };
    }
}
