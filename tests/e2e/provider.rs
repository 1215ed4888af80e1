//! The identity provider on its bad days, and what people do meanwhile.

use std::time::Duration;

use http::{Method, StatusCode};
use postern::demo::idp::{self, DemoIdp, Redirects};
use postern_tests::cluster::Layout;
use postern_tests::databroker::{Databroker, handle_of};
use postern_tests::lies::{Lie, Lies};
use postern_tests::person::{Answer, Person};
use postern_tests::wait;
use postern_tests::world::{self, Setting, World};
use serde_json::json;

fn has_session(person: &Person, host: &str) -> bool {
    let cookies = person.cookies(host);
    cookies.contains_key("_pomerium") || cookies.contains_key("_pomerium_authenticate")
}

/// A page for people with the request's id, and nothing that lets them in.
fn assert_refused(answer: &Answer, status: StatusCode, person: &Person) {
    assert_eq!(answer.status, status, "{}", answer.text());
    let id = answer.header("x-request-id").expect("a request id");
    assert!(answer.text().contains(id), "{}", answer.text());
    assert!(
        answer
            .header("content-type")
            .unwrap()
            .starts_with("text/html"),
        "a page for people"
    );
    for host in ["app.corp.test", "auth.corp.test"] {
        assert!(!has_session(person, host), "no session on {host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c16_a_provider_that_is_down_at_the_start() {
    for layout in [Layout::AllInOne, Layout::Split] {
        let mut world = World::start_with(Setting {
            provider: None,
            ..Setting::new(layout)
        })
        .await;
        let ann = world.cluster.browser();
        let open = ann.get(&world.cluster.url("open", "/")).await;
        assert_eq!(open.status, StatusCode::OK, "{}", open.text());

        let target = world.cluster.url("app", "/deep?x=1");
        let page = ann.follow(&target).await.pop().unwrap();
        assert_refused(&page, StatusCode::SERVICE_UNAVAILABLE, &ann);
        assert!(page.header("retry-after").is_some());
        assert!(
            page.text().contains("identity provider cannot be reached"),
            "{}",
            page.text()
        );

        let provider = world::provider_at(&world.issuer, world::honest(&world.issuer)).await;
        world.provider = Some(provider);
        // Discovery may have been tried a moment ago.
        wait::until("the provider's page", Duration::from_secs(5), async || {
            let page = ann.follow(&target).await.pop().unwrap();
            if page.url.as_str().starts_with(&world.issuer) {
                Ok(())
            } else {
                Err(page.text())
            }
        })
        .await;
        let greeted = world.sign_in(&ann, &target, "ann").await;
        assert_eq!(greeted.url.as_str(), target);
        assert!(greeted.text().contains("Hello, Ann"), "{}", greeted.text());
    }
}

/// A world whose provider lies on demand.
async fn lying(layout: Layout) -> (World, Lies) {
    let lies = Lies::default();
    let around = lies.clone();
    let world = World::start_with(Setting {
        provider: Some(Box::new(move |issuer| around.around(world::honest(issuer)))),
        ..Setting::new(layout)
    })
    .await;
    (world, lies)
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_are_not_believed() {
    let (world, lies) = lying(Layout::AllInOne).await;
    let target = world.cluster.url("app", "/");
    for lie in [
        Lie::Claim("nonce", json!("of-another-sign-in")),
        Lie::Claim("nonce", json!(null)),
        Lie::Claim("aud", json!("another-client")),
        Lie::Claim("aud", json!(["postern-demo", "another-client"])),
        Lie::Claim("azp", json!("another-client")),
        Lie::Claim("iss", json!("https://evil.test")),
        Lie::Claim("exp", json!(1_000_000_000)),
        Lie::Claim("nbf", json!(4_000_000_000_u64)),
        Lie::Claim("iat", json!(4_000_000_000_u64)),
        Lie::Claim("sub", json!(null)),
        Lie::ForeignKey,
        Lie::Unsigned,
        Lie::Garbage("/token"),
    ] {
        let what = format!("{lie:?}");
        // ["postern-demo", "another-client"] with an azp of ours is honest.
        let fine = what.contains("[String(\"postern-demo\")");
        lies.tell(lie);
        let ann = world.cluster.browser();
        let last = world.sign_in(&ann, &target, "ann").await;
        if fine {
            assert_eq!(last.status, StatusCode::OK, "{what}: {}", last.text());
            continue;
        }
        assert_eq!(
            last.status,
            StatusCode::BAD_GATEWAY,
            "{what}: {}",
            last.text()
        );
        assert_refused(&last, StatusCode::BAD_GATEWAY, &ann);
        let again = ann.get(&target).await;
        assert_eq!(again.status, StatusCode::FOUND, "{what}: no access");
    }
    lies.tell(Lie::Honest);
    let ann = world.cluster.browser();
    let last = world.sign_in(&ann, &target, "ann").await;
    assert_eq!(last.status, StatusCode::OK, "{}", last.text());
}

/// What fails at the provider is an outage, not a sign-out: whoever is signed in stays so.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_or_broken_provider_is_an_outage() {
    let (world, lies) = lying(Layout::Split).await;
    let target = world.cluster.url("app", "/");
    let bob = world.cluster.browser();
    world.sign_in(&bob, &target, "bob").await;
    for lie in [
        Lie::Fails("/token", StatusCode::INTERNAL_SERVER_ERROR),
        Lie::Fails("/token", StatusCode::SERVICE_UNAVAILABLE),
        Lie::Silent("/token"),
    ] {
        lies.tell(lie);
        let ann = world.cluster.browser();
        let last = world.sign_in(&ann, &target, "ann").await;
        assert_refused(&last, StatusCode::SERVICE_UNAVAILABLE, &ann);
        assert!(last.header("retry-after").is_some());
        assert_eq!(bob.get(&target).await.status, StatusCode::OK);
    }
}

/// 40 KB of claims: one round, small cookies, all of it usable in policy.
#[tokio::test(flavor = "multi_thread")]
async fn c20_many_claims() {
    fn generous(issuer: &str) -> axum::Router {
        let mut provider = DemoIdp::new(issuer, Redirects::Any);
        provider.people[0].groups = (0..1_000)
            .map(|number| format!("group-{number:04}-with-a-rather-long-name-{number:04}"))
            .chain(["eng".to_owned()])
            .collect();
        idp::router(provider)
    }
    let world = World::start_with(Setting {
        provider: Some(Box::new(generous)),
        ..Setting::new(Layout::Split)
    })
    .await;
    let ann = world.cluster.browser();
    let target = world.cluster.url("eng", "/");
    let greeted = world.sign_in(&ann, &target, "ann").await;
    assert_eq!(greeted.status, StatusCode::OK, "{}", greeted.text());
    for host in ["eng.corp.test", "auth.corp.test"] {
        let size = ann.cookie_header(host).len();
        assert!(size < 2_048, "{size} bytes of cookies on {host}");
    }
    let seen = ann
        .with_header("accept", "application/json")
        .get(&target)
        .await
        .json();
    assert_eq!(world::header_seen(&seen, "cookie"), None);
    let groups = world::header_seen(&seen, "x-pomerium-claim-groups").unwrap();
    assert!(groups.len() > 40_000 && groups.ends_with("eng"), "{groups}");
}

/// Two tabs, two sign-ins; the older form is finished later, and a callback is reloaded.
#[tokio::test(flavor = "multi_thread")]
async fn c24_tabs() {
    let world = World::start(Layout::Split, "").await;
    let ann = world.cluster.browser();
    let (first, second) = (
        world.cluster.url("app", "/x?q=1"),
        world.cluster.url("eng", "/y?q=2"),
    );
    let page1 = ann.follow(&first).await.pop().unwrap();
    let page2 = ann.follow(&second).await.pop().unwrap();

    let callback1 = world.choose(&ann, &page1, "ann").await;
    let landed = ann.follow(callback1.as_str()).await.pop().unwrap();
    assert_eq!(landed.url.as_str(), first);
    assert_eq!(landed.status, StatusCode::OK, "{}", landed.text());

    let callback2 = world.choose(&ann, &page2, "ann").await;
    let landed = ann.follow(callback2.as_str()).await.pop().unwrap();
    assert_eq!(landed.url.as_str(), second);
    assert_eq!(landed.status, StatusCode::OK, "{}", landed.text());

    // Back, and reload.
    let landed = ann.follow(callback1.as_str()).await.pop().unwrap();
    let at_target = landed.url.as_str() == first && landed.status == StatusCode::OK;
    let anew = landed.url.as_str().starts_with(&world.issuer);
    assert!(at_target || anew, "{} {}", landed.url, landed.text());
    // And the session is what it was.
    assert_eq!(ann.get(&first).await.status, StatusCode::OK);
}

/// A callback that somebody else's browser began, or that is used a second time by another one.
#[tokio::test(flavor = "multi_thread")]
async fn s11_a_callback_is_of_the_browser_that_began() {
    let world = World::start(Layout::AllInOne, "").await;
    let target = world.cluster.url("app", "/");
    let (ann, mallory) = (world.cluster.browser(), world.cluster.browser());
    let page = ann.follow(&target).await.pop().unwrap();
    let callback = world.choose(&ann, &page, "ann").await;
    let answers = mallory.follow(callback.as_str()).await;
    assert!(
        !has_session(&mallory, "app.corp.test") && !has_session(&mallory, "auth.corp.test"),
        "{answers:#?}"
    );
    assert_eq!(mallory.get(&target).await.status, StatusCode::FOUND);

    // The route's callback, with the session in it, is as useless to another browser.
    let bob = world.cluster.browser();
    let page = bob.follow(&target).await.pop().unwrap();
    let callback = world.choose(&bob, &page, "bob").await;
    let mut next = callback;
    let route_callback = loop {
        let answer = bob.get(next.as_str()).await;
        next = answer
            .location()
            .unwrap_or_else(|| panic!("{}", answer.text()));
        if next.path() == "/.pomerium/callback/" {
            break next;
        }
    };
    let answer = mallory.get(route_callback.as_str()).await;
    assert!(
        !mallory.cookies("app.corp.test").contains_key("_pomerium"),
        "{}",
        answer.text()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn c26_sign_out() {
    let world = World::start(Layout::Split, "").await;
    let mut databroker = Databroker::connect(&world.cluster).await;
    let ann = world.cluster.browser();
    let target = world.cluster.url("app", "/");
    let sign_out = world.cluster.url("app", "/.pomerium/sign_out");
    world.sign_in(&ann, &target, "ann").await;
    let session = handle_of(&ann, "app.corp.test").id;

    // An <img>, a link and a form on another site sign nobody out, on no host.
    for host in ["app", "auth"] {
        let url = world.cluster.url(host, "/.pomerium/sign_out");
        let foreign = ann
            .clone()
            .with_header("sec-fetch-site", "cross-site")
            .with_header("origin", "https://evil.test");
        foreign
            .clone()
            .with_header("sec-fetch-mode", "no-cors")
            .with_header("sec-fetch-dest", "image")
            .follow(&url)
            .await;
        foreign.follow(&url).await;
        let body = "token=guessed&pomerium_redirect_uri=https%3A%2F%2Fevil.test";
        let answer = foreign
            .with_header("content-type", "application/x-www-form-urlencoded")
            .send(Method::POST, &url, body.into())
            .await;
        assert!(
            answer
                .location()
                .is_none_or(|next| !next.as_str().contains("evil"))
        );
        assert!(databroker.has_session(&session).await, "{host}");
        assert_eq!(ann.get(&target).await.status, StatusCode::OK, "{host}");
    }

    // The form on one's own page does.
    let page = ann.get(&world.cluster.url("app", "/.pomerium/")).await;
    let answer = postern_tests::form::Form::of(&page).send(&ann, &[]).await;
    let answers = ann.follow(answer.location().unwrap().as_str()).await;
    let at_provider = answers
        .iter()
        .map(|answer| &answer.url)
        .find(|url| url.as_str().starts_with(&world.issuer))
        .unwrap_or_else(|| panic!("the provider is told: {answers:#?}"));
    assert_eq!(at_provider.path(), "/logout");
    assert!(
        at_provider
            .query_pairs()
            .any(|(name, value)| name == "id_token_hint" && value.split('.').count() == 3),
        "{at_provider}"
    );
    assert!(
        !databroker.has_session(&session).await,
        "the record is gone"
    );
    assert!(!ann.cookies("app.corp.test").contains_key("_pomerium"));
    let next = ann.follow(&target).await.pop().unwrap();
    assert!(
        next.url.as_str().starts_with(&world.issuer),
        "the provider asks again"
    );
    // Asking once more, without a session, is no error.
    assert!(ann.get(&sign_out).await.status.as_u16() < 500);
}
