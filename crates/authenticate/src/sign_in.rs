//! `/.pomerium/sign_in`: to the provider and, with a session, to the route's callback.

use std::sync::Arc;

use http::{HeaderValue, StatusCode, header};
use postern_common::config::SameSite;
use postern_common::crypto::handle::{Handle, Purpose, normal_host};
use postern_common::crypto::signed_url::{Verified, param};
use postern_common::crypto::state::{CSRF_LIFETIME, CsrfToken, SignIn};
use postern_common::crypto::{form, random, seal};
use postern_common::web::cookie::{self, Scope, Single};
use postern_common::web::negotiate::{Client, client};
use postern_common::web::redirect::{RedirectError, Target, Targets};
use postern_common::web::refusal::Refusal;
use postern_common::web::sign_in_link::CALLBACK as ROUTE_CALLBACK;
use postern_identity::{AuthRequest, Provider, ProviderError, RegistryError};
use url::Url;

use crate::call::{Answer, Call, redirect, with_cookies};
use crate::session::{self, Current, Found};
use crate::snapshot::{Snapshot, authority, path};

/// Most hosts of a `depends_on` chain.
const MAX_HOSTS: usize = 5;

/// What a signed sign-in URL asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Where the person, or the program, goes in the end.
    pub redirect: Target,
    /// The callback that takes the session; none for `redirect`'s own host.
    pub callback: Option<Target>,
    pub caller: Caller,
    /// The provider; `None` means the global one.
    pub idp_id: Option<String>,
    /// `host[:port]` of the `depends_on` chain.
    pub hosts: Vec<String>,
    /// Trace parameters, handed on.
    pub trace: Vec<(&'static str, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    Browser,
    Program,
}

/// Why a URL that is signed all the same asks for nothing that can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WantedError {
    #[error("the link names no page to go to")]
    Missing,
    #[error("pomerium_redirect_uri: {0}")]
    Redirect(RedirectError),
    #[error("pomerium_callback_uri: {0}")]
    Callback(RedirectError),
    #[error("pomerium_callback_uri is not the path of a callback")]
    CallbackPath,
    #[error("pomerium_additional_hosts: {0}")]
    Hosts(RedirectError),
    #[error("pomerium_additional_hosts lists more than {MAX_HOSTS} hosts")]
    TooManyHosts,
}

impl Wanted {
    pub(crate) fn read(signed: &Verified, targets: &Targets) -> Result<Self, WantedError> {
        let text = signed
            .get(param::REDIRECT_URI)
            .ok_or(WantedError::Missing)?;
        let callback = signed
            .get(param::CALLBACK_URI)
            .map(|text| targets.browser(text).map_err(WantedError::Callback))
            .transpose()?;
        if callback
            .as_ref()
            .is_some_and(|callback| callback.url.path() != ROUTE_CALLBACK)
        {
            return Err(WantedError::CallbackPath);
        }
        let caller = match signed.get(param::PROGRAMMATIC) {
            Some("true") => Caller::Program,
            _ => Caller::Browser,
        };
        let redirect = match caller {
            Caller::Browser => targets.browser(text),
            Caller::Program => targets.program(text).or_else(|_| targets.browser(text)),
        }
        .map_err(WantedError::Redirect)?;
        if caller == Caller::Program && callback.is_none() {
            // The program's own address can't take a sealed session.
            return Err(WantedError::Callback(RedirectError::NotAbsolute));
        }
        let hosts: Vec<String> = signed
            .get(param::ADDITIONAL_HOSTS)
            .unwrap_or_default()
            .split(',')
            .filter(|host| !host.is_empty())
            .map(|host| match targets.browser(&format!("https://{host}/")) {
                Ok(target) if target.url.path() == "/" && target.url.query().is_none() => {
                    Ok(authority(&target.url))
                }
                Ok(_) => Err(WantedError::Hosts(RedirectError::Suspicious)),
                Err(error) => Err(WantedError::Hosts(error)),
            })
            .collect::<Result<_, _>>()?;
        if hosts.len() > MAX_HOSTS {
            return Err(WantedError::TooManyHosts);
        }
        let trace = [param::TRACEPARENT, param::TRACESTATE]
            .into_iter()
            .filter_map(|name| Some((name, signed.get(name)?.to_owned())))
            .collect();
        let idp_id = signed.get(param::IDP_ID).map(str::to_owned);
        Ok(Self {
            redirect,
            callback,
            caller,
            idp_id,
            hosts,
            trace,
        })
    }

    /// The handle for the routes: good on the hosts of the chain, or for the program.
    pub(crate) fn handle(&self, own: &Handle, issuer: &str, now: jiff::Timestamp) -> Handle {
        let callback = self.callback.as_ref().map(|target| authority(&target.url));
        let redirect = match self.caller {
            Caller::Browser => Some(authority(&self.redirect.url)),
            Caller::Program => None,
        };
        let mut audience: Vec<String> = Vec::new();
        for host in callback
            .into_iter()
            .chain(redirect)
            .chain(self.hosts.iter().cloned())
        {
            let host = normal_host(&host);
            if !audience.contains(&host) {
                audience.push(host);
            }
        }
        let purpose = Some(match self.caller {
            Caller::Browser => Purpose::Browser,
            Caller::Program => Purpose::Program,
        });
        Handle {
            issuer: issuer.to_owned(),
            audience,
            issued_at: now.as_second(),
            purpose,
            ..own.clone()
        }
    }

