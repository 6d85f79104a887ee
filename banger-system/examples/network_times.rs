//! Plugs guests in and out and says how long each took: the side of banger in `cargo xtask bench net`.
//!
//! Standard input has a number of guests on each line. That many are plugged in; then one more comes and
//! goes, and a line on standard output has its times in milliseconds.

use std::{
    io::{BufRead, Write},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use banger_domain::{
    id::{Uid, VmId},
    net::{
        nic::{Nat, Nic},
        subnet::{Slot, Subnet},
    },
};
use banger_system::{host::network::LinuxNetwork, ports::network::Network, tasks::Tasks};

/// The default of the configuration.
const WARM_TAPS: usize = 4;
/// Between two starts of somebody's machines there is more time than this.
const REST: Duration = Duration::from_millis(50);
/// The machine that comes and goes.
const GUEST: u32 = 60_000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let subnet = Subnet::choose(&[], [1, 2, 3, 4, 5])?;
    let network = LinuxNetwork::new(WARM_TAPS, Arc::default(), &Tasks::default())?;
    network.prepare(subnet).await?;
    let mut there = 0;
    for line in std::io::stdin().lock().lines() {
        let wanted: u32 = line?.trim().parse()?;
        for n in there..wanted {
            network.plug(&nic(subnet, n)?).await?;
        }
        for n in wanted..there {
            network.unplug(nic(subnet, n)?.vm).await?;
        }
        there = wanted;
        let guest = nic(subnet, GUEST)?;
        tokio::time::sleep(REST).await;
        let began = Instant::now();
        network.plug(&guest).await?;
        let plugged = began.elapsed();
        let began = Instant::now();
        network.unplug(guest.vm).await?;
        let unplugged = began.elapsed();
        println!("{} {}", plugged.as_secs_f64() * 1e3, unplugged.as_secs_f64() * 1e3);
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn nic(subnet: Subnet, n: u32) -> anyhow::Result<Nic> {
    let vm = VmId::from_bits(u128::from(n) << 92);
    let nic = Nic::new(vm, Uid(1000 + n % 10), subnet, Slot(n)).context("there is no place for a guest")?;
    Ok(Nic { nat: Nat::On, ..nic })
}
