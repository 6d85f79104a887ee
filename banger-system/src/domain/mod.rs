//! Pure values and decisions. No async, no files, no clock, no bus: what can be decided before the host
//! is touched is decided here.

pub mod catalog;
pub mod causes;
pub mod clock;
pub mod digest;
pub mod dns;
pub mod ext4;
pub mod guest_end;
pub mod id;
pub mod image;
pub mod kernel;
pub mod lifecycle;
pub mod limits;
pub mod line;
pub mod machine;
pub mod monitor;
pub mod name;
pub mod net;
pub mod oci;
pub mod qcow2;
pub mod resource;
pub mod rootfs;
pub mod ssh;
pub mod stream;
pub mod timezone;
pub mod vm;
