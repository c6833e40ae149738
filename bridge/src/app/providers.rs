//! What every provider is built from: the secrets, the signer and the HTTP client of this daemon.
//!
//! Here: [`Providers`]. Not here: any provider, and what its configuration says; both are in `runners::provider`.

use std::sync::{Arc, OnceLock};

use runners::http::HttpClient;
use runners::provider::{self, ConfigError, Provider, ProviderSettings, ProviderSpec};

use crate::app::ProviderConfig;
use crate::config::environment;
use crate::leases::LeaseRecord;
use crate::secrets::Secrets;
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
        secrets: &Secrets,
    ) -> Result<Arc<dyn Provider>, ConfigError> {
        (spec.build)(ProviderSettings {
            config: config.0.clone(),
            secrets: Arc::new(secrets.clone()),
            signer: Arc::new(EnvelopeSigner),
            http: self.http(),
            environment,
        })
    }

    /// The client that all providers share.
    pub(crate) fn http(&self) -> HttpClient {
        let roots = || HttpClient::new(rustls_native_certs::load_native_certs().certs);
        self.http.get_or_init(roots).clone()
    }

    /// The provider that a record of an earlier process speaks of.
    ///
    /// # Errors
    ///
    /// One line: which configuration is at fault, and how to give another.
    pub(crate) fn of_record(
        &self,
        record: &LeaseRecord,
        secrets: &Secrets,
    ) -> Result<Arc<dyn Provider>, String> {
        let spec = provider::find(&record.provider)
            .ok_or_else(|| format!("this version has no provider `{}`", record.provider))?;
        self.build(spec, &record.config, secrets).map_err(|error| {
            format!("{error}; `leases reap` takes --provider-config and --provider in its place")
        })
    }
}
