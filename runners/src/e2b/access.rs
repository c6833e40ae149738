//! The way into one sandbox: its address and its token, asked for when it is needed and again when it is refused.

use std::sync::Arc;

use tokio::sync::Mutex;

use super::control::{Control, Running, SandboxId};
use crate::SecretText;
use crate::http::BaseUrl;
use crate::provider::ProviderError;

/// An address and what it wants to see.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) url: BaseUrl,
    pub(super) token: Option<SecretText>,
}

/// The way into one sandbox; its token is in no lease, so it is asked for after a restart of ours.
#[derive(Debug)]
pub(super) struct Access {
    pub(super) id: SandboxId,
    pub(super) control: Arc<Control>,
    door: Mutex<Option<Arc<Door>>>,
}

impl Access {
    pub(super) fn new(control: Arc<Control>, id: SandboxId) -> Self {
        Self {
            id,
            control,
            door: Mutex::default(),
        }
    }

    /// Takes what the API told of the sandbox.
    pub(super) async fn opened(&self, running: Running) -> Result<(), ProviderError> {
        let door = self.door_of(running)?;
        *self.door.lock().await = Some(door);
        Ok(())
    }

    /// The door as it was known last; asks the API where it never was.
    pub(super) async fn door(&self) -> Result<Arc<Door>, ProviderError> {
        let mut known = self.door.lock().await;
        match &*known {
            Some(door) => Ok(Arc::clone(door)),
            None => self.ask(&mut known).await,
        }
    }

    /// Asks the API again, unless another call did since `stale` was handed out: the sandbox was paused, or the token
    /// is another by now, or it is gone, which is [`ProviderError::LeaseLost`].
    pub(super) async fn renewed(&self, stale: &Arc<Door>) -> Result<Arc<Door>, ProviderError> {
        let mut known = self.door.lock().await;
        match &*known {
            Some(door) if !Arc::ptr_eq(door, stale) => Ok(Arc::clone(door)),
            Some(_) | None => self.ask(&mut known).await,
        }
    }

    async fn ask(&self, known: &mut Option<Arc<Door>>) -> Result<Arc<Door>, ProviderError> {
        let door = self.door_of(self.control.connect(&self.id).await?)?;
        *known = Some(Arc::clone(&door));
        Ok(door)
    }

    fn door_of(&self, running: Running) -> Result<Arc<Door>, ProviderError> {
        let place = &self.control.settings.sandboxes;
        let url = place
            .url(&self.id, running.domain.as_deref())
            .map_err(|problem| ProviderError::Broken(format!("the address of the sandbox {problem}")))?;
        Ok(Arc::new(Door {
            url,
            token: running.token,
        }))
    }
}
