//! What a peer speaks that does not speak what we expect: told by the first bytes that come from
//! it, so that a log line can name the likely cause.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::fault::Speaks;

/// Enough to tell protocols apart.
const FIRST: usize = 8;

/// The first bytes that a peer sent; clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct FirstBytes(Arc<Mutex<Vec<u8>>>);

impl FirstBytes {
    fn hear(&self, bytes: &[u8]) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = FIRST.saturating_sub(heard.len()).min(bytes.len());
        heard.extend_from_slice(bytes.get(..room).unwrap_or_default());
    }

    /// What this peer speaks instead of HTTP/2, where its first bytes tell.
    pub(super) fn told(&self) -> Option<Speaks> {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tell(&heard)
    }
}

fn tell(heard: &[u8]) -> Option<Speaks> {
    match heard {
        [b'H', b'T', b'T', b'P', ..] => Some(Speaks::Http1),
        // A TLS alert or handshake record.
        [0x15 | 0x16, 0x03, ..] => Some(Speaks::Tls),
        [b'S', b'S', b'H', b'-', ..] => Some(Speaks::Ssh),
        // The header of a SETTINGS frame: HTTP/2 after all.
        [_, _, _, 0x04, ..] | [] => None,
        [_, _, _, _, ..] => Some(Speaks::Other),
        _ => None,
    }
}

/// A connection whose first bytes are kept.
#[derive(Debug)]
pub(super) struct Overheard<S> {
    stream: S,
    first: FirstBytes,
    heard: usize,
}

impl<S> Overheard<S> {
    pub(super) fn new(stream: S, first: FirstBytes) -> Self {
        Self {
            stream,
            first,
            heard: 0,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Overheard<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if this.heard < FIRST {
            let new = buffer.filled().get(before..).unwrap_or_default();
            this.heard += new.len();
            this.first.hear(new);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Overheard<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_told_by_their_first_bytes() {
        assert_eq!(tell(b"HTTP/1.1"), Some(Speaks::Http1));
        assert_eq!(tell(&[0x15, 3, 3, 0, 2, 2, 10]), Some(Speaks::Tls));
        assert_eq!(tell(b"SSH-2.0-"), Some(Speaks::Ssh));
        assert_eq!(tell(b"220 mail"), Some(Speaks::Other));
        // SETTINGS with two entries.
        assert_eq!(tell(&[0, 0, 12, 4, 0, 0, 0, 0]), None);
        assert_eq!(tell(b""), None);
        assert_eq!(tell(b"HT"), None);
    }

    #[test]
    fn bytes_are_kept_however_they_come() {
        let first = FirstBytes::default();
        for byte in b"HTTP/1.1 400 Bad Request" {
            first.hear(&[*byte]);
        }
        assert_eq!(first.told(), Some(Speaks::Http1));
        assert_eq!(first.0.lock().unwrap().len(), FIRST);
    }
}