    /// The callback's URL with the sealed handle, still to be signed. Of a query that it already
    /// had, everything stays but what is ours to say.
    pub(crate) fn callback_url(&self, sealed: &str) -> Url {
        let mut url = if let Some(callback) = &self.callback {
            callback.url.clone()
        } else {
            let mut url = self.redirect.url.clone();
            url.set_path(ROUTE_CALLBACK);
            url.set_query(None);
            url
        };
        url.set_fragment(None);
        let kept: Vec<(String, String)> = url
            .query_pairs()
            .filter(|(name, _)| {
                let bindings = [param::BINDING, param::BINDING_NONCE, param::HOP_BINDINGS];
                !name.starts_with("pomerium_") || bindings.contains(&&**name)
            })
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
        let hosts = self.hosts.join(",");
        let mut pairs: Vec<(&str, &str)> = kept
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        if self.caller == Caller::Program {
            pairs.push((param::PROGRAMMATIC, "true"));
        }
        pairs.extend(
            self.trace
                .iter()
                .map(|(name, value)| (*name, value.as_str())),
        );
        // Pomerium always sends it, empty when there are none.
        pairs.push((param::ADDITIONAL_HOSTS, &hosts));
        pairs.push((param::SESSION_ENCRYPTED, sealed));
        pairs.push((param::REDIRECT_URI, &self.redirect.location));
        url.set_query(Some(&form::encode_sorted(pairs)));
        url
    }
}

/// `GET /.pomerium/sign_in`. Nothing happens before the signature has been verified, and every
/// parameter comes from what it covers.
pub(crate) async fn handle(call: &Call) -> Answer {
    let signed = call.verify().map_err(|error| {
        call.bad_request(
            "This sign-in link is not valid any more. Open the page that you wanted again.",
            &error,
        )
    })?;
    let wanted = Wanted::read(&signed, &call.snapshot.targets).map_err(|error| {
        call.bad_request(
            "This sign-in link leads to a page that is not known here.",
            &error,
        )
    })?;
    let provider = provider(call, wanted.idp_id.as_deref())?;
    let clear = match session::find(call).await? {
        Found::Alive(current) if current.handle.idp_id == provider.id() => {
            return to_callback(call, &wanted, &current).map(|response| cors(call, response));
        }
        // A session of another provider stays as it is until the sign-in is complete.
        Found::Alive(_) => Vec::new(),
        Found::None { clear } => clear,
    };
    let url = call.snapshot.url(path::SIGN_IN, Some(&call.query));
    let response = begin(call, &*provider, url).await?;
    Ok(cors(call, with_cookies(response, clear)))
}

/// `OPTIONS /.pomerium/sign_in`: scripts of a route's page may follow a redirect to a signed URL.
pub(crate) fn preflight(call: &Call) -> Answer {
    call.verify()
        .map_err(|error| call.bad_request("This sign-in link is not valid.", &error))?;
    let mut response = cors(call, axum::response::Response::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    if let Some(headers) = call.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS)
        && response
            .headers()
            .contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN)
    {
        response
            .headers_mut()
            .insert(header::ACCESS_CONTROL_ALLOW_HEADERS, headers.clone());
    }
    Ok(response)
}

/// Credentials across origins, for signed URLs and pages of our own hosts only.
fn cors(call: &Call, mut response: axum::response::Response) -> axum::response::Response {
    let origin = call.headers.get(header::ORIGIN);
    let known = origin
        .and_then(|origin| origin.to_str().ok())
        .is_some_and(|origin| call.snapshot.targets.browser(origin).is_ok());
    if let Some(origin) = origin.filter(|_| known) {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
            HeaderValue::from_static("true"),
        );
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
    }
    response
}

/// The provider that a sign-in is for.
pub(crate) fn provider(
    call: &Call,
    idp_id: Option<&str>,
) -> Result<Arc<dyn Provider>, Box<Refusal>> {
    let providers = &call.snapshot.providers;
    let provider = match idp_id {
        Some(id) => providers.get(id),
        None => providers.global(),
    };
    provider.map_err(|error| match error {
        // Configurations reach services at different times; it may be known in a moment.
        RegistryError::Unknown(_) => call.unavailable(
            "Sign-in is not possible at the moment: this part of the deployment does not know the identity provider yet.",
            &error,
        ),
        _ => call.refuse(
            StatusCode::INTERNAL_SERVER_ERROR,
            "No identity provider is set up that could be used. Tell whoever runs this service.",
            &error,
        ),
    })
}

