//! Limits of users, and the possible sizes of a sandbox.

use banger_proto::size::Bytes;

/// The least memory with which a distribution's kernel and init boot.
const MIN_MEMORY: Bytes = Bytes::mib(128);
/// The smallest work disk: the file system's own structures and a little more.
const MIN_DISK: Bytes = Bytes::mib(64);
/// The largest ext4 that our writer makes (below 16 TiB: 4 KiB blocks and 32-bit block numbers).
const MAX_DISK: Bytes = Bytes::gib((16 << 10) - 1);

/// The most sandboxes that one fork makes.
const MAX_FORK: u32 = 100;

/// The limits of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Sandboxes that exist.
    pub vms: u32,
    /// Sandboxes that are up.
    pub running: u32,
    /// Virtual processors of one sandbox.
    pub vcpus: u32,
    /// Memory of all sandboxes that are up.
    pub memory: Bytes,
    /// Work disks of all sandboxes, what their system disks add to their images, and their frozen layers.
    pub disk: Bytes,
    /// Images, and kernels, of one user.
    pub images: u32,
    /// Space of the user's images that are not shared.
    pub image_disk: Bytes,
    /// Jobs of one user that run.
    pub jobs_running: u32,
    /// Jobs of one user that wait.
    pub jobs_queued: u32,
    /// Open streams into guests of one user.
    pub streams: u32,
    /// Import workers of all users at a time.
    pub workers: u32,
}

/// A request exceeds a limit or is impossible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// No sandbox can have this size.
    #[error("{what} must be between {min} and {max}, not {asked}")]
    Impossible {
        /// What was asked for.
        what: &'static str,
        /// The value.
        asked: String,
        /// The smallest.
        min: String,
        /// The largest.
        max: String,
    },
    /// A disk would become smaller than what is in it.
    #[error("cannot make the {disk} {asked}: {holds} {is}, and disks cannot shrink")]
    Smaller {
        /// The disk.
        disk: &'static str,
        /// The size.
        asked: Bytes,
        /// What has a size, with its verb.
        holds: &'static str,
        /// That size.
        is: Bytes,
    },
    /// The user has too many requests in progress.
    #[error("you have {limit} {what} under way, which is the limit")]
    Requests {
        /// What was asked for.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The user's quota is used up.
    #[error("you may have {limit} {what}, and this would make it {would_be}")]
    Quota {
        /// What was asked for.
        what: &'static str,
        /// The limit.
        limit: String,
        /// What the total would be.
        would_be: String,
    },
    /// All users together have as much as the host can hold.
    #[error("this host has no room for more than {limit} {what}")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// An image exceeds what is left of the user's quota.
    #[error("the image needs more than the {room} that are left of your quota")]
    Room {
        /// What is left.
        room: Bytes,
    },
}

/// What a user has at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Sandboxes that exist.
    pub vms: u32,
    /// Sandboxes that are up.
    pub running: u32,
    /// Memory of the sandboxes that are up.
    pub memory: Bytes,
    /// Work disks of all sandboxes, what their system disks add to their images, and their frozen layers.
    pub disk: Bytes,
}

/// A disk of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// `/`.
    System,
    /// `/root`.
    Work,
}

impl Disk {
    const fn name(self) -> &'static str {
        match self {
            Disk::System => "system disk",
            Disk::Work => "work disk",
        }
    }
}

/// Checks that a disk of one size can grow to another.
pub fn check_growth(disk: Disk, is: Bytes, asked: Bytes) -> Result<(), Exceeded> {
    match asked < is {
        true => Err(Exceeded::Smaller { disk: disk.name(), asked, holds: "it has", is }),
        false => Ok(()),
    }
}

impl Limits {
    /// Returns the default limits for a host with this many processors and this much memory.
    pub fn of_host(cpus: u32, memory: Bytes) -> Self {
        Self {
            vms: 64,
            running: 16,
            vcpus: cpus.max(1) * 2,
            memory: Bytes(memory.0 / 2).max(Bytes::gib(1)),
            disk: Bytes::gib(200),
            images: 64,
            image_disk: Bytes::gib(100),
            jobs_running: 8,
            jobs_queued: 32,
            streams: 128,
            workers: cpus.max(2),
        }
    }

    /// Checks that a sandbox of these sizes is possible.
    pub fn check_sizes(&self, vcpus: u32, memory: Bytes, disk: Bytes) -> Result<(), Exceeded> {
        within("the number of virtual processors", vcpus, 1, self.vcpus)?;
        within("memory", memory, MIN_MEMORY, self.memory)?;
        within("the size of the work disk", disk, MIN_DISK, MAX_DISK.min(self.disk))
    }

    /// Checks that a system disk of this size is possible over an image of that size.
    pub fn check_root_size(&self, size: Bytes, image: Bytes) -> Result<(), Exceeded> {
        if size < image {
            let disk = Disk::System.name();
            return Err(Exceeded::Smaller { disk, asked: size, holds: "its image has", is: image });
        }
        // An image may be larger than the quota: the user chose it, and its size is not counted.
        let most = MAX_DISK.min(Bytes(image.0.saturating_add(self.disk.0))).max(image);
        within("the size of the system disk", size, image, most)
    }

    /// Checks that the user may create a sandbox with this much disk.
    pub fn check_create(&self, usage: Usage, disk: Bytes) -> Result<(), Exceeded> {
        self.check_create_many(usage, 1, disk)
    }

    /// Checks that the user may create this many sandboxes with this much disk in all.
    pub fn check_create_many(&self, usage: Usage, count: u32, disk: Bytes) -> Result<(), Exceeded> {
        quota("sandboxes", usage.vms.saturating_add(count), self.vms)?;
        self.check_disk(usage, disk)
    }

