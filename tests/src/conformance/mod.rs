//! What every runner must do, as one suite that runs over any of them.
//!
//! Here: [`Subject`], the runner under test with the differences that it is allowed, and [`conformance!`], which makes
//! one test of each case. In the files beside it the cases, one subject a file. Not here: any runner; a runner's own
//! test file makes the subject. The suite looks at the sandbox only through the runner: through `sh` and what every
//! small Linux has. Read next: `exit`.
//!
//! ```ignore
//! async fn subject() -> Option<Subject> {
//!     let server = Server::start();
//!     Some(Subject::new(server.runner()).keeping(server))
//! }
//! conformance!(acme, subject);
//! ```

pub mod exit;
pub mod output;
pub mod stdin;
pub mod args;
pub mod env;
pub mod cwd;
pub mod ending;
pub mod concurrent;
pub mod duplex;
pub mod upload;

mod recorder;

use std::any::Any;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use runners::{CommandManagedRuntimeRunner, Execution, ExecutionResult, RunnerError};

use crate::waiting::within;

pub use recorder::Recorder;

/// How long one execution of a case may take. None should need a tenth of it.
pub const LIMIT: Duration = Duration::from_secs(90);

/// Something that a runner may do otherwise than the others, where it says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Output passes as text: bytes that are no UTF-8 arrive as something else.
    TextOutput,
    /// All of stdin is taken before the command starts: nobody can talk with it.
    StdinCollected,
    /// A signal is told as exit code 128 + n, not by its name.
    SignalAsExitCode,
    /// While a background process holds an output open, the result waits for it or for the time limit.
    BackgroundHoldsResult,
    /// The end of a duplex's input does not reach its command.
    NoEndOfInput,
}

/// The runner of one case.
pub struct Subject {
    runner: Arc<dyn CommandManagedRuntimeRunner>,
    differences: Vec<(Difference, &'static str)>,
    folders: Mutex<Vec<String>>,
    keep: Vec<Box<dyn Any + Send>>,
}

impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subject")
            .field("runner", &self.runner)
            .field("differences", &self.differences)
            .finish_non_exhaustive()
    }
}

impl Subject {
    /// A runner that is held to everything.
    pub fn new(runner: Arc<dyn CommandManagedRuntimeRunner>) -> Self {
        Self {
            runner,
            differences: vec![],
            folders: Mutex::default(),
            keep: vec![],
        }
    }

    /// It may do this otherwise, because of `reason`. A case then asserts what it does instead.
    #[must_use]
    pub fn differing(mut self, difference: Difference, reason: &'static str) -> Self {
        self.differences.push((difference, reason));
        self
    }

    /// Something that must outlive the case, such as the server that is spoken to.
    #[must_use]
    pub fn keeping(mut self, thing: impl Any + Send) -> Self {
        self.keep.push(Box::new(thing));
        self
    }

    /// The runner.
    pub fn runner(&self) -> &Arc<dyn CommandManagedRuntimeRunner> {
        &self.runner
    }

    /// Whether it is allowed to differ so.
    pub fn differs(&self, difference: Difference) -> bool {
        self.differences.iter().any(|(one, _)| *one == difference)
    }

    /// Runs it to its end.
    ///
    /// # Panics
    ///
    /// Where it is an error or takes longer than [`LIMIT`].
    pub async fn run(&self, execution: Execution) -> ExecutionResult {
        let told = format!("{execution:?}");
        match self.try_run(execution).await {
            Ok(result) => result,
            Err(error) => panic!("{told}: {error:?}"),
        }
    }

    /// As [`Self::run`], where an error is an answer too.
    ///
    /// # Errors
    ///
    /// The runner's.
    pub async fn try_run(&self, execution: Execution) -> Result<ExecutionResult, RunnerError> {
        let told = format!("{execution:?}");
        within(LIMIT, &told, self.runner.execute(execution)).await
    }

