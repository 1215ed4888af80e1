//! Who is signed in, for how long and where; and what reaches the upstream.

use std::cell::Cell;
use std::time::{Duration, Instant};

use futures::{SinkExt, StreamExt};
use http::{Method, StatusCode};
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use postern_common::crypto::handle::Handle;
use postern_common::rpc::token;
use postern_tests::cluster::Layout;
use postern_tests::databroker::{Databroker, SESSIONS, handle_of, shared_secret};
use postern_tests::person::{Answer, Person, WebSocket};
use postern_tests::postgres::Postgres;
use postern_tests::upstream::Upstream;
use postern_tests::wait;
use postern_tests::world::{Setting, World};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

const APP: &str = "app.corp.test";

async fn signed_in(world: &World, name: &str) -> Person {
    let person = world.cluster.browser();
    let answer = world
        .sign_in(&person, &world.cluster.url("app", "/"), name)
        .await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    person
}

fn socket_url(world: &World, host: &str) -> String {
    world.cluster.url(host, "/ws").replace("https:", "wss:")
}

async fn echoes(socket: &mut WebSocket, text: &str) {
    socket.send(Message::text(text)).await.unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(10), socket.next())
        .await
        .expect("an echo in time");
    assert_eq!(answer.unwrap().unwrap(), Message::text(text));
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_in_every_layout() {
    for layout in [Layout::AllInOne, Layout::Split] {
        let world = World::start(layout, "").await;
        let nobody = world.cluster.browser();
        let refused = nobody.websocket(&socket_url(&world, "app")).await;
        assert_eq!(refused.unwrap_err().status(), StatusCode::UNAUTHORIZED);

        let ann = signed_in(&world, "ann").await;
        let mut socket = ann.websocket(&socket_url(&world, "app")).await.unwrap();
        for number in 0..20 {
            echoes(&mut socket, &format!("message {number}")).await;
        }
        echoes(&mut socket, &"x".repeat(200_000)).await;
        // A route without the key, for somebody who may.
        world
            .sign_in(&ann, &world.cluster.url("eng", "/"), "ann")
            .await;
        let refused = ann.websocket(&socket_url(&world, "eng")).await;
        assert_eq!(refused.unwrap_err().status(), StatusCode::FORBIDDEN);
    }
}

/// An administrator deletes the record: within a second it is over, sockets included.
#[tokio::test(flavor = "multi_thread")]
async fn c27_s09_a_deleted_session_ends_everywhere() {
    let world = World::start(Layout::Split, "").await;
    let mut databroker = Databroker::connect(&world.cluster).await;
    let (ann, bob) = (
        signed_in(&world, "ann").await,
        signed_in(&world, "bob").await,
    );
    let url = socket_url(&world, "app");
    let mut anns = Vec::new();
    for _ in 0..20 {
        let mut socket = ann.websocket(&url).await.unwrap();
        echoes(&mut socket, "open").await;
        anns.push(socket);
    }
    let mut bobs = bob.websocket(&url).await.unwrap();
    echoes(&mut bobs, "open").await;

    let session = handle_of(&ann, APP).id;
    databroker.delete_session(&session).await;
    let over = Cell::new(false);
    let closed = async {
        for socket in &mut anns {
            let end = socket.next().await;
            assert!(
                !matches!(end, Some(Ok(Message::Text(_) | Message::Binary(_)))),
                "{end:?}"
            );
        }
        over.set(true);
    };
    // A second as this machine has it now: a hundred steps of ten milliseconds with an echo each.
    let second = async {
        for step in (0..100).take_while(|_| !over.get()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
            echoes(&mut bobs, &format!("step {step}")).await;
        }
        assert!(over.get(), "a socket outlives its session");
    };
    tokio::join!(closed, second);
    let target = world.cluster.url("app", "/");
    let answer = ann.get(&target).await;
    assert_eq!(answer.status, StatusCode::FOUND, "{}", answer.text());
    let refused = ann.websocket(&url).await;
    assert_eq!(refused.unwrap_err().status(), StatusCode::UNAUTHORIZED);
    // Bob is not concerned.
    echoes(&mut bobs, "still open").await;
    assert_eq!(bob.get(&target).await.status, StatusCode::OK);
}

