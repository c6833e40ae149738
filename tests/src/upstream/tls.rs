//! A certificate authority of its own, and a server certificate for loopback signed by it.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;

/// An authority that nobody trusts unless told to.
pub struct Authority {
    directory: TempDir,
    config: Arc<ServerConfig>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("file", &self.file())
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes the authority and a certificate for `127.0.0.1` and `localhost`.
    ///
    /// # Panics
    ///
    /// If the keys cannot be made.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).expect("no names are valid names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate().expect("keys can be made");
        let authority = params
            .self_signed(&authority_key)
            .expect("an authority signs itself");
        let directory = tempfile::tempdir().expect("a temporary folder can be made");
        std::fs::write(directory.path().join("ca.pem"), authority.pem()).expect("the folder takes a file");
        let issuer = Issuer::new(params, authority_key);

        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let key = KeyPair::generate().expect("keys can be made");
        let server = CertificateParams::new(names).expect("loopback names are valid");
        let certificate = server.signed_by(&key, &issuer).expect("the authority signs");
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring speaks the default versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .expect("the key fits its certificate");
        Self {
            directory,
            config: Arc::new(config),
        }
    }

    /// The authority's certificate as PEM.
    pub fn file(&self) -> std::path::PathBuf {
        Path::join(self.directory.path(), "ca.pem")
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}
