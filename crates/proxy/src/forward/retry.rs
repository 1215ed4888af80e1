//! Which endpoint takes a request, and what happens when it can't.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderValue, Method, StatusCode};
use postern_common::authz::SessionSummary;
use std::time::Duration;
use tokio::time::{sleep, timeout};

use super::failures::unavailable;
use crate::limits;
use crate::metrics::RouteMetrics;
use crate::refuse::Stop;
use crate::upstream::balance::Candidate;
use crate::upstream::connect::Needs;
use crate::upstream::pool::{Lease, Pool};
use crate::upstream::{Addresses, Cluster, Endpoint, Member, UpstreamError};

/// What becomes of a request whose authenticate hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Silence {
    /// Another one may take it.
    Elsewhere,
    /// Nobody else can, or may: it may have been done.
    Lost,
}

/// The tries of one request.
pub(crate) struct Tries<'a> {
    cluster: &'a Cluster,
    pool: &'a Pool,
    /// Keeps a session's requests together under the hashing policies.
    key: Option<u64>,
    failed: Vec<(u64, SocketAddr)>,
    count: usize,
    ask_first: bool,
    /// Who was leased last.
    asked: Option<(&'a Member, SocketAddr)>,
}

impl<'a> Tries<'a> {
    pub(crate) fn new(
        cluster: &'a Cluster,
        pool: &'a Pool,
        session: Option<&SessionSummary>,
    ) -> Self {
        let key = session.map(|session| {
            session
                .session_id
                .bytes()
                .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                    (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
                })
        });
        Self {
            cluster,
            pool,
            key,
            failed: Vec::new(),
            count: 0,
            ask_first: false,
            asked: None,
        }
    }

    /// Where there is a choice, a connection is tried before it carries the request. A process that
    /// hangs still accepts connections, and what it has been sent cannot be sent to another one
    /// without its being done twice, perhaps.
    pub(crate) fn asking_first(mut self) -> Self {
        self.ask_first = true;
        self
    }

    pub(crate) fn left(&self) -> bool {
        self.count < limits::UPSTREAM_TRIES
    }

    /// A kept connection turned out dead, or the request could not be written.
    pub(crate) fn again(&self, metrics: Option<&RouteMetrics>, error: &hyper::Error) {
        if let Some(metrics) = metrics {
            metrics.retry.inc();
        }
        tracing::debug!(cluster = &*self.cluster.name, %error, "a request is sent once more");
    }

    /// A connection to one of the endpoints. Where connecting fails nothing has been sent, so
    /// another address may be tried for every kind of request.
    pub(crate) async fn lease(
        &mut self,
        needs: Needs,
        metrics: Option<&RouteMetrics>,
    ) -> Result<(&'a Member, Lease), Stop> {
        loop {
            self.count += 1;
            let (member, address) = self.pick().await?;
            let endpoint = &member.endpoint;
            if self.pool.is_full(endpoint.id, address) {
                if let Some(metrics) = metrics {
                    metrics.overflow.inc();
                }
                return Err(overflow());
            }
            let ask = self.ask_first && self.has_another(endpoint.id, address);
            let leased = if ask {
                self.lease_that_answers(member, address, needs).await
            } else {
                self.pool.lease(endpoint, address, needs).await
            };
            match leased {
                Ok(lease) => {
                    self.asked = Some((member, address));
                    return Ok((member, lease));
                }
                Err(error) => {
                    if let Some(metrics) = metrics {
                        metrics.connect_fail.inc();
                    }
                    self.failed.push((endpoint.id, address));
                    let last = !self.left() || matches!(error, UpstreamError::Protocol { .. });
                    let reason = postern_common::telemetry::log::chain(&error);
                    if last {
                        return Err(failed(&error, reason));
                    }
                    tracing::debug!(reason, "an upstream's endpoint is passed over");
                }
            }
        }
    }

    /// Returns once nobody is there any more who could answer the request, and says what may become
    /// of it.
    pub(crate) async fn silence(&self, needs: Needs, may_repeat: bool) -> Silence {
        let Some((member, address)) = self.asked else {
            return std::future::pending().await;
        };
        let mut in_vain = 0;
        while in_vain < limits::AUTHENTICATE_TRIALS {
            sleep(limits::AUTHENTICATE_TRIAL).await;
            match self.lease_that_answers(member, address, needs).await {
                Ok(lease) => {
                    in_vain = 0;
                    lease.complete();
                }
                Err(_)
                    if may_repeat
                        && self.left()
                        && self.has_another(member.endpoint.id, address) =>
                {
                    return Silence::Elsewhere;
                }
                Err(_) => in_vain += 1,
            }
        }
        Silence::Lost
    }

    async fn lease_that_answers(
        &self,
        member: &Member,
        address: SocketAddr,
        needs: Needs,
    ) -> Result<Lease, UpstreamError> {
        let endpoint = &member.endpoint;
        let silent = || UpstreamError::Silent {
            name: endpoint.name.clone(),
            address,
        };
        let leasing = async {
            let mut lease = self.pool.lease(endpoint, address, needs).await?;
            let answers = lease.answers(&member.authority).await;
            answers.then_some(lease).ok_or_else(silent)
        };
        let leased = timeout(limits::AUTHENTICATE_TRIAL, leasing).await;
        let leased = leased.unwrap_or_else(|_| Err(silent()));
        if leased.is_err() {
            self.pool.connected(endpoint.id, address, false);
        }
        leased
    }

    /// An address of an endpoint, for a connection that is no lease.
    pub(crate) async fn pick(&self) -> Result<(&'a Member, SocketAddr), Stop> {
        let only = match self.cluster.members.as_slice() {
            [member] => match &*member.endpoint.addresses.borrow() {
                Addresses::Known(addresses) => match **addresses {
                    [address] => Some((member, address)),
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        };
        if let Some(only) = only {
            return Ok(only);
        }
        self.resolved().await?;
        let all = self.candidates();
        let fresh: Vec<_> = all
            .iter()
            .copied()
            .filter(|c| !self.is_avoided(c))
            .collect();
        let candidates = if fresh.is_empty() { &all } else { &fresh };
        let dice = u64::from_ne_bytes(postern_common::crypto::random::bytes());
        self.cluster
            .choice
            .pick(candidates, self.key, dice)
            .and_then(|chosen| Some((self.cluster.members.get(chosen.member)?, chosen.address)))
            .ok_or_else(|| unavailable("no endpoint has an address"))
    }

    fn candidates(&self) -> Vec<Candidate> {
        let mut all = Vec::new();
        for (index, member) in self.cluster.members.iter().enumerate() {
            if let Addresses::Known(addresses) = &*member.endpoint.addresses.borrow() {
                all.extend(addresses.iter().map(|address| Candidate {
                    member: index,
                    address: *address,
                    weight: member.weight,
                    load: self.pool.load(member.endpoint.id, *address),
                }));
            }
        }
        all
    }

    /// Whether another address could take the request.
    fn has_another(&self, id: u64, address: SocketAddr) -> bool {
        self.candidates().iter().any(|candidate| {
            let member = self.cluster.members.get(candidate.member);
            let is_this =
                member.is_some_and(|it| it.endpoint.id == id) && candidate.address == address;
            !(is_this || self.is_avoided(candidate))
        })
    }

    fn is_avoided(&self, candidate: &Candidate) -> bool {
        let Some(member) = self.cluster.members.get(candidate.member) else {
            return true;
        };
        let id = member.endpoint.id;
        self.failed.contains(&(id, candidate.address)) || self.pool.is_paused(id, candidate.address)
    }

    /// Waits until at least one endpoint has addresses, or all have failed to get any.
    async fn resolved(&self) -> Result<(), Stop> {
        let known =
            |endpoint: &Endpoint| matches!(&*endpoint.addresses.borrow(), Addresses::Known(_));
        let members = &self.cluster.members;
        if members.iter().any(|member| known(&member.endpoint)) {
            return Ok(());
        }
        let first_answers = members.iter().map(|member| async move {
            let mut addresses = member.endpoint.addresses.clone();
            let answered = |a: &Addresses| !matches!(a, Addresses::Resolving);
            addresses
                .wait_for(answered)
                .await
                .map(|answer| answer.clone())
        });
        let all = futures::future::join_all(first_answers);
        let answers = timeout(limits::UPSTREAM_RESOLVE, all)
            .await
            .unwrap_or_default();
        if members.iter().any(|member| known(&member.endpoint)) {
            return Ok(());
        }
        let reason: Vec<Arc<str>> = answers
            .into_iter()
            .flatten()
            .filter_map(|answer| match answer {
                Addresses::Failed(reason) => Some(reason),
                Addresses::Resolving | Addresses::Known(_) => None,
            })
            .collect();
        Err(unavailable(if reason.is_empty() {
            "the upstream's name has not been resolved in time".to_owned()
        } else {
            format!(
                "the upstream's name cannot be resolved: {}",
                reason.join("; ")
            )
        }))
    }
}

fn overflow() -> Stop {
    let text = "The application behind this address has too many requests at once.";
    Stop::new(StatusCode::SERVICE_UNAVAILABLE, "overflow", text).grpc(14)
}

fn failed(error: &UpstreamError, reason: String) -> Stop {
    if let UpstreamError::Protocol { reason: why, .. } = error {
        return Stop::new(StatusCode::BAD_GATEWAY, "upstream_protocol_error", *why)
            .grpc(13)
            .because(reason);
    }
    let details = match error {
        UpstreamError::Tls { .. } => "upstream_tls_failure",
        _ => "upstream_connect_failure",
    };
    let mut stop = unavailable(reason.clone());
    stop.details = details;
    stop.with(|public| public.shown_details = Some(reason))
}

/// RFC 9110 9.2.2: sending it twice does what sending it once does.
pub(crate) fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

/// gRPC's `grpc-timeout`: up to eight digits and a unit.
pub(crate) fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c46_deadlines_of_grpc() {
        let read = |text: &str| grpc_timeout(&text.parse().unwrap());
        assert_eq!(read("100m"), Some(Duration::from_millis(100)));
        assert_eq!(read("2S"), Some(Duration::from_secs(2)));
        assert_eq!(read("1H"), Some(Duration::from_secs(3600)));
        for bad in ["", "m", "1", "x1m", "123456789S", "1d", "-1S"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn s33_which_requests_may_be_repeated() {
        assert!(is_idempotent(&Method::GET));
        assert!(!is_idempotent(&Method::POST));
        assert!(!is_idempotent(&Method::PATCH));
    }
}
