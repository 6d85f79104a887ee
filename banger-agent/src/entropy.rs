//! Seeds the kernel's random number generator (random(4), "ioctl interface").

use std::{fs::OpenOptions, io};

use banger_proto::guest::config::Entropy;
use rustix::ioctl::{NoArg, Opcode, Setter, ioctl, opcode};

const DEVICE: &str = "/dev/urandom";
/// `RNDADDENTROPY` and `RNDRESEEDCRNG` of `include/uapi/linux/random.h`.
const ADD: Opcode = opcode::write::<[i32; 2]>(b'R', 3);
const RESEED: Opcode = opcode::none(b'R', 7);

/// `struct rand_pool_info` of `include/uapi/linux/random.h`, with its buffer.
#[repr(C)]
struct PoolInfo {
    entropy_bits: i32,
    size: i32,
    bytes: [[u8; 32]; 2],
}

/// Mixes these bytes into the generator, and derives its key from them at once. By itself, the kernel would use the old
/// key for up to a minute, and children of one capture would draw the same numbers.
pub fn reseed(entropy: &Entropy) -> io::Result<()> {
    let device = OpenOptions::new().write(true).open(DEVICE)?;
    let size = entropy.as_bytes().len() as i32;
    let info = PoolInfo { entropy_bits: size * 8, size, bytes: entropy.0 };
    // SAFETY: ADD reads the size and as many bytes behind it as the size says, all of which are in the structure.
    #[expect(unsafe_code, reason = "the meaning of an ioctl is nowhere declared")]
    unsafe { ioctl(&device, Setter::<ADD, PoolInfo>::new(info)) }?;
    // SAFETY: RESEED has no argument.
    #[expect(unsafe_code, reason = "the meaning of an ioctl is nowhere declared")]
    unsafe { ioctl(&device, NoArg::<RESEED>::new()) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_their_argument_are_those_of_the_kernel() {
        assert_eq!((ADD, RESEED), (0x4008_5203, 0x5207));
        assert_eq!(size_of::<PoolInfo>(), 8 + 64);
    }
}
