//! `traceparent` as callers send it and as the upstream is sent it (W3C Trace Context).
//!
//! What is not in the one valid form counts as not sent; so do two of them.

use http::HeaderMap;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

pub(super) const TRACEPARENT: &str = "traceparent";
pub(super) const TRACESTATE: &str = "tracestate";

/// Whose child the caller's request is.
pub(super) fn read(headers: &HeaderMap) -> Option<SpanContext> {
    let mut found = headers.get_all(TRACEPARENT).iter();
    let (Some(value), None) = (found.next(), found.next()) else {
        return None;
    };
    parse(value.to_str().ok()?)
}

fn parse(text: &str) -> Option<SpanContext> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    // A later version may have more parts behind these; version 0 has none, and ff is none.
    let known = hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
    if !known || !hex(trace, 32) || !hex(span, 16) || !hex(flags, 2) {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED,
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

/// What names a span of ours.
pub(super) fn write(span: &SpanContext) -> String {
    format!(
        "00-{}-{}-{:02x}",
        span.trace_id(),
        span.span_id(),
        span.trace_flags() & TraceFlags::SAMPLED
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_valid_parent_is_read_and_written_alike() {
        assert_eq!(write(&parse(GOOD).unwrap()), GOOD);
        let later = GOOD.replacen("00", "cc", 1) + "-what-comes-later";
        assert_eq!(write(&parse(&later).unwrap()), GOOD);
        assert!(!parse(&GOOD.replace("-01", "-00")).unwrap().is_sampled());
    }

    #[test]
    fn whatever_else_counts_as_not_sent() {
        for text in [
            "",
            "00",
            &GOOD.replacen("00", "ff", 1),
            &GOOD.replacen("00", "0", 1),
            &GOOD.to_uppercase(),
            &GOOD.replace("-01", ""),
            &GOOD.replace("-01", "-1"),
            &GOOD.replace("-01", "-01-"),
            &GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &format!(" {GOOD}"),
            "00-4bf92f3577b34da6a3ce929d0e0e473x-00f067aa0ba902b7-01",
        ] {
            assert!(parse(text).is_none(), "{text:?} was taken");
        }
        let mut twice = HeaderMap::new();
        for _ in 0..2 {
            twice.append(TRACEPARENT, GOOD.parse().unwrap());
        }
        assert!(read(&twice).is_none());
    }
}
