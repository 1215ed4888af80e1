//! A connection on which what the other end has said is heard even though it takes nothing any more.
//!
//! An application that refuses a request before all of it has come answers and closes. The next write
//! fails then, and hyper would give up the answer that waits to be read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Writes into nothing once the other end has closed, until all that it has said is read: then there is
/// nothing to wait for, and a tunnel has to end.
#[derive(Debug)]
pub(super) struct Heard<S> {
    inner: S,
    closed: bool,
    read_all: bool,
}

impl<S> Heard<S> {
    pub(super) fn new(inner: S) -> Self {
        Self {
            inner,
            closed: false,
            read_all: false,
        }
    }

    /// `written`: what is told when the other end takes nothing any more.
    fn unless_closed<T>(&mut self, done: io::Result<T>, written: T) -> io::Result<T> {
        match done {
            Err(error)
                if !self.read_all
                    && matches!(
                        error.kind(),
                        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                    ) =>
            {
                self.closed = true;
                Ok(written)
            }
            done => done,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.inner).poll_read(context, buffer));
        self.read_all |=
            read.is_err() || (buffer.filled().len() == before && buffer.remaining() > 0);
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.closed && !self.read_all {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = ready!(Pin::new(&mut self.inner).poll_write(context, bytes));
        Poll::Ready(self.unless_closed(written, bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = bytes.iter().map(|slice| slice.len()).sum();
        if self.closed && !self.read_all {
            return Poll::Ready(Ok(all));
        }
        let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(context, bytes));
        Poll::Ready(self.unless_closed(written, all))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closed && !self.read_all {
            return Poll::Ready(Ok(()));
        }
        let flushed = ready!(Pin::new(&mut self.inner).poll_flush(context));
        Poll::Ready(self.unless_closed(flushed, ()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn what_was_said_is_heard_and_then_it_ends() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut ours = Heard::new(ours);
        theirs.write_all(b"no").await.unwrap();
        drop(theirs);
        ours.write_all(b"much").await.unwrap();
        ours.write_all(b"more").await.unwrap();
        let mut said = String::new();
        ours.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "no");
        let error = ours.write_all(b"nobody").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
