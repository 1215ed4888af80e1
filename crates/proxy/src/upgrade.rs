//! Connections that become something else: WebSocket and other upgrades, and tunnels.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;

use base64::Engine as _;
use http::header::{CONNECTION, HeaderName, ORIGIN, UPGRADE};
use http::response::Parts;
use http::{Extensions, HeaderMap, HeaderValue, Request, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use postern_common::config::{Route, SameSite};
use postern_common::lifecycle::Phase;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use crate::alarm::Alarm;
use crate::body::Life;
use crate::core::Core;
use crate::forward::exchange::Timeouts;
use crate::limits;
use crate::open::{Closed, Open};
use crate::refuse::Stop;
use crate::request::{Request as ReadRequest, Upgrade};
use crate::websocket::{self, Frames};

const SEC_WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const SEC_WEBSOCKET_ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// Bytes read at once in one direction of a tunnel.
const CHUNK: usize = 16 * 1024;

/// 403 before authorize is asked, when the route does not allow this upgrade.
pub(crate) fn check(
    request: &ReadRequest,
    route: &Route,
    origins: Origins,
    headers: &HeaderMap,
) -> Result<(), Stop> {
    let Some(upgrade) = &request.upgrade else {
        return Ok(());
    };
    if origins == Origins::Own && !is_own_origin(headers, request.target.authority.text()) {
        let text = "Another site may not open this connection (cookie_same_site is none).";
        return Err(Stop::new(StatusCode::FORBIDDEN, "upgrade_cross_site", text).grpc(7));
    }
    let token = upgrade.token.to_str().unwrap_or_default().trim();
    let allowed = route
        .upstream()
        .is_some_and(|target| target.upgrades.allows(token));
    // By extended CONNECT only WebSocket is translated.
    if allowed && (!upgrade.extended || token.eq_ignore_ascii_case("websocket")) {
        return Ok(());
    }
    Err(refused())
}

/// 403: nothing here takes the connection over.
pub(crate) fn refused() -> Stop {
    let text = "This address does not allow the connection to be upgraded.";
    Stop::new(StatusCode::FORBIDDEN, "upgrade_failed", text).grpc(7)
}

/// Whose pages may upgrade connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origins {
    /// The cookie's `SameSite` keeps others away.
    Any,
    /// With `cookie_same_site: none` browsers send the cookie along from every site, and CORS does
    /// not cover WebSockets.
    Own,
}

impl Origins {
    pub(crate) fn under(same_site: SameSite) -> Self {
        match same_site {
            SameSite::None => Self::Own,
            SameSite::Lax | SameSite::Strict => Self::Any,
        }
    }
}

/// Programs send no origin, browsers always do.
fn is_own_origin(headers: &HeaderMap, host: &str) -> bool {
    let Some(origin) = headers.get(ORIGIN) else {
        return true;
    };
    let origin = origin.to_str().unwrap_or_default();
    origin
        .strip_prefix("https://")
        .is_some_and(|origin| origin.eq_ignore_ascii_case(host))
}

/// The client's side of an upgrade that may come.
pub(crate) fn of_client(extensions: &mut Extensions) -> OnUpgrade {
    let mut carrier = Request::new(());
    std::mem::swap(carrier.extensions_mut(), extensions);
    let upgrade = hyper::upgrade::on(&mut carrier);
    std::mem::swap(carrier.extensions_mut(), extensions);
    upgrade
}

/// For CONNECT that comes to nothing: hyper lets go of the connection all the same, and it has to be
/// closed like any other.
pub(crate) fn decline(core: &Core, client: OnUpgrade) {
    core.tasks.spawn_local(async move {
        if let Ok(client) = client.await {
            let mut client = TokioIo::new(client);
            // Whether the client heard of it changes nothing.
            let _ = timeout(limits::GOODBYE, client.shutdown()).await;
        }
    });
}

/// A WebSocket by extended CONNECT has no key; over HTTP/1.1 the upstream needs one.
pub(crate) fn add_websocket_key(headers: &mut HeaderMap) {
    let key = postern_common::crypto::random::bytes::<16>();
    let key = base64::engine::general_purpose::STANDARD.encode(key);
    if let Ok(key) = HeaderValue::try_from(key) {
        headers.insert(SEC_WEBSOCKET_KEY, key);
    }
}

