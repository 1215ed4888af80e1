//! A connection on which what the other end has said is heard even though it takes nothing any more.
//!
//! An application that refuses a request before all of it has come answers and closes. The next write
//! fails then, and hyper would give up the answer that waits to be read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Writes into nothing once the other end has closed, so that reading says how it ended.
#[derive(Debug)]
pub(super) struct Heard<S> {
    inner: S,
    closed: bool,
}

impl<S> Heard<S> {
    pub(super) fn new(inner: S) -> Self {
        Self {
            inner,
            closed: false,
        }
    }

    /// `written`: what is told when the other end takes nothing any more.
    fn unless_closed<T>(&mut self, done: io::Result<T>, written: T) -> io::Result<T> {
        match done {
            Err(error)
                if matches!(
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
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.closed {
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
        if self.closed {
            return Poll::Ready(Ok(all));
        }
        let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(context, bytes));
        Poll::Ready(self.unless_closed(written, all))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closed {
            return Poll::Ready(Ok(()));
        }
        let flushed = ready!(Pin::new(&mut self.inner).poll_flush(context));
        Poll::Ready(self.unless_closed(flushed, ()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
