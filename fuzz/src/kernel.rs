//! The small kernels and modules of the tests of `domain::kernel`.

pub use crate::domain::kernel::{decompress, release};

#[path = "../../banger-system/src/domain/kernel/fixture.rs"]
#[allow(dead_code)]
pub(crate) mod fixture;
