//! What policy says of a callback.
//!
//! Here: [`Verdict`], [`Permit`] (only [`crate::Rules`] makes one) and [`Denial`]; [`Mode`] and [`Ruling`], for policies that
//! are tried out before they are enforced.
//! Not here: how it comes about ([`crate::rules`]), nor its explanation at length ([`crate::explain`]).

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use crate::rule::{Method, Rule};
use crate::time;

/// Allow with the rule, or deny with the reason.
#[derive(Clone, Debug)]
#[must_use = "a verdict that nobody looks at protects nothing"]
pub enum Verdict {
    /// May be forwarded.
    Allow(Permit),
    /// Must not be forwarded.
    Deny(Denial),
}

/// What becomes of a callback that no rule allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// It is refused.
    #[default]
    Enforce,
    /// It is let through, and told of.
    Report,
}

/// A verdict under a [`Mode`].
#[derive(Clone, Debug)]
#[must_use = "a ruling that nobody looks at protects nothing"]
pub enum Ruling {
    /// May be forwarded.
    Allow(Permit),
    /// May be forwarded although it is denied, because denials are only reported. The permit knows the route, as far as a
    /// rule matches but for what denies it.
    Report(Permit, Denial),
    /// Must not be forwarded.
    Deny(Denial),
}

/// Proof that policy lets a callback through; its fields are private, so only policy can make one.
#[derive(Clone)]
pub struct Permit {
    /// `None`: let through although no rule is about it.
    pub(crate) matched: Option<Arc<Rule>>,
}

/// Why a callback is not allowed.
#[derive(Clone, Debug)]
pub struct Denial {
    /// The kind of reason.
    pub reason: Reason,
    /// The rule that decided: the deny rule, or the allow rule that almost applied.
    pub rule: Option<RuleId>,
    /// The operator's words about that rule.
    pub rule_reason: Option<Arc<str>>,
    /// The nearest thing that would be allowed, for the caller's next attempt.
    pub nearest: Option<Nearest>,
}

/// The kinds of reason for a denial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// A deny rule matches.
    DenyRule,
    /// No rule matches, and no rule means no.
    NoRule,
    /// An allow rule matches but for the value of a parameter.
    Constraint,
    /// An allow rule matches but has expired.
    Expired,
}

/// The name of a rule, cheap to clone: the operator's own, or one made from its place.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId(Arc<str>);

/// What would have been allowed instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nearest {
    /// The same path with another method.
    OtherMethod {
        /// The methods that are allowed there.
        methods: Vec<Method>,
        /// The template of one of these routes.
        route: Arc<str>,
    },
    /// The method is not in upper case.
    UpperCaseMethod {
        /// The method as it must be written.
        method: Method,
        /// The template that would match.
        route: Arc<str>,
    },
    /// The path with `/api` in front.
    MissingPrefix {
        /// The template that would match.
        route: Arc<str>,
    },
    /// The path with one `/api` less.
    DoubledPrefix {
        /// The template that would match.
        route: Arc<str>,
    },
    /// The path without the slash at its end.
    TrailingSlash {
        /// The template that would match.
        route: Arc<str>,
    },
    /// The path without its last segment.
    ExtraSegment {
        /// The template that would match.
        route: Arc<str>,
    },
    /// A path that differs in the spelling of one segment.
    Spelling {
        /// The template that would match.
        route: Arc<str>,
    },
    /// Another value of a parameter.
    Values {
        /// The parameter.
        parameter: Arc<str>,
        /// The values that are allowed, at most a handful.
        values: Vec<String>,
    },
}

impl Verdict {
    /// Whether it is [`Verdict::Allow`].
    #[must_use]
    pub const fn is_allow(&self) -> bool {
        matches!(self, Self::Allow(_))
    }

    /// The rule that decided, if one did.
    #[must_use]
    pub fn rule(&self) -> Option<&str> {
        match self {
            Self::Allow(permit) => Some(permit.rule()),
            Self::Deny(denial) => denial.rule.as_ref().map(RuleId::as_str),
        }
    }
}

impl Permit {
    /// The name of the rule that allowed it; empty where none did ([`Ruling::Report`]).
    #[must_use]
    pub fn rule(&self) -> &str {
        self.matched.as_ref().map_or("", |rule| rule.id.as_str())
    }

