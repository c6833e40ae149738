//! A verdict explained at length, for people.
//!
//! Here: [`explain`], what `policy explain` prints. It decides with [`Rules::decide`] itself and only then
//! collects what else is worth knowing. Not here: the hint that a denied caller gets, which is shorter
//! ([`crate::Denial::hint`]).

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::Serialize;

use crate::path::{Target, TargetFault};
use crate::route::Segments;
use crate::rule::{Effect, Rule, RuleView};
use crate::rules::{Ask, Rules};
use crate::verdict::{Nearest, RuleId, Verdict, expiry_in_words};

/// Everything worth knowing about one decision. [`fmt::Display`] puts it in words.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The method as asked.
    pub method: String,
    /// The path as asked, with bytes that are not plain ASCII written as `\x..`.
    pub path: String,
    /// How long the query is; its text is left out, since queries may hold secrets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_bytes: Option<usize>,
    /// `allow`, `deny`, or `refuse` for a target that is not canonical.
    pub verdict: &'static str,
    /// `allow_rule`, the code of the [`crate::Reason`], or the code of the [`TargetFault`].
    pub reason: &'static str,
    /// The reason in words.
    pub why: String,
    /// The rule that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Whether a multipart body would be admitted.
    pub multipart: bool,
    /// Every rule whose path fits, deny rules first, and what became of it.
    pub considered: Vec<Considered>,
    /// The kind of the nearest allowed call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nearest: Option<&'static str>,
    /// What the denied caller is told to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// A rule whose path fits the call.
#[derive(Clone, Debug, Serialize)]
pub struct Considered {
    /// Allow or deny.
    pub effect: Effect,
    /// The rule's name.
    pub rule: String,
    /// The operator's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Until when it holds, or since when it no longer does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiry: Option<String>,
    /// Whether it applies.
    pub applies: bool,
    /// Why it does not, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub but: Option<String>,
}

/// Explains what `rules` say of one call.
///
/// - `raw_target`: the target as a caller would send it, canonical or not.
/// - `now_unix`: seconds since 1970.
#[must_use]
pub fn explain(rules: &Rules, method: &str, raw_target: &[u8], now_unix: u64) -> Explanation {
    let target = match Target::parse(raw_target) {
        Ok(target) => target,
        Err(fault) => return refused(method, raw_target, fault),
    };
    let verdict = rules.decide(&Ask {
        method,
        target: &target,
        now_unix,
    });
    let mut explanation = Explanation {
        method: method.to_owned(),
        path: target.path().to_owned(),
        query_bytes: target.query().map(str::len),
        verdict: "allow",
        reason: "allow_rule",
        why: "an allow rule matches and no deny rule does".to_owned(),
        rule: verdict.rule().map(str::to_owned),
        multipart: false,
        considered: considered(rules, method, target.path(), now_unix),
        nearest: None,
        hint: None,
    };
    match verdict {
        Verdict::Allow(permit) => explanation.multipart = permit.multipart(),
        Verdict::Deny(denial) => {
            explanation.verdict = "deny";
            explanation.reason = denial.reason.code();
            explanation.why = denial.reason.to_string();
            explanation.rule = denial.rule.as_ref().map(RuleId::to_string);
            explanation.nearest = denial.nearest.as_ref().map(Nearest::code);
            explanation.hint = denial.hint();
        }
    }
    explanation
}

impl Explanation {
    /// Whether the call would be forwarded.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        self.verdict == "allow"
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{} {}", self.method, self.path)?;
        let verdict = match self.verdict {
            "allow" => "allowed",
            "refuse" => "refused, not canonical",
            _ => "denied",
        };
        writeln!(formatter, "  {verdict}: {} ({})", self.why, self.reason)?;
        if let Some(bytes) = self.query_bytes {
            writeln!(
                formatter,
                "  query: {bytes} bytes, passed through, not looked at by rules"
            )?;
        }
        if let Some(rule) = &self.rule {
            writeln!(formatter, "  decided by: {rule}")?;
        }
        if self.multipart {
            writeln!(formatter, "  body: JSON or multipart/form-data")?;
        }
        if let Some(hint) = &self.hint {
            writeln!(formatter, "  hint to the caller: {hint}")?;
        }
        if !self.considered.is_empty() {
            writeln!(formatter, "  rules whose path fits:")?;
        }
        self.considered
            .iter()
            .try_for_each(|rule| writeln!(formatter, "    {rule}"))
    }
}

impl fmt::Display for Considered {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let effect = if self.effect == Effect::Allow {
            "allow"
        } else {
            "deny "
        };
        write!(formatter, "{effect} {}", self.rule)?;
        if let Some(expiry) = &self.expiry {
            write!(formatter, ", {expiry}")?;
        }
        match &self.but {
            Some(but) => write!(formatter, ": does not apply, {but}")?,
            None => write!(formatter, ": applies")?,
        }
        match &self.reason {
            Some(reason) => write!(formatter, " (\"{reason}\")"),
            None => Ok(()),
        }
    }
}

