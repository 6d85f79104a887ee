//! The root service.
