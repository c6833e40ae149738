//! Who we are to AWS: the environment, else a profile, else the role of the instance.
//!
//! Here: the order, and what is refused on the way. Whatever names another way in is refused where it stands, never
//! skipped: with the next one we would be somebody else. Nothing is kept here but the role (`instance.rs`).

use super::super::error::Fault;
use super::super::place::Surroundings;
use super::super::value::Secret;
use super::profile;

/// Ways in that the environment can name and that this program does not go.
const UNSUPPORTED: [&str; 3] = [
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

/// Keys that sign.
#[derive(Clone, Debug)]
pub(super) struct Credentials {
    pub(super) access_key: String,
    pub(super) secret_key: Secret,
    pub(super) token: Option<Secret>,
    /// Where they are from, for messages.
    pub(super) origin: String,
}

impl Credentials {
    /// Checks what goes into headers.
    ///
    /// # Errors
    ///
    /// [`Fault::Unusable`], which names `origin` and repeats no value.
    pub(super) fn new(
        access_key: &str,
        secret_key: &str,
        token: Option<&str>,
        origin: String,
    ) -> Result<Self, Fault> {
        let clean = |what: &str, text: &str| {
            Secret::of_text(text).map_err(|_| {
                Fault::Unusable(format!(
                    "the {what} of {origin} is empty or not one line of visible ASCII"
                ))
            })
        };
        let secret_key = clean("secret access key", secret_key)?;
        let token = token.map(|token| clean("session token", token)).transpose()?;
        let access_key = clean("access key id", access_key)?.expose().to_owned();
        Ok(Self {
            access_key,
            secret_key,
            token,
            origin,
        })
    }
}

/// The first credentials there are.
///
/// # Errors
///
/// [`Fault::Missing`] with every place that was looked at; [`Fault::Unusable`] for one that is there and not usable.
pub(super) async fn find(around: &Surroundings) -> Result<Credentials, Fault> {
    if let Some(found) = in_environment(around)? {
        return Ok(found);
    }
    let profile = match profile::find(around)? {
        profile::Search::Found(found) => return Ok(found),
        profile::Search::Absent(looked) => looked,
    };
    if let Some(name) = UNSUPPORTED
        .into_iter()
        .find(|name| around.variable(name).is_some())
    {
        return Err(Fault::Unusable(format!(
            "{name} is set, and that way to AWS is not supported: give keys by the environment or a profile, or use \
             the role of the instance"
        )));
    }
    around
        .aws
        .role
        .credentials(around)
        .await
        .map_err(|fault| match fault {
            Fault::Missing(role) => Fault::Missing(format!(
                "no AWS credentials: AWS_ACCESS_KEY_ID is not set; {profile}; {role}"
            )),
            Fault::Unavailable(role) => Fault::Unavailable(format!(
                "no AWS credentials: AWS_ACCESS_KEY_ID is not set; {profile}; {role}"
            )),
            Fault::Unusable(_) => fault,
        })
}

fn in_environment(around: &Surroundings) -> Result<Option<Credentials>, Fault> {
    let (id, key) = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY");
    let half = |there: &str, missing: &str| {
        Err(Fault::Missing(format!(
            "no AWS credentials: {there} is set and {missing} is not"
        )))
    };
    match (around.variable(id), around.variable(key)) {
        (Some(access_key), Some(secret_key)) => {
            let token = around.variable("AWS_SESSION_TOKEN");
            let origin = format!("the keys of the environment ({id})");
            Credentials::new(&access_key, &secret_key, token.as_deref(), origin).map(Some)
        }
        (Some(_), None) => half(id, key),
        (None, Some(_)) => half(key, id),
        (None, None) => Ok(None),
    }
}
