//! What a denied caller most likely meant.
//!
//! Here: a search over the allow rules, made only for a denial and bounded by the number of rules. It
//! suggests nothing that is not allowed. Not here: the wording ([`crate::verdict::Nearest`]).

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::route::{Segment, Segments};
use crate::rule::{Method, Rule};
use crate::rules::{Ask, Found, Rules};
use crate::suggest;
use crate::verdict::Nearest;

/// Most values of a constraint that are told.
const MAX_VALUES: usize = 8;

/// Most rules whose spelling is compared; bounds what a denied caller can make us do.
const MAX_COMPARED: usize = 256;

/// The nearest allowed route, the likeliest kind of slip first.
pub(crate) fn route(rules: &Rules, ask: &Ask<'_>) -> Option<Nearest> {
    let segments = Segments::of(ask.target.path())?;
    let parts = segments.parts();
    let Some(method) = Method::parse(ask.method) else {
        let method = Method::ALL
            .into_iter()
            .find(|known| known.as_str().eq_ignore_ascii_case(ask.method));
        return match method {
            Some(method) => {
                let route = allowed(rules, method, parts, ask.now_unix)?;
                Some(Nearest::UpperCaseMethod { method, route })
            }
            None => other_method(rules, parts, ask.now_unix),
        };
    };
    let with = |parts: &[&str]| allowed(rules, method, parts, ask.now_unix);
    if let [rest @ .., ""] = parts
        && let Some(route) = with(rest)
    {
        return Some(Nearest::TrailingSlash { route });
    }
    if let Some(prefixed) = Segments::collect(core::iter::once("api").chain(parts.iter().copied()))
        && let Some(route) = with(prefixed.parts())
    {
        return Some(Nearest::MissingPrefix { route });
    }
    if let ["api", rest @ ..] = parts
        && rest.first() == Some(&"api")
        && let Some(route) = with(rest)
    {
        return Some(Nearest::DoubledPrefix { route });
    }
    other_method(rules, parts, ask.now_unix)
        .or_else(|| spelling(rules, method, parts, ask.now_unix))
        .or_else(|| match parts {
            [rest @ .., _] => with(rest).map(|route| Nearest::ExtraSegment { route }),
            [] => None,
        })
}

/// The values that would have been allowed.
pub(crate) fn values(rule: &Rule, ask: &Ask<'_>) -> Option<Nearest> {
    let segments = Segments::of(ask.target.path())?;
    let broken = rule.broken_constraint(segments.parts())?;
    let values = broken.values.iter().take(MAX_VALUES).cloned().collect();
    Some(Nearest::Values {
        parameter: Arc::clone(&broken.parameter),
        values,
    })
}

/// The template that allows this call, if one does.
fn allowed(rules: &Rules, method: Method, parts: &[&str], now_unix: u64) -> Option<Arc<str>> {
    match rules.look_up(method, parts, now_unix) {
        Found::Allowed(rule) => Some(Arc::clone(rule.template.text())),
        Found::Denied(_) | Found::Almost(..) | Found::Nothing => None,
    }
}

fn other_method(rules: &Rules, parts: &[&str], now_unix: u64) -> Option<Nearest> {
    let mut found = Method::ALL.into_iter().filter_map(|method| {
        let route = allowed(rules, method, parts, now_unix)?;
        Some((method, route))
    });
    let (first, route) = found.next()?;
    let methods = core::iter::once(first)
        .chain(found.map(|(method, _)| method))
        .collect();
    Some(Nearest::OtherMethod { methods, route })
}

/// The live rule of the same method that differs least in the spelling of a single literal segment.
fn spelling(rules: &Rules, method: Method, parts: &[&str], now_unix: u64) -> Option<Nearest> {
    let candidates = rules.allows().filter(|rule| {
        rule.method == Some(method) && rule.is_live(now_unix) && rule.template.segments().len() == parts.len()
    });
    candidates
        .take(MAX_COMPARED)
        .filter_map(|rule| Some((misspelling(rule, parts)?, rule)))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, rule)| Nearest::Spelling {
            route: Arc::clone(rule.template.text()),
        })
}

/// How far the one segment that does not match is from the rule's; `None` when it is not a slip.
fn misspelling(rule: &Rule, parts: &[&str]) -> Option<usize> {
    let pairs = rule.template.segments().iter().zip(parts);
    let differing: Vec<_> = pairs
        .filter(|(segment, part)| match segment {
            Segment::Literal(text) => **text != ***part,
            Segment::Parameter { .. } => segment.captured(part).is_none(),
        })
        .take(2)
        .collect();
    let [(Segment::Literal(text), part)] = differing.as_slice() else {
        return None;
    };
    suggest::slips(part, text)
}
