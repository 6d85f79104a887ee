//! The guest protocol.
