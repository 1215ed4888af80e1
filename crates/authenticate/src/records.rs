//! Sessions and users in the databroker.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use postern_common::rpc::stubs::databroker::data_broker_service_client::DataBrokerServiceClient;
use postern_common::rpc::stubs::databroker::{
    GetRequest, PatchRequest, PutRequest, Record, RenewLeaseRequest,
};
use postern_common::rpc::stubs::{session::Session, user::User};
use postern_common::rpc::token::{ClientToken, TokenKeys};
use postern_common::rpc::transport::Transport;
use prost::Message;
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Request, Status};

/// How long a call to the databroker may take. A person waits for several of them.
const DEADLINE: Duration = Duration::from_secs(5);

type Client = DataBrokerServiceClient<InterceptedService<Transport, ClientToken>>;

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
        match self.client.clone().get(within(request)).await {
            Ok(response) => {
                let record = response.into_inner().record;
                let data = record
                    .filter(|record| record.deleted_at.is_none())
                    .and_then(|r| r.data);
                data.map(|any| P::decode(any.value.as_slice()))
                    .transpose()
                    .map_err(|_| RecordsError::Undecodable(P::NAME))
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(failed("reading", status)),
        }
    }

    /// Whether the databroker answers. Asked before anybody is sent to a provider, since nobody
    /// could sign in on the way back.
    pub(crate) async fn answers(&self) -> Result<(), RecordsError> {
        let answer = self.client.clone().server_info(within(())).await;
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
        let known = self.get::<User>(&user.id).await?.is_some();
        let mut client = self.client.clone();
        if known {
            let patch = PatchRequest {
                records: vec![record(&user)],
                field_mask: Some(prost_types::FieldMask {
                    paths: ["name", "email", "claims"].map(str::to_owned).to_vec(),
                }),
            };
            client
                .patch(within(patch))
                .await
                .map_err(|status| failed("updating the user", status))?;
        } else {
            let put = PutRequest {
                records: vec![record(&user)],
            };
            client
                .put(within(put))
                .await
                .map_err(|status| failed("writing the user", status))?;
        }
        let put = PutRequest {
            records: vec![record(session)],
        };
        let answer = client
            .put(within(put))
            .await
            .map_err(|status| failed("writing the session", status))?
            .into_inner();
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
        let answer = self.client.clone().put(within(put)).await;
        answer
            .map(|_| ())
            .map_err(|status| failed("deleting the session", status))
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
        match self.client.clone().renew_lease(within(request)).await {
            Ok(_) => Ok(Once::First),
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

fn within<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

fn failed(what: &'static str, status: Status) -> RecordsError {
    RecordsError::Call { what, status }
}
