//! The request as the upstream gets it.

use std::borrow::Cow;

use http::header::HOST;
use http::uri::{PathAndQuery, Scheme as UriScheme};
use http::{HeaderMap, HeaderValue, Request, Uri, Version};
use postern_common::authz::Allow;
use postern_common::config::{PassIdentity, UpstreamProtocol};
use postern_common::route::TargetForm;
use postern_common::telemetry::trace::{self, Place, TRACEPARENT};

use super::Plan;
use super::exchange::RequestBody;
use super::headers::{Forwarding, X_FORWARDED_HOST};
use super::rewrite::{self, UpstreamHost};
use crate::refuse::Stop;
use crate::snapshot::Snapshot;
use crate::upgrade;
use crate::upstream::Member;

/// Everything it is made of.
pub(super) struct Outgoing<'a> {
    pub snapshot: &'a Snapshot,
    pub request: &'a crate::request::Request,
    pub headers: &'a HeaderMap,
    pub allow: &'a Allow,
    pub plan: &'a Plan<'a>,
    pub member: &'a Member,
    pub path: &'a Cow<'a, str>,
    pub path_and_query: &'a PathAndQuery,
    pub trace: Option<Place>,
}

impl Outgoing<'_> {
    /// The request, and the host that it names.
    pub(super) fn build(
        &self,
        http2: bool,
        body: RequestBody,
    ) -> Result<(Request<RequestBody>, HeaderValue), Stop> {
        let Self { request, plan, .. } = self;
        let own = HeaderValue::try_from(&**request.target.authority.text())
            .map_err(|error| Stop::bad_request("invalid_host", error.to_string()))?;
        let rule = &plan.target.host;
        let chosen = rewrite::host(
            rule,
            &self.member.authority,
            self.headers,
            request.target.path(),
        );
        let (host, replaced) = match chosen {
            UpstreamHost::Unchanged => (own, None),
            UpstreamHost::Changed(host) => {
                let replaced = (host != own).then_some(&**request.target.authority.text());
                (host, replaced)
            }
        };
        let removed = plan
            .route
            .map_or(&[][..], |route| &route.route.request_headers.remove);
        let websocket_key = request.upgrade.as_ref().filter(|upgrade| upgrade.extended);
        let mut map = self.snapshot.headers.upstream(
            self.headers,
            self.allow,
            &Forwarding {
                peer: &request.peer,
                client: &request.client_address,
                proto: request.target.scheme.as_str(),
                request_id: &request.id,
                replaced_host: replaced.filter(|_| !removed.contains(&X_FORWARDED_HOST)),
                replaced_path: (**self.path != *request.target.path())
                    .then(|| request.target.path()),
                upgrade: request.upgrade.as_ref().map(|upgrade| &upgrade.token),
                receiver: plan.receiver,
                identity: plan
                    .route
                    .map_or(PassIdentity::Yes, |r| r.route.identity.headers),
                remove: removed,
            },
        );
        if let Some(place) = self.trace
            && !removed.contains(&TRACEPARENT)
        {
            trace::pass_on(place, self.headers, &mut map);
        }
        if websocket_key.is_some() {
            upgrade::add_websocket_key(&mut map);
        }
        let mut out = Request::new(body);
        *out.method_mut() = request.method.clone();
        if http2 {
            *out.version_mut() = Version::HTTP_2;
            *out.uri_mut() = self.absolute(&host)?;
        } else {
            map.insert(HOST, host.clone());
            *out.uri_mut() = Uri::from(self.path_and_query.clone());
        }
        if let TargetForm::Tunnel { host_and_port } = &request.target.form {
            // RFC 9110 9.3.6: the destination, whoever passes it on.
            let uri = Uri::try_from(&**host_and_port)
                .map_err(|error| Stop::bad_request("invalid_host", error.to_string()))?;
            let destination = HeaderValue::try_from(&**host_and_port)
                .map_err(|error| Stop::bad_request("invalid_host", error.to_string()))?;
            map.insert(HOST, destination);
            *out.uri_mut() = uri;
        }
        *out.headers_mut() = map;
        Ok((out, host))
    }

    fn absolute(&self, host: &HeaderValue) -> Result<Uri, Stop> {
        let scheme = match self.member.endpoint.protocol {
            UpstreamProtocol::Https => UriScheme::HTTPS,
            _ => UriScheme::HTTP,
        };
        Uri::builder()
            .scheme(scheme)
            .authority(host.as_bytes())
            .path_and_query(self.path_and_query.clone())
            .build()
            .map_err(|error| Stop::bad_request("invalid_host", error.to_string()))
    }
}
