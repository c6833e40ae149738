//! The layers of the configuration, laid over each other: defaults, the file, the environment, the options.
//!
//! Here: [`Config::load`] and what it gives. A value is checked once all layers lie over each other, so that a later one
//! may mend an earlier one. Not here: what a file is (`document`), what must hold between keys (`rules`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use runners::provider::config::{Fault, faults};
use serde_json::{Map, Value, json};

use super::mistake::{ConfigErrors, ConfigMistake};
use super::origin::{Origin, Origins, Tree};
use super::schema::{keywords, rules_at, schema};
use super::{
    Config, DEFAULT_CREDENTIAL, DEFAULT_UPSTREAM, UPSTREAM_VARIABLE, VARIABLE_PREFIX, document, rules,
};

/// The same for every configuration of this build.
static SCHEMA: LazyLock<Value> = LazyLock::new(schema);

/// What a configuration is read from.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// The file; without one the other layers stand alone.
    pub file: Option<PathBuf>,
    /// Variables of the environment, as [`super::variables`] gives them; others are passed over.
    pub environment: BTreeMap<String, String>,
    /// Options of the command line that stand for a key.
    pub flags: Vec<Flag>,
}

/// An option of the command line that stands for a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Flag {
    /// As it was typed, such as `--ops`.
    pub option: &'static str,
    /// Which key, such as `listeners.ops.address`.
    pub key: &'static str,
    /// Its value.
    pub value: Value,
}

/// The configuration in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Effective {
    /// The values, checked; `control.adhoc` and `upstreams` are filled in where nobody said them.
    pub config: Config,
    /// Where each was said.
    pub origins: Origins,
    /// The file, where there is one.
    pub file: Option<PathBuf>,
}

impl Config {
    /// Reads and checks the configuration. Connects to nothing, resolves no secret and opens no file but the one named.
    ///
    /// # Errors
    ///
    /// [`ConfigErrors`]: every mistake of every layer. No text that may be a secret is repeated.
    pub fn load(options: LoadOptions) -> Result<Effective, ConfigErrors> {
        let Some(path) = options.file.clone() else {
            return Self::over(Tree::default(), Vec::new(), &options);
        };
        match document::read(&path) {
            Ok(text) => Self::of_text(&text, &path, &options),
            Err(problem) => Err(ConfigErrors::new(vec![ConfigMistake {
                origin: Origin::File {
                    path: path.into(),
                    line: 0,
                },
                key: String::new(),
                problem,
            }])),
        }
    }

    /// As [`Self::load`] for a file's text that is at hand.
    ///
    /// # Errors
    ///
    /// As [`Self::load`].
    pub fn of_text(text: &str, path: &Path, options: &LoadOptions) -> Result<Effective, ConfigErrors> {
        let mut mistakes = Vec::new();
        let tree = document::parse(text, &Arc::from(path), &mut mistakes);
        Self::over(tree, mistakes, options)
    }

    fn over(
        mut tree: Tree,
        mut mistakes: Vec<ConfigMistake>,
        options: &LoadOptions,
    ) -> Result<Effective, ConfigErrors> {
        lay_variables(&mut tree, &SCHEMA, &options.environment, &mut mistakes);
        for flag in &options.flags {
            let path: Vec<String> = flag.key.split('.').map(str::to_owned).collect();
            lay(
                &mut tree,
                &path,
                flag.value.clone(),
                Origin::Flag(flag.option.to_owned()),
                &mut mistakes,
            );
        }
        add_the_upstream_nobody_named(&mut tree, &options.environment);
        let mut values = Value::Object(tree.values.clone());
        let found = faults(&SCHEMA, &values, &keywords);
        for fault in &found {
            forget(&mut values, &fault.field);
        }
        add(&mut mistakes, &tree, found);
        let mut config = match serde_path_to_error::deserialize::<_, Config>(values) {
            Ok(config) => config,
            Err(error) => {
                // Something without a default is missing or wrong, and mostly told already.
                if mistakes.is_empty() {
                    let fault = Fault {
                        field: error.path().to_string(),
                        // Without serde's own words, which repeat values.
                        problem: "cannot be used".to_owned(),
                    };
                    add(&mut mistakes, &tree, vec![fault]);
                }
                return Err(ConfigErrors::new(mistakes));
            }
        };
        mistakes.extend(rules::check(&config, &tree));
        if !mistakes.is_empty() {
            return Err(ConfigErrors::new(mistakes));
        }
        config.control.adhoc.get_or_insert(options.file.is_none());
        Ok(Effective {
            config,
            origins: tree.origins,
            file: options.file.clone(),
        })
    }
}

/// Adds what the schema finds, unless the same place or line was told already.
fn add(mistakes: &mut Vec<ConfigMistake>, tree: &Tree, found: Vec<Fault>) {
    let broken: BTreeSet<Origin> = mistakes
        .iter()
        .filter(|mistake| mistake.key.is_empty())
        .map(|mistake| mistake.origin.clone())
        .collect();
    let told: BTreeSet<String> = mistakes.iter().map(|mistake| mistake.key.clone()).collect();
    for Fault { field, problem } in found {
        let origin = tree.origins.of(&field);
        // What is missing beside a line that could not be read most likely stands in that line.
        let missing = problem == "is missing" && !broken.is_empty();
        if !missing && !broken.contains(&origin) && !told.contains(&field) {
            mistakes.push(ConfigMistake {
                origin,
                key: field,
                problem,
            });
        }
    }
}

