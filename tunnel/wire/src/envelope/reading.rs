//! Reading an envelope's JSON: known keys by type, unknown keys passed over, none twice.
//!
//! Here: the reader that both envelopes share; texts without escapes are borrowed, so that a large body
//! is not copied. Not here: what the values mean, see `request.rs` and `response.rs`.

use std::borrow::Cow;
use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{EnvelopeFault, Field, MAX_HEADER_BYTES, MAX_HEADERS};

/// The values of an envelope's known keys.
#[derive(Debug, Default)]
pub(super) struct Fields<'de> {
    found: Vec<(Field, Value<'de>)>,
    twice: Option<Field>,
}

/// What a key holds, as far as envelopes know types.
#[derive(Debug)]
pub(super) enum Value<'de> {
    Text(Cow<'de, str>),
    Number(f64),
    Object(Vec<(Cow<'de, str>, Value<'de>)>),
    Other,
}

impl<'de> Fields<'de> {
    /// Reads one envelope of at most `limit` bytes.
    pub(super) fn read(bytes: &'de [u8], limit: usize) -> Result<Self, EnvelopeFault> {
        if bytes.len() > limit {
            return Err(EnvelopeFault::TooLarge { limit });
        }
        let fields: Self = serde_json::from_slice(bytes).map_err(|_| EnvelopeFault::NotAnObject)?;
        fields
            .twice
            .map_or(Ok(fields), |field| Err(EnvelopeFault::Twice(field)))
    }

    /// Takes what `field` holds out, if it is there.
    pub(super) fn take(&mut self, field: Field) -> Option<Value<'de>> {
        let at = self.found.iter().position(|(known, _)| *known == field)?;
        Some(self.found.swap_remove(at).1)
    }

    /// Takes the text of `field` out, of at most `limit` bytes.
    pub(super) fn text(
        &mut self,
        field: Field,
        limit: usize,
    ) -> Result<Option<Cow<'de, str>>, EnvelopeFault> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Text(text)) if text.len() > limit => Err(EnvelopeFault::TooLong(field)),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(Value::Number(_) | Value::Object(_) | Value::Other) => Err(EnvelopeFault::WrongType(field)),
        }
    }

    /// As [`Self::text`], for a key that must be there.
    pub(super) fn needed(&mut self, field: Field, limit: usize) -> Result<Cow<'de, str>, EnvelopeFault> {
        self.text(field, limit)?.ok_or(EnvelopeFault::Missing(field))
    }
}

/// The headers of an envelope: unique valid names, values of bytes below U+0100, bounded.
///
/// `loose` passes over values that are not text, as the published gateway does.
pub(super) fn headers(
    object: Vec<(Cow<'_, str>, Value<'_>)>,
    loose: bool,
) -> Result<HeaderMap, EnvelopeFault> {
    if object.len() > MAX_HEADERS {
        return Err(EnvelopeFault::TooLong(Field::Headers));
    }
    let mut headers = HeaderMap::with_capacity(object.len());
    let mut held = 0_usize;
    for (name, value) in object {
        let text = match value {
            Value::Text(text) => text,
            Value::Number(_) | Value::Object(_) | Value::Other if loose => continue,
            Value::Number(_) | Value::Object(_) | Value::Other => {
                return Err(EnvelopeFault::WrongType(Field::Headers));
            }
        };
        held = held.saturating_add(name.len()).saturating_add(text.len());
        if held > MAX_HEADER_BYTES {
            return Err(EnvelopeFault::TooLong(Field::Headers));
        }
        let name =
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| EnvelopeFault::NotValid(Field::Headers))?;
        let value = header_value(&text).ok_or(EnvelopeFault::NotValid(Field::Headers))?;
        if headers.insert(name, value).is_some() {
            return Err(EnvelopeFault::Twice(Field::Headers));
        }
    }
    Ok(headers)
}

/// A header's value from its text, one byte a character; none when it holds what a value may not.
fn header_value(text: &str) -> Option<HeaderValue> {
    let bytes = text
        .chars()
        .map(|character| u8::try_from(u32::from(character)).ok());
    HeaderValue::from_bytes(&bytes.collect::<Option<Vec<u8>>>()?).ok()
}

fn known(key: &str) -> Option<Field> {
    const KNOWN: [Field; 11] = [
        Field::Id,
        Field::Method,
        Field::Path,
        Field::Query,
        Field::Host,
        Field::Headers,
        Field::Body,
        Field::BodyEncoding,
        Field::CreatedAt,
        Field::Status,
        Field::CompletedAt,
    ];
    KNOWN.into_iter().find(|field| field.key() == key)
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an envelope")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Fields::default();
        while let Some(Key(key)) = map.next_key()? {
            let Some(field) = known(&key) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let value = map.next_value::<Value<'de>>()?;
            if fields.found.iter().any(|(other, _)| *other == field) {
                fields.twice = fields.twice.or(Some(field));
            } else {
                fields.found.push((field, value));
            }
        }
        Ok(fields)
    }
}

/// A key of an object, borrowed where it has no escape.
struct Key<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(KeyVisitor)
    }
}

struct KeyVisitor;

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = Key<'de>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Key(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Key(Cow::Owned(text.to_owned())))
    }
}

impl<'de> Deserialize<'de> for Value<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor { nested: false })
    }
}

/// A value inside an object: one that is itself an object is passed over.
struct Nested<'de>(Value<'de>);

impl<'de> Deserialize<'de> for Nested<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(ValueVisitor { nested: true })
            .map(Nested)
    }
}

struct ValueVisitor {
    nested: bool,
}

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value<'de>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Value::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Value::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        // What does not fit is beyond any status, which is all that a number is read for.
        Ok(Value::Number(u32::try_from(number).map_or(f64::MAX, f64::from)))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Value::Number(i32::try_from(number).map_or(f64::MIN, f64::from)))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
        Ok(Value::Number(number))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Value::Other)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Value::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        if self.nested {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(Value::Other);
        }
        let mut object = Vec::new();
        while let Some(Key(key)) = map.next_key()? {
            let Nested(value) = map.next_value()?;
            // One more than may be is enough to be refused; the rest is not kept.
            if object.len() <= MAX_HEADERS {
                object.push((key, value));
            }
        }
        Ok(Value::Object(object))
    }
}