/// A browser's handle is good in the cookie of its host, and nowhere else.
#[tokio::test(flavor = "multi_thread")]
async fn s08_a_handle_counts_only_where_it_belongs() {
    let world = World::start(Layout::AllInOne, "").await;
    let ann = signed_in(&world, "ann").await;
    let cookie = ann.cookies(APP)["_pomerium"].clone();
    let target = world.cluster.url("app", "/");
    for (name, value) in [
        ("authorization", format!("Pomerium {cookie}")),
        ("authorization", format!("Bearer Pomerium-{cookie}")),
        ("x-pomerium-authorization", cookie.clone()),
    ] {
        let program = world.cluster.program().with_header(name, &value);
        let answer = program.get(&target).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{name}");
        assert!(answer.location().is_none());
    }
    let in_query = format!("{target}?pomerium_session={cookie}");
    let answer = world.cluster.program().get(&in_query).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{}", answer.text());

    let handle = handle_of(&ann, APP);
    let claims = json!({"jti": handle.id, "sub": handle.subject, "iss": handle.issuer, "aud": handle.audience, "idp_id": handle.idp_id});
    let unsigned = unsigned(&claims);
    let (signed, _) = cookie.rsplit_once('.').unwrap();
    for (what, host, value) in [
        ("on another host", "eng", cookie.clone()),
        ("with alg none", "app", unsigned),
        ("under HS512", "app", signed_with(Algorithm::HS512, &claims)),
        ("without a signature", "app", format!("{signed}.")),
        ("for authenticate", "app", {
            let cookies = ann.cookies("auth.corp.test");
            cookies["_pomerium_authenticate"].clone()
        }),
        ("of a session that never was", "app", {
            let id = "00000000-0000-4000-8000-000000000000".to_owned();
            Handle {
                id,
                ..handle.clone()
            }
            .encode(&shared_secret())
        }),
    ] {
        let thief = world.cluster.browser();
        thief.set_cookie(&format!("{host}.corp.test"), "_pomerium", &value);
        let answer = thief.get(&world.cluster.url(host, "/")).await;
        assert_eq!(
            answer.status,
            StatusCode::FOUND,
            "{what}: {}",
            answer.text()
        );
    }
}

/// Everything is stopped and started: with a database nobody notices, with memory people sign in.
#[tokio::test(flavor = "multi_thread")]
async fn c08_restart_of_everything() {
    let postgres = Postgres::start().unwrap();
    let storage = format!(
        "databroker_storage_type: postgres\ndatabroker_storage_connection_string: '{}'\n",
        postgres.connection_string("postgres")
    );
    let mut world = World::start(Layout::Split, &storage).await;
    let ann = signed_in(&world, "ann").await;
    world.cluster.restart_everything().await;
    let answer = ann.get(&world.cluster.url("app", "/")).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());

    let mut world = World::start(Layout::Split, "").await;
    let ann = signed_in(&world, "ann").await;
    world.cluster.restart_everything().await;
    let answers = ann.follow(&world.cluster.url("app", "/")).await;
    assert_eq!(answers[0].status, StatusCode::FOUND, "{answers:#?}");
    assert!(
        answers
            .last()
            .unwrap()
            .url
            .as_str()
            .starts_with(&world.issuer),
        "straight to the provider: {answers:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn c22_refused_once_and_for_all() {
    let world = World::start(Layout::Split, "").await;
    let bob = signed_in(&world, "bob").await;
    let target = world.cluster.url("eng", "/");
    let page = bob.follow(&target).await.pop().unwrap();
    assert_eq!(page.url.as_str(), target);
    assert_eq!(page.status, StatusCode::FORBIDDEN);
    assert!(page.header("location").is_none());
    assert!(
        page.header("content-type")
            .unwrap()
            .starts_with("text/html")
    );
    // Once signed in for that host, the first answer is it.
    assert_eq!(bob.get(&target).await.status, StatusCode::FORBIDDEN);
    let program = bob.with_header("accept", "application/json");
    let answer = program.get(&target).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert!(answer.json()["request_id"].is_string(), "{}", answer.text());
}

