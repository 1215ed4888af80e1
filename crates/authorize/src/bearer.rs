//! Sessions made from a provider's token (`bearer_token_format`): verified once, written as a
//! record that every replica shares, used until it ends.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use postern_common::config::{BearerTokenFormat, Config, RouteBearer, RouteId};
use postern_common::crypto::bearer_id::{TokenKind, session_id};
use postern_common::rpc::WriteId;
use postern_common::rpc::stubs::databroker::{PatchRequest, PutRequest, Record};
use postern_common::rpc::stubs::{session, user};
use postern_identity::{
    ForeignToken, ForeignTokens, HttpClient, ProviderError, ProviderSettings, Providers,
    VerifiedToken, VerifyToken, claims,
};
use prost::Message as _;

use crate::credential::Bearer;
use crate::facts::Visitor;
use crate::gather::Gather;
use crate::metrics::Metrics;
use crate::records::{KeepTokens, Session, User, record_type};
use crate::replica::data::{Data, Versioned};
use crate::replica::{LookupError, Replica};

/// How long the result of a verification counts. Short: a session written comes back with the
/// feed, and a token refused may be accepted once its provider has new keys.
const REMEMBER: Duration = Duration::from_secs(30);
const REMEMBERED: u64 = 10_000;

/// Verifies tokens and makes sessions of them.
#[derive(Debug)]
pub struct Bearers {
    replica: Arc<Replica>,
    http: HttpClient,
    settings: ArcSwap<Settings>,
    /// By session and route, because routes differ in the audiences that they accept. Concurrent
    /// requests with one token are verified once.
    results: moka::future::Cache<(String, Option<RouteId>), Verified>,
    metrics: Metrics,
}

/// What a configuration says about tokens.
#[derive(Debug, Default)]
struct Settings {
    /// Only while tokens of the sign-in provider are read somewhere.
    providers: Option<Arc<Providers>>,
    /// Only while JWTs made elsewhere are.
    foreign: Option<Arc<ForeignTokens>>,
    session_lifetime: Duration,
}

#[derive(Debug, Clone)]
enum Verified {
    Invalid,
    Made(Arc<Made>),
}

/// A session and user just written.
#[derive(Debug)]
pub struct Made {
    pub session: Versioned<Session>,
    pub user: Versioned<User>,
}

/// How tokens are read where one was brought.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'a> {
    /// `None`: one of our own endpoints.
    pub route: Option<&'a RouteId>,
    pub provider_id: Option<&'a str>,
    pub bearer: &'a RouteBearer,
}

/// A token on its way to a session.
struct Token<'a> {
    kind: TokenKind,
    /// Provider id, or the entry's name in `identity_providers`.
    issuer: &'a str,
    session_id: String,
    text: &'a str,
}

impl<'a> Token<'a> {
    fn new(kind: TokenKind, issuer: &'a str, text: &'a str) -> Self {
        Self {
            kind,
            issuer,
            session_id: session_id(kind, issuer, text),
            text,
        }
    }
}

impl Bearers {
    pub fn new(replica: Arc<Replica>, http: HttpClient, config: &Config, metrics: Metrics) -> Self {
        let bearers = Self {
            replica,
            http,
            settings: ArcSwap::default(),
            results: moka::future::Cache::builder()
                .max_capacity(REMEMBERED)
                .time_to_live(REMEMBER)
                .build(),
            metrics,
        };
        bearers.load(config);
        bearers
    }

    /// Takes over a configuration. What is known of providers that stay is kept.
    pub fn load(&self, config: &Config) {
        let any = |formats: &[BearerTokenFormat]| {
            let of_routes = config.routes.iter().map(|route| &route.bearer);
            let mut all = of_routes.chain([&config.bearer]);
            all.any(|bearer| formats.contains(&bearer.format))
        };
        let before = self.settings.load();
        let of_provider = [
            BearerTokenFormat::IdpAccessToken,
            BearerTokenFormat::IdpIdentityToken,
        ];
        let providers = any(&of_provider).then(|| {
            let settings = ProviderSettings::all(config);
            Arc::new(Providers::new(
                settings,
                &self.http,
                before.providers.as_deref(),
            ))
        });
        let foreign = any(&[BearerTokenFormat::Jwt]).then(|| {
            let (verifiers, before) = (&config.jwt_verifiers, before.foreign.as_deref());
            Arc::new(ForeignTokens::new(verifiers, &self.http, before))
        });
        self.settings.store(Arc::new(Settings {
            providers,
            foreign,
            session_lifetime: config.cookie.expire,
        }));
        self.results.invalidate_all();
    }