/// Sends the browser to the provider; afterwards it comes back to `url`.
pub(crate) async fn begin(call: &Call, provider: &dyn Provider, url: Url) -> Answer {
    if client(&call.headers) == Client::Program {
        return Err(call.refuse(
            StatusCode::UNAUTHORIZED,
            "Sign in first. This request was not made by a person opening a page, so it was not sent to the identity provider.",
            &"not a navigation",
        ));
    }
    let Some(key) = call.snapshot.cookie_keys().first() else {
        return Err(call.unavailable("Sign-in is not set up completely.", &"no cookie_secret"));
    };
    call.service.records.answers().await.map_err(|error| {
        let refusal = call.unavailable(
            "The store of sessions cannot be reached, so nobody can sign in at the moment. Try again in a few seconds.",
            &error,
        );
        Box::new(refusal.link(call.try_again()))
    })?;
    let (csrf, mut cookies) = csrf_token(call);
    let sign_in = SignIn::begin(key, csrf, url, call.now, random::bytes());
    let request = AuthRequest {
        state: &sign_in.state,
        nonce: &sign_in.nonce,
        code_challenge: &sign_in.code_challenge(),
        redirect_uri: &call.snapshot.url(path::CALLBACK, None),
    };
    let location = provider
        .authorization_url(request)
        .await
        .map_err(|error| provider_failed(call, &error).link(call.try_again()))?;
    cookies.extend(csrf_cookie(call, &sign_in.csrf));
    Ok(with_cookies(redirect(location.as_str()), cookies))
}

/// What people are told when a provider gives nothing.
pub(crate) fn provider_failed(call: &Call, error: &ProviderError) -> Refusal {
    let refusal = match error {
        ProviderError::Unreachable { retry_after, .. } => {
            let refusal = call.unavailable(
                "The identity provider cannot be reached at the moment. Try again in a few seconds.",
                error,
            );
            return match retry_after {
                Some(after) => (*refusal).retry_after(*after),
                None => *refusal,
            };
        }
        ProviderError::Refused(_) => call.refuse(
            StatusCode::UNAUTHORIZED,
            "The identity provider did not let you sign in.",
            error,
        ),
        ProviderError::Misconfigured(_) | ProviderError::Unsupported { .. } => call.refuse(
            StatusCode::INTERNAL_SERVER_ERROR,
            "The identity provider does not accept this service. Tell whoever runs it.",
            error,
        ),
        ProviderError::Invalid(_) => call.refuse(
            StatusCode::BAD_GATEWAY,
            "The identity provider's answer could not be accepted.",
            error,
        ),
    };
    *refusal
}

/// The browser's CSRF token, kept while it is good so that every tab shares it, and what clears
/// cookies that were planted.
pub(crate) fn csrf_token(call: &Call) -> (CsrfToken, Vec<HeaderValue>) {
    match read_csrf(call) {
        Single::One(token) => (token, Vec::new()),
        Single::Conflict => {
            let name = &call.snapshot.cookies.csrf;
            let clear = cookie::clear_everywhere(name, &call.host, call.now);
            (CsrfToken::new(random::bytes()), clear)
        }
        Single::Absent | Single::Bad(_) => (CsrfToken::new(random::bytes()), Vec::new()),
    }
}

pub(crate) fn read_csrf(
    call: &Call,
) -> Single<CsrfToken, postern_common::crypto::state::CsrfError> {
    let Snapshot { cookies, .. } = &*call.snapshot;
    cookie::single(cookie::values(&call.headers, &cookies.csrf), |value| {
        CsrfToken::from_cookie(call.snapshot.cookie_keys(), &cookies.csrf, value, call.now)
    })
}

/// `Set-Cookie` with the token, its end moved on. It must come along when the provider sends the
/// browser back, which for a form means `SameSite=None`.
pub(crate) fn csrf_cookie(call: &Call, token: &CsrfToken) -> Option<HeaderValue> {
    let snapshot = &call.snapshot;
    let name = &snapshot.cookies.csrf;
    let value = token.to_cookie(snapshot.cookie_keys().first()?, name, call.now);
    // Providers of all routes are of one kind.
    let global = snapshot.providers.global();
    let form_post = global.is_ok_and(|provider| provider.capabilities().form_post);
    let same_site = if form_post {
        SameSite::None
    } else {
        SameSite::Lax
    };
    let scope = Scope {
        same_site: Some(same_site),
        ..Scope::HOST
    };
    cookie::set(name, &value, scope, CSRF_LIFETIME.unsigned_abs(), call.now)
}

/// With a session: to the callback of the route's host, with a sealed handle.
fn to_callback(call: &Call, wanted: &Wanted, current: &Current) -> Answer {
    let Some(key) = call.snapshot.shared().first() else {
        return Err(call.unavailable("Sign-in is not set up completely.", &"no shared_secret"));
    };
    let issuer = &call.snapshot.external;
    let handle = wanted.handle(&current.handle, issuer, call.now);
    let sealed = seal::seal_text(key, handle.encode(key).as_bytes());
    let location = call.sign(&wanted.callback_url(&sealed))?;
    let cookie = session::cookie(call, &current.handle);
    Ok(with_cookies(redirect(location.as_str()), cookie))
}
