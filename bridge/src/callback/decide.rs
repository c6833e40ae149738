//! Step 4, decide: policy's verdict, written down before anything is sent.
//!
//! Here: the question to [`policy::Rules::decide_in`] and to the content-type and size rules, and the verdict's event. Not
//! here: what is allowed; that is all in `policy`. Next: `throttle.rs`.

use http::header;
use policy::{Ask, Permit, Ruling, Target, content_type};

use super::read::CallbackRequest;
use super::record::Record;
use super::refusal::Refusal;
use crate::telemetry::metrics::Class;

/// A callback that policy allows.
#[derive(Debug)]
pub(crate) struct Permitted {
    pub(super) request: CallbackRequest,
    pub(super) class: Class,
    /// Which rule says so.
    pub(super) permit: Permit,
}

pub(crate) fn permit(request: CallbackRequest, record: &mut Record) -> Result<Permitted, Refusal> {
    let target = Target::parse(request.target.as_str().as_bytes()).map_err(Refusal::PathNotCanonical)?;
    let ask = Ask {
        method: request.method.as_str(),
        target: &target,
        now_unix: now_unix(),
    };
    let ruling = {
        // What holds now; the next callback asks anew.
        let now = request.session.rules.load();
        now.rules.decide_in(now.mode, &ask)
    };
    let (permit, reported) = match ruling {
        Ruling::Allow(permit) => (permit, None),
        // Only the route is let through: what follows holds for every callback.
        Ruling::Report(permit, denial) => (permit, Some(denial)),
        Ruling::Deny(denial) => {
            record.denied_by(denial.rule.as_ref());
            return Err(Refusal::RouteNotAllowed {
                method: request.method.clone(),
                path: target.path().to_owned(),
                why: denial.reason.to_string(),
                hint: denial.hint(),
            });
        }
    };
    content(&request, &permit)?;
    if let Some(length) = request.body.declared_length()
        && length > request.session.limits.max_body
    {
        return Err(Refusal::BodyTooLarge {
            limit_bytes: request.session.limits.max_body,
        });
    }
    let class = Class::of(&request.method, permit.multipart());
    match &reported {
        None => record.allowed(&permit, class)?,
        Some(denial) => record.reported(&permit, denial, class)?,
    }
    Ok(Permitted {
        request,
        class,
        permit,
    })
}

fn content(request: &CallbackRequest, permit: &Permit) -> Result<(), Refusal> {
    let body = match request.body.declared_length() {
        Some(0) => content_type::Body::None,
        Some(length) => content_type::Body::Known(length),
        None => content_type::Body::Unknown,
    };
    let types = request
        .headers
        .get_all(header::CONTENT_TYPE)
        .iter()
        .map(http::HeaderValue::as_bytes);
    content_type::check_lines(permit.multipart(), body, types).map_err(Refusal::ContentType)
}

pub(super) fn now_unix() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
