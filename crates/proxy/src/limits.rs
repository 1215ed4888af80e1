//! Every bound and deadline of the data plane that is no configuration key, in one table.

use std::time::Duration;

/// A TLS handshake, from the accepted connection to its end.
pub(crate) const TLS_HANDSHAKE: Duration = Duration::from_secs(10);

/// From the first byte of a request's head to its last (slow-loris), and the same for the preface
/// of HTTP/2. Between requests `timeout_idle` holds.
pub(crate) const HEAD: Duration = Duration::from_secs(15);

/// An HTTP/1.1 connection on which nothing is asked for so long gives its buffers back. Longer than
/// a page needs for what belongs to it: taking them again costs a request some microseconds.
pub(crate) const REST: Duration = Duration::from_secs(1);

/// How long a connection may take to end after an idle client was told to go.
pub(crate) const GOODBYE: Duration = Duration::from_secs(2);

/// How long a client that still sends what nobody needs is read from, so that it can read its answer.
pub(crate) const LINGER: Duration = Duration::from_secs(1);

/// How much of that is read.
pub(crate) const LINGER_BYTES: usize = 4 * 1024 * 1024;

/// How much of it at once.
pub(crate) const LINGER_READ: usize = 16 * 1024;

/// Bytes of a request's head: beyond, HTTP/1.1 answers 431 and HTTP/2 refuses the stream. Fields
/// are at most 100, hyper's own limit: a larger one costs an allocation for each request.
pub(crate) const HEAD_BYTES: usize = 128 * 1024;

/// What is read ahead from a client over HTTP/1.1, and what waits to be written to it: a head has to
/// fit. hyper's own bound is three times that, and slow clients are many.
pub(crate) const CLIENT_BUFFER: usize = HEAD_BYTES + 8 * 1024;

/// The same of an upstream.
pub(crate) const UPSTREAM_BUFFER: usize = 64 * 1024;

/// Connections of clients, over all cores; fewer where file descriptors allow for fewer.
pub(crate) const CLIENT_CONNECTIONS: usize = 50_000;

/// Requests at once on one HTTP/2 connection of a client.
pub(crate) const CLIENT_STREAMS: u32 = 250;

/// Streams that a client opened and reset before we looked at them (rapid reset).
pub(crate) const PENDING_RESETS: usize = 20;

/// Streams that we had to reset because of a client's errors, before its connection is closed.
pub(crate) const LOCAL_RESETS: usize = 100;

/// HTTP/2 flow control: a stream's window towards us.
pub(crate) const STREAM_WINDOW: u32 = 256 * 1024;

/// HTTP/2 flow control: a connection's window towards us.
pub(crate) const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Bytes that wait to be written on one HTTP/2 stream.
pub(crate) const SEND_BUFFER: usize = 256 * 1024;

/// HTTP/2: a PING to a silent client, so that dead ones do not hold requests for ever.
pub(crate) const CLIENT_PING: Duration = Duration::from_secs(60);

/// How long a client may take to answer it.
pub(crate) const CLIENT_PING_ANSWER: Duration = Duration::from_secs(20);

/// A proxy that starts waits so long for authorize before it says that it is ready.
pub(crate) const AUTHORIZE_FOUND: Duration = Duration::from_secs(5);

/// TCP and TLS to an upstream, together.
pub(crate) const UPSTREAM_CONNECT: Duration = Duration::from_secs(10);

/// An unused connection to an upstream.
pub(crate) const UPSTREAM_IDLE: Duration = Duration::from_secs(60);

/// Unused connections kept for one address of an upstream, per core.
pub(crate) const UPSTREAM_IDLE_CONNECTIONS: usize = 256;

/// Requests at once to one address of an upstream, per core; beyond: 503. Fewer where that would be
/// more than three quarters of all that may be under way: an application that hangs leaves room for
/// the others.
pub(crate) const fn upstream_requests(under_way: usize, cores: usize) -> usize {
    const MOST: usize = 4096;
    let share = under_way / 4 * 3 / if cores == 0 { 1 } else { cores };
    match share {
        0 => 1,
        1..MOST => share,
        _ => MOST,
    }
}

/// Requests at once on one HTTP/2 connection to an upstream.
pub(crate) const UPSTREAM_STREAMS: usize = 100;

/// Endpoints tried for one request, when connecting fails or a kept connection turns out dead.
pub(crate) const UPSTREAM_TRIES: usize = 3;

/// An address that could not be connected to is passed over for this long while others exist.
pub(crate) const UPSTREAM_PAUSE: Duration = Duration::from_secs(5);

/// How long a request waits for the first resolution of an upstream's name.
pub(crate) const UPSTREAM_RESOLVE: Duration = Duration::from_secs(5);

/// Requests of a core that wait for a decision; the next one gets 503. As many as wait where no
/// replica of authorize is ready.
pub(crate) const UNDECIDED: usize = 1_000;

/// The same while the queue does not go away by itself: enough to keep authorize busy.
pub(crate) const UNDECIDED_LATE: usize = 256;

/// A queue stands when each decision of a window waited longer than this. A decision takes a
/// millisecond; one that is not there by now has been asked at a second replica too.
pub(crate) const DELAY: Duration = Duration::from_millis(300);

/// The window. A burst, such as after a restart, is over by then.
pub(crate) const DELAY_WINDOW: Duration = Duration::from_secs(1);

/// How long an open request may go on when authorize was asked again and cannot answer.
pub(crate) const MAX_UNVERIFIED: Duration = Duration::from_secs(30);

/// Open requests asked about again, per second and core.
pub(crate) const REVISITS_PER_SECOND: u32 = 500;

/// How often open requests are looked over for decisions that have run out.
pub(crate) const SWEEP: Duration = Duration::from_millis(250);

/// How long another proxy may take to open a tunnel, where the route sets no `timeout`.
pub(crate) const TUNNEL_ANSWER: Duration = Duration::from_secs(30);

/// How long an answer that has reached a limit may take to say so itself, which it does not while
/// its client leaves it no room.
pub(crate) const LIMIT_SAID: Duration = Duration::from_secs(1);

/// How long a WebSocket or tunnel may take to end after it was told to.
pub(crate) const TUNNEL_CLOSE: Duration = Duration::from_secs(2);

/// A form sent to one of our own endpoints.
pub(crate) const FORM_BYTES: usize = 64 * 1024;

/// Reading that form.
pub(crate) const FORM_TIME: Duration = Duration::from_secs(10);

/// A call to the databroker for one of our own pages.
pub(crate) const DATABROKER_CALL: Duration = Duration::from_secs(5);

/// An authenticate that says nothing for so long is passed over where there is another.
pub(crate) const AUTHENTICATE_TRIAL: Duration = Duration::from_millis(500);

/// One that is asked so often in a row whether it is there, and is not, does not answer what it has
/// been sent either.
pub(crate) const AUTHENTICATE_TRIALS: u32 = 5;

/// What is read of its answer to that.
pub(crate) const TRIAL_BYTES: usize = 64 * 1024;

/// Authenticate, called in this process.
pub(crate) const AUTHENTICATE_CALL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s30_one_upstream_never_takes_all_that_may_be_under_way() {
        for cores in [1, 2, 8, 13, 64, 128] {
            for under_way in [150, 465, CLIENT_CONNECTIONS] {
                let all = upstream_requests(under_way, cores) * cores;
                assert!(
                    all * 4 <= (under_way * 3).max(cores * 4),
                    "{cores} {under_way}"
                );
            }
        }
        assert_eq!(upstream_requests(CLIENT_CONNECTIONS, 2), 4096);
        assert_eq!(upstream_requests(0, 0), 1);
    }
}
