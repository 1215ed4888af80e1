//! A collector of traces: OTLP by gRPC and by HTTP, on one port.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use http::{HeaderMap, StatusCode};
use postern_common::rpc::stubs::opentelemetry::proto as otlp;
use prost::Message as _;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::site::Server;
use crate::wait;

use otlp::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use otlp::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use otlp::common::v1::any_value::Value;
use otlp::common::v1::{AnyValue, KeyValue};
pub use otlp::trace::v1::Span;

/// A span, and the process that sent it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub service: String,
    pub span: Span,
    /// What came with the batch.
    pub headers: HeaderMap,
}

impl Seen {
    /// An attribute, as text.
    pub fn says(&self, key: &str) -> Option<String> {
        attribute(&self.span.attributes, key)
    }
}

pub struct Collector {
    pub server: Server,
    memory: Memory,
}

#[derive(Debug, Clone, Default)]
struct Memory(Arc<Mutex<Vec<Seen>>>);

impl Memory {
    fn keep(&self, headers: &HeaderMap, request: ExportTraceServiceRequest) {
        let mut seen = self.0.lock().expect("no test panics here");
        for group in request.resource_spans {
            let about = group.resource.expect("a resource").attributes;
            let service = attribute(&about, "service.name").expect("a name");
            for span in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                seen.push(Seen {
                    service: service.clone(),
                    span,
                    headers: headers.clone(),
                });
            }
        }
    }
}

#[tonic::async_trait]
impl TraceService for Memory {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        self.keep(&metadata.into_headers(), message);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    pub async fn start() -> Self {
        let memory = Memory::default();
        let grpc = Routes::new(TraceServiceServer::new(memory.clone())).into_axum_router();
        let http = axum::Router::new()
            .route("/v1/traces", post(by_http))
            .with_state(memory.clone());
        Self {
            server: Server::start(grpc.merge(http)).await,
            memory,
        }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.memory.0.lock().expect("no test panics here").clone()
    }

    /// What has come, once `enough` finds in it what it looks for.
    pub async fn until<T>(&self, what: &str, enough: impl Fn(&[Seen]) -> Option<T>) -> T {
        wait::until(what, Duration::from_secs(20), async || {
            let seen = self.seen();
            let names = || seen.iter().map(name).collect::<Vec<_>>();
            enough(&seen).ok_or_else(names)
        })
        .await
    }
}

/// `SERVICE NAME`
pub fn name(seen: &Seen) -> String {
    format!("{} {}", seen.service, seen.span.name)
}

/// A span and those that it is part of, the outermost last. `None` while one of them has not come.
pub fn way_up(seen: &[Seen], from: &Seen, outside: &[u8]) -> Option<Vec<String>> {
    let mut way = vec![name(from)];
    let mut parent = &from.span.parent_span_id;
    while !parent.is_empty() && parent != outside {
        let above = seen
            .iter()
            .find(|it| it.span.span_id == *parent && it.span.trace_id == from.span.trace_id)?;
        way.push(name(above));
        parent = &above.span.parent_span_id;
    }
    Some(way)
}

async fn by_http(
    State(memory): State<Memory>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(), StatusCode> {
    let request = ExportTraceServiceRequest::decode(body).map_err(|_| StatusCode::BAD_REQUEST)?;
    memory.keep(&headers, request);
    Ok(())
}

fn attribute(all: &[KeyValue], key: &str) -> Option<String> {
    let found = all.iter().find(|it| it.key == key)?;
    found.value.as_ref().map(text)
}

fn text(value: &AnyValue) -> String {
    match &value.value {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        Some(Value::ArrayValue(array)) => {
            array.values.iter().map(text).collect::<Vec<_>>().join(",")
        }
        None => String::new(),
    }
}
