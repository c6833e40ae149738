//! A provider's configuration: one struct that is its JSON Schema, its bounds and its reader.
//!
//! Here: [`schema`] and [`read`]. In `check` the schema's own rules held against a value, for whoever has such a schema
//! ([`faults`]). Not here: any field. A provider's struct derives `Deserialize` and `JsonSchema`, is
//! `#[serde(rename_all = "camelCase", default)]`, and says its bounds once, as in
//! `#[schemars(range(min = 1, max = 60_000))]`; a doc comment is the description.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::check;
pub use super::check::{Fault, Keywords, faults};
use super::{ConfigError, SecretField, secret};

/// The JSON Schema (2020-12) of `T`, whose secret fields are marked `"x-secret": true`.
///
/// Nothing in it is a reference to another place, and it allows no field that `T` does not name.
#[must_use]
pub fn schema<T: JsonSchema>(secrets: &[SecretField]) -> Value {
    let generator = SchemaSettings::draft2020_12()
        .with(|settings| settings.inline_subschemas = true)
        .into_generator();
    let mut schema = generator.into_root_schema_for::<T>();
    schema.insert("additionalProperties".to_owned(), Value::Bool(false));
    let fields = schema.get_mut("properties").and_then(Value::as_object_mut);
    for (name, field) in fields.into_iter().flatten() {
        let secret = secrets.iter().find(|secret| secret.name == name);
        if let (Some(secret), Some(field)) = (secret, field.as_object_mut()) {
            mark_secret(field, secret);
        }
    }
    schema.to_value()
}

fn mark_secret(field: &mut Map<String, Value>, secret: &SecretField) {
    let said = field
        .get("description")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let mut description =
        format!("{said} A reference such as env:NAME or file:PATH, never the value itself.");
    if let Some(name) = secret.fallback_env {
        description.push_str(&format!(" Absent: env:{name}, where that is set."));
    }
    field.insert("description".to_owned(), description.trim().into());
    field.insert("x-secret".to_owned(), Value::Bool(true));
}

