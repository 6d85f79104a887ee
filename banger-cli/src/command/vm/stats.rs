//! `banger vm stats` and `banger vm top`.

use std::time::Duration;

use banger_proto::{
    bus::names::VM_INTERFACE,
    guest::{
        Request,
        facts::{Process, Stats as Facts},
    },
    size::Bytes,
};
use clap::Args;
use serde_json::{Value, json};

use super::{agents, numbers::whole};
use crate::{
    client::bus::Bus,
    error::{FAILURE, Result},
    ui::{
        output,
        signals::{Signals, unless_ended},
        table::Table,
    },
};

/// Interval between two samples, whose difference is the CPU usage.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);
/// Interval between two tables of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// Moves to the top of the terminal and clears everything below (ECMA-48).
const HOME: &str = "\x1b[H\x1b[J";

/// Show the resource usage of sandboxes
///
/// CPU usage is in percent of one virtual processor: a sandbox with two of them can use up to 200 %.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm stats                all your running sandboxes
  banger vm stats --watch web
  banger vm stats --json web | jq '.[0].memory_available'")]
pub struct Stats {
    /// Names, ids or id prefixes [default: all your running sandboxes]
    #[arg(value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    /// Refresh until you press Ctrl-C
    #[arg(short, long)]
    watch: bool,
    /// Print a JSON array of objects; with --watch, one array on each line
    #[arg(long)]
    json: bool,
}

/// Show the processes in a sandbox
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm top web
  banger vm top -n 5 --watch web")]
pub struct Top {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Show at most this many processes
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 20, value_parser = whole::<usize>)]
    count: usize,
    /// Refresh until you press Ctrl-C
    #[arg(short, long)]
    watch: bool,
    /// Print a JSON array of objects; with --watch, one array on each line
    #[arg(long)]
    json: bool,
}

/// Two samples of a sandbox.
struct Sample {
    name: String,
    before: Facts,
    now: Facts,
}

impl Sample {
    async fn take(bus: &Bus, signals: &Signals, reference: &str) -> Result<Self> {
        let (name, mut guest) = agents::open(bus, signals, reference).await?;
        let before = guest.query(Request::Stats).await?;
        tokio::time::sleep(SAMPLE_INTERVAL).await;
        Ok(Self { name, before, now: guest.query(Request::Stats).await? })
    }

    /// Returns the share of one processor, in percent.
    fn share(&self, before: u64, now: u64) -> f64 {
        let wall = self.now.uptime_msec.saturating_sub(self.before.uptime_msec).max(1) as f64 * 1000.0;
        100.0 * now.saturating_sub(before) as f64 / wall
    }

    fn cpu(&self) -> f64 {
        self.share(self.before.cpu_usec, self.now.cpu_usec)
    }

    fn disk(&self, mount_point: &str) -> String {
        let disk = self.now.disks.iter().find(|disk| disk.mount_point == mount_point);
        let used = |disk: &banger_proto::guest::facts::Disk| {
            format!("{} / {}", Bytes(disk.size.saturating_sub(disk.free)), Bytes(disk.size))
        };
        disk.map(used).unwrap_or_default()
    }

    fn row(&self) -> [String; 8] {
        let used = self.now.memory_total.saturating_sub(self.now.memory_available);
        [
            self.name.clone(),
            format!("{:.1} %", self.cpu()),
            format!("{} / {}", Bytes(used), Bytes(self.now.memory_total)),
            self.disk("/"),
            self.disk("/root"),
            format!("{} / {}", Bytes(self.now.received), Bytes(self.now.sent)),
            self.now.processes.len().to_string(),
            format!("{}.{:02}", self.now.load_hundredths / 100, self.now.load_hundredths % 100),
        ]
    }

    fn json(&self) -> Value {
        let mut object = serde_json::to_value(&self.now).unwrap_or_default();
        if let Value::Object(fields) = &mut object {
            fields.insert("sandbox".to_owned(), self.name.clone().into());
            fields.insert("cpu_percent".to_owned(), json!((self.cpu() * 10.0).round() / 10.0));
            fields.insert("processes".to_owned(), self.now.processes.len().into());
        }
        object
    }

    /// Returns the processes, the busiest first.
    fn processes(&self) -> Vec<(f64, &Process)> {
        let before = |pid| self.before.processes.iter().find(|process| process.pid == pid);
        let share = |process: &Process| match before(process.pid) {
            Some(old) => self.share(old.cpu_usec, process.cpu_usec),
            None => self.share(0, process.cpu_usec),
        };
        let mut processes: Vec<_> =
            self.now.processes.iter().map(|process| (share(process), process)).collect();
        processes.sort_by(|a, b| {
            b.0.total_cmp(&a.0).then_with(|| b.1.memory.cmp(&a.1.memory)).then_with(|| a.1.pid.cmp(&b.1.pid))
        });
        processes
    }
}

