//! Copies the system disk of a sandbox into a new file, which becomes an image.
//!
//! A guest wrote the disk, and its VMM the overlay, so neither is trusted. Nothing here reads the file system in it.

use std::{
    cell::Cell,
    fs::File,
    io::{self, Seek, SeekFrom},
    ops::Range,
    os::unix::fs::FileExt,
};

use super::{
    Meter,
    message::{Failure, Flatten},
};
use crate::{
    holes,
    qcow2_reader::{self, Cluster, Overlay},
};

const DOING: &str = "copy the system disk";

/// The new file.
struct Target<'a> {
    copy: &'a File,
    /// How much more may be written.
    room: Cell<u64>,
    meter: &'a Meter,
}

/// Copies a disk into an empty file, and leaves out zeros. The disk is the overlays over the base, the highest first.
/// Returns its size.
pub(super) fn flatten(
    order: &Flatten,
    copy: &File,
    overlays: &[File],
    base: &File,
    meter: &Meter,
) -> Result<u64, Failure> {
    let os = |error: io::Error| Failure::os(DOING, error);
    let target = Target { copy, room: Cell::new(order.room.0), meter };
    let opened: Result<Vec<Overlay<'_>>, _> =
        overlays.iter().map(|overlay| Overlay::open(overlay, order.max)).collect();
    let (opened, base_size) = (opened?, length(base).map_err(os)?);
    let size = opened.first().map_or(base_size, Overlay::size);
    if size > order.max.0 {
        return Err(qcow2_reader::Error::TooLarge(banger_proto::size::Bytes(size)).into());
    }
    copy.set_len(size).map_err(os)?;
    target.copy_disk(&opened, (base, base_size), 0..size)?;
    Ok(size)
}