fn refused(method: &str, raw_target: &[u8], fault: TargetFault) -> Explanation {
    let mut halves = raw_target.splitn(2, |byte| *byte == b'?');
    let path = halves.next().unwrap_or_default();
    Explanation {
        method: method.to_owned(),
        path: path.escape_ascii().to_string(),
        query_bytes: halves.next().map(<[u8]>::len),
        verdict: "refuse",
        reason: fault.code(),
        why: fault.to_string(),
        rule: None,
        multipart: false,
        considered: Vec::new(),
        nearest: None,
        hint: None,
    }
}

fn considered(rules: &Rules, method: &str, path: &str, now_unix: u64) -> Vec<Considered> {
    let Some(segments) = Segments::of(path) else {
        return Vec::new();
    };
    let parts = segments.parts();
    let denies = rules.denies().filter(|rule| rule.template.matches_broadly(parts));
    let allows = rules.allows().filter(|rule| rule.template.matches_exactly(parts));
    denies
        .chain(allows)
        .map(|rule| consider(rule, method, parts, now_unix))
        .collect()
}

fn consider(rule: &Rule, method: &str, parts: &[&str], now_unix: u64) -> Considered {
    let view = rule.view();
    let but = if !rule.covers(method) {
        Some(format!("it is for {}", view.method))
    } else if !rule.is_live(now_unix) {
        Some("it has expired".to_owned())
    } else if !rule.meets_constraints(parts) {
        Some(format!("it is only for {}", constraints_in_words(&view)))
    } else {
        None
    };
    Considered {
        effect: rule.effect,
        rule: view.rule.to_owned(),
        reason: view.reason.map(str::to_owned),
        expiry: view
            .expires_unix
            .map(|expires| expiry_in_words(expires, now_unix)),
        applies: but.is_none(),
        but,
    }
}

fn constraints_in_words(view: &RuleView<'_>) -> String {
    let each = view.constraints.iter();
    let each: Vec<String> = each
        .map(|(name, values)| format!("{{{name}}} = {}", values.join(" or ")))
        .collect();
    each.join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PolicyFile;

    const RULES: &str = r#"
        [constrain]
        issue = ["PAP-1", "PAP-2"]
        [[deny]]
        name = "no-mail"
        method = "POST"
        path = "/api/companies/{company}/email/send"
        where = { company = ["c1"] }
        reason = "agents do not write to customers"
        expires = 2026-12-01T00:00:00Z
    "#;
    /// 2026-11-22T00:00:00Z.
    const NOW: u64 = 1_795_305_600;

    fn explained(method: &str, target: &str) -> Explanation {
        let file = PolicyFile::parse(RULES).expect("no mistakes");
        explain(
            &Rules::load(None, Some(&file)).expect("compiles"),
            method,
            target.as_bytes(),
            NOW,
        )
    }

    #[test]
    fn a_denied_call_is_told_the_rule_its_expiry_and_its_reason() {
        assert_eq!(
            explained("POST", "/api/companies/c1/email/send").to_string(),
            "POST /api/companies/c1/email/send\n  \
               denied: a deny rule matches (deny_rule)\n  \
               decided by: no-mail\n  \
               hint to the caller: denied by the rule `no-mail`: agents do not write to customers\n  \
               rules whose path fits:\n    \
                 deny  no-mail, until 2026-12-01T00:00:00Z: applies (\"agents do not write to customers\")\n    \
                 allow paperclip-2026.916 POST /api/companies/{company}/email/send: applies\n"
        );
    }

    #[test]
    fn rules_that_nearly_apply_say_why_they_do_not() {
        let other_company = explained("POST", "/api/companies/c2/email/send").to_string();
        let other_issue = explained("GET", "/api/issues/PAP-3").to_string();

        assert!(
            other_company.contains("does not apply, it is only for {company} = c1"),
            "{other_company}"
        );
        assert!(
            other_issue.contains("{issue} may only be PAP-1, PAP-2"),
            "{other_issue}"
        );
        assert!(
            other_issue.contains("does not apply, it is for PATCH"),
            "{other_issue}"
        );
        assert!(
            other_issue.contains("it is only for {issue} = PAP-1 or PAP-2"),
            "{other_issue}"
        );
    }

    #[test]
    fn a_target_that_is_not_canonical_is_told_why_and_printed_safely() {
        let explanation = explained("GET", "/a/\u{1b}[31m?token=hunter2");

        assert_eq!((explanation.verdict, explanation.reason), ("refuse", "control"));
        assert_eq!(explanation.path, "/a/\\x1b[31m");
        assert!(!explanation.to_string().contains("hunter2"));
    }

    #[test]
    fn the_query_is_counted_but_not_shown() {
        let shown = explained("GET", "/api/agents/me?token=hunter2").to_string();

        assert!(shown.contains("query: 13 bytes"), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
