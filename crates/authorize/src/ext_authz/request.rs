//! Envoy's question as ours.

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use percent_encoding::percent_decode_str;
use postern_common::authz::{CheckRequest, CheckSubject, ClientCertificate, Scheme};
use postern_common::config::{PathNormalization, RouteChecksum, RouteId};
use postern_common::route::target::RawTarget;
use postern_common::route::{Target, TargetError};
use postern_common::rpc::stubs::ext_authz as proto;
use postern_common::rpc::stubs::ext_authz::attribute_context::HttpRequest;
use postern_common::web::request_id;
use prost_types::value::Kind;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::snapshot::Snapshot;

/// Where a proxy of Pomerium's kind puts the client's certificate.
const CERTIFICATE_METADATA: &str = "com.pomerium.client-certificate-info";

/// Certificates of one chain that are read.
const LONGEST_CHAIN: usize = 16;

/// Why a question can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    #[error("the question has no usable {0}")]
    Missing(&'static str),
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Envoy would forward another path than the one that was judged.
    #[error(
        "the path is not in its normal form; turn on normalize_path and merge_slashes in Envoy"
    )]
    NotNormal,
}

/// What the question says it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    OwnEndpoint,
    /// A route by its id; the checksum is there when it was one of ours that asked.
    Route(RouteId, Option<RouteChecksum>),
    /// Whatever serves the URL.
    Url,
}

impl About {
    /// The route that is asked about, if there is one.
    pub fn subject(&self, snapshot: &Snapshot, request: &CheckRequest) -> Option<CheckSubject> {
        let served = || {
            let route = &snapshot.find(request)?.route;
            Some(CheckSubject::Route {
                id: route.id.clone(),
                checksum: route.checksum,
            })
        };
        match self {
            Self::OwnEndpoint => Some(CheckSubject::OwnEndpoint),
            Self::Url => served(),
            Self::Route(id, Some(checksum)) if snapshot.route(id, *checksum).is_some() => {
                Some(CheckSubject::Route {
                    id: id.clone(),
                    checksum: *checksum,
                })
            }
            // Another product's checksum: the id must be that of what we serve at this URL.
            Self::Route(id, _) => served().filter(
                |subject| matches!(subject, CheckSubject::Route { id: found, .. } if found == id),
            ),
        }
    }

    pub fn names_a_route(&self) -> bool {
        matches!(self, Self::Route(..))
    }
}

/// Reads a question. The subject of the request is only filled in for our own endpoints.
pub fn read(
    question: &proto::CheckRequest,
    rules: PathNormalization,
) -> Result<(CheckRequest, About), QuestionError> {
    let attributes = question.attributes.as_ref();
    let attributes = attributes.ok_or(QuestionError::Missing("attributes"))?;
    let http = attributes
        .request
        .as_ref()
        .and_then(|request| request.http.as_ref());
    let http = http.ok_or(QuestionError::Missing("HTTP request"))?;
    let method =
        Method::from_bytes(http.method.as_bytes()).map_err(|_| QuestionError::Missing("method"))?;
    let scheme = match http.scheme.as_str() {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return Err(QuestionError::Missing("scheme")),
    };
    let headers = headers(http)?;
    let target = target(http, &method, scheme, rules)?;
    let id = headers
        .get(&request_id::HEADER)
        .and_then(|value| value.to_str().ok());
    let request = CheckRequest {
        request_id: id
            .map(ToOwned::to_owned)
            .or_else(|| Some(http.id.clone()).filter(|id| !id.is_empty()))
            .map_or_else(request_id::new, Into::into),
        subject: CheckSubject::OwnEndpoint,
        method,
        scheme,
        host: Arc::clone(target.authority.text()),
        path: target.path().into(),
        query: target.query().map(Into::into),
        headers,
        client_address: client_address(attributes)?,
        client_certificate: client_certificate(attributes)?,
        trace: None,
    };
    Ok((request, about(attributes)?))
}