    /// Checks that the user may use this much more disk.
    pub fn check_disk(&self, usage: Usage, more: Bytes) -> Result<(), Exceeded> {
        quota("of disks", Bytes(usage.disk.0.saturating_add(more.0)), self.disk)
    }

    /// Checks that the user may start a sandbox with this much memory.
    pub fn check_start(&self, usage: Usage, memory: Bytes) -> Result<(), Exceeded> {
        quota("running sandboxes", usage.running + 1, self.running)?;
        quota("of memory in running sandboxes", Bytes(usage.memory.0.saturating_add(memory.0)), self.memory)
    }
}

/// Checks that one fork may make this many sandboxes.
pub fn check_fork(count: u32) -> Result<(), Exceeded> {
    within("the number of new sandboxes", count, 1, MAX_FORK)
}

/// Checks that the user may have this many bytes of images.
pub fn check_image_disk(would_be: Bytes, limit: Bytes) -> Result<(), Exceeded> {
    quota("of images", would_be, limit)
}

/// Checks that the user may have this many of something.
pub fn check_count(what: &'static str, would_be: usize, limit: u32) -> Result<(), Exceeded> {
    quota(what, would_be, limit as usize)
}

/// Checks that the user may have this many requests in progress.
pub fn check_requests(what: &'static str, would_be: usize, limit: usize) -> Result<(), Exceeded> {
    match would_be <= limit {
        true => Ok(()),
        false => Err(Exceeded::Requests { what, limit }),
    }
}

fn within<T: Ord + ToString>(what: &'static str, asked: T, min: T, max: T) -> Result<(), Exceeded> {
    if asked >= min && asked <= max {
        return Ok(());
    }
    Err(Exceeded::Impossible { what, asked: asked.to_string(), min: min.to_string(), max: max.to_string() })
}

fn quota<T: Ord + ToString>(what: &'static str, would_be: T, limit: T) -> Result<(), Exceeded> {
    if would_be <= limit {
        return Ok(());
    }
    Err(Exceeded::Quota { what, limit: limit.to_string(), would_be: would_be.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits::of_host(4, Bytes::gib(16))
    }

    #[test]
    fn impossible_sizes_are_refused_with_the_bounds() {
        let limits = limits();
        let check = |vcpus, memory, disk, ok| {
            assert_eq!(limits.check_sizes(vcpus, memory, disk).is_ok(), ok, "{vcpus} {memory} {disk}");
        };
        check(1, Bytes::mib(128), Bytes::mib(64), true);
        check(8, Bytes::gib(8), Bytes::gib(200), true);
        check(0, Bytes::gib(1), Bytes::gib(8), false);
        check(9, Bytes::gib(1), Bytes::gib(8), false);
        check(1, Bytes::mib(127), Bytes::gib(8), false);
        check(1, Bytes::gib(10 << 10), Bytes::gib(8), false);
        check(1, Bytes::gib(1), Bytes(0), false);
        check(1, Bytes::gib(1), Bytes(u64::MAX), false);
        let message = limits.check_sizes(0, Bytes::gib(1), Bytes::gib(8)).map_err(|e| e.to_string());
        assert_eq!(message, Err("the number of virtual processors must be between 1 and 8, not 0".into()));
    }

    #[test]
    fn a_system_disk_is_no_smaller_than_its_image() {
        let limits = limits();
        let check = |size, image, expect: Result<(), &str>| {
            let checked = limits.check_root_size(size, image).map_err(|error| error.to_string());
            assert_eq!(checked, expect.map_err(str::to_owned), "{size} over {image}");
        };
        check(Bytes::gib(8), Bytes::gib(8), Ok(()));
        check(Bytes::gib(208), Bytes::gib(8), Ok(()));
        // An image's own size is always possible.
        check(Bytes::gib(1 << 20), Bytes::gib(1 << 20), Ok(()));
        let smaller = "cannot make the system disk 4 GiB: its image has 8 GiB, and disks cannot shrink";
        check(Bytes::gib(4), Bytes::gib(8), Err(smaller));
        check(
            Bytes(0),
            Bytes::mib(512),
            Err("cannot make the system disk 0 B: its image has 512 MiB, and disks cannot shrink"),
        );
        let larger = "the size of the system disk must be between 8 GiB and 208 GiB, not 209 GiB";
        check(Bytes::gib(209), Bytes::gib(8), Err(larger));
        assert!(limits.check_root_size(Bytes(u64::MAX), Bytes::gib(8)).is_err());
    }

    #[test]
    fn disks_only_grow() {
        assert_eq!(check_growth(Disk::Work, Bytes::gib(8), Bytes::gib(8)), Ok(()));
        assert_eq!(check_growth(Disk::System, Bytes::gib(8), Bytes::gib(9)), Ok(()));
        let refused = check_growth(Disk::Work, Bytes::gib(8), Bytes(1)).map_err(|error| error.to_string());
        assert_eq!(
            refused,
            Err("cannot make the work disk 1 B: it has 8 GiB, and disks cannot shrink".to_owned())
        );
    }

    #[test]
    fn the_quota_of_a_user_is_counted() {
        let limits = limits();
        let full = Usage { vms: 64, running: 16, memory: Bytes::gib(8), disk: Bytes::gib(200) };
        assert!(limits.check_create(full, Bytes::gib(1)).is_err());
        assert!(limits.check_start(full, Bytes::gib(1)).is_err());
        let some = Usage { vms: 1, running: 1, memory: Bytes::gib(1), disk: Bytes::gib(8) };
        assert_eq!(limits.check_create(some, Bytes::gib(8)), Ok(()));
        assert_eq!(limits.check_start(some, Bytes::gib(7)), Ok(()));
        assert!(limits.check_start(some, Bytes::gib(7 << 30)).is_err());
    }
}
