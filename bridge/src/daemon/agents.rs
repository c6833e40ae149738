//! Where sessions of the target `local` listen when they do not say so themselves.
//!
//! Here: [`AgentSockets`], the listeners that a service manager opened for agents, each for one session at a time; and which
//! place a session takes. Not here: the taking over from the service manager (`service/sockets.rs`), the serving
//! (`tunnel::local`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UnixStream;
use tunnel::{Listening, PassedListener};
use uuid::Uuid;

use super::Daemon;
use crate::app::{SessionRecord, SessionRequest, TargetSpec, TunnelChoice};
use crate::config::model::AgentsAddress;

/// A socket that somebody listens on takes a connection by then.
const ANSWERED: Duration = Duration::from_secs(1);

/// Listeners for agents that a service manager opened and keeps; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct AgentSockets(Arc<Mutex<Vec<Place>>>);

/// One of them.
#[derive(Debug)]
struct Place {
    listener: PassedListener,
    listening: Listening,
    /// Whose it is, from before the session is opened until it is over.
    session: Option<Uuid>,
}

impl AgentSockets {
    /// These.
    ///
    /// # Errors
    ///
    /// One line: a listener that agents cannot be given.
    pub fn new(listeners: Vec<PassedListener>) -> Result<Self, String> {
        let place = |listener: PassedListener| match listener.listening() {
            Ok(listening) => Ok(Place {
                listener,
                listening,
                session: None,
            }),
            Err(error) => Err(format!(
                "a socket named \"agents\" that the service manager passed cannot be used: {error}"
            )),
        };
        let places: Result<Vec<_>, _> = listeners.into_iter().map(place).collect();
        Ok(Self(Arc::new(Mutex::new(places?))))
    }

    /// A listener for this session: the one that it has, else one that nobody has.
    ///
    /// - `at`: only the one at this place.
    fn take(&self, session: Uuid, at: Option<&Listening>) -> Option<PassedListener> {
        let mut places = self.places();
        let fits = |place: &Place| at.is_none_or(|at| *at == place.listening);
        let own = places.iter().position(|place| place.session == Some(session));
        let found = own.or_else(|| {
            let free = |place: &Place| place.session.is_none() && fits(place);
            places.iter().position(free)
        });
        let place = places.get_mut(found?)?;
        match place.listener.try_clone() {
            Ok(listener) => {
                place.session = Some(session);
                Some(listener)
            }
            Err(error) => {
                tracing::warn!(%error, "a socket that was passed for agents cannot be used now");
                None
            }
        }
    }

    /// It is nobody's again.
    ///
    /// - `for_good`: whoever still waits there waits for nobody.
    fn give_back(&self, session: Uuid, for_good: bool) {
        for place in self
            .places()
            .iter_mut()
            .filter(|place| place.session == Some(session))
        {
            place.session = None;
            if for_good && let Err(error) = place.listener.turn_away() {
                tracing::warn!(%error, "callers of a session that is over may wait until they give up");
            }
        }
    }

    fn places(&self) -> std::sync::MutexGuard<'_, Vec<Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Daemon {
    /// Where a new session of the target `local` listens: at its own word, else at a socket that was passed, else as the
    /// configuration says.
    pub(super) fn place_for_agent(&self, session: Uuid, request: &mut SessionRequest) {
        let local = matches!(request.target, TargetSpec::Local)
            && matches!(request.tunnel, TunnelChoice::Auto | TunnelChoice::Local);
        if !local {
            return;
        }
        let settings = self.settings();
        let named = request.unix_socket.clone().map(|path| Listening::Unix { path });
        request.passed = settings.agent_sockets.take(session, named.as_ref());
        if request.passed.is_none()
            && named.is_none()
            && let AgentsAddress::Unix(folder) = &settings.agents
        {
            request.unix_socket = Some(socket_of(folder, session));
        }
    }

    /// The socket that was passed and that this session of an earlier process had; nobody else gets it from now on.
    pub(super) fn place_again(&self, session: Uuid, place: &SessionRecord) -> Option<PassedListener> {
        let at = match (&place.unix_path, place.port) {
            (Some(path), _) => Listening::Unix { path: path.clone() },
            (None, Some(port)) => Listening::Tcp { port },
            (None, None) => return None,
        };
        if place.tunnel != "local" {
            return None;
        }
        self.settings().agent_sockets.take(session, Some(&at))
    }

    /// A session is over; who calls at its socket is turned away, unless a successor goes on with it.
    pub(super) fn gives_place_back(&self, session: Uuid) {
        let for_good = !self.is_draining();
        self.settings().agent_sockets.give_back(session, for_good);
    }
}

