//! The callbacks of russh's session loop.
//!
//! Here: host key judgement at the handshake, bytes into inboxes, and every channel that the server opens: one for a
//! forward that we asked for and still want is taken, any other kind is refused (russh's own defaults accept them).
//! Nothing here may wait: these callbacks run inside the session loop of all channels. Not here: what happens with the
//! bytes; see [`super::inbox`] and [`super::channel`].

use std::sync::Arc;

use russh::client::{self, ChannelOpenHandle, DisconnectReason, Msg, Session};
use russh::keys::PublicKeyOrCertificate;
use russh::{Channel, ChannelId, ChannelOpenFailure, Sig};

use super::channel::ChannelIo;
use super::inbox::Exit;
use super::settings::HostKeys;
use super::shared::{ForwardKey, Shared};
use crate::runner::OutputStream;

/// Bytes held of a channel that we opened, until its opener says otherwise.
const FIRST_CAP: usize = 1024 * 1024;

/// Why the session loop stopped.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error(transparent)]
    Ssh(#[from] russh::Error),
    /// Carries what to do.
    #[error("{0}")]
    HostKey(String),
}

pub(super) struct Dispatcher {
    shared: Arc<Shared>,
    host_keys: HostKeys,
    host: String,
    port: u16,
    banner: Option<String>,
}

impl Dispatcher {
    pub(super) fn new(shared: Arc<Shared>, host_keys: HostKeys, host: String, port: u16) -> Self {
        Self {
            shared,
            host_keys,
            host,
            port,
            banner: None,
        }
    }

    /// Takes or refuses a channel for `key`; never waits.
    async fn accept(&self, channel: Channel<Msg>, key: ForwardKey, reply: ChannelOpenHandle) {
        let Some((accepted, cap)) = self.shared.forward(&key) else {
            return self.refuse("forwarded channel of no live forward", reply).await;
        };
        let Ok(place) = accepted.try_reserve() else {
            tracing::warn!(target_host = %self.shared.target, "too many connections wait to be accepted; one refused");
            return reply.reject(ChannelOpenFailure::ResourceShortage).await;
        };
        let id = channel.id();
        // The read half goes: its queue would be awaited by the session loop. See `inbox`.
        let (_, writer) = channel.split();
        let inbox = self.shared.register(id, cap);
        reply.accept().await;
        let stall = self.shared.limits.write_stall;
        place.send(ChannelIo::new(Arc::clone(&self.shared), inbox, writer).with_stall_limit(stall));
    }

    /// Refuses what nobody asked for.
    async fn refuse(&self, kind: &'static str, reply: ChannelOpenHandle) {
        self.shared.count_refused();
        tracing::warn!(target_host = %self.shared.target, kind, "the SSH server opened a channel that nobody asked for");
        reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
    }

    fn take(
        &self,
        id: ChannelId,
        stream: OutputStream,
        bytes: &[u8],
        session: &mut Session,
    ) -> Result<(), SessionError> {
        let Some(inbox) = self.shared.inbox(id) else {
            return Ok(());
        };
        if !inbox.push(stream, bytes) {
            tracing::warn!(target_host = %self.shared.target, "channel_overrun: a channel held more unread than it may; closed");
            self.shared.forget_closed_by_us(id);
            session.close(id)?;
        }
        Ok(())
    }

    fn with_inbox(&self, id: ChannelId, then: impl FnOnce(&super::inbox::Inbox)) {
        if let Some(inbox) = self.shared.inbox(id) {
            then(&inbox);
        }
    }
}

impl Drop for Dispatcher {
    // The one place that every end of the session task passes, also one that russh does not report.
    fn drop(&mut self) {
        self.shared.end("the connection was closed");
    }
}

impl client::Handler for Dispatcher {
    type Error = SessionError;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, SessionError> {
        self.host_keys
            .check(&self.host, self.port, key)
            .map_err(SessionError::HostKey)?;
        Ok(true)
    }

    async fn auth_banner(&mut self, banner: &str, _: &mut Session) -> Result<(), SessionError> {
        // Kept for the log only: a banner is the server's text and may say anything.
        self.banner = Some(banner.chars().take(200).collect());
        tracing::debug!(target_host = %self.shared.target, banner = ?self.banner, "SSH banner");
        Ok(())
    }

