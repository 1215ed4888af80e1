//! Spans on their way to the collector: batches, each with a deadline, none repeated.

use std::time::{Duration, Instant};

use http::{HeaderMap, Request, header};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;

use super::place::Sampler;
use super::span::any;
use super::{TRACER, Tracer, opentelemetry, proto};
use crate::config::{Config, TracesOptions, TracesProtocol};
use crate::http_client::{GrpcClient, HttpsClient, Limits};
use crate::lifecycle::Lifecycle;
use crate::net::{LookupError, Resolver};
use crate::telemetry::RateLimit;
use crate::telemetry::log::chain;
use crate::telemetry::metrics::{Labels, Metrics};
use crate::tls::{TlsError, Trust};
use opentelemetry::proto::collector::trace::v1 as collector;
use opentelemetry::proto::common::v1 as common;
use opentelemetry::proto::resource::v1::Resource;

/// Spans that may wait, in batches.
const QUEUE: usize = 4;

/// A smaller queue would be full after one busy moment.
const SMALLEST_QUEUE: usize = 2048;

/// How long what is under way may take once the process ends, and again what still waits.
const LAST: Duration = Duration::from_millis(800);

/// One line about a collector that takes nothing in this time.
const LINES: Duration = Duration::from_secs(60);

/// Bytes of an answer: it says how many spans were refused, and why.
const LARGEST_ANSWER: usize = 64 * 1024;

type Client = collector::trace_service_client::TraceServiceClient<GrpcClient>;

/// Spans cannot be sent from here.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("the collector of traces: names cannot be resolved")]
    Resolver(#[from] LookupError),
    #[error("the collector of traces: TLS")]
    Tls(#[from] TlsError),
    #[error("otel_exporter_otlp_endpoint has no use as an address: {0}")]
    Endpoint(String),
}

/// Traces from now on, if the configuration says so. Counts for the whole process, and until it ends.
pub fn start(config: &Config, metrics: &Metrics, lifecycle: &Lifecycle) -> Result<(), ExportError> {
    let Some(options) = config.traces.as_ref().filter(|_| !disabled()) else {
        return Ok(());
    };
    let exporter = Exporter::new(config, options.clone(), metrics)?;
    let room = (options.batch * QUEUE).max(SMALLEST_QUEUE);
    let (queue, spans) = mpsc::channel(room);
    let shared = config.secrets.shared.first();
    let tracer = Tracer {
        sampler: Sampler {
            ratio: options.ratio,
            key: shared.map_or([0; 32], |key| *key.as_bytes()),
        },
        queue,
        overflowed: exporter.counts.overflowed.clone(),
        longest_value: options.longest_value,
    };
    if TRACER.set(tracer).is_ok() {
        tracing::info!(endpoint = exporter.endpoint, "requests are traced");
        lifecycle.spawn(exporter.run(spans, lifecycle.stopping()));
    }
    Ok(())
}

/// OpenTelemetry's own switch, which is no key.
fn disabled() -> bool {
    std::env::var_os("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"))
}

#[derive(Debug, Clone)]
struct Counts {
    exported: Counter,
    /// The queue had no room.
    overflowed: Counter,
    /// The collector did not take it.
    refused: Counter,
}

impl Counts {
    fn new(metrics: &Metrics) -> Self {
        let dropped = metrics.add(
            "postern_traces_dropped",
            "Spans that were lost: for want of room, or because the collector did not take them",
            Family::<Labels, Counter>::default(),
        );
        let why = |why: &str| {
            dropped
                .get_or_create(&vec![("why", why.to_owned())])
                .clone()
        };
        Self {
            exported: metrics.add(
                "postern_traces_exported",
                "Spans that the collector took",
                Counter::default(),
            ),
            overflowed: why("queue"),
            refused: why("collector"),
        }
    }
}

enum Way {
    Grpc(Box<Client>),
    Http(HttpsClient),
}

