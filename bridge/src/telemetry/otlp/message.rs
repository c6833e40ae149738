//! A scrape as a message of OTLP: the same families, labels and numbers.
//!
//! Here: the reading of our own OpenMetrics text, and what each kind becomes. Not here: when it is sent and where to
//! (`metrics.rs`).
//!
//! Names follow the rules by which OpenTelemetry and Prometheus are translated into each other, so that what a collector
//! hands on to a Prometheus has the names of `/metrics`: counters lose `_total`, which comes back there, and an info is a
//! gauge of 1 with `_info`.

use std::time::SystemTime;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum,
};
use opentelemetry_proto::tonic::resource::v1::Resource;

/// When counting began, and when this was read; nanoseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    begun: u64,
    read: u64,
}

impl Times {
    pub(super) fn since(begun: SystemTime) -> Self {
        Self {
            begun: nanoseconds(begun),
            read: nanoseconds(SystemTime::now()),
        }
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// What a scrape would read, for a collector.
///
/// - `text`: OpenMetrics text of ours; its labels hold no quotation mark, comma or brace.
pub(super) fn message(text: &str, resource: Resource, times: Times) -> ExportMetricsServiceRequest {
    let metrics = families(text)
        .into_iter()
        .filter_map(|family| family.metric(times))
        .collect();
    let scope = ScopeMetrics {
        scope: Some(InstrumentationScope {
            name: super::SERVICE.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        }),
        metrics,
        ..ScopeMetrics::default()
    };
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(resource),
            scope_metrics: vec![scope],
            ..ResourceMetrics::default()
        }],
    }
}

/// The samples of one name.
#[derive(Debug)]
struct Family<'t> {
    name: &'t str,
    help: &'t str,
    kind: &'t str,
    samples: Vec<Sample<'t>>,
}

#[derive(Debug)]
struct Sample<'t> {
    /// Behind the family's name, such as `_total`.
    suffix: &'t str,
    labels: Vec<(&'t str, &'t str)>,
    value: &'t str,
}

fn families(text: &str) -> Vec<Family<'_>> {
    let mut families: Vec<Family<'_>> = Vec::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            families.push(Family {
                name,
                help,
                kind: "",
                samples: Vec::new(),
            });
        } else if let Some((_, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            if let Some(family) = families.last_mut() {
                family.kind = kind;
            }
        } else if let Some(family) = families.last_mut()
            && let Some(sample) = Sample::read(line, family.name)
        {
            family.samples.push(sample);
        }
    }
    families
}

impl<'t> Sample<'t> {
    fn read(line: &'t str, family: &str) -> Option<Self> {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let label = |label: &'t str| {
            let (key, value) = label.split_once('=')?;
            Some((key, value.trim_matches('"')))
        };
        Some(Self {
            suffix: name.strip_prefix(family)?,
            labels: labels
                .trim_end_matches('}')
                .split(',')
                .filter_map(label)
                .collect(),
            value,
        })
    }

    fn number(&self) -> Option<Number> {
        let whole = self.value.parse().ok().map(Number::AsInt);
        whole.or_else(|| self.value.parse().ok().map(Number::AsDouble))
    }
}

impl Family<'_> {
    /// `None`: there is no number in it yet, or it is of a kind that we have none of.
    fn metric(&self, times: Times) -> Option<Metric> {
        let cumulative = AggregationTemporality::Cumulative as i32;
        let (suffix, data) = match self.kind {
            "counter" => {
                let data_points = self.points("_total", times);
                let sum = Sum {
                    data_points,
                    aggregation_temporality: cumulative,
                    is_monotonic: true,
                };
                ("", Data::Sum(sum))
            }
            "gauge" => {
                let data_points = self.points("", times);
                ("", Data::Gauge(Gauge { data_points }))
            }
            "info" => {
                let data_points = self.points("_info", times);
                ("_info", Data::Gauge(Gauge { data_points }))
            }
            "histogram" => {
                let histogram = Histogram {
                    data_points: self.histograms(times),
                    aggregation_temporality: cumulative,
                };
                ("", Data::Histogram(histogram))
            }
            _ => return None,
        };
        let unit = match self.name.rsplit_once('_') {
            Some((_, "seconds")) => "s",
            Some((_, "bytes")) => "By",
            Some(_) | None => "",
        };
        (!self.samples.is_empty()).then(|| Metric {
            name: format!("{}{suffix}", self.name),
            description: self.help.to_owned(),
            unit: unit.to_owned(),
            data: Some(data),
            ..Metric::default()
        })
    }

    fn points(&self, suffix: &str, times: Times) -> Vec<NumberDataPoint> {
        let samples = self.samples.iter().filter(|sample| sample.suffix == suffix);
        samples
            .map(|sample| NumberDataPoint {
                attributes: attributes(&sample.labels),
                start_time_unix_nano: times.begun,
                time_unix_nano: times.read,
                value: sample.number(),
                ..NumberDataPoint::default()
            })
            .collect()
    }

    fn histograms(&self, times: Times) -> Vec<HistogramDataPoint> {
        let mut points: Vec<(Vec<(&str, &str)>, HistogramDataPoint)> = Vec::new();
        for sample in &self.samples {
            let (bounds, labels): (Vec<_>, Vec<_>) =
                sample.labels.iter().copied().partition(|(key, _)| *key == "le");
            let found = points.iter().position(|(of, _)| *of == labels);
            let found = found.unwrap_or_else(|| {
                let point = HistogramDataPoint {
                    attributes: attributes(&labels),
                    start_time_unix_nano: times.begun,
                    time_unix_nano: times.read,
                    ..HistogramDataPoint::default()
                };
                points.push((labels, point));
                points.len() - 1
            });
            let Some((_, point)) = points.get_mut(found) else {
                continue;
            };
            match (sample.suffix, bounds.first()) {
                ("_count", _) => point.count = sample.value.parse().unwrap_or_default(),
                ("_sum", _) => point.sum = sample.value.parse().ok(),
                ("_bucket", Some((_, bound))) => {
                    // Theirs are of each bucket alone, ours of it and those before.
                    let before: u64 = point.bucket_counts.iter().sum();
                    let until: u64 = sample.value.parse().unwrap_or_default();
                    point.bucket_counts.push(until.saturating_sub(before));
                    if let Ok(bound) = bound.parse::<f64>()
                        && bound.is_finite()
                    {
                        point.explicit_bounds.push(bound);
                    }
                }
                _ => {}
            }
        }
        points.into_iter().map(|(_, point)| point).collect()
    }
}