/// Routes to an upstream that remembers: `api` for everybody signed in, with preflights; `paths`
/// public below /public, else Ann's; `free` public.
async fn with_upstream(layout: Layout) -> (World, Upstream) {
    let upstream = Upstream::start().await;
    let to = upstream.server.url();
    let routes = format!(
        "
- {{from: 'https://api.corp.test:{{PORT}}', to: '{to}', allow_any_authenticated_user: true, cors_allow_preflight: true}}
- {{from: 'https://paths.corp.test:{{PORT}}', prefix: /public, to: '{to}', allow_public_unauthenticated_access: true}}
- {{from: 'https://paths.corp.test:{{PORT}}', to: '{to}', policy: [{{allow: {{and: [{{email: {{is: ann@corp.test}}}}]}}}}]}}
- {{from: 'https://free.corp.test:{{PORT}}', to: '{to}', allow_public_unauthenticated_access: true, pass_identity_headers: true}}
"
    );
    let world = World::start_with(Setting::new(layout).routes(routes)).await;
    (world, upstream)
}

#[tokio::test(flavor = "multi_thread")]
async fn c25_scripts_are_told_and_people_are_sent() {
    let (world, upstream) = with_upstream(Layout::Split).await;
    let url = world.cluster.url("api", "/things");
    let script = world
        .cluster
        .program()
        .with_header("origin", "https://app.corp.test")
        .with_header("accept", "*/*");
    let preflight = script
        .clone()
        .with_header("access-control-request-method", "GET")
        .with_header("sec-fetch-mode", "cors");
    let answer = preflight.send(Method::OPTIONS, &url, "".into()).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert_eq!(upstream.take()[0].method, Method::OPTIONS);

    for (name, value) in [
        ("sec-fetch-mode", "cors"),
        ("x-requested-with", "XMLHttpRequest"),
    ] {
        let answer = script.clone().with_header(name, value).get(&url).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{name}");
        assert!(answer.header("location").is_none());
        let link = answer.header("x-postern-sign-in-url").unwrap().to_owned();
        assert!(link.starts_with(&world.cluster.url("auth", "/.pomerium/sign_in")));
        answer.json();
    }
    let answer = world.cluster.browser().get(&url).await;
    assert_eq!(answer.status, StatusCode::FOUND);
    assert!(upstream.seen().is_empty(), "nothing but the preflight");
}

