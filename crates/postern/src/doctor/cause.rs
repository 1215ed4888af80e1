//! From the errors of the ways out to causes with a remedy.

use postern_common::net::{ConnectError, LookupError};
use postern_common::rpc::fault::{PeerFault, Speaks};
use postern_common::telemetry::log::chain;
use postern_common::tls::PeerError;
use postern_common::tls::peer_error::is_clear_text;

use super::code;
use super::finding::Cause;

impl From<&LookupError> for Cause {
    fn from(error: &LookupError) -> Self {
        match error {
            LookupError::NoAddress { .. } | LookupError::BadName { .. } => Self::new(
                code::NAME_UNKNOWN,
                error.to_string(),
            )
            .help(
                "correct the name, or make it known to the name servers that are asked from here",
            ),
            LookupError::NoAnswer { .. } | LookupError::Setup(_) => {
                Self::new(code::NAME_SERVER_SILENT, chain(error)).help(
                    "let this host reach its name servers: /etc/resolv.conf, or `dns_resolvers`",
                )
            }
        }
    }
}

impl From<&ConnectError> for Cause {
    fn from(error: &ConnectError) -> Self {
        match error {
            ConnectError::Tcp { source, .. }
                if source.kind() == std::io::ErrorKind::ConnectionRefused =>
            {
                Self::new(code::REFUSED, "nobody listens there: connection refused")
                    .help("start it, or correct the address or port")
            }
            ConnectError::Tcp { source, .. } => {
                Self::new(code::UNREACHABLE, format!("it cannot be reached: {source}"))
                    .help("look at routes, firewalls and network policies between here and there")
            }
            ConnectError::Deadline { after, .. } => {
                Self::new(code::UNREACHABLE, format!("no connection within {after:?}")).help(
                    "it is down or stuck, or a firewall or network policy drops packets on the way",
                )
            }
            ConnectError::Certificate { reason, .. } => reason.into(),
            error @ ConnectError::Tls { .. } if is_clear_text(error) => Self::new(
                code::CLEAR_TEXT,
                "it answers in clear text, and TLS is expected",
            )
            .help("write http:// in the URL, or let it serve TLS"),
            ConnectError::Tls { .. } => Self::new(code::TLS_FAILS, chain(error)),
        }
    }
}

impl From<&PeerError> for Cause {
    fn from(reason: &PeerError) -> Self {
        let of = |code, help: &'static str| {
            Self::new(code, format!("its certificate: {reason}")).help(help)
        };
        match reason {
            PeerError::Expired { .. } => of(code::CERTIFICATE_EXPIRED, "renew it"),
            PeerError::NotYetValid { .. } => of(
                code::CERTIFICATE_NOT_YET_VALID,
                "wait, or set the clock of this host",
            ),
            PeerError::WrongName { .. } => of(
                code::CERTIFICATE_WRONG_NAME,
                "let it have a certificate for the name by which it is called, or call it by a name \
                 that is there",
            ),
            PeerError::UnknownIssuer => of(
                code::CERTIFICATE_UNKNOWN_AUTHORITY,
                "give its authority as `certificate_authority_file` (for a route also as \
                 `tls_custom_ca_file`)",
            ),
            PeerError::Revoked | PeerError::Other(_) => {
                of(code::CERTIFICATE_REFUSED, "let it have another certificate")
            }
        }
    }
}

impl From<&PeerFault> for Cause {
    fn from(fault: &PeerFault) -> Self {
        match fault {
            PeerFault::Connect(error) => error.into(),
            PeerFault::ClearText(_) => Self::new(
                code::CLEAR_TEXT,
                "it answers in clear text, and TLS is expected",
            )
            .help("write http:// in the URL, or set `grpc_insecure: false` there"),
            PeerFault::OtherProtocol {
                speaks: Speaks::Tls,
                ..
            } => Self::new(
                code::TLS_EXPECTED,
                "it expects TLS, and clear text is configured",
            )
            .help("write https:// in the URL, or set `grpc_insecure: true` there"),
            PeerFault::OtherProtocol { speaks, .. } => {
                Self::new(code::OTHER_PROTOCOL, speaks.to_string())
                    .help("correct the port, or stop what listens there")
            }
            PeerFault::NotHttp2 | PeerFault::Health(_) => {
                Self::new(code::OTHER_PROTOCOL, fault.to_string())
                    .help("correct the port, or stop what listens there")
            }
            PeerFault::Handshake(_) | PeerFault::Silent(_) => {
                Self::new(code::SILENT, fault.to_string())
                    .help("it is stuck or overloaded: look at its log, and start it again")
            }
            PeerFault::Broken(why) => Self::new(code::UNREACHABLE, why.clone()),
            PeerFault::Version { .. } => Self::new(code::VERSIONS_DIFFER, fault.to_string())
                .help("bring all services to one version"),
            PeerFault::ForeignAuthorize => Self::new(code::NOT_POSTERN, fault.to_string()),
            PeerFault::Clocks(_) => Self::new(code::CLOCKS_DIFFER, fault.to_string())
                .help("let NTP set the clocks of all hosts: tokens and sessions carry times"),
            PeerFault::Secrets(_) => Self::new(
                code::SECRETS_DIFFER,
                "shared secrets differ: it does not accept our token",
            )
            .help("give both the same `shared_secret`; to change it see docs/rotate-secrets.md"),
            PeerFault::Token(why) => Self::new(code::SECRETS_DIFFER, why.clone()),
        }
    }
}

/// Whether others at the same name can stand in for one with this cause.
pub fn is_outage(code: Option<&str>) -> bool {
    matches!(
        code,
        Some(code::REFUSED | code::UNREACHABLE | code::SILENT | code::NOT_READY)
    )
}
