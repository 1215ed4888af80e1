//! What somebody gets who has to sign in: a browser is sent to the sign-in page, a program is told.
//!
//! The link is bound to the browser that gets it: a random value in a cookie of the route's host,
//! its keyed hash in the callback's URL. So nobody can finish a sign-in in another browser.

use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use postern_common::authz::{CheckRequest, DenyKind};
use postern_common::config::CookieOptions;
use postern_common::crypto::binding::{self, BindingCookie};
use postern_common::crypto::keys::SecretKey;
use postern_common::web::negotiate::{self, Client};
use postern_common::web::sign_in_link::{Page, SignInLink, browser_binding};
use url::Url;

use crate::credential;

/// Where people sign in, and how the link there is made.
#[derive(Debug, Clone, Copy)]
pub struct SignIn<'a> {
    /// The authenticate service as browsers see it.
    pub authenticate: &'a Url,
    pub shared_secret: &'a SecretKey,
    pub cookie: &'a CookieOptions,
    /// `None`: no provider is configured; authenticate says so.
    pub provider_id: Option<&'a str>,
    /// Further hosts that the sign-in is for.
    pub depends_on: &'a [String],
}

/// Randomness for one link.
#[derive(Debug, Clone, Copy)]
pub struct Random {
    /// For a browser that has no binding cookie yet.
    pub cookie: [u8; 16],
    pub nonce: [u8; 16],
}

/// The answer, and the headers that go with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    pub kind: DenyKind,
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// Asks whoever sent `request` to sign in.
pub fn challenge(
    request: &CheckRequest,
    sign_in: &SignIn<'_>,
    random: Random,
    now: Timestamp,
) -> Challenge {
    if is_prefetch(&request.headers) {
        // Nobody is looking. A sign-in begun here would be in the way of a real one.
        return Challenge {
            kind: DenyKind::Unauthenticated { sign_in_url: None },
            headers: Vec::new(),
        };
    }
    let (cookie, set_cookie) =
        browser_binding(&request.headers, &sign_in.cookie.name, random.cookie, now);
    let Some(link) = link(request, sign_in, &cookie, random.nonce, now) else {
        // A host that no URL can have: there is nowhere to come back to.
        return Challenge {
            kind: DenyKind::Unauthenticated { sign_in_url: None },
            headers: Vec::new(),
        };
    };
    let location = String::from(link);
    Challenge {
        kind: if is_browser(request) {
            DenyKind::SignIn { location }
        } else {
            DenyKind::Unauthenticated {
                sign_in_url: Some(location),
            }
        },
        headers: set_cookie
            .into_iter()
            .map(|value| (SET_COOKIE, value))
            .collect(),
    }
}

fn link(
    request: &CheckRequest,
    sign_in: &SignIn<'_>,
    cookie: &BindingCookie,
    nonce: binding::Nonce,
    now: Timestamp,
) -> Option<Url> {
    let page = Page {
        host: &request.host,
        path: &request.path,
        query: request.query.as_deref(),
    };
    let key = sign_in.shared_secret;
    SignInLink::begin(
        &page,
        key,
        cookie,
        nonce,
        sign_in.provider_id,
        sign_in.depends_on,
    )?
    .next(sign_in.authenticate, key, now)
}

/// A browser, as far as can be told; programs and scripts can't follow a redirect to a page.
fn is_browser(request: &CheckRequest) -> bool {
    negotiate::client(&request.headers) == Client::Browser && !credential::is_program(request)
}

fn is_prefetch(headers: &HeaderMap) -> bool {
    let says = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.contains("prefetch"))
    };
    says("sec-purpose") || says("purpose")
}

#[cfg(test)]
mod tests;
