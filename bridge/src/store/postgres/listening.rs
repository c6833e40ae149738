//! What other daemons say on the server, heard on a connection of its own.
//!
//! Here: [`Ears`], which come back by themselves after a loss. A lost connection hears nothing, and a server does not say
//! again what was said meanwhile: each new one begins with [`Heard::Anew`]. Not here: who says it (`sessions.rs`), what is
//! done about it (`daemon/holding/`).

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::unfold;
use sqlx::Executor as _;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::store::{Heard, Hearing};

/// On it a daemon says which session is to end. Names of channels are the whole database's, so that daemons of another
/// schema may hear it; they do not have the session.
pub(super) const REVOKED: &str = "paperclip_bridge_revoked";
/// A connection that was lost is opened again so much later.
const AGAIN: Duration = Duration::from_secs(1);
/// Opening one takes no longer, and neither does an answer on it.
const ANSWER: Duration = Duration::from_secs(5);
/// A connection that brought nothing for so long is asked whether it lives: what lies between may have dropped it silently.
const SILENCE: Duration = Duration::from_secs(20);

/// Hears on a connection to this server, from the first item on that is asked for.
pub(super) fn hear(options: PgConnectOptions) -> Hearing {
    let ears = Ears {
        options,
        listener: None,
        deaf: false,
    };
    unfold(ears, |mut ears| async move {
        let heard = ears.next().await;
        Some((heard, ears))
    })
    .boxed()
}

struct Ears {
    options: PgConnectOptions,
    listener: Option<PgListener>,
    /// The last attempt failed, which was told.
    deaf: bool,
}

impl Ears {
    async fn next(&mut self) -> Heard {
        loop {
            match self.listener.as_mut() {
                Some(listener) => match hear_on(listener).await {
                    Ok(session) => return Heard::Revoked(session),
                    Err(why) => {
                        self.listener = None;
                        tracing::info!(
                            why,
                            "the connection that hears other daemons is lost; until it is back, what they say is seen a little later"
                        );
                        sleep(AGAIN).await;
                    }
                },
                None => match self.open().await {
                    Ok(listener) => {
                        self.listener = Some(listener);
                        self.deaf = false;
                        return Heard::Anew;
                    }
                    Err(why) => {
                        if !std::mem::replace(&mut self.deaf, true) {
                            tracing::info!(
                                why,
                                "other daemons cannot be heard; what they say is seen a little later"
                            );
                        }
                        sleep(AGAIN).await;
                    }
                },
            }
        }
    }

    async fn open(&self) -> Result<PgListener, String> {
        // Of one connection, which is not among those that work: a listener never gives it back.
        let own = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ANSWER)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(self.options.clone());
        let opened = async {
            let mut listener = PgListener::connect_with(&own).await?;
            listener.listen(REVOKED).await?;
            Ok(listener)
        };
        told(timeout(ANSWER, opened).await)
    }
}

/// The next session that is to end, or why nothing more will be heard on this connection.
async fn hear_on(listener: &mut PgListener) -> Result<Uuid, String> {
    // It would otherwise connect again without saying so.
    listener.eager_reconnect(false);
    loop {
        match timeout(SILENCE, listener.try_recv()).await {
            Ok(Ok(Some(said))) => {
                // Whoever may connect to the database can say anything.
                if let Ok(session) = Uuid::try_parse(said.payload()) {
                    return Ok(session);
                }
            }
            Ok(Ok(None)) => return Err("the server closed it".to_owned()),
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => told(timeout(ANSWER, listener.execute("SELECT 1")).await).map(drop)?,
        }
    }
}

fn told<T>(done: Result<Result<T, sqlx::Error>, tokio::time::error::Elapsed>) -> Result<T, String> {
    match done {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {ANSWER:?}")),
    }
}