/// RFC 8441: the answer that corresponds to 101.
pub(crate) fn answer_extended(parts: &mut Parts) {
    parts.status = StatusCode::OK;
    for name in [CONNECTION, UPGRADE, SEC_WEBSOCKET_ACCEPT] {
        parts.headers.remove(name);
    }
}

/// Two ends that will be joined when both are ready.
#[derive(Debug)]
pub(crate) struct Tunnel {
    client: OnUpgrade,
    upstream: Upstream,
    websocket: bool,
    open: Open,
    timeouts: Timeouts,
}

#[derive(Debug)]
enum Upstream {
    Upgrade(OnUpgrade),
    Tcp(TcpStream),
}

/// For an upgrade, or a CONNECT, that the upstream accepted.
pub(crate) fn between(
    client: OnUpgrade,
    upstream: OnUpgrade,
    upgrade: Option<&Upgrade>,
    open: Open,
    timeouts: Timeouts,
) -> Tunnel {
    let websocket = upgrade.is_some_and(|upgrade| {
        let token = upgrade.token.as_bytes().trim_ascii();
        token.eq_ignore_ascii_case(b"websocket")
    });
    Tunnel {
        client,
        upstream: Upstream::Upgrade(upstream),
        websocket,
        open,
        timeouts,
    }
}

/// For CONNECT to an upstream that takes the bytes as they are.
pub(crate) fn to_tcp(
    client: OnUpgrade,
    upstream: TcpStream,
    open: Open,
    timeouts: Timeouts,
) -> Tunnel {
    Tunnel {
        client,
        upstream: Upstream::Tcp(upstream),
        websocket: false,
        open,
        timeouts,
    }
}

impl Tunnel {
    /// Joins the ends and keeps them joined until one closes, or until it has to end. `life` ends
    /// with it, so the log tells how long it was and what it carried.
    pub(crate) fn spawn(self, core: &Rc<Core>, mut life: Life) {
        let (core, tasks) = (Rc::clone(core), core.tasks.clone());
        tasks.spawn_local(async move {
            let Self {
                client,
                upstream,
                websocket,
                open,
                timeouts,
            } = self;
            let client = match client.await {
                Ok(client) => TokioIo::new(client),
                Err(error) => return life.record.cut("upgrade_failed", &error),
            };
            let joined = match upstream {
                Upstream::Tcp(stream) => {
                    join(
                        client, stream, websocket, &open, &timeouts, &core, &mut life,
                    )
                    .await
                }
                Upstream::Upgrade(upgrade) => match upgrade.await {
                    Ok(stream) => {
                        let stream = TokioIo::new(stream);
                        join(
                            client, stream, websocket, &open, &timeouts, &core, &mut life,
                        )
                        .await
                    }
                    Err(error) => return life.record.cut("upgrade_failed", &error),
                },
            };
            match (joined, open.entry().closed()) {
                (_, Some(why)) => life.record.ended(why.as_str()),
                (Ok(()), None) => life.record.complete(),
                (Err(cut), None) => life.record.cut(cut.details, &cut.error),
            }
        });
    }
}

/// Why a tunnel ended before both ends had said all.
struct Cut {
    /// `response-code-details` of the access log.
    details: &'static str,
    error: io::Error,
}

impl Cut {
    fn client(error: io::Error) -> Self {
        let details = "downstream_remote_disconnect";
        Self { details, error }
    }

    fn upstream(error: io::Error) -> Self {
        let details = "upstream_reset_after_response_started";
        Self { details, error }
    }
}

/// How one way of a tunnel ended. An end that cannot be read any more has vanished: that ends the other
/// way too. One that takes nothing (`Ok` with what went wrong) may have said something before.
type Way = Result<Option<Cut>, Cut>;