/// Reads a provider's configuration.
///
/// - `provider`: its key, for the error.
/// - `secrets`: the fields that hold references; they are text or nothing in `T`.
///
/// # Errors
///
/// [`ConfigError`] naming the field: one that `T` does not have, a value of the wrong type, one outside the bounds of
/// the schema (`minimum`, `maximum`, `minLength`, `maxLength`, `minItems`, `maxItems`, a choice), or a secret field
/// that holds no reference; such a field's value is never repeated.
pub fn read<T: DeserializeOwned + JsonSchema>(
    provider: &'static str,
    secrets: &[SecretField],
    config: &Map<String, Value>,
) -> Result<T, ConfigError> {
    let refused = |Fault { field, problem }: Fault| ConfigError {
        provider,
        field: if field.is_empty() {
            "config".to_owned()
        } else {
            field
        },
        problem,
    };
    for secret in secrets {
        match config.get(secret.name) {
            None | Some(Value::Null) => {}
            Some(Value::String(reference)) => secret::check(provider, secret.name, reference)?,
            Some(_) => return Err(refused(Fault::new(secret.name, secret::NO_REFERENCE))),
        }
    }
    let value = Value::Object(config.clone());
    let first = check::faults(&schema::<T>(secrets), &value, &|_, _| None)
        .into_iter()
        .next();
    first.map_or(Ok(()), |fault| Err(refused(fault)))?;
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = error.path().to_string();
        let field = if field == "." { String::new() } else { field };
        refused(Fault::new(field, format!("cannot be used: {}", error.inner())))
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    /// How it ends.
    #[derive(Debug, Default, Deserialize, JsonSchema, PartialEq)]
    #[serde(rename_all = "lowercase")]
    enum Ending {
        /// Kept.
        #[default]
        Pause,
        /// Not kept.
        Kill,
    }

    #[derive(Debug, Default, Deserialize, JsonSchema, PartialEq)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Step {
        /// Which call.
        call: String,
        /// How often.
        #[schemars(range(min = 1))]
        #[serde(default)]
        times: Option<u32>,
    }

    #[derive(Debug, Deserialize, JsonSchema, PartialEq)]
    #[serde(rename_all = "camelCase", default)]
    struct Config {
        /// The key.
        api_key: Option<String>,
        /// Limit of one execution.
        #[schemars(range(min = 1000, max = 86_400_000))]
        timeout_ms: u64,
        /// What to start from.
        #[schemars(length(min = 1, max = 8))]
        template: String,
        reuse_lease: bool,
        on_release: Option<Ending>,
        steps: Vec<Step>,
    }

    impl Default for Config {
        fn default() -> Self {
            Self {
                api_key: None,
                timeout_ms: 30_000,
                template: "base".into(),
                reuse_lease: false,
                on_release: None,
                steps: vec![],
            }
        }
    }

    const SECRETS: &[SecretField] = &[SecretField {
        name: "apiKey",
        fallback_env: Some("ACME_API_KEY"),
    }];

    fn reading(config: Value) -> Result<Config, ConfigError> {
        read("acme", SECRETS, config.as_object().unwrap())
    }

    #[test]
    fn an_empty_configuration_is_the_default() {
        assert_eq!(reading(json!({})).unwrap(), Config::default());
    }

    #[test]
    fn what_the_schema_allows_is_read() {
        let config = reading(json!({
            "apiKey": "env:KEY", "timeoutMs": 1000, "template": "12345678", "reuseLease": true,
            "onRelease": "kill", "steps": [{"call": "release", "times": 2}],
        }))
        .unwrap();

        assert_eq!((config.timeout_ms, config.on_release), (1000, Some(Ending::Kill)));
        assert_eq!(config.steps[0].times, Some(2));
        assert!(reading(json!({"onRelease": null, "apiKey": null})).is_ok());
    }

    #[test]
    fn every_mistake_names_its_field() {
        let table = [
            (
                json!({"timoutMs": 1}),
                "acme: `timoutMs` is not known here; did you mean `timeoutMs`?",
            ),
            (
                json!({"reuse_lease": true}),
                "acme: `reuse_lease` is not known here; did you mean `reuseLease`?",
            ),
            (
                json!({"colour": 1}),
                "acme: `colour` is not known here; known are apiKey, onRelease, reuseLease, steps, template, timeoutMs",
            ),
            (
                json!({"timeoutMs": 999}),
                "acme: `timeoutMs` must be at least 1000, not 999",
            ),
            (
                json!({"timeoutMs": 86_400_001}),
                "acme: `timeoutMs` must be at most 86400000, not 86400001",
            ),
            (
                json!({"timeoutMs": "5000"}),
                "acme: `timeoutMs` must be a whole number, not text",
            ),
            (
                json!({"timeoutMs": 5000.5}),
                "acme: `timeoutMs` must be a whole number, not a fraction",
            ),
            (
                json!({"timeoutMs": -1}),
                "acme: `timeoutMs` must be at least 1000, not -1",
            ),
            (json!({"template": ""}), "acme: `template` must not be empty"),
            (
                json!({"template": "123456789"}),
                "acme: `template` must have at most 8 characters, not 9",
            ),
            (
                json!({"reuseLease": 1}),
                "acme: `reuseLease` must be true or false, not a number",
            ),
            (
                json!({"onRelease": "stop"}),
                "acme: `onRelease` must be one of \"pause\", \"kill\"",
            ),
            (
                json!({"onRelease": 5}),
                "acme: `onRelease` must be one of \"pause\", \"kill\"",
            ),
            (
                json!({"steps": {}}),
                "acme: `steps` must be a list, not an object",
            ),
            (
                json!({"steps": [{"call": "a"}, {"call": "b", "times": 0}]}),
                "acme: `steps[1].times` must be at least 1, not 0",
            ),
            (json!({"steps": [{}]}), "acme: `steps[0].call` is missing"),
            (
                json!({"steps": [{"cal": "a"}]}),
                "acme: `steps[0].cal` is not known here; did you mean `call`?",
            ),
            (
                json!({"steps": [{"call": "a", "times": 5_000_000_000_u64}]}),
                "acme: `steps[0].times` cannot be used: invalid value: integer `5000000000`, expected u32",
            ),
        ];

        for (config, said) in table {
            assert_eq!(reading(config.clone()).unwrap_err().to_string(), said, "{config}");
        }
    }

    #[test]
    fn a_value_where_a_reference_belongs_is_refused_and_not_repeated() {
        for bad in [
            json!("acme_5f3b0c6d9a"),
            json!(":5f3b0c6d9a"),
            json!("env:"),
            json!("Env:5f3b0c6d9a"),
            json!("env:5f3b0c6d9a\n"),
            json!({"5f3b0c6d9a": "5f3b0c6d9a"}),
            json!(["5f3b0c6d9a"]),
            json!(530_306),
        ] {
            let error = reading(json!({ "apiKey": bad })).unwrap_err();

            assert_eq!(error.field, "apiKey");
            let text = format!("{error} {error:?}");
            assert!(!text.contains("5f3b0c6d9a") && !text.contains("530306"), "{text}");
        }
    }

    #[test]
    fn the_schema_is_self_contained_and_says_which_fields_are_secret() {
        let schema = schema::<Config>(SECRETS);

        let text = schema.to_string();
        assert!(!text.contains("$ref") && !text.contains("$defs"), "{text}");
        assert_eq!(schema["additionalProperties"], json!(false));
        let fields = &schema["properties"];
        assert_eq!(fields["apiKey"]["x-secret"], json!(true));
        let description = fields["apiKey"]["description"].as_str().unwrap();
        assert!(
            description.starts_with("The key. A reference such as"),
            "{description}"
        );
        assert!(description.contains("env:ACME_API_KEY"), "{description}");
        assert_eq!(fields["timeoutMs"]["minimum"], json!(1000));
        assert_eq!(fields["timeoutMs"]["default"], json!(30_000));
        assert_eq!(fields["template"]["x-secret"], Value::Null);
    }
}
