//! `registry.Registry`: where services say that their metrics are found, for a console to read.
//!
//! What is reported is kept in memory, by each databroker for itself, and forgotten after [`LIFE`].
//! Reporters come again soon enough that each of a few databrokers behind one name hears of them.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::Stream;
use postern_common::rpc::stubs::registry::registry_server::Registry as RegistryService;
use postern_common::rpc::stubs::registry::{
    ListRequest, RegisterRequest, RegisterResponse, Service, ServiceKind, ServiceList,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// A service that was not reported for so long is gone.
const LIFE: Duration = Duration::from_secs(30);
/// When a reporter shall come again.
const CALL_BACK: Duration = Duration::from_secs(5);
/// Services at a time; those that are known may still be reported anew.
const MAX_SERVICES: usize = 1000;
/// In one report.
const MAX_REPORT: usize = 64;
/// Bytes of an endpoint.
const MAX_ENDPOINT: usize = 2048;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum ReportError {
    #[error("a report needs 1 to {MAX_REPORT} services")]
    Count,
    #[error("a service needs a kind, and an endpoint of 1 to {MAX_ENDPOINT} bytes")]
    Service,
    #[error("{MAX_SERVICES} services are known, and no more are kept")]
    Full,
}

/// By kind and endpoint: until when it is known.
#[derive(Debug, Default)]
struct Table(BTreeMap<(i32, String), Instant>);

impl Table {
    fn report(&mut self, services: Vec<Service>, now: Instant) -> Result<(), ReportError> {
        if services.is_empty() || services.len() > MAX_REPORT {
            return Err(ReportError::Count);
        }
        let sound = |service: &Service| {
            let known = ServiceKind::try_from(service.kind);
            known.is_ok_and(|kind| kind != ServiceKind::UndefinedDoNotUse)
                && (1..=MAX_ENDPOINT).contains(&service.endpoint.len())
        };
        if !services.iter().all(sound) {
            return Err(ReportError::Service);
        }
        self.0.retain(|_, until| *until > now);
        for service in services {
            let key = (service.kind, service.endpoint);
            if self.0.len() >= MAX_SERVICES && !self.0.contains_key(&key) {
                return Err(ReportError::Full);
            }
            self.0.insert(key, now + LIFE);
        }
        Ok(())
    }

    /// Those of `kinds`, all if it is empty.
    fn list(&self, kinds: &[i32], now: Instant) -> Vec<Service> {
        let wanted = self.0.iter().filter(|((kind, _), until)| {
            **until > now && (kinds.is_empty() || kinds.contains(kind))
        });
        wanted
            .map(|((kind, endpoint), _)| Service {
                kind: *kind,
                endpoint: endpoint.clone(),
            })
            .collect()
    }
}

/// The service; clones share what they know.
#[derive(Debug, Clone)]
pub struct Registry {
    table: Arc<Mutex<Table>>,
    reports: watch::Sender<()>,
    /// Ends the streams.
    stop: CancellationToken,
}

impl Registry {
    pub fn new(stop: CancellationToken) -> Self {
        Self {
            table: Arc::default(),
            reports: watch::Sender::new(()),
            stop,
        }
    }

    fn list_now(&self, kinds: &[i32]) -> ServiceList {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        ServiceList {
            services: table.list(kinds, Instant::now()),
        }
    }

    /// A list first, then another whenever it is a different one.
    async fn watch_into(self, kinds: Vec<i32>, sender: mpsc::Sender<Result<ServiceList, Status>>) {
        let mut reports = self.reports.subscribe();
        let mut told = None;
        loop {
            reports.mark_unchanged();
            let list = self.list_now(&kinds);
            if told.as_ref() != Some(&list) {
                if sender.send(Ok(list.clone())).await.is_err() {
                    return;
                }
                told = Some(list);
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = sender.closed() => return,
                // What is no longer reported goes without a report.
                () = tokio::time::sleep(CALL_BACK) => {}
                changed = reports.changed() => if changed.is_err() { return },
            }
        }
    }
}

#[tonic::async_trait]
impl RegistryService for Registry {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<ServiceList, Status>> + Send>>;

    async fn report(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        let services = request.into_inner().services;
        let reported = {
            let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            table.report(services, Instant::now())
        };
        reported.map_err(|error| match error {
            ReportError::Full => Status::resource_exhausted(error.to_string()),
            _ => Status::invalid_argument(error.to_string()),
        })?;
        self.reports.send_replace(());
        Ok(Response::new(RegisterResponse {
            call_back_after: prost_types::Duration::try_from(CALL_BACK).ok(),
        }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ServiceList>, Status> {
        Ok(Response::new(self.list_now(&request.into_inner().kinds)))
    }

    async fn watch(
        &self,
        request: Request<ListRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(self.clone().watch_into(request.into_inner().kinds, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

#[cfg(test)]
mod tests {
    use postern_common::rpc::Transport;
    use postern_common::rpc::stubs::registry::registry_client::RegistryClient;
    use postern_common::rpc::stubs::registry::registry_server::RegistryServer;
    use tonic::Code;
    use tonic::service::Routes;

    use super::*;

    fn metrics(endpoint: &str) -> Service {
        Service {
            kind: ServiceKind::PrometheusMetrics.into(),
            endpoint: endpoint.to_owned(),
        }
    }

    #[test]
    fn services_are_known_until_they_are_no_longer_reported() {
        let (mut table, start) = (Table::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        table
            .report(vec![metrics("a"), metrics("b")], start)
            .unwrap();
        table.report(vec![metrics("b")], at(20)).unwrap();
        assert_eq!(table.list(&[], at(29)), [metrics("a"), metrics("b")]);
        assert_eq!(table.list(&[], at(31)), [metrics("b")]);
        assert_eq!(table.list(&[ServiceKind::Proxy.into()], at(31)), []);
        assert_eq!(table.list(&[], at(51)), []);
    }

    #[test]
    fn reports_are_bounded() {
        let (mut table, now) = (Table::default(), Instant::now());
        assert_eq!(table.report(Vec::new(), now), Err(ReportError::Count));
        let many = vec![metrics("x"); MAX_REPORT + 1];
        assert_eq!(table.report(many, now), Err(ReportError::Count));
        let long = "x".repeat(MAX_ENDPOINT + 1);
        for bad in [
            metrics(""),
            metrics(&long),
            Service {
                kind: 0,
                ..metrics("x")
            },
            Service {
                kind: 99,
                ..metrics("x")
            },
        ] {
            assert_eq!(table.report(vec![bad], now), Err(ReportError::Service));
        }
        for number in 0..MAX_SERVICES {
            table
                .report(vec![metrics(&number.to_string())], now)
                .unwrap();
        }
        assert_eq!(
            table.report(vec![metrics("one more")], now),
            Err(ReportError::Full)
        );
        table.report(vec![metrics("7")], now).unwrap();
        let later = now + LIFE + Duration::from_secs(1);
        table.report(vec![metrics("one more")], later).unwrap();
        assert_eq!(table.list(&[], later).len(), 1);
    }

    #[tokio::test]
    async fn a_generated_client_reports_lists_and_watches() {
        let registry = Registry::new(CancellationToken::new());
        let routes = Routes::new(RegistryServer::new(registry));
        let mut client = RegistryClient::new(Transport::local(routes));
        let all = || ListRequest { kinds: Vec::new() };
        let mut stream = client.watch(all()).await.unwrap().into_inner();
        assert_eq!(stream.message().await.unwrap().unwrap().services, []);
        let report = RegisterRequest {
            services: vec![metrics("http://10.0.0.1:9090/metrics")],
            ..RegisterRequest::default()
        };
        let answer = client.report(report).await.unwrap().into_inner();
        assert_eq!(answer.call_back_after.unwrap().seconds, 5);
        let changed = stream.message().await.unwrap().unwrap();
        assert_eq!(changed, client.list(all()).await.unwrap().into_inner());
        assert_eq!(changed.services[0].endpoint, "http://10.0.0.1:9090/metrics");
        let refused = client.report(RegisterRequest::default()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
}
