//! The figures of the service as OpenMetrics text, and the stream on which a client reads them.
//!
//! The client gets one end of a pair of sockets, because the text may be too long for a message on the bus. The service writes
//! in the background, so that no call waits for the client.

use std::{collections::BTreeMap, fmt, os::fd::OwnedFd, time::Duration};

use banger_domain::id::Uid;
use banger_proto::bus::ErrorName;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::{self, Registry},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::OwnedSemaphorePermit,
};

use super::{
    api::Api,
    error::{Error, Result},
};
use crate::engine::{
    counts::{BOUNDS, Histogram},
    metrics::{Family, Labels, Unit, Values, Whose},
};

/// What the name of each figure begins with.
const PREFIX: &str = "banger";
/// The pause between two reads of what a client writes, which is thrown away.
const UNWANTED: Duration = Duration::from_millis(200);

impl Api {
    /// Returns the figures that are known here.
    pub(super) async fn metrics(&self, whose: Whose, api_level: u32) -> Vec<Family> {
        let build =
            vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("api_level", api_level.to_string())];
        let includes = |user: Uid| whose == Whose::All || whose == Whose::Own(user);
        let mut requests: BTreeMap<(Uid, &'static str), usize> = BTreeMap::new();
        for (user, kind, count) in self.callers.under_way() {
            if includes(user) {
                requests.insert((user, kind.word()), count);
            }
        }
        let labels = |(user, kind): (Uid, &str)| vec![("uid", user.to_string()), ("kind", kind.to_owned())];
        let requests = requests.into_iter().map(|(key, count)| (labels(key), count as f64));
        let mut all = vec![
            Family::gauges("build_info", "Version of the service", [(build, 1.0)]),
            Family::gauges(
                "requests",
                "Requests of a user that are under way, and logs being read",
                requests,
            ),
        ];
        all.extend(self.engine.metrics(whose).await);
        all
    }
}

/// Returns figures as OpenMetrics text (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
pub fn to_text(families: Vec<Family>) -> Result<String> {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Families(families)));
    let mut written = String::new();
    let failed = |_: fmt::Error| Error::new(ErrorName::Internal, "cannot write the metrics");
    text::encode(&mut written, &registry).map_err(failed)?;
    Ok(written)
}

/// Returns the end of a stream on which a client reads a text, to its end. It counts against a limit of its user until the
/// client closes it.
pub fn send(text: String, place: OwnedSemaphorePermit) -> Result<OwnedFd> {
    let failed =
        |error: std::io::Error| Error::new(ErrorName::Internal, format!("cannot make a stream: {error}"));
    let (theirs, ours) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
    ours.set_nonblocking(true).map_err(failed)?;
    let mut ours = UnixStream::from_std(ours).map_err(failed)?;
    tokio::spawn(async move {
        // A client may close it at any time.
        let _ = ours.write_all(text.as_bytes()).await;
        drop(text);
        let _ = ours.shutdown().await;
        // The socket holds the rest of the text until the client closes it. What a client writes is thrown away, and read so
        // slowly that it costs nothing.
        let mut unwanted = [0; 4096];
        while ours.read(&mut unwanted).await.is_ok_and(|count| count > 0) {
            tokio::time::sleep(UNWANTED).await;
        }
        drop(place);
    });
    Ok(theirs.into())
}

#[derive(Debug)]
struct Families(Vec<Family>);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        for family in &self.0 {
            let unit = family.unit.map(|unit| match unit {
                Unit::Bytes => registry::Unit::Bytes,
                Unit::Seconds => registry::Unit::Seconds,
            });
            let of = match &family.values {
                Values::Gauges(_) => MetricType::Gauge,
                Values::Counters(_) => MetricType::Counter,
                Values::Histograms(_) => MetricType::Histogram,
            };
            // The crate adds a full stop only to texts that are registered.
            let help = format!("{}.", family.help);
            let metric = encoder.encode_descriptor(family.name, &help, unit.as_ref(), of)?;
            match &family.values {
                Values::Gauges(values) => each(metric, values, |metric, value| metric.encode_gauge(value))?,
                Values::Counters(values) => each(metric, values, |metric, value| {
                    metric.encode_counter::<NoLabelSet, f64, f64>(value, None)
                })?,
                Values::Histograms(values) => each(metric, values, |metric, times| {
                    let (sum, count) = (times.sum.as_secs_f64(), times.count);
                    metric.encode_histogram::<NoLabelSet>(sum, count, &buckets(times), None)
                })?,
            }
        }
        Ok(())
    }
}

