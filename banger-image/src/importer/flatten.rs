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

/// Copies a disk, or an overlay with the disk below it, into an empty file, and leaves out zeros. Returns the size.
pub(super) fn flatten(
    order: &Flatten,
    copy: &File,
    disk: &File,
    below: Option<&File>,
    meter: &Meter,
) -> Result<u64, Failure> {
    let os = |error: io::Error| Failure::os(DOING, error);
    let target = Target { copy, room: Cell::new(order.room.0), meter };
    let Some(below) = below else {
        let size = length(disk).map_err(os)?;
        if size > order.max.0 {
            return Err(qcow2_reader::Error::TooLarge(banger_proto::size::Bytes(size)).into());
        }
        copy.set_len(size).map_err(os)?;
        target.copy_range(disk, 0..size, 0)?;
        return Ok(size);
    };
    let overlay = Overlay::open(disk, order.max)?;
    let (size, below_length) = (overlay.size(), length(below).map_err(os)?);
    copy.set_len(size).map_err(os)?;
    overlay.runs(|at, length, cluster| match cluster {
        Cluster::Zeros => Ok(()),
        Cluster::Below => target.copy_range(below, at..(at + length).min(below_length), at),
        Cluster::At(offset) => {
            let end = offset
                .checked_add(length)
                .ok_or(qcow2_reader::Error::Damaged("it has an impossible offset"))?;
            target.copy_range(disk, offset..end, at)
        }
    })?;
    Ok(size)
}

/// Returns the length of a file or of a block device.
fn length(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

impl Target<'_> {
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

    fn flat(disk: &File, below: Option<&File>) -> File {
        let copy = tempfile::tempfile().unwrap();
        let size = flatten(&ORDER, &copy, disk, below, &Meter::default()).unwrap();
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
        let copy = flat(&disk, None);
        assert!(content(&copy) == content(&disk));
        assert!(copy.metadata().unwrap().blocks() * 512 < 1 << 20, "zeros take room");
        let order = Flatten { max: Bytes::mib(31), ..ORDER };
        assert!(matches!(
            flatten(&order, &copy, &disk, None, &Meter::default()),
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
        for (disk, below) in [(&disk, None), (&overlay, Some(&disk))] {
            // Zeros need no room.
            for (room, fits) in [(8 << 20, true), ((8 << 20) - 1, false), (2 << 20, false), (0, false)] {
                let order = Flatten { room: Bytes(room), ..ORDER };
                let copy = tempfile::tempfile().unwrap();
                let copied = flatten(&order, &copy, disk, below, &Meter::default());
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
        let copy = content(&flat(&overlay, Some(&below)));
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
        std::fs::write(path("below"), vec![7; 5 << 20]).unwrap();
        std::fs::write(path("overlay"), qcow2::empty(Bytes::mib(513))).unwrap();
        let options = format!(
            "driver=qcow2,file.filename={},backing.driver=raw,backing.file.filename={}",
            path("overlay").display(),
            path("below").display()
        );
        let writes =
            ["write -P 3 1000448 300000", "write -z 2M 128k", "write -P 4 512M 64k", "write -P 5 0 512"];
        let mut command = Command::new("qemu-io");
        command.args(["--image-opts", &options]);
        command.args(writes.iter().flat_map(|write| ["-c", write]));
        assert!(command.output().unwrap().status.success());
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "--image-opts", &options, "-O", "raw"]).arg(path("expect"));
        assert!(convert.output().unwrap().status.success());
        let (overlay, below) = (File::open(path("overlay")).unwrap(), File::open(path("below")).unwrap());
        let copy = flat(&overlay, Some(&below));
        assert!(content(&copy) == std::fs::read(path("expect")).unwrap());
    }
}
