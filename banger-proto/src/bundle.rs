//! Bundles: an OCI image layout in one packed archive, whose manifest gives the name of the image and the kernel that it
//! boots. Other programs see a plain OCI image.

/// The annotation of a manifest with the name that its image wants.
pub const NAME: &str = "dev.banger.name";
/// The annotation of a manifest with the name of the kernel that its image wants.
pub const KERNEL: &str = "dev.banger.kernel";
