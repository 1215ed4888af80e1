//! The authorize service across the network: questions and answers on long streams.
//!
//! Several streams are kept, so that they reach several replicas. A question goes to the least
//! busy one; unanswered for a moment it is asked on another stream too, and the first answer
//! counts. A stream that breaks is opened anew and its questions are asked again.

mod stream;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use postern_common::authz::{AuthorizeError, Authorizer, CheckRequest, Decision, Revisit};
use postern_common::config::Config;
use postern_common::lifecycle::Lifecycle;
use postern_common::rpc::Transport;
use postern_common::rpc::token::TokenKeys;
use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use self::stream::Stream;

/// After this time without an answer, a question is asked on a second stream too.
const SECOND_STREAM: Duration = Duration::from_millis(300);

/// Authorize may have to load the configuration that we have.
const CONFIGURATIONS_MEET: Duration = Duration::from_secs(2);

/// Between two questions about that.
const CONFIGURATION_PAUSE: Duration = Duration::from_millis(100);

/// Changes that a core may be behind before it takes everything as changed.
const REVISITS: usize = 1024;

/// `grpc_client_timeout: 0` does not mean for ever.
const LONGEST: Duration = Duration::from_secs(30);

/// An [`Authorizer`] that asks the authorize service over gRPC.
pub struct Remote {
    first: Stream,
    others: Vec<Stream>,
    revisits: broadcast::Sender<Revisit>,
    config: watch::Receiver<Arc<Config>>,
}

impl Remote {
    /// Opens `streams` streams (as many as there are cores, at least two) over `transport`, which
    /// balances over all replicas, signed with `keys`. Returns at once; questions wait for a
    /// stream.
    pub fn connect(
        transport: &Transport,
        keys: &TokenKeys,
        config: watch::Receiver<Arc<Config>>,
        streams: usize,
        lifecycle: &Lifecycle,
    ) -> Arc<dyn Authorizer> {
        let (revisits, _) = broadcast::channel(REVISITS);
        let open = || {
            let (transport, keys) = (transport.clone(), keys.clone());
            Stream::open(transport, keys, config.clone(), revisits.clone(), lifecycle)
        };
        let first = open();
        let others = (1..streams.max(2)).map(|_| open()).collect();
        Arc::new(Self {
            first,
            others,
            revisits,
            config,
        })
    }

    /// Asks until there is an answer that can stand, or `deadline`.
    async fn ask(
        &self,
        request: Arc<CheckRequest>,
        deadline: Instant,
    ) -> Result<Decision, AuthorizeError> {
        let begin = Instant::now();
        loop {
            let answer = self.ask_once(&request, deadline).await;
            let Err(AuthorizeError::UnknownConfiguration { .. }) = &answer else {
                return answer;
            };
            let next = Instant::now() + CONFIGURATION_PAUSE;
            if begin.elapsed() >= CONFIGURATIONS_MEET || next >= deadline {
                return answer;
            }
            sleep(CONFIGURATION_PAUSE).await;
        }
    }

    async fn ask_once(
        &self,
        request: &Arc<CheckRequest>,
        deadline: Instant,
    ) -> Result<Decision, AuthorizeError> {
        let late = || AuthorizeError::Unreachable {
            reason: "no answer within grpc_client_timeout".to_owned(),
        };
        let (first, second) = self.two_streams();
        let mut asked = Box::pin(first.ask(Arc::clone(request)));
        let patience = (Instant::now() + SECOND_STREAM).min(deadline);
        tokio::select! {
            biased;
            answer = &mut asked => return answer,
            () = sleep_until(patience) => {}
        }
        let Some(second) = second else {
            return timeout_at(deadline, asked)
                .await
                .unwrap_or_else(|_| Err(late()));
        };
        let also = Box::pin(second.ask(Arc::clone(request)));
        let both = futures::future::select_ok([asked.boxed(), also.boxed()]);
        match timeout_at(deadline, both).await {
            Ok(Ok((decision, _))) => Ok(decision),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(late()),
        }
    }

    /// The two least busy streams, those that are open first.
    fn two_streams(&self) -> (&Stream, Option<&Stream>) {
        let order = |stream: &Stream| (!stream.is_open(), stream.load());
        let (mut best, mut next) = (&self.first, None);
        for stream in &self.others {
            if order(stream) < order(best) {
                next = Some(std::mem::replace(&mut best, stream));
            } else if next.is_none_or(|next| order(stream) < order(next)) {
                next = Some(stream);
            }
        }
        (best, next)
    }
}

impl Authorizer for Remote {
    fn check(&self, request: Arc<CheckRequest>) -> BoxFuture<'_, Result<Decision, AuthorizeError>> {
        let limit = match self.config.borrow().grpc.client_timeout {
            Duration::ZERO => LONGEST,
            limit => limit,
        };
        self.ask(request, Instant::now() + limit).boxed()
    }

    fn revisits(&self) -> broadcast::Receiver<Revisit> {
        self.revisits.subscribe()
    }
}
