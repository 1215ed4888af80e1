//! A client's HTTP/1.1 connection, which holds no buffers while nobody asks for anything.
//!
//! hyper keeps 16 KiB for the next head and the next answer, and most connections of browsers wait.
//! So after a while of silence the socket is taken back from hyper, and given to it anew with the
//! first byte of the next request. [`Activity`](crate::guarded::Activity) knows when nothing of a
//! request or an answer is left inside hyper: only then may it be taken back.

use std::convert::Infallible;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::server::conn::http1::{Builder, Parts, UpgradeableConnection};
use hyper::service::HttpService;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::body::Body;
use crate::connection::Conversation;
use crate::guarded::Guarded;
use crate::limits;

pub(crate) struct Http1<I, S>
where
    S: HttpService<Incoming>,
{
    state: State<I, S>,
}

enum State<I, S>
where
    S: HttpService<Incoming>,
{
    Speaking(Box<UpgradeableConnection<TokioIo<Guarded<I>>, S>>),
    Resting(Guarded<I>, S),
    /// Told to go while it rested.
    Leaving(Guarded<I>),
    Ended,
}

impl<I, S> Http1<I, S>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = Body, Error = Infallible> + Unpin,
{
    pub(crate) fn new(io: Guarded<I>, service: S) -> Self {
        Self {
            state: State::speaking(io, service),
        }
    }
}

impl<I, S> State<I, S>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = Body, Error = Infallible> + Unpin,
{
    fn speaking(io: Guarded<I>, service: S) -> Self {
        let conversation = Builder::new()
            .preserve_header_case(true)
            .header_read_timeout(None)
            .max_header_size(limits::HEAD_BYTES)
            .max_buf_size(limits::CLIENT_BUFFER)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        Self::Speaking(Box::new(conversation))
    }

    /// As hyper gives it back. A head that has begun is read anew, by a new conversation.
    fn resting(parts: Parts<TokioIo<Guarded<I>>, S>) -> Self {
        let mut io = parts.io.into_inner();
        if parts.read_buf.is_empty() {
            Self::Resting(io, parts.service)
        } else {
            io.put_back(parts.read_buf);
            Self::speaking(io, parts.service)
        }
    }
}

impl<I, S> Future for Http1<I, S>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = Body, Error = Infallible> + Unpin,
{
    type Output = hyper::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match &mut self.state {
                State::Speaking(conversation) => return Pin::new(&mut **conversation).poll(cx),
                State::Resting(io, _) => {
                    let mut byte = [0];
                    let mut buf = ReadBuf::new(&mut byte);
                    // The end and errors are hyper's to find, too: it will read the same.
                    let _ = ready!(Pin::new(&mut *io).poll_read(cx, &mut buf));
                    io.put_back(Bytes::copy_from_slice(buf.filled()));
                }
                State::Leaving(io) => {
                    // Whether the client heard of it changes nothing.
                    let _ = ready!(Pin::new(io).poll_shutdown(cx));
                    return Poll::Ready(Ok(()));
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
            if let State::Resting(io, service) = mem::replace(&mut self.state, State::Ended) {
                self.state = State::speaking(io, service);
            }
        }
    }
}

impl<I, S> Conversation for Http1<I, S>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = Body, Error = Infallible> + Unpin,
{
    fn drain(mut self: Pin<&mut Self>) {
        self.state = match mem::replace(&mut self.state, State::Ended) {
            State::Speaking(mut conversation) => {
                Pin::new(&mut *conversation).graceful_shutdown();
                State::Speaking(conversation)
            }
            State::Resting(io, _) => State::Leaving(io),
            other => other,
        };
    }

    fn rest(mut self: Pin<&mut Self>) {
        self.state = match mem::replace(&mut self.state, State::Ended) {
            State::Speaking(conversation) => match conversation.into_parts() {
                Some(parts) => State::resting(parts),
                None => State::Ended,
            },
            other => other,
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::poll;
    use http::{Request, Response};
    use hyper::service::service_fn;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;
    use crate::guarded::Activity;

    const ASKED: &[u8] = b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n";
    const AGAIN: &[u8] = b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n";

    fn setup() -> (DuplexStream, Pin<Box<dyn Conversation>>) {
        let (client, server) = tokio::io::duplex(4096);
        let activity = Arc::new(Activity::new(false));
        let io = Guarded::new(server, Bytes::new(), Arc::clone(&activity));
        let service = service_fn(move |request: Request<Incoming>| {
            drop(activity.request(true));
            let asked = format!("{} {}", request.method(), request.uri());
            std::future::ready(Ok(Response::new(Body::full(asked))))
        });
        (client, Box::pin(Http1::new(io, service)))
    }

    /// What the client got until the server waits for more, or has ended.
    async fn answers(
        client: &mut DuplexStream,
        server: &mut Pin<Box<dyn Conversation>>,
    ) -> (Poll<()>, String) {
        let ended = poll!(server.as_mut()).map(|result| result.unwrap());
        let mut got = [0; 4096];
        let reading = client.read(&mut got);
        let n = match poll!(std::pin::pin!(reading)) {
            Poll::Ready(n) => n.unwrap(),
            Poll::Pending => 0,
        };
        (ended, String::from_utf8_lossy(&got[..n]).into_owned())
    }

    async fn asked_once() -> (DuplexStream, Pin<Box<dyn Conversation>>) {
        let (mut client, mut server) = setup();
        client.write_all(ASKED).await.unwrap();
        let (ended, text) = answers(&mut client, &mut server).await;
        assert!(ended.is_pending() && text.ends_with("GET /1"), "{text}");
        (client, server)
    }

    #[tokio::test]
    async fn goes_on_after_a_rest() {
        let (mut client, mut server) = asked_once().await;
        for _ in 0..2 {
            server.as_mut().rest();
            assert_eq!(answers(&mut client, &mut server).await.1, "");
            let (first, rest) = AGAIN.split_at(1);
            client.write_all(first).await.unwrap();
            assert_eq!(answers(&mut client, &mut server).await.1, "");
            client.write_all(rest).await.unwrap();
            let (ended, text) = answers(&mut client, &mut server).await;
            assert!(ended.is_pending() && text.ends_with("GET /2"), "{text}");
        }
    }

    #[tokio::test]
    async fn a_head_that_has_begun_survives() {
        let (mut client, mut server) = asked_once().await;
        let (first, rest) = AGAIN.split_at(9);
        client.write_all(first).await.unwrap();
        assert!(poll!(server.as_mut()).is_pending());
        server.as_mut().rest();
        client.write_all(rest).await.unwrap();
        let (ended, text) = answers(&mut client, &mut server).await;
        assert!(ended.is_pending() && text.ends_with("GET /2"), "{text}");
    }

    #[tokio::test]
    async fn ends_while_it_rests() {
        let (mut client, mut server) = asked_once().await;
        server.as_mut().rest();
        client.shutdown().await.unwrap();
        let (ended, _) = answers(&mut client, &mut server).await;
        assert!(ended.is_ready(), "the client has gone");

        let (mut client, mut server) = asked_once().await;
        server.as_mut().rest();
        server.as_mut().drain();
        let (ended, text) = answers(&mut client, &mut server).await;
        assert!(ended.is_ready() && text.is_empty(), "told to go: {text}");
    }
}
