//! Rules, compiled from packs and the operator's file, and the decision itself.
//!
//! Here: [`Rules::decide`]. Deny rules first, then allow rules, and no rule means no.
//! Not here: how rule files are read ([`crate::file`]), what a denied caller is told of near misses
//! (`nearest.rs`), nor the same decision made slowly for tests ([`crate::reference`]).

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use serde::Serialize;

use crate::file::{FileRule, PackChoice, PolicyFile};
use crate::mistakes::{Mistake, Mistakes};
use crate::nearest;
use crate::pack::{Pack, PackRoute};
use crate::path::Target;
use crate::route::{Segments, Template, broad};
use crate::suggest;
use crate::verdict::{Denial, Permit, Reason, RuleId, Verdict};

/// What is asked: one callback, reduced to what rules can see.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The method exactly as sent; `get` is not `GET`.
    pub method: &'a str,
    /// The target in its canonical form.
    pub target: &'a Target<'a>,
    /// Now, in seconds since 1970, for rules that expire.
    pub now_unix: u64,
}

/// Compiled rules; cloning shares them.
#[derive(Clone)]
pub struct Rules {
    inner: Arc<Inner>,
}

struct Inner {
    allows: Vec<Arc<Rule>>,
    denies: Vec<Arc<Rule>>,
    /// Allow rules by method and number of segments, those that admit multipart first.
    allow_index: BTreeMap<(Method, usize), Vec<Arc<Rule>>>,
    /// Deny rules by number of segments.
    deny_index: BTreeMap<usize, Vec<Arc<Rule>>>,
}

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

/// What a look-up found, before it is put into a verdict.
pub(crate) enum Found<'r> {
    Allowed(&'r Arc<Rule>),
    Denied(&'r Arc<Rule>),
    /// Only constrained or expired allow rules match; the first of them.
    Almost(&'r Arc<Rule>, Reason),
    Nothing,
}

impl Rules {
    /// The rules of one pack alone.
    #[must_use]
    pub fn from_pack(pack: Pack) -> Self {
        // Without a file nothing an operator wrote can be wrong; a pack that cannot be read, which tests
        // exclude, leaves no rule, and no rule means no.
        Self::compile(&[pack], None).unwrap_or_else(|_| Self::build(Vec::new()))
    }

    /// No rules: denies everything.
    #[must_use]
    pub fn none() -> Self {
        Self::build(Vec::new())
    }

    /// The rules of a file, with `pack` or else the file's pack or else the newest.
    ///
    /// - `pack`: a choice that goes before the file's, from the command line.
    ///
    /// # Errors
    ///
    /// As [`Rules::compile`].
    pub fn load(pack: Option<PackChoice>, file: Option<&PolicyFile>) -> Result<Self, Mistakes> {
        let choice = pack.or_else(|| file.and_then(PolicyFile::pack));
        Self::compile(&choice.unwrap_or(PackChoice::Pack(Pack::newest())).packs(), file)
    }

    /// Compiles packs and the operator's file into one set. `file.pack()` is not looked at.
    ///
    /// # Errors
    ///
    /// Entries of the file that do not fit the packs, each at its line: a `[constrain]` parameter that no
    /// pack route has.
    pub fn compile(packs: &[Pack], file: Option<&PolicyFile>) -> Result<Self, Mistakes> {
        let mut routes: Vec<(Pack, PackRoute)> = Vec::new();
        for pack in packs {
            routes.extend(pack.routes()?.into_iter().map(|route| (*pack, route)));
        }
        if let Some(file) = file {
            constraints_fit(file, packs, &routes)?;
        }
        let pack_rules = routes
            .into_iter()
            .map(|(pack, route)| Rule::of_pack(pack, route, file));
        let file_rules = file.iter().flat_map(|file| file.rules.iter().map(Rule::of_file));
        Ok(Self::build(pack_rules.chain(file_rules).map(Arc::new).collect()))
    }

    fn build(rules: Vec<Arc<Rule>>) -> Self {
        let (allows, denies): (Vec<_>, Vec<_>) =
            rules.into_iter().partition(|rule| rule.effect == Effect::Allow);
        let mut allow_index: BTreeMap<(Method, usize), Vec<Arc<Rule>>> = BTreeMap::new();
        for rule in &allows {
            if let Some(method) = rule.method {
                let key = (method, rule.template.segments().len());
                allow_index.entry(key).or_default().push(Arc::clone(rule));
            }
        }
        for bucket in allow_index.values_mut() {
            bucket.sort_by_key(|rule| !rule.multipart);
        }
        let mut deny_index: BTreeMap<usize, Vec<Arc<Rule>>> = BTreeMap::new();
        for rule in &denies {
            deny_index
                .entry(rule.template.segments().len())
                .or_default()
                .push(Arc::clone(rule));
        }
        Self {
            inner: Arc::new(Inner {
                allows,
                denies,
                allow_index,
                deny_index,
            }),
        }
    }

    /// Decides one callback: deny rules first, then allow rules, and no rule means no.
    ///
    /// Allow rules match exactly, deny rules broadly ([`crate::route`]); a deny rule for GET also holds
    /// back HEAD, an allow rule for GET does not admit it. A rule counts until its `expires`, that second
    /// excluded.
    ///
    /// The allow path takes no memory. The cost grows with the rules of the same method and segment
    /// count; a denial also looks for the nearest allowed route, at most some passes over all rules.
    pub fn decide(&self, ask: &Ask<'_>) -> Verdict {
        let segments = Segments::of(ask.target.path());
        let (Some(method), Some(segments)) = (Method::parse(ask.method), &segments) else {
            return Verdict::Deny(self.denial(ask, Reason::NoRule, None));
        };
        match self.look_up(method, segments.parts(), ask.now_unix) {
            Found::Allowed(rule) => Verdict::Allow(Permit {
                matched: Arc::clone(rule),
            }),
            Found::Denied(rule) => Verdict::Deny(self.denial(ask, Reason::DenyRule, Some(rule))),
            Found::Almost(rule, reason) => Verdict::Deny(self.denial(ask, reason, Some(rule))),
            Found::Nothing => Verdict::Deny(self.denial(ask, Reason::NoRule, None)),
        }
    }

    fn denial(&self, ask: &Ask<'_>, reason: Reason, rule: Option<&Arc<Rule>>) -> Denial {
        let nearest = match (reason, rule) {
            (Reason::NoRule, _) => nearest::route(self, ask),
            (Reason::Constraint, Some(rule)) => nearest::values(rule, ask),
            (Reason::DenyRule | Reason::Expired | Reason::Constraint, _) => None,
        };
        let rule_reason = rule.and_then(|rule| rule.reason.clone());
        Denial {
            reason,
            rule: rule.map(|rule| rule.id.clone()),
            rule_reason,
            nearest,
        }
    }

    /// What the rules say of a method and a path already cut into segments.
    pub(crate) fn look_up(&self, method: Method, parts: &[&str], now_unix: u64) -> Found<'_> {
        let denies = self
            .inner
            .deny_index
            .get(&parts.len())
            .map(Vec::as_slice)
            .unwrap_or_default();
        if let Some(rule) = denies.iter().find(|rule| rule.denies(method, parts, now_unix)) {
            return Found::Denied(rule);
        }
        let allows = self
            .inner
            .allow_index
            .get(&(method, parts.len()))
            .map(Vec::as_slice);
        let mut almost = Found::Nothing;
        for rule in allows.unwrap_or_default() {
            if !rule.template.matches_exactly(parts) {
                continue;
            }
            let reason = if !rule.is_live(now_unix) {
                Reason::Expired
            } else if rule.broken_constraint(parts).is_some() {
                Reason::Constraint
            } else {
                return Found::Allowed(rule);
            };
            if matches!(almost, Found::Nothing) {
                almost = Found::Almost(rule, reason);
            }
        }
        almost
    }

    /// Every rule as text: denies first, then allows, packs before the file.
    pub fn views(&self) -> impl Iterator<Item = RuleView<'_>> {
        self.denies().chain(self.allows()).map(|rule| rule.view())
    }

    /// The allow rules that hold at `now_unix`, for listing what a session may call.
    pub fn routes(&self, now_unix: u64) -> impl Iterator<Item = RuleView<'_>> {
        self.allows()
            .filter(move |rule| rule.is_live(now_unix))
            .map(|rule| rule.view())
    }

    /// How many rules there are, denies included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.allows.len() + self.inner.denies.len()
    }

    /// Whether there is no rule, so that everything is denied.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn allows(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.inner.allows.iter()
    }

    pub(crate) fn denies(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.inner.denies.iter()
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Rules")
            .field("allows", &self.inner.allows.len())
            .field("denies", &self.inner.denies.len())
            .finish()
    }
}

