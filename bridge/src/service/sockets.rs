//! Listeners that a service manager opened before we began (sd_listen_fds(3)).
//!
//! Here: [`Passed`]: which of them is which by its name, and that each is what we can serve on. Not here: serving on
//! them (`control/`).

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;
use tunnel::PassedListener;

/// `FileDescriptorName=` of the socket unit that opens the control API's socket.
const CONTROL: &str = "control";
/// The same for the ops listener.
const OPS: &str = "ops";
/// The same for each listener of agents on this machine.
const AGENTS: &str = "agents";

/// What was passed to this process; what was not passed is opened by us.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    /// For the control API.
    pub(crate) control: Option<UnixListener>,
    /// For the ops listener.
    pub(crate) ops: Option<TcpListener>,
    /// For agents of the target `local`, one for each session.
    pub(crate) agents: Vec<PassedListener>,
}

impl Passed {
    /// Takes over what is there. To be called before there are threads, and once: the variables that tell of it are
    /// taken out of the environment.
    ///
    /// # Errors
    ///
    /// One line: a descriptor that is none of ours, twice the same, or no listening socket of its kind.
    pub(crate) fn take(environment: &dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        let names = environment("LISTEN_FDNAMES").unwrap_or_default();
        Self::sort(ListenFd::from_env(), &names)
    }

    fn sort(mut descriptors: ListenFd, names: &str) -> Result<Self, String> {
        let mut names = names.split(':');
        let mut passed = Self::default();
        for index in 0..descriptors.len() {
            let name = names.next().unwrap_or_default();
            let fault = |what: &str| format!("the service manager passed a socket named {name:?} {what}");
            match name {
                CONTROL => {
                    let kind = "that is no listening unix stream socket; its unit has ListenStream=/PATH, and Accept=no";
                    let taken = descriptors.take_unix_listener(index).ok().flatten();
                    let listener = taken.filter(listens).ok_or_else(|| fault(kind))?;
                    if passed.control.replace(listener).is_some() {
                        return Err(fault("twice; the control API listens on one"));
                    }
                }
                OPS => {
                    let kind = "that is no listening TCP socket; its unit has ListenStream=ADDRESS:PORT, and Accept=no";
                    let taken = descriptors.take_tcp_listener(index).ok().flatten();
                    let listener = taken.filter(listens).ok_or_else(|| fault(kind))?;
                    if passed.ops.replace(listener).is_some() {
                        return Err(fault("twice; the ops listener has one address"));
                    }
                }
                AGENTS => {
                    let kind = "that is no listening unix stream or TCP socket; its unit has ListenStream=/PATH or \
                                127.0.0.1:PORT, and Accept=no";
                    let unix = descriptors.take_unix_listener(index).ok().flatten();
                    let unix = unix.filter(listens).map(PassedListener::Unix);
                    let taken = unix.or_else(|| {
                        let tcp = descriptors.take_tcp_listener(index).ok().flatten();
                        tcp.filter(listens).map(PassedListener::Tcp)
                    });
                    passed.agents.push(taken.ok_or_else(|| fault(kind))?);
                }
                _ => {
                    return Err(fault(
                        "of which nothing is known; give its unit FileDescriptorName=control, =ops or =agents",
                    ));
                }
            }
        }
        Ok(passed)
    }
}

fn listens(socket: &impl AsFd) -> bool {
    socket_acceptconn(socket).unwrap_or(false)
}