fn about(attributes: &proto::AttributeContext) -> Result<About, QuestionError> {
    let context = &attributes.context_extensions;
    if context
        .get("internal")
        .is_some_and(|internal| internal == "true")
    {
        return Ok(About::OwnEndpoint);
    }
    let Some(id) = context.get("route_id").filter(|id| !id.is_empty()) else {
        return Ok(About::Url);
    };
    let checksum = context
        .get("route_checksum")
        .map(|text| text.parse().map(RouteChecksum));
    let checksum = checksum
        .transpose()
        .map_err(|_| QuestionError::Missing("route checksum"))?;
    Ok(About::Route(RouteId(id.as_str().into()), checksum))
}

fn target(
    http: &HttpRequest,
    method: &Method,
    scheme: Scheme,
    rules: PathNormalization,
) -> Result<Target, QuestionError> {
    let as_sent = if http.path.is_empty() {
        &http.host
    } else {
        &http.path
    };
    let uri: Uri = as_sent
        .parse()
        .map_err(|_| QuestionError::Missing("path"))?;
    let target = Target::parse(
        RawTarget {
            method,
            scheme,
            authority: &http.host,
            uri: &uri,
        },
        rules,
    )?;
    if !target.is_tunnel() && target.path_and_query() != http.path {
        return Err(QuestionError::NotNormal);
    }
    Ok(target)
}

/// Raw headers where Envoy sends them, else the joined ones.
fn headers(http: &HttpRequest) -> Result<HeaderMap, QuestionError> {
    let mut headers = HeaderMap::new();
    let mut add = |name: &str, value: &[u8]| -> Result<(), QuestionError> {
        // Pseudo-headers are told elsewhere.
        if name.starts_with(':') {
            return Ok(());
        }
        let name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| QuestionError::Missing("header name"))?;
        let value =
            HeaderValue::from_bytes(value).map_err(|_| QuestionError::Missing("header value"))?;
        // `append` would panic at the bound that a map of headers has.
        headers
            .try_append(name, value)
            .map_err(|_| QuestionError::Missing("number of headers"))?;
        Ok(())
    };
    match &http.header_map {
        Some(raw) => {
            for header in &raw.headers {
                if header.raw_value.is_empty() {
                    add(&header.key, header.value.as_bytes())?;
                } else {
                    add(&header.key, &header.raw_value)?;
                }
            }
        }
        None => {
            for (name, value) in &http.headers {
                add(name, value.as_bytes())?;
            }
        }
    }
    Ok(headers)
}

fn client_address(attributes: &proto::AttributeContext) -> Result<IpAddr, QuestionError> {
    use postern_common::rpc::stubs::envoy::config::core::v3::address::Address;
    let address = attributes
        .source
        .as_ref()
        .and_then(|peer| peer.address.as_ref());
    match address.and_then(|address| address.address.as_ref()) {
        Some(Address::SocketAddress(socket)) => socket
            .address
            .parse()
            .map_err(|_| QuestionError::Missing("client address")),
        _ => Err(QuestionError::Missing("client address")),
    }
}

/// From the metadata of a proxy of Pomerium's kind, else what Envoy itself tells.
fn client_certificate(
    attributes: &proto::AttributeContext,
) -> Result<Option<Arc<ClientCertificate>>, QuestionError> {
    let metadata = attributes
        .metadata_context
        .as_ref()
        .and_then(|metadata| metadata.filter_metadata.get(CERTIFICATE_METADATA));
    let encoded = match metadata {
        Some(info) => match info
            .fields
            .get("chain")
            .and_then(|chain| chain.kind.as_ref())
        {
            Some(Kind::StringValue(chain)) => chain.as_str(),
            _ => "",
        },
        None => attributes
            .source
            .as_ref()
            .map_or("", |peer| &peer.certificate),
    };
    if encoded.is_empty() {
        return Ok(None);
    }
    let pem: Vec<u8> = percent_decode_str(encoded).collect();
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem)
        .take(LONGEST_CHAIN)
        .map(|der| der.map(|der| der.to_vec()))
        .collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(Some(Arc::new(ClientCertificate { chain }))),
        _ => Err(QuestionError::Missing("client certificate")),
    }
}
