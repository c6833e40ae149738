//! The answers to a line: verdicts, or signatures.
//!
//! Here: [`verify`] and [`sign`], from one JSON value to another. Not here: reading the value (`read`).

use policy::envelope::{
    CONTEXT, KeyId, Nonce, Nonces, Received, Refusal, SigningKey, Stamp, Unsigned, Verifier,
};
use serde_json::{Value, json};

use super::read::{Object, Request};
use crate::signing::fresh_nonce;

/// So many requests of a line are judged at once.
const AT_ONCE: usize = 16;

/// Judges the requests of a line.
///
/// # Errors
///
/// What in the line cannot be read.
pub(super) fn verify(line: &Value, nonces: &(dyn Nonces + Sync)) -> Result<Value, String> {
    let line = Object::line(line)?;
    let now = line.time("now")?;
    let concurrent = line.flag("concurrent")?;
    let requests = line.requests(now)?;
    let verifier = match line.object("config").and_then(|config| config.verifier()) {
        Ok(verifier) => verifier,
        Err(error) => {
            let refused = json!({ "allow": false, "status": 503, "code": "misconfigured" });
            let verdicts = vec![refused; requests.len()];
            return Ok(json!({ "error": error, "verdicts": verdicts }));
        }
    };
    let judge = |(_, request): &(Object<'_>, Request<'_>)| verdict(&verifier, request, nonces);
    let verdicts: Vec<Value> = if concurrent {
        requests
            .chunks(AT_ONCE)
            .flat_map(|requests| at_once(requests, &judge))
            .collect()
    } else {
        requests.iter().map(judge).collect()
    };
    Ok(json!({ "verdicts": verdicts }))
}

/// One thread each, none of which waits for another but at the store.
fn at_once<T: Sync>(requests: &[T], judge: &(impl Fn(&T) -> Value + Sync)) -> Vec<Value> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = requests
            .iter()
            .map(|request| scope.spawn(move || judge(request)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| refused(Refusal::NonceStoreDown)))
            .collect()
    })
}

fn verdict(verifier: &Verifier, request: &Request<'_>, nonces: &dyn Nonces) -> Value {
    let received = Received {
        method: request.method,
        target: request.target,
        headers: &request.headers,
        has_trailers: request.has_trailers,
        body: &request.body,
    };
    match verifier.verify(&received, nonces, request.at) {
        Ok(_) => json!({ "allow": true, "status": 200, "code": "ok" }),
        Err(refusal) => refused(refusal),
    }
}

fn refused(refusal: Refusal) -> Value {
    json!({ "allow": false, "status": refusal.status(), "code": refusal.code() })
}

/// Signs the requests of a line.
///
/// # Errors
///
/// What in the line cannot be read or signed.
pub(super) fn sign(line: &Value) -> Result<Value, String> {
    let line = Object::line(line)?;
    let now = line.time("now")?;
    let key = SigningKey::from_base64(line.text("key")?).map_err(|fault| format!("`key` {fault}"))?;
    let key_id = KeyId::parse(line.text("key_id")?)
        .ok_or("`key_id` must be 1 to 64 of A-Z a-z 0-9 . _ -".to_owned())?;
    let nonce = line.optional_text("nonce")?;
    let mut signed = Vec::new();
    for (number, (object, request)) in line.requests(now)?.into_iter().enumerate() {
        let nonce = match object.optional_text("nonce")?.or(nonce) {
            Some(text) => Nonce::parse(text)
                .ok_or("`nonce` must be 22 characters of base64url, without padding".to_owned())?,
            None => fresh_nonce()?,
        };
        let stamp = Stamp {
            key_id: &key_id,
            timestamp: request.at,
            nonce,
        };
        let one = sign_one(&key, stamp, &request).map_err(|why| format!("requests[{number}]: {why}"))?;
        signed.push(one);
    }
    Ok(json!({ "requests": signed }))
}

fn sign_one(key: &SigningKey, stamp: Stamp<'_>, request: &Request<'_>) -> Result<Value, String> {
    let mut context = Vec::new();
    for (name, header) in CONTEXT {
        if let Some(value) = only(request, header)? {
            context.push((name, value));
        }
    }
    let unsigned = Unsigned {
        method: request.method,
        target: request.target,
        host: only(request, "Host")?.ok_or("there is no Host among the headers")?,
        content_type: only(request, "Content-Type")?.unwrap_or_default(),
        context: &context,
        body: &request.body,
    };
    let signed = policy::envelope::sign(key, stamp, &unsigned).map_err(|fault| fault.to_string())?;
    Ok(json!({ "headers": signed.fields(), "string_to_sign": signed.string_to_sign() }))
}

/// The value of a field that stands once at most.
fn only<'v>(request: &Request<'v>, wanted: &str) -> Result<Option<&'v str>, String> {
    let mut values = request
        .headers
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case(wanted))
        .map(|(_, value)| *value);
    let first = values.next();
    if values.next().is_some() {
        return Err(format!("{wanted} stands twice among the headers"));
    }
    // They were texts when they were read.
    Ok(first.and_then(|value| std::str::from_utf8(value).ok()))
}
