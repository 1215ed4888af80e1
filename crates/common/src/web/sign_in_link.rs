//! The link that begins a sign-in: over the further hosts of `depends_on` to authenticate.
//!
//! A callback counts only in the browser that began, which the host tells by a cookie of its own.
//! A sign-in that is for further hosts too therefore visits each of them once, at [`BEGIN`], before
//! it leaves for authenticate: the host keeps its cookie in the browser and adds its binding to
//! those that travel in the callback's URL.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use jiff::Timestamp;
use url::Url;

use super::cookie::{self, Scope};
use super::redirect::visible;
use crate::crypto::binding::{self, BindingCookie, Nonce};
use crate::crypto::handle::normal_host;
use crate::crypto::keys::SecretKey;
use crate::crypto::signed_url::{self, Verified, param};

/// Where a further host binds a sign-in to the browser.
pub const BEGIN: &str = "/.pomerium/begin";

/// Where a host takes the session.
pub const CALLBACK: &str = "/.pomerium/callback/";

/// How long a browser keeps its binding: a day's worth of open tabs.
const BINDING_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// The page that a browser asked for.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    pub host: &'a str,
    pub path: &'a str,
    pub query: Option<&'a str>,
}

/// What a browser's sign-in is for, and what it has gathered on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignInLink {
    /// The page that was asked for, as it was asked for.
    target: String,
    /// Of the host that began; its query holds the bindings.
    callback: Url,
    provider_id: Option<String>,
    /// Further hosts, in the order in which they are visited.
    hosts: Vec<String>,
}

/// Bindings that wait for their hosts, in the order of these.
pub fn hop_bindings(text: Option<&str>) -> impl Iterator<Item = &str> {
    text.unwrap_or_default()
        .split(',')
        .filter(|value| !value.is_empty())
}

impl SignInLink {
    /// Begins for a page, bound to the browser with this cookie of the page's host; `None` if no
    /// URL can lead back there.
    pub fn begin(
        page: &Page<'_>,
        shared: &SecretKey,
        cookie: &BindingCookie,
        nonce: Nonce,
        provider_id: Option<&str>,
        depends_on: &[String],
    ) -> Option<Self> {
        let host = page.host;
        let mut callback = Url::parse(&format!("https://{host}/")).ok()?;
        if callback.path() != "/" || callback.query().is_some() || !callback.username().is_empty() {
            return None;
        }
        // No `Url`, which would escape more of it than the client did.
        let slash = if page.path.starts_with('/') { "" } else { "/" };
        let mut target = format!("https://{host}{slash}{}", visible(page.path));
        if let Some(query) = page.query {
            target = format!("{target}?{}", visible(query));
        }
        callback.set_path(CALLBACK);
        callback
            .query_pairs_mut()
            .append_pair(param::BINDING, &binding::value(shared, cookie, nonce))
            .append_pair(param::BINDING_NONCE, &binding::nonce_text(nonce));
        let mut hosts: Vec<String> = Vec::new();
        for further in depends_on {
            if normal_host(further) != normal_host(host) && !hosts.contains(further) {
                hosts.push(further.clone());
            }
        }
        Some(Self {
            target,
            callback,
            provider_id: provider_id.map(str::to_owned),
            hosts,
        })
    }

    /// Reads a link to [`BEGIN`].
    pub fn read(verified: &Verified) -> Option<Self> {
        let hosts = verified.get(param::ADDITIONAL_HOSTS)?;
        Some(Self {
            target: verified.get(param::REDIRECT_URI)?.to_owned(),
            callback: Url::parse(verified.get(param::CALLBACK_URI)?).ok()?,
            provider_id: verified.get(param::IDP_ID).map(str::to_owned),
            hosts: hosts.split(',').map(str::to_owned).collect(),
        })
    }

