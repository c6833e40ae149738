//! The one call: `GetSecretValue`, signed with Signature Version 4.
//!
//! Here: [`Caller`], the request, its signature and its time limits. The signature is made by AWS's own `aws-sigv4`.
//! Not here: whose keys sign (`credentials.rs`), what an error of the service means (`refusal.rs`).

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials as Signer;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::Full;
use runners::http::{BaseUrl, HttpClient, HttpFault};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::super::error::Fault;
use super::super::place::Surroundings;
use super::credentials::{self, Credentials};
use super::endpoint;
use super::instance::InstanceRole;
use super::refusal::{Asked, Refused};

/// One attempt, from the connection to the end of the answer.
const ATTEMPT: Duration = Duration::from_secs(4);
/// A secret has at most 64 KiB; JSON and its escapes need more.
const ANSWER_LIMIT: usize = 512 * 1024;
/// AWS's name of the header that every call needs.
const TARGET: &str = "x-amz-target";

/// What all calls share: the client and the instance's role.
#[derive(Default)]
pub(crate) struct Caller {
    http: OnceLock<Result<HttpClient, Fault>>,
    pub(super) role: InstanceRole,
}

impl Caller {
    /// The answer to `GetSecretValue`; one more attempt where the first got none, or where a role's keys had expired.
    pub(super) async fn secret_value(
        &self,
        around: &Surroundings,
        region: &str,
        id: &str,
    ) -> Result<Bytes, Fault> {
        let endpoint = endpoint::of(around, region)?;
        let body = serde_json::json!({ "SecretId": id }).to_string();
        let mut last = false;
        loop {
            let credentials = credentials::find(around).await?;
            let asked = Asked {
                region,
                host: endpoint.host_header(),
                who: &credentials.origin,
            };
            let request = signed(
                &endpoint,
                region,
                body.clone().into(),
                &credentials,
                SystemTime::now(),
            )?;
            let fault = match self.http(around)?.fetch(request, ATTEMPT, ANSWER_LIMIT).await {
                Ok((parts, answer)) if parts.status == StatusCode::OK => return Ok(answer),
                Ok((parts, answer)) => {
                    let refused = Refused::read(&parts, &answer);
                    if refused.is_of_credentials() && !last && self.role.forget().await {
                        last = true;
                        continue;
                    }
                    return Err(refused.fault(&asked, SystemTime::now()));
                }
                Err(HttpFault::TooLarge(limit)) => {
                    return Err(Fault::Unusable(format!(
                        "{} answers more than {limit} bytes",
                        asked.host
                    )));
                }
                Err(fault) => fault,
            };
            if last {
                return Err(Fault::Unavailable(format!(
                    "{} does not answer: {fault}",
                    asked.host
                )));
            }
            last = true;
        }
    }

    /// The client, made at the first call.
    pub(super) fn http(&self, around: &Surroundings) -> Result<&HttpClient, Fault> {
        let made = self.http.get_or_init(|| roots(around).map(HttpClient::new));
        made.as_ref().map_err(Fault::clone)
    }
}

/// The certificates that are trusted: those of `AWS_CA_BUNDLE`, else the system's.
fn roots(around: &Surroundings) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let Some(path) = around.variable("AWS_CA_BUNDLE") else {
        return Ok(rustls_native_certs::load_native_certs().certs);
    };
    let certificates = CertificateDer::pem_file_iter(&path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| Fault::Unusable(format!("AWS_CA_BUNDLE, {path}, cannot be used: {error}")))?;
    if certificates.is_empty() {
        return Err(Fault::Unusable(format!(
            "AWS_CA_BUNDLE, {path}, holds no PEM certificate"
        )));
    }
    Ok(certificates)
}

fn signed(
    endpoint: &BaseUrl,
    region: &str,
    body: Bytes,
    credentials: &Credentials,
    now: SystemTime,
) -> Result<Request<Full<Bytes>>, Fault> {
    // What is wrong here is wrong with us; the reasons hold no value, and are of no use to an operator.
    let broken = |_| Fault::Unusable("the call to Secrets Manager cannot be signed".to_owned());
    let headers = [
        ("host", endpoint.host_header()),
        ("content-type", "application/x-amz-json-1.1"),
        (TARGET, "secretsmanager.GetSecretValue"),
    ];
    let url = endpoint.join("/");
    let identity = Signer::new(
        credentials.access_key.clone(),
        credentials.secret_key.expose(),
        credentials.token.as_ref().map(|token| token.expose().to_owned()),
        None,
        "paperclip-bridge",
    )
    .into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("secretsmanager")
        .time(now)
        .settings(SigningSettings::default())
        .build()
        .map_err(|_| broken(()))?
        .into();
    let signable = SignableRequest::new("POST", &url, headers.into_iter(), SignableBody::Bytes(&body))
        .map_err(|_| broken(()))?;
    let (instructions, _) = sign(signable, &parameters).map_err(|_| broken(()))?.into_parts();
    let mut request = Request::post(&url)
        .body(Full::new(body.clone()))
        .map_err(|_| broken(()))?;
    for (name, value) in headers.into_iter().chain(instructions.headers()) {
        let name = header::HeaderName::from_bytes(name.as_bytes()).map_err(|_| broken(()))?;
        let mut value = HeaderValue::from_str(value).map_err(|_| broken(()))?;
        value.set_sensitive(true);
        request.headers_mut().insert(name, value);
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::super::super::value::Secret;
    use super::*;

    #[test]
    fn a_call_is_signed_over_host_target_date_and_token() {
        let endpoint = BaseUrl::parse("https://secretsmanager.eu-central-1.amazonaws.com").unwrap();
        let credentials = Credentials {
            access_key: "AKIDEXAMPLE".into(),
            secret_key: Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
            token: Some(Secret::new("token-of-a-role")),
            origin: "the environment".into(),
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_938_160);

        let request = signed(&endpoint, "eu-central-1", "{}".into(), &credentials, now).unwrap();

        let header = |name| request.headers().get(name).unwrap().to_str().unwrap();
        assert_eq!(header("x-amz-date"), "20150830T123600Z");
        assert_eq!(header("x-amz-security-token"), "token-of-a-role");
        let authorization = header("authorization");
        assert!(
            authorization.starts_with(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/eu-central-1/secretsmanager/aws4_request, \
                 SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-amz-target, Signature="
            ),
            "{authorization}"
        );
        assert!(!format!("{request:?}").contains("token-of-a-role"));
    }
}
