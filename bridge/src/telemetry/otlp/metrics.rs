//! Metrics by OTLP: what a scrape of `/metrics` reads, sent to a collector so often.
//!
//! Here: [`Export`], which the standard `OTEL_*` variables set up. Where nobody asks for it there is none, and so no timer.
//! Not here: what is counted (`telemetry/metrics`), the message (`message.rs`).

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, header};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use prost::Message as _;
use tokio_util::sync::CancellationToken;

use super::client::Collector;
use super::message::{Times, message};
use super::{FLUSHING, is, resource};

/// Between two messages, unless `OTEL_METRIC_EXPORT_INTERVAL` says otherwise.
const INTERVAL: Duration = Duration::from_secs(60);
/// Asks for metrics by naming where they go.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT";

/// Where metrics go, and how often.
#[derive(Debug)]
pub(crate) struct Export {
    collector: Collector,
    /// Where to, with what the collector wants to see.
    head: http::request::Parts,
    interval: Duration,
    resource: Resource,
    begun: SystemTime,
}

impl Export {
    /// Sets it up as the environment says; `None` where nobody asks for it.
    ///
    /// - `asked`: what the configuration says of OTLP; without a word, and with `true`, the environment decides.
    ///
    /// # Errors
    ///
    /// One line: what cannot be used.
    pub(crate) fn start(
        asked: Option<bool>,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, String> {
        if asked == Some(false) || !is_asked(environment) {
            return Ok(None);
        }
        let told = |name: &str| environment(name).filter(|value| !value.trim().is_empty());
        let of_either = |name: &str| {
            let own = format!("OTEL_EXPORTER_OTLP_METRICS_{name}");
            told(&own).or_else(|| told(&format!("OTEL_EXPORTER_OTLP_{name}")))
        };
        if of_either("COMPRESSION").is_some_and(|word| word != "none") {
            return Err(
                "OTEL_EXPORTER_OTLP_COMPRESSION: metrics are sent as they are; leave it out".to_owned(),
            );
        }
        let milliseconds = |name: &str, text: Option<String>, otherwise| match text {
            None => Ok(otherwise),
            Some(text) => match text.trim().parse() {
                Ok(0) | Err(_) => Err(format!("{name}: {text:?} is no number of milliseconds")),
                Ok(number) => Ok(Duration::from_millis(number)),
            },
        };
        let interval = milliseconds(
            "OTEL_METRIC_EXPORT_INTERVAL",
            told("OTEL_METRIC_EXPORT_INTERVAL"),
            INTERVAL,
        )?;
        let deadline = milliseconds(
            "OTEL_EXPORTER_OTLP_TIMEOUT",
            of_either("TIMEOUT"),
            super::client::DEADLINE,
        )?;
        let attributes = ResourceAttributesWithSchema::from(&resource(environment)).attributes;
        Ok(Some(Self {
            collector: Collector::new("metrics", deadline),
            head: head(&told)?,
            interval,
            resource: Resource {
                attributes: attributes.0,
                ..Resource::default()
            },
            begun: SystemTime::now(),
        }))
    }

    /// Sends what is counted until `stop`, and once more then.
    ///
    /// - `text`: what a scrape would read; `None` where nothing is counted.
    ///
    /// A collector that is gone costs an attempt each time and is complained of once; nothing is kept for it: the next
    /// message holds the same counters.
    pub(crate) async fn run(self, text: impl Fn() -> Option<String>, stop: CancellationToken) {
        while tokio::time::timeout(self.interval, stop.cancelled())
            .await
            .is_err()
        {
            self.send(&text).await;
        }
        // A collector that does not answer must not hold up the end.
        let _sent = tokio::time::timeout(FLUSHING, self.send(&text)).await;
    }

    async fn send(&self, text: &impl Fn() -> Option<String>) {
        let Some(text) = text() else { return };
        let message = message(&text, self.resource.clone(), Times::since(self.begun));
        let request = Request::from_parts(self.head.clone(), Bytes::from(message.encode_to_vec()));
        // It has complained itself.
        let _answered = self.collector.send(request).await;
    }
}

/// Whether metrics are wanted: a collector that is named for everything is for traces, unless the exporter is named, too.
fn is_asked(environment: &dyn Fn(&str) -> Option<String>) -> bool {
    if is(environment, "OTEL_SDK_DISABLED", "true") {
        return false;
    }
    match environment("OTEL_METRICS_EXPORTER").filter(|named| !named.trim().is_empty()) {
        Some(named) => named
            .split(',')
            .any(|named| named.trim().eq_ignore_ascii_case("otlp")),
        None => environment(ENDPOINT).is_some_and(|named| !named.is_empty()),
    }
}

fn head(told: &dyn Fn(&str) -> Option<String>) -> Result<http::request::Parts, String> {
    let general = || {
        let general = told("OTEL_EXPORTER_OTLP_ENDPOINT");
        let general = general.as_deref().unwrap_or("http://localhost:4318");
        format!("{}/v1/metrics", general.trim().trim_end_matches('/'))
    };
    let url = told(ENDPOINT).unwrap_or_else(general);
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(url.trim())
        .header(header::CONTENT_TYPE, "application/x-protobuf");
    let named = ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_METRICS_HEADERS"];
    if let Some(headers) = request.headers_mut() {
        for name in named {
            let Some(text) = told(name) else { continue };
            for (key, value) in pairs(&text).ok_or_else(|| unfit(name))? {
                headers.insert(key, value);
            }
        }
    }
    let request = request.body(()).map_err(|_| {
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT is no URL such as http://127.0.0.1:4318"
            .to_owned()
    })?;
    Ok(request.into_parts().0)
}

/// A value may be a key of the collector's: it is not repeated.
fn unfit(name: &str) -> String {
    format!("{name}: give headers as NAME=VALUE, with commas between them")
}

/// `NAME=VALUE,…`, the values percent-encoded.
fn pairs(text: &str) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        let mut value = HeaderValue::from_bytes(&decoded(value.trim())?).ok()?;
        value.set_sensitive(true);
        Some((name.trim().parse().ok()?, value))
    };
    text.split(',')
        .filter(|one| !one.trim().is_empty())
        .map(pair)
        .collect()
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        decoded.push(u8::try_from(high * 16 + low).ok()?);
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(set: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        move |name| {
            let found = set.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        }
    }

    #[test]
    fn metrics_are_off_until_their_exporter_or_their_collector_is_named() {
        const GENERAL: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318");
        const OWN: (&str, &str) = (ENDPOINT, "http://c:4318/m");

        assert!(!is_asked(&told(&[])));
        assert!(!is_asked(&told(&[GENERAL])));
        assert!(is_asked(&told(&[OWN])));
        assert!(is_asked(&told(&[("OTEL_METRICS_EXPORTER", "prometheus, OTLP")])));
        assert!(!is_asked(&told(&[OWN, ("OTEL_METRICS_EXPORTER", "none")])));
        assert!(!is_asked(&told(&[OWN, ("OTEL_SDK_DISABLED", "True")])));
    }

    #[test]
    fn a_collector_is_found_by_the_standard_variables() {
        let at = |set| head(&told(set)).map(|head| (head.uri.to_string(), head.headers));

        let (url, _) = at(&[]).unwrap();
        assert_eq!(url, "http://localhost:4318/v1/metrics");
        let (url, headers) = at(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/base/"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=general, x-more=a%2Cb"),
            ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "x-key=own"),
        ])
        .unwrap();
        assert_eq!(url, "http://c:4318/base/v1/metrics");
        assert_eq!(
            (&headers["x-key"], &headers["x-more"]),
            (&"own".parse().unwrap(), &"a,b".parse().unwrap())
        );
        let (url, _) = at(&[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://c/m")]).unwrap();
        assert_eq!(url, "http://c/m");
        for wrong in ["no pair", "na me=1", "x=%zz", "x=%4"] {
            assert!(pairs(wrong).is_none(), "{wrong}");
        }
        assert!(at(&[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "not a url")]).is_err());
    }

    #[tokio::test]
    async fn a_number_that_is_none_is_told_by_its_variable() {
        const ASKED: (&str, &str) = ("OTEL_METRICS_EXPORTER", "otlp");

        let interval =
            Export::start(None, &told(&[ASKED, ("OTEL_METRIC_EXPORT_INTERVAL", "1m")])).unwrap_err();
        let packed =
            Export::start(None, &told(&[ASKED, ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")])).unwrap_err();

        assert!(interval.contains("OTEL_METRIC_EXPORT_INTERVAL"), "{interval}");
        assert!(packed.contains("OTEL_EXPORTER_OTLP_COMPRESSION"), "{packed}");
        assert!(Export::start(Some(false), &told(&[ASKED])).unwrap().is_none());
        assert!(Export::start(Some(true), &told(&[])).unwrap().is_none());
    }
}
