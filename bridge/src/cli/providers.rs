//! `providers`: what sandbox providers there are, what each can do, and how it is configured.
//!
//! Here: how a declaration is shown, as text and as JSON. Not here: any provider; they come from
//! [`runners::provider::PROVIDERS`], and what is shown is what they declare.

use std::fmt::Write as _;

use clap::Args;
use runners::provider::{PROVIDERS, ProviderSpec, find, nearest};
use serde_json::{Value, json};

use crate::cli::exit::{Exit, Failure};
use crate::cli::stdio::{print, print_json};

/// Arguments of `providers`.
#[derive(Args, Debug)]
pub(crate) struct ProvidersArguments {
    /// Only this one, with its configuration [default: all]
    #[arg(value_name = "NAME", value_parser = named)]
    name: Option<&'static ProviderSpec>,
    /// With the JSON Schema of the configuration
    #[arg(long)]
    schema: bool,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

fn named(name: &str) -> Result<&'static ProviderSpec, String> {
    find(name).ok_or_else(|| {
        let keys = || PROVIDERS.iter().map(|provider| provider.key);
        let all = keys().collect::<Vec<_>>().join(", ");
        match nearest(name, keys()) {
            Some(near) => format!("there is no such provider; did you mean {near}? There are {all}"),
            None => format!("there is no such provider; there are {all}"),
        }
    })
}

/// Lists the providers, or shows one.
///
/// # Errors
///
/// Where standard output takes nothing.
pub(crate) fn providers(arguments: &ProvidersArguments) -> Result<Exit, Failure> {
    let schema = arguments.schema;
    match (arguments.name, arguments.json) {
        (Some(provider), true) => print_json(&described(provider, schema))?,
        (None, true) => {
            let all: Vec<Value> = PROVIDERS
                .iter()
                .map(|provider| described(provider, schema))
                .collect();
            print_json(&json!({ "providers": all }))?;
        }
        (Some(provider), false) if schema => print(&format!("{:#}\n", (provider.schema)()))?,
        (Some(provider), false) => print(&in_full(provider))?,
        (None, false) => print(&listed(schema))?,
    }
    Ok(Exit::Ok)
}

fn described(provider: &ProviderSpec, schema: bool) -> Value {
    let secrets: Vec<Value> = provider
        .secrets
        .iter()
        .map(|secret| json!({ "name": secret.name, "fallbackEnv": secret.fallback_env }))
        .collect();
    let mut value = json!({
        "key": provider.key,
        "about": provider.about,
        "capabilities": provider.capabilities,
        "shellCommand": provider.shell.map(runners::Shell::program),
        "secrets": secrets,
    });
    if let (true, Some(fields)) = (schema, value.as_object_mut()) {
        fields.insert("schema".to_owned(), (provider.schema)());
    }
    value
}

fn listed(schema: bool) -> String {
    let width = PROVIDERS
        .iter()
        .map(|provider| provider.key.len())
        .max()
        .unwrap_or_default();
    let mut text = String::new();
    for provider in PROVIDERS {
        // A `String` takes every write.
        let _ = writeln!(text, "{:width$}  {}", provider.key, provider.about);
        if schema {
            let _ = writeln!(text, "{:#}", (provider.schema)());
        }
    }
    text
}

fn in_full(provider: &ProviderSpec) -> String {
    let key = provider.key;
    let can = provider.capabilities;
    let abilities = [
        (can.duplex, "duplex"),
        (can.file_transfer, "file transfer"),
        (can.streaming_output, "streaming output"),
        (can.reuse_leases, "reuse of leases"),
        (can.background, "background execution"),
    ];
    let abilities: Vec<&str> = abilities
        .iter()
        .filter_map(|(has, name)| has.then_some(*name))
        .collect();
    let mut text = format!(
        "{key}: {}\n\n  targets  {key}: for a new lease, {key}:ID for one of before\n  can      {}\n  shell    {}\n\nConfiguration:\n",
        provider.about,
        abilities.join(", "),
        provider.shell.unwrap_or_default().program(),
    );
    let schema = (provider.schema)();
    let fields = schema.get("properties").and_then(Value::as_object);
    for (name, field) in fields.into_iter().flatten() {
        let about = field.get("description").and_then(Value::as_str);
        let about = about.unwrap_or_default().replace('\n', " ");
        let default = field.get("default").filter(|default| !default.is_null());
        let default = default.map_or(String::new(), |default| format!(" [default: {default}]"));
        // As above.
        let _ = writeln!(text, "  {name}{default}\n      {about}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_no_provider_is_told_with_the_nearest_and_all() {
        let text = named("fakee").unwrap_err();

        assert!(text.contains("did you mean fake?"), "{text}");
        assert!(named("something-else").unwrap_err().contains("there are "));
    }

    #[test]
    fn json_has_the_schema_only_where_it_is_asked_for() {
        for provider in PROVIDERS {
            let short = described(provider, false);
            let full = described(provider, true);

            assert_eq!(short["key"], provider.key);
            assert_eq!(short.get("schema"), None);
            assert_eq!(full["schema"]["type"], "object");
            assert!(full["capabilities"]["duplex"].is_boolean());
        }
    }

    #[test]
    fn the_text_names_every_field() {
        for provider in PROVIDERS {
            let text = in_full(provider);

            let schema = (provider.schema)();
            for name in schema["properties"].as_object().unwrap().keys() {
                assert!(
                    text.contains(&format!("\n  {name}")),
                    "{name} of {}",
                    provider.key
                );
            }
            assert!(listed(false).contains(provider.about));
        }
    }
}