fn each<V>(
    mut metric: MetricEncoder<'_>,
    values: &[(Labels, V)],
    encode: impl Fn(&mut MetricEncoder<'_>, &V) -> fmt::Result,
) -> fmt::Result {
    for (labels, value) in values {
        match labels.is_empty() {
            true => encode(&mut metric, value)?,
            false => encode(&mut metric.encode_family(labels)?, value)?,
        }
    }
    Ok(())
}

/// Returns the upper bound of each bucket, and how many times are in it and in none before.
fn buckets(times: &Histogram) -> Vec<(f64, u64)> {
    let bounds = BOUNDS.iter().copied().chain([f64::INFINITY]);
    bounds.zip(times.buckets).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn figures_become_open_metrics() {
        let id = |id: &str| vec![("id", id.to_owned())];
        let mut times = Histogram { count: 2, sum: Duration::from_millis(61_500), ..Histogram::default() };
        times.buckets[9] = 1;
        times.buckets[BOUNDS.len()] = 1;
        let text = to_text(vec![
            Family::gauges("problems", "Number of problems", [(Labels::new(), 2.0)]),
            Family::gauges("sandbox_memory", "Memory", [(id("a"), 4096.0), (id("b\"\n"), 0.0)])
                .of_unit(Unit::Bytes),
            Family::counters("sandbox_cpu", "Processor time", [(id("a"), 1.5)]).of_unit(Unit::Seconds),
            Family {
                name: "phase",
                help: "Times",
                unit: Some(Unit::Seconds),
                values: Values::Histograms(vec![(id("a"), times)]),
            },
        ]);
        let text = text.unwrap();
        let (simple, times) = text.split_once("# HELP banger_phase").unwrap();
        assert_eq!(
            simple,
            "\
# HELP banger_problems Number of problems.
# TYPE banger_problems gauge
banger_problems 2.0
# HELP banger_sandbox_memory_bytes Memory.
# TYPE banger_sandbox_memory_bytes gauge
# UNIT banger_sandbox_memory_bytes bytes
banger_sandbox_memory_bytes{id=\"a\"} 4096.0
banger_sandbox_memory_bytes{id=\"b\\\"\\n\"} 0.0
# HELP banger_sandbox_cpu_seconds Processor time.
# TYPE banger_sandbox_cpu_seconds counter
# UNIT banger_sandbox_cpu_seconds seconds
banger_sandbox_cpu_seconds_total{id=\"a\"} 1.5
"
        );
        for line in [
            "banger_phase_seconds_sum{id=\"a\"} 61.5",
            "banger_phase_seconds_count{id=\"a\"} 2",
            "banger_phase_seconds_bucket{le=\"0.5\",id=\"a\"} 0",
            "banger_phase_seconds_bucket{le=\"1.0\",id=\"a\"} 1",
            "banger_phase_seconds_bucket{le=\"60.0\",id=\"a\"} 1",
            "banger_phase_seconds_bucket{le=\"+Inf\",id=\"a\"} 2",
            "# EOF",
        ] {
            assert!(times.lines().any(|found| found == line), "{line} is not in {times}");
        }
    }

    #[tokio::test]
    async fn a_stream_counts_until_its_client_closes_it() {
        let places = std::sync::Arc::new(tokio::sync::Semaphore::new(1));
        let place = std::sync::Arc::clone(&places).try_acquire_owned().unwrap();
        // More than a socket holds.
        let long = "x".repeat(4 << 20);
        let stream = std::os::unix::net::UnixStream::from(send(long.clone(), place).unwrap());
        stream.set_nonblocking(true).unwrap();
        let mut stream = UnixStream::from_std(stream).unwrap();
        let mut read = String::new();
        stream.read_to_string(&mut read).await.unwrap();
        assert!(read == long);
        assert_eq!(places.available_permits(), 0);
        drop(stream);
        let _ = places.acquire().await.unwrap();

        // One that writes has its place as long as it keeps the stream, and what it writes is no work.
        let place = std::sync::Arc::clone(&places).try_acquire_owned().unwrap();
        let stream = std::os::unix::net::UnixStream::from(send(String::new(), place).unwrap());
        stream.set_nonblocking(true).unwrap();
        let mut stream = UnixStream::from_std(stream).unwrap();
        stream.write_all(&[0; 10_000]).await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(places.available_permits(), 0);
        drop(stream);
        let _ = places.acquire().await.unwrap();

        // A client that reads nothing keeps its place only as long as it keeps the stream.
        let place = std::sync::Arc::clone(&places).try_acquire_owned().unwrap();
        drop(send(long, place).unwrap());
        let _ = places.acquire().await.unwrap();
    }
}
