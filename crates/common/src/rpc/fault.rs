//! What is wrong with a peer: one cause each, in words for the log and as a type for whoever has to
//! tell them apart.

use std::time::Duration;

use crate::net::ConnectError;
use crate::telemetry::log::chain;

/// Why an endpoint gets no calls.
#[derive(Debug, thiserror::Error)]
pub enum PeerFault {
    /// No connection, or no TLS.
    #[error("{}", chain(.0))]
    Connect(ConnectError),
    /// TLS was expected, and there is none.
    #[error(
        "{}: it answers in clear text; write http:// in the URL, or set `grpc_insecure: false` there",
        chain(.0)
    )]
    ClearText(ConnectError),
    /// TLS without `h2`.
    #[error("the peer speaks TLS but not HTTP/2; is this a gRPC port?")]
    NotHttp2,
    /// No HTTP/2 in time.
    #[error("no HTTP/2 within {0:?}")]
    Handshake(Duration),
    /// Its first bytes are those of another protocol.
    #[error("{speaks} ({why})")]
    OtherProtocol {
        /// Which one.
        speaks: Speaks,
        /// What became of the connection.
        why: String,
    },
    /// The connection broke.
    #[error("{0}")]
    Broken(String),
    /// It does not answer.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// It answers health checks with an error.
    #[error("health: {0}")]
    Health(String),
    /// Another version that was never tried together with this one.
    #[error(
        "versions differ too much: it is Postern {theirs}, this is {ours}; only neighbouring minor \
         versions work together"
    )]
    Version {
        /// The peer's.
        theirs: String,
        /// This program's.
        ours: &'static str,
    },
    /// Pomerium's authorize.
    #[error(
        "it is Pomerium's authorize, which does not answer Postern's proxy; run postern-authorize \
         there"
    )]
    ForeignAuthorize,
    /// Our token is too old there, or from its future.
    #[error("clocks differ: our token has expired there ({0})")]
    Clocks(String),
    /// Our token is not accepted.
    #[error("shared secrets differ: it does not accept our token ({0})")]
    Secrets(String),
    /// No token could be made.
    #[error("{0}")]
    Token(String),
}

/// What a peer speaks that does not speak HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Speaks {
    /// HTTP/1.1
    #[error("it speaks HTTP/1.1, not HTTP/2; is this a gRPC port?")]
    Http1,
    /// TLS
    #[error("it expects TLS; write https:// in the URL, or set `grpc_insecure: true` there")]
    Tls,
    /// SSH
    #[error("it speaks SSH; is this a gRPC port?")]
    Ssh,
    /// Something else.
    #[error("it does not speak HTTP/2; is this a gRPC port?")]
    Other,
}
