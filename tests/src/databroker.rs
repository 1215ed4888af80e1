//! The databroker as other services call it.

use std::net::SocketAddr;

use jiff::Timestamp;
use postern_common::crypto::handle::Handle;
use postern_common::crypto::keys::SecretKey;
use postern_common::rpc::stubs::databroker::data_broker_service_client::DataBrokerServiceClient;
use postern_common::rpc::stubs::databroker::{
    GetRequest, PutRequest, Record, SyncLatestRequest, SyncRequest, SyncResponse, Versions,
    sync_latest_response,
};
use postern_common::rpc::token;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use crate::cluster::{Cluster, SHARED_SECRET};
use crate::person::Person;

pub const SESSIONS: &str = "type.googleapis.com/session.Session";

/// What every cluster's tokens are signed with.
pub fn shared_secret() -> SecretKey {
    SecretKey::from_base64(SHARED_SECRET).expect("32 bytes")
}

/// The handle in the cookie that a person has for a host.
pub fn handle_of(person: &Person, host: &str) -> Handle {
    let cookies = person.cookies(host);
    let cookie = cookies.get("_pomerium").expect("somebody who is signed in");
    Handle::decode(&[shared_secret()], cookie).expect("a handle of ours")
}

#[derive(Clone)]
pub struct Databroker {
    client: DataBrokerServiceClient<Channel>,
}

impl Databroker {
    pub async fn connect(cluster: &Cluster) -> Self {
        Self::connect_to(cluster.serves("databroker")).await
    }

    /// One of several.
    pub async fn connect_to(address: SocketAddr) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("a URL");
        let channel = endpoint.connect().await.expect("the databroker answers");
        Self {
            client: DataBrokerServiceClient::new(channel),
        }
    }

    /// Everything of a type, and where its changes go on.
    pub async fn all(&mut self, kind: &str) -> Result<(Vec<Record>, Versions), Status> {
        let request = SyncLatestRequest {
            r#type: kind.to_owned(),
        };
        let mut answers = self.client.sync_latest(ours(request)).await?.into_inner();
        let (mut records, mut versions) = (Vec::new(), None);
        while let Some(answer) = answers.message().await? {
            match answer.response {
                Some(sync_latest_response::Response::Record(record)) => records.push(record),
                Some(sync_latest_response::Response::Versions(told)) => versions = Some(told),
                _ => {}
            }
        }
        let versions = versions.ok_or_else(|| Status::internal("it ended without versions"))?;
        Ok((records, versions))
    }

    /// The changes of a type as they are made, from `versions` on.
    pub async fn changes(
        &mut self,
        kind: &str,
        versions: Versions,
    ) -> Result<Streaming<SyncResponse>, Status> {
        let request = SyncRequest {
            server_version: versions.server_version,
            record_version: versions.latest_record_version,
            r#type: kind.to_owned(),
            wait: None,
        };
        Ok(self.client.sync(ours(request)).await?.into_inner())
    }

    /// With a token of the caller's own, or none.
    pub async fn get(
        &mut self,
        token: Option<&str>,
        kind: &str,
        id: &str,
    ) -> Result<Record, Status> {
        let request = GetRequest {
            r#type: kind.to_owned(),
            id: id.to_owned(),
        };
        let answer = self.client.get(authorized(request, token)).await?;
        Ok(answer.into_inner().record.expect("a record"))
    }

    /// With a token of the caller's own, or none.
    pub async fn put(&mut self, token: Option<&str>, record: Record) -> Result<(), Status> {
        let request = PutRequest {
            records: vec![record],
        };
        self.client.put(authorized(request, token)).await?;
        Ok(())
    }

    /// All of them at once, or none; the version of the last one.
    pub async fn put_all(&mut self, records: Vec<Record>) -> Result<u64, Status> {
        let answer = self.client.put(ours(PutRequest { records })).await?;
        let last = answer.into_inner().records.pop();
        Ok(last.map_or(0, |record| record.version))
    }

    /// As an administrator ends somebody's session.
    pub async fn delete_session(&mut self, id: &str) {
        let token = token::sign(&shared_secret(), Timestamp::now());
        let mut record = self
            .get(Some(&token), SESSIONS, id)
            .await
            .expect("a session");
        record.deleted_at = Some(prost_types::Timestamp {
            seconds: Timestamp::now().as_second(),
            nanos: 0,
        });
        self.put(Some(&token), record).await.expect("it is deleted");
    }

    pub async fn has_session(&mut self, id: &str) -> bool {
        let token = token::sign(&shared_secret(), Timestamp::now());
        match self.get(Some(&token), SESSIONS, id).await {
            Ok(_) => true,
            Err(status) if status.code() == Code::NotFound => false,
            Err(status) => panic!("{status}"),
        }
    }
}

/// With a token that is good now.
fn ours<T>(message: T) -> Request<T> {
    authorized(
        message,
        Some(&token::sign(&shared_secret(), Timestamp::now())),
    )
}

fn authorized<T>(message: T, token: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        let value = token.parse().expect("a token is ASCII");
        request.metadata_mut().insert(token::METADATA_KEY, value);
    }
    request
}
