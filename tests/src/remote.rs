//! `paperclip-bridge serve` with its control API over TCP, and the certificates on both sides.
//!
//! Here: an authority that everybody believes, one that nobody does, and a daemon that is told of the first. Not here:
//! a daemon at its unix socket ([`crate::serving`]).

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::binary::{BridgeCommand, Finished, LIMIT, Running};
use crate::waiting::eventually;
use crate::world::{CREDENTIAL, CREDENTIAL_VARIABLE};

/// What clients must show.
pub const CONTROL_TOKEN: &str = "0123456789abcdef0123456789abcdef-control";

/// Who a client of a daemon over TCP must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// Whoever has the token.
    Token,
    /// Whoever has a certificate.
    Certificate,
    /// Whoever has both.
    Both,
}

/// A daemon over TCP. Dropping it kills it.
#[derive(Debug)]
pub struct Remote {
    /// The process.
    pub running: Running,
    /// Where its control API listens.
    pub address: SocketAddr,
    /// Certificates, keys, the token, its configuration and its state.
    pub folder: TempDir,
}

/// The files of a daemon and its clients: `ca.pem`, `server.pem`, `client.pem`, those of an authority that nobody
/// believes (`strange-ca.pem`, `strange.pem`), the keys beside them, and `token`.
///
/// # Panics
///
/// Where they cannot be made.
pub fn certificates() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let ours = authority(folder.path(), "ca");
    certificate(folder.path(), "server", &ours);
    certificate(folder.path(), "client", &ours);
    let strange = authority(folder.path(), "strange-ca");
    certificate(folder.path(), "strange", &strange);
    write(&folder.path().join("token"), CONTROL_TOKEN);
    folder
}

/// Puts another certificate of the daemon in place of the one that it has, of an authority of its own: `new-ca.pem`.
///
/// # Panics
///
/// Where it cannot be made.
pub fn renew(folder: &Path) {
    let other = authority(folder, "new-ca");
    certificate(folder, "server", &other);
}

fn authority(folder: &Path, name: &str) -> Issuer<'static, KeyPair> {
    let mut params = CertificateParams::new(vec![]).expect("no names are valid names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // A certificate whose issuer has its own name is taken for self-signed by some.
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().expect("keys can be made");
    let certificate = params.self_signed(&key).expect("an authority signs itself");
    write(&folder.join(format!("{name}.pem")), &certificate.pem());
    Issuer::new(params, key)
}

fn certificate(folder: &Path, name: &str, issuer: &Issuer<'static, KeyPair>) {
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let key = KeyPair::generate().expect("keys can be made");
    let mut params = CertificateParams::new(names).expect("loopback names are valid");
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.signed_by(&key, issuer).expect("the authority signs");
    write(&folder.join(format!("{name}.pem")), &certificate.pem());
    write(&folder.join(format!("{name}.key")), &key.serialize_pem());
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("the folder takes a file");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("the file is ours");
}

/// The command line of a daemon on these files.
///
/// # Panics
///
/// Where its configuration cannot be written.
pub fn serve(folder: &Path, asks: Asks, more: &str) -> BridgeCommand {
    let place = |name: &str| folder.join(name).display().to_string();
    let mut text = format!(
        "{more}\n[listeners.control]\naddress = \"tcp:127.0.0.1:0\"\ncertificate = \"{}\"\nkey = \"file:{}\"\n",
        place("server.pem"),
        place("server.key")
    );
    if asks != Asks::Certificate {
        text.push_str(&format!("token = \"file:{}\"\n", place("token")));
    }
    if asks != Asks::Token {
        text.push_str(&format!("client_ca = \"{}\"\n", place("ca.pem")));
    }
    write(&folder.join("bridge.toml"), &text);
    BridgeCommand::new(["serve", "--json", "--ops", "127.0.0.1:0"])
        .args(["--config".to_owned(), place("bridge.toml")])
        .args(["--state-dir".to_owned(), place("state")])
        .env(CREDENTIAL_VARIABLE, CREDENTIAL)
}

impl Remote {
    /// Starts one; `more` is what else its configuration says.
    ///
    /// # Panics
    ///
    /// With its own words where it does not start.
    pub async fn start(asks: Asks, more: &str) -> Self {
        let folder = certificates();
        let mut running = serve(folder.path(), asks, more).start();
        let line = eventually(LIMIT, "`serve` prints its line or ends", || {
            let said = running.stdout();
            match said.split_once('\n') {
                Some((line, _)) => Some(Ok(line.to_owned())),
                None => running.has_ended().then(|| Err(running.stderr())),
            }
        })
        .await
        .unwrap_or_else(|stderr| panic!("`serve` ended: {stderr}"));
        let told: Value = serde_json::from_str(&line).expect("it is JSON");
        let address = told["control"]
            .as_str()
            .and_then(|control| control.strip_prefix("tcp:"));
        Self {
            running,
            address: address
                .expect("it listens on TCP")
                .parse()
                .expect("it is an address"),
            folder,
        }
    }

    /// One of its files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a command against it; a word `@NAME` is the file of that name, and `file:@NAME` a reference to it.
    pub async fn run(&self, words: &[&str]) -> Finished {
        let words = words.iter().map(|word| match word.split_once('@') {
            Some((before, name)) => format!("{before}{}", self.file(name).display()),
            None => (*word).to_owned(),
        });
        BridgeCommand::new(words)
            .args(["--control".to_owned(), format!("tcp:{}", self.address)])
            .finish()
            .await
    }

    /// A connection with TLS, as a program that trusts its authority makes it and shows nothing.
    ///
    /// # Errors
    ///
    /// Where the handshake does not come about.
    ///
    /// # Panics
    ///
    /// Where its authority's file is none.
    pub async fn connect(&self) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_trusting("ca.pem").await
    }

    /// The same for a program that trusts this file's authority.
    ///
    /// # Errors
    ///
    /// Where the handshake does not come about.
    ///
    /// # Panics
    ///
    /// Where the file is none.
    pub async fn connect_trusting(&self, file: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(self.file(file)).expect("it is a certificate");
        roots.add(ca).expect("it is an authority");
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring speaks the default versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("localhost").expect("it is a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}