    async fn channel_open_confirmation(
        &mut self,
        id: ChannelId,
        _: u32,
        _: u32,
        _: &mut Session,
    ) -> Result<(), SessionError> {
        // Before the next packet is read: a far end may speak before our opener has been told.
        self.shared.register(id, FIRST_CAP);
        Ok(())
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], session: &mut Session) -> Result<(), SessionError> {
        self.take(id, OutputStream::Stdout, data, session)
    }

    async fn extended_data(
        &mut self,
        id: ChannelId,
        kind: u32,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), SessionError> {
        // RFC 4254 section 5.2: 1 is stderr, the only kind there is.
        if kind == 1 {
            self.take(id, OutputStream::Stderr, data, session)
        } else {
            Ok(())
        }
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut Session) -> Result<(), SessionError> {
        self.with_inbox(id, |inbox| inbox.eof());
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), SessionError> {
        self.shared.channel_closed(id);
        Ok(())
    }

    async fn channel_success(&mut self, id: ChannelId, _: &mut Session) -> Result<(), SessionError> {
        self.with_inbox(id, |inbox| inbox.set_reply(true));
        Ok(())
    }

    async fn channel_failure(&mut self, id: ChannelId, _: &mut Session) -> Result<(), SessionError> {
        self.with_inbox(id, |inbox| inbox.set_reply(false));
        Ok(())
    }

    async fn exit_status(&mut self, id: ChannelId, status: u32, _: &mut Session) -> Result<(), SessionError> {
        self.with_inbox(id, |inbox| inbox.set_exit(Exit::Status(status)));
        Ok(())
    }

    async fn exit_signal(
        &mut self,
        id: ChannelId,
        signal: Sig,
        _: bool,
        _: &str,
        _: &str,
        _: &mut Session,
    ) -> Result<(), SessionError> {
        self.with_inbox(id, |inbox| inbox.set_exit(Exit::Signal(signal_name(&signal))));
        Ok(())
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<Msg>,
        _: &str,
        connected_port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), SessionError> {
        // The address is not compared: we ask for loopback only, and servers spell it in their own way.
        self.accept(channel, ForwardKey::Tcp { port: connected_port }, reply)
            .await;
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), SessionError> {
        self.accept(
            channel,
            ForwardKey::Unix {
                path: path.to_owned(),
            },
            reply,
        )
        .await;
        Ok(())
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), SessionError> {
        self.refuse("session", reply).await;
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), SessionError> {
        self.refuse("direct-tcpip", reply).await;
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), SessionError> {
        self.refuse("direct-streamlocal", reply).await;
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), SessionError> {
        self.refuse("x11", reply).await;
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), SessionError> {
        self.refuse("agent forward", reply).await;
        Ok(())
    }

    async fn should_accept_unknown_server_channel(&mut self, _: ChannelId, _: &str) -> bool {
        self.shared.count_refused();
        false
    }

    async fn server_channel_open_unknown(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), SessionError> {
        self.refuse("unknown kind", reply).await;
        Ok(())
    }

    async fn disconnected(&mut self, reason: DisconnectReason<SessionError>) -> Result<(), SessionError> {
        match reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                // The text is the server's: bounded, and only ever shown as such.
                let text: String = info.message.chars().take(200).collect();
                self.shared.end(&format!("the server disconnected: {text:?}"));
            }
            DisconnectReason::Error(error) => self.shared.end(&why(&error)),
        }
        Ok(())
    }
}

fn why(error: &SessionError) -> String {
    match error {
        SessionError::Ssh(russh::Error::KeepaliveTimeout) => "the server stopped answering".to_owned(),
        SessionError::Ssh(russh::Error::Disconnect | russh::Error::HUP) => {
            "the server closed the connection".to_owned()
        }
        SessionError::Ssh(error) => error.to_string(),
        SessionError::HostKey(text) => text.clone(),
    }
}

/// russh keeps its own `name()` to itself.
fn signal_name(signal: &Sig) -> String {
    let name = match signal {
        Sig::ABRT => "ABRT",
        Sig::ALRM => "ALRM",
        Sig::FPE => "FPE",
        Sig::HUP => "HUP",
        Sig::ILL => "ILL",
        Sig::INT => "INT",
        Sig::KILL => "KILL",
        Sig::PIPE => "PIPE",
        Sig::QUIT => "QUIT",
        Sig::SEGV => "SEGV",
        Sig::TERM => "TERM",
        Sig::USR1 => "USR1",
        Sig::Custom(name) => return name.chars().take(32).filter(char::is_ascii_graphic).collect(),
    };
    name.to_owned()
}
