//! Which other services this process calls by their URLs: those that it does not run itself.

use postern_common::config::{Service, Services};

use super::finding::{Check, Finding};
use super::site::Site;
use super::{authenticate, peers};

/// Whether a process that runs `services` calls `called` across the network.
pub fn calls(services: &Services, called: Service) -> bool {
    let has_a_use = match called {
        Service::Authorize | Service::Authenticate => services.contains(Service::Proxy),
        Service::Databroker => true,
        Service::Proxy => false,
    };
    has_a_use && !services.contains(called)
}

/// Tells of URLs that are named and not used: who meant one service of four, and forgot to say so
/// (`SERVICES`), would take them for looked at.
pub fn unused(site: &Site) -> Vec<Finding> {
    let named = [
        (
            Service::Authorize,
            Check::Authorize,
            peers::AUTHORIZE_KEYS.as_slice(),
        ),
        (
            Service::Authenticate,
            Check::Authenticate,
            &[authenticate::KEY],
        ),
        (
            Service::Databroker,
            Check::Databroker,
            &peers::DATABROKER_KEYS,
        ),
    ];
    named
        .into_iter()
        .filter(|(service, ..)| site.config.services.contains(*service))
        .filter_map(|(_, check, keys)| {
            let key = *keys.iter().find(|key| site.places.key(key).is_some())?;
            let message = format!("runs it, so `{key}` is not used");
            Some(Finding::ok(check, "this process", message).key(key))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_in_the_process_is_not_called_by_its_url() {
        let called = |services: &Services| {
            let called = Service::ALL.into_iter().filter(|it| calls(services, *it));
            called.collect::<Vec<_>>()
        };
        let (authorize, authenticate, databroker) = (
            Service::Authorize,
            Service::Authenticate,
            Service::Databroker,
        );
        assert_eq!(called(&Services::all()), []);
        let proxy = Services::one(Service::Proxy);
        assert_eq!(called(&proxy), [authorize, authenticate, databroker]);
        assert_eq!(called(&Services::one(authorize)), [databroker]);
        assert_eq!(called(&Services::one(databroker)), []);
        let most = Services::new([Service::Proxy, authorize, authenticate]).unwrap();
        assert_eq!(called(&most), [databroker]);
    }
}