    /// Adds the binding of the host that is visited.
    pub fn bind(&mut self, shared: &SecretKey, cookie: &BindingCookie) -> Option<()> {
        let nonce = self.in_callback(param::BINDING_NONCE)?;
        let value = binding::value(shared, cookie, binding::nonce_from_text(&nonce)?);
        let bound = match self.in_callback(param::HOP_BINDINGS) {
            Some(before) => format!("{before},{value}"),
            None => value,
        };
        let kept: Vec<(String, String)> = self
            .callback
            .query_pairs()
            .filter(|(name, _)| name != param::HOP_BINDINGS)
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
        self.callback
            .query_pairs_mut()
            .clear()
            .extend_pairs(kept)
            .append_pair(param::HOP_BINDINGS, &bound);
        Some(())
    }

    /// Where the browser goes next: to a host that has not bound the sign-in yet, else to
    /// authenticate. `None` if a host can be in no URL.
    pub fn next(&self, authenticate: &Url, shared: &SecretKey, now: Timestamp) -> Option<Url> {
        let bound = self.in_callback(param::HOP_BINDINGS);
        let waiting = self.hosts.get(hop_bindings(bound.as_deref()).count());
        let mut url = if let Some(host) = waiting {
            Url::parse(&format!("https://{host}{BEGIN}")).ok()?
        } else {
            let mut url = authenticate.clone();
            url.set_path("/.pomerium/sign_in");
            url
        };
        let hosts = self.hosts.join(",");
        let mut pairs = vec![
            (param::REDIRECT_URI, self.target.as_str()),
            (param::CALLBACK_URI, self.callback.as_str()),
        ];
        pairs.extend(self.provider_id.as_deref().map(|id| (param::IDP_ID, id)));
        if !hosts.is_empty() {
            pairs.push((param::ADDITIONAL_HOSTS, &hosts));
        }
        url.query_pairs_mut().clear().extend_pairs(pairs);
        Some(signed_url::sign(shared, &url, now))
    }

    fn in_callback(&self, name: &str) -> Option<String> {
        let mut pairs = self.callback.query_pairs();
        pairs
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.into_owned())
    }
}

