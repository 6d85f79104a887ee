//! `cargo xtask bench all`: runs every benchmark, each with its peer, and writes a table, a chart and all figures.
//!
//! `--smoke` does the same with little work: then only that it works is of interest.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    Arguments, Machine,
    chart::{self, Figure, Row},
    median,
};
use crate::{
    host,
    run::{cache, say},
};

/// All benchmarks, in the order of the table.
const ALL: [&str; 14] = [
    "bus",
    "create",
    "net",
    "import",
    "size",
    "start",
    "fairness",
    "exec",
    "mcp",
    "workspace",
    "idle",
    "instant",
    "boot",
    "disk",
];
/// The benchmark that needs the test host, which takes too long for `--smoke`.
const IN_TEST_HOST: &str = "disk";

/// Runs all benchmarks, even after a failure, and writes their results. Each gets its own process, because some change
/// their namespaces.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut reports = Vec::new();
    let mut failed = Vec::new();
    // A benchmark may build this program again, and then its name is another file's.
    let program = std::env::current_exe().context("cannot find this program")?;
    let names = ALL.iter().filter(|name| !arguments.smoke || **name != IN_TEST_HOST);
    // Stopping the host resets the default image.
    host::down()?;
    for name in names.clone() {
        let begin = Instant::now();
        match one(&program, name, arguments) {
            Ok(of_this) => reports.extend(of_this),
            Err(error) => {
                say(&format!("FAIL bench {name}: {error:#}"));
                failed.push(*name);
            }
        }
        println!("bench {name} took {:.0} s", begin.elapsed().as_secs_f64());
    }
    host::down()?;
    write(&cache().join("bench"), arguments, &reports)?;
    let skipped = ALL.len() - names.count();
    println!(
        "bench: {} passed, {} failed, {skipped} skipped",
        ALL.len() - skipped - failed.len(),
        failed.len()
    );
    if skipped > 0 {
        println!("  skipped: {IN_TEST_HOST}: needs the test host; run `cargo xtask bench {IN_TEST_HOST}`");
    }
    if !failed.is_empty() {
        bail!("these benchmarks fail: {}", failed.join(", "));
    }
    Ok(())
}