/// What is ours does not reach the upstream, and what only we may say cannot be said by others.
#[tokio::test(flavor = "multi_thread")]
async fn s05_s06_the_upstream_sees_only_what_it_may() {
    let (world, upstream) = with_upstream(Layout::AllInOne).await;
    let ann = signed_in(&world, "ann").await;
    world
        .sign_in(&ann, &world.cluster.url("api", "/"), "ann")
        .await;
    for host in ["api", "free"] {
        upstream.take();
        let authority = format!("{host}.corp.test:{}", world.cluster.port);
        let cookies = ann.cookie_header(&format!("{host}.corp.test"));
        let request = format!(
            "GET /x HTTP/1.1\r\nHost: {authority}\r\n\
             Cookie: theirs=1; {cookies}; _pomerium_csrf=evil; also=2\r\n\
             X-Pomerium-Jwt-Assertion: evil\r\nx-pomerium-jwt-assertion: evil\r\n\
             X-POMERIUM-CLAIM-EMAIL: evil\r\nX-Pomerium-Claim-Anything: evil\r\n\
             X-Pomerium-Authorization: evil\r\nX-Pomerium-Routing-Key: evil\r\n\
             X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Host: evil\r\nX-Real-IP: 203.0.113.9\r\n\
             Authorization: Basic dGhlaXJz\r\n\
             Connection: close, x-pomerium-jwt-assertion, x-pomerium-claim-email\r\n\r\n"
        );
        let answer = ann
            .raw(&world.cluster.url(host, "/"), request.as_bytes())
            .await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
        let seen = upstream.take().pop().unwrap();
        for (name, value) in &seen.headers {
            if name == "x-forwarded-for" {
                // Nobody is believed: the list says in order who claimed what.
                assert_eq!(value, "203.0.113.9, 127.0.0.1");
                continue;
            }
            let value = String::from_utf8_lossy(value.as_bytes());
            assert!(
                !value.contains("evil") && !value.contains("203.0.113.9"),
                "{host}: {name}: {value}"
            );
        }
        assert!(seen.headers.keys().all(|name| !name.as_str().contains('_')));
        assert_eq!(
            seen.headers["cookie"], "theirs=1; also=2",
            "{host}: theirs, and none of ours"
        );
        assert_eq!(seen.headers["authorization"], "Basic dGhlaXJz");
        let emails: Vec<_> = seen
            .headers
            .get_all("x-pomerium-claim-email")
            .iter()
            .collect();
        match host {
            "api" => assert_eq!(emails, ["ann@corp.test"]),
            _ => assert!(
                emails
                    .iter()
                    .all(|email| email.is_empty() || *email == "ann@corp.test")
            ),
        }
        let assertions = seen.headers.get_all("x-pomerium-jwt-assertion");
        assert!(assertions.iter().count() <= 1);
    }
    // Some upstreams read `_` as `-`: such a request goes nowhere.
    for name in ["X_Pomerium_Claim_Email", "x_pomerium-jwt_assertion"] {
        upstream.take();
        let request = format!(
            "GET /x HTTP/1.1\r\nHost: api.corp.test:{}\r\nCookie: {}\r\n{name}: evil\r\n\
             Connection: close\r\n\r\n",
            world.cluster.port,
            ann.cookie_header("api.corp.test"),
        );
        let answer = ann
            .raw(&world.cluster.url("api", "/"), request.as_bytes())
            .await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{name}: {answer}");
        assert!(upstream.seen().is_empty(), "{name}");
    }
    // A credential of ours in Authorization goes no further, even beside a cookie.
    for credential in [
        "Pomerium e.v.il",
        "Bearer Pomerium-e.v.il",
        "pomerium e.v.il",
    ] {
        upstream.take();
        let answer = ann
            .clone()
            .with_header("authorization", credential)
            .get(&world.cluster.url("api", "/"))
            .await;
        for seen in upstream.take() {
            assert!(
                !seen.headers.contains_key("authorization"),
                "{credential} ({}) reached the upstream",
                answer.status
            );
        }
    }
}

async fn raw_path(world: &World, person: &Person, path: &str) -> u16 {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: paths.corp.test:{}\r\nAccept: text/html\r\n\
         Sec-Fetch-Mode: navigate\r\nCookie: {}\r\nConnection: close\r\n\r\n",
        world.cluster.port,
        person.cookie_header("paths.corp.test"),
    );
    let answer = person
        .raw(&world.cluster.url("paths", "/"), request.as_bytes())
        .await;
    let status = answer.split(' ').nth(1).unwrap_or_default();
    status
        .parse()
        .unwrap_or_else(|_| panic!("{path:?}: {answer:?}"))
}

