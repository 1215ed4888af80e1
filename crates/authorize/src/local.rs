//! Decides in this process: credential, facts, decision, answer.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use jiff::Timestamp;
use postern_common::authz::{
    Allow, AuthorizeError, Authorizer, CheckRequest, CheckSubject, ConsumedCredentials, Decision,
    Revisit, SessionSummary,
};
use postern_common::config::{Config, IssuerFormat, RouteChecksum, RouteId};
use postern_common::telemetry::RateLimit;
use postern_common::telemetry::trace::{self, Kind, Span, Value};
use postern_identity::HttpClient;
use tokio::sync::broadcast;

use crate::answer;
use crate::assertion::{self, Assertion, Assertions, Audience};
use crate::bearer::{Bearers, Reading};
use crate::credential::{self, Credential, Expected};
use crate::decide::{self, Denial, Outcome, Ruling};
use crate::facts::{Facts, Person, Visitor};
use crate::gather::{self, Gather};
use crate::headers::{self, Changes, Sources};
use crate::log::{self, Record};
use crate::metrics::{Metrics, milliseconds};
use crate::replica::{LookupError, Replica};
use crate::snapshot::{LoadedRoute, Snapshot};

/// For how long questions about a route of the configuration before are still answered: proxies
/// load theirs at their own time.
const PREVIOUS_COUNTS: Duration = Duration::from_secs(60);

/// Headers for an upstream, in bytes, that are worth a line in the log.
const LARGE_HEADERS: usize = 6 * 1024;

/// Own endpoints that hand the assertion, or what stands in it, to the person.
const NEED_ASSERTION: [&str; 3] = [decide::USER_PAGE, "/.pomerium/jwt", "/.pomerium/user"];

/// The decision point. Implements [`Authorizer`] by function calls.
#[derive(Debug)]
pub struct Local {
    replica: Arc<Replica>,
    loaded: ArcSwap<Loaded>,
    generation: AtomicU64,
    assertions: Assertions,
    bearers: Bearers,
    /// Routes whose large headers were told of.
    told: RateLimit,
    metrics: Metrics,
}

/// The configuration in use, and the one before.
#[derive(Debug)]
struct Loaded {
    current: Arc<Snapshot>,
    previous: Option<(Arc<Snapshot>, Instant)>,
}

/// Which route a question is about.
enum Subject {
    Route(Arc<LoadedRoute>),
    /// Only the configuration before has this route: both have to allow.
    Outdated {
        previous: Arc<Snapshot>,
        route: Arc<LoadedRoute>,
    },
    OwnEndpoint,
}

impl Local {
    pub fn new(
        config: &Arc<Config>,
        replica: Arc<Replica>,
        http: HttpClient,
        metrics: Metrics,
    ) -> Self {
        let current = Arc::new(Snapshot::new(Arc::clone(config), 0));
        replica.look_up(current.looked_up.clone());
        Self {
            bearers: Bearers::new(Arc::clone(&replica), http, config, metrics.clone()),
            replica,
            loaded: ArcSwap::from_pointee(Loaded {
                current,
                previous: None,
            }),
            generation: AtomicU64::new(0),
            assertions: Assertions::default(),
            told: RateLimit::new(Duration::from_secs(60)),
            metrics,
        }
    }

    /// Decides by `config` from now on, and has everything that is open asked about again.
    pub fn load(&self, config: &Arc<Config>) -> Arc<Snapshot> {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let current = Arc::new(Snapshot::new(Arc::clone(config), generation));
        self.bearers.load(config);
        let before = Arc::clone(&self.loaded.load().current);
        let looked_up = before.looked_up.union(&current.looked_up).cloned();
        self.replica.look_up(looked_up.collect());
        self.loaded.store(Arc::new(Loaded {
            current: Arc::clone(&current),
            previous: Some((before, Instant::now())),
        }));
        self.replica.announce(Revisit::Everything);
        current
    }