struct Exporter {
    way: Way,
    options: TracesOptions,
    /// For messages: without the query, where some collectors want a key.
    endpoint: String,
    headers: HeaderMap,
    resource: Resource,
    counts: Counts,
    lines: RateLimit,
}

impl Exporter {
    fn new(
        config: &Config,
        options: TracesOptions,
        metrics: &Metrics,
    ) -> Result<Self, ExportError> {
        let trust =
            Trust::system().and(&config.certificate_authorities, "certificate_authority")?;
        let resolver = Resolver::new(config.dns.clone())?;
        let way = match options.protocol {
            TracesProtocol::Http => Way::Http(HttpsClient::new(resolver, &trust)?),
            TracesProtocol::Grpc => {
                let origin = options.endpoint.origin().ascii_serialization();
                let origin = origin.parse().map_err(|error: http::uri::InvalidUri| {
                    ExportError::Endpoint(error.to_string())
                })?;
                let client = GrpcClient::new(&resolver, &trust)?;
                Way::Grpc(Box::new(Client::with_origin(client, origin)))
            }
        };
        let mut endpoint = options.endpoint.clone();
        endpoint.set_query(None);
        endpoint.set_fragment(None);
        Ok(Self {
            way,
            endpoint: endpoint.into(),
            headers: options.headers.iter().cloned().collect(),
            resource: resource(&config.services.label(), &options),
            counts: Counts::new(metrics),
            lines: RateLimit::new(LINES),
            options,
        })
    }

    async fn run(mut self, mut spans: mpsc::Receiver<proto::Span>, stop: CancellationToken) {
        let mut batch = Vec::new();
        while stop
            .run_until_cancelled(fill(&mut spans, &mut batch, &self.options))
            .await
            .is_some()
        {
            let size = batch.len();
            let ends = async {
                stop.cancelled().await;
                sleep(LAST).await;
            };
            tokio::select! {
                () = self.export(std::mem::take(&mut batch)) => {}
                () = ends => self.lost(size, "the process ends"),
            }
        }
        // What requests left behind until the very end.
        spans.close();
        let mut under_way = 0;
        let flush = async {
            loop {
                while batch.len() < self.options.batch
                    && let Ok(span) = spans.try_recv()
                {
                    batch.push(span);
                }
                if batch.is_empty() {
                    return;
                }
                under_way = batch.len();
                self.export(std::mem::take(&mut batch)).await;
            }
        };
        if timeout(LAST, flush).await.is_err() {
            self.lost(under_way + spans.len(), "the process ends");
        }
    }

    /// Sends a batch, once.
    async fn export(&mut self, spans: Vec<proto::Span>) {
        let size = spans.len();
        let request = self.request(spans);
        match self.send(request).await {
            Ok(rejected) => {
                let rejected = usize::try_from(rejected).unwrap_or(0).min(size);
                self.counts.exported.inc_by((size - rejected) as u64);
                if rejected > 0 {
                    self.lost(rejected, "the collector rejected them");
                }
            }
            Err(why) => self.lost(size, &why),
        }
    }

    fn lost(&self, spans: usize, why: &str) {
        self.counts.refused.inc_by(spans as u64);
        if let Some(held_back) = self.lines.pass("collector", Instant::now()) {
            let endpoint = &*self.endpoint;
            tracing::warn!(endpoint, why, spans, held_back, "spans are lost");
        }
    }

    fn request(&self, spans: Vec<proto::Span>) -> collector::ExportTraceServiceRequest {
        let scope = common::InstrumentationScope {
            name: "postern".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let scope_spans = vec![proto::ScopeSpans {
            scope: Some(scope),
            spans,
        }];
        collector::ExportTraceServiceRequest {
            resource_spans: vec![proto::ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans,
            }],
        }
    }

