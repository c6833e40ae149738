//! Host certificates: what an authority's signature is worth for one host at one time; pure.

use russh::keys::ssh_key::certificate::CertType;
use russh::keys::{Algorithm, Certificate, HashAlg};

/// Whether a certificate of a trusted authority is good for this host now.
///
/// OpenSSH's `sshkey_cert_check_host`, except that a certificate without principals is refused: it would be good
/// for every host.
pub(super) fn check_certificate(certificate: &Certificate, host: &str, now_unix: u64) -> Result<(), String> {
    if certificate.cert_type() != CertType::Host {
        return Err("it is a user certificate".to_owned());
    }
    let signed_by_sha1 = Algorithm::Rsa { hash: None };
    if [signed_by_sha1, Algorithm::Dsa].contains(&certificate.signature().algorithm()) {
        return Err(
            "it is signed with SHA-1; have it signed anew with `ssh-keygen -t rsa-sha2-512 -s`".to_owned(),
        );
    }
    let authority = certificate.signature_key().fingerprint(HashAlg::Sha256);
    if now_unix < certificate.valid_after() {
        return Err(format!(
            "it is not valid yet, only from {} (Unix time)",
            certificate.valid_after()
        ));
    }
    if now_unix >= certificate.valid_before() {
        return Err(format!(
            "it expired at {} (Unix time)",
            certificate.valid_before()
        ));
    }
    if let Some((option, _)) = certificate.critical_options().iter().next() {
        return Err(format!(
            "it carries the critical option {option:?}, which is not understood"
        ));
    }
    if !certificate
        .valid_principals()
        .iter()
        .any(|principal| principal == host)
    {
        return Err(match certificate.valid_principals() {
            [] => "it names no host (sign it with `-n`)".to_owned(),
            names => format!("it is for {}, not for {host}", names.join(", ")),
        });
    }
    // Signature and window once more by the library, which also ties the signature to the authority.
    certificate
        .validate_at(now_unix, [&authority])
        .map_err(|_| "its signature is wrong".to_owned())
}