    /// The same name, to keep.
    #[must_use]
    pub fn rule_id(&self) -> RuleId {
        match &self.matched {
            Some(rule) => rule.id.clone(),
            None => RuleId::new(String::new()),
        }
    }

    /// The template that matched, such as `/api/issues/{issue}`: of low cardinality, fit for metrics. Empty where none did.
    #[must_use]
    pub fn route(&self) -> &str {
        self.matched.as_ref().map_or("", |rule| rule.template.as_str())
    }

    /// Whether the route takes `multipart/form-data` beside JSON.
    #[must_use]
    pub fn multipart(&self) -> bool {
        self.matched.as_ref().is_some_and(|rule| rule.multipart)
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Permit")
            .field("rule", &self.rule())
            .finish_non_exhaustive()
    }
}

impl Denial {
    /// The caller's error text, which starts as Paperclip's own bridge words it. Without query.
    #[must_use]
    pub fn error_text(method: &str, path: &str) -> String {
        format!("Route not allowed: {method} {path}")
    }

    /// What the caller can do about it, in one sentence; `None` when nothing near is allowed.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let said = self
            .rule_reason
            .as_deref()
            .map(|reason| format!(": {reason}"))
            .unwrap_or_default();
        let rule = self.rule.as_ref().map_or("a rule", RuleId::as_str);
        match self.reason {
            Reason::DenyRule => Some(format!("denied by the rule `{rule}`{said}")),
            Reason::Expired => Some(format!("the rule `{rule}` that allowed this has expired{said}")),
            Reason::Constraint | Reason::NoRule => self.nearest.as_ref().map(|nearest| format!("{nearest}")),
        }
    }
}

impl Reason {
    /// The stable name in logs, audit and JSON.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::DenyRule => "deny_rule",
            Self::NoRule => "no_rule",
            Self::Constraint => "constraint",
            Self::Expired => "expired",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::DenyRule => "a deny rule matches",
            Self::NoRule => "no rule allows it",
            Self::Constraint => "the rule for this route does not allow this parameter value",
            Self::Expired => "the rule for this route has expired",
        })
    }
}

impl RuleId {
    pub(crate) fn new(text: String) -> Self {
        Self(Arc::from(text))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for RuleId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, formatter)
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Nearest {
    /// The stable name of the kind.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::OtherMethod { .. } => "other_method",
            Self::UpperCaseMethod { .. } => "upper_case_method",
            Self::MissingPrefix { .. } => "missing_prefix",
            Self::DoubledPrefix { .. } => "doubled_prefix",
            Self::TrailingSlash { .. } => "trailing_slash",
            Self::ExtraSegment { .. } => "extra_segment",
            Self::Spelling { .. } => "spelling",
            Self::Values { .. } => "values",
        }
    }

    /// The template of the nearest route; `None` when only a parameter's value is wrong.
    #[must_use]
    pub fn route(&self) -> Option<&str> {
        match self {
            Self::OtherMethod { route, .. }
            | Self::UpperCaseMethod { route, .. }
            | Self::MissingPrefix { route }
            | Self::DoubledPrefix { route }
            | Self::TrailingSlash { route }
            | Self::ExtraSegment { route }
            | Self::Spelling { route } => Some(route),
            Self::Values { .. } => None,
        }
    }
}

impl fmt::Display for Nearest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherMethod { methods, route } => {
                let methods: Vec<&str> = methods.iter().map(|method| method.as_str()).collect();
                write!(formatter, "{route} allows {}", methods.join(", "))
            }
            Self::UpperCaseMethod { method, route } => {
                write!(formatter, "methods are in upper case: {method} {route}")
            }
            Self::MissingPrefix { route } => write!(formatter, "put /api in front: {route}"),
            Self::DoubledPrefix { route } => write!(formatter, "one /api is enough: {route}"),
            Self::TrailingSlash { route } => write!(formatter, "leave out the slash at the end: {route}"),
            Self::ExtraSegment { route } => write!(formatter, "the last segment is too much: {route}"),
            Self::Spelling { route } => write!(formatter, "did you mean {route}?"),
            Self::Values { parameter, values } => {
                write!(formatter, "{{{parameter}}} may only be {}", values.join(", "))
            }
        }
    }
}

/// `expired at …` or `until …`, for explanations.
pub(crate) fn expiry_in_words(expires: u64, now_unix: u64) -> String {
    let word = if expires <= now_unix {
        "expired at"
    } else {
        "until"
    };
    format!("{word} {}", time::in_words(expires))
}
