//! Calls over time, counted across sessions: by session, agent, issue and company, and by what a call asks for.
//!
//! Here: [`RateTable`], one for the process, and [`SessionRates`], one session's view of it. A call must be within every
//! limit that concerns it; the narrowest is asked first, so that a session which is over its own takes nothing from
//! others. Not here: where the limits come from, and how a refusal is worded (`callback/throttle.rs`).

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use governor::clock::{Clock as _, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use policy::RateLimit;
use serde::Serialize;
use uuid::Uuid;

use crate::telemetry::metrics::Class;

/// Keys of one limit; what is at rest is forgotten before a new one is refused.
const KEYS: usize = 65_536;

type Limiter = RateLimiter<Arc<str>, HashMapStateStore<Arc<str>>, DefaultClock>;

/// Whose calls are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// One session's.
    Session,
    /// Those of all sessions of one agent.
    Agent,
    /// Those of all sessions on one issue.
    Issue,
    /// Those of all sessions of one company.
    Company,
    /// Comments on one issue, whoever writes them.
    Comments,
}

/// One limit as an agent is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ToldRate {
    /// Whose calls are counted together.
    scope: &'static str,
    /// Which of them.
    class: &'static str,
    /// `COUNT/UNIT:BURST`.
    rate: String,
}

impl Scope {
    fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Agent => "agent",
            Self::Issue => "issue",
            Self::Company => "company",
            Self::Comments => "comments",
        }
    }

    fn why(self) -> &'static str {
        match self {
            Self::Session => "this session's rate limit is reached",
            Self::Agent => "the rate limit of this agent's sessions is reached",
            Self::Issue => "the rate limit of the sessions on this issue is reached",
            Self::Company => "the rate limit of this company's sessions is reached",
            Self::Comments => "this issue gets too many comments at the moment",
        }
    }
}

/// One limit: whose calls, which of them (`None`: all), how many.
pub type Rate = (Scope, Option<Class>, RateLimit);

/// Every limit that counts across sessions, as it is at the moment.
#[derive(Default)]
pub struct RateTable {
    /// In the order in which they are asked.
    limits: ArcSwap<Vec<(Rate, Arc<Limiter>)>>,
    /// Held while they change.
    changing: Mutex<()>,
}

impl fmt::Debug for RateTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.limits.load().iter().map(|(rate, _)| rate))
            .finish()
    }
}

/// A call beyond a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Beyond {
    /// Which limit, for the caller.
    pub(crate) why: &'static str,
    /// After so long the same call is within it.
    pub(crate) wait: Duration,
}

impl RateTable {
    /// A table of these limits, in any order.
    #[must_use]
    pub fn new(rates: impl IntoIterator<Item = Rate>) -> Arc<Self> {
        let table = Arc::new(Self::default());
        table.follow(rates);
        table
    }

    /// From the next call on these limits hold, for every session. A limit that stays goes on counting; others begin anew.
    pub fn follow(&self, rates: impl IntoIterator<Item = Rate>) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.limits.load();
        let mut limits: Vec<_> = rates
            .into_iter()
            .filter_map(|rate| {
                if let Some((_, limiter)) = before.iter().find(|(known, _)| *known == rate) {
                    return Some((rate, Arc::clone(limiter)));
                }
                let quota = Quota::with_period(rate.2.interval())?.allow_burst(rate.2.burst());
                Some((rate, Arc::new(RateLimiter::hashmap(quota))))
            })
            .collect();
        limits.sort_by_key(|((scope, ..), _)| *scope);
        self.limits.store(Arc::new(limits));
    }

    /// Forgets every key whose calls lie so far back that they no longer count. To be called now and then: keys are
    /// kept otherwise.
    pub fn forget_the_rested(&self) {
        for (_, limiter) in self.limits.load().iter() {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
    }

    /// Keys that are kept.
    #[must_use]
    pub fn keys(&self) -> usize {
        let limits = self.limits.load();
        limits.iter().map(|(_, limiter)| limiter.len()).sum()
    }
}