/// Returns the length of a file or of a block device.
fn length(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

impl Target<'_> {
    /// Copies a range of the disk that the overlays and the base are, to the same place.
    fn copy_disk(
        &self,
        overlays: &[Overlay<'_>],
        base: (&File, u64),
        range: Range<u64>,
    ) -> Result<(), Failure> {
        let Some((overlay, below)) = overlays.split_first() else {
            let end = range.end.min(base.1);
            return self.copy_range(base.0, range.start..end, range.start);
        };
        overlay.runs(range, |at, length, cluster| match cluster {
            Cluster::Zeros => Ok(()),
            Cluster::Below => self.copy_disk(below, base, at..at + length),
            Cluster::At(offset) => {
                let end = offset
                    .checked_add(length)
                    .ok_or(qcow2_reader::Error::Damaged("it has an impossible offset"))?;
                self.copy_range(overlay.file(), offset..end, at)
            }
        })
    }

    /// Copies a range to another place. What is beyond the end of the file is zeros: QEMU does not write the end of
    /// the last cluster.
    fn copy_range(&self, from: &File, range: Range<u64>, at: u64) -> Result<(), Failure> {
        let os = |error: io::Error| Failure::os(DOING, error);
        let (mut next, mut buffer) = (range.start, vec![0; holes::CHUNK]);
        while let Some(data) = holes::next_data(from, next, range.end).map_err(os)? {
            for (place, length) in holes::chunks(data.clone()) {
                let bytes = &mut buffer[..length];
                let read = read_up_to(from, bytes, place).map_err(os)?;
                self.meter.add_read(length);
                self.write(&bytes[..read], at + (place - range.start))?;
                self.meter.add_written(length);
            }
            next = data.end;
        }
        Ok(())
    }

    /// Writes a chunk. The last one may exceed the room.
    fn write(&self, bytes: &[u8], at: u64) -> Result<(), Failure> {
        let written = holes::write_sparse(self.copy, bytes, at).map_err(|error| Failure::os(DOING, error))?;
        self.room.set(self.room.get().checked_sub(written).ok_or(Failure::NoRoom)?);
        Ok(())
    }
}

/// Reads until the buffer is full or the file ends. Returns how much was read.
fn read_up_to(file: &File, mut buffer: &mut [u8], mut at: u64) -> io::Result<usize> {
    let wanted = buffer.len();
    while !buffer.is_empty() {
        match file.read_at(buffer, at) {
            Ok(0) => break,
            Ok(count) => {
                buffer = &mut buffer[count..];
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(wanted - buffer.len())
}

impl From<qcow2_reader::Error> for Failure {
    fn from(error: qcow2_reader::Error) -> Self {
        match error {
            qcow2_reader::Error::Read(source) => Self::os("read the system disk", source),
            other => Self::refused(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{os::unix::fs::MetadataExt, process::Command};

    use banger_proto::size::Bytes;

    use super::*;
    use crate::qcow2;

    const ORDER: Flatten = Flatten { max: Bytes::gib(1), room: Bytes::gib(1) };

    fn flat(overlays: &[File], base: &File) -> File {
        let copy = tempfile::tempfile().unwrap();
        let size = flatten(&ORDER, &copy, overlays, base, &Meter::default()).unwrap();
        assert_eq!(size, copy.metadata().unwrap().len());
        copy
    }

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn a_disk_is_copied_without_its_zeros() {
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(32 << 20).unwrap();
        disk.write_all_at(b"data", 5 << 20).unwrap();
        disk.write_all_at(&[0; 1 << 20], 9 << 20).unwrap();
        let copy = flat(&[], &disk);
        assert!(content(&copy) == content(&disk));
        assert!(copy.metadata().unwrap().blocks() * 512 < 1 << 20, "zeros take room");
        let order = Flatten { max: Bytes::mib(31), ..ORDER };
        assert!(matches!(
            flatten(&order, &copy, &[], &disk, &Meter::default()),
            Err(Failure::Refused { .. })
        ));
    }

    #[test]
    fn a_copy_ends_when_it_exceeds_its_room() {
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(64 << 20).unwrap();
        disk.write_all_at(&vec![1; 8 << 20], 4 << 20).unwrap();
        let overlay = tempfile::tempfile().unwrap();
        overlay.write_all_at(&qcow2::empty(Bytes::mib(64)), 0).unwrap();
        let layered = [overlay];
        for overlays in [&[][..], &layered[..]] {
            // Zeros need no room.
            for (room, fits) in [(8 << 20, true), ((8 << 20) - 1, false), (2 << 20, false), (0, false)] {
                let order = Flatten { room: Bytes(room), ..ORDER };
                let copy = tempfile::tempfile().unwrap();
                let copied = flatten(&order, &copy, overlays, &disk, &Meter::default());
                match copied {
                    Ok(_) => assert!(fits, "{room}"),
                    Err(failure) => assert!(!fits && failure == Failure::NoRoom, "{room}: {failure}"),
                }
                let written = copy.metadata().unwrap().blocks() * 512;
                assert!(written <= room + (holes::CHUNK as u64), "{room}: {written}");
            }
        }
    }

    #[test]
    fn an_overlay_hides_what_is_below_it_and_may_be_longer() {
        let below = tempfile::tempfile().unwrap();
        below.write_all_at(&vec![1; 3 << 16], 0).unwrap();
        let overlay = tempfile::tempfile().unwrap();
        overlay.write_all_at(&qcow2::empty(Bytes::mib(1)), 0).unwrap();
        // The second table is in cluster 4; the data of the disk's clusters 1 and 7 in 5 and 6. The last one is short.
        overlay.write_all_at(&(4u64 << 16).to_be_bytes(), 3 << 16).unwrap();
        overlay.write_all_at(&(5u64 << 16).to_be_bytes(), (4 << 16) + 8).unwrap();
        overlay.write_all_at(&1u64.to_be_bytes(), (4 << 16) + 16).unwrap();
        overlay.write_all_at(&(6u64 << 16).to_be_bytes(), (4 << 16) + 56).unwrap();
        overlay.write_all_at(&vec![2; (1 << 16) + 100], 5 << 16).unwrap();
        let copy = content(&flat(&[overlay], &below));
        let mut expect = vec![0; 1 << 20];
        expect[..1 << 16].fill(1);
        expect[1 << 16..2 << 16].fill(2);
        expect[7 << 16..(7 << 16) + 100].fill(2);
        assert!(copy == expect);
    }

    /// QEMU's own tool is the oracle, where it is installed.
    #[test]
    fn an_overlay_that_qemu_has_written_reads_as_qemu_reads_it() {
        if Command::new("qemu-io").arg("--version").output().is_err() {
            eprintln!("skipped: qemu-io is not installed");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let write = |options: &str, writes: &[&str]| {
            let mut command = Command::new("qemu-io");
            command.args(["--image-opts", options]).args(writes.iter().flat_map(|write| ["-c", write]));
            assert!(command.output().unwrap().status.success());
        };
        std::fs::write(path("below"), vec![7; 5 << 20]).unwrap();
        std::fs::write(path("frozen"), qcow2::empty(Bytes::mib(513))).unwrap();
        std::fs::write(path("overlay"), qcow2::empty(Bytes::mib(600))).unwrap();
        let file = |name: &str| path(name).display().to_string();
        let below = |prefix: &str| format!("{prefix}driver=raw,{prefix}file.filename={}", file("below"));
        write(
            &format!("driver=qcow2,file.filename={},{}", file("frozen"), below("backing.")),
            &["write -P 3 1000448 300000", "write -z 2M 128k", "write -P 4 512M 64k", "write -P 5 0 512"],
        );
        let options = format!(
            "driver=qcow2,file.filename={},backing.driver=qcow2,backing.file.filename={},{}",
            file("overlay"),
            file("frozen"),
            below("backing.backing.")
        );
        // Hides what is below it, with data and with zeros, and is longer than all of it.
        write(&options, &["write -P 6 1M 100k", "write -z 512M 64k", "write -P 8 599M 64k"]);
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "--image-opts", &options, "-O", "raw"]).arg(path("expect"));
        assert!(convert.output().unwrap().status.success());
        let overlays = ["overlay", "frozen"].map(|name| File::open(path(name)).unwrap());
        let below = File::open(path("below")).unwrap();
        let copy = flat(&overlays, &below);
        assert!(content(&copy) == std::fs::read(path("expect")).unwrap());
    }
}
