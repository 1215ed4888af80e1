//! Where a redirect may lead: to hosts that Postern answers for, and for programs to the
//! configured list. Everything else is somebody else's page with our name in the link.

use percent_encoding::{AsciiSet, CONTROLS, PercentEncode, utf8_percent_encode};
use url::{Host, Url};

use crate::config::{Config, ProgrammaticAccess, Route, RuntimeFlags};

/// The hosts that redirects may lead to; built once for a configuration.
#[derive(Debug, Clone, Default)]
pub struct Targets {
    hosts: Vec<HostRule>,
    /// `programmatic_redirect_domain_whitelist`, lower case.
    programs: Vec<String>,
}

/// A host that Postern answers for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HostRule {
    /// Lower case; `*` stands for one or more characters, dots included.
    host: String,
    port: PortRule,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PortRule {
    Any,
    Only(u16),
}

/// A target that was found allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub url: Url,
    /// For `Location`: the text as it was given, so that a query arrives byte for byte, unless it
    /// had to be escaped for a header.
    pub location: String,
}

/// A path and query as a URL can hold them: as they are, but for what is no visible ASCII. Nothing
/// else is escaped, so they arrive byte for byte.
pub fn visible(text: &str) -> PercentEncode<'_> {
    const BLANK: &AsciiSet = &CONTROLS.add(b' ');
    utf8_percent_encode(text, BLANK)
}

/// Why a target is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RedirectError {
    #[error("the redirect target is no absolute URL")]
    NotAbsolute,
    #[error("the redirect target holds characters or user names that a link may not hold")]
    Suspicious,
    #[error("the redirect target's scheme is not allowed here")]
    Scheme,
    #[error("the redirect target's host is none that this deployment answers for")]
    Host,
}

impl Targets {
    fn of_rules(
        hosts: impl IntoIterator<Item = HostRule>,
        programs: impl IntoIterator<Item = String>,
    ) -> Self {
        Self {
            hosts: hosts.into_iter().collect(),
            programs: programs
                .into_iter()
                .map(|name| name.to_ascii_lowercase())
                .collect(),
        }
    }

    /// Hosts of all routes, the external authenticate host, and the list for programs.
    pub fn of(config: &Config) -> Self {
        Self::new(
            &config.urls.authenticate,
            config.routes.iter().map(AsRef::as_ref),
            &config.flags,
            &config.programs,
        )
    }

    /// [`Self::of`] what will be a configuration.
    pub fn new<'a>(
        authenticate: &Url,
        routes: impl IntoIterator<Item = &'a Route>,
        flags: &RuntimeFlags,
        programs: &ProgrammaticAccess,
    ) -> Self {
        let own = authenticate.host_str().map(|host| HostRule {
            host: host.to_owned(),
            port: authenticate
                .port_or_known_default()
                .map_or(PortRule::Any, PortRule::Only),
        });
        let any_port = flags.match_any_incoming_port;
        let routes = routes.into_iter().flat_map(|route| {
            let from = &route.from;
            let port = match from.port {
                Some(port) => PortRule::Only(port),
                None if any_port => PortRule::Any,
                None => PortRule::Only(443),
            };
            // The port of a TCP route is that of the destination, not one of ours.
            let port = match from.scheme {
                crate::config::FromScheme::Tcp { .. } => PortRule::Any,
                _ => port,
            };
            std::iter::once(&from.host)
                .chain(&from.also)
                .map(move |host| HostRule {
                    host: host.to_ascii_lowercase(),
                    port,
                })
        });
        Self::of_rules(
            own.into_iter().chain(routes),
            programs.redirect_domains.iter().cloned(),
        )
    }

    /// A place that a browser may be sent to: https, on one of our hosts.
    pub fn browser(&self, text: &str) -> Result<Target, RedirectError> {
        let target = parse(text, &["https://"])?;
        let host = target.url.host_str().unwrap_or_default();
        let port = target.url.port_or_known_default().unwrap_or_default();
        if self.hosts.iter().any(|rule| rule.matches(host, port)) {
            Ok(target)
        } else {
            Err(RedirectError::Host)
        }
    }

    /// A place that a program waits at for its token: http or https, any port, on a host of
    /// `programmatic_redirect_domain_whitelist`. `localhost` there stands for loopback addresses
    /// too.
    pub fn program(&self, text: &str) -> Result<Target, RedirectError> {
        let target = parse(text, &["https://", "http://"])?;
        let loopback = match target.url.host() {
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            _ => false,
        };
        let host = target.url.host_str().unwrap_or_default();
        let listed = |entry: &String| entry == host || (entry == "localhost" && loopback);
        if self.programs.iter().any(listed) {
            Ok(target)
        } else {
            Err(RedirectError::Host)
        }
    }
}

