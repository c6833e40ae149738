//! Events on standard error: one line each, pretty for people or JSON for machines.
//!
//! Here: which events are written, also while that is changed. In `line` how one looks, in [`output`] the writing itself, in
//! [`escape`] the escaping. Not here: what is worth an event (its own module says). Every callback costs one event, so a line
//! is built in a reused buffer and leaves in one write; spans are not tracked.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

mod line;
pub mod escape;
pub mod metrics;
pub mod otlp;
pub mod output;

use line::{loss_line, write_line};
use output::Output;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `TIME LEVEL message field=value`, for people.
    Pretty {
        /// Level in colour.
        colour: bool,
    },
    /// One flat JSON object a line: `timestamp`, `level`, `message`, then the event's own fields.
    Json,
}

/// What is written and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How a line looks.
    pub format: Format,
    /// Least level of this project's own events. Those of libraries are written from `WARN`, or all at `TRACE`.
    pub level: LevelFilter,
}

/// Writes events to standard error from now on; the first call in a process wins.
pub fn install(settings: Settings) {
    let settings = Arc::new(ArcSwap::from_pointee(settings));
    let lines = Lines {
        settings: Arc::clone(&settings),
        output: Output::stderr(),
    };
    // A second call means tests in one process: the first writer stays.
    if tracing::subscriber::set_global_default(tracing_subscriber::registry().with(lines)).is_ok() {
        let _first = INSTALLED.set(settings);
    }
}

/// From the next event on it is these. Does nothing before [`install`].
pub fn follow(settings: Settings) {
    if let Some(installed) = INSTALLED.get() {
        change(installed, settings);
    }
}

/// What the writer of this process goes by at the moment.
static INSTALLED: OnceLock<Arc<ArcSwap<Settings>>> = OnceLock::new();

fn change(live: &ArcSwap<Settings>, settings: Settings) {
    if **live.load() != settings {
        live.store(Arc::new(settings));
        // Each place that raises events keeps whether anybody wants them.
        tracing::callsite::rebuild_interest_cache();
    }
}

/// The layer behind [`install`].
#[derive(Debug)]
struct Lines {
    /// As they are at the moment.
    settings: Arc<ArcSwap<Settings>>,
    output: Output,
}

/// The crates whose events are ours; everything else is a library.
const OURS: [&str; 5] = ["bridge", "paperclip_bridge", "policy", "runners", "tunnel"];

impl Lines {
    fn least_level(&self, module: &str) -> LevelFilter {
        let level = self.settings.load().level;
        if is_ours(module) || level == LevelFilter::TRACE {
            level
        } else {
            level.min(LevelFilter::WARN)
        }
    }
}

