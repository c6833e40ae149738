//! How an event looks as a line: pretty for people, or JSON for machines.
//!
//! Here: the line of an event, and the one that admits that others are missing. Nothing that a caller sends starts a new
//! line or drives a terminal. Not here: which events are written (`mod.rs`), the escaping itself ([`super::escape`]).

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Level};

use super::escape::{Escaped, escape_into};
use super::{Format, is_ours};

/// Appends one event as one line. Writing into a `String` cannot fail, hence the dropped results.
pub(super) fn write_line(line: &mut String, format: Format, now: jiff::Timestamp, event: &Event<'_>) {
    let metadata = event.metadata();
    let library = Some(metadata.target()).filter(|module| !is_ours(module));
    match format {
        Format::Json => {
            let level = metadata.level().as_str();
            let _ = write!(line, r#"{{"timestamp":"{now:.6}","level":"{level}""#);
            event.record(&mut JsonFields { line });
            if let Some(module) = library {
                line.push_str(r#","module":""#);
                escape_into(line, module);
                line.push('"');
            }
            line.push_str("}\n");
        }
        Format::Pretty { colour } => {
            let level = PrettyLevel {
                level: *metadata.level(),
                colour,
            };
            let _ = write!(line, "{now:.3} {level}");
            event.record(&mut PrettyFields { line });
            if let Some(module) = library {
                let _ = write!(line, " module={module}");
            }
            line.push('\n');
        }
    }
}

/// The line that admits that others are missing.
pub(super) fn loss_line(format: Format, dropped: u64) -> String {
    let now = jiff::Timestamp::now();
    let message = "log events were dropped because standard error was not read";
    match format {
        Format::Json => format!(
            "{{\"timestamp\":\"{now:.6}\",\"level\":\"WARN\",\"message\":\"{message}\",\"dropped\":{dropped}}}\n"
        ),
        Format::Pretty { .. } => format!("{now:.3}  WARN {message} dropped={dropped}\n"),
    }
}

/// An error and its causes, `: ` between them.
struct Chain<'a>(&'a (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

struct JsonFields<'a> {
    line: &'a mut String,
}

impl JsonFields<'_> {
    fn key(&mut self, field: &Field) {
        self.line.push_str(",\"");
        // Field names come from our source and macros, yet `"quoted names"` are possible there.
        escape_into(self.line, field.name());
        self.line.push_str("\":");
    }

    fn text(&mut self, field: &Field, text: impl fmt::Display) {
        self.key(field);
        self.line.push('"');
        let _ = write!(Escaped(self.line), "{text}");
        self.line.push('"');
    }
}

impl Visit for JsonFields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.key(field);
        self.line.push('"');
        escape_into(self.line, value);
        self.line.push('"');
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.key(field);
        let _ = write!(self.line, "{value}");
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.key(field);
        let _ = write!(self.line, "{value}");
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.key(field);
        self.line.push_str(if value { "true" } else { "false" });
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.key(field);
        // JSON has no NaN and no infinity.
        let _ = if value.is_finite() {
            write!(self.line, "{value}")
        } else {
            write!(self.line, "null")
        };
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.text(field, Chain(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, format_args!("{value:?}"));
    }
}

struct PrettyFields<'a> {
    line: &'a mut String,
}

impl PrettyFields<'_> {
    fn text(&mut self, field: &Field, text: impl fmt::Display) {
        self.line.push(' ');
        if field.name() == "message" {
            let _ = write!(Escaped(self.line), "{text}");
            return;
        }
        self.line.push_str(field.name());
        self.line.push('=');
        let start = self.line.len();
        let _ = write!(Escaped(self.line), "{text}");
        let value = self.line.get(start..).unwrap_or_default();
        if value.is_empty() || value.contains([' ', '=', '"']) {
            self.line.insert(start, '"');
            self.line.push('"');
        }
    }
}

impl Visit for PrettyFields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.text(field, Chain(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, format_args!("{value:?}"));
    }
}

struct PrettyLevel {
    level: Level,
    colour: bool,
}

impl fmt::Display for PrettyLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.colour {
            return write!(f, "{:>5}", self.level.as_str());
        }
        let code = match self.level {
            Level::ERROR => 31,
            Level::WARN => 33,
            Level::INFO => 32,
            Level::DEBUG => 34,
            Level::TRACE => 35,
        };
        write!(f, "\x1b[{code}m{:>5}\x1b[0m", self.level.as_str())
    }
}
