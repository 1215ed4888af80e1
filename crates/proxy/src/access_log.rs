//! The access log: one line a request, written when the last byte of its answer has gone.
//!
//! Members have the names and meanings that Pomerium gave them: `authority` and `path` are those
//! that the upstream got. The client's own stand in `original-host` and `original-path`.

mod fields;
mod redact;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use postern_common::telemetry::trace::{Span, Value as Attribute};
use serde_json::{Map, Value};
use tokio::time::Instant;

use self::fields::Field;
pub(crate) use self::fields::Fields;
use crate::forward::headers::X_FORWARDED_FOR;
use crate::metrics::{ProxyMetrics, RouteMetrics};
use crate::snapshot::Prepared;

/// What is known about a request so far. Writes its line when it is dropped.
#[derive(Debug)]
pub(crate) struct Record {
    pub id: Arc<str>,
    pub started: Instant,
    fields: Arc<Fields>,
    metrics: Arc<ProxyMetrics>,
    quiet: bool,
    method: Method,
    host: Arc<str>,
    path: Arc<str>,
    query: Option<Arc<str>>,
    upstream_host: Option<HeaderValue>,
    upstream_path: Option<String>,
    route: Option<Arc<RouteMetrics>>,
    cluster: Option<Arc<str>>,
    user_agent: Option<HeaderValue>,
    referer: Option<HeaderValue>,
    forwarded_for: Option<HeaderValue>,
    headers: Vec<(String, String)>,
    ip: Option<std::net::IpAddr>,
    client_certificate: Option<Arc<postern_common::authz::ClientCertificate>>,
    status: Option<StatusCode>,
    details: &'static str,
    cause: Option<String>,
    sent: u64,
    complete: bool,
    /// Ends with the line.
    span: Span,
}

impl Record {
    pub(crate) fn begin(
        id: Arc<str>,
        started: Instant,
        fields: Arc<Fields>,
        metrics: Arc<ProxyMetrics>,
        method: &Method,
        uri: &http::Uri,
        headers: &HeaderMap,
    ) -> Self {
        metrics.request_began();
        let wanted = fields.wanted_headers();
        let wanted = wanted
            .filter_map(|(written, name)| {
                let value = headers.get(name)?;
                Some((written.clone(), redact::header(name, value.as_bytes())))
            })
            .collect();
        Self {
            id,
            started,
            metrics,
            quiet: false,
            method: method.clone(),
            host: "".into(),
            path: uri.path().into(),
            query: None,
            upstream_host: None,
            upstream_path: None,
            route: None,
            cluster: None,
            user_agent: headers.get(header::USER_AGENT).cloned(),
            referer: headers.get(header::REFERER).cloned(),
            forwarded_for: headers.get(X_FORWARDED_FOR).cloned(),
            headers: wanted,
            ip: None,
            client_certificate: None,
            status: None,
            details: "",
            cause: None,
            sent: 0,
            complete: false,
            span: Span::of_client(headers),
            fields,
        }
    }

    /// What the request turned out to be for.
    pub(crate) fn request(&mut self, request: &mut crate::request::Request) {
        request.trace = self.span.place();
        self.method.clone_from(&request.method);
        self.host = Arc::clone(request.target.authority.text());
        match &request.target.form {
            postern_common::route::TargetForm::Resource { path, query } => {
                self.path = Arc::clone(path);
                self.query.clone_from(query);
            }
            postern_common::route::TargetForm::Tunnel { host_and_port } => {
                self.host = Arc::clone(host_and_port);
                self.path = "".into();
            }
        }
        self.ip = Some(request.client_address.ip());
        self.client_certificate
            .clone_from(&request.client_certificate);
    }

    /// The client's host, once the request has been read.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Health checks are of interest only to those who debug them.
    pub(crate) fn quiet(&mut self) {
        self.quiet = true;
        self.span.discard();
    }

    pub(crate) fn route(&mut self, route: &Prepared) {
        self.span.set(
            "postern.route_id",
            &Attribute::Text(route.route.id.as_str()),
        );
        self.cluster = Some(Arc::clone(&route.cluster_name));
        self.route = Some(Arc::clone(&route.metrics));
    }

    /// One of our own: `pomerium-…`.
    pub(crate) fn own(&mut self, cluster: &'static str) {
        self.cluster = Some(cluster.into());
    }

    pub(crate) fn forwarded(&mut self, host: Option<HeaderValue>, path: String) {
        self.upstream_host = host;
        self.upstream_path = Some(path);
    }

