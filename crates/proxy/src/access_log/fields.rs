//! Names of the access log's fields, and which of them a configuration asks for.

use http::HeaderName;

/// Which fields a line has, in order; parsed once for a configuration.
#[derive(Debug, Clone)]
pub(crate) struct Fields(pub(super) Vec<Field>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Field {
    UpstreamCluster,
    Method,
    Authority,
    Path,
    OriginalHost,
    OriginalPath,
    UserAgent,
    Referer,
    ForwardedFor,
    RequestId,
    Duration,
    Size,
    ResponseCode,
    ResponseCodeDetails,
    Query,
    Ip,
    ClientCertificate,
    ClusterStatName,
    Header(String, HeaderName),
}

const DEFAULT: [&str; 14] = [
    "upstream-cluster",
    "method",
    "authority",
    "path",
    "original-host",
    "original-path",
    "user-agent",
    "referer",
    "forwarded-for",
    "request-id",
    "duration",
    "size",
    "response-code",
    "response-code-details",
];

impl Fields {
    /// `access_log_fields`; what is unknown has been reported when it was loaded.
    pub(crate) fn new(names: Option<&[String]>) -> Self {
        Self(match names {
            Some(names) => names.iter().filter_map(|name| Field::parse(name)).collect(),
            None => DEFAULT
                .iter()
                .filter_map(|name| Field::parse(name))
                .collect(),
        })
    }

    pub(super) fn wanted_headers(&self) -> impl Iterator<Item = (&String, &HeaderName)> {
        self.0.iter().filter_map(|field| match field {
            Field::Header(written, name) => Some((written, name)),
            _ => None,
        })
    }
}

impl Field {
    pub(super) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "upstream-cluster" => Self::UpstreamCluster,
            "method" => Self::Method,
            "authority" => Self::Authority,
            "path" => Self::Path,
            "original-host" => Self::OriginalHost,
            "original-path" => Self::OriginalPath,
            "user-agent" => Self::UserAgent,
            "referer" => Self::Referer,
            "forwarded-for" => Self::ForwardedFor,
            "request-id" => Self::RequestId,
            "duration" => Self::Duration,
            "size" => Self::Size,
            "response-code" => Self::ResponseCode,
            "response-code-details" => Self::ResponseCodeDetails,
            "query" => Self::Query,
            "ip" => Self::Ip,
            "client-certificate" => Self::ClientCertificate,
            "cluster-stat-name" => Self::ClusterStatName,
            _ => {
                let written = name.strip_prefix("headers.")?;
                Self::Header(written.to_owned(), HeaderName::try_from(written).ok()?)
            }
        })
    }
}

impl Field {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::UpstreamCluster => "upstream-cluster",
            Self::Method => "method",
            Self::Authority => "authority",
            Self::Path => "path",
            Self::OriginalHost => "original-host",
            Self::OriginalPath => "original-path",
            Self::UserAgent => "user-agent",
            Self::Referer => "referer",
            Self::ForwardedFor => "forwarded-for",
            Self::RequestId => "request-id",
            Self::Duration => "duration",
            Self::Size => "size",
            Self::ResponseCode => "response-code",
            Self::ResponseCodeDetails => "response-code-details",
            Self::Query => "query",
            Self::Ip => "ip",
            Self::ClientCertificate => "client-certificate",
            Self::ClusterStatName => "cluster-stat-name",
            Self::Header(..) => "headers",
        }
    }
}