/// Whom a session's calls count for.
#[derive(Clone, Debug)]
pub struct SessionRates {
    table: Arc<RateTable>,
    session: Arc<str>,
    agent: Option<Arc<str>>,
    issue: Option<Arc<str>>,
    company: Option<Arc<str>>,
}

impl SessionRates {
    /// The view of one session; an id that is not known has no limit of its own.
    #[must_use]
    pub fn new(table: Arc<RateTable>, session: Uuid, [agent, issue, company]: [Option<&str>; 3]) -> Self {
        Self {
            table,
            session: session.to_string().into(),
            agent: agent.map(Into::into),
            issue: issue.map(Into::into),
            company: company.map(Into::into),
        }
    }

    /// Under which name its calls are counted; comments are not counted by session.
    fn key(&self, scope: Scope) -> Option<Arc<str>> {
        match scope {
            Scope::Session => Some(Arc::clone(&self.session)),
            Scope::Agent => self.agent.clone(),
            Scope::Issue => self.issue.clone(),
            Scope::Company => self.company.clone(),
            Scope::Comments => None,
        }
    }

    /// The limits that its calls are held to, as its agent is told of them.
    pub(crate) fn told(&self) -> impl Iterator<Item = ToldRate> + '_ {
        let concerns = |scope| scope == Scope::Comments || self.key(scope).is_some();
        let limits: Vec<Rate> = self.table.limits.load().iter().map(|(rate, _)| *rate).collect();
        limits
            .into_iter()
            .filter(move |(scope, ..)| concerns(*scope))
            .map(|(scope, class, rate)| ToldRate {
                scope: scope.name(),
                class: class.map_or("all", Class::name),
                rate: rate.to_string(),
            })
    }

    /// Counts one call, which comments on `commented` if it does.
    ///
    /// # Errors
    ///
    /// [`Beyond`] the first limit that it is not within; limits asked before have counted it.
    pub(crate) fn count(&self, class: Class, commented: Option<&str>) -> Result<(), Beyond> {
        for ((scope, only, _), limiter) in self.table.limits.load().iter() {
            if only.is_some_and(|only| only != class) {
                continue;
            }
            let key = match scope {
                Scope::Comments => commented.map(Into::into),
                Scope::Session | Scope::Agent | Scope::Issue | Scope::Company => self.key(*scope),
            };
            let Some(key) = key else { continue };
            let beyond = |wait| Beyond {
                why: scope.why(),
                wait,
            };
            if limiter.len() >= KEYS {
                limiter.retain_recent();
                if limiter.len() >= KEYS {
                    return Err(beyond(Duration::from_secs(60)));
                }
            }
            limiter
                .check_key(&key)
                .map_err(|until| beyond(until.wait_time_from(DefaultClock::default().now())))?;
        }
        Ok(())
    }
}