fn is_ours(module: &str) -> bool {
    let of = |krate| {
        module
            .strip_prefix(krate)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    OURS.into_iter().any(of)
}

impl<S: Subscriber> Layer<S> for Lines {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled_at(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.enabled_at(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.settings.load().level)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let format = self.settings.load().format;
        with_buffer(|line| {
            write_line(line, format, jiff::Timestamp::now(), event);
            self.output
                .write(line.as_bytes(), |dropped| loss_line(format, dropped));
        });
    }
}

impl Lines {
    fn enabled_at(&self, metadata: &Metadata<'_>) -> bool {
        // Spans are not shown, so nobody pays for them.
        metadata.is_event() && self.least_level(metadata.target()) >= *metadata.level()
    }
}

/// Lines longer than this give their buffer back.
const KEEP_BYTES: usize = 16 * 1024;

/// Lends this thread's empty buffer; an event raised while another is being written gets a fresh one.
fn with_buffer(use_it: impl FnOnce(&mut String)) {
    thread_local! {
        static BUFFER: RefCell<String> = const { RefCell::new(String::new()) };
    }
    BUFFER.with(|buffer| match buffer.try_borrow_mut() {
        Ok(mut line) => {
            line.clear();
            line.shrink_to(KEEP_BYTES);
            use_it(&mut line);
        }
        Err(_) => use_it(&mut String::new()),
    });
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_json_line_is_flat_and_holds_what_was_said() {
        let line = &lines(Format::Json, LevelFilter::INFO, || {
            tracing::info!(
                status = 200_u64,
                cached = false,
                delta = -3,
                path = "/api/x",
                "callback answered"
            );
        })[0];

        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(event["level"], "INFO");
        assert_eq!(event["message"], "callback answered");
        assert_eq!(
            (
                &event["status"],
                &event["cached"],
                &event["delta"],
                &event["path"]
            ),
            (&200.into(), &false.into(), &(-3).into(), &"/api/x".into())
        );
        let timestamp = event["timestamp"].as_str().unwrap();
        assert!(
            timestamp.ends_with('Z') && timestamp.len() == "2026-01-01T00:00:00.000000Z".len(),
            "{timestamp}"
        );
        assert!(event.get("module").is_none());
    }

    #[test]
    fn nothing_a_caller_sends_can_start_a_new_line_or_drive_the_terminal() {
        let hostile = "a\r\nERROR forged\u{1b}[2J\u{9b}1m\u{2028}\u{202e}\u{7f}\t\"\\\0end";
        for format in [Format::Json, Format::Pretty { colour: false }] {
            let lines = lines(format, LevelFilter::INFO, || {
                tracing::info!(path = hostile, debug = ?hostile, shown = %hostile, "{hostile}");
            });

            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(
                !lines[0].contains(|c: char| c.is_control() || "\u{2028}\u{202e}".contains(c)),
                "{lines:?}"
            );
            assert!(lines[0].contains("forged") && lines[0].contains("end"));
        }
        let line = &lines(Format::Json, LevelFilter::INFO, || {
            tracing::info!(path = hostile, "x")
        })[0];
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(event["path"], hostile);
    }

    #[test]
    fn an_error_is_written_with_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read the list")]
        struct Outer(#[source] fmt::Error);
        let error = Outer(fmt::Error);
        let line = &lines(Format::Json, LevelFilter::INFO, || {
            tracing::warn!(error = &error as &(dyn std::error::Error + 'static), "x");
        })[0];

        assert!(
            line.contains(&format!("cannot read the list: {}", fmt::Error)),
            "{line}"
        );
    }

    #[test]
    fn libraries_are_heard_from_warnings_only_unless_all_is_traced() {
        let speak = || {
            tracing::debug!("ours");
            tracing::info!(target: "hyper::proto", "theirs, info");
            tracing::warn!(target: "russh::client", "theirs, warning");
        };

        let debug = lines(Format::Json, LevelFilter::DEBUG, speak).concat();
        let error = lines(Format::Json, LevelFilter::ERROR, speak).concat();
        let trace = lines(Format::Json, LevelFilter::TRACE, speak).concat();

        assert!(
            debug.contains("ours") && debug.contains("warning") && !debug.contains("theirs, info"),
            "{debug}"
        );
        assert!(debug.contains(r#""module":"russh::client""#), "{debug}");
        assert_eq!(error, "");
        assert!(trace.contains("theirs, info"), "{trace}");
    }

    #[test]
    fn numbers_that_json_has_no_word_for_become_null() {
        let line = &lines(Format::Json, LevelFilter::INFO, || {
            tracing::info!(ratio = f64::NAN, "x")
        })[0];

        assert!(line.contains(r#""ratio":null"#), "{line}");
    }

    /// What `speak` writes, line by line.
    fn lines(format: Format, level: LevelFilter, speak: impl FnOnce()) -> Vec<String> {
        let mut file = tempfile::tempfile().unwrap();
        let output = Output::file(file.try_clone().unwrap());
        let layer = Lines {
            settings: Arc::new(ArcSwap::from_pointee(Settings { format, level })),
            output,
        };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), speak);
        let mut text = String::new();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
        text.split_terminator('\n').map(str::to_owned).collect()
    }
}
