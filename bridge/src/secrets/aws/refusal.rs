//! What a refusal of Secrets Manager means, and what to do about it.
//!
//! Here: the error code out of its three forms, the clock, and our own words. The service's words are never repeated:
//! those about a signature hold the session token.

use std::time::{Duration, SystemTime};

use http::{StatusCode, header, response};
use serde_json::Value;

use super::super::error::Fault;

/// AWS takes signatures whose date is off by at most this.
const SKEW: Duration = Duration::from_mins(5);

/// What was asked, for messages.
pub(super) struct Asked<'a> {
    pub(super) region: &'a str,
    pub(super) host: &'a str,
    /// Whose keys signed.
    pub(super) who: &'a str,
}

/// An answer that is no value.
pub(super) struct Refused {
    status: StatusCode,
    /// Letters and digits; empty where the answer has none.
    code: String,
    /// The service's clock.
    date: Option<SystemTime>,
}

impl Refused {
    pub(super) fn read(parts: &response::Parts, body: &[u8]) -> Self {
        let text = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let named = text(header::HeaderName::from_static("x-amzn-errortype")).map(str::to_owned);
        let code = named
            .or_else(|| in_json(body))
            .or_else(|| in_xml(body))
            .unwrap_or_default();
        Self {
            status: parts.status,
            code: plain(&code),
            date: text(header::DATE).and_then(|date| {
                let parsed = jiff::fmt::rfc2822::DateTimeParser::new()
                    .parse_timestamp(date)
                    .ok()?;
                Some(parsed.into())
            }),
        }
    }

    /// Whether the keys were not taken, so that newer ones may be.
    pub(super) fn is_of_credentials(&self) -> bool {
        matches!(
            self.code.as_str(),
            "UnrecognizedClientException"
                | "InvalidClientTokenId"
                | "InvalidSignatureException"
                | "SignatureDoesNotMatch"
                | "ExpiredToken"
                | "ExpiredTokenException"
                | "RequestExpired"
                | "RequestTimeTooSkewed"
                | "AuthFailure"
                | "IncompleteSignature"
                | "IncompleteSignatureException"
                | "MissingAuthenticationToken"
                | "MissingAuthenticationTokenException"
        )
    }

    fn may_pass(&self) -> bool {
        let throttled = matches!(
            self.code.as_str(),
            "ThrottlingException" | "Throttling" | "TooManyRequestsException" | "RequestLimitExceeded"
        );
        throttled || self.status == StatusCode::TOO_MANY_REQUESTS || self.status.is_server_error()
    }

    pub(super) fn fault(&self, asked: &Asked<'_>, now: SystemTime) -> Fault {
        let Asked { region, host, who } = asked;
        let code = if self.code.is_empty() {
            "no code"
        } else {
            &self.code
        };
        let answered = format!("{host} answers {} ({code}) to {who}", self.status.as_u16());
        if self.may_pass() {
            return Fault::Unavailable(answered);
        }
        if self.is_of_credentials() {
            let hint = self.skew(now).map_or_else(
                || "the keys are wrong, expired or not of this account".to_owned(),
                |skew| format!("the clock of this machine is {skew} that of {host}; set it right"),
            );
            return Fault::Unusable(format!("{answered}: {hint}"));
        }
        let hint = match self.code.as_str() {
            "ResourceNotFoundException" => {
                return Fault::Missing(format!(
                    "no such secret, or no current version of it, in region {region} at {host} with {who}"
                ));
            }
            "AccessDeniedException" | "AccessDenied" => {
                "allow secretsmanager:GetSecretValue on it, and kms:Decrypt on its key if that is not the default one"
            }
            "DecryptionFailure" => "its KMS key cannot be used; check the key and the right to kms:Decrypt",
            "InvalidRequestException" => "the secret is marked for deletion; restore it or name another",
            _ => "look the code up in the documentation of GetSecretValue",
        };
        Fault::Unusable(format!("{answered}: {hint}"))
    }

