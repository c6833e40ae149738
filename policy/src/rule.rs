//! One rule: whom it is about and whether it applies.
//!
//! Here: [`Method`], [`Effect`], the compiled rule and its text form [`RuleView`].
//! Not here: what several rules together decide ([`crate::rules`]).

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use serde::Serialize;

use crate::file::{Constrain, FileRule};
use crate::pack::{Pack, PackRoute};
use crate::route::{Template, broad};
use crate::verdict::RuleId;

/// The methods that rules can name. TRACE and CONNECT are never forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(
    missing_docs,
    reason = "each is the HTTP method of that name, RFC 9110 section 9 and RFC 5789"
)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
}

/// Whether a rule lets through or holds back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the enum says it")]
pub enum Effect {
    Allow,
    Deny,
}

/// One compiled rule.
pub(crate) struct Rule {
    pub(crate) id: RuleId,
    pub(crate) effect: Effect,
    /// `None` is every method; only in deny rules.
    pub(crate) method: Option<Method>,
    pub(crate) template: Template,
    pub(crate) constraints: Vec<Constraint>,
    /// The first second in which the rule no longer holds.
    pub(crate) expires: Option<u64>,
    pub(crate) reason: Option<Arc<str>>,
    pub(crate) group: Option<String>,
    pub(crate) multipart: bool,
}

/// The values that one parameter may have.
pub(crate) struct Constraint {
    pub(crate) parameter: Arc<str>,
    /// Where the parameter stands in the template.
    segment: usize,
    pub(crate) values: Vec<String>,
}

/// A rule as text, for listings, explanations and the slow reference.
#[derive(Clone, Debug, Serialize)]
pub struct RuleView<'a> {
    /// Allow or deny.
    pub effect: Effect,
    /// The rule's name.
    pub rule: &'a str,
    /// The method, or `*`.
    pub method: &'a str,
    /// The template.
    pub path: &'a str,
    /// Parameters and the values they may have.
    #[serde(rename = "where", skip_serializing_if = "BTreeMap::is_empty")]
    pub constraints: BTreeMap<&'a str, &'a [String]>,
    /// Seconds since 1970 from which the rule no longer holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_unix: Option<u64>,
    /// The operator's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
    /// The pack's group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<&'a str>,
    /// Whether multipart bodies are admitted.
    pub multipart: bool,
}

impl Rule {
    pub(crate) fn of_pack(pack: Pack, route: PackRoute) -> Self {
        Self {
            id: RuleId::new(format!("{} {} {}", pack.name(), route.method, route.template)),
            effect: Effect::Allow,
            method: Some(route.method),
            constraints: Vec::new(),
            expires: None,
            reason: None,
            group: Some(route.group),
            multipart: route.multipart,
            template: route.template,
        }
    }

    pub(crate) fn of_file(rule: &FileRule) -> Self {
        let id = rule.name.clone().unwrap_or_else(|| {
            let effect = if rule.effect == Effect::Allow {
                "allow"
            } else {
                "deny"
            };
            let method = rule.method.map_or("*", Method::as_str);
            format!("{effect}:{} {method} {}", rule.line, rule.template)
        });
        let constraints = rule
            .constraints
            .iter()
            .filter_map(|(name, values)| Constraint::new(&rule.template, name, values));
        Self {
            id: RuleId::new(id),
            effect: rule.effect,
            method: rule.method,
            constraints: constraints.collect(),
            expires: rule.expires,
            reason: rule.reason.as_deref().map(Arc::from),
            group: None,
            multipart: rule.multipart,
            template: rule.template.clone(),
        }
    }

    /// Narrows an allow rule to the values of these entries, where it has their parameters. A deny rule stays as it is.
    pub(crate) fn narrowed(mut self, entries: &[Constrain]) -> Self {
        if self.effect == Effect::Deny {
            return self;
        }
        for entry in entries {
            let known = self
                .constraints
                .iter_mut()
                .find(|known| *known.parameter == *entry.parameter);
            match known {
                Some(known) => known.values.retain(|value| entry.values.contains(value)),
                None => {
                    self.constraints
                        .extend(Constraint::new(&self.template, &entry.parameter, &entry.values))
                }
            }
        }
        self
    }

