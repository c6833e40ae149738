//! Sizes and times that both ends count with.
//!
//! Here: the values that are part of the protocols, and those that both ends of ours agreed upon. Not here: what is
//! configured per session.

use std::time::Duration;

/// A body where nothing else is said: 10 MiB and 64 KiB for what surrounds an attachment.
pub const DEFAULT_MAX_BODY: u64 = 10 * 1024 * 1024 + 64 * 1024;

/// Bytes of a request line with its fields; also of a header list on an HTTP/2 stream.
pub const MAX_HEAD: usize = 32 * 1024;
/// Bytes of a request target.
pub const MAX_TARGET: usize = 8 * 1024;

/// Without a byte from the host, which sends a PING each 5 s, for so long: it has gone.
pub const SILENCE: Duration = Duration::from_secs(25);

/// Between two of our own: HTTP/2 window of a stream, enough for 40 ms at 25 MiB/s.
pub const STREAM_WINDOW: u32 = 1024 * 1024;
/// … of a connection, so large that several bodies which nobody reads at the moment do not take it all.
pub const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// … and the largest frame.
pub const FRAME_SIZE: u32 = 64 * 1024;