    /// In words, if our clock and the service's differ by more than AWS bears.
    fn skew(&self, now: SystemTime) -> Option<String> {
        let date = self.date?;
        let (difference, word) = match now.duration_since(date) {
            Ok(ahead) => (ahead, "ahead of"),
            Err(behind) => (behind.duration(), "behind"),
        };
        (difference > SKEW).then(|| format!("{} min {word}", difference.as_secs() / 60))
    }
}

fn in_json(body: &[u8]) -> Option<String> {
    let answer: Value = serde_json::from_slice(body).ok()?;
    answer.get("__type")?.as_str().map(str::to_owned)
}

/// Older services and gateways answer in XML.
fn in_xml(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, after) = text.split_once("<Code>")?;
    after.split_once("</Code>").map(|(code, _)| code.to_owned())
}

/// `prefix#Code:url` is `Code`; anything that is no code is nothing.
fn plain(code: &str) -> String {
    let code = code.rsplit_once('#').map_or(code, |(_, code)| code);
    let code = code.split(':').next().unwrap_or_default().trim();
    let fits = code.len() <= 64
        && code
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'.');
    if fits { code.to_owned() } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, headers: &[(&str, &str)], body: &str) -> Refused {
        let mut response = http::Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let (parts, ()) = response.body(()).unwrap().into_parts();
        Refused::read(&parts, body.as_bytes())
    }

    fn fault(refused: &Refused) -> Fault {
        let asked = Asked {
            region: "eu-central-1",
            host: "sm.test",
            who: "the environment's keys",
        };
        // 2026-11-22T08:00:00Z
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_334_400);
        refused.fault(&asked, now)
    }

    #[test]
    fn a_code_is_found_in_the_header_in_json_and_in_xml() {
        let header = [("x-amzn-errortype", "ResourceNotFoundException:http://internal/")];

        assert_eq!(refused(400, &header, "{}").code, "ResourceNotFoundException");
        assert_eq!(
            refused(400, &[], r#"{"__type":"com.amazon#AccessDeniedException"}"#).code,
            "AccessDeniedException"
        );
        assert_eq!(
            refused(403, &[], "<E><Code>InvalidClientTokenId</Code></E>").code,
            "InvalidClientTokenId"
        );
        assert_eq!(refused(400, &[], r#"{"__type":"a b\nc"}"#).code, "");
        assert_eq!(refused(500, &[], "\u{0}").code, "");
    }

    #[test]
    fn what_may_pass_is_told_apart_from_what_will_not() {
        for (status, body) in [
            (500, ""),
            (503, "{}"),
            (429, ""),
            (400, r#"{"__type":"ThrottlingException"}"#),
        ] {
            assert!(fault(&refused(status, &[], body)).may_pass(), "{status} {body}");
        }
        for (status, body) in [
            (400, r#"{"__type":"ResourceNotFoundException"}"#),
            (400, r#"{"__type":"AccessDeniedException"}"#),
            (400, ""),
            (301, ""),
        ] {
            assert!(!fault(&refused(status, &[], body)).may_pass(), "{status} {body}");
        }
    }

    #[test]
    fn a_clock_that_is_off_is_said_to_be_off() {
        let body = r#"{"__type":"InvalidSignatureException","message":"Signature expired: secret-token"}"#;
        let at = |date| fault(&refused(400, &[("date", date)], body)).to_string();

        assert!(at("Sun, 22 Nov 2026 08:12:00 GMT").contains("12 min behind that of sm.test"));
        assert!(at("Sun, 22 Nov 2026 07:00:00 GMT").contains("60 min ahead of that of sm.test"));
        assert!(at("Sun, 22 Nov 2026 08:01:00 GMT").contains("the keys are wrong"));
        assert!(at("never").contains("the keys are wrong") && !at("never").contains("secret-token"));
    }

    #[test]
    fn a_missing_secret_says_where_it_was_looked_for() {
        let text = fault(&refused(400, &[], r#"{"__type":"ResourceNotFoundException"}"#)).to_string();

        for word in ["eu-central-1", "sm.test", "the environment's keys"] {
            assert!(text.contains(word), "{text}");
        }
    }
}
