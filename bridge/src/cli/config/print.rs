//! `config print`: what was said, and where.
//!
//! Here: the values as lines of TOML, or as JSON. They can be read again as a configuration file. Secrets are
//! references and nothing else, so that all of it may be shown.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value, json};

use crate::cli::exit::{Exit, Failure};
use crate::cli::stdio::{print, print_json};
use crate::config::{Effective, Leaf, Origin, leaves};

/// Arguments of `config print`.
#[derive(Args, Debug)]
pub(crate) struct PrintArguments {
    /// Configuration file of the daemon; variables PCBRIDGE_SECTION__KEY go before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// All that is in force, also what nobody said
    #[arg(long)]
    effective: bool,
    /// Where each value was said: the line of a file, a variable, or the default
    #[arg(long)]
    origin: bool,
    /// A JSON object instead of TOML
    #[arg(long)]
    json: bool,
}

/// Prints the configuration.
///
/// # Errors
///
/// Code 3 for one with mistakes, code 1 where nothing can be printed.
pub(super) fn print_configuration(arguments: &PrintArguments) -> Result<Exit, Failure> {
    let loaded = super::load(arguments.config.as_deref())?;
    let values = serde_json::to_value(&loaded.config)
        .map_err(|error| Failure::new(Exit::Failed, "the configuration cannot be shown").because(error))?;
    let said = said(&loaded, &values, arguments.effective);
    if arguments.json {
        print_json(&as_json(&loaded, &said, arguments.origin))?;
    } else {
        print(&as_toml(&said, arguments.origin))?;
    }
    Ok(Exit::Ok)
}

struct Said<'v> {
    leaf: Leaf<'v>,
    origin: Origin,
}

fn said<'v>(loaded: &Effective, values: &'v Value, effective: bool) -> Vec<Said<'v>> {
    leaves(values)
        .into_iter()
        .map(|leaf| Said {
            origin: loaded.origins.of_leaf(&leaf.key()),
            leaf,
        })
        .filter(|said| effective || said.origin != Origin::Default)
        .collect()
}

fn as_toml(said: &[Said<'_>], origin: bool) -> String {
    let mut text = String::new();
    for Said { leaf, origin: from } in said {
        // A path may hold a line break, and a comment may not.
        let comment = if origin {
            format!("  # {}", from.to_string().escape_debug())
        } else {
            String::new()
        };
        // A `String` takes every write.
        let _ = writeln!(text, "{}{comment}", leaf.toml());
    }
    text
}

fn as_json(loaded: &Effective, said: &[Said<'_>], origin: bool) -> Value {
    let mut values = Value::Object(Map::new());
    for Said { leaf, .. } in said {
        put(&mut values, leaf);
    }
    let mut shown = json!({ "file": loaded.file, "config": values });
    if let (true, Some(fields)) = (origin, shown.as_object_mut()) {
        let origins: Map<String, Value> = said
            .iter()
            .map(|said| (said.leaf.key(), said.origin.to_string().into()))
            .collect();
        fields.insert("origins".to_owned(), origins.into());
    }
    shown
}

fn put(values: &mut Value, leaf: &Leaf<'_>) {
    let mut place = values;
    for step in leaf.path() {
        let Some(table) = place.as_object_mut() else {
            return;
        };
        place = table.entry(*step).or_insert_with(|| Map::new().into());
    }
    *place = leaf.value.clone();
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Config, LoadOptions};

    fn loaded() -> (Effective, Value) {
        let text =
            "[telemetry]\nlevel = 'warn'\n[upstreams.main]\nurl = 'http://h'\ncredential = 'env:KEY'\n";
        let options = LoadOptions {
            environment: [("PCBRIDGE_SESSIONS__MISSES".to_owned(), "5".to_owned())].into(),
            ..LoadOptions::default()
        };
        let loaded = Config::of_text(text, Path::new("/b.toml"), &options).unwrap();
        let values = serde_json::to_value(&loaded.config).unwrap();
        (loaded, values)
    }

    #[test]
    fn only_what_was_said_is_printed_unless_all_is_asked_for() {
        let (loaded, values) = loaded();

        assert_eq!(
            as_toml(&said(&loaded, &values, false), true),
            "sessions.misses = 5  # PCBRIDGE_SESSIONS__MISSES\n\
             telemetry.level = \"warn\"  # /b.toml:2\n\
             upstreams.main.credential = \"env:KEY\"  # /b.toml:5\n\
             upstreams.main.url = \"http://h\"  # /b.toml:4\n"
        );
        let all = as_toml(&said(&loaded, &values, true), true);
        assert!(all.contains("\nsessions.ttl = \"1d\"  # default\n"), "{all}");
    }

    #[test]
    fn json_has_values_as_they_nest_and_origins_by_key() {
        let (loaded, values) = loaded();

        let shown = as_json(&loaded, &said(&loaded, &values, false), true);

        assert_eq!(shown["config"]["upstreams"]["main"]["url"], "http://h");
        assert_eq!(shown["origins"]["telemetry.level"], "/b.toml:2");
        assert_eq!(shown["config"]["sessions"], json!({ "misses": 5 }));
    }
}
