//! Where a value was said, and the tree of values that remembers it.
//!
//! Here: [`Origin`], and [`Tree`], on which each layer is laid over the one below. Not here: what the layers are read
//! from (`document`, `layers`).

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

/// Where a value was said.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody said it.
    Default,
    /// The configuration file.
    File {
        /// Its path as it was given.
        path: Arc<Path>,
        /// From 1; 0 is the file as a whole.
        line: usize,
    },
    /// A variable of the environment.
    Variable(String),
    /// An option of the command line.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line: 0 } => write!(f, "{}", path.display()),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(option) => f.write_str(option),
        }
    }
}

/// Where each value was said, by its place: `upstreams.main.url`, `targets.box.identities[1]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(BTreeMap<String, Origin>);

impl Origins {
    /// Where the value at `place` was said, or the table that holds it, or something else in that table.
    #[must_use]
    pub fn of(&self, place: &str) -> Origin {
        self.nearest(place).unwrap_or(Origin::Default)
    }

    /// Where the value at `place` itself was said; for what nobody said it is the default.
    #[must_use]
    pub fn of_leaf(&self, place: &str) -> Origin {
        self.0.get(place).cloned().unwrap_or(Origin::Default)
    }

    fn below(&self, place: &str) -> Option<&Origin> {
        let begin = format!("{place}.");
        let (found, origin) = self.0.range(begin.clone()..).next()?;
        found.starts_with(&begin).then_some(origin)
    }

    fn nearest(&self, place: &str) -> Option<Origin> {
        let mut place = place;
        loop {
            if let Some(origin) = self.0.get(place).or_else(|| self.below(place)) {
                return Some(origin.clone());
            }
            place = place.get(..place.rfind(['.', '['])?)?;
        }
    }
}

/// Values and where each was said.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    pub(super) values: Map<String, Value>,
    pub(super) origins: Origins,
    /// For a text of several lines in the file: the line where it begins.
    pub(super) text_lines: BTreeMap<String, usize>,
}

impl Tree {
    pub(super) fn note(&mut self, place: &str, origin: Origin) {
        self.origins.0.insert(place.to_owned(), origin);
    }

    /// Lays one value over what is there.
    ///
    /// # Errors
    ///
    /// The place on the way that holds something other than a table.
    pub(super) fn lay(&mut self, path: &[String], value: Value, origin: Origin) -> Result<(), String> {
        let place = path.join(".");
        let below = format!("{place}.");
        let item = format!("{place}[");
        self.origins
            .0
            .retain(|known, _| !known.starts_with(&below) && !known.starts_with(&item));
        self.text_lines.remove(&place);
        set(&mut self.values, path, value, "")?;
        self.note(&place, origin);
        Ok(())
    }
}

fn set(table: &mut Map<String, Value>, path: &[String], value: Value, above: &str) -> Result<(), String> {
    match path {
        [] => Ok(()),
        [key] => {
            table.insert(key.clone(), value);
            Ok(())
        }
        [key, rest @ ..] => {
            let place = format!("{above}{key}");
            let inner = table.entry(key.clone()).or_insert_with(|| Map::new().into());
            let inner = inner.as_object_mut().ok_or_else(|| place.clone())?;
            set(inner, rest, value, &format!("{place}."))
        }
    }
}

/// One value that is no table, or an empty one.
#[derive(Clone, Debug, PartialEq)]
pub struct Leaf<'v> {
    path: Vec<&'v str>,
    /// The value; a list counts as one.
    pub value: &'v Value,
}

impl Leaf<'_> {
    /// Its place, as [`Origins`] and mistakes name it.
    #[must_use]
    pub fn key(&self) -> String {
        self.path.join(".")
    }

    /// The keys that lead to it.
    #[must_use]
    pub fn path(&self) -> &[&str] {
        &self.path
    }

    /// A line of TOML that says it.
    #[must_use]
    pub fn toml(&self) -> String {
        let path: Vec<String> = self.path.iter().map(|key| spelled(key)).collect();
        // Whatever is in the configuration came out of TOML, or could have.
        let value = toml::Value::try_from(self.value)
            .map_or_else(|_| self.value.to_string(), |value| value.to_string());
        format!("{} = {value}", path.join("."))
    }
}

/// A key as TOML wants it: most need no quotes.
fn spelled(key: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !key.is_empty() && key.bytes().all(bare) {
        return key.to_owned();
    }
    // JSON's escapes are TOML's, but for one character.
    Value::from(key).to_string().replace('\u{7f}', "\\u007f")
}

/// Every value that is no table, in the order of their places; null is nothing.
#[must_use]
pub fn leaves(values: &Value) -> Vec<Leaf<'_>> {
    let mut found = Vec::new();
    gather(values, &[], &mut found);
    found
}

fn gather<'v>(value: &'v Value, path: &[&'v str], found: &mut Vec<Leaf<'v>>) {
    match value {
        Value::Null => {}
        Value::Object(fields) if path.is_empty() || !fields.is_empty() => {
            for (key, value) in fields {
                gather(value, &[path, &[key]].concat(), found);
            }
        }
        Value::Object(_) | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            found.push(Leaf {
                path: path.to_vec(),
                value,
            });
        }
    }
}