/// Tricks with paths: what is decided on is what is forwarded, or it is refused.
#[tokio::test(flavor = "multi_thread")]
async fn c32_c33_path_tricks() {
    let (world, upstream) = with_upstream(Layout::Split).await;
    let nobody = world.cluster.browser();
    for (path, wanted, reaches) in [
        ("/public/x", &[200][..], Some("/public/x")),
        ("/public/./x", &[200], Some("/public/x")),
        ("/public?../admin", &[200], Some("/public?../admin")),
        ("/public/x?a=/../b", &[200], Some("/public/x?a=/../b")),
        ("/public/../admin", &[302, 400], None),
        ("/public/%2e%2e/admin", &[302, 400], None),
        ("/public/.%2E/admin", &[302, 400], None),
        ("/PUBLIC/x", &[302], None),
        ("/admin?x=/public/", &[302], None),
        ("/public/%2f..%2fadmin", &[400], None),
        ("/public/%5c..%5cadmin", &[400], None),
        ("/public\\..\\admin", &[400], None),
        // hyper cuts what follows `#` before anybody sees it: one meaning for all.
        ("/public/x#/../../admin", &[200], Some("/public/x")),
        ("/public/%00", &[400], None),
        ("/public;a=b/../admin", &[302, 400], None),
        ("/public/..;/admin", &[200, 302, 400], None),
        ("//public/../admin", &[302, 400], None),
        ("/public/../../../admin", &[302, 400], None),
    ] {
        upstream.take();
        let status = raw_path(&world, &nobody, path).await;
        assert!(wanted.contains(&status), "{path}: {status}");
        let seen: Vec<_> = upstream.take().into_iter().map(|it| it.target).collect();
        match reaches {
            Some(target) => assert_eq!(seen, [target], "{path}"),
            None => assert!(
                seen.iter()
                    .all(|it| it.starts_with("/public/") && !it.contains("/..")
                        || it.contains("..;")),
                "{path}: {seen:?}"
            ),
        }
    }
    // Decoded once, never twice: public, and still encoded upstream, or refused.
    upstream.take();
    let status = raw_path(&world, &nobody, "/public/%252e%252e/admin").await;
    let seen: Vec<_> = upstream.take().into_iter().map(|it| it.target).collect();
    match status {
        200 => assert_eq!(seen, ["/public/%252e%252e/admin"]),
        _ => assert!(status == 400 && seen.is_empty(), "{status} {seen:?}"),
    }
    // Ann may have /admin, and that is what the upstream gets.
    let ann = world.cluster.browser();
    world
        .sign_in(&ann, &world.cluster.url("paths", "/"), "ann")
        .await;
    upstream.take();
    let status = raw_path(&world, &ann, "/public/../admin").await;
    let seen: Vec<_> = upstream.take().into_iter().map(|it| it.target).collect();
    match status {
        200 => assert_eq!(seen, ["/admin"]),
        _ => assert!(status == 400 && seen.is_empty(), "{status} {seen:?}"),
    }
}

/// No user agent opens a door.
#[tokio::test(flavor = "multi_thread")]
async fn c61_health_checkers_are_nobody_special() {
    let (world, upstream) = with_upstream(Layout::AllInOne).await;
    for agent in [
        Some("GoogleHC/1.0"),
        Some("kube-probe/1.30"),
        Some("ELB-HealthChecker/2.0"),
        Some(""),
        None,
    ] {
        let program = match agent {
            Some(agent) => world.cluster.program().with_header("user-agent", agent),
            None => world.cluster.program(),
        };
        let answer = program.get(&world.cluster.url("api", "/")).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{agent:?}");
        for path in ["/ping", "/healthz"] {
            for host in ["api", "auth"] {
                let answer = program.get(&world.cluster.url(host, path)).await;
                assert_eq!(answer.status, StatusCode::OK, "{host}{path} {agent:?}");
            }
        }
    }
    assert!(upstream.seen().is_empty(), "{:?}", upstream.seen());
}

fn assert_unavailable(answer: &Answer, what: &str) {
    assert_eq!(
        answer.status,
        StatusCode::SERVICE_UNAVAILABLE,
        "{what}: {}",
        answer.text()
    );
    assert!(answer.header("retry-after").is_some(), "{what}");
    assert!(answer.header("location").is_none(), "{what}");
    assert!(
        answer.set_cookies().is_empty(),
        "{what}: the session is kept"
    );
}