async fn pass(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

async fn shut(to: &mut (impl AsyncWrite + Unpin), cut: fn(io::Error) -> Cut) -> Way {
    Ok(to.shutdown().await.err().map(cut))
}

/// Copies both ways. An end that has said all may still be told something; that one vanished is not
/// told to the other one as a good end.
async fn join<C, U>(
    client: C,
    upstream: U,
    websocket: bool,
    open: &Open,
    timeouts: &Timeouts,
    core: &Core,
    life: &mut Life,
) -> Result<(), Cut>
where
    C: AsyncRead + AsyncWrite,
    U: AsyncRead + AsyncWrite,
{
    let (mut client_read, mut client_write) = tokio::io::split(client);
    let (mut upstream_read, mut upstream_write) = tokio::io::split(upstream);
    let started = Instant::now();
    let last = Cell::new(started);
    let up = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            let n = tokio::select! {
                biased;
                why = wait_closed(open) => {
                    if why == Closed::Draining {
                        // The client answers our close frame.
                        client_read.read(&mut buffer).await.map_err(Cut::client)?
                    } else {
                        return shut(&mut upstream_write, Cut::upstream).await;
                    }
                }
                n = client_read.read(&mut buffer) => n.map_err(Cut::client)?,
            };
            last.set(Instant::now());
            let Some(bytes) = buffer.get(..n).filter(|bytes| !bytes.is_empty()) else {
                return shut(&mut upstream_write, Cut::upstream).await;
            };
            if let Err(error) = pass(&mut upstream_write, bytes).await {
                return Ok(Some(Cut::upstream(error)));
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; CHUNK];
        let mut frames = Frames::default();
        let mut ending: Option<Closed> = None;
        loop {
            if let Some(why) = ending
                && (!websocket || frames.at_boundary())
            {
                if websocket {
                    let code = match why {
                        Closed::Draining => websocket::GOING_AWAY,
                        _ => websocket::POLICY_VIOLATION,
                    };
                    let frame = websocket::close_frame(code, why.as_str());
                    if let Err(error) = pass(&mut client_write, &frame).await {
                        return Ok(Some(Cut::client(error)));
                    }
                }
                return shut(&mut client_write, Cut::client).await;
            }
            let n = tokio::select! {
                biased;
                why = wait_closed(open), if ending.is_none() => {
                    ending = Some(why);
                    continue;
                }
                n = upstream_read.read(&mut buffer) => n.map_err(Cut::upstream)?,
            };
            last.set(Instant::now());
            let Some(bytes) = buffer.get(..n).filter(|bytes| !bytes.is_empty()) else {
                return shut(&mut client_write, Cut::client).await;
            };
            if let Err(error) = pass(&mut client_write, bytes).await {
                return Ok(Some(Cut::client(error)));
            }
            frames.pass(bytes);
            life.record.sent(n);
        }
    };
    let both = async {
        let (up, down) = tokio::try_join!(up, down)?;
        up.or(down).map_or(Ok(()), Err)
    };
    // A side that has nothing more to say must not hold the other for ever once it has to end.
    let must_end = async {
        let mut phase = core.phase.clone();
        tokio::select! {
            _ = wait_closed(open) => {}
            _ = phase.wait_for(|phase| *phase >= Phase::IdleClosed) => {
                open.entry().close(Closed::Draining);
            }
        }
        sleep_until(Instant::now() + limits::TUNNEL_CLOSE).await;
    };
    tokio::select! {
        biased;
        ended = both => ended,
        () = must_end => Ok(()),
        () = silent(timeouts, started, &last) => {
            let text = "timeout or idle_timeout of the route";
            Err(Cut::upstream(io::Error::new(io::ErrorKind::TimedOut, text)))
        }
    }
}

/// Ends when the tunnel has reached a limit of its route.
async fn silent(timeouts: &Timeouts, started: Instant, last: &Cell<Instant>) {
    let mut alarm = Alarm::default();
    poll_fn(|cx| {
        let idle = timeouts.idle.map(|idle| last.get() + idle);
        let total = timeouts.total.map(|total| started + total);
        match idle.into_iter().chain(total).min() {
            None => Poll::Pending,
            Some(at) => alarm.poll(cx, at),
        }
    })
    .await;
}

async fn wait_closed(open: &Open) -> Closed {
    poll_fn(|cx| open.poll_closed(cx)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_sites_may_not_open_sockets_when_cookies_go_everywhere() {
        assert_eq!(Origins::under(SameSite::Lax), Origins::Any);
        assert_eq!(Origins::under(SameSite::None), Origins::Own);
        let own = |origin: Option<&str>| {
            let headers = origin.map(|origin| (ORIGIN, origin.parse().unwrap()));
            is_own_origin(&headers.into_iter().collect(), "a.test:8443")
        };
        assert!(own(None));
        assert!(own(Some("https://A.test:8443")));
        for other in [
            "https://evil.test",
            "https://a.test",
            "http://a.test:8443",
            "null",
        ] {
            assert!(!own(Some(other)), "{other}");
        }
    }
}
