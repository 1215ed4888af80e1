//! A client's connection, watched.
//!
//! hyper has one timer for the head of a request, and it runs between requests too, so a short
//! limit for slow heads would cut idle connections. Here the two are told apart by who reads what:
//! the first byte after an idle time starts the clock of a head, the request it becomes stops it.
//!
//! A client that does not read what it asked for is noticed here as well: nobody polls its answer,
//! so nothing in the answer can end it.

use std::io;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::alarm::Alarm;
use crate::limits;

/// What a client's connection is doing. Times are milliseconds since `epoch`, so that they fit
/// atomics: hyper hands an upgraded connection on as `Send`, though it never leaves its core.
#[derive(Debug)]
pub(crate) struct Activity {
    epoch: Instant,
    /// Requests whose answer has not been sent to its last byte.
    active: AtomicU32,
    /// Requests so far.
    requests: AtomicU64,
    idle_since: AtomicU64,
    /// 0: no head is being read.
    head_since: AtomicU64,
    /// The client has taken nothing of what waits to be written since then; 0: nothing waits.
    unread_since: AtomicU64,
    /// Answers that were told to end, and have not.
    withdrawn: AtomicU32,
    withdrawn_since: AtomicU64,
    /// Nothing of the last answer waits in hyper, and nothing of the last request.
    flushed: AtomicBool,
    request_read: AtomicBool,
    /// hyper's buffers have been given back.
    rests: AtomicBool,
    /// Of the task that watches the deadline.
    watcher: AtomicWaker,
    /// HTTP/2 carries more than requests: there, only the time to the first request counts.
    heads: bool,
}

/// What follows from silence: of all but the first, that the connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Silence {
    /// Buffers are not worth keeping any longer. No reason to close.
    Rest,
    Head,
    Idle,
    /// The client takes nothing of what is written.
    Unread,
    /// An answer that must end cannot, because the client does not take it.
    Withdrawn,
}

impl Silence {
    /// Whether requests that run are no reason to wait.
    pub(crate) fn ends_requests(self) -> bool {
        matches!(self, Self::Unread | Self::Withdrawn)
    }
}

impl Activity {
    pub(crate) fn new(http2: bool) -> Self {
        let epoch = Instant::now();
        Self {
            epoch,
            active: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            idle_since: AtomicU64::new(0),
            // Browsers open spare connections: for HTTP/1.1 the clock of the first head starts
            // with its first byte. For HTTP/2 nobody can tell the bytes of a head from those of
            // the preface and of settings, so it runs from the beginning.
            head_since: AtomicU64::new(u64::from(http2)),
            unread_since: AtomicU64::new(0),
            withdrawn: AtomicU32::new(0),
            withdrawn_since: AtomicU64::new(0),
            flushed: AtomicBool::new(true),
            request_read: AtomicBool::new(true),
            rests: AtomicBool::new(false),
            watcher: AtomicWaker::new(),
            heads: !http2,
        }
    }

    /// The task that watches the deadline is woken when it comes nearer.
    pub(crate) fn watch(&self, cx: &Context<'_>) {
        self.watcher.register(cx.waker());
    }