    /// The same under a name that says whose it is.
    pub(crate) fn named_by(mut self, whose: &str) -> Self {
        self.id = RuleId::new(format!("{whose} {}", self.id.as_str()));
        self
    }

    pub(crate) fn is_live(&self, now_unix: u64) -> bool {
        self.expires.is_none_or(|expires| now_unix < expires)
    }

    /// Whether this deny rule holds the call back.
    pub(crate) fn denies(&self, method: Method, parts: &[&str], now_unix: u64) -> bool {
        self.covers(method.as_str())
            && self.is_live(now_unix)
            && self.template.matches_broadly(parts)
            && self.meets_constraints(parts)
    }

    /// Whether the rule is for this method. A deny rule for GET covers HEAD, an allow rule does not.
    pub(crate) fn covers(&self, method: &str) -> bool {
        match self.method {
            None => true,
            Some(own) if own.as_str() == method => true,
            Some(own) => self.effect == Effect::Deny && own == Method::Get && method == "HEAD",
        }
    }

    /// Whether a path that matches also has the parameter values that the rule is for.
    pub(crate) fn meets_constraints(&self, parts: &[&str]) -> bool {
        match self.effect {
            Effect::Allow => self.broken_constraint(parts).is_none(),
            Effect::Deny => self
                .constraints
                .iter()
                .all(|each| each.matches_broadly(&self.template, parts)),
        }
    }

    /// The first constraint of this allow rule that the path does not meet.
    pub(crate) fn broken_constraint(&self, parts: &[&str]) -> Option<&Constraint> {
        self.constraints
            .iter()
            .find(|constraint| !constraint.matches_exactly(&self.template, parts))
    }

    pub(crate) fn view(&self) -> RuleView<'_> {
        let constraints = self.constraints.iter();
        RuleView {
            effect: self.effect,
            rule: self.id.as_str(),
            method: self.method.map_or("*", Method::as_str),
            path: self.template.as_str(),
            constraints: constraints
                .map(|each| (&*each.parameter, each.values.as_slice()))
                .collect(),
            expires_unix: self.expires,
            reason: self.reason.as_deref(),
            group: self.group.as_deref(),
            multipart: self.multipart,
        }
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Rule").field(&self.id).finish()
    }
}

impl Constraint {
    fn new(template: &Template, parameter: &str, values: &[String]) -> Option<Self> {
        let segment = template.position(parameter)?;
        Some(Self {
            parameter: Arc::from(parameter),
            segment,
            values: values.to_vec(),
        })
    }

    fn matches_exactly(&self, template: &Template, parts: &[&str]) -> bool {
        let (Some(segment), Some(part)) = (template.segments().get(self.segment), parts.get(self.segment))
        else {
            return false;
        };
        segment
            .captured(part)
            .is_some_and(|value| self.values.iter().any(|allowed| allowed == value))
    }

    fn matches_broadly(&self, template: &Template, parts: &[&str]) -> bool {
        let (Some(segment), Some(part)) = (template.segments().get(self.segment), parts.get(self.segment))
        else {
            return false;
        };
        // Values hold no `%`, so decoding them changes nothing but their case.
        self.values.iter().any(|denied| {
            segment
                .captured_broadly(part)
                .is_some_and(|value| value.eq(broad(denied)))
        })
    }
}

impl Method {
    /// Every method that rules can name.
    pub const ALL: [Self; 7] = [
        Self::Get,
        Self::Head,
        Self::Post,
        Self::Put,
        Self::Patch,
        Self::Delete,
        Self::Options,
    ];

    /// The method of exactly that spelling.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "GET" => Some(Self::Get),
            "HEAD" => Some(Self::Head),
            "POST" => Some(Self::Post),
            "PUT" => Some(Self::Put),
            "PATCH" => Some(Self::Patch),
            "DELETE" => Some(Self::Delete),
            "OPTIONS" => Some(Self::Options),
            _ => None,
        }
    }

    /// The method as sent.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}
