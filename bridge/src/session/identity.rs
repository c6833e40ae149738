//! Who a session is: a new one, or that of a predecessor of this process.
//!
//! Here: [`Identity`], chosen from what the state folder holds. Not here: the folder (`state.rs`), what is done on the
//! target with what a predecessor left (`placing.rs`).

use policy::{Token, TokenDigest};
use uuid::Uuid;

use super::state::{SessionRecord, StateFolder};
use crate::app::{Named, OpenError, SessionRequest, TunnelChoice};
use crate::placing;

/// Who the session is, on the target and to its agent.
pub(crate) struct Identity {
    /// Its name, here and on the target.
    pub(crate) session: Uuid,
    /// `None` where an earlier process gave it out: only its digest was kept.
    pub(crate) token: Option<Token>,
    pub(crate) digest: TokenDigest,
    /// What a predecessor left on the target, if it ended without order.
    pub(crate) predecessor: Option<SessionRecord>,
    /// Whether that goes on.
    goes_on: bool,
}

impl Identity {
    /// A new one, or that of the predecessor where its gateway may still be standing on the same target.
    pub(crate) fn choose(
        request: &SessionRequest,
        named: Option<Named>,
        state: Option<&StateFolder>,
        target: &str,
    ) -> Result<Self, OpenError> {
        if let Some(record) = &request.returns {
            return Self::again(record, target);
        }
        let recorded = match state {
            Some(state) => state
                .predecessor()
                .map_err(|error| OpenError::Configuration(error.to_string()))?,
            None => None,
        };
        let predecessor = recorded.filter(|record| {
            let same = record.target == target;
            if !same {
                tracing::warn!(
                    target = record.target,
                    session = %record.session,
                    "the state folder speaks of another target, so a new session is opened; what was left there ends by itself"
                );
            }
            same
        });
        let resumed = predecessor
            .as_ref()
            .filter(|record| request.resume && record.tunnel == placing::QUEUE)
            .filter(|_| matches!(request.tunnel, TunnelChoice::Auto | TunnelChoice::Queue))
            .and_then(|record| Some((record.session, record.digest()?)));
        if let Some((session, digest)) = resumed {
            return Ok(Self {
                session,
                token: None,
                digest: TokenDigest::from_bytes(digest),
                predecessor,
                goes_on: true,
            });
        }
        match named {
            Some(Named { id, token }) => Ok(Self {
                session: id,
                digest: token.digest(),
                token: token.whole(),
                predecessor,
                goes_on: false,
            }),
            None => Self::fresh(predecessor),
        }
    }

    /// A session that goes on: only here, because its agent knows nothing else.
    fn again(record: &SessionRecord, target: &str) -> Result<Self, OpenError> {
        if record.target != target {
            return Err(OpenError::Refused {
                reason: "target_changed",
                detail: format!(
                    "the session stands on {}, and its target is {target} by the configuration of now",
                    record.target
                ),
            });
        }
        let digest = record.digest().ok_or_else(|| {
            OpenError::Configuration("the digest of its token is not 64 hexadecimal digits".into())
        })?;
        Ok(Self {
            session: record.session,
            token: None,
            digest: TokenDigest::from_bytes(digest),
            predecessor: Some(record.clone()),
            goes_on: true,
        })
    }

    /// A new one, beside what this one left.
    pub(crate) fn after(record: &SessionRecord) -> Result<Self, OpenError> {
        Self::fresh(Some(record.clone()))
    }

    /// A new one, in place of a predecessor's that cannot be gone on with.
    pub(crate) fn anew(self) -> Result<Self, OpenError> {
        Self::fresh(self.predecessor)
    }

    fn fresh(predecessor: Option<SessionRecord>) -> Result<Self, OpenError> {
        let token = fresh_token().map_err(OpenError::Configuration)?;
        Ok(Self {
            session: Uuid::now_v7(),
            digest: token.digest(),
            token: Some(token),
            predecessor,
            goes_on: false,
        })
    }

    /// The run's id: that of the predecessor where its session goes on, because its agent has it.
    pub(crate) fn run_id<'a>(&'a self, asked: &'a str) -> &'a str {
        self.predecessor
            .as_ref()
            .filter(|_| self.resumes())
            .map_or(asked, |record| record.run_id.as_str())
    }

    /// The port that the agent of a predecessor's session knows; `None` for a session of our own.
    pub(crate) fn port(&self) -> Option<u16> {
        self.predecessor
            .as_ref()
            .filter(|_| self.resumes())
            .and_then(|record| record.port)
    }

    /// Whether a predecessor's session goes on.
    pub(crate) fn resumes(&self) -> bool {
        self.goes_on
    }
}

/// A token that nobody has seen.
///
/// # Errors
///
/// One line: the system has no randomness for us.
pub(crate) fn fresh_token() -> Result<Token, String> {
    let mut random = [0_u8; 24];
    getrandom::fill(&mut random).map_err(|error| format!("no randomness for a token: {error}"))?;
    Ok(Token::from_random(random))
}
