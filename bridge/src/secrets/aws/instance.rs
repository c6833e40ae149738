//! The role of the machine that we run on, by the instance metadata service, version 2 only.
//!
//! Here: the token, the role's keys and their renewal. A request without a token is never sent: version 1 answers
//! whoever can make this process fetch a URL.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::Full;
use serde::Deserialize;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::super::error::Fault;
use super::super::place::Surroundings;
use super::super::value::Secret;
use super::credentials::Credentials;

/// Where the service is on every instance.
const ADDRESS: &str = "http://169.254.169.254";
/// It answers at once or is not there.
const ATTEMPT: Duration = Duration::from_secs(2);
const ANSWER_LIMIT: usize = 64 * 1024;
/// The longest that the service grants.
const TOKEN_LIFETIME: Duration = Duration::from_hours(6);
/// Keys are renewed so long before they end; the service has new ones by then.
const AHEAD: Duration = Duration::from_mins(5);
/// Tokens and keys without an end are fetched again after this.
const UNTIMED: Duration = Duration::from_mins(5);

const TOKEN: &str = "x-aws-ec2-metadata-token";
const TOKEN_TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";

/// The role's keys, fetched when they are needed.
#[derive(Default)]
pub(super) struct InstanceRole {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    token: Option<(Secret, SystemTime)>,
    keys: Option<(Credentials, SystemTime)>,
}

/// A role's keys as the service gives them.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Keys {
    code: Option<String>,
    access_key_id: String,
    secret_access_key: Zeroizing<String>,
    token: Zeroizing<String>,
    expiration: Option<String>,
}

impl InstanceRole {
    /// The keys of the instance's role.
    ///
    /// # Errors
    ///
    /// [`Fault::Missing`] where there is no role or the service is turned off; [`Fault::Unavailable`] where it does not
    /// answer and no keys that still hold are known.
    pub(super) async fn credentials(&self, around: &Surroundings) -> Result<Credentials, Fault> {
        let address = address(around)?;
        let mut kept = self.kept.lock().await;
        let now = SystemTime::now();
        if let Some((keys, until)) = &kept.keys
            && now + AHEAD < *until
        {
            return Ok(keys.clone());
        }
        match kept.fetch(around, &address).await {
            Ok(keys) => Ok(keys),
            Err(fault) => match &kept.keys {
                Some((keys, until)) if fault.may_pass() && now < *until => Ok(keys.clone()),
                Some(_) | None => Err(fault),
            },
        }
    }

    /// Keys of the role were not taken; says whether there were any to forget.
    pub(super) async fn forget(&self) -> bool {
        self.kept.lock().await.keys.take().is_some()
    }
}

impl Kept {
    async fn fetch(&mut self, around: &Surroundings, address: &str) -> Result<Credentials, Fault> {
        let roles = self.get(around, address, ROLES).await?;
        let role = std::str::from_utf8(&roles)
            .ok()
            .and_then(|text| text.lines().next());
        let role = role
            .map(str::trim)
            .filter(|role| is_role(role))
            .ok_or_else(|| no_role(address))?;
        let answer = self.get(around, address, &format!("{ROLES}{role}")).await?;
        let broken = || {
            Fault::Unusable(format!(
                "the instance metadata at {address} give no keys of the role {role}"
            ))
        };
        let keys: Keys = serde_json::from_slice(&answer).map_err(|_| broken())?;
        if keys.code.as_deref().is_some_and(|code| code != "Success") {
            return Err(broken());
        }
        let until = keys
            .expiration
            .and_then(|text| text.parse::<jiff::Timestamp>().ok())
            .map_or_else(|| SystemTime::now() + AHEAD + UNTIMED, SystemTime::from);
        let credentials = Credentials::new(
            &keys.access_key_id,
            &keys.secret_access_key,
            Some(&keys.token),
            format!("the keys of the instance role {role}"),
        )?;
        self.keys = Some((credentials.clone(), until));
        Ok(credentials)
    }

    /// One answer; a token that is not taken any more is replaced once.
    async fn get(&mut self, around: &Surroundings, address: &str, path: &str) -> Result<Bytes, Fault> {
        for _ in 0..2 {
            let token = self.token(around, address).await?;
            let (status, answer) = ask(around, Method::GET, address, path, (TOKEN, token.expose())).await?;
            match status {
                StatusCode::OK => return Ok(answer),
                StatusCode::UNAUTHORIZED => self.token = None,
                StatusCode::NOT_FOUND => return Err(no_role(address)),
                _ => return Err(unavailable(address, &format!("answer {}", status.as_u16()))),
            }
        }
        Err(unavailable(address, "take no token"))
    }