/// Authorizers gone, then frozen: nobody gets in, nobody is signed out.
#[tokio::test(flavor = "multi_thread")]
async fn c66_without_authorizers_nothing_passes() {
    let (mut world, upstream) = with_upstream(Layout::Split).await;
    let ann = signed_in(&world, "ann").await;
    let api = world.cluster.url("api", "/");
    world.sign_in(&ann, &api, "ann").await;
    upstream.take();
    for how in ["gone", "frozen"] {
        match how {
            "gone" => world.cluster.kill("authorize").await,
            _ => world.cluster.process("authorize").signal("STOP"),
        }
        let free = world.cluster.url("free", "/");
        let grpc = world
            .cluster
            .program()
            .with_header("content-type", "application/grpc")
            .with_header("te", "trailers");
        let socket = socket_url(&world, "app");
        let started = Instant::now();
        let (get, post, public, call, upgrade) = tokio::join!(
            ann.get(&api),
            ann.send(Method::POST, &api, "body".into()),
            ann.get(&free),
            grpc.send(Method::POST, &api, "".into()),
            ann.websocket(&socket),
        );
        assert_unavailable(&get, &format!("{how}: GET"));
        assert_unavailable(&post, &format!("{how}: POST"));
        assert_unavailable(&public, &format!("{how}: public"));
        assert_eq!(call.header("grpc-status"), Some("14"), "{how}: {call:?}");
        assert_eq!(
            upgrade.unwrap_err().status(),
            StatusCode::SERVICE_UNAVAILABLE,
            "{how}"
        );
        assert!(started.elapsed() < Duration::from_secs(15), "{how}");
        assert!(upstream.seen().is_empty(), "{how}: {:?}", upstream.seen());

        match how {
            "gone" => {
                world.cluster.start_again("authorize");
                let url = world.cluster.health("authorize", "/readyz");
                let nobody = world.cluster.program();
                wait::until(
                    "authorize to be back",
                    Duration::from_secs(20),
                    async || match nobody.try_get(&url).await {
                        Ok(answer) if answer.status == 200 => Ok(()),
                        other => Err(other),
                    },
                )
                .await;
            }
            _ => world.cluster.process("authorize").signal("CONT"),
        }
        wait::until("recovery", Duration::from_secs(2), async || {
            match ann.get(&api).await {
                answer if answer.status == StatusCode::OK => Ok(()),
                answer => Err(answer.text()),
            }
        })
        .await;
        upstream.take();
    }
}

fn unsigned(claims: &serde_json::Value) -> String {
    use base64::Engine;
    let encode = |value: &serde_json::Value| {
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string())
    };
    format!("{}.{}.", encode(&json!({"alg": "none"})), encode(claims))
}

fn signed_with(algorithm: Algorithm, claims: &serde_json::Value) -> String {
    let key = EncodingKey::from_secret(shared_secret().as_bytes());
    jsonwebtoken::encode(&Header::new(algorithm), claims, &key).unwrap()
}

/// Only what services sign for each other opens the databroker.
#[tokio::test(flavor = "multi_thread")]
async fn c63_s17_the_databroker_knows_its_own() {
    let world = World::start(Layout::Split, "").await;
    let ann = signed_in(&world, "ann").await;
    let handle = handle_of(&ann, APP);
    let mut databroker = Databroker::connect(&world.cluster).await;
    let now = Timestamp::now();
    let good = token::sign(&shared_secret(), now);
    let record = databroker
        .get(Some(&good), SESSIONS, &handle.id)
        .await
        .expect("a token of ours is good");

    let soon = json!({ "exp": now.as_second() + 300 });
    let hours = SignedDuration::from_hours(1);
    let service_account = json!({
        "jti": "account", "sub": "robot", "iss": "auth.corp.test", "exp": now.as_second() + 300
    });
    for (what, foreign) in [
        ("none", None),
        ("empty", Some(String::new())),
        ("garbage", Some("a.b.c".to_owned())),
        ("a session's handle", Some(handle.encode(&shared_secret()))),
        ("the cookie", Some(ann.cookies(APP)["_pomerium"].clone())),
        (
            "a service account's",
            Some(signed_with(Algorithm::HS256, &service_account)),
        ),
        ("alg none", Some(unsigned(&soon))),
        ("HS512", Some(signed_with(Algorithm::HS512, &soon))),
        ("HS384", Some(signed_with(Algorithm::HS384, &soon))),
        ("expired", Some(token::sign(&shared_secret(), now - hours))),
        (
            "of another key",
            Some(token::sign(&shared_secret().derive("x"), now)),
        ),
    ] {
        let foreign = foreign.as_deref();
        let got = databroker.get(foreign, SESSIONS, &handle.id).await;
        assert_eq!(
            got.unwrap_err().code(),
            tonic::Code::Unauthenticated,
            "{what}"
        );
        let mut deleted = record.clone();
        deleted.deleted_at = deleted.modified_at;
        let put = databroker.put(foreign, deleted).await;
        assert_eq!(
            put.unwrap_err().code(),
            tonic::Code::Unauthenticated,
            "{what}"
        );
    }
    assert!(
        databroker.has_session(&handle.id).await,
        "nothing was written"
    );
}