fn attributes(labels: &[(&str, &str)]) -> Vec<KeyValue> {
    let attribute = |(key, value): &(&str, &str)| KeyValue {
        key: (*key).to_owned(),
        value: Some(AnyValue {
            value: Some(Value::StringValue((*value).to_owned())),
        }),
        ..KeyValue::default()
    };
    labels.iter().map(attribute).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::metrics::{Class, Metrics, Seen};

    fn told(metrics: &Metrics) -> Vec<Metric> {
        let begun = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        let message = message(&metrics.text(), Resource::default(), Times::since(begun));
        message.resource_metrics[0].scope_metrics[0].metrics.clone()
    }

    fn data(metrics: &[Metric], name: &str) -> Data {
        let found = metrics.iter().find(|metric| metric.name == name);
        found
            .unwrap_or_else(|| panic!("there is no {name}"))
            .data
            .clone()
            .unwrap()
    }

    #[test]
    fn a_collector_is_sent_the_numbers_of_a_scrape_with_their_labels() {
        let metrics = Metrics::default();
        for millis in [3, 3, 40] {
            metrics.callback(&Seen {
                tunnel: "http2_v1",
                class: Class::Write,
                verdict: "allow",
                code: "",
                status: 201,
                took: Duration::from_millis(millis),
                answer_bytes: 100,
                broken: false,
            });
        }
        metrics.sessions([("ready", 2)]);

        let told = told(&metrics);

        let Data::Sum(callbacks) = data(&told, "paperclip_bridge_callbacks") else {
            panic!("no sum")
        };
        assert!(callbacks.is_monotonic);
        assert_eq!(
            callbacks.aggregation_temporality,
            AggregationTemporality::Cumulative as i32
        );
        let point = &callbacks.data_points[0];
        assert_eq!(point.value, Some(Number::AsInt(3)));
        assert_eq!(point.start_time_unix_nano, 1_000_000_000);
        assert!(point.time_unix_nano > point.start_time_unix_nano);
        let labels = [
            ("tunnel", "http2_v1"),
            ("class", "write"),
            ("verdict", "allow"),
            ("status", "2xx"),
        ];
        assert_eq!(point.attributes, attributes(&labels));
        let Data::Histogram(seconds) = data(&told, "paperclip_bridge_callback_seconds") else {
            panic!("no histogram")
        };
        let point = &seconds.data_points[0];
        assert_eq!(point.count, 3);
        assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
        assert_eq!(point.bucket_counts.iter().sum::<u64>(), 3);
        let at = |bound: f64| {
            point
                .explicit_bounds
                .iter()
                .position(|found| *found == bound)
                .unwrap()
        };
        assert_eq!(
            (point.bucket_counts[at(0.005)], point.bucket_counts[at(0.05)]),
            (2, 1)
        );
        assert!(point.sum.unwrap() > 0.045);
        let Data::Gauge(sessions) = data(&told, "paperclip_bridge_sessions") else {
            panic!("no gauge")
        };
        assert_eq!(sessions.data_points[0].value, Some(Number::AsInt(2)));
        let Data::Gauge(build) = data(&told, "paperclip_bridge_build_info") else {
            panic!("no info")
        };
        assert_eq!(
            build.data_points[0].attributes,
            attributes(&[("version", env!("CARGO_PKG_VERSION"))])
        );
        let unit = |name: &str| {
            told.iter()
                .find(|metric| metric.name == name)
                .unwrap()
                .unit
                .clone()
        };
        assert_eq!(
            (
                unit("paperclip_bridge_answer_bytes").as_str(),
                unit("process_cpu_seconds").as_str()
            ),
            ("By", "s")
        );
    }

    #[test]
    fn every_name_of_a_scrape_is_sent() {
        let metrics = Metrics::default();
        let text = metrics.text();
        let names = text.lines().filter_map(|line| {
            let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
            let counted = text
                .lines()
                .any(|line| !line.starts_with('#') && line.starts_with(name));
            counted.then(|| match kind {
                "info" => format!("{name}_info"),
                _ => name.to_owned(),
            })
        });

        let told = told(&metrics);

        for name in names {
            assert!(
                told.iter().any(|metric| metric.name == name),
                "{name} is not sent"
            );
        }
    }
}
