//! From the configuration to a running identity manager.

use std::sync::Arc;

use jiff::Timestamp;
use postern_common::http_client::HttpsClient;
use postern_common::launch::Launched;
use postern_common::net::{LookupError, Resolver};
use postern_common::tls::{TlsError, Trust};

use super::{IdTokenExpiry, Manager, ManagerMetrics};
use crate::Databroker;

/// Providers can't be reached from here, and waiting would not help.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    #[error("names of identity providers cannot be resolved")]
    Resolver(#[from] LookupError),
    #[error("certificate_authority cannot be used for identity providers")]
    Trust(#[from] TlsError),
}

/// Starts the manager beside `databroker`. It gives its lease back when the process drains, so
/// that another goes on at once, and ends what it has begun.
pub fn start(databroker: &Databroker, launched: &Launched) -> Result<(), ManagerError> {
    let config = Arc::clone(&launched.config.borrow());
    let resolver = Resolver::new(config.dns.clone())?;
    let trust = Trust::system().and(&config.certificate_authorities, "certificate_authority")?;
    let http = HttpsClient::new(resolver, &trust)?;
    let manager = Manager {
        databroker: databroker.clone(),
        keys: launched.keys.clone(),
        providers: postern_identity::follow(launched.config.clone(), http.into()),
        id_token_expiry: if config.flags.refresh_session_at_id_token_expiration {
            IdTokenExpiry::Counts
        } else {
            IdTokenExpiry::Ignored
        },
        now: Arc::new(Timestamp::now),
        metrics: ManagerMetrics::new(&launched.metrics, &config.services.label()),
    };
    let draining = launched.lifecycle.draining();
    launched.lifecycle.spawn(manager.run(draining));
    Ok(())
}
