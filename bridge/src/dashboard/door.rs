//! Who may look at the dashboard: tickets that are good once, and the logins that they become.
//!
//! Here: [`Door`], in memory only, so that a restart closes it for everybody. It keeps digests and no values, except for
//! the header token, which a page may ask for again. Not here: cookies and headers (`gate.rs`, `pages.rs`).

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use policy::TokenDigest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A ticket that nobody used by then is void.
const TICKET: Duration = Duration::from_mins(15);
/// Tickets at the same time; a further one voids the oldest.
const TICKETS: usize = 8;
/// A login that nobody used for so long is over; a page that is open asks every few seconds.
pub(super) const IDLE: Duration = Duration::from_mins(30);
/// A login is over after so long in any case.
const LOGIN: Duration = Duration::from_hours(12);
/// Logins at the same time; a further one ends the oldest.
const LOGINS: usize = 16;

/// A way in, good once.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Ticket {
    /// Where a browser on the daemon's machine is pointed; the token stands behind the `#`, which no browser sends.
    pub(crate) url: String,
    /// The token by itself, for the form of the page.
    pub(crate) token: String,
    /// It is void after so many seconds.
    pub(crate) expires_in_seconds: u64,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").finish_non_exhaustive()
    }
}

/// Why there is no ticket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DoorError {
    /// There is no dashboard.
    #[error(
        "this daemon shows no dashboard: `listeners.ops.dashboard` is false, or its ops listener is not on loopback"
    )]
    Closed,
    /// The system has no randomness for us.
    #[error("no randomness for a token: {0}")]
    NoRandomness(getrandom::Error),
}

/// What a login is known by.
#[derive(Clone)]
pub(super) struct Entered {
    /// What the browser keeps and shows; no script sees it.
    pub(super) cookie: String,
}

struct Login {
    cookie: TokenDigest,
    header: String,
    began: Instant,
    seen: Instant,
}

impl Login {
    fn holds(&self, now: Instant) -> bool {
        now.duration_since(self.seen) < IDLE && now.duration_since(self.began) < LOGIN
    }
}

#[derive(Default)]
struct Inside {
    address: Option<SocketAddr>,
    tickets: VecDeque<(TokenDigest, Instant)>,
    logins: VecDeque<Login>,
}

/// Who may look at the dashboard. Closed until [`Self::opens`].
#[derive(Default)]
pub(crate) struct Door(Mutex<Inside>);

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("address", &self.address()).finish()
    }
}

impl Door {
    fn inside(&self) -> std::sync::MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The dashboard is shown at this address, unless others than this machine can reach it. Whether it is.
    pub(crate) fn opens(&self, address: SocketAddr) -> bool {
        let local = address.ip().is_loopback();
        self.inside().address = local.then_some(address);
        local
    }

    /// Where the dashboard is shown, if it is.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.inside().address
    }

    /// A new way in.
    ///
    /// # Errors
    ///
    /// [`DoorError`].
    pub(crate) fn ticket(&self, now: Instant) -> Result<Ticket, DoorError> {
        let address = self.address().ok_or(DoorError::Closed)?;
        let token = random("pbd_")?;
        let mut inside = self.inside();
        if inside.tickets.len() >= TICKETS {
            inside.tickets.pop_front();
        }
        inside.tickets.push_back((TokenDigest::of(token.as_bytes()), now));
        Ok(Ticket {
            url: format!("http://{address}/dashboard/login#{token}"),
            token,
            expires_in_seconds: TICKET.as_secs(),
        })
    }

    /// Takes a ticket and gives a login for it; `None`: it is not good, or no longer.
    ///
    /// # Errors
    ///
    /// [`DoorError::NoRandomness`].
    pub(super) fn enter(&self, presented: &[u8], now: Instant) -> Result<Option<Entered>, DoorError> {
        let (cookie, header) = (random("")?, random("")?);
        let mut inside = self.inside();
        inside
            .tickets
            .retain(|(_, made)| now.duration_since(*made) < TICKET);
        // Every one is compared, so that time tells nothing.
        let mut found = None;
        for (index, (digest, _)) in inside.tickets.iter().enumerate() {
            if digest.matches(presented) {
                found = Some(index);
            }
        }
        let Some(index) = found else { return Ok(None) };
        inside.tickets.remove(index);
        inside.logins.retain(|login| login.holds(now));
        if inside.logins.len() >= LOGINS {
            inside.logins.pop_front();
        }
        inside.logins.push_back(Login {
            cookie: TokenDigest::of(cookie.as_bytes()),
            header,
            began: now,
            seen: now,
        });
        Ok(Some(Entered { cookie }))
    }

    /// The header token of whoever shows this cookie; it counts as a sign of life.
    pub(super) fn knows(&self, cookie: &[u8], now: Instant) -> Option<String> {
        let mut inside = self.inside();
        let login = inside
            .logins
            .iter_mut()
            .find(|login| login.cookie.matches(cookie) && login.holds(now))?;
        login.seen = now;
        Some(login.header.clone())
    }

    /// Whoever shows this cookie has left.
    pub(super) fn leave(&self, cookie: &[u8]) {
        self.inside().logins.retain(|login| !login.cookie.matches(cookie));
    }
}