    /// Who a token stands for.
    pub async fn visitor(
        &self,
        bearer: &Bearer,
        reading: Reading<'_>,
        gather: &Gather<'_>,
    ) -> Result<Visitor, LookupError> {
        let settings = self.settings.load_full();
        let kind = match bearer.format {
            BearerTokenFormat::Default => return Ok(Visitor::Anonymous),
            BearerTokenFormat::IdpAccessToken => TokenKind::Access,
            BearerTokenFormat::IdpIdentityToken => TokenKind::Identity,
            BearerTokenFormat::Jwt => {
                return Box::pin(self.foreign(&settings, bearer, reading, gather)).await;
            }
        };
        let (Some(issuer), Some(providers)) = (reading.provider_id, &settings.providers) else {
            return Err(LookupError::NotSupported(
                "bearer tokens without idp_provider",
            ));
        };
        let audiences = reading.bearer.audiences.as_deref().unwrap_or_default();
        if kind == TokenKind::Access && audiences.is_empty() {
            return Err(LookupError::NotSupported(
                "access tokens without idp_access_token_allowed_audiences",
            ));
        }
        let token = Token::new(kind, issuer, &bearer.token);
        if let Some((data, known)) = self.known(&token, gather) {
            // Another route may have made the session, and accept other audiences.
            let accepted = kind == TokenKind::Identity
                || known
                    .value
                    .audience
                    .iter()
                    .any(|aud| audiences.contains(aud));
            if !accepted {
                return Ok(Visitor::InvalidToken);
            }
            self.metrics.bearer_cached.inc();
            return gather.known_session(&data, known).await;
        }
        let verified = async {
            let provider = providers
                .get(issuer)
                .map_err(|error| LookupError::Provider(error.to_string()))?;
            let request = VerifyToken {
                token: token.text,
                audiences,
                now: gather.now,
            };
            let result = match kind {
                TokenKind::Access => provider.verify_access_token(request).await,
                TokenKind::Identity | TokenKind::Jwt => {
                    provider.verify_identity_token(request).await
                }
            };
            match judged(result)? {
                Some(verified) => self.make(&token, verified, &settings, gather).await,
                None => Ok(Verified::Invalid),
            }
        };
        self.made(&token, reading, gather, Box::pin(verified)).await
    }

    /// A JWT made elsewhere: verified every time, which costs no call. The session it stands for
    /// is made once.
    async fn foreign(
        &self,
        settings: &Settings,
        bearer: &Bearer,
        reading: Reading<'_>,
        gather: &Gather<'_>,
    ) -> Result<Visitor, LookupError> {
        let Some(foreign) = &settings.foreign else {
            return Err(LookupError::NotSupported("JWTs without identity_providers"));
        };
        let allowed = &reading.bearer.verifiers;
        let verified = foreign.verify(&bearer.token, allowed, gather.now).await;
        let Some(ForeignToken {
            entry,
            token: mut verified,
        }) = judged(verified)?
        else {
            return Ok(Visitor::InvalidToken);
        };
        // Subjects of different makers must not meet.
        verified.subject = format!("{entry}/{}", verified.subject);
        let token = Token::new(TokenKind::Jwt, &entry, &bearer.token);
        if let Some((data, known)) = self.known(&token, gather) {
            self.metrics.bearer_cached.inc();
            return gather.known_session(&data, known).await;
        }
        let made = Box::pin(self.make(&token, verified, settings, gather));
        self.made(&token, reading, gather, made).await
    }

    /// The session of a token, if the copy has it and it has not ended.
    fn known(
        &self,
        token: &Token<'_>,
        gather: &Gather<'_>,
    ) -> Option<(Arc<Data>, Versioned<Session>)> {
        let data = self.replica.data()?;
        let known = data.sessions.get(&token.session_id)?;
        let lives = known.value.valid_until.is_none_or(|end| end > gather.now);
        lives.then_some((data, known))
    }

