//! `[telemetry]`: logs, metrics and traces.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Logs, metrics and traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Form of the log on standard error; `auto`: pretty on a terminal, else JSON.
    pub log: LogForm,
    /// Least level that is logged.
    pub level: LogLevel,
    /// Count, and answer `/metrics` on the ops listener; without it nothing is counted and `/metrics` is 404.
    pub metrics: bool,
    /// Send traces by OTLP, as the standard `OTEL_*` variables say; absent: where `OTEL_EXPORTER_OTLP_ENDPOINT` or
    /// `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` names a collector; false: metrics are not sent either.
    pub otlp: Option<bool>,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum LogForm {
    /// Pretty on a terminal, else JSON.
    #[default]
    Auto,
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// Level of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum LogLevel {
    /// We are broken.
    Error,
    /// Odd, still working.
    Warn,
    /// A session or a decision.
    #[default]
    Info,
    /// A branch.
    Debug,
    /// Each frame.
    Trace,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            log: LogForm::default(),
            level: LogLevel::default(),
            metrics: true,
            otlp: None,
        }
    }
}