/// Runs a benchmark, and returns its reports.
fn one(program: &Path, name: &str, arguments: &Arguments) -> Result<Vec<Value>> {
    let mut bench = Command::new(program);
    bench.args(["bench", name, "--json"]).stdin(Stdio::null()).stderr(Stdio::inherit());
    match arguments.smoke {
        true => bench.arg("--smoke"),
        false => bench.args(["--runs", &arguments.runs.to_string()]),
    };
    let output = bench.output().context("cannot run it")?;
    if !output.status.success() {
        bail!("{}", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // Programs that it runs may print as well.
    let reports = text.lines().filter(|line| line.starts_with('{'));
    let reports: Vec<Value> =
        reports.map(|line| serde_json::from_str(line).context("it prints no JSON")).collect::<Result<_>>()?;
    ensure!(!reports.is_empty(), "it has no figures");
    Ok(reports)
}

/// Writes the table, the chart and the figures into a directory.
fn write(directory: &Path, arguments: &Arguments, reports: &[Value]) -> Result<()> {
    let rows: Vec<Row> = reports.iter().flat_map(rows).collect();
    let machine = Machine::this()?;
    let runs = if arguments.smoke { 1 } else { arguments.runs };
    let title = format!("banger {}, {runs} runs on {machine}", env!("CARGO_PKG_VERSION"));
    let table = table(&title, &rows);
    let figures = json!({ "title": title, "machine": machine, "reports": reports });
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    for (name, text) in [
        ("bench.md", table.clone()),
        ("bench.svg", chart::draw(&title, &rows)),
        ("bench.json", format!("{figures:#}\n")),
    ] {
        let file = directory.join(name);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    println!("{table}\nwritten to {}", directory.display());
    Ok(())
}

fn table(title: &str, rows: &[Row]) -> String {
    let cell = |figure: &Figure| format!("{}: {}", figure.value(), figure.what);
    let line = |row: &Row| {
        let peer = row.peer.as_ref().map(cell).unwrap_or_default();
        let ratio = row.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        format!("| {} | {} | {peer} | {ratio} |\n", row.name, cell(&row.ours))
    };
    let lines: String = rows.iter().map(line).collect();
    format!("{title}\n\n| benchmark | banger | peer | ratio |\n|---|---|---|---|\n{lines}")
}

/// Returns the rows of a report of any benchmark.
fn rows(report: &Value) -> Vec<Row> {
    let name = report["name"].as_str().unwrap_or("unnamed");
    let number = |key: &str| report[key].as_f64().unwrap_or(f64::NAN);
    let row = |name: &str, ours: Figure, peer| Row { name: name.to_owned(), ours, peer };
    match name {
        "size" => vec![
            row("size, service", Figure::new("memory at rest", number("rss_mib"), "MiB"), None),
            row("size, agent", Figure::new("its file", number("agent_mib"), "MiB"), None),
            row(
                "size, client",
                Figure::new("banger --version", number("cli_start_ms"), "ms"),
                Some(Figure::new("true", number("true_start_ms"), "ms")),
            ),
        ],
        "create" => vec![
            row(name, Figure::new("sandboxes created and deleted", number("per_second"), "per s"), None),
            row("create, service", Figure::new("memory at rest", number("rss_mib"), "MiB"), None),
            row(
                "create, sandbox",
                Figure::new("memory of the service for each", number("rss_per_vm_kib"), "KiB"),
                None,
            ),
        ],
        "idle" => vec![row(
            name,
            Figure::new("idle guest", number("median_percent"), "%"),
            Some(Figure::new("its agent stopped", number("peer_median_percent"), "%")),
        )],
        "instant" => vec![
            row(
                name,
                Figure::new("from a kernel template", number("template_ms"), "ms"),
                Some(Figure::new("the guest boots", number("cold_ms"), "ms")),
            ),
            row(
                "instant, resume",
                Figure::new("banger vm resume, then vm exec", number("resume_ms"), "ms"),
                Some(Figure::new("the same QEMU by hand", number("peer_resume_ms"), "ms")),
            ),
            row(
                "instant, pause",
                Figure::new("a guest stands still in a fork", number("pause_ms"), "ms"),
                Some(Figure::new("its memory written by hand", number("peer_pause_ms"), "ms")),
            ),
            row(
                "instant, children",
                Figure::new("each new sandbox of a fork, until all answer", number("children_ms"), "ms"),
                None,
            ),
            row(
                "instant, memory",
                Figure::new("a new sandbox of a fork", number("pss_kib") / 1024.0, "MiB"),
                Some(Figure::new("one that has booted", number("cold_pss_kib") / 1024.0, "MiB")),
            ),
        ],
        _ => side(&report["ours"])
            .map(|ours| vec![row(name, ours, side(&report["peers"]))])
            .unwrap_or_default(),
    }
}

/// Returns the median of one side of a comparison, in milliseconds.
fn side(side: &Value) -> Option<Figure> {
    let (samples, unit) = match side["samples_ms"].as_array() {
        Some(samples) => (samples, 1.0),
        None => (side["samples_s"].as_array()?, 1000.0),
    };
    let samples: Vec<f64> = samples.iter().filter_map(Value::as_f64).map(|sample| sample * unit).collect();
    Some(Figure::new(side["what"].as_str()?, median(&samples), "ms"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_every_form_become_rows() {
        let compared = json!({
            "name": "exec",
            "ours": { "what": "banger vm exec", "samples_ms": [3.0, 1.0, 2.0] },
            "peers": { "what": "ssh", "samples_ms": [4000.0] },
        });
        let alone = json!({ "name": "import", "ours": { "what": "a", "samples_s": [0.5] }, "peers": null });
        let idle = json!({ "name": "idle", "median_percent": 0.5, "peer_median_percent": 0.25 });
        let size = json!({
            "name": "size", "rss_mib": 10.0, "agent_mib": 1.5, "cli_start_ms": 2.0, "true_start_ms": 1.0,
        });
        let create =
            json!({ "name": "create", "per_second": 250.0, "rss_mib": 12.0, "rss_per_vm_kib": 40.0 });
        let instant = json!({
            "name": "instant", "cold_ms": 4000.0, "template_ms": 2000.0, "resume_ms": 900.0, "peer_resume_ms": 600.0,
            "pause_ms": 1500.0, "peer_pause_ms": 1000.0, "children_ms": 800.0, "pss_kib": 102_400.0,
            "cold_pss_kib": 204_800.0,
        });
        let rows: Vec<Row> = [compared, alone, idle, size, create, instant].iter().flat_map(rows).collect();
        assert_eq!(
            table("a title", &rows),
            "a title\n\n| benchmark | banger | peer | ratio |\n|---|---|---|---|\n\
             | exec | 2.00 ms: banger vm exec | 4.00 s: ssh | 0.00 |\n\
             | import | 500 ms: a |  |  |\n\
             | idle | 0.50 %: idle guest | 0.25 %: its agent stopped | 2.00 |\n\
             | size, service | 10.0 MiB: memory at rest |  |  |\n\
             | size, agent | 1.50 MiB: its file |  |  |\n\
             | size, client | 2.00 ms: banger --version | 1.00 ms: true | 2.00 |\n\
             | create | 250 per s: sandboxes created and deleted |  |  |\n\
             | create, service | 12.0 MiB: memory at rest |  |  |\n\
             | create, sandbox | 40.0 KiB: memory of the service for each |  |  |\n\
             | instant | 2.00 s: from a kernel template | 4.00 s: the guest boots | 0.50 |\n\
             | instant, resume | 900 ms: banger vm resume, then vm exec | 600 ms: the same QEMU by hand | 1.50 |\n\
             | instant, pause | 1.50 s: a guest stands still in a fork | 1.00 s: its memory written by hand | 1.50 |\n\
             | instant, children | 800 ms: each new sandbox of a fork, until all answer |  |  |\n\
             | instant, memory | 100 MiB: a new sandbox of a fork | 200 MiB: one that has booted | 0.50 |\n"
        );
    }
}
