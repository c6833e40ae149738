//! A sink that keeps what it is given, and notices when it is called twice at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use runners::{OutputSink, OutputStream};
use tokio::sync::Notify;

use super::LIMIT;
use crate::waiting::within;

/// Keeps every chunk in the order in which it came.
#[derive(Debug, Default)]
pub struct Recorder {
    chunks: Mutex<Vec<(OutputStream, Bytes)>>,
    came: Notify,
    busy: AtomicBool,
    /// How often it lets others go first before it takes the next chunk.
    slow: usize,
}

impl Recorder {
    /// One that takes each chunk at once.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// One that lets everybody else go first, many times a chunk.
    pub fn slow() -> Arc<Self> {
        Arc::new(Self {
            slow: 200,
            ..Self::default()
        })
    }

    /// All that came on one stream.
    pub fn all(&self, stream: OutputStream) -> Vec<u8> {
        let chunks = self.lock();
        let of_stream = chunks.iter().filter(|(one, _)| *one == stream);
        of_stream.flat_map(|(_, bytes)| bytes.to_vec()).collect()
    }

    /// Waits until standard output holds `text`.
    pub async fn says(&self, text: &str) {
        within(LIMIT, &format!("the command says {text:?}"), async {
            loop {
                let came = self.came.notified();
                if String::from_utf8_lossy(&self.all(OutputStream::Stdout)).contains(text) {
                    return;
                }
                came.await;
            }
        })
        .await;
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(OutputStream, Bytes)>> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OutputSink for Recorder {
    fn chunk(&self, stream: OutputStream, bytes: Bytes) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            assert!(!bytes.is_empty(), "an empty chunk");
            assert!(!self.busy.swap(true, Ordering::SeqCst), "two chunks at once");
            for _ in 0..self.slow {
                tokio::task::yield_now().await;
            }
            self.lock().push((stream, bytes));
            self.busy.store(false, Ordering::SeqCst);
            self.came.notify_one();
        })
    }
}