    /// The outcome of `work`, shared by all who bring this token to this route now.
    async fn made(
        &self,
        token: &Token<'_>,
        reading: Reading<'_>,
        gather: &Gather<'_>,
        work: impl Future<Output = Result<Verified, LookupError>>,
    ) -> Result<Visitor, LookupError> {
        let key = (token.session_id.clone(), reading.route.cloned());
        let data = self.replica.data();
        if data.is_some_and(|data| data.was_deleted(&token.session_id)) {
            // Revoked here; whether its maker still stands by it has to be asked again.
            self.results.invalidate(&key).await;
        }
        let verified = self.results.try_get_with(key, work).await;
        match verified.map_err(|error| LookupError::clone(&error))? {
            Verified::Invalid => Ok(Visitor::InvalidToken),
            Verified::Made(made) => gather.made_session(&made).await,
        }
    }

    async fn make(
        &self,
        token: &Token<'_>,
        verified: VerifiedToken,
        settings: &Settings,
        gather: &Gather<'_>,
    ) -> Result<Verified, LookupError> {
        let written = Written::new(token, verified, settings.session_lifetime, gather.now);
        let made = self.write(written, gather).await?;
        Ok(Verified::Made(Arc::new(made)))
    }

    /// Writes both records. A user who is known keeps what the token does not tell: it is often
    /// made for an interface, and says little of the person who signs in with a browser.
    async fn write(&self, new: Written, gather: &Gather<'_>) -> Result<Made, LookupError> {
        let Written {
            session,
            user: told,
            claims,
        } = new;
        let known = self.known_user(&told.id, gather).await?;
        let mut user = told.clone();
        let mut written = Vec::new();
        if let Some(known) = known {
            let (renewed, changed) = told_of(known, told, &claims);
            written = self.patch_user(&renewed, changed, gather).await?;
            if !written.is_empty() {
                user = renewed;
            }
        }
        let mut records = vec![record(record_type::SESSION, &session.id, &session)];
        if written.is_empty() {
            // Never known, or deleted just now.
            records.insert(0, record(record_type::USER, &user.id, &user));
        }
        written.extend(self.put(records, gather).await?);
        self.metrics.bearer_created.inc();
        let [user_written, session_written] = written.as_slice() else {
            return Err(LookupError::Record(
                "the databroker did not return what it wrote".into(),
            ));
        };
        let unreadable =
            |error: crate::records::RecordError| LookupError::Record(error.to_string());
        let session_read =
            Session::from_record(&with_payload(session_written, &session), KeepTokens::Yes)
                .map_err(unreadable)?;
        let user_read =
            User::from_record(&with_payload(user_written, &user)).map_err(unreadable)?;
        Ok(Made {
            session: Versioned {
                version: session_written.version,
                value: Arc::new(session_read),
            },
            user: Versioned {
                version: user_written.version,
                value: Arc::new(user_read),
            },
        })
    }

    async fn known_user(
        &self,
        id: &str,
        gather: &Gather<'_>,
    ) -> Result<Option<user::User>, LookupError> {
        // Asked anew: taken for unknown because of an old answer, somebody's record would be lost.
        let found = gather
            .replica
            .ask(record_type::USER, id, gather.within)
            .await?;
        Ok(found
            .and_then(|record| record.data)
            .and_then(|data| user::User::decode(data.value.as_slice()).ok()))
    }

    async fn put(
        &self,
        records: Vec<Record>,
        gather: &Gather<'_>,
    ) -> Result<Vec<Record>, LookupError> {
        let mut request = tonic::Request::new(PutRequest { records });
        request.set_timeout(gather.within);
        WriteId::random().attach(&mut request);
        let answer = self.replica.client().put(request).await;
        Ok(answer
            .map_err(|status| refused(&status))?
            .into_inner()
            .records)
    }

    /// Changes only what the token told, whatever others write meanwhile.
    async fn patch_user(
        &self,
        user: &user::User,
        changed: Vec<String>,
        gather: &Gather<'_>,
    ) -> Result<Vec<Record>, LookupError> {
        let mut request = tonic::Request::new(PatchRequest {
            records: vec![record(record_type::USER, &user.id, user)],
            field_mask: Some(prost_types::FieldMask { paths: changed }),
        });
        request.set_timeout(gather.within);
        WriteId::random().attach(&mut request);
        let answer = self.replica.client().patch(request).await;
        Ok(answer
            .map_err(|status| refused(&status))?
            .into_inner()
            .records)
    }
}

