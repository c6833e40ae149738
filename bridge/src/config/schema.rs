//! The JSON Schema of the configuration, and what it says beyond JSON Schema.
//!
//! Here: [`schema`], which joins our structs with what each provider declares, and [`keywords`], the judge of
//! `x-kind`, `x-least`, `x-most` and `x-secret`. Not here: the keys (`model`), the rules of JSON Schema
//! ([`runners::provider::config::faults`]).

use std::str::FromStr;

use policy::RateLimit;
use runners::provider::PROVIDERS;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::Config;
use super::model::{AgentsAddress, ControlAddress, GatewayName};
use super::spelled;
use crate::cli::{control, target};
use crate::secrets::SecretRef;

/// Names of upstreams and targets: short words that need no quotes in TOML and fit a variable's name.
pub(super) const NAME_PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$";

/// The JSON Schema (2020-12) of the configuration file; nothing in it is a reference to another place.
#[must_use]
pub fn schema() -> Value {
    let generator = SchemaSettings::draft2020_12()
        .with(|settings| settings.inline_subschemas = true)
        .into_generator();
    let mut schema = generator.into_root_schema_for::<Config>().to_value();
    let providers: Map<String, Value> = PROVIDERS
        .iter()
        .map(|provider| {
            (
                provider.key.to_owned(),
                described(provider.about, (provider.schema)()),
            )
        })
        .collect();
    put(
        &mut schema,
        "/properties/providers",
        "properties",
        Value::Object(providers),
    );
    put(
        &mut schema,
        "/properties/providers",
        "additionalProperties",
        json!(false),
    );
    for names in ["/properties/upstreams", "/properties/targets"] {
        put(
            &mut schema,
            names,
            "propertyNames",
            json!({ "pattern": NAME_PATTERN }),
        );
    }
    tidy(&mut schema);
    schema
}

fn described(about: &str, mut schema: Value) -> Value {
    put(&mut schema, "", "description", json!(about));
    schema
}

fn put(schema: &mut Value, place: &str, key: &str, value: Value) {
    if let Some(object) = schema.pointer_mut(place).and_then(Value::as_object_mut) {
        object.insert(key.to_owned(), value);
    }
}

/// TOML has no null, and a section has no default of its own beside those of its keys.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(rules) => {
            if let Some(Value::Array(kinds)) = rules.get_mut("type") {
                kinds.retain(|kind| kind != "null");
                if let [only] = kinds.as_slice() {
                    let only = only.clone();
                    rules.insert("type".to_owned(), only);
                }
            }
            if rules.contains_key("properties")
                || rules.get("type") == Some(&json!("object"))
                || rules.get("default") == Some(&Value::Null)
            {
                rules.remove("default");
            }
            for branches in ["anyOf", "oneOf"] {
                if let Some(Value::Array(branches)) = rules.get_mut(branches) {
                    branches.retain(|branch| branch.get("type") != Some(&json!("null")));
                }
            }
            rules.values_mut().for_each(tidy);
        }
        Value::Array(list) => list.iter_mut().for_each(tidy),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What our own keywords say against a value; never repeats one where a secret may stand.
pub(super) fn keywords(rules: &Map<String, Value>, value: &Value) -> Option<String> {
    if rules.get("x-secret") == Some(&json!(true)) {
        // No value at all is the business of `type`, and a table or a list never is a reference.
        let text = value.as_str().unwrap_or_default();
        return SecretRef::from_str(text).err().map(|_| {
            format!(
                "must be a reference such as {}, never the secret itself",
                SecretRef::forms()
            )
        });
    }
    let kind = rules.get("x-kind")?.as_str()?;
    let Some(text) = value.as_str() else {
        return match kind {
            "duration" => Some("must be text with a unit, such as \"90s\"".to_owned()),
            "size" => Some("must be text with a unit, such as \"10MiB\"".to_owned()),
            _ => None,
        };
    };
    match kind {
        "duration" => amount(rules, text, spelled::duration),
        "size" => amount(rules, text, spelled::size),
        "rate" if text == "off" => None,
        "rate" => RateLimit::parse(text)
            .err()
            .map(|fault| format!("is not a rate, nor \"off\": {fault}")),
        "address" => text
            .parse::<std::net::SocketAddr>()
            .err()
            .map(|_| "must be an address and a port, such as 127.0.0.1:4409".to_owned()),
        "agents-address" => text.parse::<AgentsAddress>().err(),
        "control-address" => text.parse::<ControlAddress>().err(),
        "control-place" => control::address(text).err(),
        "gateway" => text.parse::<GatewayName>().err(),
        "target" => target::parse(text)
            .err()
            .map(|error| format!("is no target: {error}")),
        _ => None,
    }
}

/// An amount with its bounds, which are spelled as it is.
fn amount<T: PartialOrd>(
    rules: &Map<String, Value>,
    text: &str,
    read: impl Fn(&str) -> Result<T, String>,
) -> Option<String> {
    let found = match read(text) {
        Ok(found) => found,
        Err(form) => return Some(format!("is not understood: {form}")),
    };
    let bound = |name: &str| {
        let spelled = rules.get(name)?.as_str()?;
        Some((read(spelled).ok()?, spelled))
    };
    if let Some((_, least)) = bound("x-least").filter(|(least, _)| found < *least) {
        return Some(format!("must be at least {least}"));
    }
    bound("x-most")
        .filter(|(most, _)| found > *most)
        .map(|(_, most)| format!("must be at most {most}"))
}

/// The rules for the place that `path` leads to, where the schema knows it.
pub(super) fn rules_at<'s>(schema: &'s Value, path: &[String]) -> Option<&'s Map<String, Value>> {
    let mut rules = schema.as_object()?;
    for step in path {
        let known = rules.get("properties").and_then(|known| known.get(step));
        rules = known.or_else(|| rules.get("additionalProperties"))?.as_object()?;
    }
    Some(rules)
}