    /// What a script prints, without the last line's end.
    ///
    /// # Panics
    ///
    /// Where it does not succeed.
    pub async fn says(&self, script: &str) -> String {
        let result = self.run(sh(script)).await;
        assert!(result.success(), "{script}: {}", told(&result));
        let text = String::from_utf8(result.stdout).expect("the script prints text");
        text.strip_suffix('\n').unwrap_or(&text).to_owned()
    }

    /// A new folder in the sandbox, removed after the case.
    pub async fn folder(&self) -> String {
        let folder = self.says("mktemp -d").await;
        self.lock().push(folder.clone());
        folder
    }

    /// Waits in the sandbox until `condition` holds there.
    ///
    /// # Panics
    ///
    /// Where it does not within half a minute.
    pub async fn until(&self, condition: &str) {
        let script =
            format!("n=0; until {condition}; do n=$((n+1)); [ $n -lt 600 ] || exit 9; sleep 0.05; done");
        let result = self.run(sh(&script)).await;
        assert!(result.success(), "never true: {condition}: {}", told(&result));
    }

    /// Waits until the process is gone, or dead and not yet reaped.
    pub async fn until_gone(&self, pid: &str) {
        let pid: u32 = pid.trim().parse().unwrap_or_else(|_| panic!("{pid:?} is no pid"));
        self.until(&format!(
            "{{ ! kill -0 {pid} 2>/dev/null || grep -q ') Z' /proc/{pid}/stat 2>/dev/null; }}"
        ))
        .await;
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.folders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn clean(&self) {
        let folders = std::mem::take(&mut *self.lock());
        if !folders.is_empty() {
            let args = ["-rf".to_owned(), "--".to_owned()].into_iter().chain(folders);
            // A sandbox that is gone has no folders either.
            drop(self.try_run(Execution::new("rm", args)).await);
        }
    }
}

/// A script for the target's `sh`.
pub fn sh(script: &str) -> Execution {
    Execution::new("sh", ["-c", script])
}

/// A result for a failed assertion: its outputs as text, and no more of them than can be read.
pub fn told(result: &ExecutionResult) -> String {
    let short = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(600)]).into_owned();
    format!(
        "code {:?} signal {:?} timed_out {} cancelled {} killed {:?} stdout {} bytes {:?} stderr {} bytes {:?}",
        result.exit_code,
        result.signal,
        result.timed_out,
        result.cancelled,
        result.killed,
        result.stdout.len(),
        short(&result.stdout),
        result.stderr.len(),
        short(&result.stderr)
    )
}

/// Every value that a byte can have, in an order in which no run of them is text.
pub fn every_byte() -> Vec<u8> {
    (0..=255_u8)
        .map(|byte| byte.wrapping_mul(97).wrapping_add(13))
        .collect()
}

/// Runs one case; `make` gives none where it cannot run here, and has said so.
pub async fn run(make: impl AsyncFnOnce() -> Option<Subject>, case: impl AsyncFnOnce(&Subject)) {
    let Some(subject) = make().await else { return };
    let ended = AssertUnwindSafe(case(&subject)).catch_unwind().await;
    subject.clean().await;
    if let Err(panic) = ended {
        resume_unwind(panic);
    }
}

/// Something costly that cases which run at the same time share, such as a server; gone with the last of them.
#[derive(Debug)]
pub struct Shared<T>(Mutex<Weak<T>>);

