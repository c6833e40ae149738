//! Rules, compiled from packs and the operator's file, and the decision itself.
//!
//! Here: [`Rules::decide`]. Deny rules first, then allow rules, and no rule means no.
//! Not here: how rule files are read ([`mod@crate::file`]), what a denied caller is told of near misses
//! (`nearest.rs`), nor the same decision made slowly for tests ([`crate::reference`]).

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use crate::file::{PackChoice, PolicyFile};
use crate::mistakes::{Mistake, Mistakes};
use crate::nearest;
use crate::pack::{Pack, PackRoute};
use crate::path::Target;
use crate::route::Segments;
use crate::rule::{Effect, Method, Rule, RuleView};
use crate::suggest;
use crate::verdict::{Denial, Mode, Permit, Reason, Ruling, Verdict};

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
        let routes = routes(packs)?;
        if let Some(file) = file {
            constraints_fit(file, &routes)?;
        }
        let narrowed = file.map(|file| file.constrain.as_slice()).unwrap_or_default();
        let pack_rules = routes
            .into_iter()
            .map(|(pack, route)| Rule::of_pack(pack, route).narrowed(narrowed));
        let file_rules = file.iter().flat_map(|file| file.rules.iter().map(Rule::of_file));
        Ok(Self::build(pack_rules.chain(file_rules).map(Arc::new).collect()))
    }

    pub(crate) fn build(rules: Vec<Arc<Rule>>) -> Self {
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
                matched: Some(Arc::clone(rule)),
            }),
            Found::Denied(rule) => Verdict::Deny(self.denial(ask, Reason::DenyRule, Some(rule))),
            Found::Almost(rule, reason) => Verdict::Deny(self.denial(ask, reason, Some(rule))),
            Found::Nothing => Verdict::Deny(self.denial(ask, Reason::NoRule, None)),
        }
    }

    /// Decides one callback under a mode: what [`Rules::decide`] denies is let through where denials are only reported.
    ///
    /// Costs what [`Rules::decide`] costs, and a second look for a callback that a deny rule holds back.
    pub fn decide_in(&self, mode: Mode, ask: &Ask<'_>) -> Ruling {
        match (self.decide(ask), mode) {
            (Verdict::Allow(permit), _) => Ruling::Allow(permit),
            (Verdict::Deny(denial), Mode::Enforce) => Ruling::Deny(denial),
            (Verdict::Deny(denial), Mode::Report) => {
                let matched = self.route_of(ask).cloned();
                Ruling::Report(Permit { matched }, denial)
            }
        }
    }

    /// The allow rule that is about a call, whatever denies it.
    fn route_of(&self, ask: &Ask<'_>) -> Option<&Arc<Rule>> {
        let segments = Segments::of(ask.target.path())?;
        match self.look_up_allows(Method::parse(ask.method)?, segments.parts(), ask.now_unix) {
            Found::Allowed(rule) | Found::Almost(rule, _) => Some(rule),
            Found::Denied(_) | Found::Nothing => None,
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
        self.look_up_allows(method, parts, now_unix)
    }

    fn look_up_allows(&self, method: Method, parts: &[&str], now_unix: u64) -> Found<'_> {
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

pub(crate) fn routes(packs: &[Pack]) -> Result<Vec<(Pack, PackRoute)>, Mistakes> {
    let mut routes = Vec::new();
    for pack in packs {
        routes.extend(pack.routes()?.into_iter().map(|route| (*pack, route)));
    }
    Ok(routes)
}

/// A `[constrain]` entry that no pack route has would silently constrain nothing.
pub(crate) fn constraints_fit(file: &PolicyFile, routes: &[(Pack, PackRoute)]) -> Result<(), Mistakes> {
    let known = || routes.iter().flat_map(|(_, route)| route.template.parameters());
    let mut found: Vec<Mistake> = Vec::new();
    for entry in &file.constrain {
        let parameter = entry.parameter.as_str();
        if known().any(|name| name == parameter) {
            continue;
        }
        let advice = match (routes, suggest::nearest(parameter, known())) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Rules {
        let file = PolicyFile::parse(text).expect("no mistakes");
        Rules::load(None, Some(&file)).expect("compiles")
    }

    fn decided(rules: &Rules, method: &str, target: &str) -> Verdict {
        let target = Target::parse(target.as_bytes()).expect("canonical");
        rules.decide(&Ask {
            method,
            target: &target,
            now_unix: 0,
        })
    }

    fn permit(rules: &Rules, method: &str, target: &str) -> Permit {
        match decided(rules, method, target) {
            Verdict::Allow(permit) => permit,
            Verdict::Deny(denial) => panic!("{denial:?}"),
        }
    }

    fn denial(rules: &Rules, method: &str, target: &str) -> Denial {
        match decided(rules, method, target) {
            Verdict::Allow(permit) => panic!("{permit:?}"),
            Verdict::Deny(denial) => denial,
        }
    }

    #[test]
    fn no_rules_deny_everything() {
        assert!(Rules::none().is_empty());
        assert_eq!(
            denial(&Rules::none(), "GET", "/api/agents/me").reason,
            Reason::NoRule
        );
    }

    #[test]
    fn a_permit_names_its_rule_and_route() {
        let permit = permit(&Rules::from_pack(Pack::newest()), "GET", "/api/issues/PAP-1?x=1");

        assert_eq!(permit.rule(), "paperclip-2026.916 GET /api/issues/{issue}");
        assert_eq!(permit.route(), "/api/issues/{issue}");
        assert!(!permit.multipart());
    }

    #[test]
    fn multipart_is_admitted_when_any_rule_that_allows_the_call_admits_it() {
        let pack = Rules::from_pack(Pack::newest());
        let own = rules(
            "[[allow]]\nmethod = \"POST\"\npath = \"/api/x/{y}\"\n\
             [[allow]]\nname = \"files\"\nmethod = \"POST\"\npath = \"/api/{x}/f\"\nmultipart = true\n",
        );

        assert!(permit(&pack, "POST", "/api/companies/c1/issues/PAP-1/attachments").multipart());
        assert!(permit(&own, "POST", "/api/x/f").multipart());
        assert!(!permit(&own, "POST", "/api/x/g").multipart());
    }

    #[test]
    fn a_denial_tells_the_caller_what_to_do() {
        let rules = rules(
            "[constrain]\nissue = \"PAP-1\"\n\
             [[deny]]\nname = \"quiet\"\nmethod = \"GET\"\npath = \"/api/agents/me\"\nreason = \"not now\"\n",
        );
        let hint = |method: &str, target: &str| denial(&rules, method, target).hint().unwrap_or_default();

        assert_eq!(
            hint("GET", "/api/agents/me"),
            "denied by the rule `quiet`: not now"
        );
        assert_eq!(hint("GET", "/api/issues/PAP-2"), "{issue} may only be PAP-1");
        assert_eq!(
            hint("GET", "/agents/a1"),
            "put /api in front: /api/agents/{agent}"
        );
        assert_eq!(
            hint("PUT", "/api/issues/PAP-1"),
            "/api/issues/{issue} allows GET, PATCH"
        );
        assert_eq!(hint("GET", "/nowhere"), "");
        assert_eq!(
            Denial::error_text("GET", "/nowhere"),
            "Route not allowed: GET /nowhere"
        );
    }

    #[test]
    fn routes_lists_what_holds_now() {
        let rules = rules(
            "pack = \"none\"\n[[allow]]\nname = \"a\"\nmethod = \"GET\"\npath = \"/a\"\n\
             expires = 1970-01-01T00:00:10Z\n[[deny]]\nmethod = \"GET\"\npath = \"/b\"\n",
        );

        assert_eq!(rules.routes(9).map(|route| route.rule).collect::<Vec<_>>(), ["a"]);
        assert_eq!(rules.routes(10).count(), 0);
        assert_eq!(
            rules.views().map(|rule| rule.rule).collect::<Vec<_>>(),
            ["deny:7 GET /b", "a"]
        );
    }
}
