//! Step 8, record: one event for each callback, whatever became of it.
//!
//! Here: the verdict's event, written before anything is sent, and the one event at the end with fixed fields. A
//! record that is dropped unfinished still writes its event: no exit avoids it. No secret and no query is ever in one.

use std::sync::Arc;
use std::time::Instant;

use http::{Method, Response};
use policy::RuleId;
use uuid::Uuid;

use super::accept::Arrived;
use super::answer::AnswerBody;
use super::read::CallbackRequest;
use super::refusal::Refusal;
use crate::session::Session;
use crate::session::observer;
use crate::telemetry::metrics::{Class, Seen};

/// What is known of a callback so far.
#[derive(Debug)]
pub(crate) struct Record {
    session: Arc<Session>,
    request_id: Uuid,
    method: Method,
    path: String,
    rule: Option<RuleId>,
    /// Asked of the bridge itself: policy has no say in it.
    own: bool,
    began: Instant,
    class: Class,
    status: u16,
    code: &'static str,
    pub(super) answer_bytes: u64,
    written: bool,
}

impl Record {
    pub(crate) fn begin(arrived: &Arrived) -> Self {
        Self {
            session: Arc::clone(&arrived.session),
            request_id: arrived.request_id,
            method: arrived.method.clone(),
            path: String::new(),
            rule: None,
            own: false,
            began: Instant::now(),
            // Until a route is known, the method has to do.
            class: Class::of(&arrived.method, false),
            status: 0,
            code: "",
            answer_bytes: 0,
            written: false,
        }
    }

    /// The canonical path is known.
    pub(crate) fn asks(&mut self, path: &str) {
        path.clone_into(&mut self.path);
    }

    /// It is asked of the bridge itself and never reaches the upstream.
    pub(crate) fn asks_bridge(&mut self) {
        self.own = true;
    }

    /// Policy allowed it; written down before anything is sent.
    pub(crate) fn allowed(&mut self, request: &CallbackRequest, rule: RuleId, class: Class) {
        tracing::info!(
            session = %self.session.id,
            request_id = %self.request_id,
            method = request.method.as_str(),
            path = self.path,
            rule = rule.as_str(),
            verdict = "allow",
            "callback allowed"
        );
        self.rule = Some(rule);
        self.class = class;
    }

    /// One of our own answers is given.
    pub(crate) fn refused(&mut self, refusal: &Refusal) {
        self.code = refusal.code();
    }

    /// The answer's head is known; a streamed body takes the record along.
    pub(crate) fn answered(mut self, mut response: Response<AnswerBody>) -> Response<AnswerBody> {
        self.status = response.status().as_u16();
        match response.body_mut() {
            AnswerBody::Stream(stream) => stream.record = Some(self),
            AnswerBody::Held(bytes) => {
                self.answer_bytes = bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
                self.ended(None);
            }
        }
        response
    }

    /// The answer has ended, or broke off for a reason.
    pub(crate) fn ended(mut self, broken: Option<&'static str>) {
        self.write(broken);
    }

    fn write(&mut self, broken: Option<&'static str>) {
        self.written = true;
        let verdict = match (self.own, &self.rule) {
            (true, _) => "own",
            (false, Some(_)) => "allow",
            (false, None) => "deny",
        };
        let took = self.began.elapsed();
        if let Some(metrics) = &self.session.shared.metrics {
            metrics.callback(&Seen {
                tunnel: self.session.tunnel(),
                class: self.class,
                verdict,
                code: self.code,
                status: self.status,
                took,
                answer_bytes: self.answer_bytes,
                broken: broken.is_some(),
            });
        }
        if let Some(observer) = self.session.observer() {
            observer.callback(observer::Seen {
                session: self.session.id,
                run_id: self.session.run_id.to_str().unwrap_or_default(),
                request_id: self.request_id,
                method: self.method.as_str(),
                path: &self.path,
                rule: self.rule.as_ref().map_or("", RuleId::as_str),
                verdict,
                status: self.status,
                code: self.code,
                answer_bytes: self.answer_bytes,
                duration: took,
            });
        }
        tracing::info!(
            session = %self.session.id,
            request_id = %self.request_id,
            method = self.method.as_str(),
            path = self.path,
            rule = self.rule.as_ref().map_or("", RuleId::as_str),
            verdict,
            status = self.status,
            code = self.code,
            broken = broken.unwrap_or_default(),
            answer_bytes = self.answer_bytes,
            duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            "callback"
        );
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.written {
            self.write(Some("caller_gone"));
        }
    }
}
