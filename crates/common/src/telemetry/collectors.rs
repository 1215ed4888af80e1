//! Metrics that are read when somebody asks for them: the process itself, and its parts.

use std::fmt::Error;
use std::path::Path;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::metrics::Metrics;
use crate::lifecycle::Parts;

/// Linux tells CPU time in this unit on every platform that we run on.
const TICKS_A_SECOND: f64 = 100.0;

impl Metrics {
    /// `process_…`, by the names that every Prometheus client library uses, and
    /// `pomerium_health_status` for each of `parts`.
    pub fn add_process(&self, parts: &Parts) {
        self.add_collector(Box::new(Process));
        self.add_collector(Box::new(Health(parts.clone())));
    }
}

#[derive(Debug)]
struct Process;

/// What `/proc` tells about this process; parts that cannot be read are left out.
#[derive(Debug, Default, PartialEq)]
struct Usage {
    cpu_seconds: Option<f64>,
    start_seconds: Option<f64>,
    resident_bytes: Option<f64>,
    open_files: Option<f64>,
    max_files: Option<f64>,
}

impl Usage {
    fn read(proc: &Path) -> Self {
        let text = |file: &str| std::fs::read_to_string(proc.join(file)).unwrap_or_default();
        let stat = text("self/stat");
        // The second field, the program's name, may hold spaces; it ends at the last parenthesis.
        let fields: Vec<f64> = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_ascii_whitespace())
            .into_iter()
            .flatten()
            .map(|field| field.parse().unwrap_or(f64::NAN))
            .collect();
        // Counted from the third field of proc(5): utime 14, stime 15, starttime 22.
        let ticks = |number: usize| fields.get(number - 3).map(|ticks| ticks / TICKS_A_SECOND);
        let boot = number_behind(&text("stat"), "btime ");
        let files = std::fs::read_dir(proc.join("self/fd"))
            .ok()
            .map(Iterator::count);
        Self {
            cpu_seconds: ticks(14).zip(ticks(15)).map(|(user, system)| user + system),
            start_seconds: ticks(22).zip(boot).map(|(after, boot)| boot + after),
            resident_bytes: number_behind(&text("self/status"), "VmRSS:").map(|kib| kib * 1024.0),
            open_files: files
                .and_then(|count| u32::try_from(count).ok())
                .map(f64::from),
            max_files: number_behind(&text("self/limits"), "Max open files"),
        }
    }
}

/// The number that stands behind `label` at the begin of a line.
fn number_behind(text: &str, label: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(label))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let usage = Usage::read(Path::new("/proc"));
        if let Some(seconds) = usage.cpu_seconds {
            let counter = ConstCounter::new(seconds);
            let name = "process_cpu_seconds";
            let help = "Total user and system CPU time spent in seconds";
            counter.encode(encoder.encode_descriptor(
                name,
                help,
                None,
                counter.metric_type(),
            )?)?;
        }
        let gauges = [
            (
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds",
                usage.start_seconds,
            ),
            (
                "process_resident_memory_bytes",
                "Resident memory size in bytes",
                usage.resident_bytes,
            ),
            (
                "process_open_fds",
                "Number of open file descriptors",
                usage.open_files,
            ),
            (
                "process_max_fds",
                "Maximum number of open file descriptors",
                usage.max_files,
            ),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                let gauge = ConstGauge::new(value);
                gauge.encode(encoder.encode_descriptor(
                    name,
                    help,
                    None,
                    gauge.metric_type(),
                )?)?;
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Health(Parts);

impl Collector for Health {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let parts = self.0.list();
        if parts.is_empty() {
            return Ok(());
        }
        let kind = ConstGauge::new(1_i64).metric_type();
        let help = "1 for a part that is ready, else 0";
        let mut family = encoder.encode_descriptor("pomerium_health_status", help, None, kind)?;
        for (name, part) in parts {
            let gauge = ConstGauge::new(i64::from(part.is_ready()));
            let labels = [("check", name), ("status", part.status.to_owned())];
            gauge.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_tells_what_it_uses() {
        let metrics = Metrics::default();
        let parts = Parts::default();
        let _guard = parts.degraded("databroker.storage", "away");
        metrics.add_process(&parts);
        let page = metrics.page().unwrap();
        let value = |name: &str| number_behind(&page, &format!("{name} ")).unwrap_or(-1.0);
        assert!(value("process_resident_memory_bytes") > 1e6, "{page}");
        assert!(value("process_open_fds") > 2.0);
        assert!(value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_cpu_seconds_total") >= 0.0);
        let age = jiff::Timestamp::now().as_duration().as_secs_f64()
            - value("process_start_time_seconds");
        assert!((-5.0..3600.0).contains(&age), "{age}");
        let health = r#"pomerium_health_status{check="databroker.storage",status="RUNNING"} 0"#;
        assert!(page.contains(health), "{page}");
    }

    #[test]
    fn nothing_is_told_where_there_is_no_proc() {
        assert_eq!(Usage::read(Path::new("/nowhere")), Usage::default());
    }
}