    /// How many spans the collector did not keep.
    async fn send(&mut self, message: collector::ExportTraceServiceRequest) -> Result<i64, String> {
        let limit = self.options.timeout;
        let answer = match &mut self.way {
            Way::Grpc(client) => {
                let metadata = MetadataMap::from_headers(self.headers.clone());
                let request =
                    tonic::Request::from_parts(metadata, http::Extensions::new(), message);
                match timeout(limit, client.export(request)).await {
                    Ok(Ok(answer)) => answer.into_inner(),
                    Ok(Err(status)) => {
                        return Err(format!("{:?}: {}", status.code(), chain(&status)));
                    }
                    Err(_) => return Err(format!("no answer within {limit:?}")),
                }
            }
            Way::Http(client) => {
                let mut request = Request::post(self.options.endpoint.as_str())
                    .body(message.encode_to_vec())
                    .map_err(|error| error.to_string())?;
                request.headers_mut().extend(self.headers.clone());
                let protobuf = header::HeaderValue::from_static("application/x-protobuf");
                request.headers_mut().insert(header::CONTENT_TYPE, protobuf);
                let limits = Limits {
                    deadline: limit,
                    max_body: LARGEST_ANSWER,
                };
                let answer = client.send(request, limits).await;
                let answer = answer.map_err(|error| chain(&error))?;
                if !answer.status().is_success() {
                    return Err(format!("the collector answered {}", answer.status()));
                }
                // Some answer with nothing, or with text.
                collector::ExportTraceServiceResponse::decode(answer.body().as_slice())
                    .unwrap_or_default()
            }
        };
        Ok(answer.partial_success.map_or(0, |part| part.rejected_spans))
    }
}

/// Returns with a full batch, or a while after the first span of it. What is read stays in `batch`.
async fn fill(
    spans: &mut mpsc::Receiver<proto::Span>,
    batch: &mut Vec<proto::Span>,
    options: &TracesOptions,
) {
    if spans.recv_many(batch, options.batch).await == 0 {
        // The sender lives as long as the process.
        std::future::pending::<()>().await;
    }
    let until = tokio::time::Instant::now() + options.delay;
    while batch.len() < options.batch {
        let room = options.batch - batch.len();
        match timeout_at(until, spans.recv_many(batch, room)).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
    }
}

/// What this process is. The configuration may say otherwise.
fn resource(services: &str, options: &TracesOptions) -> Resource {
    let mut pairs = options.resource.clone();
    for (name, value) in [
        ("service.name", services.to_owned()),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
    ] {
        if !pairs.iter().any(|(written, _)| written == name) {
            pairs.push((name.to_owned(), value));
        }
    }
    let attributes = pairs.into_iter().map(|(key, value)| common::KeyValue {
        key,
        value: Some(any(common::any_value::Value::StringValue(value))),
    });
    Resource {
        attributes: attributes.collect(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::test_config as config;

    /// To a collector that takes connections and says nothing.
    async fn unheard(query: &str) -> (Exporter, TcpListener) {
        let collector = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = config(&format!(
            "otel_traces_exporter: otlp\notel_exporter_otlp_protocol: http/protobuf\n\
             otel_bsp_max_export_batch_size: 2\n\
             otel_exporter_otlp_traces_endpoint: http://{}/v1/traces{query}\n",
            collector.local_addr().unwrap(),
        ));
        let options = config.traces.clone().unwrap();
        let exporter = Exporter::new(&config, options, &Metrics::default()).unwrap();
        (exporter, collector)
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_end_of_the_process_cuts_off_is_counted() {
        for before in [1, 3] {
            let (exporter, _collector) = unheard("").await;
            let counts = exporter.counts.clone();
            let (queue, spans) = mpsc::channel(8);
            let stop = CancellationToken::new();
            stop.cancel();
            for _ in 0..before {
                queue.try_send(proto::Span::default()).unwrap();
            }
            exporter.run(spans, stop).await;
            assert_eq!(counts.refused.get(), before);
            assert_eq!(counts.exported.get(), 0);
        }
    }

    #[tokio::test]
    async fn a_key_in_the_query_of_the_endpoint_is_not_told() {
        let (exporter, _collector) = unheard("?api-key=secret").await;
        assert!(exporter.endpoint.ends_with("/v1/traces"));
        assert!(!exporter.endpoint.contains("secret"));
    }
}
