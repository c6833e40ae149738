//! A slow line: connections to a port arrive at another one, every byte a fixed time later.
//!
//! Here: delay and nothing else; neither rate nor order changes. Not here: loss, which `tc netem` gives as root.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Bytes read at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// Chunks on the line at most in each direction; far more than a TCP window, so that the rate is not what is slow.
const CHUNKS_ON_THE_LINE: usize = 4096;

/// A relay on a thread of its own, so that its timing does not wait for the benchmark. Dropping it ends it.
#[derive(Debug)]
pub struct DelayRelay {
    port: u16,
    ended: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl DelayRelay {
    /// Listens on loopback; `one_way` is the delay of each direction, half a round trip.
    ///
    /// # Panics
    ///
    /// Where loopback has no free port or no thread can be started.
    pub fn start(to: SocketAddr, one_way: Duration) -> Self {
        let (tell_port, port) = std::sync::mpsc::channel();
        let (ended, end) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime can be made");
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0")
                    .await
                    .expect("loopback has free ports");
                let port = listener.local_addr().expect("a listener has an address").port();
                tell_port.send(port).expect("the starter waits for the port");
                tokio::select! {
                    () = serve(listener, to, one_way) => {}
                    // Told to end, or the value that stands for us is gone.
                    _ = end => {}
                }
            });
        });
        Self {
            port: port.recv().expect("the relay listens"),
            ended: Some(ended),
            thread: Some(thread),
        }
    }

    /// Where it listens, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for DelayRelay {
    fn drop(&mut self) {
        drop(self.ended.take());
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed already.
            drop(thread.join());
        }
    }
}

async fn serve(listener: TcpListener, to: SocketAddr, one_way: Duration) {
    let mut connections = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            let Ok(far) = TcpStream::connect(to).await else {
                return;
            };
            if near.set_nodelay(true).is_err() || far.set_nodelay(true).is_err() {
                return;
            }
            let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
            tokio::join!(
                carry(near_read, far_write, one_way),
                carry(far_read, near_write, one_way)
            );
        });
    }
}

/// One direction until its end, which arrives late, too.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (sender, mut line) = mpsc::channel::<(Instant, Bytes)>(CHUNKS_ON_THE_LINE);
    let reading = async move {
        loop {
            let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
            let read = from.read_buf(&mut buffer).await;
            // An empty chunk is the end, by order or by a reset.
            let chunk = if read.is_ok() {
                buffer.freeze()
            } else {
                Bytes::new()
            };
            let last = chunk.is_empty();
            if sender.send((Instant::now() + delay, chunk)).await.is_err() || last {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((due, chunk)) = line.recv().await {
            tokio::time::sleep_until(due).await;
            if chunk.is_empty() || to.write_all(&chunk).await.is_err() {
                break;
            }
        }
        // The other side may have gone already; then nothing is left to say.
        drop(to.shutdown().await);
    };
    tokio::join!(reading, writing);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_arrive_whole_after_the_round_trip_and_so_does_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let echo = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut reading, mut writing) = stream.split();
            tokio::io::copy(&mut reading, &mut writing).await.unwrap();
        });
        let relay = DelayRelay::start(to, Duration::from_millis(20));

        let started = Instant::now();
        let mut stream = TcpStream::connect(("127.0.0.1", relay.port())).await.unwrap();
        let sent = vec![7; 3 * CHUNK_BYTES];
        stream.write_all(&sent).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut received = vec![];
        stream.read_to_end(&mut received).await.unwrap();

        assert_eq!(received, sent);
        assert!(started.elapsed() >= Duration::from_millis(40));
        echo.await.unwrap();
    }
}
