//! A databroker in memory, as far as authenticate uses one, that can be told to fail.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures::Stream;
use postern_common::rpc::stubs::databroker::data_broker_service_server::{
    DataBrokerService, DataBrokerServiceServer,
};
use postern_common::rpc::stubs::databroker::*;
use postern_common::rpc::stubs::{session::Session, user::User};
use postern_common::rpc::token::{TokenKeys, require};
use postern_common::rpc::transport::Transport;
use prost::Message as _;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

#[derive(Default)]
struct State {
    version: u64,
    records: BTreeMap<(String, String), Record>,
    leases: BTreeMap<String, String>,
    down: bool,
}

#[derive(Clone, Default)]
pub(super) struct Databroker(Arc<Mutex<State>>);

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Databroker {
    /// With the token check that a real one has.
    pub(super) fn transport(&self, keys: TokenKeys) -> Transport {
        let routes = Routes::new(DataBrokerServiceServer::new(self.clone()));
        Transport::local(require(routes, keys, &[]))
    }

    pub(super) fn set_down(&self, down: bool) {
        self.0.lock().unwrap().down = down;
    }

    pub(super) fn sessions(&self) -> Vec<Session> {
        self.all("type.googleapis.com/session.Session", |data| {
            Session::decode(data).unwrap()
        })
    }

    pub(super) fn users(&self) -> Vec<User> {
        self.all("type.googleapis.com/user.User", |data| {
            User::decode(data).unwrap()
        })
    }

    fn all<T>(&self, kind: &str, decode: impl Fn(&[u8]) -> T) -> Vec<T> {
        let state = self.0.lock().unwrap();
        let of_kind = state.records.iter().filter(|((k, _), _)| k == kind);
        of_kind
            .map(|(_, record)| decode(&record.data.as_ref().unwrap().value))
            .collect()
    }

    pub(super) fn change_user(&self, change: impl Fn(&mut User)) {
        let mut state = self.0.lock().unwrap();
        for ((kind, _), record) in &mut state.records {
            if kind == "type.googleapis.com/user.User" {
                let data = record.data.as_mut().unwrap();
                let mut user = User::decode(data.value.as_slice()).unwrap();
                change(&mut user);
                data.value = user.encode_to_vec();
            }
        }
    }

    fn state(&self) -> Result<std::sync::MutexGuard<'_, State>, Status> {
        let state = self.0.lock().unwrap();
        if state.down {
            Err(Status::unavailable("down, as the test wants it"))
        } else {
            Ok(state)
        }
    }

    fn none<T>() -> Result<Response<T>, Status> {
        Err(Status::unimplemented("authenticate does not call this"))
    }
}

#[tonic::async_trait]
impl DataBrokerService for Databroker {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let GetRequest { r#type, id } = request.into_inner();
        let state = self.state()?;
        let record = state.records.get(&(r#type, id)).cloned();
        let record = record.ok_or_else(|| Status::not_found("no such record"))?;
        Ok(Response::new(GetResponse {
            record: Some(record),
        }))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let mut state = self.state()?;
        let mut records = request.into_inner().records;
        for record in &mut records {
            state.version += 1;
            record.version = state.version;
            let key = (record.r#type.clone(), record.id.clone());
            match record.deleted_at {
                Some(_) => drop(state.records.remove(&key)),
                None => drop(state.records.insert(key, record.clone())),
            }
        }
        Ok(Response::new(PutResponse {
            server_version: 77,
            records,
        }))
    }

    /// Of users only, and only what authenticate names.
    async fn patch(
        &self,
        request: Request<PatchRequest>,
    ) -> Result<Response<PatchResponse>, Status> {
        let mut state = self.state()?;
        let PatchRequest {
            records,
            field_mask,
        } = request.into_inner();
        assert_eq!(field_mask.unwrap().paths, ["name", "email", "claims"]);
        for record in &records {
            let new = User::decode(record.data.as_ref().unwrap().value.as_slice()).unwrap();
            let key = (record.r#type.clone(), record.id.clone());
            let data = state.records.get_mut(&key).unwrap().data.as_mut().unwrap();
            let mut user = User::decode(data.value.as_slice()).unwrap();
            (user.name, user.email, user.claims) = (new.name, new.email, new.claims);
            data.value = user.encode_to_vec();
        }
        Ok(Response::new(PatchResponse {
            server_version: 77,
            records,
        }))
    }

    async fn renew_lease(
        &self,
        request: Request<RenewLeaseRequest>,
    ) -> Result<Response<()>, Status> {
        let RenewLeaseRequest { name, id, .. } = request.into_inner();
        let mut state = self.state()?;
        let holder = state.leases.entry(name).or_insert_with(|| id.clone());
        if *holder == id {
            Ok(Response::new(()))
        } else {
            Err(Status::already_exists("held by another"))
        }
    }

    async fn server_info(&self, _: Request<()>) -> Result<Response<ServerInfoResponse>, Status> {
        self.state()
            .map(|_| Response::new(ServerInfoResponse::default()))
    }

    async fn acquire_lease(
        &self,
        _: Request<AcquireLeaseRequest>,
    ) -> Result<Response<AcquireLeaseResponse>, Status> {
        Self::none()
    }

    async fn release_lease(&self, _: Request<ReleaseLeaseRequest>) -> Result<Response<()>, Status> {
        Self::none()
    }

    async fn clear(&self, _: Request<()>) -> Result<Response<ClearResponse>, Status> {
        Self::none()
    }

    async fn get_options(
        &self,
        _: Request<GetOptionsRequest>,
    ) -> Result<Response<GetOptionsResponse>, Status> {
        Self::none()
    }

    async fn set_options(
        &self,
        _: Request<SetOptionsRequest>,
    ) -> Result<Response<SetOptionsResponse>, Status> {
        Self::none()
    }

    async fn list_types(&self, _: Request<()>) -> Result<Response<ListTypesResponse>, Status> {
        Self::none()
    }

    async fn query(&self, _: Request<QueryRequest>) -> Result<Response<QueryResponse>, Status> {
        Self::none()
    }

    type SyncStream = Streamed<SyncResponse>;
    async fn sync(&self, _: Request<SyncRequest>) -> Result<Response<Self::SyncStream>, Status> {
        Self::none()
    }

    type SyncLatestStream = Streamed<SyncLatestResponse>;
    async fn sync_latest(
        &self,
        _: Request<SyncLatestRequest>,
    ) -> Result<Response<Self::SyncLatestStream>, Status> {
        Self::none()
    }
}
