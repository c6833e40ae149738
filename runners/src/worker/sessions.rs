//! The shells of a sandbox that commands run in.
//!
//! Here: which of them is free. Not here: what makes them; the Worker does, by their names.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Semaphore;

/// Names of shells in the sandbox. A shell serves one command at a time; one whose command did not end is not used again.
#[derive(Debug)]
pub(super) struct Sessions {
    name: String,
    places: Semaphore,
    free: Mutex<Free>,
}

#[derive(Debug)]
struct Free {
    names: Vec<String>,
    made: usize,
}

/// A shell that is in use; free again once its command is done.
pub(super) struct Taken<'a> {
    pub(super) name: String,
    sessions: &'a Sessions,
    done: bool,
}

impl Sessions {
    pub(super) fn new(name: String, most: usize) -> Self {
        Self {
            free: Mutex::new(Free {
                names: vec![name.clone()],
                made: 1,
            }),
            name,
            places: Semaphore::new(most),
        }
    }

    pub(super) async fn take(&self) -> Taken<'_> {
        if let Ok(place) = self.places.acquire().await {
            place.forget();
        }
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let name = free.names.pop().unwrap_or_else(|| {
            free.made += 1;
            format!("{}-{}", self.name, free.made)
        });
        Taken {
            name,
            sessions: self,
            done: false,
        }
    }
}

impl Taken<'_> {
    pub(super) fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if self.done {
            let mut free = self.sessions.free.lock().unwrap_or_else(PoisonError::into_inner);
            free.names.push(std::mem::take(&mut self.name));
        }
        self.sessions.places.add_permits(1);
    }
}