    fn wrote(&self, taken: bool) {
        if taken {
            self.unread_since.store(0, Ordering::Relaxed);
        } else if self.unread_since.load(Ordering::Relaxed) == 0 {
            self.unread_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// An answer on this connection must end.
    pub(crate) fn withdraw(&self) {
        if self.withdrawn.fetch_add(1, Ordering::Relaxed) == 0 {
            self.withdrawn_since.store(self.now(), Ordering::Relaxed);
        }
        self.watcher.wake();
    }

    /// It has ended.
    pub(crate) fn withdrawal_done(&self) {
        self.withdrawn.fetch_sub(1, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis())
            .unwrap_or(u64::MAX)
            .max(1)
    }

    fn bytes_arrived(&self) {
        self.rests.store(false, Ordering::Relaxed);
        if self.heads
            && self.active.load(Ordering::Relaxed) == 0
            && self.head_since.load(Ordering::Relaxed) == 0
        {
            self.head_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// A head is complete. `whole`: and nothing follows it. The guard ends with the last byte of the
    /// answer.
    pub(crate) fn request(self: &Arc<Self>, whole: bool) -> Active {
        self.request_read.store(whole, Ordering::Relaxed);
        self.head_since.store(0, Ordering::Relaxed);
        self.active.fetch_add(1, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        Active {
            activity: Arc::clone(self),
        }
    }

    /// Whether the client may still be sending what nobody reads.
    fn is_sending(&self) -> bool {
        let request_read = self.request_read.load(Ordering::Relaxed);
        self.heads && (!request_read || self.head_since.load(Ordering::Relaxed) != 0)
    }

    /// Whether all that hyper holds of an idle connection is room. After a request that was not read
    /// to its end it is kept: hyper may be waiting for what the answer did not need.
    fn may_rest(&self) -> bool {
        self.heads
            && self.flushed.load(Ordering::Relaxed)
            && self.request_read.load(Ordering::Relaxed)
            && !self.rests.load(Ordering::Relaxed)
    }

    /// It rests until bytes arrive.
    pub(crate) fn rest(&self) {
        self.rests.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_http2(&self) -> bool {
        !self.heads
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed) > 0
    }

    /// When silence becomes too long, and of which kind it is.
    pub(crate) fn deadline(&self, idle: Duration) -> (Instant, Silence) {
        let at = |ms: u64| self.epoch + Duration::from_millis(ms);
        if self.withdrawn.load(Ordering::Relaxed) > 0 {
            let since = self.withdrawn_since.load(Ordering::Relaxed);
            return (at(since) + limits::GOODBYE, Silence::Withdrawn);
        }
        let unread = self.unread_since.load(Ordering::Relaxed);
        if unread != 0 {
            return (at(unread) + idle, Silence::Unread);
        }
        if self.is_active() {
            return (Instant::now() + idle, Silence::Idle);
        }
        match self.head_since.load(Ordering::Relaxed) {
            0 => {
                let since = at(self.idle_since.load(Ordering::Relaxed));
                if self.may_rest() && limits::REST < idle {
                    (since + limits::REST, Silence::Rest)
                } else {
                    (since + idle, Silence::Idle)
                }
            }
            since => (at(since) + limits::HEAD, Silence::Head),
        }
    }
}

/// One request on a connection.
#[derive(Debug)]
pub(crate) struct Active {
    activity: Arc<Activity>,
}

impl Active {
    /// The connection that it is on.
    pub(crate) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// The request has been read to its last byte.
    pub(crate) fn request_is_read(&self) {
        self.activity.request_read.store(true, Ordering::Relaxed);
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let activity = &self.activity;
        activity.idle_since.store(activity.now(), Ordering::Relaxed);
        activity.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection whose reads are noticed, with bytes in front that were read to tell the protocol.
#[derive(Debug)]
pub(crate) struct Guarded<S> {
    inner: S,
    first: Bytes,
    activity: Arc<Activity>,
    /// Once nothing more is written, and where it is needed.
    lingering: Option<Box<Lingering>>,
}

/// A connection is closed in stages (RFC 9112 9.6): to close it while bytes arrive would reset it, and
/// the client could lose the answer that it has not read yet.
#[derive(Debug)]
struct Lingering {
    until: Instant,
    alarm: Alarm,
    /// Bytes that may still come.
    left: usize,
    buffer: Vec<u8>,
}

impl Lingering {
    fn new() -> Self {
        Self {
            until: Instant::now() + limits::LINGER,
            alarm: Alarm::default(),
            left: limits::LINGER_BYTES,
            buffer: vec![0; limits::LINGER_READ],
        }
    }

    /// Reads until the client has closed too, or has had its chance.
    fn poll(&mut self, io: &mut (impl AsyncRead + Unpin), cx: &mut Context<'_>) -> Poll<()> {
        while self.left > 0 && self.alarm.poll(cx, self.until).is_pending() {
            let mut buf = ReadBuf::new(&mut self.buffer);
            let read = ready!(Pin::new(&mut *io).poll_read(cx, &mut buf));
            if read.is_err() || buf.filled().is_empty() {
                break;
            }
            self.left = self.left.saturating_sub(buf.filled().len());
        }
        Poll::Ready(())
    }
}

impl<S> Guarded<S> {
    pub(crate) fn new(inner: S, first: Bytes, activity: Arc<Activity>) -> Self {
        Self {
            inner,
            first,
            activity,
            lingering: None,
        }
    }
}

impl<S> Guarded<S> {
    /// To be read again, before anything else.
    pub(crate) fn put_back(&mut self, bytes: Bytes) {
        self.first = if self.first.is_empty() {
            bytes
        } else {
            [bytes, mem::take(&mut self.first)].concat().into()
        };
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let n = self.first.len().min(buf.remaining());
            if let Some(front) = self.first.get(..n) {
                buf.put_slice(front);
            }
            self.first.advance(n);
            self.activity.bytes_arrived();
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if polled.is_ready() && buf.filled().len() > before {
            self.activity.bytes_arrived();
        }
        polled
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.activity.flushed.store(false, Ordering::Relaxed);
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.activity.wrote(polled.is_ready());
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.activity.flushed.store(false, Ordering::Relaxed);
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.activity.wrote(polled.is_ready());
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.activity.wrote(polled.is_ready());
        if polled.is_ready() {
            self.activity.flushed.store(true, Ordering::Relaxed);
        }
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The goodbye must not be forgotten.
        self.activity.flushed.store(false, Ordering::Relaxed);
        let this = &mut *self;
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
            if !this.activity.is_sending() {
                return Poll::Ready(Ok(()));
            }
        }
        let lingering = this
            .lingering
            .get_or_insert_with(|| Box::new(Lingering::new()));
        lingering.poll(&mut this.inner, cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn s30_a_client_that_does_not_read_is_noticed() {
        let (idle, activity) = (Duration::from_secs(300), Arc::new(Activity::new(false)));
        let (mut client, server) = tokio::io::duplex(4);
        let mut server = Guarded::new(server, Bytes::new(), Arc::clone(&activity));
        let request = activity.request(true);
        let kind = |activity: &Activity| activity.deadline(idle).1;
        server.write_all(b"full").await.unwrap();
        assert_eq!(kind(&activity), Silence::Idle);
        let mut writing = Box::pin(server.write_all(b"more"));
        assert!(futures::poll!(&mut writing).is_pending());
        assert_eq!(kind(&activity), Silence::Unread);
        assert!(Silence::Unread.ends_requests());
        client.read_exact(&mut [0; 4]).await.unwrap();
        writing.await.unwrap();
        assert_eq!(kind(&activity), Silence::Idle);
        activity.withdraw();
        assert_eq!(kind(&activity), Silence::Withdrawn);
        activity.withdrawal_done();
        assert_eq!(kind(&activity), Silence::Idle);
        drop(request);
    }

    #[tokio::test]
    async fn s30_http2_owes_its_first_request() {
        let (idle, activity) = (Duration::from_secs(300), Arc::new(Activity::new(true)));
        let left = |activity: &Activity| {
            let (at, kind) = activity.deadline(idle);
            (at.saturating_duration_since(Instant::now()), kind)
        };
        let (wait, kind) = left(&activity);
        let about = limits::HEAD + Duration::from_secs(1);
        assert!(wait <= about && kind == Silence::Head, "{wait:?}");
        drop(activity.request(true));
        activity.bytes_arrived();
        let (wait, kind) = left(&activity);
        assert!(wait > about && kind == Silence::Idle, "{wait:?}");
    }

    #[tokio::test]
    async fn s30_heads_and_idle_times_are_told_apart() {
        let idle = Duration::from_secs(300);
        let mut activity = Activity::new(false);
        // A connection that was opened a while ago.
        activity.epoch -= Duration::from_secs(100);
        let activity = Arc::new(activity);
        let (mut client, server) = tokio::io::duplex(64);
        let mut server = Guarded::new(server, Bytes::from_static(b"G"), Arc::clone(&activity));
        let about = |seconds: u64, (at, kind): (Instant, Silence)| {
            let left = at.saturating_duration_since(Instant::now()).as_secs();
            (left.abs_diff(seconds) <= 5, kind)
        };
        activity.rest();
        assert_eq!(about(200, activity.deadline(idle)), (true, Silence::Idle));
        server.read_u8().await.unwrap();
        assert_eq!(
            about(limits::HEAD.as_secs(), activity.deadline(idle)),
            (true, Silence::Head)
        );
        let request = activity.request(true);
        client.write_all(b"body").await.unwrap();
        server.read_u8().await.unwrap();
        assert_eq!(about(300, activity.deadline(idle)), (true, Silence::Idle));
        drop(request);
        assert_eq!(
            about(limits::REST.as_secs(), activity.deadline(idle)),
            (true, Silence::Rest)
        );
        activity.rest();
        assert_eq!(about(300, activity.deadline(idle)), (true, Silence::Idle));
        assert_eq!(activity.requests(), 1);
    }

    #[tokio::test]
    async fn a_connection_rests_only_when_nothing_of_a_request_is_left() {
        let idle = Duration::from_secs(300);
        let activity = Arc::new(Activity::new(false));
        let (mut client, server) = tokio::io::duplex(4);
        let mut server = Guarded::new(server, Bytes::new(), Arc::clone(&activity));
        let rests = || activity.deadline(idle).1 == Silence::Rest;
        assert!(rests(), "a spare one, too");
        let with_body = activity.request(false);
        assert!(!rests(), "a request runs");
        drop(with_body);
        assert!(!rests(), "its body may still be coming");
        let with_body = activity.request(false);
        with_body.request_is_read();
        drop(with_body);
        assert!(rests(), "all of it has come");
        drop(activity.request(true));
        assert!(rests());
        server.write_all(b"full").await.unwrap();
        assert!(!rests(), "written, not flushed");
        server.flush().await.unwrap();
        assert!(rests());
        client.write_all(b"G").await.unwrap();
        server.read_u8().await.unwrap();
        assert!(!rests(), "a head has begun");
        drop(activity.request(true));
        server.shutdown().await.unwrap();
        assert!(!rests(), "it is about to end");
    }

    #[tokio::test]
    async fn s32_what_is_still_being_sent_is_read_before_the_end() {
        let activity = Arc::new(Activity::new(false));
        let shut = |whole: bool| {
            let (client, server) = tokio::io::duplex(4);
            let mut server = Guarded::new(server, Bytes::new(), Arc::clone(&activity));
            drop(activity.request(whole));
            (client, async move { server.shutdown().await })
        };
        let (mut client, ending) = shut(false);
        let sending = async move {
            client.write_all(&[b'x'; 4096]).await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
        };
        let (ended, ()) = tokio::join!(ending, sending);
        ended.unwrap();

        // Nothing is waited for where all has been read.
        let (_client, ending) = shut(true);
        assert!(futures::poll!(std::pin::pin!(ending)).is_ready());
        // A head that was begun counts, too.
        let (_client, ending) = shut(true);
        activity.bytes_arrived();
        assert!(futures::poll!(std::pin::pin!(ending)).is_pending());
    }

    #[tokio::test(start_paused = true)]
    async fn s30_what_is_still_being_sent_is_read_for_a_while_only() {
        let activity = Arc::new(Activity::new(false));
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let mut server = Guarded::new(server, Bytes::new(), Arc::clone(&activity));
        drop(activity.request(false));
        let before = Instant::now();
        server.shutdown().await.unwrap();
        assert_eq!(before.elapsed().as_secs(), limits::LINGER.as_secs());

        server.lingering = None;
        let before = Instant::now();
        let sending = async { while client.write_all(&[b'x'; 4096]).await.is_ok() {} };
        tokio::select! {
            ended = server.shutdown() => ended.unwrap(),
            () = sending => {}
        }
        assert!(before.elapsed() < limits::LINGER, "there is a bound");
    }

    #[tokio::test]
    async fn bytes_put_back_come_first() {
        let (mut client, server) = tokio::io::duplex(64);
        let activity = Arc::new(Activity::new(false));
        let mut server = Guarded::new(server, Bytes::from_static(b"b"), activity);
        server.put_back(Bytes::from_static(b"a"));
        client.write_all(b"c").await.unwrap();
        let mut read = [0; 3];
        server.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"abc");
    }
}
