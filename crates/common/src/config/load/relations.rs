//! What only shows when routes are seen together: shadowed ones, and the host of authenticate.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::diagnostic::{Diagnostic, code};
use super::super::options::{CookieOptions, Service, ServiceUrls, Services};
use super::super::route::{FromScheme, PathMatcher, PathRewrite, RouteFrom, RouteTarget};
use super::reader::Load;
use super::route::{Placed, join_difference};
use super::shadow::Earlier;
use crate::web::redirect::Targets;

/// A host of `depends_on` that no route serves could only end a sign-in in an error: it is left out.
pub fn depends_on(load: &mut Load<'_>, routes: &mut [Placed], targets: &Targets) {
    for placed in routes {
        let Some(route) = Arc::get_mut(&mut placed.route) else {
            continue;
        };
        route.depends_on.retain(|host| {
            let served = targets.browser(&format!("https://{host}/")).is_ok();
            if !served {
                load.say(
                    Diagnostic::warning(
                        code::IGNORED,
                        format!("`depends_on` names `{host}`, which no route here serves: it is left out"),
                    )
                    .at(&placed.place)
                    .help("name a host as `from` of a route has it"),
                );
            }
            served
        });
    }
}

/// Browsers do not take a cookie for another domain than the page's, so nobody could sign in there.
fn cookie_domain(load: &mut Load<'_>, routes: &[Placed], cookie: &CookieOptions) {
    let Some(domain) = cookie.domain.as_deref() else {
        return;
    };
    for placed in routes {
        let host = placed.route.from.host.as_str();
        let inside = host
            .strip_suffix(domain)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        // Programs that open tunnels bring their handle in a header.
        let by_cookie = !matches!(placed.route.from.scheme, FromScheme::Tcp { .. });
        if by_cookie && !inside {
            load.say(
                Diagnostic::warning(
                    code::CONFLICT,
                    format!("nobody can sign in at `{host}`: `cookie_domain` is {domain}, and browsers take no cookie of it there"),
                )
                .at(&placed.place)
                .help("set `cookie_domain` to a domain of all routes, or leave it out, so that each host has a cookie of its own"),
            );
        }
    }
}

pub fn check(
    load: &mut Load<'_>,
    routes: &[Placed],
    urls: &ServiceUrls,
    services: &Services,
    cookie: &CookieOptions,
) {
    cookie_domain(load, routes, cookie);
    twins_and_shadows(load, routes);
    for placed in routes {
        if let Some(path) = join_difference(&placed.route.target)
            && matches!(
                placed.route.matcher,
                PathMatcher::Any | PathMatcher::Prefix(_)
            )
        {
            load.say(
                Diagnostic::note(
                    code::DIFFERENCE,
                    format!("a request for `/x` goes to `{path}/x`; Pomerium would send `{path}x`"),
                )
                .at(&placed.place)
                .help(format!("write `{path}/` in `to` to have the same in both")),
            );
        }
    }
    authenticate_host(load, routes, urls, services);
}

/// Routes that are there twice, and routes that an earlier one leaves nothing to.
fn twins_and_shadows(load: &mut Load<'_>, routes: &[Placed]) {
    let (mut by_id, mut earlier) = (HashMap::new(), Earlier::default());
    for (index, later) in routes.iter().enumerate() {
        let shadow = earlier.next(index, &later.route);
        // Requests name their route by its id.
        let first = *by_id.entry(&later.route.id).or_insert(index);
        if let Some(twin) = routes.get(first).filter(|_| first < index) {
            load.say(
                Diagnostic::error(
                    code::CONFLICT,
                    "this route is there twice: `from`, path and target are the same",
                )
                .at(&later.place)
                .help(format!(
                    "the other one is at {}; remove one of them",
                    twin.place
                )),
            );
        } else if let Some(earlier) = shadow.and_then(|shadow| routes.get(shadow)) {
            load.say(
                Diagnostic::warning(
                    code::SHADOWED,
                    "this route is never reached: an earlier one takes all its requests",
                )
                .at(&later.place)
                .help(format!(
                    "the earlier one is at {}; put this one before it",
                    earlier.place
                )),
            );
        }
    }
}

/// The paths that authenticate answers on its own host.
const OWN_PATHS: &str = "`/.pomerium/…`, `/.well-known/pomerium/…`, `/oauth2/callback`, `/`, `/robots.txt`, `/ping` and `/healthz`";

fn authenticate_host(
    load: &mut Load<'_>,
    routes: &[Placed],
    urls: &ServiceUrls,
    services: &Services,
) {
    let Some(host) = urls.authenticate.host_str() else {
        return;
    };
    let port = urls.authenticate.port();
    let same = |from: &RouteFrom| from.host == host && (from.port.is_none() || from.port == port);
    let fronting: Vec<&Placed> = routes
        .iter()
        .filter(|placed| same(&placed.route.from))
        .collect();
    for placed in &fronting {
        if services.contains(Service::Authenticate) {
            load.say(
                Diagnostic::note(
                    code::CONFLICT,
                    format!("this route shares the host of `authenticate_service_url`: {OWN_PATHS} go to authenticate, all else to the route"),
                )
                .at(&placed.place),
            );
        } else if leads_to_itself(placed, urls) {
            load.say(
                Diagnostic::error(
                    code::CONFLICT,
                    "this route forwards the sign-in host to itself",
                )
                .at(&placed.place)
                .help("let `to` name authenticate's own address, or set `authenticate_internal_service_url` and remove the route"),
            );
        }
    }
}

/// The same host and port as outside, while proxy answers there.
fn leads_to_itself(placed: &Placed, urls: &ServiceUrls) -> bool {
    let RouteTarget::Upstream(target) = &placed.route.target else {
        return false;
    };
    let external = (
        urls.authenticate.host_str(),
        urls.authenticate.port_or_known_default(),
    );
    let direct = matches!(target.rewrite, PathRewrite::None);
    direct
        && target
            .endpoints
            .iter()
            .any(|endpoint| (Some(endpoint.host.as_str()), Some(endpoint.port)) == external)
}