impl HostRule {
    fn matches(&self, host: &str, port: u16) -> bool {
        let port = match self.port {
            PortRule::Any => true,
            PortRule::Only(only) => only == port,
        };
        port && glob(&self.host, host.strip_suffix('.').unwrap_or(host))
    }
}

/// `*` stands for one or more characters.
fn glob(pattern: &str, host: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == host,
        Some((before, after)) => host.strip_prefix(before).is_some_and(|rest| {
            (1..=rest.len())
                .filter_map(|at| rest.split_at_checked(at))
                .any(|(_, rest)| glob(after, rest))
        }),
    }
}

/// Reads a URL so strictly that no browser can understand it otherwise.
fn parse(text: &str, schemes: &[&str]) -> Result<Target, RedirectError> {
    // Browsers drop tabs and line breaks, and take a backslash for a slash, but not in a query.
    let before_query = text.split(['?', '#']).next().unwrap_or_default();
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) || before_query.contains('\\') {
        return Err(RedirectError::Suspicious);
    }
    let lower = text.to_ascii_lowercase();
    // Demands both slashes: `https:host` and `https:/host` are read differently by different
    // readers, and `//host` takes its scheme from somewhere else.
    let Some(rest) = schemes.iter().find_map(|scheme| lower.strip_prefix(scheme)) else {
        let relative = !lower.contains(':') || lower.starts_with('/');
        return Err(if relative {
            RedirectError::NotAbsolute
        } else {
            RedirectError::Scheme
        });
    };
    if rest.starts_with('/') {
        return Err(RedirectError::Suspicious);
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    // A user name, also an empty one, and escapes that hide one or a dot.
    if authority.contains(['@', '%']) {
        return Err(RedirectError::Suspicious);
    }
    let url = Url::parse(text).map_err(|_| RedirectError::NotAbsolute)?;
    if !url.has_host() {
        return Err(RedirectError::NotAbsolute);
    }
    let header_safe = text.bytes().all(|b| b.is_ascii_graphic());
    let location = if header_safe {
        text.to_owned()
    } else {
        url.as_str().to_owned()
    };
    Ok(Target { url, location })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn targets() -> Targets {
        let rule = |host: &str, port| HostRule {
            host: host.into(),
            port,
        };
        Targets::of_rules(
            [
                rule("authenticate.corp.test", PortRule::Only(8443)),
                rule("app.corp.test", PortRule::Any),
                rule("*.apps.corp.test", PortRule::Only(443)),
            ],
            ["localhost".to_owned(), "cli.corp.test".to_owned()],
        )
    }

    #[test]
    fn s13_own_hosts_are_allowed() {
        for text in [
            "https://app.corp.test/",
            "https://app.corp.test",
            "HTTPS://APP.corp.test./x",
            "https://app.corp.test:444/a%20b?x=1&y=it's#f",
            "https://authenticate.corp.test:8443/",
            "https://a.apps.corp.test/x",
            "https://a.b.apps.corp.test:443/x",
        ] {
            assert_eq!(
                targets().browser(text).map(|t| t.location),
                Ok(text.to_owned())
            );
        }
    }

    #[test]
    fn s13_everything_else_is_refused() {
        use RedirectError::{Host, NotAbsolute, Scheme, Suspicious};
        for (text, error) in [
            ("", NotAbsolute),
            ("/", NotAbsolute),
            ("//evil.test", NotAbsolute),
            ("/\\evil.test", Suspicious),
            ("https:\\\\evil.test", Suspicious),
            ("https:evil.test", Scheme),
            ("https:/evil.test", Scheme),
            ("https:///evil.test", Suspicious),
            ("https://", NotAbsolute),
            ("javascript:alert(1)", Scheme),
            ("javascript://app.corp.test/%0aalert(1)", Scheme),
            ("data:text/html,x", Scheme),
            ("http://app.corp.test/", Scheme),
            ("https://evil.test/", Host),
            ("https://evil.test/https://app.corp.test/", Host),
            ("https://app.corp.test.evil.test/", Host),
            ("https://evilapp.corp.test/", Host),
            ("https://app.corp.test@evil.test/", Suspicious),
            ("https://@app.corp.test/", Suspicious),
            ("https://user:pw@app.corp.test/", Suspicious),
            ("https://app.corp.test%2eevil.test/", Suspicious),
            ("https://app.corp.test%40evil.test/", Suspicious),
            ("https://app.corp.test\\@evil.test/", Suspicious),
            ("https://app.corp.test/\\evil.test/?x", Suspicious),
            ("https://evil.test#@app.corp.test/", Host),
            ("https://evil.test?@app.corp.test/", Host),
            ("https://app.corp.test\t.evil.test/", Suspicious),
            ("https://app.corp.test/\r\nSet-Cookie: a=b", Suspicious),
            (" https://app.corp.test/", Suspicious),
            ("https://app.corp.test/\u{0}", Suspicious),
            ("https://app.corp.test/\u{a0}", Suspicious),
            // Cyrillic а
            ("https://\u{430}pp.corp.test/", Host),
            ("https://authenticate.corp.test/", Host),
            ("https://apps.corp.test/", Host),
            ("https://.apps.corp.test/", Host),
            ("https://a.apps.corp.test:8443/", Host),
            ("https://app.corp.test:99999/", NotAbsolute),
        ] {
            assert_eq!(targets().browser(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn s13_programs_wait_on_listed_hosts_only() {
        for text in [
            "http://127.0.0.1:4000/",
            "http://127.8.9.1/cb?x=1",
            "http://[::1]:80/",
            "http://localhost:1/",
            "https://cli.corp.test/x",
        ] {
            assert!(targets().program(text).is_ok(), "{text}");
        }
        for text in [
            "http://app.corp.test/",
            "http://localhost.evil.test/",
            "http://evil.test/?localhost",
            "http://127.0.0.1.evil.test/",
            "http://0.0.0.0/",
            "http://user@localhost/",
            "ftp://localhost/",
            "custom://localhost/",
            "//localhost/",
        ] {
            assert!(targets().program(text).is_err(), "{text}");
        }
        let none = Targets::of_rules([], []);
        assert_eq!(none.program("http://127.0.0.1/"), Err(RedirectError::Host));
    }

    #[test]
    fn c87_the_target_survives_unchanged() {
        let text = format!(
            "https://app.corp.test/a/%0A/b%20c/a+b?q=x%0Ay'{}",
            "z".repeat(12_000)
        );
        assert_eq!(targets().browser(&text).unwrap().location, text);
        let target = targets().browser("https://app.corp.test/ä?ö").unwrap();
        assert_eq!(target.location, "https://app.corp.test/%C3%A4?%C3%B6");
    }

    proptest! {
        #[test]
        fn s13_what_is_allowed_is_read_the_same_again(text in "https?:[/\\\\a-z.@:#?%]{0,40}") {
            if let Ok(target) = targets().browser(&text) {
                let again = Url::parse(&target.location).unwrap();
                prop_assert_eq!(again.host_str(), target.url.host_str());
                prop_assert_eq!(again.scheme(), "https");
            }
        }

        #[test]
        fn never_panics(text in ".{0,80}") {
            let _ = (targets().browser(&text), targets().program(&text));
        }
    }
}