impl Daemon {
    /// Clears the folder of agents' sockets of what a killed daemon left there. To be called once its sessions are back.
    pub async fn clear_sockets_left(&self) {
        let AgentsAddress::Unix(folder) = &self.settings().agents else {
            return;
        };
        if let Err(error) = clear(folder, |session| self.session(session).is_some()).await {
            tracing::warn!(folder = %folder.display(), %error, "sockets that nobody listens on may be left");
        }
    }
}

/// The folder's name has at most 64 bytes, so that this fits into an address.
fn socket_of(folder: &Path, session: Uuid) -> PathBuf {
    folder.join(format!("{session}.sock"))
}

/// Removes what sessions that nobody goes on with left in the folder of sockets when a daemon was killed.
async fn clear(folder: &Path, lives: impl Fn(Uuid) -> bool) -> io::Result<()> {
    for file in std::fs::read_dir(folder)? {
        let file = file?;
        let name = file.file_name();
        let of = name
            .to_str()
            .and_then(|name| name.strip_suffix(".sock")?.parse::<Uuid>().ok());
        if of.is_none_or(&lives) {
            continue;
        }
        // Another daemon may have its sessions in the same folder.
        match tokio::time::timeout(ANSWERED, UnixStream::connect(file.path())).await {
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(file.path())?;
            }
            Ok(Ok(_) | Err(_)) | Err(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn port() -> (PassedListener, Listening) {
        let listener = PassedListener::Tcp(TcpListener::bind("127.0.0.1:0").unwrap());
        let listening = listener.listening().unwrap();
        (listener, listening)
    }

    #[test]
    fn a_passed_socket_is_one_session_s_at_a_time_and_those_that_come_back_have_theirs() {
        let ((one, at_one), (other, at_other)) = (port(), port());
        let sockets = AgentSockets::new(vec![one, other]).unwrap();
        let sessions = [Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7()];
        let taken = |session, at: Option<&Listening>| {
            let taken = sockets.take(session, at)?;
            Some(taken.listening().unwrap())
        };

        assert_eq!(taken(sessions[0], Some(&at_other)), Some(at_other.clone()));
        assert_eq!(taken(sessions[1], Some(&at_other)), None);
        assert_eq!(taken(sessions[1], None), Some(at_one));
        assert_eq!(taken(sessions[2], None), None);
        // Asked again, it is the same.
        assert_eq!(taken(sessions[0], Some(&at_other)), Some(at_other.clone()));
        sockets.give_back(sessions[0], true);

        assert_eq!(taken(sessions[2], None), Some(at_other));
    }

    #[test]
    fn who_waits_at_a_socket_is_turned_away_only_where_its_session_is_over_for_good() {
        let (listener, listening) = port();
        let Listening::Tcp { port } = listening else {
            panic!("{listening:?}")
        };
        let sockets = AgentSockets::new(vec![listener]).unwrap();
        let session = Uuid::now_v7();
        let left = sockets.take(session, None);
        let mut waiting = TcpStream::connect(("127.0.0.1", port)).unwrap();

        sockets.give_back(session, false);
        waiting.set_nonblocking(true).unwrap();
        let still = waiting.read(&mut [0]).unwrap_err();
        drop((left, sockets.take(session, None)));
        sockets.give_back(session, true);
        waiting.set_nonblocking(false).unwrap();

        assert_eq!(still.kind(), std::io::ErrorKind::WouldBlock);
        assert!(matches!(waiting.read(&mut [0]), Ok(0) | Err(_)));
    }

    #[test]
    fn agents_are_given_no_address_that_other_machines_reach() {
        let anywhere = TcpListener::bind("0.0.0.0:0").unwrap();

        let refused = AgentSockets::new(vec![PassedListener::Tcp(anywhere)]).unwrap_err();

        assert!(
            refused.contains("agents") && refused.contains("127.0.0.1"),
            "{refused}"
        );
    }

    #[tokio::test]
    async fn only_sockets_that_nobody_listens_on_and_no_session_goes_on_with_are_cleared_away() {
        let folder = tempfile::tempdir().unwrap();
        let (living, gone, neighbour) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
        let at = |session| socket_of(folder.path(), session);
        let other = folder.path().join("other.sock");
        for path in [&at(living), &at(gone), &other] {
            drop(UnixListener::bind(path).unwrap());
        }
        let _served = UnixListener::bind(at(neighbour)).unwrap();

        clear(folder.path(), |session| session == living).await.unwrap();

        let left = [at(living), at(gone), at(neighbour), other].map(|path| path.exists());
        assert_eq!(left, [true, false, true, true]);
    }
}