/// Takes out what is wrong and was told, so that the rest can be looked at.
fn forget(values: &mut Value, place: &str) {
    let place = place.split('[').next().unwrap_or_default();
    let path: Vec<&str> = place.split('.').collect();
    match path.as_slice() {
        // Without a default; what stands in for it contradicts nothing.
        ["upstreams", _, "url"] => put(values, &path, DEFAULT_UPSTREAM),
        ["upstreams", _, "credential"] => put(values, &path, DEFAULT_CREDENTIAL),
        // Nothing can stand in for a target.
        ["targets", name, "target"] => remove(values, &["targets", name]),
        path => remove(values, path),
    }
}

fn table<'v>(values: &'v mut Value, path: &[&str]) -> Option<&'v mut Map<String, Value>> {
    let found = path.iter().try_fold(values, |values, step| values.get_mut(*step));
    found.and_then(Value::as_object_mut)
}

fn put(values: &mut Value, path: &[&str], value: &str) {
    if let Some((key, above)) = path.split_last()
        && let Some(table) = table(values, above)
    {
        table.insert((*key).to_owned(), value.into());
    }
}

fn remove(values: &mut Value, path: &[&str]) {
    if let Some((key, above)) = path.split_last()
        && let Some(table) = table(values, above)
    {
        table.remove(*key);
    }
}

fn lay(tree: &mut Tree, path: &[String], value: Value, origin: Origin, mistakes: &mut Vec<ConfigMistake>) {
    if let Err(place) = tree.lay(path, value, origin.clone()) {
        mistakes.push(ConfigMistake {
            origin,
            key: path.join("."),
            problem: format!("cannot be said: `{place}` is no table"),
        });
    }
}

/// Lays `PCBRIDGE_SECTION__KEY` over the file. An empty variable counts as unset.
fn lay_variables(
    tree: &mut Tree,
    schema: &Value,
    environment: &BTreeMap<String, String>,
    mistakes: &mut Vec<ConfigMistake>,
) {
    let mut said: BTreeMap<Vec<String>, &str> = BTreeMap::new();
    for (name, text) in environment {
        let Some(words) = name.strip_prefix(VARIABLE_PREFIX).filter(|_| !text.is_empty()) else {
            continue;
        };
        let path = path_of(words, schema, &tree.values);
        let origin = Origin::Variable(name.clone());
        if let Some(other) = said.insert(path.clone(), name) {
            let problem = format!("is said twice: by {other}, too");
            mistakes.push(ConfigMistake {
                origin,
                key: path.join("."),
                problem,
            });
            continue;
        }
        let value = value_of(text, rules_at(schema, &path));
        lay(tree, &path, value, origin, mistakes);
    }
}

/// The path that a variable's name means: words are compared without case and separators, as a variable has no others.
fn path_of(words: &str, schema: &Value, values: &Map<String, Value>) -> Vec<String> {
    let mut path = Vec::new();
    let mut below = Some(values);
    for word in words.split("__") {
        let rules = rules_at(schema, &path);
        let known = rules.and_then(|rules| rules.get("properties")?.as_object());
        let names = known.into_iter().flatten().chain(below.into_iter().flatten());
        let name = names
            .map(|(name, _)| name)
            .find(|name| plain(name) == plain(word))
            .cloned()
            .unwrap_or_else(|| word.to_ascii_lowercase());
        below = below.and_then(|below| below.get(&name)?.as_object());
        path.push(name);
    }
    path
}

fn plain(name: &str) -> String {
    name.replace(['_', '-'], "").to_ascii_lowercase()
}

/// A scalar or a list as TOML writes it, else the text itself; where only text is wanted, the text without its quotes.
fn value_of(text: &str, rules: Option<&Map<String, Value>>) -> Value {
    let only_text = rules.is_some_and(|rules| rules.get("type") == Some(&json!("string")));
    document::scalar(text)
        .filter(|value| !only_text || value.is_string())
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Without any upstream there is one, that of `run` and `open`.
fn add_the_upstream_nobody_named(tree: &mut Tree, environment: &BTreeMap<String, String>) {
    let named = tree.values.get("upstreams");
    if named.is_some_and(|named| named.as_object().is_none_or(|named| !named.is_empty())) {
        return;
    }
    let url = environment.get(UPSTREAM_VARIABLE).filter(|url| !url.is_empty());
    let origin = match url {
        Some(_) => Origin::Variable(UPSTREAM_VARIABLE.to_owned()),
        None => Origin::Default,
    };
    let url = url.map_or(DEFAULT_UPSTREAM, String::as_str);
    let upstream = json!({ "default": { "url": url, "credential": DEFAULT_CREDENTIAL } });
    tree.values.insert("upstreams".to_owned(), upstream);
    tree.note("upstreams.default.url", origin);
}
