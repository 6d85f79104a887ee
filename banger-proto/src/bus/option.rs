//! Keys of the `a{sv}` options, and their enumerated values.
//!
//! Keys are kebab-case. The service refuses an unknown key with `InvalidOption`; keys that begin with
//! `x-` are ignored.

/// Keys of `CreateVM`.
pub mod create {
    /// `s`: reference of the image; the default image when absent.
    pub const IMAGE: &str = "image";
    /// `s`: reference of the kernel; the image's own, else the default kernel, when absent.
    pub const KERNEL: &str = "kernel";
    /// `u`: number of virtual processors.
    pub const VCPUS: &str = "vcpus";
    /// `t`: memory in bytes.
    pub const MEMORY: &str = "memory";
    /// `t`: size of the work disk in bytes.
    pub const DISK_SIZE: &str = "disk-size";
    /// `t`: size of the system disk in bytes, no less than the image's.
    pub const ROOT_SIZE: &str = "root-size";
    /// `s`: host name in the guest; the sandbox's name when absent.
    pub const HOSTNAME: &str = "hostname";
    /// `b`: whether to start it at once; true when absent.
    pub const START: &str = "start";
    /// `s`: what the job waits for, `running` or `agent`; `agent` when absent.
    pub const WAIT_FOR: &str = "wait-for";
    /// `t`: how long the job waits for the guest, in microseconds.
    pub const READY_TIMEOUT: &str = "ready-timeout-usec";
    /// `s`: see [`super::lifetime`]; `persistent` when absent.
    pub const LIFETIME: &str = "lifetime";
    /// `a{ss}`: labels.
    pub const LABELS: &str = "labels";
    /// `s`: what happens to the sandbox when it idles, `suspend`, `suspend-no-wake` (API level 10) or `stop`; nothing when
    /// absent or empty.
    pub const IDLE_ACTION: &str = "idle-action";
    /// `t`: after how many microseconds, a minute to 30 days.
    pub const IDLE_AFTER: &str = "idle-after-usec";
    /// `s`: what the agent starts as the first process: `auto`, `agent`, or an absolute path in the image.
    pub const INIT: &str = "init";
    /// `s`: see [`super::vmm`]; `auto` when absent.
    pub const VMM: &str = "vmm";
    /// `b`: whether the guest reaches networks beyond the host; false when absent.
    pub const NAT: &str = "nat";
    /// `as`: what the guest reaches beyond the host, as entries of an egress policy; excludes [`NAT`].
    pub const EGRESS: &str = "egress";
    /// `s`: the time zone of the guest, a name such as `Europe/Berlin`; the image's own when absent.
    pub const TIMEZONE: &str = "timezone";
    /// `s`: the rule of that zone in the POSIX format of `TZ`, for images without a time zone database.
    pub const TIMEZONE_RULE: &str = "timezone-rule";
    /// `as`: public keys that may log in as root by ssh, at most 16 of 8 KiB, without options.
    pub const SSH_AUTHORIZED_KEYS: &str = "ssh-authorized-keys";
    /// `a(sqqs)`: ports to publish, as protocol, port of the guest, port of the host (0 for a free one), and
    /// [scope](super::publish::scope); none when absent.
    pub const PORTS: &str = "ports";
    /// `s`: see [`super::restart`]; `no` when absent.
    pub const RESTART: &str = "restart";
    /// `b`: whether it starts when the host boots; false when absent.
    pub const AUTOSTART: &str = "autostart";
}

/// Keys of `Start`, `Restart` and `Resume`.
pub mod start {
    pub use super::create::{READY_TIMEOUT, WAIT_FOR};
    /// `b`, for `Start` only: whether a suspended sandbox boots, and loses its memory; false when absent.
    pub const COLD: &str = "cold";
}

/// Keys of `Stop` and `Restart`.
pub mod stop {
    /// `t`: how long the guest may take to shut down before it is killed, in microseconds.
    pub const TIMEOUT: &str = "timeout-usec";
    /// `b`: kill at once.
    pub const FORCE: &str = "force";
}

/// Keys of `Delete`.
pub mod delete {
    /// `b`: kill the sandbox first if it runs.
    pub const FORCE: &str = "force";
}

/// Keys of `Configure`.
pub mod configure {
    pub use super::create::{
        AUTOSTART, DISK_SIZE, EGRESS, IDLE_ACTION, IDLE_AFTER, LABELS, MEMORY, NAT, RESTART, ROOT_SIZE, VCPUS,
    };
    /// `as`: keys of labels to remove, before those in [`LABELS`] are set.
    pub const REMOVE_LABELS: &str = "remove-labels";
}

/// Keys of `PublishPort`.
pub mod publish {
    /// `s`: on which addresses of the host; `loopback` when absent.
    pub const SCOPE: &str = "scope";

