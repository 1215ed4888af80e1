//! A real sign-in in every layout: over HTTP, through a browser, with a provider of somebody else's.

use http::StatusCode;
use postern_tests::browser::Browser;
use postern_tests::cluster::{Cluster, Layout};
use postern_tests::world::{self, World};

/// Somebody clones, starts, opens one URL, signs in and is greeted by name; then signs out.
async fn signs_in_and_out(world: &World) {
    let ann = world.cluster.browser();
    let target = world.cluster.url("app", "/deep/link?x=1&y=a%20b");

    let greeted = world.sign_in(&ann, &target, "ann").await;
    assert_eq!(
        greeted.url.as_str(),
        target,
        "the deep link survives the sign-in"
    );
    assert!(greeted.text().contains("Hello, Ann"), "{}", greeted.text());

    let again = ann.get(&target).await;
    assert_eq!(again.status, StatusCode::OK, "the session lasts");

    world.sign_out(&ann).await;
    let after = ann.get(&target).await;
    assert_eq!(
        after.status,
        StatusCode::FOUND,
        "signed out: {}",
        after.text()
    );
}

/// Bob is signed in, but not in the group: one answer, no way round in circles (C22).
async fn another_user_is_refused(world: &World) {
    let bob = world.cluster.browser();
    world
        .sign_in(&bob, &world.cluster.url("app", "/"), "bob")
        .await;
    let answers = bob.follow(&world.cluster.url("eng", "/")).await;
    let refused = answers.last().unwrap();
    assert_eq!(refused.status, StatusCode::FORBIDDEN, "{answers:#?}");
    assert!(
        refused
            .text()
            .contains(refused.header("x-request-id").unwrap())
    );
    assert!(!refused.text().contains("Hello"));
}

/// A program gets 401 and JSON with a way to sign in.
async fn a_program_is_told_how(world: &World) {
    let answer = world
        .cluster
        .program()
        .get(&world.cluster.url("app", "/"))
        .await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert!(answer.json()["request_id"].is_string(), "{}", answer.text());
    assert!(answer.location().is_none());
}

async fn the_assertion_verifies_elsewhere(world: &World) {
    let ann = world.cluster.browser();
    let url = world.cluster.url("app", "/");
    world.sign_in(&ann, &url, "ann").await;
    let seen = ann
        .clone()
        .with_header("accept", "application/json")
        .get(&url)
        .await
        .json();
    let token = world::header_seen(&seen, "x-pomerium-jwt-assertion").unwrap();
    let keys = ann
        .get(&world.cluster.url("app", "/.well-known/pomerium/jwks.json"))
        .await
        .text();
    let claims =
        postern_tests::python::run("verify_assertion.py", &[&keys, &token, "app.corp.test"]);
    let claims: serde_json::Value = serde_json::from_str(&claims).unwrap();
    assert_eq!(claims["email"], "ann@corp.test");
    assert_eq!(
        world::header_seen(&seen, "x-pomerium-claim-email").as_deref(),
        Some("ann@corp.test")
    );
    assert_eq!(
        world::header_seen(&seen, "cookie"),
        None,
        "no cookie of ours goes upstream"
    );
}

async fn everything(world: World) {
    signs_in_and_out(&world).await;
    another_user_is_refused(&world).await;
    a_program_is_told_how(&world).await;
    the_assertion_verifies_elsewhere(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_in_one_with_memory() {
    everything(World::start(Layout::AllInOne, "").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn split_with_memory() {
    everything(World::start(Layout::Split, "").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn split_with_postgres() {
    let postgres = postern_tests::postgres::Postgres::start().unwrap();
    let storage = format!(
        "databroker_storage_type: postgres\ndatabroker_storage_connection_string: '{}'\n",
        postgres.connection_string("postgres")
    );
    everything(World::start(Layout::Split, &storage).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_signs_in_and_out() {
    for layout in [Layout::AllInOne, Layout::Split] {
        let world = World::start(layout, "").await;
        let browser = Browser::start(&world.cluster.site.certificates.certificate).await;
        let target = world.cluster.url("app", "/deep?x=1");

        browser.open(&target).await;
        browser.click("button[value=ann]").await;
        browser.shows("h1", "Hello, Ann").await;
        assert_eq!(browser.url().await, target);

        browser.open(&world.cluster.url("app", "/.pomerium/")).await;
        browser.shows("main", "ann@corp.test").await;
        browser.click("form[action*=sign_out] button").await;
        browser.shows("main", "Your session has ended").await;
        browser.open(&target).await;
        assert!(
            browser
                .find("button[value=ann]")
                .await
                .is_displayed()
                .await
                .unwrap(),
            "signed out: the provider asks again"
        );
        browser.close().await;
    }
}

/// A provider that this project did not write.
#[tokio::test(flavor = "multi_thread")]
async fn an_independent_provider_signs_people_in() {
    let provider = postern_tests::provider::Independent::start().await;
    let cluster = Cluster::start(postern_tests::cluster::Plan {
        layout: Layout::AllInOne,
        provider: provider.issuer(),
        config: "routes:\n- {from: 'https://app.corp.test:{PORT}', to: 'http://127.0.0.1:1', \
                 allow_any_authenticated_user: true}\n"
            .to_owned(),
        names: Vec::new(),
    })
    .await;
    let ann = cluster.browser();
    let target = cluster.url("app", "/.pomerium/user");
    let page = ann.follow(&target).await.pop().unwrap();
    let chosen = provider.choose(&ann, &page, "ann@corp.test").await;
    let user = ann
        .follow(chosen.location().unwrap().as_str())
        .await
        .pop()
        .unwrap();
    assert_eq!(user.status, StatusCode::OK, "{}", user.text());
    assert_eq!(user.json()["email"], "ann@corp.test");
}
