//! What proxy answers itself.

use std::time::Duration;

use base64::Engine as _;
use http::{Method, StatusCode};
use postern_common::authz::{AuthorizeError, CheckSubject, DenyKind};
use postern_common::crypto::handle::Handle;
use postern_common::crypto::keys::SecretKey;
use postern_common::lifecycle::DrainTiming;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::authorizer::{Scripted, allow, deny};
use crate::support::client::{clear_text, exchange, get, request};
use crate::support::proxy::{Authority, Proxy, certificates, config};
use crate::support::upstream::Upstream;

const HOST: &str = "app.corp.test";
const ROUTES: &str = "routes:\n- {from: 'https://app.corp.test', to: 'http://127.0.0.1:1', name: app, description: The application}\n";

fn key() -> SecretKey {
    SecretKey::from_base64(crate::support::proxy::SHARED).unwrap()
}

fn handle() -> Handle {
    Handle {
        id: "session-1".into(),
        subject: "ann".into(),
        idp_id: "idp".into(),
        ..Handle::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_and_keys_are_for_everybody() {
    let authorizer = Scripted::new(|_| panic!("nobody is asked"));
    let proxy = Proxy::start(ROUTES, authorizer).await;
    for host in [HOST, "unknown.corp.test"] {
        let answer = get(&proxy, host, "/.well-known/pomerium", &[]).await;
        assert_eq!(answer.header("access-control-allow-origin"), "*");
        let expected = format!(
            r#"{{"issuer":"https://{host}/","authentication_callback_endpoint":"https://auth.corp.test/oauth2/callback","jwks_uri":"https://{host}/.well-known/pomerium/jwks.json","frontchannel_logout_uri":"https://{host}/.pomerium/sign_out"}}"#
        );
        assert_eq!(answer.body, expected);
        let keys = get(&proxy, host, "/.well-known/pomerium/jwks.json", &[]).await;
        let parsed: Value = serde_json::from_str(&keys.body).unwrap();
        assert_eq!(parsed["keys"][0]["alg"], "ES256");
        assert_eq!(keys.header("cache-control"), "max-age=60");
        let etag = keys.header("etag").to_owned();
        let again = get(
            &proxy,
            host,
            "/.well-known/pomerium/jwks.json",
            &[("if-none-match", &etag)],
        )
        .await;
        assert_eq!(
            (again.status, again.body.as_str()),
            (StatusCode::NOT_MODIFIED, "")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_users_page_with_and_without_a_session() {
    let payload = json!({"sub": "ann", "groups": ["eng"], "name": "Ann", "iss": "x", "exp": 1});
    let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(payload.to_string());
    let jwt = format!("h.{payload}.s");
    let authorizer = Scripted::new(move |request| {
        assert_eq!(request.subject, CheckSubject::OwnEndpoint);
        Ok(allow("s1", &[("x-pomerium-jwt-assertion", jwt.as_str())]))
    });
    let proxy = Proxy::start(ROUTES, authorizer.clone()).await;
    assert_eq!(
        get(&proxy, HOST, "/.pomerium", &[])
            .await
            .header("location"),
        "/.pomerium/"
    );
    let cookie = format!("_pomerium={}", handle().encode(&key()));
    let page = get(&proxy, HOST, "/.pomerium/", &[("cookie", &cookie)]).await;
    assert_eq!(page.status, StatusCode::OK);
    for text in ["ann@corp.test", "Ann", "eng", "s1", "Sign out"] {
        assert!(
            page.body.contains(text),
            "{text} is missing in {}",
            page.body
        );
    }
    assert!(
        page.header("content-security-policy")
            .contains("default-src 'none'"),
        "s45"
    );
    let user = get(&proxy, HOST, "/.pomerium/user", &[]).await;
    let user: Value = serde_json::from_str(&user.body).unwrap();
    assert_eq!(
        user,
        json!({"sub": "ann", "groups": ["eng"], "name": "Ann"})
    );
    assert_eq!(
        get(&proxy, HOST, "/.pomerium/jwt", &[]).await.status,
        StatusCode::NOT_FOUND
    );

    authorizer.now(|_| Ok(postern_common::authz::Decision::Allow(Box::default())));
    let page = get(&proxy, HOST, "/.pomerium/", &[]).await;
    assert!(
        page.body.contains("Sign in") && !page.body.contains("Sign out"),
        "{}",
        page.body
    );
    assert_eq!(
        get(&proxy, HOST, "/.pomerium/user", &[]).await.status,
        StatusCode::NOT_FOUND
    );
    authorizer.now(|_| {
        Ok(deny(DenyKind::SignIn {
            location: "https://auth.corp.test/".into(),
        }))
    });
    assert_eq!(
        get(&proxy, HOST, "/.pomerium/user", &[]).await.status,
        StatusCode::FOUND
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_portal_lists_what_may_be_opened() {
    let routes =
        format!("{ROUTES}- {{from: 'https://other.corp.test', to: 'http://127.0.0.1:1'}}\n");
    let config_ids = config(&format!("insecure_server: true\n{routes}"));
    let first = config_ids.routes[0].id.clone();
    let authorizer = Scripted::new(move |request| match &request.subject {
        CheckSubject::Route { id, .. } if *id != first => Ok(deny(DenyKind::Forbidden)),
        _ => Ok(allow("s1", &[])),
    });
    let proxy = Proxy::start(&routes, authorizer.clone()).await;
    let listed = get(&proxy, HOST, "/.pomerium/api/v1/routes", &[]).await;
    let listed: Value = serde_json::from_str(&listed.body).unwrap();
    assert_eq!(listed["routes"].as_array().unwrap().len(), 1);
    assert_eq!(listed["routes"][0]["from"], "https://app.corp.test");
    assert_eq!(listed["routes"][0]["name"], "app");
    let page = get(&proxy, HOST, "/.pomerium/routes", &[]).await;
    assert!(page.body.contains("The application"), "{}", page.body);

    authorizer.now(|request| match &request.subject {
        CheckSubject::Route { .. } => Err(AuthorizeError::Unreachable {
            reason: "gone".to_owned(),
        }),
        CheckSubject::OwnEndpoint => Ok(allow("s1", &[])),
    });
    for path in ["/.pomerium/routes", "/.pomerium/api/v1/routes"] {
        let answer = get(&proxy, HOST, path, &[]).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c26_s44_only_who_means_it_signs_out() {
    let proxy = Proxy::start(ROUTES, Scripted::allowing()).await;
    let key = key();
    let cookie = format!("_pomerium={}", handle().encode(&key));
    let with_cookie = [
        ("cookie", cookie.as_str()),
        ("sec-fetch-site", "cross-site"),
    ];
    // By an image on another site.
    let asked = get(&proxy, HOST, "/.pomerium/sign_out", &with_cookie).await;
    assert_eq!(
        (asked.status, asked.header("set-cookie")),
        (StatusCode::OK, "")
    );
    let token = asked.body.split("name=\"token\" value=\"").nth(1).unwrap();
    let token = token.split('"').next().unwrap().to_owned();
    let post = |form: String, headers: &[(&str, &str)]| {
        let mut all = vec![("content-type", "application/x-www-form-urlencoded")];
        all.extend_from_slice(headers);
        let mut post = request(Method::POST, HOST, "/.pomerium/sign_out", &all);
        post.headers_mut()
            .insert("content-length", form.len().into());
        *post.body_mut() = crate::support::client::full(form);
        post
    };
    // By a form on another site, which cannot know the token.
    let forged = exchange(&proxy, HOST, post("token=guess".into(), &with_cookie)).await;
    assert_eq!(
        (forged.status, forged.header("set-cookie")),
        (StatusCode::OK, "")
    );
    // Whatever it knows, the browser says that it comes from elsewhere.
    let form = format!("token={token}");
    for elsewhere in [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("origin", "https://evil.test"),
        ("origin", "null"),
    ] {
        let headers = [("cookie", cookie.as_str()), elsewhere];
        let forged = exchange(&proxy, HOST, post(form.clone(), &headers)).await;
        assert_eq!(
            (forged.status, forged.header("set-cookie")),
            (StatusCode::OK, ""),
            "{elsewhere:?}"
        );
    }
    // By our own page.
    let same = [
        ("cookie", cookie.as_str()),
        ("sec-fetch-site", "same-origin"),
    ];
    let meant = exchange(&proxy, HOST, post(form.clone(), &same)).await;
    assert_eq!(meant.status, StatusCode::FOUND);
    let location: url::Url = meant.header("location").parse().unwrap();
    assert_eq!(location.path(), "/.pomerium/sign_out");
    let keys = [key.clone()];
    let verified =
        postern_common::crypto::signed_url::verify(&keys, &location, jiff::Timestamp::now())
            .unwrap();
    assert_eq!(verified.get("pomerium_session_id"), Some("session-1"));
    assert!(meant.header("set-cookie").starts_with("_pomerium=;"));
    // The browser's word alone is not enough, and old browsers give none.
    let unsaid = exchange(&proxy, HOST, post(String::new(), &same)).await;
    assert_eq!(unsaid.status, StatusCode::OK);
    let old = exchange(&proxy, HOST, post(form, &[("cookie", &cookie)])).await;
    assert_eq!(old.status, StatusCode::FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn s44_nothing_is_signed_or_cleared_without_a_session() {
    let proxy = Proxy::start(ROUTES, Scripted::allowing()).await;
    let target = "/.pomerium/sign_out?pomerium_redirect_uri=https%3A%2F%2Fapp.corp.test%2Fbye";
    for method in [Method::GET, Method::POST] {
        for headers in [
            &[][..],
            &[("sec-fetch-site", "same-origin")],
            &[("cookie", "_pomerium=x")],
        ] {
            let asked = request(method.clone(), HOST, target, headers);
            let answer = exchange(&proxy, HOST, asked).await;
            assert_eq!(
                (answer.status, answer.header("set-cookie")),
                (StatusCode::FOUND, "")
            );
            // Authenticate asks, because the link is not signed.
            assert_eq!(
                answer.header("location"),
                "https://auth.corp.test/.pomerium/sign_out?pomerium_redirect_uri=https%3A%2F%2Fapp.corp.test%2Fbye"
            );
        }
    }
    // Signed in some other way than by the cookie: no form, whose token would be everybody's.
    let page = get(&proxy, HOST, "/.pomerium/", &[]).await;
    assert!(page.body.contains("ann@corp.test") && !page.body.contains("name=\"token\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_get_a_sign_in_url() {
    let proxy = Proxy::start(ROUTES, Scripted::new(|_| panic!("nobody is asked"))).await;
    let login = "/.pomerium/api/v1/login";
    assert_eq!(
        get(&proxy, HOST, login, &[]).await.status,
        StatusCode::NOT_FOUND
    );
    for bad in [
        "https://evil.test/",
        "javascript:x",
        "http://localhost.evil.test/",
        "x",
    ] {
        let answer = get(
            &proxy,
            HOST,
            &format!("{login}?pomerium_redirect_uri={bad}"),
            &[],
        )
        .await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{bad}");
    }
    let wanted = format!("{login}?pomerium_redirect_uri=http%3A%2F%2F127.0.0.1%3A4000%2F");
    let answer = get(&proxy, HOST, &wanted, &[]).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.header("content-type").starts_with("text/plain"));
    let url: url::Url = answer.body.parse().unwrap();
    let key = postern_common::crypto::keys::SecretKey::from_base64(crate::support::proxy::SHARED)
        .unwrap();
    let verified =
        postern_common::crypto::signed_url::verify(&[key], &url, jiff::Timestamp::now()).unwrap();
    assert_eq!(url.host_str(), Some("auth.corp.test"));
    assert_eq!(
        verified.get("pomerium_redirect_uri"),
        Some("http://127.0.0.1:4000/")
    );
    assert_eq!(verified.get("pomerium_programmatic"), Some("true"));
    let callback = verified.get("pomerium_callback_uri").unwrap();
    assert!(
        callback.starts_with("https://app.corp.test/.pomerium/callback/?pomerium_redirect_uri=")
    );
}

/// `pomerium-cli --pomerium-url` names the proxy by any name.
#[tokio::test(flavor = "multi_thread")]
async fn programs_may_ask_at_a_host_that_is_no_route() {
    let callback_of = async |added: &str| {
        let proxy = Proxy::start(added, Scripted::new(|_| panic!("nobody is asked"))).await;
        let wanted = "/.pomerium/api/v1/login?pomerium_redirect_uri=http://127.0.0.1:4000";
        let answer = get(&proxy, "proxy.corp.test", wanted, &[]).await;
        let url = url::Url::parse(&answer.body).ok()?;
        url.query_pairs()
            .find(|(name, _)| name == "pomerium_callback_uri")
            .map(|(_, value)| value.into_owned())
    };
    let tcp = "- {from: 'tcp+https://db.corp.test:5432', to: 'tcp://127.0.0.1:1'}\n";
    let wildcard = "- {from: 'https://*.dev.corp.test', to: 'http://127.0.0.1:1'}\n";
    let own = "- {from: 'https://app.corp.test:8443', to: 'http://127.0.0.1:1'}\n";
    let callback = callback_of(&format!("routes:\n{tcp}{wildcard}{own}"))
        .await
        .unwrap();
    assert!(
        callback.starts_with("https://app.corp.test:8443/.pomerium/callback/?pomerium_redirect"),
        "{callback}"
    );
    let none = callback_of(&format!("routes:\n{tcp}{wildcard}")).await;
    assert_eq!(none, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn clear_text_is_sent_to_https() {
    let added = "http_redirect_addr: 127.0.0.1:0\nroutes: []\n";
    let proxy = Proxy::start(added, Scripted::allowing()).await;
    let address = proxy.redirect.unwrap();
    let request =
        "GET /a%20b?x=1 HTTP/1.1\r\nHost: app.corp.test:8080\r\nConnection: close\r\n\r\n";
    let answer = clear_text(address, request).await;
    assert!(answer.starts_with("HTTP/1.1 301"), "{answer}");
    assert!(
        answer.contains("location: https://app.corp.test/a%20b?x=1\r\n"),
        "{answer}"
    );
    let ping = "GET /ping HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert!(clear_text(address, ping).await.starts_with("HTTP/1.1 200"));
    let none = "GET / HTTP/1.1\r\nConnection: close\r\n\r\n";
    assert!(clear_text(address, none).await.starts_with("HTTP/1.1 400"));
}

/// A balancer may send the header to one port and not to the other.
#[tokio::test(flavor = "multi_thread")]
async fn clear_text_may_begin_with_a_proxy_header() {
    let added = "http_redirect_addr: 127.0.0.1:0\nuse_proxy_protocol: true\nroutes: []\n";
    let proxy = Proxy::start(added, Scripted::allowing()).await;
    let address = proxy.redirect.unwrap();
    for (header, method) in [
        ("PROXY TCP4 203.0.113.5 10.0.0.1 4711 80\r\n", "GET"),
        ("", "GET"),
        ("", "PUT"),
        ("", "PROPFIND"),
    ] {
        let request = format!(
            "{header}{method} /a%2Fb HTTP/1.1\r\nHost: app.corp.test\r\nConnection: close\r\n\r\n"
        );
        let answer = clear_text(address, &request).await;
        assert!(answer.starts_with("HTTP/1.1 301"), "{answer}");
        assert!(
            answer.contains("location: https://app.corp.test/a%2Fb\r\n"),
            "{answer}"
        );
    }
}

/// The kernel still accepts for a process that hangs.
#[tokio::test(flavor = "multi_thread")]
async fn an_authenticate_that_hangs_is_passed_over() {
    let upstream = Upstream::http().await;
    let hangs = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let added = format!(
        "routes:\n- {{from: 'https://auth.corp.test', to: ['http://{}', '{}'], preserve_host_header: true}}\n",
        hangs.local_addr().unwrap(),
        upstream.url()
    );
    let authorizer = Scripted::new(|_| panic!("nobody is asked"));
    let proxy = Proxy::start(&added, authorizer).await;
    for n in 0..20 {
        let path = format!("/.pomerium/sign_in?x={n}");
        let asked = get(&proxy, "auth.corp.test", &path, &[]);
        let answer = tokio::time::timeout(Duration::from_secs(20), asked).await;
        assert_eq!(answer.unwrap().status, StatusCode::OK, "{path}");
        assert_eq!(upstream.last().target, path);
    }
    let moment = Duration::from_millis(500);
    let mut taken = Vec::new();
    while let Ok(accepted) = tokio::time::timeout(moment, hangs.accept()).await {
        let mut sent = vec![0; 4096];
        let length = accepted.unwrap().0.read(&mut sent).await.unwrap();
        taken.push(String::from_utf8_lossy(&sent[..length]).into_owned());
    }
    assert!(!taken.is_empty(), "it had its turn");
    for sent in taken {
        assert!(sent.starts_with("GET /ping "), "{sent}");
    }
}

/// It was asked whether it is there, got the request, and hangs.
#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_leaves_an_authenticate_that_hangs_with_it() {
    let upstream = Upstream::http().await;
    let hangs = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let added = format!(
        "routes:\n- {{from: 'https://auth.corp.test', to: ['http://{}', '{}'], preserve_host_header: true}}\n",
        hangs.local_addr().unwrap(),
        upstream.url()
    );
    let (took_one, taken) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        let (mut stream, _) = hangs.accept().await.unwrap();
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        let mut sent = vec![0; 4096];
        loop {
            let length = stream.read(&mut sent).await.unwrap();
            if !sent[..length].starts_with(b"GET /ping ") {
                took_one.send_replace(true);
                // Keeps what it has, and answers nothing ever.
                return std::future::pending().await;
            }
            stream.write_all(answer).await.unwrap();
        }
    });
    let authorizer = Scripted::new(|_| panic!("nobody is asked"));
    let proxy = Proxy::start(&added, authorizer).await;
    let mut n = 0;
    while !*taken.borrow() {
        n += 1;
        let path = format!("/.pomerium/sign_in?x={n}");
        let asked = get(&proxy, "auth.corp.test", &path, &[]);
        let answer = tokio::time::timeout(Duration::from_secs(20), asked).await;
        assert_eq!(answer.unwrap().status, StatusCode::OK, "{path}");
        assert_eq!(upstream.last().target, path);
    }
}

/// A form that was sent can't be sent to another one: it may have been taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_form_does_not_wait_for_an_authenticate_that_hangs_with_it() {
    let another = Upstream::http().await;
    for with_another in [false, true] {
        let hangs = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut to = format!("'http://{}'", hangs.local_addr().unwrap());
        if with_another {
            to = format!("{to}, '{}'", another.url());
        }
        let (took, mut taken) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            let (mut stream, _) = hangs.accept().await.unwrap();
            let mut sent = vec![0; 4096];
            loop {
                let length = stream.read(&mut sent).await.unwrap();
                if !sent[..length].starts_with(b"GET /ping ") {
                    took.send(()).unwrap();
                    // The kernel goes on accepting.
                    return std::future::pending::<()>().await;
                }
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                stream.write_all(answer).await.unwrap();
            }
        });
        let added = format!(
            "default_upstream_timeout: 10m\nroutes:\n- {{from: 'https://auth.corp.test', to: [{to}], preserve_host_header: true}}\n"
        );
        let proxy = Proxy::start(&added, Scripted::new(|_| panic!("nobody is asked"))).await;
        let hung = loop {
            let form = request(Method::POST, "auth.corp.test", "/.pomerium/sign_out", &[]);
            let asked = exchange(&proxy, "auth.corp.test", form);
            let answer = tokio::time::timeout(Duration::from_secs(30), asked).await;
            let answer = answer.unwrap();
            if taken.try_recv().is_ok() {
                break answer;
            }
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        };
        assert_eq!(hung.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(hung.body.contains("does not answer"), "{}", hung.body);
        assert!(!hung.header("retry-after").is_empty());
        drop(proxy);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c51_the_authenticate_host_is_forwarded_unasked() {
    let upstream = Upstream::http().await;
    let authorizer = Scripted::new(|_| panic!("nobody is asked"));
    let built_in = format!(
        "authenticate_internal_service_url: {}\nroutes: []\n",
        upstream.url()
    );
    let by_route = format!(
        "routes:\n- {{from: 'https://auth.corp.test', to: '{}', preserve_host_header: true}}\n",
        upstream.url()
    );
    for added in [built_in, by_route] {
        let proxy = Proxy::start(&added, authorizer.clone()).await;
        for path in [
            "/.pomerium/sign_in?x=1",
            "/",
            "/.well-known/pomerium/jwks.json",
            "/oauth2/callback?code=c",
        ] {
            let sent = [("cookie", "_pomerium_authenticate=h; _pomerium_csrf=c")];
            let answer = get(&proxy, "auth.corp.test", path, &sent).await;
            assert_eq!(answer.status, StatusCode::OK, "{path}");
            let seen = upstream.last();
            assert_eq!(
                (seen.target.as_str(), &seen.headers["host"]),
                (path, &"auth.corp.test".parse().unwrap())
            );
            // Authenticate is no upstream of anybody's: it gets its cookies.
            assert_eq!(
                seen.headers["cookie"],
                "_pomerium_authenticate=h; _pomerium_csrf=c"
            );
        }
        let answer = get(&proxy, "app.corp.test", "/", &[]).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "and only that host");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c51_a_wildcard_over_the_authenticate_host_is_an_application() {
    let upstream = Upstream::http().await;
    let added = format!(
        "routes:\n- {{from: 'https://*.corp.test', to: '{0}'}}\n\
         - {{from: 'https://x.corp.test', to: '{0}', tls_downstream_server_name: auth.corp.test}}\n",
        upstream.url()
    );
    let authorizer = Scripted::new(|_| Ok(deny(DenyKind::Forbidden)));
    for added in [
        added.clone(),
        added.replace(", tls_downstream_server_name: auth.corp.test", ""),
    ] {
        let proxy = Proxy::start(&added, authorizer.clone()).await;
        for path in ["/", "/oauth2/callback", "/admin"] {
            let answer = get(&proxy, "auth.corp.test", path, &[]).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path}");
        }
        authorizer.now(|_| Ok(allow("s1", &[])));
        let sent = [("cookie", "_pomerium=h; theme=dark")];
        let answer = get(&proxy, "auth.corp.test", "/", &sent).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(upstream.last().headers["cookie"], "theme=dark");
        authorizer.now(|_| Ok(deny(DenyKind::Forbidden)));
    }
    assert_eq!(upstream.count(), 2, "only what was allowed");
}

#[tokio::test(flavor = "multi_thread")]
async fn c77_authenticate_in_this_process_shares_its_host() {
    let router = axum::Router::new().fallback(|request: axum::extract::Request| async move {
        let (host, proto) = (
            &request.headers()["host"],
            &request.headers()["x-forwarded-proto"],
        );
        let mut response = http::Response::new(axum::body::Body::from(format!(
            "{host:?} {proto:?} {}",
            request.uri()
        )));
        let cookie = http::HeaderValue::from_static("_pomerium_csrf=c; Path=/");
        response.headers_mut().insert("set-cookie", cookie);
        response
    });
    let upstream = Upstream::http().await;
    let authority = std::sync::Arc::new(Authority::new());
    let issued = [authority.issue(&["*.corp.test"])];
    let added = format!(
        "{}routes:\n- {{from: 'https://auth.corp.test', prefix: /app, to: '{}'}}\n",
        certificates(&issued),
        upstream.url()
    );
    let proxy = Proxy::with(
        &config(&added),
        Scripted::allowing(),
        authority,
        Some(router),
        DrainTiming::immediate(),
    );
    let own = get(&proxy, "auth.corp.test", "/.pomerium/sign_in?a=b", &[]).await;
    assert_eq!(
        own.body,
        r#""auth.corp.test" "https" /.pomerium/sign_in?a=b"#
    );
    assert_eq!(own.header("set-cookie"), "_pomerium_csrf=c; Path=/");
    assert_eq!(own.header("x-frame-options"), "SAMEORIGIN");
    assert!(
        get(&proxy, "auth.corp.test", "/", &[])
            .await
            .body
            .ends_with(" /")
    );
    assert_eq!(
        get(&proxy, "auth.corp.test", "/app/x", &[]).await.body,
        "hello"
    );
    assert_eq!(
        get(&proxy, "auth.corp.test", "/ping", &[]).await.body,
        "OK\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_hsts_on_names_of_this_machine() {
    let authority = std::sync::Arc::new(Authority::new());
    let issued = [authority.issue(&["app.localhost", HOST])];
    let added = format!("{}routes: []\n", certificates(&issued));
    let proxy = Proxy::with(
        &config(&added),
        Scripted::allowing(),
        authority,
        None,
        DrainTiming::immediate(),
    );
    let here = get(&proxy, "app.localhost", "/ping", &[]).await;
    assert_eq!(here.header("strict-transport-security"), "");
    assert_eq!(here.header("x-frame-options"), "SAMEORIGIN");
    let elsewhere = get(&proxy, HOST, "/ping", &[]).await;
    assert!(
        elsewhere
            .header("strict-transport-security")
            .starts_with("max-age")
    );
}