/// The issue that a call comments on, by the template it matched and the path it asked.
#[must_use]
pub(crate) fn commented<'a>(method: &http::Method, template: &str, path: &'a str) -> Option<&'a str> {
    if method != http::Method::POST || !template.ends_with("/comments") {
        return None;
    }
    let mut template = template.rsplit('/').skip(1);
    let (parameter, parent) = (template.next()?, template.next()?);
    if parent != "issues" || !parameter.starts_with('{') {
        return None;
    }
    path.rsplit('/').nth(1)
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn rate(text: &str) -> RateLimit {
        RateLimit::parse(text).unwrap()
    }

    fn session(table: &Arc<RateTable>, agent: &str, issue: &str) -> SessionRates {
        SessionRates::new(
            Arc::clone(table),
            Uuid::now_v7(),
            [Some(agent), Some(issue), Some("acme")],
        )
    }

    fn why(counted: Result<(), Beyond>) -> &'static str {
        counted.err().map_or("", |beyond| beyond.why)
    }

    #[test]
    fn sessions_of_one_agent_share_its_limit_and_others_do_not() {
        let table = RateTable::new([(Scope::Agent, None, rate("1/h:2"))]);
        let (first, second, other) = (
            session(&table, "a", "1"),
            session(&table, "a", "2"),
            session(&table, "b", "1"),
        );

        assert!(first.count(Class::Read, None).is_ok() && second.count(Class::Write, None).is_ok());

        let beyond = first.count(Class::Read, None).unwrap_err();
        assert_eq!(beyond.why, Scope::Agent.why());
        assert!(beyond.wait > Duration::from_secs(1000));
        assert!(other.count(Class::Read, None).is_ok());
    }

    #[test]
    fn a_limit_on_writes_lets_reads_pass() {
        let table = RateTable::new([(Scope::Session, Some(Class::Write), rate("1/h:1"))]);
        let one = session(&table, "a", "1");

        assert!(one.count(Class::Write, None).is_ok());
        assert_eq!(why(one.count(Class::Write, None)), Scope::Session.why());
        assert!(one.count(Class::Read, None).is_ok() && one.count(Class::Upload, None).is_ok());
    }

    #[test]
    fn a_session_over_its_own_limit_takes_nothing_from_its_company() {
        let table = RateTable::new([
            (Scope::Company, None, rate("1/h:3")),
            (Scope::Session, None, rate("1/h:1")),
        ]);
        let (greedy, other) = (session(&table, "a", "1"), session(&table, "b", "2"));
        for _ in 0..10 {
            let _counted = greedy.count(Class::Read, None);
        }

        let third = session(&table, "c", "3");

        assert!(other.count(Class::Read, None).is_ok() && third.count(Class::Read, None).is_ok());
        assert_eq!(
            why(session(&table, "d", "4").count(Class::Read, None)),
            Scope::Company.why()
        );
    }

    #[test]
    fn two_agents_that_answer_each_other_on_one_issue_are_stopped() {
        let table = RateTable::new([(Scope::Comments, None, rate("1/h:4"))]);
        let pair = [session(&table, "a", "1"), session(&table, "b", "1")];
        let comment = |turn: usize| pair[turn % 2].count(Class::Write, Some("PAP-1"));

        assert!((0..4).all(|turn| comment(turn).is_ok()));

        assert_eq!(why(comment(4)), Scope::Comments.why());
        assert!(
            pair[0].count(Class::Write, Some("PAP-2")).is_ok(),
            "another issue"
        );
        assert!(pair[0].count(Class::Write, None).is_ok(), "no comment");
    }

    #[test]
    fn limits_change_under_a_session_and_those_that_stay_go_on_counting() {
        let stays = (Scope::Agent, None, rate("1/h:2"));
        let table = RateTable::new([stays]);
        let one = session(&table, "a", "1");
        assert!(one.count(Class::Read, None).is_ok());

        table.follow([stays, (Scope::Session, Some(Class::Write), rate("1/h:1"))]);

        assert!(one.count(Class::Write, None).is_ok());
        assert_eq!(why(one.count(Class::Write, None)), Scope::Session.why());
        assert_eq!(why(one.count(Class::Read, None)), Scope::Agent.why());
        table.follow([]);
        assert!(one.count(Class::Write, None).is_ok());
    }

    #[test]
    fn what_is_at_rest_is_forgotten() {
        let table = RateTable::new([(Scope::Comments, None, rate("1000000/s:1"))]);
        let one = session(&table, "a", "1");
        for issue in 0..100 {
            assert!(one.count(Class::Write, Some(&format!("PAP-{issue}"))).is_ok());
        }
        assert_eq!(table.keys(), 100);

        // A millionth of a second has passed by then.
        while table.keys() > 0 {
            table.forget_the_rested();
        }
    }

    #[test]
    fn a_comment_on_an_issue_is_told_from_everything_else() {
        let asked = |method: Method, template, path| commented(&method, template, path).map(str::to_owned);
        let template = "/api/issues/{issue}/comments";

        assert_eq!(
            asked(Method::POST, template, "/api/issues/PAP-1/comments").as_deref(),
            Some("PAP-1")
        );
        assert_eq!(asked(Method::GET, template, "/api/issues/PAP-1/comments"), None);
        assert_eq!(
            asked(
                Method::POST,
                "/api/approvals/{approval}/comments",
                "/api/approvals/1/comments"
            ),
            None
        );
        assert_eq!(asked(Method::POST, "/comments", "/comments"), None);
    }
}
