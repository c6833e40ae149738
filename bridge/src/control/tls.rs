//! TLS of the control API over TCP, for both sides.
//!
//! Here: certificates and keys out of PEM, and the two settings of rustls, TLS 1.3 only. Not here: who is let in
//! (`tcp.rs`), how a daemon is spoken to (`client.rs`).

use std::path::Path;
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Both ends are ours.
const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// What the daemon shows, and whose clients it believes.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub(super) config: Arc<ServerConfig>,
    /// What it shows, to tell whether it is another.
    chain: Vec<CertificateDer<'static>>,
    believes: Vec<CertificateDer<'static>>,
}

impl Shown {
    /// The keys of the configuration behind which something else is found now.
    pub(super) fn differs(&self, before: &Self) -> Vec<String> {
        [
            ("certificate", self.chain != before.chain),
            ("client_ca", self.believes != before.believes),
        ]
        .into_iter()
        .filter(|(_, differs)| *differs)
        .map(|(key, _)| format!("listeners.control.{key}"))
        .collect()
    }
}

/// Reads what the daemon shows, and whose clients it believes.
///
/// - `client_ca`: with it, clients must show a certificate of this authority.
///
/// # Errors
///
/// One line that says which file is wrong, and how.
pub(super) fn server(certificate: &Path, key: &str, client_ca: Option<&Path>) -> Result<Shown, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(VERSIONS)
        .map_err(|error| error.to_string())?;
    let mut believes = Vec::new();
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            believes = certificates(path)?;
            let roots = Arc::new(roots(path, &believes)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                .build()
                .map_err(|error| format!("{}: {error}", path.display()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let chain = certificates(certificate)?;
    let mut config = builder
        .with_single_cert(chain.clone(), private_key(key)?)
        .map_err(|error| {
            format!(
                "the certificate in {} and its key: {error}",
                certificate.display()
            )
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Shown {
        config: Arc::new(config),
        chain,
        believes,
    })
}

/// Which daemon a client believes, and what it shows.
///
/// - `ca`: the authority of the daemon's certificate; without one, those that the system trusts.
/// - `shows`: a certificate's file and its key in PEM.
///
/// # Errors
///
/// One line that says which file is wrong, and how.
pub(super) fn client(ca: Option<&Path>, shows: Option<(&Path, &str)>) -> Result<Arc<ClientConfig>, String> {
    let roots = match ca {
        Some(path) => roots(path, &certificates(path)?)?,
        None => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            roots
        }
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(VERSIONS)
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let mut config = match shows {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder
            .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
            .map_err(|error| {
                format!(
                    "the certificate in {} and its key: {error}",
                    certificate.display()
                )
            })?,
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| format!("cannot read certificates from {}: {error}", path.display()))?;
    if found.is_empty() {
        return Err(format!("{} holds no PEM certificate", path.display()));
    }
    Ok(found)
}

fn roots(path: &Path, certificates: &[CertificateDer<'static>]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots
            .add(certificate.clone())
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(roots)
}

/// The parser's own words could repeat a piece of the key.
fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| "the certificate's private key is no key in PEM (PKCS#8, SEC1 or PKCS#1)".to_owned())
}
