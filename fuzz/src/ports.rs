//! What banger-system needs of a host, as far as it is about images.

#[path = "../../banger-system/src/ports/images.rs"]
pub mod images;