    /// The configuration in use.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.loaded.load().current)
    }

    pub fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    /// As [`Authorizer::revisits`].
    pub fn revisits_now(&self) -> broadcast::Receiver<Revisit> {
        self.replica.revisits()
    }

    /// Decides. Waits only when the copy does not have what the credential names.
    pub async fn decide(&self, request: &CheckRequest) -> Result<Decision, AuthorizeError> {
        let begun = Instant::now();
        let now = Timestamp::now();
        let within = self.loaded.load().current.config.grpc.client_timeout;
        let mut span = Span::under(request.trace, Kind::Server, "decide");
        let answer = pin!(tokio::time::timeout(within, self.answer(request, now)));
        let decided = match trace::within(span.kept(), answer).await {
            Ok(decided) => decided,
            Err(_) => Err(AuthorizeError::DataUnavailable {
                reason: format!("the databroker did not answer within {within:?}"),
            }),
        };
        self.metrics.evaluations.inc();
        self.metrics
            .evaluation_duration
            .observe(milliseconds(begun.elapsed()));
        match &decided {
            Ok(Decision::Allow(_)) => self.metrics.allowals.inc(),
            Ok(Decision::Deny(_)) => self.metrics.denials.inc(),
            Err(error) => {
                self.metrics.errors.inc();
                log::undecided(request, error);
                0
            }
        };
        if span.is_open() {
            describe(&mut span, request, &decided);
        }
        decided
    }

    async fn answer(
        &self,
        request: &CheckRequest,
        now: Timestamp,
    ) -> Result<Decision, AuthorizeError> {
        let loaded = self.loaded.load_full();
        let current = &loaded.current;
        match loaded.subject(&request.subject)? {
            Subject::OwnEndpoint => self.own_endpoint(request, current, now).await,
            Subject::Route(route) => self.route(request, current, &route, now).await,
            Subject::Outdated { previous, route } => {
                // Decided like the newest configuration would, and like the proxy believes.
                let newest = if let Some(newest) = current.find(request) {
                    self.route(request, current, newest, now).await?
                } else {
                    let (facts, ruling) = (Facts::default(), Ruling::deny(Denial::RouteNotFound));
                    denied(request, current, Some(&route), &facts, &ruling, now)
                };
                match newest {
                    Decision::Allow(_) => self.route(request, &previous, &route, now).await,
                    Decision::Deny(deny) => Ok(Decision::Deny(deny)),
                }
            }
        }
    }

    async fn route(
        &self,
        request: &CheckRequest,
        snapshot: &Snapshot,
        route: &LoadedRoute,
        now: Timestamp,
    ) -> Result<Decision, AuthorizeError> {
        // Before anything is read: what is read after it is not older.
        let age = self.replica.age();
        let left = time_left(age, route.route.max_data_age)?;
        let provider_ids: Vec<&str> = route.provider_id.as_deref().into_iter().collect();
        let credential = credential_of(request, snapshot, &provider_ids, route.tokens());
        let consumed = ConsumedCredentials {
            bearer: matches!(credential, Credential::Bearer(_)),
        };
        let facts = self
            .facts(request, snapshot, Some(route), credential, now)
            .await
            .map_err(|error| unavailable(&error))?;
        let evaluating = Span::under(trace::current(), Kind::Internal, "policy");
        let mut ruling = decide::decide(request, &route.route, &facts, now);
        drop(evaluating);
        // Requests that stay open are asked about again before the data is too old for them.
        let limits = [
            ruling.valid_until,
            left.and_then(|left| now.checked_add(left).ok()),
        ];
        ruling.valid_until = limits.into_iter().flatten().min();
        if ruling.outcome != Outcome::Allow {
            return Ok(denied(request, snapshot, Some(route), &facts, &ruling, now));
        }
        let begun = Instant::now();
        let person = facts.visitor.person();
        let assertion = if route.needs_assertion {
            Some(self.assertion(request, snapshot, Some(route), person, now)?)
        } else {
            None
        };
        let changes = headers::for_upstream(
            &route.route,
            &Sources {
                request,
                person,
                assertion: assertion.as_deref(),
                certificate: facts.certificate.presented(),
                own_names: &snapshot.own_names,
                consumed,
            },
        );
        self.tell_of_large_headers(&changes, route);
        self.metrics.header_evaluations.inc();
        self.metrics
            .header_evaluation_duration
            .observe(milliseconds(begun.elapsed()));
        let removed_groups = assertion.map_or(0, |assertion| assertion.removed_groups);
        log::decided(&Record {
            request,
            snapshot,
            route: Some(&route.route),
            facts: &facts,
            ruling: &ruling,
            removed_groups,
        });
        Ok(allow(changes, person, &ruling, consumed))
    }

    /// Many servers refuse more than 8 KiB of headers. Operators should know before people ask.
    fn tell_of_large_headers(&self, changes: &Changes, route: &LoadedRoute) {
        let bytes = changes.bytes();
        if bytes < LARGE_HEADERS {
            return;
        }
        let name = route.route.name.clone();
        if let Some(held_back) = self.told.pass(&name, Instant::now()) {
            tracing::warn!(
                route = name,
                bytes,
                held_back,
                "the headers added for this route's upstream are large; jwt_groups_filter makes them smaller"
            );
        }
        let labels = vec![("route", name)];
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.metrics.large_headers.get_or_create(&labels).set(bytes);
    }

    async fn own_endpoint(
        &self,
        request: &CheckRequest,
        snapshot: &Snapshot,
        now: Timestamp,
    ) -> Result<Decision, AuthorizeError> {
        let facts = if decide::reads_session(&request.path) {
            let provider_ids: Vec<&str> =
                snapshot.provider_ids().iter().map(AsRef::as_ref).collect();
            let credential = credential_of(request, snapshot, &provider_ids, snapshot.tokens());
            self.facts(request, snapshot, None, credential, now)
                .await
                .map_err(|error| unavailable(&error))?
        } else {
            // Nothing about it depends on who asks, so it works while sessions can't be read.
            Facts::default()
        };
        let ruling = decide::decide_own_endpoint(request, &facts);
        if ruling.outcome != Outcome::Allow {
            return Ok(denied(request, snapshot, None, &facts, &ruling, now));
        }
        log::decided(&Record {
            request,
            snapshot,
            route: None,
            facts: &facts,
            ruling: &ruling,
            removed_groups: 0,
        });
        let person = facts.visitor.person();
        let mut changes = Changes::default();
        if person.is_some() && NEED_ASSERTION.contains(&&*request.path) {
            let assertion = self.assertion(request, snapshot, None, person, now)?;
            changes
                .set
                .push((assertion::ASSERTION_HEADER, assertion.token.clone()));
        }
        Ok(allow(
            changes,
            person,
            &ruling,
            ConsumedCredentials::default(),
        ))
    }

    async fn facts(
        &self,
        request: &CheckRequest,
        snapshot: &Snapshot,
        route: Option<&LoadedRoute>,
        credential: Credential,
        now: Timestamp,
    ) -> Result<Facts, LookupError> {
        let gather = Gather {
            replica: &self.replica,
            within: snapshot.config.grpc.client_timeout,
            keep_tokens: snapshot.keep_tokens,
            now,
        };
        let mut visitor = match credential {
            Credential::None(none) => gather::without_credential(none),
            Credential::CookieAndBearer => Visitor::CookieAndBearer,
            Credential::Handle { handle, .. } => gather.visitor(&handle).await?,
            Credential::Bearer(bearer) => {
                let reading = route.map_or_else(|| snapshot.tokens(), LoadedRoute::tokens);
                Box::pin(self.bearers.visitor(&bearer, reading, &gather)).await?
            }
        };
        let mut records = std::collections::BTreeMap::new();
        if let Some(route) = route {
            if let Visitor::Person(person) = &mut visitor
                && route.needs_devices
            {
                person.devices = Box::pin(gather.devices(person)).await?;
            }
            if !route.record_types.is_empty() {
                let user_id = visitor.person().map(|person| &*person.user_id);
                let types = &route.record_types;
                records = Box::pin(gather.records(types, user_id, request.client_address)).await?;
            }
        }
        Ok(Facts {
            visitor,
            certificate: snapshot
                .certificates
                .examine(request.client_certificate.as_deref(), now),
            records,
            data_age: self.replica.age(),
        })
    }

    fn assertion(
        &self,
        request: &CheckRequest,
        snapshot: &Snapshot,
        route: Option<&LoadedRoute>,
        person: Option<&Person>,
        now: Timestamp,
    ) -> Result<Arc<Assertion>, AuthorizeError> {
        let config = &snapshot.config;
        let filter = route.map_or(&config.identity.groups_filter, |route| &route.groups_filter);
        let filter: Vec<&str> = filter.iter().map(String::as_str).collect();
        let host = name_of(&request.host);
        let key = assertion::Key {
            configuration: snapshot.generation,
            route: route.map(|route| route.route.id.clone()),
            host: Arc::clone(&request.host),
            person: person.map(|person| (Arc::clone(&person.id), person.versions)),
        };
        let audience = Audience {
            host,
            issuer: route.map_or(IssuerFormat::HostOnly, LoadedRoute::issuer),
            groups_filter: &filter,
            claims_headers: &config.identity.claims_headers,
        };
        let reuse = config.identity.assertion_reuse;
        self.assertions
            .get_or_sign(key, reuse, now, &config.signing_keys, person, &audience)
            .map_err(|error| AuthorizeError::DataUnavailable {
                reason: error.to_string(),
            })
    }
}

