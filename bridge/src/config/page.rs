//! `docs/config.md`, made from the schema.
//!
//! Here: how a schema is told to people. A test holds the page equal to the code; run it with
//! `PAPERCLIP_BRIDGE_WRITE_DOCS=1` to write the page anew.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::schema::schema;

const HEAD: &str = "\
# Configuration

Made from the code: every key of the configuration, with its type, its default and what it means.

The daemon reads one TOML file, `--config FILE`, and works without one. What is said closer to the process goes before:
an option of the command line, then a variable, then the file, then the default.

A variable is `PCBRIDGE_` and the key in capitals, `__` in place of each dot: `PCBRIDGE_TELEMETRY__LEVEL=debug` is
`telemetry.level`, and `PCBRIDGE_UPSTREAMS__MAIN__URL` is the `url` of `upstreams.main`. Its value is written as in TOML
(`true`, `8`, `[\"a\", \"b\"]`); everything else is text. An empty variable counts as unset.

- `config check --config FILE` names every mistake at once, each with its line, and looks whether files and secrets are
  there.
- `config print` shows what was said; `--effective` adds the defaults, `--origin` where each value comes from.
- `config schema` prints the JSON Schema, for editors.

The file must belong to the daemon's user or to root, must not be writable by others, and holds at most 1 MiB. Durations
and sizes are text with a unit: `250ms`, `90s`, `30m`, `4h`, `7d`; `512KiB`, `10MiB`. A rate is `COUNT/UNIT` or
`COUNT/UNIT:BURST`, such as `20/s:40` or `600/m`, or `off`. A secret is never written here, only a reference to the place
where it is found (see [secrets.md](secrets.md)).

```toml
[upstreams.main]
url = \"https://paperclip.example\"
credential = \"cred:paperclip\"

[targets.build]
target = \"ssh://agent@build.example/srv/work\"
upstream = \"main\"

[policy]
rules = '''
[[deny]]
method = \"DELETE\"
path = \"/api/issues/{id}\"
'''

[limits.rate.session]
all = \"20/s:40\"
```
";

/// The page as it stands in `docs/config.md`.
#[must_use]
pub fn page() -> String {
    let mut page = HEAD.to_owned();
    let schema = schema();
    for (name, section) in properties(&schema) {
        let keyed = section
            .get("additionalProperties")
            .filter(|inner| inner.is_object());
        let (title, rules) = match keyed {
            Some(inner) => (format!("{name}.NAME"), inner),
            None => (name.clone(), section),
        };
        heading(&mut page, &title, section);
        if name == "providers" {
            for (key, provider) in properties(section) {
                heading(&mut page, &format!("providers.{key}"), provider);
                table(&mut page, provider);
            }
        } else {
            table(&mut page, rules);
        }
    }
    page
}

fn properties(rules: &Value) -> impl Iterator<Item = (&String, &Value)> {
    rules
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
}

fn heading(page: &mut String, title: &str, rules: &Value) {
    // A `String` takes every write.
    let _ = write!(page, "\n## `[{title}]`\n\n{}\n", description(rules));
}

fn table(page: &mut String, rules: &Value) {
    page.push_str("\n| key | type | default | meaning |\n| --- | --- | --- | --- |\n");
    rows(page, rules, "", "");
}

fn rows(page: &mut String, rules: &Value, above: &str, about: &str) {
    let required: Vec<&str> = rules
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (name, rules) in properties(rules) {
        if rules.get("properties").is_some() {
            let about = format!("{about}{} ", description(rules));
            rows(page, rules, &format!("{above}{name}."), &about);
            continue;
        }
        let default = match rules.get("default") {
            Some(default) if !default.is_null() => format!("`{}`", cell(&default.to_string())),
            Some(_) | None if required.contains(&name.as_str()) => "required".to_owned(),
            Some(_) | None => "-".to_owned(),
        };
        // As above.
        let _ = writeln!(
            page,
            "| `{above}{name}` | {} | {default} | {} |",
            kind(rules),
            cell(format!("{about}{}", description(rules)).trim())
        );
    }
}

fn description(rules: &Value) -> String {
    let said = rules
        .get("description")
        .and_then(Value::as_str)
        .unwrap_or_default();
    said.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// The type, with its bounds.
fn kind(rules: &Value) -> String {
    if rules.get("x-secret") == Some(&Value::Bool(true)) {
        return "reference".to_owned();
    }
    let choices = choices(rules);
    if !choices.is_empty() {
        return choices.join(", ");
    }
    let word = |name: &str| rules.get(name).and_then(Value::as_str);
    let name = match (word("x-kind"), word("type")) {
        (Some(kind), _) => kind.replace('-', " "),
        (None, Some("string")) => "text".to_owned(),
        (None, Some("boolean")) => "true or false".to_owned(),
        (None, Some("integer")) => "whole number".to_owned(),
        (None, Some("array")) => match rules.get("items").map(kind) {
            Some(items) => format!("list of {items}"),
            None => "list".to_owned(),
        },
        (None, Some("object")) => "table".to_owned(),
        (None, Some(other)) => other.to_owned(),
        (None, None) => "any".to_owned(),
    };
    match rules.as_object().and_then(bounds) {
        Some(bounds) => format!("{name}, {bounds}"),
        None => name,
    }
}

fn bounds(rules: &Map<String, Value>) -> Option<String> {
    let said = |name: &str| match rules.get(name)? {
        Value::String(text) => Some(text.clone()),
        number @ Value::Number(_) => {
            let text = number.to_string();
            Some(text.strip_suffix(".0").map_or(text.clone(), str::to_owned))
        }
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    let least = said("x-least").or_else(|| said("minimum"));
    let most = said("x-most").or_else(|| said("maximum"));
    match (least, most) {
        (Some(least), Some(most)) => Some(format!("{least} to {most}")),
        (Some(least), None) => Some(format!("at least {least}")),
        (None, Some(most)) => Some(format!("at most {most}")),
        (None, None) => None,
    }
}

fn choices(rules: &Value) -> Vec<String> {
    if let Some(one) = rules.get("const") {
        return vec![format!("`{one}`")];
    }
    let listed = rules.get("enum").and_then(Value::as_array);
    let told = listed.into_iter().flatten().filter(|choice| !choice.is_null());
    let mut found: Vec<String> = told.map(|choice| format!("`{choice}`")).collect();
    let branches = rules
        .get("oneOf")
        .or_else(|| rules.get("anyOf"))
        .and_then(Value::as_array);
    found.extend(branches.into_iter().flatten().flat_map(choices));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::environment;

    const PLACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/config.md");

    #[test]
    fn the_page_of_the_configuration_is_what_the_code_says() {
        if environment("PAPERCLIP_BRIDGE_WRITE_DOCS").is_some() {
            std::fs::write(PLACE, page()).unwrap();
        }

        let written = std::fs::read_to_string(PLACE).unwrap_or_default();
        assert!(
            written == page(),
            "docs/config.md is not what the code says: PAPERCLIP_BRIDGE_WRITE_DOCS=1 cargo test -p paperclip-bridge --lib config::page"
        );
    }

    #[test]
    fn every_key_is_described() {
        let page = page();

        let undescribed: Vec<&str> = page.lines().filter(|line| line.ends_with("|  |")).collect();
        assert_eq!(undescribed, Vec::<&str>::new());
    }
}
