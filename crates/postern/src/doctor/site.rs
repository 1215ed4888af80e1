//! What all checks need: the configuration, where its keys stand, and the ways out of here.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use postern_common::config::{Config, Places};
use postern_common::http_client::HttpsClient;
use postern_common::net::{LookupError, Resolver};
use postern_common::rpc::token::TokenKeys;
use postern_common::tls::{TlsError, Trust};

use super::code;
use super::finding::{Cause, Check, Finding};

/// A connection, with TLS.
pub const CONNECT: Duration = Duration::from_secs(3);
/// An answer, once there is a connection.
pub const ANSWER: Duration = Duration::from_secs(3);
/// Connections that are tried at a time.
pub const AT_ONCE: usize = 64;
/// Clocks may differ by this much, or what one signs is too young or too old for the other.
const CLOCKS: i64 = 10;

/// From where everything is looked at.
pub struct Site {
    pub config: Arc<Config>,
    pub places: Places,
    pub resolver: Resolver,
    pub trust: Trust,
    pub client: HttpsClient,
    pub keys: TokenKeys,
}

/// Nothing can be looked at.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    #[error("names cannot be resolved")]
    Resolver(#[from] LookupError),
    #[error("certificate_authority cannot be used")]
    Trust(#[from] TlsError),
}

impl Site {
    pub fn new(config: Arc<Config>, places: Places) -> Result<Self, SiteError> {
        let resolver = Resolver::new(config.dns.clone())?;
        let trust =
            Trust::system().and(&config.certificate_authorities, "certificate_authority")?;
        Ok(Self {
            client: HttpsClient::new(resolver.clone(), &trust)?,
            keys: TokenKeys::new(config.secrets.shared.clone()),
            config,
            places,
            resolver,
            trust,
        })
    }

    /// Which of two keys that mean the same is set; the first if none is.
    pub fn set(&self, keys: &[&'static str]) -> &'static str {
        let set = keys.iter().find(|key| self.places.key(key).is_some());
        set.or(keys.first()).copied().unwrap_or_default()
    }
}

/// Holds somebody's clock against ours.
pub fn clock(check: Check, subject: &str, theirs: Option<Timestamp>) -> Option<Finding> {
    let ahead = theirs?.as_second() - Timestamp::now().as_second();
    if ahead.abs() <= CLOCKS {
        return None;
    }
    let direction = if ahead > 0 { "ahead of" } else { "behind" };
    let seconds = ahead.abs();
    Some(Finding::error(
        check,
        subject,
        Cause::new(
            code::CLOCKS_DIFFER,
            format!("its clock is {seconds} s {direction} ours"),
        )
        .help("let NTP set the clocks of all hosts: tokens and sessions carry times"),
    ))
}
