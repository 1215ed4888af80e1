//! What a core works with: its own part, and what all cores share.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use arc_swap::ArcSwap;
use postern_common::lifecycle::{Lifecycle, Phase};
use postern_common::net::accept::Failures;
use postern_common::rpc::Transport;
use postern_common::rpc::token::TokenKeys;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::admission::Queue;
use crate::deciding::{Decider, Deciding};
use crate::metrics::ProxyMetrics;
use crate::open::Registry;
use crate::revisit::Pace;
use crate::snapshot::Snapshot;
use crate::upstream::pool::Pool;

/// The same for every core.
pub(crate) struct Shared {
    /// The configuration in use.
    pub snapshot: ArcSwap<Snapshot>,
    pub deciding: Deciding,
    pub databroker: Transport,
    pub keys: TokenKeys,
    /// Authenticate, when it runs in this process.
    pub authenticate: Option<axum::Router>,
    pub lifecycle: Lifecycle,
    pub metrics: Arc<ProxyMetrics>,
    /// The multi-thread runtime for what is no request.
    pub control: tokio::runtime::Handle,
    /// Connections of clients, over all cores.
    pub connections: AtomicUsize,
    /// How many there may be: the next one is closed at once.
    pub max_connections: usize,
    /// Requests at once to one address of an upstream, per core.
    pub upstream_requests: usize,
    pub accept_failures: Failures,
}

/// One core's own. Nothing in it leaves its thread, so nothing in it needs a lock.
pub(crate) struct Core {
    pub shared: Arc<Shared>,
    pub authorizer: Decider,
    pub pool: Pool,
    pub open: Rc<Registry>,
    pub undecided: Rc<Queue>,
    pub pace: Pace,
    pub phase: watch::Receiver<Phase>,
    /// Connections and tunnels; the core ends with the last of them.
    pub tasks: TaskTracker,
}

impl Core {
    /// The configuration as it is now. A request takes it once, and sees no other.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }
}
