//! The configuration file: from a path to a tree of values with their lines.
//!
//! Here: who may write the file, its bound, TOML. Not here: which keys there are (`schema`).

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;
use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mistake::ConfigMistake;
use super::origin::{Origin, Tree};

/// A larger file is no configuration.
const MAX_BYTES: u64 = 1024 * 1024;

/// Others' rights that the file must not give: who writes it decides where credentials go.
const OTHERS_MAY_WRITE: u32 = 0o022;

/// Reads the file's text.
///
/// # Errors
///
/// What is wrong with the file as a whole.
pub(super) fn read(path: &Path) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("cannot be read: {error}");
    // Without NONBLOCK, opening a pipe would wait for its writer.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(failed)?;
    let seen = file.metadata().map_err(failed)?;
    if !seen.is_file() {
        return Err("is not a regular file".to_owned());
    }
    let us = rustix::process::geteuid().as_raw();
    if seen.uid() != us && seen.uid() != 0 {
        return Err(format!(
            "belongs to user {}; it must belong to us (user {us}) or root",
            seen.uid()
        ));
    }
    if seen.mode() & OTHERS_MAY_WRITE != 0 {
        return Err(format!(
            "can be written by others (mode {:03o}); run chmod go-w on it",
            seen.mode() & 0o777
        ));
    }
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too large from one that just fits.
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_BYTES {
        return Err("is larger than 1 MiB".to_owned());
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())
}

/// What a text says. Its mistakes go to `mistakes`; what could be read beside them is in the tree.
pub(super) fn parse(text: &str, path: &Arc<Path>, mistakes: &mut Vec<ConfigMistake>) -> Tree {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader {
        text,
        path,
        tree: Tree::default(),
        mistakes,
    };
    for error in errors {
        let at = error.span().map_or(0, |span| span.start);
        // Without the line itself, which may hold a secret.
        reader.mistake(
            String::new(),
            at,
            format!("is not TOML: {}", error.message().replace('\n', ", ")),
        );
    }
    let values = reader.table(document.get_ref(), "");
    let mut tree = reader.tree;
    tree.values = values;
    tree
}

struct Reader<'r> {
    text: &'r str,
    path: &'r Arc<Path>,
    tree: Tree,
    mistakes: &'r mut Vec<ConfigMistake>,
}

impl Reader<'_> {
    fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().get(..at).unwrap_or_default();
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }

    fn origin(&self, at: usize) -> Origin {
        Origin::File {
            path: Arc::clone(self.path),
            line: self.line(at),
        }
    }

    fn mistake(&mut self, key: String, at: usize, problem: String) {
        let origin = self.origin(at);
        self.mistakes.push(ConfigMistake { origin, key, problem });
    }

    fn table(&mut self, table: &DeTable<'_>, above: &str) -> Map<String, Value> {
        let mut values = Map::new();
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let place = if above.is_empty() {
                name.to_owned()
            } else {
                format!("{above}.{name}")
            };
            let origin = self.origin(key.span().start);
            self.tree.note(&place, origin);
            let value = self.value(value, &place);
            values.insert(name.to_owned(), value);
        }
        values
    }

    /// What cannot be said in JSON is a mistake, and null in its place.
    fn value(&mut self, value: &Spanned<DeValue<'_>>, place: &str) -> Value {
        let at = value.span().start;
        match value.get_ref() {
            DeValue::String(text) => {
                self.note_text(at, place);
                Value::String(text.as_ref().to_owned())
            }
            DeValue::Boolean(value) => Value::Bool(*value),
            DeValue::Array(list) => Value::Array(
                list.iter()
                    .enumerate()
                    .map(|(index, item)| {
                        let place = format!("{place}[{index}]");
                        let origin = self.origin(item.span().start);
                        self.tree.note(&place, origin);
                        self.value(item, &place)
                    })
                    .collect(),
            ),
            DeValue::Table(table) => Value::Object(self.table(table, place)),
            DeValue::Datetime(_) => {
                self.mistake(
                    place.to_owned(),
                    at,
                    "is a date, and no key of ours is".to_owned(),
                );
                Value::Null
            }
            other @ (DeValue::Integer(_) | DeValue::Float(_)) => number(other).unwrap_or_else(|| {
                self.mistake(
                    place.to_owned(),
                    at,
                    "is a number beyond what can be meant".to_owned(),
                );
                Value::Null
            }),
        }
    }

    /// Remembers where a text of several lines begins.
    fn note_text(&mut self, at: usize, place: &str) {
        let written = self.text.get(at..).unwrap_or_default();
        if ["\"\"\"", "'''"].iter().any(|quotes| written.starts_with(quotes)) {
            // TOML drops a line break right behind the opening quotes.
            let behind = written.get(3..).unwrap_or_default();
            let dropped = behind.starts_with('\n') || behind.starts_with("\r\n");
            let line = self.line(at) + usize::from(dropped);
            self.tree.text_lines.insert(place.to_owned(), line);
        }
    }
}

fn number(value: &DeValue<'_>) -> Option<Value> {
    if let Some(integer) = value.as_integer() {
        return i64::from_str_radix(integer.as_str(), integer.radix())
            .ok()
            .map(Value::from);
    }
    let float: f64 = value.as_float()?.as_str().parse().ok()?;
    serde_json::Number::from_f64(float).map(Value::Number)
}

/// A scalar or a list as TOML writes it; `None` for everything else.
pub(super) fn scalar(text: &str) -> Option<Value> {
    let value = DeValue::parse(text).ok()?;
    as_scalar(value.get_ref())
}

fn as_scalar(value: &DeValue<'_>) -> Option<Value> {
    match value {
        DeValue::String(text) => Some(Value::String(text.as_ref().to_owned())),
        DeValue::Boolean(value) => Some(Value::Bool(*value)),
        DeValue::Integer(_) | DeValue::Float(_) => number(value),
        DeValue::Array(list) => {
            let items: Option<Vec<Value>> = list.iter().map(|item| as_scalar(item.get_ref())).collect();
            items.map(Value::Array)
        }
        DeValue::Datetime(_) | DeValue::Table(_) => None,
    }
}
