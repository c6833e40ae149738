//! Step 8, record: one event for each callback, whatever became of it, and its records in the audit.
//!
//! Here: the verdict's event, written before anything is sent, and the one event at the end with fixed fields. A
//! record that is dropped unfinished still writes its event: no exit avoids it. No secret and no query is ever in one. Where
//! there is an audit, the attempt stands in it before anything is sent, or nothing is sent (`trail.rs`).

use std::sync::Arc;
use std::time::Instant;

use http::{Method, Response};
use policy::{Denial, Permit, RuleId};
use uuid::Uuid;

use super::accept::Arrived;
use super::answer::AnswerBody;
use super::refusal::Refusal;
use super::throttle::Admitted;
use super::trail::{End, Told, Trail};
use crate::session::Session;
use crate::session::observer;
use crate::telemetry::metrics::{Class, Seen};
use crate::telemetry::otlp::{CallEnd, CallSpan};

/// What is known of a callback so far.
#[derive(Debug)]
pub(crate) struct Record {
    session: Arc<Session>,
    request_id: Uuid,
    method: Method,
    path: String,
    /// Which rule allowed it; where it was only let through, which one denies it.
    rule: Option<RuleId>,
    /// `deny` until policy has said otherwise.
    verdict: &'static str,
    began: Instant,
    class: Class,
    status: u16,
    code: &'static str,
    answer_bytes: u64,
    written: bool,
    /// In the audit, where there is one.
    trail: Option<Box<Trail>>,
    /// In its trace, where traces are sent, with the template of its route.
    span: Option<Box<(CallSpan, String)>>,
}

impl Record {
    /// From now on the headers name the callback's span as their parent, where traces are sent.
    pub(crate) fn begin(arrived: &mut Arrived) -> Self {
        let tracing = arrived.session.shared.tracing.as_ref();
        let span = tracing.map(|tracing| Box::new((tracing.callback(&mut arrived.headers), String::new())));
        Self {
            session: Arc::clone(&arrived.session),
            request_id: arrived.request_id,
            method: arrived.method.clone(),
            path: String::new(),
            rule: None,
            verdict: "deny",
            began: Instant::now(),
            // Until a route is known, the method has to do.
            class: Class::of(&arrived.method, false),
            status: 0,
            code: "",
            answer_bytes: 0,
            written: false,
            trail: Trail::of(&arrived.session),
            span,
        }
    }

    /// The canonical path is known.
    pub(crate) fn asks(&mut self, path: &str) {
        path.clone_into(&mut self.path);
    }

    /// It is asked of the bridge itself and never reaches the upstream.
    ///
    /// # Errors
    ///
    /// The audit cannot be written.
    pub(crate) fn asks_bridge(&mut self) -> Result<(), Refusal> {
        // Policy has no say in it.
        self.verdict = "own";
        match self.trailed() {
            Some((trail, told)) => trail.own(told),
            None => Ok(()),
        }
    }

    /// Policy allowed it; written down before anything is sent.
    ///
    /// # Errors
    ///
    /// The audit cannot be written.
    pub(crate) fn allowed(&mut self, permit: &Permit, class: Class) -> Result<(), Refusal> {
        self.passes_policy("allow", Some(permit.rule_id()), permit.route(), class);
        match self.trailed() {
            Some((trail, told)) => trail.allowed(told, permit.rule(), permit.route()),
            None => Ok(()),
        }
    }

    /// Policy denies it and lets it through, because denials are only reported; written down before anything is sent.
    ///
    /// # Errors
    ///
    /// The audit cannot be written.
    pub(crate) fn reported(&mut self, permit: &Permit, denial: &Denial, class: Class) -> Result<(), Refusal> {
        self.passes_policy("report", denial.rule.clone(), permit.route(), class);
        match self.trailed() {
            Some((trail, told)) => trail.reported(told, permit.route(), denial),
            None => Ok(()),
        }
    }

    fn passes_policy(&mut self, verdict: &'static str, rule: Option<RuleId>, route: &str, class: Class) {
        if let Some(span) = &mut self.span {
            route.clone_into(&mut span.1);
        }
        tracing::info!(
            session = %self.session.id,
            request_id = %self.request_id,
            method = self.method.as_str(),
            path = self.path,
            rule = rule.as_ref().map_or("", RuleId::as_str),
            verdict,
            "callback allowed"
        );
        self.verdict = verdict;
        self.rule = rule;
        self.class = class;
    }

    /// Policy denied it by this rule.
    pub(crate) fn denied_by(&mut self, rule: Option<&RuleId>) {
        if let Some(trail) = &mut self.trail {
            trail.denied_by(rule);
        }
    }

    /// It is sent now.
    ///
    /// # Errors
    ///
    /// The audit cannot be kept as it promises.
    pub(crate) async fn dispatches(&mut self, admitted: &mut Admitted) -> Result<(), Refusal> {
        match &mut self.trail {
            Some(trail) => trail.dispatches(admitted).await,
            None => Ok(()),
        }
    }

    /// What was sent has come back, with the upstream's answer or without.
    pub(crate) fn replied(&mut self, upstream: bool) {
        if let Some(trail) = &mut self.trail {
            trail.replied(upstream);
        }
    }

    /// A piece of an answer's body goes to the caller.
    pub(super) fn passes(&mut self, data: &[u8]) {
        self.answer_bytes += data.len() as u64;
        if let Some(trail) = &mut self.trail {
            trail.passes(data);
        }
    }

    fn trailed(&mut self) -> Option<(&mut Trail, Told<'_>)> {
        let told = Told {
            request_id: self.request_id,
            method: self.method.as_str(),
            path: &self.path,
        };
        Some((self.trail.as_mut()?, told))
    }

    /// One of our own answers is given.
    pub(crate) fn refused(&mut self, refusal: &Refusal) {
        self.code = refusal.code();
        if let Some((trail, told)) = self.trailed() {
            trail.refused(told, refusal);
        }
    }

    /// The answer's head is known; a streamed body takes the record along.
    pub(crate) fn answered(mut self, mut response: Response<AnswerBody>) -> Response<AnswerBody> {
        self.status = response.status().as_u16();
        match response.body_mut() {
            AnswerBody::Stream(stream) => stream.record = Some(self),
            AnswerBody::Held(bytes) => {
                if let Some(bytes) = bytes {
                    self.passes(bytes);
                }
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
        let verdict = self.verdict;
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
        if let Some(span) = self.span.take() {
            let (span, route) = *span;
            span.ended(CallEnd {
                session: self.session.id,
                request_id: self.request_id,
                method: &self.method,
                route: &route,
                verdict,
                code: self.code,
                status: self.status,
                broken: broken.unwrap_or_default(),
            });
        }
        if let Some(trail) = self.trail.take() {
            let told = Told {
                request_id: self.request_id,
                method: self.method.as_str(),
                path: &self.path,
            };
            let end = End {
                status: self.status,
                code: self.code,
                broken: broken.unwrap_or_default(),
                answer_bytes: self.answer_bytes,
                began: self.began,
            };
            trail.ended(told, &end, &self.session);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.written {
            self.write(Some("caller_gone"));
        }
    }
}