/// 192 random bits behind a mark that tells what they are for.
fn random(mark: &str) -> Result<String, DoorError> {
    let mut random = [0_u8; 24];
    getrandom::fill(&mut random).map_err(DoorError::NoRandomness)?;
    let hexadecimal = random.iter().flat_map(|byte| {
        [byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16).unwrap_or_default())
    });
    Ok(mark.chars().chain(hexadecimal).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Door {
        let door = Door::default();
        assert!(door.opens(SocketAddr::from(([127, 0, 0, 1], 4409))));
        door
    }

    fn entered(door: &Door, now: Instant) -> String {
        let ticket = door.ticket(now).unwrap();
        let entered = door.enter(ticket.token.as_bytes(), now).unwrap();
        entered.expect("the ticket is good").cookie
    }

    #[test]
    fn a_ticket_is_good_once_and_not_for_long() {
        let (door, now) = (open(), Instant::now());
        let (used, late) = (door.ticket(now).unwrap(), door.ticket(now).unwrap());

        assert!(door.enter(used.token.as_bytes(), now).unwrap().is_some());

        assert!(door.enter(used.token.as_bytes(), now).unwrap().is_none());
        assert!(door.enter(b"pbd_0000", now).unwrap().is_none());
        assert!(door.enter(late.token.as_bytes(), now + TICKET).unwrap().is_none());
        assert_eq!(
            used.url,
            format!("http://127.0.0.1:4409/dashboard/login#{}", used.token)
        );
    }

    #[test]
    fn a_login_ends_when_nobody_looks_and_at_the_end_of_a_day() {
        let (door, now) = (open(), Instant::now());
        let cookie = entered(&door, now);
        let idle = now + IDLE;

        assert!(door.knows(cookie.as_bytes(), now).is_some());
        assert!(door.knows(cookie.as_bytes(), idle).is_none());
        let mut later = now;
        while later < now + LOGIN {
            assert!(door.knows(cookie.as_bytes(), later).is_some());
            later += IDLE / 2;
        }
        assert!(door.knows(cookie.as_bytes(), later).is_none());
    }

    #[test]
    fn whoever_leaves_is_unknown_and_others_stay() {
        let (door, now) = (open(), Instant::now());
        let (one, other) = (entered(&door, now), entered(&door, now));

        door.leave(one.as_bytes());

        assert!(door.knows(one.as_bytes(), now).is_none());
        assert_ne!(door.knows(other.as_bytes(), now), None);
    }

    #[test]
    fn tickets_and_logins_are_bounded() {
        let (door, now) = (open(), Instant::now());
        let first = entered(&door, now);
        for _ in 0..LOGINS {
            entered(&door, now);
        }
        let oldest = door.ticket(now).unwrap();
        for _ in 0..TICKETS {
            door.ticket(now).unwrap();
        }

        assert!(door.knows(first.as_bytes(), now).is_none());
        assert!(door.enter(oldest.token.as_bytes(), now).unwrap().is_none());
    }

    #[test]
    fn where_others_can_reach_it_the_door_stays_closed() {
        let door = Door::default();

        assert!(matches!(door.ticket(Instant::now()), Err(DoorError::Closed)));
        assert!(!door.opens(SocketAddr::from(([192, 0, 2, 1], 4409))));
        assert!(matches!(door.ticket(Instant::now()), Err(DoorError::Closed)));
    }
}
