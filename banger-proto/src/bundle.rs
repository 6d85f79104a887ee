//! Bundles: an OCI image layout in one packed archive. Annotations of its manifest name the image and the kernel that
//! it boots. Other programs see a plain OCI image.

/// Annotation with the name that the image should get.
pub const NAME: &str = "dev.banger.name";
/// Annotation with the name of the kernel that the image boots.
pub const KERNEL: &str = "dev.banger.kernel";
