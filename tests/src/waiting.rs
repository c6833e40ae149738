//! Waiting for a condition, and saying that a test cannot run here.
//!
//! Here: the only two ways in which a test waits, and how one is skipped. Not here: what is waited for.

use std::future::Future;
use std::io::Write;
use std::time::{Duration, Instant};

/// How often [`eventually`] looks.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Awaits `work`, and panics with `what` once `limit` has passed.
pub async fn within<T>(limit: Duration, what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, work).await {
        Ok(value) => value,
        Err(_) => panic!("not within {limit:?}: {what}"),
    }
}

/// Looks until `condition` gives a value; panics with `what` once `limit` has passed.
pub async fn eventually<T>(limit: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// As [`eventually`], for code without a runtime.
pub fn eventually_blocking<T>(limit: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Whether what a test needs is here. Where it is not, says so on standard output, past the test runner's capture.
///
/// # Panics
///
/// If `PAPERCLIP_BRIDGE_TESTS_MUST_RUN=1` is set: there, a skipped test is a failed one.
pub fn can_run(need: Result<(), String>) -> bool {
    let Err(reason) = need else { return true };
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test").to_owned();
    // `print!` would be captured and shown only for a test that fails.
    let mut stdout = std::io::stdout().lock();
    let said = writeln!(stdout, "SKIPPED: {test}: {reason}").and_then(|()| stdout.flush());
    said.expect("standard output takes the reason of a skipped test");
    drop(stdout);
    let must = std::env::var("PAPERCLIP_BRIDGE_TESTS_MUST_RUN").is_ok_and(|value| value == "1");
    refuse_if(must, &test, &reason);
    false
}

fn refuse_if(must: bool, test: &str, reason: &str) {
    assert!(!must, "{test} must run here, but was skipped: {reason}");
}

/// The program of this name on `PATH` or in one of the folders where servers live.
///
/// # Errors
///
/// What is missing, as a sentence for [`can_run`].
pub fn program(name: &str) -> Result<std::path::PathBuf, String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/sbin", "/sbin", "/usr/local/sbin"]);
    folders
        .map(|folder| std::path::Path::new(folder).join(name))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| format!("the program `{name}` is not installed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_not_skipped() {
        assert!(can_run(program("sh").map(drop)));
    }

    #[test]
    fn what_is_not_there_is_named() {
        assert_eq!(
            program("no-such-program").unwrap_err(),
            "the program `no-such-program` is not installed"
        );
    }

    #[test]
    #[should_panic(expected = "must run here, but was skipped: no reason")]
    fn where_every_test_must_run_a_skipped_one_fails() {
        refuse_if(true, "a test", "no reason");
    }

    #[test]
    #[should_panic(expected = "not within 10ms: the sun rises")]
    fn waiting_ends() {
        eventually_blocking(Duration::from_millis(10), "the sun rises", || None::<()>);
    }
}
