//! Who decides about requests: authorize in this process, or its replicas elsewhere.

use std::rc::Rc;
use std::sync::Arc;

use postern_common::authz::{AuthorizeError, Authorizer, CheckRequest, Decision, Revisit};
use postern_common::lifecycle::Lifecycle;
use tokio::sync::broadcast;

use crate::remote::{Remote, Streams};

/// Who decides, as all cores are told.
#[derive(Clone)]
pub enum Deciding {
    /// A function call.
    Here(Arc<dyn Authorizer>),
    /// Streams, which each core opens for itself.
    Elsewhere(Remote),
}

impl Deciding {
    /// Must be called on the `LocalSet` of the core.
    pub(crate) fn on_this_core(&self, lifecycle: &Lifecycle) -> Decider {
        match self {
            Self::Here(authorizer) => Decider::Here(Arc::clone(authorizer)),
            Self::Elsewhere(remote) => Decider::Elsewhere(remote.open(lifecycle)),
        }
    }
}

/// Who decides, as one core reaches it.
pub(crate) enum Decider {
    Here(Arc<dyn Authorizer>),
    Elsewhere(Rc<Streams>),
}

impl Decider {
    /// As [`Authorizer::check`].
    pub(crate) async fn check(
        &self,
        request: Arc<CheckRequest>,
    ) -> Result<Decision, AuthorizeError> {
        match self {
            Self::Here(authorizer) => authorizer.check(request).await,
            Self::Elsewhere(streams) => streams.check(request).await,
        }
    }

    /// Returns once there is somebody to ask.
    pub(crate) async fn found(&self) {
        match self {
            Self::Here(_) => {}
            Self::Elsewhere(streams) => streams.found().await,
        }
    }

    /// As [`Authorizer::revisits`].
    pub(crate) fn revisits(&self) -> broadcast::Receiver<Revisit> {
        match self {
            Self::Here(authorizer) => authorizer.revisits(),
            Self::Elsewhere(streams) => streams.revisits(),
        }
    }
}
