//! The HTTP/2 client preface behind READY: where the connection begins.
//!
//! Here: finding its 24 octets in what follows the READY line, without a clock and without IO. Not here: how long to
//! wait. What looks like a preface ahead of READY never gets here.

use bytes::{Bytes, BytesMut};

pub use super::ready::NOISE_LIMIT_BYTES;

/// RFC 9113 section 3.4.
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the scan makes of what it has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Preface {
    /// Not there yet.
    Waiting,
    /// The connection: the preface and what came behind it.
    Found(Bytes),
    /// More than [`NOISE_LIMIT_BYTES`] of something else.
    Missing,
}

/// Takes chunks until the preface; then it is spent.
#[derive(Debug, Default)]
pub struct PrefaceScan {
    /// The last bytes: they may be the beginning of the preface.
    held: BytesMut,
    /// Bytes that were no part of it.
    dropped: usize,
}

impl PrefaceScan {
    /// Takes one chunk. After anything but [`Preface::Waiting`] the scan must not be fed again.
    pub fn feed(&mut self, chunk: &[u8]) -> Preface {
        self.held.extend_from_slice(chunk);
        let found = self
            .held
            .windows(PREFACE.len())
            .position(|window| window == PREFACE);
        let noise = found.unwrap_or_else(|| self.held.len().saturating_sub(PREFACE.len() - 1));
        let _ = self.held.split_to(noise);
        self.dropped = self.dropped.saturating_add(noise);
        if self.dropped > NOISE_LIMIT_BYTES {
            return Preface::Missing;
        }
        match found {
            Some(_) => Preface::Found(self.held.split().freeze()),
            None => Preface::Waiting,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: &[u8]) -> Preface {
        PrefaceScan::default().feed(bytes)
    }

    fn bytewise(bytes: &[u8]) -> Preface {
        let mut scan = PrefaceScan::default();
        for (at, byte) in bytes.iter().enumerate() {
            match scan.feed(&[*byte]) {
                Preface::Waiting => {}
                Preface::Found(start) => {
                    let rest = Bytes::copy_from_slice(&bytes[at + 1..]);
                    return Preface::Found([start, rest].concat().into());
                }
                Preface::Missing => return Preface::Missing,
            }
        }
        Preface::Waiting
    }

    #[test]
    fn the_connection_begins_at_the_preface_however_the_bytes_are_cut() {
        let preface = PREFACE.as_slice();
        let rows: Vec<(Vec<u8>, Preface)> = vec![
            (preface.to_vec(), Preface::Found(Bytes::from_static(preface))),
            (
                [b"noise\r\n", preface, b"frames"].concat(),
                Preface::Found([preface, b"frames"].concat().into()),
            ),
            // A beginning that goes on otherwise, then the real one.
            (
                [b"PRI * HTTP/2.0\r\n\r\nPRI *", preface].concat(),
                Preface::Found(Bytes::from_static(preface)),
            ),
            (
                [preface, preface].concat(),
                Preface::Found([preface, preface].concat().into()),
            ),
            (b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n".to_vec(), Preface::Waiting),
            (preface[..23].to_vec(), Preface::Waiting),
            (Vec::new(), Preface::Waiting),
        ];
        for (bytes, expected) in rows {
            assert_eq!(whole(&bytes), expected, "{bytes:?}");
            assert_eq!(bytewise(&bytes), expected, "{bytes:?} byte by byte");
        }
    }

    #[test]
    fn noise_in_front_of_the_preface_has_a_limit() {
        let mut fits = vec![b'x'; NOISE_LIMIT_BYTES];
        fits.extend_from_slice(PREFACE);
        let mut over = vec![b'x'; NOISE_LIMIT_BYTES + 1];
        over.extend_from_slice(PREFACE);

        assert_eq!(whole(&fits), Preface::Found(Bytes::from_static(PREFACE)));
        assert_eq!(whole(&over), Preface::Missing);
        let mut scan = PrefaceScan::default();
        let flood = [b'P'; 1000];
        let missing = (0..).position(|_| scan.feed(&flood) == Preface::Missing);
        assert_eq!(missing, Some(266));
    }
}