    /// Values of [`SCOPE`].
    pub mod scope {
        /// 127.0.0.1 only.
        pub const LOOPBACK: &str = "loopback";
        /// Every address; requires the action `dev.banger.vm.publish`.
        pub const ALL: &str = "all";
    }
}

/// Keys of the filters of the list methods.
pub mod filter {
    /// `b`: objects of every user, not only the caller's own.
    pub const ALL: &str = "all";
}

/// Keys of `ImportImage` and `ImportKernel`.
pub mod import {
    /// `b`: make it visible to every user.
    pub const SHARED: &str = "shared";
    /// `s`: (image) reference of the kernel that its sandboxes boot.
    pub const KERNEL_REF: &str = "kernel-ref";

    /// `a(tt)`: (image) where its parts are in the file `layout`, as offset and length: the manifest, the
    /// configuration, and the layers in the order of the manifest (OCI image specification).
    pub const PARTS: &str = "parts";

    /// `s`: (image) the platform that an image in the file `layout` has to be for, such as `linux/amd64/v3`; the
    /// host's when absent.
    pub const PLATFORM: &str = "platform";

    /// File of `ImportImage`: a raw ext4 filesystem, or an archive.
    pub const FILE_ROOTFS: &str = "rootfs";
    /// File of `ImportImage`, instead of `rootfs`: a file that has all parts of an OCI image, such as a tar archive
    /// of an image layout.
    pub const FILE_LAYOUT: &str = "layout";
    /// File of `ImportKernel`: the distribution's `vmlinuz`, or an ELF `vmlinux`.
    pub const FILE_KERNEL: &str = "kernel";
    /// File of `ImportKernel`: a tar of the modules directory (`/lib/modules/RELEASE`).
    pub const FILE_MODULES: &str = "modules";
}

/// Keys of `PullImage`.
pub mod pull {
    pub use super::import::{PLATFORM, SHARED};
    /// `b`: replace another image or kernel of this name.
    pub const FORCE: &str = "force";
    /// `s`: the name that the image gets; derived from the reference when absent.
    pub const NAME: &str = "name";
    /// `s`: reference of the kernel that its sandboxes boot.
    pub const KERNEL: &str = "kernel";
    /// `h`: a sealed memory file (memfd_create(2)) with a JSON object: `username` and `password`, or
    /// `identity-token`. The pull is anonymous when absent.
    pub const CREDENTIALS: &str = "credentials";
    /// `s`: see [`from`]; catalogs and then the registry when absent.
    pub const FROM: &str = "from";

    /// Values of [`FROM`].
    pub mod from {
        /// Catalogs only.
        pub const CATALOG: &str = "catalog";
        /// The registry only.
        pub const REGISTRY: &str = "registry";
    }
}

/// Keys of `PullKernel`.
pub mod pull_kernel {
    pub use super::{import::SHARED, pull::FORCE};
    /// `s`: the name that the kernel gets; the name of the entry when absent.
    pub const NAME: &str = "name";
}

/// Keys of `RefreshCatalog`.
pub mod refresh {
    pub use super::prune::OLDER_THAN;
}

/// Keys of `ListCatalog`, and of the entries that it returns.
pub mod catalog {
    /// `s`: `image` or `kernel`. As an option: list only this kind.
    pub const KIND: &str = "kind";
    /// `s`: the name to pull it by.
    pub const NAME: &str = "name";
    /// `s`: the catalog.
    pub const CATALOG: &str = "catalog";
    /// `s`: a description in one line.
    pub const DESCRIPTION: &str = "description";
    /// `s`: its version; of a kernel, what `uname -r` prints.
    pub const VERSION: &str = "version";
    /// `s`: what to do if it is not published.
    pub const NOTE: &str = "note";
    /// `s`: (image) the kernel that it boots.
    pub const KERNEL: &str = "kernel";
    /// `s`: its source, as it will appear in the `Source` property.
    pub const SOURCE: &str = "source";
    /// `s`: the digest of its content.
    pub const DIGEST: &str = "digest";
    /// `t`: the size of the download in bytes, if known.
    pub const SIZE: &str = "size";
    /// `b`: whether it is published for the architecture of this host.
    pub const PUBLISHED: &str = "published";
    /// `b`: whether this version is already on the host and the caller may use it.
    pub const HERE: &str = "here";

    /// A kind of entry.
    pub const IMAGE: &str = "image";
    /// A kind of entry.
    pub const KERNEL_KIND: &str = "kernel";
}

/// Keys of `PruneCache`.
pub mod prune {
    /// `b`: only report what would be removed.
    pub const DRY_RUN: &str = "dry-run";
    /// `t`: remove only what has not been used for this many microseconds.
    pub const OLDER_THAN: &str = "older-than-usec";
}

