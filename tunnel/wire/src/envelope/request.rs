//! The request envelope: one HTTP request of an agent, as the gateway leaves it for the host.
//!
//! Here: its keys, their order, and its strict reading. Not here: whether the request is allowed; a
//! hand-written envelope may hold anything that passes here, so that the host judges it again.

use http::{HeaderMap, Method};

use super::reading::{Fields, Value, headers};
use super::writing::Writer;
use super::{
    EnvelopeBody, EnvelopeFault, Field, MAX_ID_BYTES, MAX_METHOD_BYTES, MAX_SHORT_TEXT_BYTES,
    MAX_TARGET_BYTES, envelope_limit,
};
use crate::encoding::{BASE64, decode_body};

/// One request in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestEnvelope {
    /// The stem of the file's name.
    pub id: String,
    /// The method as received.
    pub method: Method,
    /// The target up to its first `?`; never holds one.
    pub path: String,
    /// The rest of the target: empty, or led by `?`.
    pub query: String,
    /// The caller's Host header; only our own gateway says it.
    pub host: Option<String>,
    /// The caller's headers. Bytes above 0x7f stand as the characters of the same number.
    pub headers: HeaderMap,
    /// The body.
    pub body: EnvelopeBody,
    /// When the gateway took it: ISO 8601, UTC, with milliseconds. Not checked here.
    pub created_at: String,
}

impl RequestEnvelope {
    /// Reads the envelope in the file named `expected_id`.
    ///
    /// Keys it does not know are passed over, since generations differ; known ones are strict.
    ///
    /// - `max_body`: how many bytes the decoded body may have; bounds the envelope too.
    ///
    /// Linear in `bytes.len()`; holds one decoded copy of the body.
    ///
    /// # Errors
    ///
    /// [`EnvelopeFault`], which names the key at fault and repeats nothing of its content.
    pub fn parse(bytes: &[u8], expected_id: &str, max_body: usize) -> Result<Self, EnvelopeFault> {
        let mut fields = Fields::read(bytes, envelope_limit(max_body))?;
        let id = fields.needed(Field::Id, MAX_ID_BYTES)?;
        if id != expected_id {
            return Err(EnvelopeFault::OtherId);
        }
        let method = fields.needed(Field::Method, MAX_METHOD_BYTES)?;
        let method =
            Method::from_bytes(method.as_bytes()).map_err(|_| EnvelopeFault::NotValid(Field::Method))?;
        let (path, query) = target(&mut fields)?;
        let headers = match fields.take(Field::Headers) {
            Some(Value::Object(object)) => headers(object, false)?,
            Some(Value::Text(_) | Value::Number(_) | Value::Other) => {
                return Err(EnvelopeFault::WrongType(Field::Headers));
            }
            None => return Err(EnvelopeFault::Missing(Field::Headers)),
        };
        Ok(Self {
            id: id.into_owned(),
            method,
            path,
            query,
            host: fields.text(Field::Host, MAX_SHORT_TEXT_BYTES)?.map(Into::into),
            headers,
            created_at: fields
                .needed(Field::CreatedAt, MAX_SHORT_TEXT_BYTES)?
                .into_owned(),
            body: body(&mut fields, max_body)?,
        })
    }

    /// The envelope's exact bytes, its final line end included.
    ///
    /// Repeated headers become one, as the format has each name once.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::with_room_for(&self.body)
            .text(Field::Id, &self.id)
            .text(Field::Method, self.method.as_str())
            .text(Field::Path, &self.path)
            .text(Field::Query, &self.query);
        if let Some(host) = &self.host {
            writer = writer.text(Field::Host, host);
        }
        writer
            .headers(&self.headers)
            .body(&self.body)
            .text(Field::CreatedAt, &self.created_at)
            .finish()
    }

    /// The request's target as one text: path and query.
    #[must_use]
    pub fn target(&self) -> String {
        format!("{}{}", self.path, self.query)
    }
}

fn target(fields: &mut Fields<'_>) -> Result<(String, String), EnvelopeFault> {
    let path = fields.needed(Field::Path, MAX_TARGET_BYTES)?;
    let query = fields.needed(Field::Query, MAX_TARGET_BYTES - path.len())?;
    // A second question mark in the path would move the border between what is matched and what is not.
    if path.is_empty() || path.contains('?') {
        return Err(EnvelopeFault::NotValid(Field::Path));
    }
    if !query.is_empty() && !query.starts_with('?') {
        return Err(EnvelopeFault::NotValid(Field::Query));
    }
    Ok((path.into_owned(), query.into_owned()))
}

/// Takes the body out of either envelope.
pub(super) fn body(fields: &mut Fields<'_>, max_body: usize) -> Result<EnvelopeBody, EnvelopeFault> {
    let encoding = fields.text(Field::BodyEncoding, MAX_SHORT_TEXT_BYTES)?;
    let text = fields.needed(Field::Body, usize::MAX)?;
    if encoding.as_deref() == Some(BASE64) {
        return Ok(EnvelopeBody::Base64(decode_body(text, Some(BASE64), max_body)?));
    }
    let bytes = decode_body(text, encoding.as_deref(), max_body)?;
    let text = String::from_utf8(bytes.into()).map_err(|_| EnvelopeFault::NotValid(Field::Body))?;
    Ok(EnvelopeBody::Text(text))
}
