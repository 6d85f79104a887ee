//! TAP devices: network links whose other end is a file that a VMM reads and writes.
//!
//! Linux, Documentation/networking/tuntap.rst and include/uapi/linux/if_tun.h.

use std::{
    ffi::c_int,
    fs::{File, OpenOptions},
    io,
    os::fd::{AsFd, OwnedFd},
};

use banger_domain::{id::Uid, net::nic::TapName};
use rustix::ioctl::{Getter, IntegerSetter, Setter, ioctl, opcode};

/// The device with which TAPs are made.
pub(super) const DEVICE: &str = "/dev/net/tun";

const TUNSETIFF: u32 = opcode::write::<c_int>(b'T', 202);
const TUNSETPERSIST: u32 = opcode::write::<c_int>(b'T', 203);
const TUNSETOWNER: u32 = opcode::write::<c_int>(b'T', 204);
const TUNSETCARRIER: u32 = opcode::write::<c_int>(b'T', 226);
const TUNGETIFF: u32 = opcode::read::<c_int>(b'T', 210);

const IFF_TAP: u16 = 0x0002;
const IFF_PERSIST: u16 = 0x0800;
/// No protocol number in front of each packet.
const IFF_NO_PI: u16 = 0x1000;
/// A virtio header in front of each packet.
const IFF_VNET_HDR: u16 = 0x4000;
/// Fail where there is a link of this name.
const IFF_TUN_EXCL: u16 = 0x8000;
/// The flags with which VMMs open a TAP.
const FLAGS: u16 = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;

/// `struct ifreq`, as far as TAPs need it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// A TAP that is removed again unless it is kept, so that a failure leaves nothing.
pub(super) struct NewTap(File);

impl NewTap {
    /// Makes a TAP. Fails with `EBUSY` if a link of this name exists.
    ///
    /// Only root may open it: without an owner, everybody could. It has no carrier until then, so that the kernel's
    /// work for a link with carrier happens later, beside other steps.
    pub(super) fn make(name: &TapName) -> io::Result<Self> {
        let file = attach(name, FLAGS | IFF_TUN_EXCL)?;
        set_owner(&file, Uid::ROOT)?;
        // SAFETY: TUNSETCARRIER reads an int.
        #[expect(unsafe_code, reason = "the meaning of an ioctl is nowhere declared")]
        unsafe { ioctl(&file, Setter::<{ TUNSETCARRIER as _ }, c_int>::new(0)) }?;
        Ok(Self(file))
    }

    /// Keeps the TAP even if nobody has it open.
    pub(super) fn keep(self) -> io::Result<()> {
        // SAFETY: TUNSETPERSIST takes a number, and not an address.
        #[expect(unsafe_code, reason = "the meaning of an ioctl is nowhere declared")]
        unsafe { ioctl(&self.0, IntegerSetter::<{ TUNSETPERSIST as _ }>::new_usize(1)) }.map_err(Into::into)
    }
}

/// Opens a TAP that was kept. Only one process may have it open: others get `EBUSY`.
pub(super) fn open(name: &TapName) -> io::Result<OwnedFd> {
    let file = attach(name, FLAGS)?;
    // Asked for a missing one, the kernel makes a TAP that goes away with the file.
    if flags(&file)? & IFF_PERSIST == 0 {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(file.into())
}

/// Allows a user's processes to open a TAP that was kept.
pub(super) fn give(name: &TapName, user: Uid) -> io::Result<()> {
    set_owner(open(name)?, user)
}

fn attach(name: &TapName, flags: u16) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(DEVICE)?;
    let mut request = Request { name: [0; 16], flags, rest: [0; 22] };
    request.name[..name.as_str().len()].copy_from_slice(name.as_str().as_bytes());
    // SAFETY: TUNSETIFF reads a `struct ifreq`, which `Request` is.
    #[expect(unsafe_code, reason = "the meaning of an ioctl is nowhere declared")]
    unsafe { ioctl(&file, Setter::<{ TUNSETIFF as _ }, Request>::new(request)) }?;
    Ok(file)
}

fn flags(file: &File) -> io::Result<u16> {
    // SAFETY: TUNGETIFF writes a `struct ifreq`, which `Request` is, and every content of one is valid.
    #[expect(unsafe_code, reason = "the meaning of an ioctl is nowhere declared")]
    let request = unsafe { ioctl(file, Getter::<{ TUNGETIFF as _ }, Request>::new()) }?;
    Ok(request.flags)
}

fn set_owner(tap: impl AsFd, user: Uid) -> io::Result<()> {
    // SAFETY: TUNSETOWNER takes a number, and not an address.
    #[expect(unsafe_code, reason = "the meaning of an ioctl is nowhere declared")]
    unsafe { ioctl(tap, IntegerSetter::<{ TUNSETOWNER as _ }>::new_usize(user.0 as usize)) }
        .map_err(Into::into)
}
