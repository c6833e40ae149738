//! The runner of the operator's own machine.

use std::sync::Arc;

use paperclip_bridge_tests::conformance;
use paperclip_bridge_tests::conformance::Subject;
use runners::local::{BaseEnvironment, LocalRunner};

conformance!(local_runner, subject);

async fn subject() -> Option<Subject> {
    let home = tempfile::tempdir().expect("a temporary folder can be made");
    let base = BaseEnvironment {
        home: home.path().display().to_string(),
        user: "agent".to_owned(),
        lang: "C.UTF-8".to_owned(),
    };
    let runner = LocalRunner::new(base, Some(home.path().to_owned()));
    Some(Subject::new(Arc::new(runner)).keeping(home))
}
