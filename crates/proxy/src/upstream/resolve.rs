//! Keeps the addresses of an endpoint's host fresh. A failed or empty answer changes nothing that
//! was known.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use postern_common::net::Resolver;
use tokio::sync::watch;

use super::Addresses;

/// No name is asked for more often, whatever its TTL says.
const SHORTEST: Duration = Duration::from_secs(1);

/// Resolves until nobody listens any more.
pub(super) async fn follow(
    host: String,
    port: u16,
    resolver: Resolver,
    listeners: watch::Sender<Addresses>,
) {
    loop {
        let options = resolver.options();
        let wait = match resolver.lookup(&host).await {
            Ok(found) => {
                let mut addresses: Vec<_> = found
                    .addresses
                    .iter()
                    .map(|ip| SocketAddr::new(*ip, port))
                    .collect();
                addresses.sort_unstable();
                listeners.send_if_modified(|known| take_over(known, addresses));
                found
                    .ttl
                    .unwrap_or(options.refresh_rate)
                    .min(options.refresh_rate)
            }
            Err(error) => {
                let reason: Arc<str> = postern_common::telemetry::log::chain(&error).into();
                let kept = matches!(&*listeners.borrow(), Addresses::Known(_));
                tracing::warn!(
                    host,
                    reason = &*reason,
                    kept,
                    "an upstream's name does not resolve"
                );
                if !kept {
                    listeners.send_replace(Addresses::Failed(reason));
                }
                options.failure_refresh_rate
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait.max(SHORTEST)) => {}
            () = listeners.closed() => return,
        }
    }
}

fn take_over(known: &mut Addresses, new: Vec<SocketAddr>) -> bool {
    let same = matches!(known, Addresses::Known(old) if **old == *new);
    if !same {
        *known = Addresses::Known(new.into());
    }
    !same
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_wake_listeners() {
        let mut known = Addresses::Resolving;
        let address: SocketAddr = "10.0.0.1:80".parse().unwrap();
        assert!(take_over(&mut known, vec![address]));
        assert!(!take_over(&mut known, vec![address]));
        assert!(take_over(&mut known, vec![]));
    }
}
