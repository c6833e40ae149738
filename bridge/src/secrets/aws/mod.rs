//! `aws-sm:REGION/NAME[#json-key]`: AWS Secrets Manager.
//!
//! Here: the reference, and what of the service's answer is the value. Read next: `credentials.rs` (who we are there),
//! `call.rs` (the one signed call), `refusal.rs` (what a refusal means). Not here: how long a value is kept
//! (`live.rs`).

mod call;
mod credentials;
mod endpoint;
mod instance;
mod profile;
mod refusal;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::error::Fault;
use super::place::{Mark, Place, Reading, Surroundings};
use super::reference::Kind;

pub(crate) use call::Caller;

pub(crate) static KIND: Kind = Kind {
    name: "aws-sm",
    form: "aws-sm:REGION/NAME[#json-key]",
    parse,
};

fn parse(rest: &str) -> Result<Arc<dyn Place>, &'static str> {
    let (region, id) = rest
        .split_once('/')
        .ok_or("REGION and NAME are parted by a slash")?;
    let region_byte = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !(3..=32).contains(&region.len()) || !region.bytes().all(region_byte) {
        return Err("REGION is one such as eu-central-1");
    }
    let (id, key) = match id.split_once('#') {
        Some((_, "")) => return Err("nothing follows the `#`"),
        Some((id, key)) => (id, Some(key.to_owned())),
        None => (id, None),
    };
    let name_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"/_+=.@-!".contains(&byte);
    if let Some(arn) = id.strip_prefix("arn:") {
        let fields: Vec<_> = arn.splitn(6, ':').collect();
        let &[_, "secretsmanager", of, _, "secret", name] = fields.as_slice() else {
            return Err("the ARN is not that of a secret");
        };
        if of != region {
            return Err("the ARN is of another region");
        }
        if name.is_empty() || id.len() > 2048 || !id.bytes().all(|byte| name_byte(byte) || byte == b':') {
            return Err("the ARN is not that of a secret");
        }
    } else if id.is_empty() || id.len() > 512 || !id.bytes().all(name_byte) {
        return Err("NAME is 1 to 512 letters, digits and /_+=.@-!, or an ARN");
    }
    Ok(Arc::new(AwsSecret {
        region: region.to_owned(),
        id: id.to_owned(),
        key,
    }))
}

/// A secret in Secrets Manager.
#[derive(Debug)]
struct AwsSecret {
    region: String,
    /// Its name or its ARN.
    id: String,
    /// Which member of the JSON object that it is; `None` is all of it.
    key: Option<String>,
}

impl Place for AwsSecret {
    fn is_remote(&self) -> bool {
        true
    }

    fn mark(&self, _: &Surroundings) -> Option<Mark> {
        None
    }

    fn read<'a>(&'a self, around: &'a Surroundings) -> Reading<'a> {
        Box::pin(async move {
            let answer = around.aws.secret_value(around, &self.region, &self.id).await?;
            let text = self.value(&answer)?;
            Ok((text, None))
        })
    }
}

/// What of the answer to `GetSecretValue` is used.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    secret_string: Option<Zeroizing<String>>,
    secret_binary: Option<Zeroizing<String>>,
}

impl AwsSecret {
    fn value(&self, answer: &[u8]) -> Result<Zeroizing<String>, Fault> {
        // Serde's own words could repeat a piece of the value.
        let unusable = |why: &str| Fault::Unusable(why.to_owned());
        let answer: Answer = serde_json::from_slice(answer)
            .map_err(|_| unusable("the answer of Secrets Manager is not understood"))?;
        let text = match (answer.secret_string, answer.secret_binary) {
            (Some(text), _) => text,
            (None, Some(encoded)) => {
                decode(&encoded).ok_or_else(|| unusable("its binary value is not UTF-8; store it as text"))?
            }
            (None, None) => return Err(Fault::Missing("the secret has no value yet".into())),
        };
        let Some(key) = &self.key else { return Ok(text) };
        let mut members: Map<String, Value> = serde_json::from_str(&text).map_err(|_| {
            unusable("its value is not a JSON object, so it has no key; leave the `#` and the key out")
        })?;
        match members.remove(key) {
            Some(Value::String(member)) => Ok(Zeroizing::new(member)),
            Some(_) => Err(Fault::Unusable(format!("`{key}` in its JSON is not a string"))),
            None => Err(Fault::Missing(format!("its JSON has no key `{key}`"))),
        }
    }
}

fn decode(encoded: &str) -> Option<Zeroizing<String>> {
    let bytes = Zeroizing::new(STANDARD.decode(encoded.as_bytes()).ok()?);
    std::str::from_utf8(&bytes)
        .ok()
        .map(|text| Zeroizing::new(text.to_owned()))
}

#[cfg(test)]
mod tests;
