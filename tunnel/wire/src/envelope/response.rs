//! The response envelope: the host's answer to one request, as it leaves it for the gateway.
//!
//! Here: its keys, their order, and its two readings. Not here: how the gateway turns it into HTTP.

use http::{HeaderMap, StatusCode};

use super::reading::{Fields, Value, headers};
use super::request::body;
use super::writing::Writer;
use super::{
    EnvelopeBody, EnvelopeFault, Field, INDETERMINATE, MAX_ID_BYTES, MAX_SHORT_TEXT_BYTES, OUTCOME_HEADER,
    envelope_limit,
};

/// How strictly a response is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// From our own host: every key, each of its type, the id that was asked.
    Strict,
    /// From the published host: a `status` that is no number is 200, headers that are not text are passed
    /// over, and the id is not looked at.
    AsPublished,
}

/// One response in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseEnvelope {
    /// The request's id; empty when read [`Reading::AsPublished`].
    pub id: String,
    /// The HTTP status.
    pub status: StatusCode,
    /// The answer's headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: EnvelopeBody,
    /// When the host had it: ISO 8601, UTC, with milliseconds. Not checked here.
    pub completed_at: String,
}

impl ResponseEnvelope {
    /// Reads the response to the request `expected_id`.
    ///
    /// - `max_body`: how many bytes the decoded body may have; bounds the envelope too.
    ///
    /// Linear in `bytes.len()`; holds one decoded copy of the body.
    ///
    /// # Errors
    ///
    /// [`EnvelopeFault`], which names the key at fault and repeats nothing of its content.
    pub fn parse(
        bytes: &[u8],
        expected_id: &str,
        max_body: usize,
        reading: Reading,
    ) -> Result<Self, EnvelopeFault> {
        let mut fields = Fields::read(bytes, envelope_limit(max_body))?;
        let (id, completed_at) = match reading {
            Reading::Strict => {
                let id = fields.needed(Field::Id, MAX_ID_BYTES)?;
                if id != expected_id {
                    return Err(EnvelopeFault::OtherId);
                }
                (
                    id.into_owned(),
                    fields
                        .needed(Field::CompletedAt, MAX_SHORT_TEXT_BYTES)?
                        .into_owned(),
                )
            }
            Reading::AsPublished => (String::new(), String::new()),
        };
        let status = status(fields.take(Field::Status), reading)?;
        let headers = match (fields.take(Field::Headers), reading) {
            (Some(Value::Object(object)), _) => headers(object, reading == Reading::AsPublished)?,
            (_, Reading::AsPublished) => HeaderMap::new(),
            (Some(_), Reading::Strict) => return Err(EnvelopeFault::WrongType(Field::Headers)),
            (None, Reading::Strict) => return Err(EnvelopeFault::Missing(Field::Headers)),
        };
        Ok(Self {
            id,
            status,
            headers,
            body: body(&mut fields, max_body)?,
            completed_at,
        })
    }

    /// The envelope's exact bytes, its final line end included.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        Writer::with_room_for(&self.body)
            .text(Field::Id, &self.id)
            .number(Field::Status, self.status.as_u16())
            .headers(&self.headers)
            .body(&self.body)
            .text(Field::CompletedAt, &self.completed_at)
            .finish()
    }

    /// Whether the host says that nobody knows whether the call happened.
    #[must_use]
    pub fn is_indeterminate(&self) -> bool {
        self.headers
            .get(OUTCOME_HEADER)
            .is_some_and(|value| value.as_bytes() == INDETERMINATE.as_bytes())
    }
}

fn status(value: Option<Value<'_>>, reading: Reading) -> Result<StatusCode, EnvelopeFault> {
    let number = match (value, reading) {
        (Some(Value::Number(number)), _) => number,
        (_, Reading::AsPublished) => return Ok(StatusCode::OK),
        (Some(_), Reading::Strict) => return Err(EnvelopeFault::WrongType(Field::Status)),
        (None, Reading::Strict) => return Err(EnvelopeFault::Missing(Field::Status)),
    };
    let whole = match reading {
        Reading::Strict => number,
        Reading::AsPublished => number.trunc(),
    };
    // A status below 200 is not an answer: the caller would wait on for the final one.
    (200_u16..=999)
        .find(|code| f64::from(*code) == whole)
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or(EnvelopeFault::NotValid(Field::Status))
}