    pub(crate) fn answered(
        &mut self,
        status: StatusCode,
        details: &'static str,
        cause: Option<String>,
    ) {
        self.status = Some(status);
        self.details = details;
        self.cause = cause;
    }

    pub(crate) fn sent(&mut self, bytes: usize) {
        self.sent += u64::try_from(bytes).unwrap_or(0);
    }

    /// The last byte was handed over.
    pub(crate) fn complete(&mut self) {
        self.complete = true;
    }

    /// We ended it, for a reason that is no error.
    pub(crate) fn ended(&mut self, details: &'static str) {
        self.details = details;
        self.complete = true;
    }

    /// The answer was broken off by us or by the upstream.
    pub(crate) fn cut(&mut self, details: &'static str, cause: &(dyn std::error::Error + 'static)) {
        self.details = details;
        self.cause = Some(postern_common::telemetry::log::chain(cause));
        self.complete = true;
    }

    fn value(&self, field: &Field, elapsed: Duration) -> Value {
        let text = |value: &Option<HeaderValue>| match value {
            Some(value) => Value::from(String::from_utf8_lossy(value.as_bytes())),
            None => Value::from(""),
        };
        match field {
            Field::UpstreamCluster => Value::from(self.cluster.as_deref().unwrap_or_default()),
            Field::Method => Value::from(self.method.as_str()),
            Field::Authority => match &self.upstream_host {
                Some(_) => text(&self.upstream_host),
                None => Value::from(&*self.host),
            },
            Field::Path => Value::from(self.upstream_path.as_deref().unwrap_or(&self.path)),
            Field::OriginalHost => Value::from(&*self.host),
            Field::OriginalPath => Value::from(&*self.path),
            Field::UserAgent => text(&self.user_agent),
            Field::Referer => {
                let referer = text(&self.referer);
                let without_query = referer.as_str().and_then(|r| r.split(['?', '#']).next());
                Value::from(without_query.unwrap_or_default())
            }
            Field::ForwardedFor => text(&self.forwarded_for),
            Field::RequestId => Value::from(&*self.id),
            Field::Duration => Value::from(elapsed.as_secs_f64() * 1000.0),
            Field::Size => Value::from(self.sent),
            // 0 is what Envoy logs when the client left first.
            Field::ResponseCode => match self.status {
                Some(status) if self.complete || self.sent > 0 => Value::from(status.as_u16()),
                Some(status) if self.bodiless() => Value::from(status.as_u16()),
                Some(_) | None => Value::from(0),
            },
            Field::ResponseCodeDetails => Value::from(self.details),
            Field::Query => {
                let query = self.query.as_deref().unwrap_or_default();
                Value::from(redact::query(query))
            }
            Field::Ip => Value::from(self.ip.map(|ip| ip.to_string()).unwrap_or_default()),
            Field::ClientCertificate => self
                .client_certificate
                .as_deref()
                .map_or(Value::Null, certificate),
            Field::ClusterStatName => {
                Value::from(self.route.as_ref().map_or("", |route| route.stat_name()))
            }
            Field::Header(..) => Value::Null,
        }
    }

    /// hyper never asks for the body of such answers.
    fn bodiless(&self) -> bool {
        self.method == Method::HEAD
            || self.status.is_some_and(|status| {
                status.is_informational()
                    || status == StatusCode::NO_CONTENT
                    || status == StatusCode::NOT_MODIFIED
                    || status.is_redirection()
            })
            || (self.method == Method::CONNECT && self.status == Some(StatusCode::OK))
    }

    /// What the span says about the request: no more than the line does.
    fn describe(&mut self) {
        let Self { span, host, .. } = self;
        let method = span.method(&self.method);
        let way = self.route.as_ref().map(|route| route.stat_name());
        span.rename(match way.or(self.cluster.as_deref()) {
            Some(way) => format!("{method} {way}"),
            None => method.to_owned(),
        });
        let name = match host.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => name,
            _ => host,
        };
        span.set("server.address", &Attribute::Text(name));
        span.set("url.path", &Attribute::Text(&self.path));
        span.set("postern.request_id", &Attribute::Text(&self.id));
        span.set("postern.details", &Attribute::Text(self.details));
        if let Some(status) = self.status {
            span.status(status);
        }
    }

    fn line(&self, elapsed: Duration) -> String {
        let mut members = String::from("{");
        let mut add = |name: &str, value: &Value| {
            let separator = if members.len() > 1 { "," } else { "" };
            // Writing to a String does not fail.
            let _ = write!(members, "{separator}{}:{value}", Value::from(name));
        };
        let mut headers_done = false;
        for field in &self.fields.0 {
            let Field::Header(..) = field else {
                add(field.name(), &self.value(field, elapsed));
                continue;
            };
            if !headers_done {
                headers_done = true;
                let all: Map<String, Value> = self
                    .headers
                    .iter()
                    .map(|(name, value)| (name.clone(), Value::from(&**value)))
                    .collect();
                add("headers", &Value::Object(all));
            }
        }
        if let Some(cause) = &self.cause {
            add("error", &Value::from(cause.as_str()));
        }
        members.push('}');
        members
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let elapsed = self.started.elapsed();
        if self.span.is_open() {
            self.describe();
        }
        self.metrics
            .request_ended(self.status, elapsed, self.route.as_deref());
        if self.quiet {
            if tracing::enabled!(tracing::Level::DEBUG) {
                let object = self.line(elapsed);
                tracing::debug!(service = "envoy", object, "http-request");
            }
        } else if tracing::enabled!(tracing::Level::INFO) {
            let object = self.line(elapsed);
            tracing::info!(service = "envoy", object, "http-request");
        }
    }
}

