//! The import worker's messages and walls, which no target comes to.

#[path = "../../banger-system/src/shim/filter.rs"]
#[allow(dead_code)]
pub mod filter;
#[path = "../../banger-system/src/shim/message.rs"]
#[allow(dead_code)]
pub mod message;
#[path = "../../banger-system/src/shim/walls.rs"]
#[allow(dead_code)]
pub mod walls;
