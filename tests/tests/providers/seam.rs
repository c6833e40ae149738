//! What holds of every provider's declaration, and of the house around them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use runners::provider::{PROVIDERS, ProviderSpec};
use serde_json::Value;

/// The one file that names providers: each has a line in it, and one in the crate's list of modules.
const THE_LIST: &str = "runners/src/provider/mod.rs";
const THE_MODULES: &str = "runners/src/lib.rs";

fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package
        .parent()
        .expect("the package is inside the workspace")
        .to_owned()
}

/// Rust files below a folder, by their paths below the root.
fn sources(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the folder can be read") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let below = path.strip_prefix(root()).expect("it is below the root");
                found.push(below.display().to_string());
            }
        }
    }
    found.sort();
    found
}

/// Lines of code that name the provider: its module's path, or its key as text. Comments and tests may.
fn namings(file: &str, key: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join(file)).expect("a source file can be read");
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let module = [
        format!("crate::{key}::"),
        format!("runners::{key}::"),
        format!("runners::{key};"),
    ];
    let words = [format!("\"{key}\""), format!("\"{key}:")];
    let in_words = !file.starts_with("tunnel/");
    code.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .filter(|line| {
            module.iter().any(|name| line.contains(name))
                || (in_words && words.iter().any(|word| line.contains(word)))
        })
        .map(|line| format!("{file}: {}", line.trim()))
        .collect()
}

fn is_test(file: &str) -> bool {
    file.contains("/tests/") || file.ends_with("/tests.rs")
}

#[test]
fn nothing_but_the_list_names_a_provider() {
    let files: Vec<String> = ["runners/src", "tunnel/src", "bridge/src"]
        .iter()
        .flat_map(|folder| sources(folder))
        .filter(|file| !is_test(file))
        .collect();
    for provider in PROVIDERS {
        let own = format!("runners/src/{}/", provider.key);
        assert!(
            files.iter().any(|file| file.starts_with(&own)),
            "{own} is the provider's folder"
        );

        for file in files.iter().filter(|file| !file.starts_with(&own)) {
            let found = namings(file, provider.key);
            if file == THE_LIST {
                assert_eq!(
                    found.len(),
                    1,
                    "one line in the list for {}: {found:?}",
                    provider.key
                );
            } else {
                assert!(found.is_empty(), "{found:?}");
            }
        }
        let modules = std::fs::read_to_string(root().join(THE_MODULES)).expect("the crate has modules");
        assert!(modules.contains(&format!("\npub mod {};\n", provider.key)));
    }
}

#[test]
fn keys_are_words_and_no_two_are_the_same() {
    let mut seen = BTreeSet::new();
    for provider in PROVIDERS {
        let key = provider.key;
        assert!(key.starts_with(|first: char| first.is_ascii_lowercase()), "{key}");
        assert!(
            key.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'),
            "{key}"
        );
        assert!(!matches!(key, "ssh" | "local"), "{key} is a target of its own");
        assert!(seen.insert(key), "{key} is there twice");
        assert!(!provider.about.is_empty() && !provider.about.contains('\n'));
    }
}

#[test]
fn every_schema_is_one_that_an_operator_can_go_by() {
    for provider in PROVIDERS {
        let schema = (provider.schema)();
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        assert_eq!(schema["type"], "object", "{}", provider.key);
        assert_eq!(schema["additionalProperties"], false, "{}", provider.key);
        assert!(
            schema.get("required").is_none(),
            "{}: defaults stand for what is absent",
            provider.key
        );
        assert!(
            !schema.to_string().contains("$ref"),
            "{}: it refers to another place",
            provider.key
        );
        let fields = schema["properties"]
            .as_object()
            .expect("a configuration has fields");
        for (name, field) in fields {
            well_formed(provider, name, field);
        }
        for secret in provider.secrets {
            assert_eq!(
                fields[secret.name]["x-secret"], true,
                "{}: {}",
                provider.key, secret.name
            );
        }
    }
}

fn well_formed(provider: &ProviderSpec, name: &str, field: &Value) {
    let told = format!("{}: {name}: {field}", provider.key);
    assert!(
        name.starts_with(|first: char| first.is_ascii_lowercase()),
        "{told}"
    );
    assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{told}");
    let description = field["description"].as_str().unwrap_or_default();
    assert!(!description.is_empty(), "no description: {told}");
    let kind = &field["type"];
    let kinds: Vec<&str> = match kind.as_array() {
        Some(several) => several.iter().filter_map(Value::as_str).collect(),
        None => kind.as_str().into_iter().collect(),
    };
    let chosen = ["oneOf", "anyOf", "enum", "const"]
        .iter()
        .any(|word| field.get(*word).is_some());
    assert!(!kinds.is_empty() || chosen, "no type: {told}");
    if let (Some(least), Some(most)) = (field["minimum"].as_f64(), field["maximum"].as_f64()) {
        assert!(least <= most, "{told}");
        if let Some(default) = field["default"].as_f64() {
            assert!(
                (least..=most).contains(&default),
                "the default is out of bounds: {told}"
            );
        }
    }
    let secret = provider.secrets.iter().any(|secret| secret.name == name);
    assert_eq!(field.get("x-secret").is_some(), secret, "{told}");
    let sounds_secret = ["apikey", "token", "password", "secret", "signingkey"]
        .iter()
        .any(|word| name.to_ascii_lowercase().ends_with(word));
    assert!(secret || !sounds_secret, "not a secret field: {told}");
    assert!(
        !secret || kinds == ["string", "null"],
        "a reference is text: {told}"
    );
}