/// A `[constrain]` entry that no pack route has would silently constrain nothing.
fn constraints_fit(file: &PolicyFile, packs: &[Pack], routes: &[(Pack, PackRoute)]) -> Result<(), Mistakes> {
    let known = || routes.iter().flat_map(|(_, route)| route.template.parameters());
    let mut found: Vec<Mistake> = Vec::new();
    for entry in &file.constrain {
        let parameter = entry.parameter.as_str();
        if known().any(|name| name == parameter) {
            continue;
        }
        let advice = match (packs, suggest::nearest(parameter, known())) {
            ([], _) => String::from("; there is no pack, so `[constrain]` has nothing to narrow"),
            (_, Some(near)) => format!("; did you mean `{near}`?"),
            (_, None) => String::new(),
        };
        found.push(entry.mistake(format!("no pack route has a parameter {{{parameter}}}{advice}")));
    }
    if found.is_empty() {
        Ok(())
    } else {
        Err(Mistakes::new(found))
    }
}

impl Rule {
    fn of_pack(pack: Pack, route: PackRoute, file: Option<&PolicyFile>) -> Self {
        let narrowed = file.map(|file| file.constrain.as_slice()).unwrap_or_default();
        let constraints = narrowed
            .iter()
            .filter_map(|entry| Constraint::new(&route.template, &entry.parameter, &entry.values))
            .collect();
        Self {
            id: RuleId::new(format!("{} {} {}", pack.name(), route.method, route.template)),
            effect: Effect::Allow,
            method: Some(route.method),
            constraints,
            expires: None,
            reason: None,
            group: Some(route.group),
            multipart: route.multipart,
            template: route.template,
        }
    }

    fn of_file(rule: &FileRule) -> Self {
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

    pub(crate) fn is_live(&self, now_unix: u64) -> bool {
        self.expires.is_none_or(|expires| now_unix < expires)
    }

    /// Whether this deny rule holds the call back.
    fn denies(&self, method: Method, parts: &[&str], now_unix: u64) -> bool {
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
