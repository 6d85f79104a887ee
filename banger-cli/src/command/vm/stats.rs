//! `banger vm stats` and `banger vm top`.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

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
    command::table_args::{TableArgs, View},
    error::{FAILURE, Result},
    ui::{
        age,
        column::{self, Cell, Column, List},
        output,
        signals::{Signals, unless_ended},
        terminal,
    },
};

/// Interval between two samples, whose difference is the CPU usage.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);
/// Interval between two tables of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// Moves to the top of the terminal and clears everything below (ECMA-48).
const HOME: &str = "\x1b[H\x1b[J";

/// The columns of `vm stats`.
pub const LIST: List = List {
    verb: "vm stats",
    columns: &[
        Column::new("NAME", "sandbox", column::text),
        Column::new("CPU", "cpu_percent", column::percent),
        Column::new("MEMORY", "memory_used", |cell| {
            pair(cell.number("memory_used"), cell.number("memory_total"))
        })
        .drop(1),
        Column::new("SYSTEM DISK", "disks", |cell| disk(cell, "/")).by(|cell| used(cell, "/")).drop(3),
        Column::new("WORK DISK", "disks", |cell| disk(cell, "/root")).by(|cell| used(cell, "/root")).drop(4),
        Column::new("NET IN / OUT", "received", |cell| pair(cell.number("received"), cell.number("sent")))
            .drop(5),
        Column::new("PROCESSES", "processes", column::text).drop(6),
        Column::new("LOAD", "load_hundredths", load).drop(2),
    ],
};
/// The columns of `vm top`.
pub const PROCESSES: List = List {
    verb: "vm top",
    columns: &[
        Column::new("PID", "pid", column::text),
        Column::new("USER", "user", user).drop(1),
        Column::new("STATE", "state", column::text).drop(4),
        Column::new("CPU", "cpu_percent", column::percent),
        Column::new("MEMORY", "memory", column::size).drop(2),
        Column::new("TIME", "cpu_usec", time).drop(3),
        Column::new("COMMAND", "command", column::text).elastic(),
    ],
};

fn pair(used: u64, total: u64) -> String {
    format!("{} / {}", Bytes(used), Bytes(total))
}

/// Returns the use and the size of a disk in bytes, if the sandbox has it.
fn bytes_of(cell: Cell<'_>, mount_point: &str) -> Option<(u64, u64)> {
    let mut disks = cell.value().as_array()?.iter();
    let disk = disks.find(|disk| disk["mount_point"] == mount_point)?;
    let (size, free) = (disk["size"].as_u64()?, disk["free"].as_u64()?);
    Some((size.saturating_sub(free), size))
}

fn disk(cell: Cell<'_>, mount_point: &str) -> String {
    bytes_of(cell, mount_point).map(|(used, size)| pair(used, size)).unwrap_or_default()
}

fn used(cell: Cell<'_>, mount_point: &str) -> Value {
    bytes_of(cell, mount_point).map(|(used, _)| used).into()
}

fn load(cell: Cell<'_>) -> String {
    let hundredths = cell.number("load_hundredths");
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

/// Returns the name of a process's user, or the number of one without a name.
fn user(cell: Cell<'_>) -> String {
    match column::text(cell) {
        name if name.is_empty() => cell.number("uid").to_string(),
        name => name,
    }
}

/// Returns the processor time of a process in minutes and seconds.
fn time(cell: Cell<'_>) -> String {
    let seconds = cell.number("cpu_usec") / 1_000_000;
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

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
    #[command(flatten)]
    table: TableArgs,
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
    #[command(flatten)]
    table: TableArgs,
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

    fn json(&self) -> Value {
        let mut object = serde_json::to_value(&self.now).unwrap_or_default();
        if let Value::Object(fields) = &mut object {
            fields.insert("sandbox".to_owned(), self.name.clone().into());
            fields.insert("cpu_percent".to_owned(), json!((self.cpu() * 10.0).round() / 10.0));
            let used = self.now.memory_total.saturating_sub(self.now.memory_available);
            fields.insert("memory_used".to_owned(), used.into());
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
        let view = self.table.view(LIST)?;
        let bus = Bus::connect().await?;
        let signals = Signals::catch()?;
        let mut listener = signals.listen();
        loop {
            let status = unless_ended(&mut listener, self.show(&bus, &signals, &view)).await?;
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

    async fn show(&self, bus: &Bus, signals: &Signals, view: &View) -> Result<u8> {
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
        let (mut rows, mut status) = (Vec::new(), 0);
        for (reference, sample) in all.iter().zip(samples) {
            match sample {
                Ok(sample) => rows.push(sample.json()),
                Err(error) => {
                    status = error.status(FAILURE);
                    error.about(reference).print((all.len() > 1).then_some(reference));
                }
            }
        }
        print(view, rows, self.json, self.watch)?;
        Ok(status)
    }
}

impl Top {
    pub async fn run(&self) -> Result<u8> {
        let view = self.table.view(PROCESSES)?;
        let bus = Bus::connect().await?;
        let signals = Signals::catch()?;
        let mut listener = signals.listen();
        loop {
            unless_ended(&mut listener, self.show(&bus, &signals, &view))
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

    async fn show(&self, bus: &Bus, signals: &Signals, view: &View) -> Result<()> {
        let sample = Sample::take(bus, signals, &self.sandbox).await?;
        let mut rows = Vec::new();
        for (share, process) in sample.processes().into_iter().take(self.count) {
            let mut object = serde_json::to_value(process).unwrap_or_default();
            if let Value::Object(fields) = &mut object {
                fields.insert("cpu_percent".to_owned(), json!((share * 10.0).round() / 10.0));
            }
            rows.push(object);
        }
        print(view, rows, self.json, self.watch)
    }
}

/// Prints the rows; with `--watch`, in place of those before.
fn print(view: &View, rows: Vec<Value>, json: bool, watch: bool) -> Result<()> {
    let terminal = io::stdout().is_terminal();
    match (json, watch) {
        (true, true) => output::text(&format!("{}\n", Value::Array(view.sorted(rows)))),
        (false, true) if terminal => {
            let text = view.text(&view.sorted(rows), terminal::width(&io::stdout()), age::now());
            output::text(&format!("{HOME}{text}"))
        }
        _ => view.print(rows, json),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_relative_to_the_time_between_samples() {
        let process = |pid, cpu_usec| Process {
            pid,
            uid: 0,
            user: String::new(),
            state: 'S',
            cpu_usec,
            memory: 0,
            command: String::new(),
        };
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