impl Loaded {
    fn subject(&self, subject: &CheckSubject) -> Result<Subject, AuthorizeError> {
        let CheckSubject::Route { id, checksum } = subject else {
            return Ok(Subject::OwnEndpoint);
        };
        self.route(id, *checksum)
            .ok_or_else(|| AuthorizeError::UnknownConfiguration { route: id.clone() })
    }

    fn route(&self, id: &RouteId, checksum: RouteChecksum) -> Option<Subject> {
        if let Some(route) = self.current.route(id, checksum) {
            return Some(Subject::Route(Arc::clone(route)));
        }
        let (previous, replaced) = self.previous.as_ref()?;
        let route = previous.route(id, checksum)?;
        (replaced.elapsed() < PREVIOUS_COUNTS).then(|| Subject::Outdated {
            previous: Arc::clone(previous),
            route: Arc::clone(route),
        })
    }
}

fn credential_of(
    request: &CheckRequest,
    snapshot: &Snapshot,
    provider_ids: &[&str],
    tokens: Reading<'_>,
) -> Credential {
    let config = &snapshot.config;
    credential::find(
        request,
        &Expected {
            handles: &snapshot.handles,
            cookie_name: &config.cookie.name,
            cookie_domain: config.cookie.domain.as_deref(),
            provider_ids,
            bearer: tokens.bearer.format,
        },
    )
}

