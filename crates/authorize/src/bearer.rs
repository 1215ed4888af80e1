//! Sessions made from a provider's token (`bearer_token_format`): verified once, written as a
//! record that every replica shares, used until it ends.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use jiff::{SignedDuration, Timestamp};
use postern_common::config::{BearerTokenFormat, Config};
use postern_common::crypto::bearer_id::{TokenKind, session_id};
use postern_common::rpc::stubs::databroker::{PutRequest, Record};
use postern_common::rpc::stubs::{session, user};
use postern_identity::{
    HttpClient, ProviderError, ProviderSettings, Providers, VerifiedToken, VerifyToken, claims,
};
use prost::Message as _;

use crate::credential::Bearer;
use crate::facts::Visitor;
use crate::gather::Gather;
use crate::metrics::Metrics;
use crate::records::{KeepTokens, Session, User, record_type};
use crate::replica::data::Versioned;
use crate::replica::{LookupError, Replica, Wanted};
use crate::snapshot::LoadedRoute;

/// How long the result of a verification counts. Short: a session written comes back with the
/// feed, and a token refused may be accepted once its provider has new keys.
const REMEMBER: Duration = Duration::from_secs(30);
const REMEMBERED: u64 = 10_000;

/// Verifies tokens and makes sessions of them.
#[derive(Debug)]
pub struct Bearers {
    replica: Arc<Replica>,
    http: HttpClient,
    /// Only while a route reads such tokens.
    providers: ArcSwapOption<Providers>,
    /// By session id. Concurrent requests with one token are verified once.
    results: moka::future::Cache<String, Verified>,
    metrics: Metrics,
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

impl Bearers {
    pub fn new(replica: Arc<Replica>, http: HttpClient, config: &Config, metrics: Metrics) -> Self {
        let bearers = Self {
            replica,
            http,
            providers: ArcSwapOption::empty(),
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
        let any = config.routes.iter().any(|route| {
            matches!(
                route.bearer.format,
                BearerTokenFormat::IdpAccessToken | BearerTokenFormat::IdpIdentityToken
            )
        });
        let providers = any.then(|| {
            let before = self.providers.load();
            let settings = ProviderSettings::all(config);
            Arc::new(Providers::new(settings, &self.http, before.as_deref()))
        });
        self.providers.store(providers);
        self.results.invalidate_all();
    }

    /// Who a token stands for.
    pub async fn visitor(
        &self,
        bearer: &Bearer,
        route: &LoadedRoute,
        session_lifetime: Duration,
        gather: &Gather<'_>,
    ) -> Result<Visitor, LookupError> {
        let kind = match bearer.format {
            BearerTokenFormat::IdpAccessToken => TokenKind::Access,
            BearerTokenFormat::IdpIdentityToken => TokenKind::Identity,
            BearerTokenFormat::Default | BearerTokenFormat::Jwt => {
                return Err(LookupError::NotSupported("bearer_token_format: jwt"));
            }
        };
        let Some(provider_id) = route.provider_id.as_deref() else {
            return Err(LookupError::NotSupported(
                "bearer tokens without idp_provider",
            ));
        };
        let id = session_id(kind, provider_id, &bearer.token);
        if let Some(data) = self.replica.data() {
            if let Some(known) = data.sessions.get(&id)
                && known.value.valid_until.is_none_or(|end| end > gather.now)
            {
                self.metrics.bearer_cached.inc();
                return gather.known_session(&data, known).await;
            }
            if data.was_deleted(&id) {
                // Revoked here; whether the provider still stands by it has to be asked again.
                self.results.invalidate(&id).await;
            }
        }
        let work = self.verify(
            kind,
            &id,
            provider_id,
            bearer,
            route,
            session_lifetime,
            gather,
        );
        let verified = self
            .results
            .try_get_with(id.clone(), work)
            .await
            .map_err(|error| LookupError::clone(&error))?;
        match verified {
            Verified::Invalid => Ok(Visitor::InvalidToken),
            Verified::Made(made) => gather.made_session(&made).await,
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one call, each of them of another kind"
    )]
    async fn verify(
        &self,
        kind: TokenKind,
        id: &str,
        provider_id: &str,
        bearer: &Bearer,
        route: &LoadedRoute,
        session_lifetime: Duration,
        gather: &Gather<'_>,
    ) -> Result<Verified, LookupError> {
        let providers = self.providers.load_full();
        let provider = providers
            .as_ref()
            .ok_or(LookupError::NotSupported(
                "bearer tokens without idp_provider",
            ))?
            .get(provider_id)
            .map_err(|error| LookupError::Provider(error.to_string()))?;
        let audiences = route.route.bearer.audiences.as_deref().unwrap_or_default();
        let request = VerifyToken {
            token: &bearer.token,
            audiences,
            now: gather.now,
        };
        let result = match kind {
            TokenKind::Access if audiences.is_empty() => {
                return Err(LookupError::NotSupported(
                    "access tokens without idp_access_token_allowed_audiences",
                ));
            }
            TokenKind::Access => provider.verify_access_token(request).await,
            TokenKind::Identity | TokenKind::Jwt => provider.verify_identity_token(request).await,
        };
        let token = match result {
            Ok(token) => token,
            Err(ProviderError::Refused(_) | ProviderError::Invalid(_)) => {
                return Ok(Verified::Invalid);
            }
            Err(error) => return Err(LookupError::Provider(error.to_string())),
        };
        let written = Written::new(
            kind,
            id,
            provider_id,
            bearer,
            token,
            session_lifetime,
            gather.now,
        );
        self.write(written, gather)
            .await
            .map(|made| Verified::Made(Arc::new(made)))
    }

    /// Writes both records; the user's devices are kept.
    async fn write(&self, mut new: Written, gather: &Gather<'_>) -> Result<Made, LookupError> {
        let user_id = new.user.id.clone();
        let known = gather
            .replica
            .get(Wanted::new(record_type::USER, &user_id), gather.within)
            .await?;
        if let Some(data) = known.and_then(|record| record.data)
            && let Ok(known) = user::User::decode(data.value.as_slice())
        {
            new.user.device_credential_ids = known.device_credential_ids;
        }
        let records = vec![
            record(record_type::USER, &user_id, &new.user),
            record(record_type::SESSION, &new.session.id, &new.session),
        ];
        let mut request = tonic::Request::new(PutRequest { records });
        request.set_timeout(gather.within);
        let written = self
            .replica
            .client()
            .put(request)
            .await
            .map_err(|status| LookupError::Status {
                code: status.code(),
                message: status.message().to_owned(),
            })?
            .into_inner()
            .records;
        self.metrics.bearer_created.inc();
        let (Some(user), Some(session)) = (written.first(), written.get(1)) else {
            return Err(LookupError::Record(
                "the databroker did not return what it wrote".into(),
            ));
        };
        let unreadable =
            |error: crate::records::RecordError| LookupError::Record(error.to_string());
        let session_read =
            Session::from_record(&with_payload(session, &new.session), KeepTokens::Yes)
                .map_err(unreadable)?;
        let user_read = User::from_record(&with_payload(user, &new.user)).map_err(unreadable)?;
        Ok(Made {
            session: Versioned {
                version: session.version,
                value: Arc::new(session_read),
            },
            user: Versioned {
                version: user.version,
                value: Arc::new(user_read),
            },
        })
    }
}

/// Records made of a verified token.
struct Written {
    session: session::Session,
    user: user::User,
}

impl Written {
    fn new(
        kind: TokenKind,
        id: &str,
        provider_id: &str,
        bearer: &Bearer,
        token: VerifiedToken,
        session_lifetime: Duration,
        now: Timestamp,
    ) -> Self {
        let longest = SignedDuration::try_from(session_lifetime).unwrap_or(SignedDuration::MAX);
        let expires_at = token
            .expires_at
            .unwrap_or_else(|| now.saturating_add(longest).unwrap_or(Timestamp::MAX));
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
        let (oauth_token, id_token) = match kind {
            TokenKind::Access => {
                let oauth = session::OAuthToken {
                    access_token: bearer.token.clone(),
                    token_type: "Bearer".to_owned(),
                    expires_at: Some(proto_time(expires_at)),
                    ..session::OAuthToken::default()
                };
                (Some(oauth), None)
            }
            TokenKind::Identity | TokenKind::Jwt => {
                let id_token = session::IdToken {
                    issuer: text("iss"),
                    subject: text("sub"),
                    expires_at: Some(proto_time(expires_at)),
                    issued_at: Some(proto_time(issued_at)),
                    raw: bearer.token.clone(),
                };
                (None, Some(id_token))
            }
        };
        let session = session::Session {
            id: id.to_owned(),
            user_id: token.subject,
            idp_id: provider_id.to_owned(),
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
        Self { session, user }
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
