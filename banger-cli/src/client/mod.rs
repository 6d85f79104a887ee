//! The client of the service: everything that this program asks of it over D-Bus.
//!
//! [`bus`] is the connection, and makes all calls. [`service`] has a method for each call. [`object`] is an object
//! with its properties, [`published_port`] one of them, and [`job`] follows a job to its end. [`pull`] runs the jobs that pull images and kernels.
//! [`text_agent`] asks for a password on the terminal, when a call needs one.

pub mod bus;
pub mod job;
pub mod object;
pub mod published_port;
pub mod pull;
pub mod service;
mod text_agent;
