//! The gRPC service. It translates: what is decided is decided in the rooms it calls.

pub mod checkpoint;
mod query;
pub mod stream;
#[cfg(test)]
mod tests;
pub mod unread;

use std::sync::Arc;
use std::time::Duration;

use postern_common::rpc::WriteId;
use postern_common::rpc::stubs::databroker::data_broker_service_server::DataBrokerService;
use postern_common::rpc::stubs::databroker::{
    AcquireLeaseRequest, AcquireLeaseResponse, ClearResponse, GetOptionsRequest,
    GetOptionsResponse, GetRequest, GetResponse, ListTypesResponse, PatchRequest, PatchResponse,
    PutRequest, PutResponse, QueryRequest, QueryResponse, ReleaseLeaseRequest, RenewLeaseRequest,
    ServerInfoResponse, SetOptionsRequest, SetOptionsResponse, SyncLatestRequest,
    SyncLatestResponse, SyncRequest, SyncResponse,
};
use tokio::sync::Semaphore;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::feed::Feed;
use crate::lease::{self, LeaseError};
use crate::options;
use crate::storage::{Operation, RecordKey, Refused, Storage, StorageError};
use crate::writer::{WriteError, Writer};
use unread::Unread;

/// How long one question to the storage may take.
const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct Service {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) writer: Writer,
    pub(crate) feed: Feed,
    /// Turns to read a page for somebody who copies everything.
    pub(crate) copies: Arc<Semaphore>,
    pub(crate) unread: Arc<Unread>,
    /// Ends the streams.
    pub(crate) stop: CancellationToken,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl DataBrokerService for Service {
    async fn acquire_lease(
        &self,
        request: Request<AcquireLeaseRequest>,
    ) -> Answer<AcquireLeaseResponse> {
        let request = request.into_inner();
        let duration = lease::duration(request.duration.as_ref()).map_err(lease_status)?;
        let id = lease::new_id();
        self.lease(&request.name, &id, duration).await?;
        Ok(Response::new(AcquireLeaseResponse { id }))
    }

    async fn renew_lease(&self, request: Request<RenewLeaseRequest>) -> Answer<()> {
        let request = request.into_inner();
        let duration = lease::duration(request.duration.as_ref()).map_err(lease_status)?;
        self.lease(&request.name, &request.id, duration).await?;
        Ok(Response::new(()))
    }

    async fn release_lease(&self, request: Request<ReleaseLeaseRequest>) -> Answer<()> {
        let request = request.into_inner();
        lease::names(&request.name, &request.id).map_err(lease_status)?;
        deadline(self.storage.release(&request.name, &request.id)).await?;
        Ok(Response::new(()))
    }

    async fn get(&self, request: Request<GetRequest>) -> Answer<GetResponse> {
        let GetRequest { r#type: kind, id } = request.into_inner();
        let not_found = || Status::not_found("record not found");
        if has_nul(&kind) || has_nul(&id) {
            return Err(not_found());
        }
        let record = deadline(self.storage.get(&RecordKey { kind, id })).await?;
        match record {
            Some(record) => Ok(Response::new(GetResponse {
                record: Some(record),
            })),
            None => Err(not_found()),
        }
    }

    async fn list_types(&self, _: Request<()>) -> Answer<ListTypesResponse> {
        let types = deadline(self.storage.kinds()).await?;
        Ok(Response::new(ListTypesResponse { types }))
    }

    async fn put(&self, request: Request<PutRequest>) -> Answer<PutResponse> {
        let id = WriteId::of(request.metadata());
        let records = request.into_inner().records;
        self.unread.tell(&records);
        let operation = Operation::Put(records);
        let receipt = self
            .writer
            .write(once(id, operation))
            .await
            .map_err(|it| write_status(&it))?;
        Ok(Response::new(PutResponse {
            server_version: receipt.server_version,
            records: receipt.records,
        }))
    }

    async fn patch(&self, request: Request<PatchRequest>) -> Answer<PatchResponse> {
        let id = WriteId::of(request.metadata());
        let PatchRequest {
            records,
            field_mask,
        } = request.into_inner();
        let mask = field_mask.unwrap_or_default().paths;
        let operation = Operation::Patch { records, mask };
        let receipt = self
            .writer
            .write(once(id, operation))
            .await
            .map_err(|it| write_status(&it))?;
        Ok(Response::new(PatchResponse {
            server_version: receipt.server_version,
            records: receipt.records,
        }))
    }

    async fn query(&self, request: Request<QueryRequest>) -> Answer<QueryResponse> {
        query::answer(&*self.storage, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn get_options(&self, request: Request<GetOptionsRequest>) -> Answer<GetOptionsResponse> {
        let kind = request.into_inner().r#type;
        options::check_kind(&kind).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let all = deadline(self.storage.options()).await?;
        let options = all
            .into_iter()
            .find_map(|(it, options)| (it == kind).then_some(options));
        match options {
            Some(options) => Ok(Response::new(GetOptionsResponse {
                options: Some(options),
            })),
            None => Err(Status::not_found("no options are set for this type")),
        }
    }

    async fn set_options(&self, request: Request<SetOptionsRequest>) -> Answer<SetOptionsResponse> {
        let SetOptionsRequest {
            r#type: kind,
            options,
        } = request.into_inner();
        let options = options.unwrap_or_default();
        options::check(&kind, &options)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        deadline(self.storage.set_options(kind, options.clone())).await?;
        Ok(Response::new(SetOptionsResponse {
            options: Some(options),
        }))
    }

    async fn server_info(&self, _: Request<()>) -> Answer<ServerInfoResponse> {
        let head = deadline(self.storage.head()).await?;
        Ok(Response::new(ServerInfoResponse {
            server_version: head.server_version,
            earliest_record_version: head.earliest,
            // Of the change log, as the earliest one.
            latest_record_version: if head.earliest == 0 { 0 } else { head.latest },
        }))
    }

    async fn clear(&self, _: Request<()>) -> Answer<ClearResponse> {
        let cleared = deadline(self.storage.clear()).await?;
        tracing::warn!(
            old = cleared.old,
            new = cleared.new,
            "all records were deleted on request"
        );
        Ok(Response::new(ClearResponse {
            old_server_version: cleared.old,
            new_server_version: cleared.new,
        }))
    }

    type SyncStream = ReceiverStream<Result<SyncResponse, Status>>;

    async fn sync(&self, request: Request<SyncRequest>) -> Answer<Self::SyncStream> {
        stream::sync(self, request).await.map(Response::new)
    }

    type SyncLatestStream = ReceiverStream<Result<SyncLatestResponse, Status>>;

    async fn sync_latest(
        &self,
        request: Request<SyncLatestRequest>,
    ) -> Answer<Self::SyncLatestStream> {
        stream::sync_latest(self, request.into_inner())
            .await
            .map(Response::new)
    }
}

impl Service {
    async fn lease(&self, name: &str, holder: &str, duration: Duration) -> Result<(), Status> {
        lease::names(name, holder).map_err(lease_status)?;
        if deadline(self.storage.lease(name, holder, duration)).await? {
            Ok(())
        } else {
            Err(Status::already_exists("another holds the lease"))
        }
    }
}

/// The type that is asked for, `None` for all. Nothing is written under one with NUL, and not every
/// storage can be asked for it.
fn kind(asked: String) -> Result<Option<String>, Status> {
    if has_nul(&asked) {
        return Err(Status::invalid_argument("no type has NUL in its name"));
    }
    Ok(Some(asked).filter(|kind| !kind.is_empty()))
}

fn has_nul(name: &str) -> bool {
    name.contains('\0')
}

fn once(id: Option<WriteId>, operation: Operation) -> Operation {
    match id {
        Some(id) => Operation::Once {
            id,
            operation: Box::new(operation),
        },
        None => operation,
    }
}

/// Waits for the storage, but not for ever.
async fn deadline<T>(asked: impl Future<Output = Result<T, StorageError>>) -> Result<T, Status> {
    tokio::time::timeout(DEADLINE, asked)
        .await
        .unwrap_or(Err(StorageError::Deadline(DEADLINE)))
        .map_err(|error| storage_status(&error))
}

/// Whatever the cause: nothing is known about the records, so a client must not conclude anything, but try again.
fn storage_status(error: &StorageError) -> Status {
    Status::unavailable(crate::causes(error))
}

fn lease_status(error: LeaseError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn write_status(error: &WriteError) -> Status {
    match error {
        WriteError::RecordTooLarge { .. } | WriteError::RequestTooLarge(_) | WriteError::Busy => {
            Status::resource_exhausted(error.to_string())
        }
        WriteError::Name(_) | WriteError::Refused(Refused::Patch(_) | Refused::Database { .. }) => {
            Status::invalid_argument(error.to_string())
        }
        WriteError::Refused(Refused::Conflict { .. }) => Status::aborted(error.to_string()),
        WriteError::Storage(error) => storage_status(error),
        WriteError::Stopping => Status::unavailable(error.to_string()),
    }
}