impl<T> Shared<T> {
    /// Nothing yet; for a `static`.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(Weak::new()))
    }

    /// The one that is there, or a new one.
    pub fn get(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.upgrade().unwrap_or_else(|| {
            let made = Arc::new(make());
            *held = Arc::downgrade(&made);
            made
        })
    }
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes a module `$module` with one test for each case of the suite, run on what `$make` makes: an
/// `async fn() -> Option<Subject>` of the place where the macro stands.
#[macro_export]
macro_rules! conformance {
    ($module:ident, $make:ident) => {
        mod $module {
            use super::$make as make;
            $crate::conformance_cases! {
                exit: every_exit_code_arrives_as_it_is, a_signal_that_ended_the_command_is_told,
                    a_program_that_is_not_there_is_an_error_or_127, a_file_that_is_no_program_is_an_error_or_126,
                    what_no_program_can_be_given_is_refused, a_failed_command_is_a_result_with_its_output;
                output: both_outputs_arrive_apart_and_whole, ten_mebibytes_arrive_on_stdout,
                    ten_mebibytes_arrive_on_both_at_once, every_byte_arrives_as_it_was_written,
                    characters_of_several_bytes_survive_the_chunks, nothing_and_a_missing_line_end_stay_as_they_are,
                    what_is_beyond_the_kept_is_dropped_and_said, nothing_is_kept_where_nothing_was_asked_for,
                    the_sink_sees_what_the_result_holds_in_order, output_reaches_the_sink_while_the_command_runs,
                    a_slow_sink_loses_nothing_and_is_asked_one_at_a_time,
                    a_background_process_does_not_keep_the_result, what_a_background_process_says_at_once_is_there;
                stdin: without_input_its_end_comes_at_once, empty_input_ends_at_once, every_byte_of_input_arrives,
                    two_mebibytes_of_input_come_back_whole, input_that_nobody_reads_is_no_failure,
                    a_stream_is_input_to_its_end, a_command_can_be_talked_with,
                    a_stream_without_end_does_not_outlive_the_command, a_script_of_many_lines_is_read_from_stdin;
                args: odd_arguments_arrive_as_they_are, an_argument_of_100_kib_arrives, a_thousand_arguments_arrive,
                    a_script_with_every_sign_is_run_as_it_is, a_program_with_an_odd_path_is_run;
                env: odd_values_arrive_as_they_are, a_value_of_64_kib_arrives, a_bad_name_is_refused_and_nothing_runs,
                    a_variable_both_plain_and_secret_is_refused, secret_values_arrive_as_they_are,
                    secret_values_stand_in_no_argv, secret_values_leave_stdin_to_the_command,
                    one_execution_does_not_see_the_variables_of_another, nothing_of_our_own_environment_arrives,
                    a_usable_path_and_home_are_set;
                cwd: the_default_folder_is_there, the_given_folder_is_taken, a_missing_folder_is_named_and_nothing_runs;
                ending: a_time_out_is_told_and_ends_the_command, a_time_out_ends_what_the_command_started,
                    a_command_that_ignores_term_is_killed, a_command_within_its_time_is_left_alone,
                    the_longest_time_out_is_no_mistake, a_command_cancelled_before_its_start_is_not_started,
                    a_cancelled_command_and_its_children_end, what_was_said_before_the_end_by_force_is_kept,
                    the_runner_works_after_an_end_by_force;
                concurrent: eight_at_once_do_not_mix, a_long_one_does_not_hold_up_short_ones,
                    ending_one_leaves_the_other, many_in_a_row_leave_nothing_behind;
                duplex: a_duplex_passes_every_byte, one_mebibyte_passes_both_ways_at_once,
                    the_end_of_input_reaches_the_command, the_exit_of_the_command_ends_the_stream,
                    answers_come_line_by_line, a_dropped_duplex_ends_its_command, a_duplex_takes_arguments_and_a_folder,
                    a_duplex_runs_beside_executions, what_a_duplex_says_on_stderr_is_not_in_the_stream,
                    a_duplex_of_a_bad_command_is_refused;
                upload: a_file_arrives_with_its_bytes_and_mode, an_empty_file_arrives, parents_are_made,
                    an_upload_replaces_the_whole_file, eight_mebibytes_are_uploaded, an_odd_path_is_taken_as_it_is,
                    an_upload_that_cannot_be_is_an_error_and_leaves_nothing;
            }
        }
    };
}

/// One test for each case named; for [`conformance!`] alone.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_cases {
    ($($file:ident: $($case:ident),+;)+) => {
        $($(
            #[tokio::test]
            async fn $case() {
                $crate::conformance::run(make, $crate::conformance::$file::$case).await;
            }
        )+)+
    };
}
