//! Writing an envelope's JSON: compact, keys in the order in which they are given, one line end.
//!
//! Here: the writer that both envelopes share. Not here: which keys there are.

use http::{HeaderMap, header};

use super::{EnvelopeBody, Field};
use crate::encoding::{BASE64, base64_length, push_base64};

/// An envelope being written.
pub(super) struct Writer {
    out: String,
}

impl Writer {
    /// Begins an envelope around `body`, with room for it.
    pub(super) fn with_room_for(body: &EnvelopeBody) -> Self {
        let held = match body {
            EnvelopeBody::Text(text) => text.len(),
            EnvelopeBody::Base64(bytes) => base64_length(bytes.len()),
        };
        let mut out = String::with_capacity(held.saturating_add(1024));
        out.push('{');
        Self { out }
    }

    /// Writes a key that holds text.
    pub(super) fn text(mut self, field: Field, text: &str) -> Self {
        self.key(field);
        push_text(&mut self.out, text);
        self
    }

    /// Writes a key that holds a number.
    pub(super) fn number(mut self, field: Field, number: u16) -> Self {
        self.key(field);
        self.out.push_str(&number.to_string());
        self
    }

    /// Writes the headers, in the order in which they came, each name once.
    pub(super) fn headers(mut self, headers: &HeaderMap) -> Self {
        self.key(Field::Headers);
        self.out.push('{');
        for (at, name) in headers.keys().enumerate() {
            if at > 0 {
                self.out.push(',');
            }
            push_text(&mut self.out, name.as_str());
            self.out.push(':');
            // RFC 6265 section 5.4 joins cookies with a semicolon, RFC 9110 section 5.3 all else with a comma.
            let between = if name == header::COOKIE { "; " } else { ", " };
            let values = headers
                .get_all(name)
                .iter()
                .map(|value| value.as_bytes().iter().map(|byte| char::from(*byte)).collect());
            push_text(&mut self.out, &values.collect::<Vec<String>>().join(between));
        }
        self.out.push('}');
        self
    }

    /// Writes the body, and `bodyEncoding` where it is base64.
    pub(super) fn body(mut self, body: &EnvelopeBody) -> Self {
        self.key(Field::Body);
        match body {
            EnvelopeBody::Text(text) => push_text(&mut self.out, text),
            EnvelopeBody::Base64(bytes) => {
                self.out.push('"');
                push_base64(&mut self.out, bytes);
                self.out.push('"');
                self = self.text(Field::BodyEncoding, BASE64);
            }
        }
        self
    }

    /// Ends the envelope.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.out.push_str("}\n");
        self.out.into_bytes()
    }

    fn key(&mut self, field: Field) {
        if !self.out.ends_with('{') {
            self.out.push(',');
        }
        push_text(&mut self.out, field.key());
        self.out.push(':');
    }
}

/// Appends `text` as a JSON string: the two-letter escapes, `\u00xx` for other control characters, no more.
fn push_text(out: &mut String, text: &str) {
    out.push('"');
    let mut plain_from = 0;
    for (at, byte) in text.bytes().enumerate() {
        let escaped = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            0x08 => "\\b",
            0x0c => "\\f",
            0x00..=0x1f => "",
            0x20..=0xff => continue,
        };
        out.push_str(text.get(plain_from..at).unwrap_or_default());
        plain_from = at + 1;
        if escaped.is_empty() {
            out.push_str(&format!("\\u{byte:04x}"));
        } else {
            out.push_str(escaped);
        }
    }
    out.push_str(text.get(plain_from..).unwrap_or_default());
    out.push('"');
}
