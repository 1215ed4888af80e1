//! The databroker as other services call it.

use jiff::Timestamp;
use postern_common::crypto::handle::Handle;
use postern_common::crypto::keys::SecretKey;
use postern_common::rpc::stubs::databroker::data_broker_service_client::DataBrokerServiceClient;
use postern_common::rpc::stubs::databroker::{GetRequest, PutRequest, Record};
use postern_common::rpc::token;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

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
        let url = format!("http://127.0.0.1:{}", cluster.grpc_port("databroker"));
        let endpoint = Endpoint::from_shared(url).expect("a URL");
        let channel = endpoint.connect().await.expect("the databroker answers");
        Self {
            client: DataBrokerServiceClient::new(channel),
        }
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

fn authorized<T>(message: T, token: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        let value = token.parse().expect("a token is ASCII");
        request.metadata_mut().insert(token::METADATA_KEY, value);
    }
    request
}
