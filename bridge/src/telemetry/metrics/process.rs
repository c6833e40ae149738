//! What the system knows of this process, read at each scrape.
//!
//! Here: the four figures that every exporter has under the same names. Where `/proc` does not say, a figure is left
//! out.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::described::described;

/// Asks `/proc/self`.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut gauge = |name: &str, value: Option<f64>| match value {
            Some(value) => {
                let gauge = ConstGauge::new(value);
                gauge.encode(encoder.encode_descriptor(name, described(name), None, gauge.metric_type())?)
            }
            None => Ok(()),
        };
        let stat = Stat::read();
        gauge(
            "process_resident_memory_bytes",
            stat.as_ref().map(|stat| stat.resident_bytes),
        )?;
        gauge("process_open_fds", open_files())?;
        gauge(
            "process_start_time_seconds",
            stat.as_ref().and_then(Stat::started),
        )?;
        let Some(stat) = stat else { return Ok(()) };
        let name = "process_cpu_seconds";
        let counter = ConstCounter::new(stat.cpu_seconds);
        counter.encode(encoder.encode_descriptor(name, described(name), None, counter.metric_type())?)
    }
}

/// Fields of `/proc/self/stat`, in units people use.
#[derive(Debug)]
struct Stat {
    cpu_seconds: f64,
    resident_bytes: f64,
    /// Since the system started.
    began_seconds: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        let text = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The program's name may hold anything, also blanks and brackets: proc(5) field 2.
        let (_, fields) = text.rsplit_once(") ")?;
        let fields: Vec<f64> = fields
            .split_ascii_whitespace()
            .map(|field| field.parse().unwrap_or_default())
            .collect();
        // What follows the name begins with field 3.
        let field = |number: usize| fields.get(number - 3).copied();
        #[expect(clippy::cast_precision_loss, reason = "clock ticks and page sizes are small")]
        let (ticks, page) = (
            rustix::param::clock_ticks_per_second() as f64,
            rustix::param::page_size() as f64,
        );
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) / ticks,
            resident_bytes: field(24)? * page,
            began_seconds: field(22)? / ticks,
        })
    }

    fn started(&self) -> Option<f64> {
        let text = std::fs::read_to_string("/proc/stat").ok()?;
        let system: f64 = text
            .lines()
            .find_map(|line| line.strip_prefix("btime "))?
            .trim()
            .parse()
            .ok()?;
        Some(system + self.began_seconds)
    }
}

fn open_files() -> Option<f64> {
    let count = std::fs::read_dir("/proc/self/fd").ok()?.count();
    // The folder itself is open while it is read.
    u32::try_from(count)
        .ok()
        .map(|count| f64::from(count.saturating_sub(1)))
}
