//! The log as it is asked for: by the options of every command, and for `serve` by the configuration as well.
//!
//! Here: [`LogOptions`], and the one place that makes the log's settings of a form and a level. Not here: the log itself
//! (`telemetry/`), in which order options, environment and file count (`config/`).

use std::io::IsTerminal as _;

use clap::{Args, ValueEnum};
use serde_json::json;
use tracing::level_filters::LevelFilter;

use crate::config::model::{self, TelemetryConfig};
use crate::config::{self, Flag};
use crate::telemetry;

#[derive(Args, Clone, Copy, Debug)]
pub(super) struct LogOptions {
    /// Form of the log on standard error; auto: pretty on a terminal, else JSON [default: auto; serve: the
    /// configuration's]
    #[arg(long, global = true, help_heading = "Log", value_enum, value_name = "FORM")]
    log: Option<LogForm>,
    /// Least level that is logged [default: info; demo and probe: error; serve: the configuration's]
    #[arg(long, global = true, help_heading = "Log", value_enum, value_name = "LEVEL")]
    log_level: Option<LogLevel>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogForm {
    Auto,
    Pretty,
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogOptions {
    /// The log of this command line.
    ///
    /// - `quiet`: unless the options say otherwise only errors are logged.
    pub(super) fn settings(self, quiet: bool) -> telemetry::Settings {
        let form = match self.log {
            None | Some(LogForm::Auto) => model::LogForm::Auto,
            Some(LogForm::Pretty) => model::LogForm::Pretty,
            Some(LogForm::Json) => model::LogForm::Json,
        };
        let level = match self.log_level {
            None if quiet => model::LogLevel::Error,
            Some(LogLevel::Error) => model::LogLevel::Error,
            Some(LogLevel::Warn) => model::LogLevel::Warn,
            Some(LogLevel::Info) | None => model::LogLevel::Info,
            Some(LogLevel::Debug) => model::LogLevel::Debug,
            Some(LogLevel::Trace) => model::LogLevel::Trace,
        };
        settings(form, level)
    }

    /// What of it stands for a key of the configuration.
    pub(super) fn flags(self) -> Vec<Flag> {
        let form = self.log.and_then(|form| {
            let value = json!(form.to_possible_value()?.get_name());
            Some(Flag {
                option: "--log",
                key: "telemetry.log",
                value,
            })
        });
        let level = self.log_level.and_then(|level| {
            let value = json!(level.to_possible_value()?.get_name());
            Some(Flag {
                option: "--log-level",
                key: "telemetry.level",
                value,
            })
        });
        form.into_iter().chain(level).collect()
    }
}

/// The log that a configuration asks for.
pub(super) fn configured(telemetry: &TelemetryConfig) -> telemetry::Settings {
    settings(telemetry.log, telemetry.level)
}

fn settings(form: model::LogForm, level: model::LogLevel) -> telemetry::Settings {
    let terminal = std::io::stderr().is_terminal();
    let pretty = telemetry::Format::Pretty {
        colour: terminal && !config::no_colour(),
    };
    let format = match form {
        model::LogForm::Auto if terminal => pretty,
        model::LogForm::Auto | model::LogForm::Json => telemetry::Format::Json,
        model::LogForm::Pretty => pretty,
    };
    let level = match level {
        model::LogLevel::Error => LevelFilter::ERROR,
        model::LogLevel::Warn => LevelFilter::WARN,
        model::LogLevel::Info => LevelFilter::INFO,
        model::LogLevel::Debug => LevelFilter::DEBUG,
        model::LogLevel::Trace => LevelFilter::TRACE,
    };
    telemetry::Settings { format, level }
}
