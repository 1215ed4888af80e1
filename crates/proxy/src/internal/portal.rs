//! The routes that a person may open, as a page and as JSON.
//!
//! Nothing is estimated: authorize is asked about each route as if the person opened it.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use askama::Template;
use futures::StreamExt as _;
use http::{HeaderMap, Method, Response, StatusCode};
use postern_common::authz::{AuthorizeError, CheckRequest, CheckSubject, Decision};
use postern_common::config::{FromScheme, PathMatcher, Route};
use postern_common::web::page::{self, Forms};
use serde::Serialize;

use super::{nothing, with_type};
use crate::body::Body;
use crate::core::Core;
use crate::permit;
use crate::refuse::Stop;
use crate::request::Request;
use crate::snapshot::Snapshot;

/// Routes that are asked about for one page.
const ROUTES: usize = 500;

/// Questions under way at once.
const AT_ONCE: usize = 16;

#[derive(Debug, Serialize)]
struct Portal {
    routes: Vec<Entry>,
}

#[derive(Debug, Serialize)]
struct Entry {
    id: String,
    name: String,
    r#type: &'static str,
    from: String,
    description: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    connect_command: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logo_url: Option<String>,
}

#[derive(Template)]
#[template(path = "routes.html")]
struct Page<'a> {
    routes: &'a [Entry],
}

/// `/.pomerium/routes`
pub(super) async fn page(
    core: &Rc<Core>,
    snapshot: &Arc<Snapshot>,
    request: &Request,
    headers: &HeaderMap,
) -> Result<Response<Body>, Stop> {
    let portal = portal(core, snapshot, request, headers).await?;
    let content = Page {
        routes: &portal.routes,
    };
    let page = page::respond(
        &snapshot.look,
        StatusCode::OK,
        "Routes",
        Forms::None,
        &content,
    );
    Ok(page.map(Body::full))
}

/// `/.pomerium/api/v1/routes`
pub(super) async fn json(
    core: &Rc<Core>,
    snapshot: &Arc<Snapshot>,
    request: &Request,
    headers: &HeaderMap,
) -> Result<Response<Body>, Stop> {
    let portal = portal(core, snapshot, request, headers).await?;
    let body = serde_json::to_string(&portal).unwrap_or_default();
    Ok(with_type(StatusCode::OK, "application/json", body))
}

async fn portal(
    core: &Rc<Core>,
    snapshot: &Arc<Snapshot>,
    request: &Request,
    headers: &HeaderMap,
) -> Result<Portal, Stop> {
    if !snapshot.config.flags.routes_portal {
        return Err(nothing());
    }
    // Refused, or sent to sign in, without a session.
    permit::identify(core, request, headers).await?;
    let routes = snapshot.routes.routes().iter().take(ROUTES).cloned();
    let mut asked = pin!(
        futures::stream::iter(routes)
            .map(|route| async move {
                let allowed = may_open(core, request, headers, &route).await;
                (route, allowed)
            })
            .buffered(AT_ONCE)
    );
    let mut routes = Vec::new();
    while let Some((route, allowed)) = asked.next().await {
        // Not to know is no "no": a page with less on it would be a wrong answer.
        if allowed.map_err(|error| permit::undecided(&error))? {
            routes.push(entry(&route));
        }
    }
    Ok(Portal { routes })
}

/// The handle in the cookie is good for the host it came to, so the question keeps this host and
/// names the other route.
async fn may_open(
    core: &Core,
    request: &Request,
    headers: &HeaderMap,
    route: &Route,
) -> Result<bool, AuthorizeError> {
    let subject = CheckSubject::Route {
        id: route.id.clone(),
        checksum: route.checksum,
    };
    let path = match &route.matcher {
        PathMatcher::Any | PathMatcher::Regex(_) => "/",
        PathMatcher::Prefix(path) | PathMatcher::Exact(path) => path,
    };
    let question = CheckRequest {
        method: Method::GET,
        path: path.into(),
        query: None,
        ..request.question(subject, headers.clone())
    };
    let decision = core.authorizer.check(Arc::new(question)).await?;
    Ok(matches!(decision, Decision::Allow(_)))
}

fn entry(route: &Route) -> Entry {
    let (kind, from, connect_command) = match &route.from.scheme {
        FromScheme::Tcp { authorities } => {
            let command = authorities
                .first()
                .map(|to| format!("pomerium-cli tcp {to}"));
            ("tcp", route.from.text.clone(), command)
        }
        FromScheme::Http | FromScheme::Https => ("http", from(route), None),
    };
    Entry {
        id: route.id.to_string(),
        name: route.name.clone(),
        r#type: kind,
        from,
        description: route.description.clone(),
        connect_command,
        logo_url: route.logo_url.clone(),
    }
}

/// Where a click leads: the route's host, with its path where it has one.
fn from(route: &Route) -> String {
    let base = route.from.text.trim_end_matches('/');
    match &route.matcher {
        PathMatcher::Prefix(path) | PathMatcher::Exact(path) if path != "/" => {
            format!("{base}{path}")
        }
        _ => base.to_owned(),
    }
}
