//! What a peer speaks that does not speak what we expect: told by the first bytes that come from
//! it, so that a log line can name the likely cause.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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

    /// Why HTTP/2 cannot work with this peer, where its first bytes tell.
    pub(super) fn explain(&self) -> Option<&'static str> {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        explain(&heard)
    }
}

fn explain(heard: &[u8]) -> Option<&'static str> {
    match heard {
        [b'H', b'T', b'T', b'P', ..] => {
            Some("it speaks HTTP/1.1, not HTTP/2; is this a gRPC port?")
        }
        // A TLS alert or handshake record.
        [0x15 | 0x16, 0x03, ..] => {
            Some("it expects TLS; write https:// in the URL, or set `grpc_insecure: true` there")
        }
        [b'S', b'S', b'H', b'-', ..] => Some("it speaks SSH; is this a gRPC port?"),
        // The header of a SETTINGS frame: HTTP/2 after all.
        [_, _, _, 0x04, ..] | [] => None,
        [_, _, _, _, ..] => Some("it does not speak HTTP/2; is this a gRPC port?"),
        _ => None,
    }
}

/// Why TLS cannot work with a peer, where the error tells.
pub(super) fn explain_tls(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidMessage(_)) = error.downcast_ref() {
            return Some(
                "it answers in clear text; write http:// in the URL, or set `grpc_insecure: false` there",
            );
        }
        // An io::Error hides the error inside of it from `source`.
        next = match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
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
        let told = |bytes: &[u8]| explain(bytes).unwrap_or("nothing");
        assert!(told(b"HTTP/1.1").contains("HTTP/1.1"));
        assert!(told(&[0x15, 3, 3, 0, 2, 2, 10]).contains("https://"));
        assert!(told(b"SSH-2.0-").contains("SSH"));
        assert!(told(b"220 mail").contains("not speak HTTP/2"));
        // SETTINGS with two entries.
        assert_eq!(told(&[0, 0, 12, 4, 0, 0, 0, 0]), "nothing");
        assert_eq!(told(b""), "nothing");
        assert_eq!(told(b"HT"), "nothing");
    }

    #[test]
    fn bytes_are_kept_however_they_come() {
        let first = FirstBytes::default();
        for byte in b"HTTP/1.1 400 Bad Request" {
            first.hear(&[*byte]);
        }
        assert!(first.explain().unwrap().contains("HTTP/1.1"));
        assert_eq!(first.0.lock().unwrap().len(), FIRST);
    }
}