fn certificate(certificate: &postern_common::authz::ClientCertificate) -> Value {
    use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
    let Some(Ok((_, parsed))) = certificate
        .chain
        .first()
        .map(|der| X509Certificate::from_der(der))
    else {
        return Value::Null;
    };
    let names: Vec<String> = parsed
        .subject_alternative_name()
        .ok()
        .flatten()
        .map(|names| {
            let known = names
                .value
                .general_names
                .iter()
                .filter_map(|name| match name {
                    GeneralName::DNSName(name) => Some(format!("DNS:{name}")),
                    GeneralName::URI(uri) => Some(format!("URI:{uri}")),
                    _ => None,
                });
            known.collect()
        })
        .unwrap_or_default();
    serde_json::json!({
        "issuer": parsed.issuer().to_string(),
        "subject": parsed.subject().to_string(),
        "subjectAltName": names,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(fields: Option<&[String]>) -> Record {
        let mut headers = HeaderMap::new();
        headers.insert("user-agent", "test".parse().unwrap());
        headers.insert("referer", "https://a.test/x?secret=1".parse().unwrap());
        headers.insert("x-b", "b".parse().unwrap());
        let uri: http::Uri = "/p?q=1".parse().unwrap();
        Record::begin(
            "R".into(),
            Instant::now(),
            Arc::new(Fields::new(fields)),
            Arc::new(ProxyMetrics::new(
                &postern_common::telemetry::metrics::Metrics::default(),
            )),
            &Method::GET,
            &uri,
            &headers,
        )
    }

    #[test]
    fn the_default_fields_have_pomeriums_meaning() {
        let mut record = record(None);
        record.forwarded(Some("up:80".parse().unwrap()), "/up/p".to_owned());
        record.answered(StatusCode::OK, "via_upstream", None);
        record.sent(5);
        record.complete();
        let line: Value = serde_json::from_str(&record.line(Duration::from_millis(3))).unwrap();
        assert_eq!(line["authority"], "up:80");
        assert_eq!(line["path"], "/up/p");
        assert_eq!(line["original-path"], "/p");
        assert_eq!(line["referer"], "https://a.test/x");
        assert_eq!(line["duration"], 3.0);
        assert_eq!(line["size"], 5);
        assert_eq!(line["response-code"], 200);
        assert_eq!(line["response-code-details"], "via_upstream");
        assert!(line.get("query").is_none(), "may hold secrets");
    }

    #[test]
    fn configured_fields_replace_the_default_in_order() {
        let names = ["headers.X-B", "method", "headers.X-C", "nonsense"].map(str::to_owned);
        let record = record(Some(&names));
        let line = record.line(Duration::ZERO);
        assert_eq!(line, r#"{"headers":{"X-B":"b"},"method":"GET"}"#);
    }

    #[test]
    fn a_client_that_left_first_has_code_zero() {
        let mut record = record(None);
        record.answered(StatusCode::OK, "via_upstream", None);
        let line: Value = serde_json::from_str(&record.line(Duration::ZERO)).unwrap();
        assert_eq!(line["response-code"], 0);
    }
}
