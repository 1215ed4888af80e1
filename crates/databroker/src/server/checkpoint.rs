//! `CheckpointService`: how far a member of a Pomerium databroker cluster has copied its leader.
//!
//! Our databrokers share a storage and copy nothing from each other. To who asks, each is a leader.

use postern_common::rpc::stubs::databroker::checkpoint_service_server::CheckpointService;
use postern_common::rpc::stubs::databroker::{
    Checkpoint, GetCheckpointRequest, GetCheckpointResponse, SetCheckpointRequest,
    SetCheckpointResponse,
};
use tonic::{Request, Response, Status};

pub struct Checkpoints;

#[tonic::async_trait]
impl CheckpointService for Checkpoints {
    async fn get_checkpoint(
        &self,
        _: Request<GetCheckpointRequest>,
    ) -> Result<Response<GetCheckpointResponse>, Status> {
        Ok(Response::new(GetCheckpointResponse {
            checkpoint: Some(Checkpoint::default()),
            is_leader: true,
        }))
    }

    async fn set_checkpoint(
        &self,
        _: Request<SetCheckpointRequest>,
    ) -> Result<Response<SetCheckpointResponse>, Status> {
        Err(Status::unimplemented(
            "databrokers of a Postern share their storage; there is no checkpoint to set",
        ))
    }
}