fn refused(status: &tonic::Status) -> LookupError {
    LookupError::Status {
        code: status.code(),
        message: status.message().to_owned(),
    }
}

/// A known user with what a token tells over it, and the fields that it changes. `claims` are the
/// names of what it tells.
fn told_of(
    mut known: user::User,
    told: user::User,
    claims: &[String],
) -> (user::User, Vec<String>) {
    let mut changed = vec!["claims".to_owned()];
    if !told.name.is_empty() {
        known.name = told.name;
        changed.push("name".to_owned());
    }
    if !told.email.is_empty() {
        known.email = told.email;
        changed.push("email".to_owned());
    }
    known.id = told.id;
    // A claim that is told is told as a whole, with everything below it.
    known.claims.retain(|key, _| {
        let is_part = |name: &String| {
            let below = key.strip_prefix(name.as_str());
            below.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        !claims.iter().any(is_part)
    });
    known.claims.extend(told.claims);
    (known, changed)
}

/// `None`: the token does not hold. Errors say that nobody knows just now.
fn judged<T>(result: Result<T, ProviderError>) -> Result<Option<T>, LookupError> {
    match result {
        Ok(verified) => Ok(Some(verified)),
        Err(ProviderError::Refused(_) | ProviderError::Invalid(_)) => Ok(None),
        Err(error) => Err(LookupError::Provider(error.to_string())),
    }
}

/// Records made of a verified token.
struct Written {
    session: session::Session,
    user: user::User,
    /// Names of the token's claims.
    claims: Vec<String>,
}

impl Written {
    fn new(
        sent: &Token<'_>,
        token: VerifiedToken,
        session_lifetime: Duration,
        now: Timestamp,
    ) -> Self {
        let longest = SignedDuration::try_from(session_lifetime).unwrap_or(SignedDuration::MAX);
        let longest = now.saturating_add(longest).unwrap_or(Timestamp::MAX);
        let expires_at = match (token.expires_at, sent.kind) {
            (Some(end), TokenKind::Jwt) => end.min(longest),
            (Some(end), _) => end,
            (None, _) => longest,
        };
        let issued_at = token.issued_at.unwrap_or(now);
        let flat = claims::flatten(&token.claims);
        let text = |name| {
            claims::text(&token.claims, name)
                .unwrap_or_default()
                .to_owned()
        };
        let user = user::User {
            id: token.subject.clone(),
            name: text("name"),
            email: text("email"),
            claims: claims::to_list_values(&flat),
            ..user::User::default()
        };
        let (oauth_token, id_token) = match sent.kind {
            TokenKind::Access => {
                let oauth = session::OAuthToken {
                    access_token: sent.text.to_owned(),
                    token_type: "Bearer".to_owned(),
                    expires_at: Some(proto_time(expires_at)),
                    ..session::OAuthToken::default()
                };
                (Some(oauth), None)
            }
            TokenKind::Jwt => (None, None),
            TokenKind::Identity => {
                let id_token = session::IdToken {
                    issuer: text("iss"),
                    subject: text("sub"),
                    expires_at: Some(proto_time(expires_at)),
                    issued_at: Some(proto_time(issued_at)),
                    raw: sent.text.to_owned(),
                };
                (None, Some(id_token))
            }
        };
        let session = session::Session {
            id: sent.session_id.clone(),
            user_id: token.subject,
            idp_id: sent.issuer.to_owned(),
            issued_at: Some(proto_time(issued_at)),
            accessed_at: Some(proto_time(now)),
            expires_at: Some(proto_time(expires_at)),
            claims: claims::to_list_values(&flat),
            audience: token.audience,
            refresh_disabled: true,
            oauth_token,
            id_token,
            ..session::Session::default()
        };
        Self {
            session,
            user,
            claims: token.claims.keys().cloned().collect(),
        }
    }
}

fn record(kind: &str, id: &str, payload: &impl prost::Message) -> Record {
    Record {
        r#type: kind.to_owned(),
        id: id.to_owned(),
        data: Some(prost_types::Any {
            type_url: kind.to_owned(),
            value: payload.encode_to_vec(),
        }),
        ..Record::default()
    }
}

/// What was written, with the version it got; some databrokers return no payload.
fn with_payload(written: &Record, payload: &impl prost::Message) -> Record {
    Record {
        version: written.version,
        ..record(&written.r#type, &written.id, payload)
    }
}

fn proto_time(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    }
}
