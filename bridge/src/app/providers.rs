//! What every provider is built from: the secrets, the signer and the HTTP client of this daemon.
//!
//! Here: [`Providers`]. Not here: any provider, and what its configuration says; both are in `runners::provider`.

use std::sync::{Arc, OnceLock};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use runners::SecretText;
use runners::http::HttpClient;
use runners::provider::{
    self, ConfigError, Provider, ProviderSettings, ProviderSpec, SecretFault, SecretSource,
};

use crate::app::ProviderConfig;
use crate::config::environment;
use crate::leases::LeaseRecord;
use crate::secrets::SecretRef;
use crate::signing::EnvelopeSigner;

/// Makes providers; clones share one client.
#[derive(Clone, Debug, Default)]
pub(crate) struct Providers {
    // The system's certificates are many, and most commands need none.
    http: Arc<OnceLock<HttpClient>>,
}

impl Providers {
    /// The provider with this configuration. Connects to nothing.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], which names the field.
    pub(crate) fn build(
        &self,
        spec: &ProviderSpec,
        config: &ProviderConfig,
    ) -> Result<Arc<dyn Provider>, ConfigError> {
        let roots = || HttpClient::new(rustls_native_certs::load_native_certs().certs);
        (spec.build)(ProviderSettings {
            config: config.0.clone(),
            secrets: Arc::new(References),
            signer: Arc::new(EnvelopeSigner),
            http: self.http.get_or_init(roots).clone(),
            environment,
        })
    }

    /// The provider that a record of an earlier process speaks of.
    ///
    /// # Errors
    ///
    /// One line: which configuration is at fault, and how to give another.
    pub(crate) fn of_record(&self, record: &LeaseRecord) -> Result<Arc<dyn Provider>, String> {
        let spec = provider::find(&record.provider)
            .ok_or_else(|| format!("this version has no provider `{}`", record.provider))?;
        self.build(spec, &record.config).map_err(|error| {
            format!("{error}; `leases reap` takes --provider-config and --provider in its place")
        })
    }
}

/// References as the command line has them.
struct References;

impl SecretSource for References {
    fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<SecretText, SecretFault>> {
        let resolved = reference
            .parse::<SecretRef>()
            .and_then(|reference| reference.resolve(&environment))
            .map(|secret| SecretText::new(secret.expose()))
            .map_err(|error| {
                let source = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
                SecretFault(format!("{error}{}", source.unwrap_or_default()))
            });
        std::future::ready(resolved).boxed()
    }
}