impl Stats {
    pub async fn run(&self) -> Result<u8> {
        let bus = Bus::connect().await?;
        let signals = Signals::catch()?;
        let mut listener = signals.listen();
        loop {
            let status = unless_ended(&mut listener, self.show(&bus, &signals)).await?;
            if !self.watch {
                return Ok(status);
            }
            unless_ended(&mut listener, async {
                tokio::time::sleep(WATCH_INTERVAL).await;
                Ok(())
            })
            .await?;
        }
    }

    async fn show(&self, bus: &Bus, signals: &Signals) -> Result<u8> {
        let all = match self.sandboxes.is_empty() {
            false => self.sandboxes.clone(),
            true => {
                let mut running = bus.objects(VM_INTERFACE).await?;
                running.retain(|sandbox| sandbox.text("State") == "running" && sandbox.flag("Ready"));
                crate::client::object::sort(&mut running);
                running.iter().map(|sandbox| sandbox.text("Id").to_owned()).collect()
            }
        };
        let samples =
            futures_util::future::join_all(all.iter().map(|one| Sample::take(bus, signals, one))).await;
        let mut table = Table::new([
            "NAME",
            "CPU",
            "MEMORY",
            "SYSTEM DISK",
            "WORK DISK",
            "NET IN / OUT",
            "PROCESSES",
            "LOAD",
        ]);
        let (mut rows, mut status) = (Vec::new(), 0);
        for (reference, sample) in all.iter().zip(samples) {
            match sample {
                Ok(sample) => {
                    table.row(sample.row());
                    rows.push(sample.json());
                }
                Err(error) => {
                    status = error.status(FAILURE);
                    error.about(reference).print((all.len() > 1).then_some(reference));
                }
            }
        }
        print(self.json, self.watch, Value::Array(rows), &table.text())?;
        Ok(status)
    }
}

impl Top {
    pub async fn run(&self) -> Result<u8> {
        let bus = Bus::connect().await?;
        let signals = Signals::catch()?;
        let mut listener = signals.listen();
        loop {
            unless_ended(&mut listener, self.show(&bus, &signals))
                .await
                .map_err(|error| error.about(&self.sandbox))?;
            if !self.watch {
                return Ok(0);
            }
            unless_ended(&mut listener, async {
                tokio::time::sleep(WATCH_INTERVAL).await;
                Ok(())
            })
            .await?;
        }
    }

    async fn show(&self, bus: &Bus, signals: &Signals) -> Result<()> {
        let sample = Sample::take(bus, signals, &self.sandbox).await?;
        let mut table = Table::new(["PID", "USER", "STATE", "CPU", "MEMORY", "TIME", "COMMAND"]);
        let mut rows = Vec::new();
        for (share, process) in sample.processes().into_iter().take(self.count) {
            let seconds = process.cpu_usec / 1_000_000;
            table.row([
                process.pid.to_string(),
                process.uid.to_string(),
                process.state.to_string(),
                format!("{share:.1} %"),
                Bytes(process.memory).to_string(),
                format!("{}:{:02}", seconds / 60, seconds % 60),
                process.command.clone(),
            ]);
            let mut object = serde_json::to_value(process).unwrap_or_default();
            if let Value::Object(fields) = &mut object {
                fields.insert("cpu_percent".to_owned(), json!((share * 10.0).round() / 10.0));
            }
            rows.push(object);
        }
        print(self.json, self.watch, Value::Array(rows), &table.text())
    }
}

fn print(json: bool, watch: bool, rows: Value, table: &str) -> Result<()> {
    use std::io::IsTerminal;
    match (json, watch) {
        (true, true) => output::text(&format!("{rows}\n")),
        (true, false) => output::json(&rows),
        (false, true) if std::io::stdout().is_terminal() => output::text(&format!("{HOME}{table}")),
        (false, _) => output::text(table),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_relative_to_the_time_between_samples() {
        let process =
            |pid, cpu_usec| Process { pid, uid: 0, state: 'S', cpu_usec, memory: 0, command: String::new() };
        let facts =
            |uptime_msec, cpu_usec, processes| Facts { uptime_msec, cpu_usec, processes, ..Facts::default() };
        let sample = Sample {
            name: "web".into(),
            before: facts(1000, 0, vec![process(1, 100), process(2, 0)]),
            now: facts(1500, 750_000, vec![process(1, 100), process(2, 250_000)]),
        };
        assert_eq!(sample.cpu(), 150.0);
        let shares: Vec<_> =
            sample.processes().iter().map(|(share, process)| (process.pid, *share)).collect();
        assert_eq!(shares, [(2, 50.0), (1, 0.0)]);
    }
}
