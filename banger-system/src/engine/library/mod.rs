//! The library: images, kernels and catalogs.

pub(in crate::engine) mod catalog;
mod image;
mod image_file;
pub(in crate::engine) mod image_pull;
mod kernel_pull;

use super::{Engine, Shared, error, job, now, request, view};
