//! The configuration: a file's text, and behind a line `---` variables of the environment, `NAME=VALUE` each.
//!
//! Laws: the same text gives the same result; every mistake stands at a line of the text or at a variable that was
//! given; there are at most a hundred; what is accepted can be printed and read again as the same; a variable that
//! repeats what is in force changes nothing.

use std::path::{Path, PathBuf};

use bridge::config::{Config, Effective, Leaf, LoadOptions, Origin, leaves};

const FILE: &str = "/b.toml";

/// Takes the bytes as a configuration.
///
/// # Panics
///
/// On a broken law.
pub fn config(data: &[u8]) {
    let Ok(input) = std::str::from_utf8(data) else {
        return;
    };
    let (text, variables) = input.split_once("\n---\n").unwrap_or((input, ""));
    let options = LoadOptions {
        file: Some(PathBuf::from(FILE)),
        environment: variables
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        flags: Vec::new(),
    };
    let loaded = Config::of_text(text, Path::new(FILE), &options);
    assert_eq!(
        loaded,
        Config::of_text(text, Path::new(FILE), &options),
        "{input:?}"
    );
    match loaded {
        Ok(loaded) => is_read_again(&loaded, input),
        Err(errors) => {
            let lines = text.matches('\n').count() + 1;
            assert!((1..=100).contains(&errors.iter().count()), "{input:?}");
            for mistake in &errors {
                let known = match &mistake.origin {
                    Origin::File { path, line } => {
                        path.as_ref() == Path::new(FILE) && (1..=lines).contains(line)
                    }
                    Origin::Variable(name) => options.environment.contains_key(name),
                    Origin::Default | Origin::Flag(_) => false,
                };
                assert!(known, "{mistake}: {input:?}");
            }
        }
    }
}

fn is_read_again(loaded: &Effective, input: &str) {
    let values = serde_json::to_value(&loaded.config).expect("a configuration has a form in JSON");
    let printed: Vec<String> = leaves(&values).iter().map(Leaf::toml).collect();
    let printed = printed.join("\n");
    let again = Config::of_text(&printed, Path::new(FILE), &LoadOptions::default());
    assert_eq!(
        again.as_ref().map(|again| &again.config),
        Ok(&loaded.config),
        "{printed}\nof {input:?}"
    );
    let level = format!(
        "\"{}\"",
        values["telemetry"]["level"].as_str().unwrap_or_default()
    );
    let repeated = LoadOptions {
        environment: [("PCBRIDGE_TELEMETRY__LEVEL".to_owned(), level)].into(),
        ..LoadOptions::default()
    };
    let again = Config::of_text(&printed, Path::new(FILE), &repeated);
    assert_eq!(
        again.map(|again| again.config),
        Ok(loaded.config.clone()),
        "{input:?}"
    );
}
