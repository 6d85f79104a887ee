//! `banger remote-proxy`: what ssh runs on a remote host.

use clap::Args;

use crate::{error::Result, remote::serve};

/// Serve a banger on another host, on standard input and output
///
/// `banger --host ssh://HOST` runs this on HOST.
#[derive(Debug, Args)]
pub struct RemoteProxy {}

impl RemoteProxy {
    pub async fn run(&self) -> Result<u8> {
        serve::run().await
    }
}