fn denied(
    request: &CheckRequest,
    snapshot: &Snapshot,
    route: Option<&LoadedRoute>,
    facts: &Facts,
    ruling: &Ruling,
    now: Timestamp,
) -> Decision {
    log::decided(&Record {
        request,
        snapshot,
        route: route.map(|route| &*route.route),
        facts,
        ruling,
        removed_groups: 0,
    });
    match answer::denial(request, snapshot, route, facts, ruling, now) {
        Some(deny) => Decision::Deny(Box::new(deny)),
        None => Decision::Deny(Box::new(answer::forbidden())),
    }
}

fn allow(
    changes: Changes,
    person: Option<&Person>,
    ruling: &Ruling,
    consumed: ConsumedCredentials,
) -> Decision {
    Decision::Allow(Box::new(Allow {
        set_headers: changes.set,
        remove_headers: changes.remove,
        session: person.map(|person| {
            Arc::new(SessionSummary {
                session_id: (*person.id).to_owned(),
                user_id: (*person.user_id).to_owned(),
                email: person.email().to_owned(),
            })
        }),
        valid_until: ruling.valid_until,
        consumed,
    }))
}

/// For how long data of this age still counts on a route; `None`: without end.
fn time_left(
    age: Option<Duration>,
    limit: Option<Duration>,
) -> Result<Option<Duration>, AuthorizeError> {
    let Some(limit) = limit else {
        return Ok(None);
    };
    let reason = match age {
        Some(age) if age <= limit => return Ok(Some(limit.saturating_sub(age))),
        Some(age) => format!(
            "its data is {:.1}s old, and max_data_age of this route is {limit:?}; is the databroker in reach?",
            age.as_secs_f64()
        ),
        None => "it has no data yet, and this route has a max_data_age".to_owned(),
    };
    Err(AuthorizeError::DataUnavailable { reason })
}

/// What the span of a decision says about it.
fn describe(span: &mut Span, request: &CheckRequest, decided: &Result<Decision, AuthorizeError>) {
    span.set("postern.request_id", &Value::Text(&request.request_id));
    if let CheckSubject::Route { id, .. } = &request.subject {
        span.set("postern.route_id", &Value::Text(id.as_str()));
    }
    let decision = match decided {
        Ok(Decision::Allow(_)) => "allow",
        Ok(Decision::Deny(deny)) => {
            span.set("postern.reasons", &Value::Texts(&deny.reasons));
            "deny"
        }
        Err(_) => {
            span.failed();
            "none"
        }
    };
    span.set("postern.decision", &Value::Text(decision));
}

fn unavailable(error: &LookupError) -> AuthorizeError {
    AuthorizeError::DataUnavailable {
        reason: error.to_string(),
    }
}

/// A host without its port.
fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        // The colons of an IPv6 address stand in brackets.
        Some((name, port)) if !port.contains(']') => name,
        _ => host,
    }
}

impl Authorizer for Local {
    fn check(&self, request: Arc<CheckRequest>) -> BoxFuture<'_, Result<Decision, AuthorizeError>> {
        async move { self.decide(&request).await }.boxed()
    }

    fn revisits(&self) -> broadcast::Receiver<Revisit> {
        self.replica.revisits()
    }
}

#[cfg(test)]
mod tests;
