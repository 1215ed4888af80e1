//! Sessions and users in the databroker.

use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use postern_common::rpc::WriteId;
use postern_common::rpc::stubs::databroker::data_broker_service_client::DataBrokerServiceClient;
use postern_common::rpc::stubs::databroker::{
    GetRequest, PatchRequest, PutRequest, PutResponse, Record, RenewLeaseRequest,
};
use postern_common::rpc::stubs::{session::Session, user::User};
use postern_common::rpc::token::{ClientToken, TokenKeys};
use postern_common::rpc::transport::Transport;
use prost::Message;
use tokio::time::Instant;
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Request, Response, Status};

/// How long an answer of the databroker may take, repetitions included. A person waits for several
/// of them.
const DEADLINE: Duration = Duration::from_secs(5);
/// Before a call is repeated.
const PAUSE: Duration = Duration::from_millis(100);

type Client = DataBrokerServiceClient<InterceptedService<Transport, ClientToken>>;

type Answer<T> = Result<Response<T>, Status>;

/// The databroker, as far as authenticate needs it.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    client: Client,
}

/// The databroker gave no usable answer. Says nothing about any session.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordsError {
    #[error("databroker: {what} failed: {}: {}", status.code(), status.message())]
    Call { what: &'static str, status: Status },
    #[error("databroker: {0} is not what its type says")]
    Undecodable(&'static str),
}

/// Where a session was written, so that readers wait for data at least this new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    pub record_version: u64,
    pub server_version: u64,
}

/// Whether something happens for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Once {
    First,
    Again,
}

/// A payload that is a record's whole data.
pub(crate) trait Payload: Message + Default {
    const TYPE: &'static str;
    const NAME: &'static str;
    fn id(&self) -> &str;
}

impl Payload for Session {
    const TYPE: &'static str = "type.googleapis.com/session.Session";
    const NAME: &'static str = "the session";
    fn id(&self) -> &str {
        &self.id
    }
}

impl Payload for User {
    const TYPE: &'static str = "type.googleapis.com/user.User";
    const NAME: &'static str = "the user";
    fn id(&self) -> &str {
        &self.id
    }
}

impl Records {
    pub(crate) fn new(transport: Transport, keys: &TokenKeys) -> Self {
        let client = DataBrokerServiceClient::with_interceptor(transport, keys.for_client());
        Self { client }
    }

    /// A record's payload; `None` when there is no such record.
    pub(crate) async fn get<P: Payload>(&self, id: &str) -> Result<Option<P>, RecordsError> {
        let request = GetRequest {
            r#type: P::TYPE.to_owned(),
            id: id.to_owned(),
        };
        let data = self.read(request).await?.and_then(|record| record.data);
        data.map(|any| P::decode(any.value.as_slice()))
            .transpose()
            .map_err(|_| RecordsError::Undecodable(P::NAME))
    }

    /// Whether the databroker answers. Asked before anybody is sent to a provider, since nobody
    /// could sign in on the way back.
    pub(crate) async fn answers(&self) -> Result<(), RecordsError> {
        let ask = |mut client: Client, ask| async move { client.server_info(ask).await }.boxed();
        let answer = self.answered((), ask).await;
        answer
            .map(|_| ())
            .map_err(|status| failed("asking for its state", status))
    }

    /// Writes a new session and its user. A user who is known keeps what else is on record, such
    /// as devices; name, email and claims are replaced as a whole.
    pub(crate) async fn save(
        &self,
        user: User,
        session: &Session,
    ) -> Result<Written, RecordsError> {
        let present = GetRequest {
            r#type: User::TYPE.to_owned(),
            id: user.id.clone(),
        };
        if self.read(present).await?.is_some() {
            let patch = PatchRequest {
                records: vec![record(&user)],
                field_mask: Some(prost_types::FieldMask {
                    paths: ["name", "email", "claims"].map(str::to_owned).to_vec(),
                }),
            };
            let call = |mut client: Client, patch| async move { client.patch(patch).await }.boxed();
            self.answered(patch, call)
                .await
                .map_err(|status| failed("updating the user", status))?;
        } else {
            let put = PutRequest {
                records: vec![record(&user)],
            };
            self.put(put)
                .await
                .map_err(|status| failed("writing the user", status))?;
        }
        let put = PutRequest {
            records: vec![record(session)],
        };
        let answer = self
            .put(put)
            .await
            .map_err(|status| failed("writing the session", status))?;
        let record_version = answer.records.first().map_or(0, |record| record.version);
        Ok(Written {
            record_version,
            server_version: answer.server_version,
        })
    }

