//! Whose a TAP is: its owner may attach to it without any privilege (tun(4)).

use std::{ffi::c_void, fs::File, os::fd::AsFd};

use rustix::{
    io::{self, Errno},
    ioctl::{Ioctl, IoctlOutput, Opcode, ioctl},
};

use crate::ports::{Error, Result};

const DEVICE: &str = "/dev/net/tun";
/// A name has at most 15 bytes (`IFNAMSIZ`, with its end).
const NAME: usize = 16;
/// `struct ifreq` has 40 bytes where a pointer has 8.
const REQUEST: usize = 40;
// From `include/uapi/linux/if_tun.h`.
const TUNSETIFF: Opcode = 0x4004_54ca;
const TUNSETOWNER: Opcode = 0x4004_54cc;
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// Makes a TAP that exists this user's.
pub fn give(name: &str, user: u32) -> Result<()> {
    let os = |error: Errno| Error::os(format!("give the machine's user the interface {name}"), error);
    if name.len() >= NAME {
        return Err(os(Errno::NAMETOOLONG));
    }
    let tun = File::options().read(true).write(true).open(DEVICE);
    let tun = tun.map_err(|error| Error::os(format!("open {DEVICE}"), error))?;
    let mut request = [0; REQUEST];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[NAME..NAME + 2].copy_from_slice(&(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR).to_ne_bytes());
    call(&tun, Attach(request)).map_err(os)?;
    call(&tun, SetOwner(user)).map_err(os)
}

fn call(tun: &File, request: impl Ioctl<Output = ()>) -> io::Result<()> {
    // SAFETY: both requests carry what the kernel takes for their number, see there.
    #[expect(unsafe_code, reason = "the kernel is told of an ioctl's argument by its number alone")]
    unsafe {
        ioctl(tun.as_fd(), request)
    }
}

struct Attach([u8; REQUEST]);

// SAFETY: TUNSETIFF takes a pointer to a `struct ifreq`, which it may write to, and which has this size.
#[expect(unsafe_code, reason = "the trait is unsafe to implement")]
unsafe impl Ioctl for Attach {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        TUNSETIFF
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.0.as_mut_ptr().cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> io::Result<()> {
        Ok(())
    }
}

struct SetOwner(u32);

// SAFETY: TUNSETOWNER takes the number itself in the pointer's place, and never looks where it points.
#[expect(unsafe_code, reason = "the trait is unsafe to implement")]
unsafe impl Ioctl for SetOwner {
    type Output = ();
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        TUNSETOWNER
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.0 as usize)
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> io::Result<()> {
        Ok(())
    }
}
