//! What stands for a secret in a provider's configuration: a reference, resolved at each use.
//!
//! Here: [`SecretHandle`]. Not here: where secrets come from; the daemon hands in a [`SecretSource`].

use std::fmt;
use std::sync::Arc;

use super::{ConfigError, ProviderSettings, SecretFault, SecretField, SecretSource};
use crate::SecretText;

/// What is said of a value where a reference belongs; it does not repeat the value.
pub(super) const NO_REFERENCE: &str =
    "must be a reference such as env:NAME or file:PATH, never the secret itself";

/// A configured secret: its reference and where that is looked up. Holds no value.
#[derive(Clone)]
pub struct SecretHandle {
    reference: String,
    source: Arc<dyn SecretSource>,
}

impl SecretHandle {
    /// The secret of `field`: the configured reference, else the field's own variable of the environment where that is
    /// set, else none.
    ///
    /// - `provider`: its key, for the error.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] where `configured` is no reference; its text is not repeated.
    pub fn new(
        provider: &'static str,
        field: &SecretField,
        configured: Option<String>,
        settings: &ProviderSettings,
    ) -> Result<Option<Self>, ConfigError> {
        let reference = match configured {
            Some(reference) => {
                check(provider, field.name, &reference)?;
                reference
            }
            None => {
                let set = |name: &&str| (settings.environment)(name).is_some_and(|value| !value.is_empty());
                match field.fallback_env.filter(set) {
                    Some(name) => format!("env:{name}"),
                    None => return Ok(None),
                }
            }
        };
        Ok(Some(Self {
            reference,
            source: Arc::clone(&settings.secrets),
        }))
    }

    /// As [`Self::new`] for a secret that the provider cannot do without.
    ///
    /// # Errors
    ///
    /// As [`Self::new`], and where there is none: the error says where it was looked for.
    pub fn required(
        provider: &'static str,
        field: &SecretField,
        configured: Option<String>,
        settings: &ProviderSettings,
    ) -> Result<Self, ConfigError> {
        Self::new(provider, field, configured, settings)?.ok_or_else(|| ConfigError {
            provider,
            field: field.name.to_owned(),
            problem: match field.fallback_env {
                Some(name) => format!(
                    "is missing, and {name} is not set: give a reference such as env:NAME or file:PATH, or set {name}"
                ),
                None => "is missing: give a reference such as env:NAME or file:PATH".to_owned(),
            },
        })
    }

    /// The secret as it is now; look it up anew for each use, so that a rotated one is taken.
    ///
    /// # Errors
    ///
    /// [`SecretFault`]: the reference, where it was looked for, and never the value.
    pub async fn get(&self) -> Result<SecretText, SecretFault> {
        self.source.resolve(&self.reference).await
    }

    /// The provider answered 401 to `refused`: the secret as it is now where that is another one, so that the call is
    /// worth another attempt; it is read anew at once, unless that was done a moment ago.
    ///
    /// - `refused`: what [`Self::get`] gave for the call.
    pub async fn renewed(&self, refused: &SecretText) -> Option<SecretText> {
        let other = |secret: &SecretText| secret.expose() != refused.expose();
        // Somebody else's call may have met the same answer before.
        let known = self.get().await.ok()?;
        if other(&known) {
            return Some(known);
        }
        self.source.rejected(&self.reference);
        self.get().await.ok().filter(other)
    }

    /// The reference, such as `env:NAME`.
    #[must_use]
    pub fn reference(&self) -> &str {
        &self.reference
    }
}

impl fmt::Debug for SecretHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretHandle")
            .field("reference", &self.reference)
            .finish_non_exhaustive()
    }
}

/// Accepts the form of a reference: `word:rest`, without control characters.
pub(super) fn check(provider: &'static str, field: &str, reference: &str) -> Result<(), ConfigError> {
    let is_reference = reference.split_once(':').is_some_and(|(word, rest)| {
        word.starts_with(|first: char| first.is_ascii_lowercase())
            && word
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !rest.trim().is_empty()
            && !rest.chars().any(char::is_control)
    });
    if is_reference {
        return Ok(());
    }
    Err(ConfigError {
        provider,
        field: field.to_owned(),
        problem: NO_REFERENCE.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use futures_util::future::BoxFuture;
    use serde_json::Map;

    use super::super::{RequestSigner, UnsignedRequest};
    use super::*;
    use crate::http::HttpClient;

    struct Nothing;

    impl SecretSource for Nothing {
        fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<SecretText, SecretFault>> {
            std::future::ready(Ok(SecretText::new(format!("value of {reference}")))).boxed()
        }
    }

    impl RequestSigner for Nothing {
        fn sign(
            &self,
            _: &str,
            _: &SecretText,
            _: &UnsignedRequest<'_>,
        ) -> Result<Vec<(&'static str, String)>, String> {
            Err("not here".to_owned())
        }
    }

    fn settings() -> ProviderSettings {
        ProviderSettings {
            config: Map::new(),
            secrets: Arc::new(Nothing),
            signer: Arc::new(Nothing),
            http: HttpClient::new([]),
            environment: |name| match name {
                "ACME_API_KEY" => Some("5f3b0c6d9a".to_owned()),
                "EMPTY" => Some(String::new()),
                _ => None,
            },
        }
    }

    fn field(fallback_env: Option<&'static str>) -> SecretField {
        SecretField {
            name: "apiKey",
            fallback_env,
        }
    }

    #[tokio::test]
    async fn the_configured_reference_is_resolved_at_each_use() {
        let configured = Some("file:/key".to_owned());
        let handle = SecretHandle::new("acme", &field(Some("ACME_API_KEY")), configured, &settings());

        let handle = handle.unwrap().unwrap();
        assert_eq!(handle.get().await.unwrap().expose(), "value of file:/key");
    }

    #[test]
    fn the_known_variable_is_taken_only_where_it_is_set() {
        let taken = |name| SecretHandle::new("acme", &field(name), None, &settings()).unwrap();

        assert_eq!(
            taken(Some("ACME_API_KEY")).unwrap().reference(),
            "env:ACME_API_KEY"
        );
        for none in [Some("EMPTY"), Some("ABSENT"), None] {
            assert!(taken(none).is_none(), "{none:?}");
        }
    }

    #[test]
    fn a_missing_secret_says_where_it_was_looked_for() {
        let error = SecretHandle::required("acme", &field(Some("ABSENT")), None, &settings()).unwrap_err();

        assert_eq!(
            error.to_string(),
            "acme: `apiKey` is missing, and ABSENT is not set: give a reference such as env:NAME or file:PATH, or set ABSENT"
        );
    }

    #[test]
    fn a_value_in_the_place_of_a_reference_is_not_repeated() {
        let error = SecretHandle::new("acme", &field(None), Some("5f3b0c6d9a".to_owned()), &settings());

        let text = format!("{:?}", error.unwrap_err());
        assert!(!text.contains("5f3b0c6d9a"), "{text}");
    }
}