/// Keys of `Image.Config`.
pub mod image_config {
    /// `as`: `NAME=VALUE` each.
    pub const ENV: &str = "env";
    /// `s`: `user`, `uid`, `user:group` or `uid:gid`; absent for root.
    pub const USER: &str = "user";
    /// `s`: the working directory.
    pub const WORKING_DIR: &str = "working-dir";
    /// `as`: the program to run, with its first arguments.
    pub const ENTRYPOINT: &str = "entrypoint";
    /// `as`: arguments of the entry point, or the program itself if there is no entry point.
    pub const CMD: &str = "cmd";
    /// `s`: the signal that asks the program to end.
    pub const STOP_SIGNAL: &str = "stop-signal";
    /// `as`: ports that it listens on, such as `80/tcp`.
    pub const EXPOSED_PORTS: &str = "exposed-ports";
    /// `a{ss}`: labels that the author of the image has set.
    pub const LABELS: &str = "labels";
}

/// Keys of `VM.Commit`. What is absent stays as in the sandbox's image; labels are added.
pub mod commit {
    pub use super::{
        image_config::{CMD, ENTRYPOINT, ENV, EXPOSED_PORTS, LABELS, STOP_SIGNAL, USER, WORKING_DIR},
        pull::FORCE,
    };
}

/// Keys of `VM.Fork`.
pub mod fork {
    /// `as`: the names of the new sandboxes, as many as sandboxes; without it, the sandbox's name with numbers.
    pub const NAMES: &str = "names";
    /// `s`: the snapshot of the sandbox to make them of; without it, they are made of the sandbox as it is.
    pub const SNAPSHOT: &str = "snapshot";
    /// `s`: how long the new sandboxes stay, one of [`lifetime`](super::lifetime); `persistent` without it.
    pub const LIFETIME: &str = "lifetime";
}

/// Keys of the snapshots that `VM.ListSnapshots` returns.
pub mod snapshot {
    /// `s`: its name, unique among the snapshots of its sandbox.
    pub const NAME: &str = "name";
    /// `t`: when it was made, in microseconds since the Unix epoch.
    pub const CREATED_AT: &str = "created_at";
    /// `b`: whether it has the memory of the guest, so that its children continue with its programs.
    pub const MEMORY: &str = "memory";
    /// `t`: the space of its memory and of its frozen layers in bytes. Others may share it.
    pub const SIZE: &str = "size";
}

/// Keys of `OpenLog`.
pub mod log {
    /// `b`: keep the stream open and send new lines.
    pub const FOLLOW: &str = "follow";
    /// `u`: start with this many of the last lines.
    pub const TAIL: &str = "tail";
    /// `t`: start with what was written at this time or later, in microseconds since the Unix epoch.
    pub const SINCE: &str = "since-usec";
    /// `t`: end with what was written before this time.
    pub const UNTIL: &str = "until-usec";

    /// The log of the serial console.
    pub const CONSOLE: &str = "console";
    /// The output of the VMM.
    pub const VMM: &str = "vmm";
}

/// Keys of `OpenAgent`.
pub mod agent {
    /// `s`: the purpose of the stream; `command` when absent. Some streams are reserved for each purpose.
    pub const PURPOSE: &str = "purpose";
    /// `t`: how long to wait while all streams are in use, in microseconds; a minute when absent.
    pub const TIMEOUT: &str = "timeout-usec";

    /// Purpose: a request that the agent answers at once.
    pub const QUESTION: &str = "question";
    /// Purpose: a command or a file transfer.
    pub const COMMAND: &str = "command";
    /// Purpose: a forwarded connection.
    pub const CONNECTION: &str = "connection";
}

/// Services that `OpenStream` connects to.
pub mod stream {
    /// The ssh server.
    pub const SSH: &str = "ssh";
}

/// Keys of `Subscribe`.
pub mod subscribe {
    /// `b`: signals of every user's objects.
    pub const ALL_OWNERS: &str = "all-owners";
}

/// Values of `vmm`.
pub mod vmm {
    /// The preferred VMM that works on the host.
    pub const AUTO: &str = "auto";
    /// Firecracker only.
    pub const FIRECRACKER: &str = "firecracker";
    /// QEMU only.
    pub const QEMU: &str = "qemu";
}

/// Values of `restart`: which ends of a sandbox start it again.
pub mod restart {
    /// None.
    pub const NO: &str = "no";
    /// Those that no user asked for: of the VMM, or of the guest's kernel.
    pub const ON_FAILURE: &str = "on-failure";
    /// All but those that a user asked for. It also starts when the host boots.
    pub const ALWAYS: &str = "always";
}

/// Values of `lifetime`.
pub mod lifetime {
    /// Exists until it is deleted.
    pub const PERSISTENT: &str = "persistent";
    /// Is deleted once it stops.
    pub const UNTIL_STOPPED: &str = "until-stopped";
    /// Is stopped and deleted when the caller's bus connection goes away.
    pub const CALLER: &str = "caller";
}
