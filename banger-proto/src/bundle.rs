//! Bundles: an OCI image layout in one packed archive, whose manifest says what the image is to be called and what it
//! boots. Who does not know banger finds an OCI image in it.

/// The annotation of a manifest with the name that its image wants.
pub const NAME: &str = "dev.banger.name";
/// The annotation of a manifest with the name of the kernel that its image wants.
pub const KERNEL: &str = "dev.banger.kernel";