    async fn token(&mut self, around: &Surroundings, address: &str) -> Result<Secret, Fault> {
        let now = SystemTime::now();
        if let Some((token, until)) = &self.token
            && now < *until
        {
            return Ok(token.clone());
        }
        let lifetime = TOKEN_LIFETIME.as_secs().to_string();
        let (status, answer) = ask(
            around,
            Method::PUT,
            address,
            "/latest/api/token",
            (TOKEN_TTL, &lifetime),
        )
        .await?;
        let token = Some(answer.as_ref())
            .filter(|_| status == StatusCode::OK)
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .and_then(|text| Secret::of_text(text).ok());
        let token = token.ok_or_else(|| {
            unavailable(
                address,
                &format!(
                    "give no token of version 2 (status {}), and version 1 is never used",
                    status.as_u16()
                ),
            )
        })?;
        self.token = Some((token.clone(), now + TOKEN_LIFETIME - AHEAD));
        Ok(token)
    }
}

/// The service's address, which may be spoken to in clear where it cannot leave this machine.
fn address(around: &Surroundings) -> Result<String, Fault> {
    let disabled = around.variable("AWS_EC2_METADATA_DISABLED");
    if disabled.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Err(Fault::Missing("AWS_EC2_METADATA_DISABLED is true".into()));
    }
    let Some(text) = around.variable("AWS_EC2_METADATA_SERVICE_ENDPOINT") else {
        return Ok(ADDRESS.to_owned());
    };
    let refused = |why: &str| Fault::Unusable(format!("AWS_EC2_METADATA_SERVICE_ENDPOINT {why}"));
    let text = text.trim().trim_end_matches('/');
    let uri: Uri = text.parse().map_err(|_| refused("is no URL"))?;
    let host = uri.host().unwrap_or_default();
    let near = [
        "169.254.169.254",
        "[fd00:ec2::254]",
        "localhost",
        "127.0.0.1",
        "[::1]",
    ];
    match uri.scheme_str() {
        _ if uri.query().is_some()
            || uri
                .authority()
                .is_some_and(|authority| authority.as_str().contains('@')) =>
        {
            Err(refused("has a user or a query"))
        }
        Some("https") => Ok(text.to_owned()),
        Some("http") if near.contains(&host) => Ok(text.to_owned()),
        _ => Err(refused(
            "must start with https://, or name this machine or 169.254.169.254",
        )),
    }
}

