//! Guards: what must stay true of the house itself, checked by machine.
//!
//! Here: the direction of dependencies, the top level, one TLS provider, and that CI runs what the README says. In
//! `operations` what operators watch by, in `packaging` the unit files.

#[path = "guards/operations.rs"]
mod operations;
#[path = "guards/packaging.rs"]
mod packaging;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

/// Our packages by their place in the tree, and which of ours each may name.
const ARROWS: [(&str, &[&str]); 9] = [
    ("policy", &[]),
    ("runners", &[]),
    ("tunnel", &["runners", "tunnel/wire"]),
    ("tunnel/wire", &[]),
    ("tunnel/gateway", &["tunnel/wire"]),
    ("bridge", &["tunnel", "policy", "runners"]),
    (
        "tests",
        &[
            "bridge",
            "tunnel",
            "tunnel/wire",
            "policy",
            "runners",
            "tests/fakes",
        ],
    ),
    ("tests/fakes", &[]),
    ("fuzz", &["bridge", "tunnel", "tunnel/wire", "policy", "runners"]),
];

/// Crates that `policy` must not name: each would bring IO, a clock or an executor.
const NOT_IN_POLICY: [&str; 8] = [
    "tokio",
    "hyper",
    "async-std",
    "smol",
    "chrono",
    "jiff",
    "time",
    "reqwest",
];

/// What stands at the top, beside files in capitals and hidden ones.
const TOP_LEVEL: [&str; 12] = [
    "Cargo.toml",
    "Cargo.lock",
    "bridge",
    "tunnel",
    "policy",
    "runners",
    "tests",
    "fuzz",
    "docs",
    "clippy.toml",
    "rustfmt.toml",
    "target",
];

fn root() -> PathBuf {
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    package
        .parent()
        .expect("the package is inside the workspace")
        .to_owned()
}

fn read(path: &str) -> String {
    let file = root().join(path);
    std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn metadata() -> Value {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        // Packages of other platforms were not downloaded by the build and are not needed here.
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--offline",
            "--filter-platform",
            &host(),
        ])
        .current_dir(root())
        .output()
        .expect("cargo starts");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON")
}

