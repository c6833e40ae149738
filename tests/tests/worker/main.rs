//! The Worker template's own tests, in the real runtime.
//!
//! They are written in JavaScript and stand beside the template: each of their files runs here as one test. Read next:
//! `tunnel/worker-template/test/`.

use std::fs;
use std::process::Stdio;

use paperclip_bridge_tests::can_run;
use paperclip_bridge_tests::workerd::{installed, node, template_tests};

/// Runs the tests of one file.
fn passes(file: &str) {
    if !can_run(installed().map(drop)) {
        return;
    }

    let output = node()
        .args(["--test", "--test-reporter=tap", file])
        .stdin(Stdio::null())
        .output()
        .expect("node starts");

    let report = String::from_utf8_lossy(&output.stdout);
    let count = |of: &str| {
        let line = report
            .lines()
            .find_map(|line| line.strip_prefix(&format!("# {of} ")));
        line.unwrap_or_else(|| panic!("no count of {of}:\n{report}"))
            .parse::<u32>()
            .expect("it is a number")
    };
    assert!(
        output.status.success(),
        "{report}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(count("pass") > 0, "{report}");
    assert_eq!(
        (count("fail"), count("skipped"), count("todo"), count("cancelled")),
        (0, 0, 0, 0),
        "{report}"
    );
}

macro_rules! files {
    ($($test:ident: $file:literal,)+) => {
        const FILES: &[&str] = &[$($file),+];
        $(#[test] fn $test() { passes($file); })+
    };
}

files! {
    signed_requests_are_admitted_as_the_envelope_says: "envelope.test.mjs",
}

#[test]
fn every_file_of_tests_is_run() {
    let mut there: Vec<String> = fs::read_dir(template_tests())
        .expect("it is part of the checkout")
        .map(|entry| {
            entry
                .expect("it can be read")
                .file_name()
                .into_string()
                .expect("its name is ASCII")
        })
        .filter(|name| name.ends_with(".test.mjs"))
        .collect();
    there.sort();
    let mut run = FILES.to_vec();
    run.sort_unstable();

    assert_eq!(there, run);
}