async fn ask(
    around: &Surroundings,
    method: Method,
    address: &str,
    path: &str,
    (name, value): (&'static str, &str),
) -> Result<(StatusCode, Bytes), Fault> {
    let broken = || unavailable(address, "cannot be asked");
    let mut value = HeaderValue::from_str(value).map_err(|_| broken())?;
    value.set_sensitive(true);
    let request = Request::builder()
        .method(method)
        .uri(format!("{address}{path}"))
        .header(name, value)
        .body(Full::default())
        .map_err(|_| broken())?;
    let http = around.aws.http(around)?;
    let (parts, answer) = http
        .fetch(request, ATTEMPT, ANSWER_LIMIT)
        .await
        .map_err(|fault| {
            let hint = "in a container the hop limit of the instance's metadata must be 2";
            unavailable(address, &format!("do not answer: {fault} ({hint})"))
        })?;
    Ok((parts.status, answer))
}

/// A role's name goes into a path.
fn is_role(name: &str) -> bool {
    let byte = |byte: u8| byte.is_ascii_alphanumeric() || b"+=,.@_-".contains(&byte);
    !name.is_empty() && name.len() <= 128 && name.bytes().all(byte)
}

fn no_role(address: &str) -> Fault {
    Fault::Missing(format!("the instance metadata at {address} name no role"))
}

fn unavailable(address: &str, what: &str) -> Fault {
    Fault::Unavailable(format!("the instance metadata at {address} {what}"))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex as StdMutex};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::super::super::SecretSettings;
    use super::*;

    /// What a service answers to a request line.
    type Answer = fn(&str) -> (u16, &'static str);

    /// A metadata service, and the heads of the requests that it got.
    async fn service(answer: Answer) -> (Surroundings, Arc<StdMutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let heads = Arc::new(StdMutex::new(vec![]));
        let log = Arc::clone(&heads);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = vec![];
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
                let (status, body) = answer(head.lines().next().unwrap());
                log.lock().unwrap().push(head);
                let length = body.len();
                let text = format!(
                    "HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
                );
                stream.write_all(text.as_bytes()).await.unwrap();
            }
        });
        let around = Surroundings::new(SecretSettings::default(), move |name| {
            (name == "AWS_EC2_METADATA_SERVICE_ENDPOINT").then(|| address.clone())
        });
        (around, heads)
    }

    fn instance(line: &str) -> (u16, &'static str) {
        match line {
            "put /latest/api/token http/1.1" => (200, "token-of-the-service"),
            "get /latest/meta-data/iam/security-credentials/ http/1.1" => (200, "reader\n"),
            "get /latest/meta-data/iam/security-credentials/reader http/1.1" => (
                200,
                r#"{"Code":"Success","AccessKeyId":"ASIA1","SecretAccessKey":"k","Token":"t","Expiration":"2099-01-01T00:00:00Z"}"#,
            ),
            _ => (404, ""),
        }
    }

    #[tokio::test]
    async fn a_role_is_asked_for_with_a_token_and_its_keys_are_kept() {
        let (around, heads) = service(instance).await;

        let first = around.aws.role.credentials(&around).await.unwrap();
        let again = around.aws.role.credentials(&around).await.unwrap();

        assert_eq!(
            (first.access_key.as_str(), again.access_key.as_str()),
            ("ASIA1", "ASIA1")
        );
        assert!(first.origin.contains("reader"), "{}", first.origin);
        let heads = heads.lock().unwrap();
        assert_eq!(heads.len(), 3, "{heads:?}");
        assert!(
            heads[0].contains("x-aws-ec2-metadata-token-ttl-seconds: 21600\r\n"),
            "{heads:?}"
        );
        assert!(
            heads[1..]
                .iter()
                .all(|head| head.contains("x-aws-ec2-metadata-token: token-of-the-service\r\n")),
            "{heads:?}"
        );
    }

    #[tokio::test]
    async fn where_only_version_1_is_served_nothing_is_asked_of_it() {
        fn version_1(line: &str) -> (u16, &'static str) {
            if line.starts_with("put") {
                (405, "")
            } else {
                (200, "reader")
            }
        }
        let (around, heads) = service(version_1).await;

        let fault = around.aws.role.credentials(&around).await.unwrap_err();

        assert!(fault.to_string().contains("version 1 is never used"), "{fault}");
        let heads = heads.lock().unwrap();
        assert!(heads.iter().all(|head| head.starts_with("put ")), "{heads:?}");
    }

    #[tokio::test]
    async fn keys_that_were_not_taken_are_fetched_again() {
        let (around, heads) = service(instance).await;
        around.aws.role.credentials(&around).await.unwrap();

        assert!(around.aws.role.forget().await);
        around.aws.role.credentials(&around).await.unwrap();

        assert_eq!(heads.lock().unwrap().len(), 5);
        assert!(around.aws.role.forget().await && !around.aws.role.forget().await);
    }

    #[tokio::test]
    async fn a_role_whose_name_is_none_is_not_put_into_a_path() {
        fn hostile(line: &str) -> (u16, &'static str) {
            if line.starts_with("put") {
                (200, "token")
            } else {
                (200, "../../user-data")
            }
        }
        let (around, heads) = service(hostile).await;

        assert!(around.aws.role.credentials(&around).await.is_err());
        assert_eq!(heads.lock().unwrap().len(), 2);
    }

    #[test]
    fn the_service_is_near_or_behind_tls() {
        let at = |url: &'static str| {
            address(&Surroundings::new(SecretSettings::default(), move |name| {
                (name == "AWS_EC2_METADATA_SERVICE_ENDPOINT").then(|| url.to_owned())
            }))
        };

        assert_eq!(at("http://127.0.0.1:1338/").unwrap(), "http://127.0.0.1:1338");
        assert!(at("http://[fd00:ec2::254]").is_ok() && at("https://metadata.example").is_ok());
        for url in [
            "http://metadata.example",
            "ftp://127.0.0.1",
            "http://me@127.0.0.1",
            "http://127.0.0.1/?a",
            "x",
        ] {
            assert!(at(url).is_err(), "{url}");
        }
    }
}
