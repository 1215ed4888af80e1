//! What a request that may pass costs the proxy by itself: the headers that its upstream gets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::allow_attributes,
    reason = "a benchmark that cannot go on stops"
)]

use std::net::{IpAddr, Ipv4Addr};

use divan::{Bencher, black_box};
use http::{HeaderMap, HeaderName, HeaderValue};
use postern_common::authz::Allow;
use postern_common::config::PassIdentity;
use postern_proxy::{Address, Forwarding, HeaderRules, Receiver};

fn main() {
    divan::main();
}

/// Of about the length that a handle has, signed.
const HANDLE: usize = 420;

/// Of about the length that an assertion has with eight claims.
const ASSERTION: usize = 700;

/// What a browser sends, with our cookie among the application's.
fn client() -> HeaderMap {
    let cookie = format!("theme=dark; _pomerium={}; lang=en", "h".repeat(HANDLE));
    headers(&[
        ("host", "app.corp.test"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0)"),
        ("accept", "text/html,application/xhtml+xml,*/*;q=0.8"),
        ("accept-language", "en-GB,en;q=0.5"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("referer", "https://app.corp.test/some/page"),
        ("cookie", &cookie),
        ("sec-fetch-dest", "document"),
        ("sec-fetch-mode", "navigate"),
        ("sec-fetch-site", "same-origin"),
        ("connection", "keep-alive"),
    ])
    .into_iter()
    .collect()
}

/// What authorize says about it: the assertion and two headers with claims.
fn allow() -> Allow {
    let assertion = "a".repeat(ASSERTION);
    Allow {
        set_headers: headers(&[
            ("x-pomerium-jwt-assertion", &*assertion),
            ("x-pomerium-claim-email", "ann@corp.test"),
            (
                "x-pomerium-claim-groups",
                "eng,staff,berlin,on-call,everybody",
            ),
        ]),
        ..Allow::default()
    }
}

fn headers(pairs: &[(&'static str, &str)]) -> Vec<(HeaderName, HeaderValue)> {
    let header = |&(name, value): &(&'static str, &str)| {
        let value = HeaderValue::from_str(value).unwrap();
        (HeaderName::from_static(name), value)
    };
    pairs.iter().map(header).collect()
}

/// The client's without what is ours, the identity, and where the request came from.
#[divan::bench]
fn upstream_headers(bencher: Bencher) {
    let claims = ["x-pomerium-claim-email", "x-pomerium-claim-groups"].map(HeaderName::from_static);
    let rules = HeaderRules::new("_pomerium", &claims, true, 0);
    let (client, allow) = (client(), allow());
    let peer = Address::from(IpAddr::from(Ipv4Addr::LOCALHOST));
    let forwarding = Forwarding {
        peer: &peer,
        client: &peer,
        proto: "https",
        request_id: "b2f3a3a8-34a4-4d57-8f0d-0ad1a6f6ae51",
        replaced_host: None,
        replaced_path: None,
        upgrade: None,
        receiver: Receiver::Upstream,
        identity: PassIdentity::Yes,
        remove: &[],
    };
    let out = rules.upstream(&client, &allow, &forwarding);
    assert_eq!(out["cookie"], "theme=dark; lang=en");
    assert_eq!(out["x-pomerium-claim-email"], "ann@corp.test");
    bencher.bench_local(|| rules.upstream(black_box(&client), &allow, &forwarding));
}