fn host() -> String {
    let output = Command::new("rustc").arg("-vV").output().expect("rustc starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.expect("rustc tells its host").to_owned()
}

fn strings(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// Our packages: the folder below the root, and the package as cargo tells it.
fn ours(metadata: &Value) -> BTreeMap<String, &Value> {
    let members = strings(&metadata["workspace_members"]);
    let packages = metadata["packages"].as_array().into_iter().flatten();
    packages
        .filter(|package| package["id"].as_str().is_some_and(|id| members.contains(&id)))
        .map(|package| {
            let manifest = PathBuf::from(
                package["manifest_path"]
                    .as_str()
                    .expect("a package has a manifest"),
            );
            let folder = manifest
                .parent()
                .and_then(|folder| folder.strip_prefix(root()).ok());
            (
                folder.expect("it is below the root").display().to_string(),
                package,
            )
        })
        .collect()
}

/// Names of a package's ordinary and build dependencies; what only its tests use points nowhere.
fn dependencies(package: &Value) -> BTreeSet<&str> {
    let all = package["dependencies"].as_array().into_iter().flatten();
    all.filter(|dependency| dependency["kind"] != "dev")
        .filter_map(|dependency| dependency["name"].as_str())
        .collect()
}

#[test]
fn dependencies_point_only_where_the_drawing_of_the_house_lets_them() {
    let metadata = metadata();
    let ours = ours(&metadata);
    let place_of: BTreeMap<&str, &str> = ours
        .iter()
        .map(|(place, package)| (package["name"].as_str().unwrap(), place.as_str()))
        .collect();
    let arrows = BTreeMap::from(ARROWS);
    assert_eq!(ours.keys().collect::<Vec<_>>(), arrows.keys().collect::<Vec<_>>());

    for (place, package) in &ours {
        for name in dependencies(package) {
            let Some(target) = place_of.get(name) else {
                continue;
            };
            assert!(
                arrows[place.as_str()].contains(target),
                "{place} must not depend on {target}"
            );
        }
    }
}

#[test]
fn policy_is_pure() {
    let metadata = metadata();
    let ours = ours(&metadata);

    for name in dependencies(ours["policy"]) {
        assert!(!NOT_IN_POLICY.contains(&name), "policy must not depend on {name}");
    }
}

#[test]
fn no_crate_is_a_drawer_for_everything() {
    let metadata = metadata();

    for (place, package) in ours(&metadata) {
        let name = package["name"].as_str().unwrap();
        for word in ["common", "util", "helper", "shared", "misc"] {
            assert!(
                !name.contains(word) && !place.contains(word),
                "{place} is called {name}"
            );
        }
    }
}

#[test]
fn the_top_level_is_the_drawn_one() {
    for entry in std::fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let document = name
            .split('.')
            .next()
            .is_some_and(|stem| stem.bytes().all(|b| b.is_ascii_uppercase() || b == b'-'));
        assert!(
            name.starts_with('.') || document || TOP_LEVEL.contains(&name.as_str()),
            "{name} has no place at the top level"
        );
    }
}

#[test]
fn there_is_one_tls_provider_and_no_openssl() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let resolved: BTreeSet<&str> = nodes.iter().filter_map(|node| node["id"].as_str()).collect();
    let present = |name: &str| {
        packages
            .iter()
            .any(|one| one["name"] == name && resolved.contains(one["id"].as_str().unwrap_or_default()))
    };

    assert!(present("ring"));
    for name in [
        "openssl-sys",
        "native-tls",
        "aws-lc-rs",
        "aws-lc-sys",
        "boring-sys",
    ] {
        assert!(!present(name), "{name} is in the graph");
    }
    for name in ["rustls", "ring", "russh", "hyper", "http", "tokio"] {
        let count = packages.iter().filter(|one| one["name"] == name).count();
        assert_eq!(count, 1, "{name} is there {count} times");
    }
}

#[test]
fn ci_runs_the_readmes_own_test_command() {
    let readme = read("README.md");
    let after = readme
        .split_once("Run the tests:")
        .expect("the README says how to run the tests")
        .1;
    let block = after.split("```").nth(1).expect("in a code block");
    let command = block
        .lines()
        .find(|line| line.starts_with("cargo test"))
        .expect("with cargo test");
    let run = read(".ci/run");
    // `.ci/run` ends in the list of checks; either holds the command or takes it out of the README.
    let check = root().join(".ci/check.sh");
    let script = run + &std::fs::read_to_string(check).unwrap_or_default();

    let written = script.contains(command);
    let extracted = script
        .lines()
        .any(|line| line.starts_with("test_command=") && line.contains("README.md"))
        && script.lines().any(|line| line.trim() == "step $test_command");
    assert!(written || extracted, "CI does not run `{command}`");
    assert!(command.contains("--workspace"), "{command} leaves packages out");
}

#[test]
fn ci_counts_a_skipped_test_as_a_failed_one() {
    let script = read(".ci/run");

    assert!(
        script.contains("export PAPERCLIP_BRIDGE_TESTS_MUST_RUN=1"),
        ".ci/run lets tests be skipped"
    );
}

#[test]
fn the_committed_description_of_the_control_api_is_the_one_of_the_code() {
    let said = bridge::control::openapi_text().expect("it is JSON");

    if std::env::var_os("PAPERCLIP_BRIDGE_WRITE_DOCS").is_some() {
        std::fs::write(root().join("docs/openapi.json"), &said)
            .expect("the folder of documents can be written");
    }

    assert!(
        read("docs/openapi.json") == said,
        "docs/openapi.json is not what the code says; write it anew with \
         PAPERCLIP_BRIDGE_WRITE_DOCS=1 cargo test -p paperclip-bridge-tests --test guards"
    );
    assert!(said.contains("\"openapi\": \"3.1."));
}
