//! What stands in a line, read by hand.
//!
//! Here: [`Object`], whose errors name the place and what belongs there, and never repeat what stands there: it may be a
//! key in the wrong place, and serde's errors would show it. Not here: what becomes of it (`judge`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use policy::TokenDigest;
use policy::envelope::{KeyId, KeyRing, SigningKey, Validity, Verifier};
use serde_json::{Map, Value};

/// Largest body that a verifier takes where its configuration says nothing.
const MAX_BODY_BYTES: u64 = 10 * 1024 * 1024;

/// An object and where it stands.
pub(super) struct Object<'v> {
    place: String,
    map: &'v Map<String, Value>,
}

/// A request as it stands in a line.
pub(super) struct Request<'v> {
    pub(super) method: &'v str,
    pub(super) target: &'v str,
    pub(super) headers: Vec<(&'v str, &'v [u8])>,
    pub(super) has_trailers: bool,
    pub(super) body: Vec<u8>,
    /// The clock of this request.
    pub(super) at: u64,
}

impl<'v> Object<'v> {
    /// The line itself.
    pub(super) fn line(value: &'v Value) -> Result<Self, String> {
        Self::new(value, "the line".to_owned())
    }

    fn new(value: &'v Value, place: String) -> Result<Self, String> {
        match value {
            Value::Object(map) => Ok(Self { place, map }),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                Err(format!("{place} must be an object"))
            }
        }
    }

    /// The value, unless it is null.
    fn get(&self, key: &str) -> Option<&'v Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn wanted(&self, key: &str, what: &str) -> String {
        format!("`{key}` of {} must be {what}", self.place)
    }

    fn needed(&self, key: &str, what: &str) -> Result<&'v Value, String> {
        self.get(key).ok_or_else(|| self.wanted(key, what))
    }

    /// Nothing but these keys: a `notafter` that is passed over would be a key without end.
    fn nothing_but(&self, known: &[&str]) -> Result<(), String> {
        match self.map.keys().find(|key| !known.contains(&key.as_str())) {
            // The unknown key is not repeated either.
            Some(_) => Err(format!(
                "{} has an unknown key; known are {}",
                self.place,
                known.join(", ")
            )),
            None => Ok(()),
        }
    }

    pub(super) fn optional_text(&self, key: &str) -> Result<Option<&'v str>, String> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let text = value.as_str();
        text.map(Some).ok_or_else(|| self.wanted(key, "a text"))
    }

    pub(super) fn text(&self, key: &str) -> Result<&'v str, String> {
        self.optional_text(key)?.ok_or_else(|| self.wanted(key, "a text"))
    }

    pub(super) fn flag(&self, key: &str) -> Result<bool, String> {
        let Some(value) = self.get(key) else {
            return Ok(false);
        };
        value.as_bool().ok_or_else(|| self.wanted(key, "true or false"))
    }

    pub(super) fn object(&self, key: &str) -> Result<Self, String> {
        let place = if self.place == "the line" {
            format!("`{key}`")
        } else {
            format!("`{key}` of {}", self.place)
        };
        Self::new(self.needed(key, "an object")?, place)
    }

    fn list(&self, key: &str) -> Result<&'v [Value], String> {
        let list = self.needed(key, "a list")?.as_array();
        list.map(Vec::as_slice).ok_or_else(|| self.wanted(key, "a list"))
    }

    /// Unix seconds, or RFC 3339.
    pub(super) fn time(&self, key: &str) -> Result<u64, String> {
        self.optional_time(key)?.ok_or_else(|| self.wanted(key, TIME))
    }

    fn optional_time(&self, key: &str) -> Result<Option<u64>, String> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let whole = value.as_u64();
        // A clock that counts parts of a second; they are cut off.
        let counted = || value.as_f64().filter(|seconds| *seconds >= 0.0);
        let cut = || format!("{:.0}", counted()?.trunc()).parse().ok();
        let date = || {
            let date: jiff::Timestamp = value.as_str()?.parse().ok()?;
            u64::try_from(date.as_second()).ok()
        };
        let time = whole.or_else(cut).or_else(date);
        time.map(Some).ok_or_else(|| self.wanted(key, TIME))
    }

    /// The requests of a line, each with its own clock or that of the line.
    pub(super) fn requests(&self, now: u64) -> Result<Vec<(Self, Request<'v>)>, String> {
        let list = self.list("requests")?;
        list.iter()
            .enumerate()
            .map(|(number, value)| {
                let object = Self::new(value, format!("requests[{number}]"))?;
                let request = object.request(now)?;
                Ok((object, request))
            })
            .collect()
    }

    fn request(&self, now: u64) -> Result<Request<'v>, String> {
        let mut headers = Vec::new();
        for pair in self.list("headers")? {
            let pair: Option<Vec<&str>> = pair
                .as_array()
                .and_then(|pair| pair.iter().map(Value::as_str).collect());
            let Some([name, value]) = pair.as_deref() else {
                return Err(self.wanted("headers", "a list of [name, value], both texts"));
            };
            headers.push((*name, value.as_bytes()));
        }
        let named = |wanted: &str| headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(wanted));
        if self.flag("chunked")? && !named("transfer-encoding") {
            headers.push(("Transfer-Encoding", b"chunked"));
        }
        let body = self.optional_text("body_b64")?.unwrap_or_default();
        Ok(Request {
            method: self.text("method")?,
            target: self.text("target")?,
            headers,
            has_trailers: self.get("trailers").is_some_and(says_something),
            body: STANDARD
                .decode(body)
                .map_err(|_| self.wanted("body_b64", "base64 with padding"))?,
            at: self.optional_time("at")?.unwrap_or(now),
        })
    }

    /// The verifier that a `config` describes.
    pub(super) fn verifier(&self) -> Result<Verifier, String> {
        self.nothing_but(&["keys", "allowed_hosts", "max_body", "bearer"])?;
        let keys = self.object("keys")?;
        let mut ring = KeyRing::default();
        for (number, name) in keys.map.keys().enumerate() {
            // The name itself may be what is wrong, and a key in its place.
            let id = KeyId::parse(name)
                .ok_or_else(|| format!("name {number} of `keys` must be 1 to 64 of A-Z a-z 0-9 . _ -"))?;
            let entry = keys.object(name)?;
            entry.nothing_but(&["key", "notBefore", "notAfter"])?;
            let validity = Validity {
                not_before: entry.optional_time("notBefore")?,
                not_after: entry.optional_time("notAfter")?,
            };
            let key = SigningKey::from_base64(entry.text("key")?);
            key.and_then(|key| ring.add(id, key, validity))
                .map_err(|fault| format!("`key` of {} {fault}", entry.place))?;
        }
        let hosts: Option<Vec<&str>> = self.list("allowed_hosts")?.iter().map(Value::as_str).collect();
        let hosts = hosts.ok_or_else(|| self.wanted("allowed_hosts", "a list of texts"))?;
        let max_body = match self.get("max_body") {
            None => MAX_BODY_BYTES,
            Some(value) => value
                .as_u64()
                .ok_or_else(|| self.wanted("max_body", "a number of bytes"))?,
        };
        let bearer = self.optional_text("bearer")?.filter(|bearer| !bearer.is_empty());
        Ok(Verifier::new(
            ring,
            hosts,
            usize::try_from(max_body).unwrap_or(usize::MAX),
            bearer.map(|bearer| TokenDigest::of(bearer.as_bytes())),
        ))
    }
}

const TIME: &str = "Unix seconds, or RFC 3339 such as \"2026-01-01T00:00:00Z\"";

/// Whether trailers are there: `false` and empty lists are none.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(there) => *there,
        Value::Number(_) => true,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}
