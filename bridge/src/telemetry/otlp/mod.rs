//! Telemetry by OTLP: one span for each callback, joined to the agent's trace and handed on to the upstream; and metrics.
//!
//! Here: [`Tracing`], which the standard `OTEL_*` variables set up, and `CallSpan`, one callback's span. A span says
//! method, route template, status, session and verdict: never a path, a query, a token or a body. Not here: how a
//! collector is spoken to (`client.rs`), what a `traceparent` is (`parent.rs`), metrics (`metrics.rs`). Where nobody asks for traces, none of
//! this is made, and a callback's headers pass as they are.

mod client;
mod parent;
mod metrics;
mod message;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method};
use opentelemetry::trace::{
    Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};
use uuid::Uuid;

pub(crate) use metrics::Export;
use parent::{TRACEPARENT, TRACESTATE};

/// The last spans get so long to be sent when the daemon ends.
const FLUSHING: Duration = Duration::from_secs(3);
/// What traces are found by where nobody says otherwise.
const SERVICE: &str = "paperclip-bridge";
/// Where a collector may be named.
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];

/// Where spans go.
#[derive(Debug)]
pub struct Tracing {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// The span of one callback. Ended when dropped.
#[derive(Debug)]
pub(crate) struct CallSpan(Span);

/// What the span of a callback says at its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallEnd<'a> {
    pub(crate) session: Uuid,
    pub(crate) request_id: Uuid,
    pub(crate) method: &'a Method,
    /// The template that matched; empty where none did.
    pub(crate) route: &'a str,
    pub(crate) verdict: &'static str,
    /// Of one of our own answers, else empty.
    pub(crate) code: &'static str,
    /// 0 where the caller had gone before one was known.
    pub(crate) status: u16,
    /// Why it did not end whole.
    pub(crate) broken: &'static str,
}

impl Tracing {
    /// Sets traces up as the environment says; `None` where nobody asks for them.
    ///
    /// - `asked`: what the configuration says; without a word, a collector named in the environment asks.
    ///
    /// # Errors
    ///
    /// One line: what cannot be used.
    pub(crate) fn start(
        asked: Option<bool>,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<Arc<Self>>, String> {
        if !is_asked(asked, environment) {
            return Ok(None);
        }
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_http_client(client::Collector::new("traces", client::DEADLINE))
            .build()
            .map_err(|error| format!("traces cannot be sent as the OTEL_* variables say: {error}"))?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource(environment))
            .build();
        let tracer = provider.tracer(SERVICE);
        Ok(Some(Arc::new(Self { provider, tracer })))
    }

    /// Begins the span of a callback: in its agent's trace, where the headers name one, else in a trace of its own. From
    /// then on the headers name this span.
    pub(crate) fn callback(&self, headers: &mut HeaderMap) -> CallSpan {
        let parent = parent::read(headers);
        headers.remove(TRACEPARENT);
        let around = match parent {
            Some(parent) => Context::new().with_remote_span_context(parent),
            None => {
                headers.remove(TRACESTATE);
                Context::new()
            }
        };
        let span = self
            .tracer
            .span_builder("callback")
            .with_kind(SpanKind::Server)
            .start_with_context(&self.tracer, &around);
        if let Ok(value) = HeaderValue::from_str(&parent::write(span.span_context())) {
            headers.insert(TRACEPARENT, value);
        }
        CallSpan(span)
    }

    /// Sends what is left and ends; blocks for at most a few seconds.
    pub(crate) fn end(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FLUSHING) {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

/// Whether traces are wanted at all.
fn is_asked(asked: Option<bool>, environment: &dyn Fn(&str) -> Option<String>) -> bool {
    if is(environment, "OTEL_SDK_DISABLED", "true") || is(environment, "OTEL_TRACES_EXPORTER", "none") {
        return false;
    }
    let named = || {
        ENDPOINTS
            .iter()
            .any(|name| environment(name).is_some_and(|found| !found.is_empty()))
    };
    asked.unwrap_or_else(named)
}

fn is(environment: &dyn Fn(&str) -> Option<String>, name: &str, value: &str) -> bool {
    environment(name).is_some_and(|found| found.trim().eq_ignore_ascii_case(value))
}

/// Whose telemetry it is, as the environment says.
fn resource(environment: &dyn Fn(&str) -> Option<String>) -> Resource {
    let mut resource = Resource::builder();
    let named = environment("OTEL_SERVICE_NAME").is_some_and(|name| !name.is_empty())
        || environment("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|told| told.contains("service.name="));
    if !named {
        resource = resource.with_service_name(SERVICE);
    }
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    resource.with_attribute(version).build()
}

impl CallSpan {
    /// Says what became of the callback.
    pub(crate) fn ended(mut self, end: CallEnd<'_>) {
        let span = &mut self.0;
        if !span.is_recording() {
            return;
        }
        let method = end.method.as_str().to_owned();
        if end.route.is_empty() {
            span.update_name(method.clone());
        } else {
            span.update_name(format!("{method} {}", end.route));
            span.set_attribute(KeyValue::new("http.route", end.route.to_owned()));
        }
        span.set_attribute(KeyValue::new("http.request.method", method));
        let id = |id: Uuid| id.hyphenated().to_string();
        span.set_attribute(KeyValue::new("paperclip.session", id(end.session)));
        span.set_attribute(KeyValue::new("paperclip.request_id", id(end.request_id)));
        span.set_attribute(KeyValue::new("paperclip.verdict", end.verdict));
        if end.status != 0 {
            span.set_attribute(KeyValue::new("http.response.status_code", i64::from(end.status)));
        }
        let what = if end.broken.is_empty() {
            end.code
        } else {
            end.broken
        };
        if !what.is_empty() {
            span.set_attribute(KeyValue::new("error.type", what));
        }
        if end.status >= 500 || !end.broken.is_empty() {
            span.set_status(Status::error(what));
        }
    }
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
    fn traces_are_off_until_somebody_names_a_collector_or_asks() {
        const NAMED: &[(&str, &str)] = &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")];
        const DISABLED: &[(&str, &str)] = &[NAMED[0], ("OTEL_SDK_DISABLED", "TRUE")];
        const NONE: &[(&str, &str)] = &[NAMED[0], ("OTEL_TRACES_EXPORTER", "none")];

        assert!(!is_asked(None, &told(&[])));
        assert!(is_asked(None, &told(NAMED)));
        assert!(is_asked(Some(true), &told(&[])));
        assert!(!is_asked(Some(false), &told(NAMED)));
        assert!(!is_asked(Some(true), &told(DISABLED)));
        assert!(!is_asked(Some(true), &told(NONE)));
    }
}