    /// Deletes a session, which ends it everywhere.
    pub(crate) async fn delete(
        &self,
        session: &Session,
        now: Timestamp,
    ) -> Result<(), RecordsError> {
        let deleted = Record {
            deleted_at: Some(timestamp(now)),
            ..record(session)
        };
        let put = PutRequest {
            records: vec![deleted],
        };
        let answer = self.put(put).await;
        answer
            .map(|_| ())
            .map_err(|status| failed("deleting the session", status))
    }

    /// A record that is there.
    async fn read(&self, request: GetRequest) -> Result<Option<Record>, RecordsError> {
        let get = |mut client: Client, request| async move { client.get(request).await }.boxed();
        match self.answered(request, get).await {
            Ok(found) => Ok(found.record.filter(|it| it.deleted_at.is_none())),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(failed("reading", status)),
        }
    }

    /// Whole records under ids of our own.
    async fn put(&self, records: PutRequest) -> Result<PutResponse, Status> {
        let put = |mut client: Client, records| async move { client.put(records).await }.boxed();
        self.answered(records, put).await
    }

    /// Makes a call again and again until there is an answer: the databroker that had it may be gone,
    /// the only one may just be starting again, or its database be moving. What is written has an id,
    /// and is written once.
    async fn answered<M: Clone, T>(
        &self,
        message: M,
        call: fn(Client, Request<M>) -> BoxFuture<'static, Answer<T>>,
    ) -> Result<T, Status> {
        let begun = Instant::now();
        let id = WriteId::random();
        loop {
            let left = DEADLINE.saturating_sub(begun.elapsed());
            let mut request = within(left, message.clone());
            // Of no meaning for what only reads.
            id.attach(&mut request);
            match call(self.client.clone(), request).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) if may_pass(status.code()) && left > PAUSE => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(status) => return Err(status),
            }
        }
    }

    /// Claims a name for `duration`. `claimant` is made once for each request, so that a call
    /// repeated on the way is still the first.
    pub(crate) async fn once(
        &self,
        name: &str,
        claimant: &str,
        duration: SignedDuration,
    ) -> Result<Once, RecordsError> {
        let request = RenewLeaseRequest {
            name: name.to_owned(),
            id: claimant.to_owned(),
            duration: Some(prost_types::Duration {
                seconds: duration.as_secs(),
                nanos: duration.subsec_nanos(),
            }),
        };
        let claim =
            |mut client: Client, request| async move { client.renew_lease(request).await }.boxed();
        match self.answered(request, claim).await {
            Ok(()) => Ok(Once::First),
            Err(status) if status.code() == Code::AlreadyExists => Ok(Once::Again),
            Err(status) => Err(failed("claiming a sign-in's one use", status)),
        }
    }
}

pub(crate) fn record<P: Payload>(payload: &P) -> Record {
    Record {
        r#type: P::TYPE.to_owned(),
        id: payload.id().to_owned(),
        data: Some(prost_types::Any {
            type_url: P::TYPE.to_owned(),
            value: payload.encode_to_vec(),
        }),
        ..Record::default()
    }
}

pub(crate) fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: at.as_second(),
        nanos: at.subsec_nanosecond(),
    }
}

/// A broken connection has no code of its own.
fn may_pass(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
    )
}

fn within<T>(limit: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

fn failed(what: &'static str, status: Status) -> RecordsError {
    RecordsError::Call { what, status }
}