/// What ties this browser to this host, and the `Set-Cookie` that keeps it. All tabs share one;
/// `random` becomes that of a browser which has none yet.
pub fn browser_binding(
    headers: &HeaderMap,
    session_cookie: &str,
    random: [u8; 16],
    now: Timestamp,
) -> (BindingCookie, Option<HeaderValue>) {
    let name = binding::cookie_name(session_cookie);
    let known = cookie::values(headers, &name).find_map(BindingCookie::from_text);
    let binding = known.unwrap_or_else(|| BindingCookie::new(random));
    let set = cookie::set(
        &name,
        &binding.to_text(),
        Scope::HOST,
        BINDING_LIFETIME,
        now,
    );
    (binding, set)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_767_225_600;

    fn begin(key: &SecretKey, host: &str, depends_on: &[&str]) -> Option<SignInLink> {
        let hosts: Vec<_> = depends_on.iter().map(ToString::to_string).collect();
        let page = Page {
            host,
            path: "/a%20b",
            query: Some("x=1"),
        };
        let cookie = BindingCookie::new([7; 16]);
        SignInLink::begin(&page, key, &cookie, [9; 16], Some("IDP"), &hosts)
    }

    fn next(link: &SignInLink, key: &SecretKey) -> Url {
        let authenticate = "https://auth.corp.test/".parse().unwrap();
        let now = Timestamp::from_second(NOW).unwrap();
        link.next(&authenticate, key, now).unwrap()
    }

    fn read(url: &Url, key: &SecretKey) -> SignInLink {
        let now = Timestamp::from_second(NOW).unwrap();
        let keys = std::slice::from_ref(key);
        SignInLink::read(&signed_url::verify(keys, url, now).unwrap()).unwrap()
    }

    #[test]
    fn every_host_is_visited_once_and_binds_with_its_own_cookie() {
        let key = SecretKey::random();
        let further = [
            "b.corp.test",
            "app.corp.test",
            "c.corp.test:8443",
            "b.corp.test",
        ];
        let mut link = begin(&key, "app.corp.test", &further).unwrap();
        let visits = [
            ("https://b.corp.test/.pomerium/begin?", [1; 16]),
            ("https://c.corp.test:8443/.pomerium/begin?", [2; 16]),
        ];
        for (place, cookie) in visits {
            let url = next(&link, &key);
            assert!(url.as_str().starts_with(place), "{url}");
            link = read(&url, &key);
            link.bind(&key, &BindingCookie::new(cookie)).unwrap();
        }
        let url = next(&link, &key);
        let sign_in = "https://auth.corp.test/.pomerium/sign_in?";
        assert!(url.as_str().starts_with(sign_in), "{url}");
        assert_eq!(read(&url, &key), link, "nothing gets lost on the way");
        let hosts = "b.corp.test,c.corp.test:8443";
        let pairs: Vec<_> = url.query_pairs().collect();
        assert!(pairs.contains(&(param::ADDITIONAL_HOSTS.into(), hosts.into())));

        let bindings = link.in_callback(param::HOP_BINDINGS).unwrap();
        let nonce = link.in_callback(param::BINDING_NONCE).unwrap();
        let matches = |cookie, value| {
            let keys = std::slice::from_ref(&key);
            binding::matches(keys, &BindingCookie::new(cookie), &nonce, value)
        };
        let values: Vec<_> = hop_bindings(Some(&bindings)).collect();
        assert!(matches([1; 16], values[0]) && matches([2; 16], values[1]));
        assert!(!matches([1; 16], values[1]), "s11");
        assert!(matches([7; 16], &link.in_callback(param::BINDING).unwrap()));
    }

    #[test]
    fn without_further_hosts_it_leads_to_authenticate() {
        let key = SecretKey::random();
        let url = next(&begin(&key, "app.corp.test", &[]).unwrap(), &key);
        assert!(
            url.as_str()
                .starts_with("https://auth.corp.test/.pomerium/sign_in?")
        );
        assert!(!url.as_str().contains(param::ADDITIONAL_HOSTS));
    }

    #[test]
    fn c87_the_target_arrives_as_it_was_asked_for() {
        let key = SecretKey::random();
        for (path, query, target) in [
            ("/", Some("q=it's"), "/?q=it's"),
            ("/a/%0A/b", Some("q=x%0Ay"), "/a/%0A/b?q=x%0Ay"),
            ("/a+b|c^d\"e{f}", None, "/a+b|c^d\"e{f}"),
            ("/", Some("a=\"<>`{}|\\^[]\""), "/?a=\"<>`{}|\\^[]\""),
            ("/%2E%2e/x", Some(""), "/%2E%2e/x?"),
            ("/ä b", Some("ö=\u{7f}"), "/%C3%A4%20b?%C3%B6=%7F"),
            ("", None, "/"),
        ] {
            let page = Page {
                host: "app.corp.test:8443",
                path,
                query,
            };
            let cookie = BindingCookie::new([7; 16]);
            let further = ["b.corp.test".to_owned()];
            let mut link =
                SignInLink::begin(&page, &key, &cookie, [9; 16], None, &further).unwrap();
            // By a further host, and to authenticate.
            for _ in 0..2 {
                let url = next(&link, &key);
                let verified = signed_url::verify(
                    std::slice::from_ref(&key),
                    &url,
                    Timestamp::from_second(NOW).unwrap(),
                );
                let expected = format!("https://app.corp.test:8443{target}");
                let verified = verified.unwrap();
                assert_eq!(verified.get(param::REDIRECT_URI), Some(&*expected));
                link = SignInLink::read(&verified).unwrap();
                link.bind(&key, &cookie).unwrap();
            }
        }
    }

    #[test]
    fn a_host_that_is_none_gets_no_link() {
        for host in ["a/b", "user@evil.test", "a?b", "", "a b"] {
            let link = begin(&SecretKey::random(), host, &[]);
            assert_eq!(link, None, "{host:?}");
        }
    }
}
