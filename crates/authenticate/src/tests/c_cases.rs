//! Situations from public bug reports, by their number in the list of cases.

use http::{Method, header};
use jiff::{SignedDuration, Timestamp};
use postern_common::crypto::handle::{Place, Purpose};
use postern_common::crypto::signed_url::param;
use serde_json::json;
use url::Url;

use super::idp::Idp;
use super::support::{HOST, IDP_ID, World};

const APP: &str = "https://app.corp.test/x?q=1&r=it's";

#[tokio::test]
async fn a_sign_in_from_end_to_end() {
    let world = World::new();
    let mut browser = world.browser();
    let callback = browser.sign_in(&world, APP).await;
    assert_eq!(callback.host_str(), Some("app.corp.test"));
    assert_eq!(callback.path(), "/.pomerium/callback/");
    let received = world.receive(&callback);
    assert_eq!(received.redirect, APP);
    assert_eq!(received.parameters[param::ADDITIONAL_HOSTS], "");
    assert!(!received.parameters.contains_key(param::PROGRAMMATIC));

    let sessions = world.databroker.sessions().await;
    let [session] = sessions.as_slice() else {
        panic!("{sessions:?}")
    };
    let handle = &received.handle;
    assert_eq!((&handle.id, handle.subject.as_str()), (&session.id, "ann"));
    assert_eq!(
        (handle.idp_id.as_str(), handle.issuer.as_str()),
        (IDP_ID, HOST)
    );
    assert_eq!(handle.audience, ["app.corp.test"]);
    assert_eq!(handle.purpose, Some(Purpose::Browser));
    assert_ne!((handle.record_version, handle.server_version), (0, 0));

    assert_ne!(session.id, "chosen-by-the-provider");
    assert_eq!(
        (session.user_id.as_str(), session.idp_id.as_str()),
        ("ann", IDP_ID)
    );
    let lifetime =
        session.expires_at.as_ref().unwrap().seconds - session.issued_at.as_ref().unwrap().seconds;
    assert_eq!(lifetime, 14 * 3600);
    assert_eq!(session.claims["groups"].values.len(), 2);
    assert!(!session.id_token.as_ref().unwrap().raw.is_empty());
    assert!(
        !session
            .oauth_token
            .as_ref()
            .unwrap()
            .refresh_token
            .is_empty()
    );
    let users = world.databroker.users().await;
    assert_eq!(
        (users[0].name.as_str(), users[0].email.as_str()),
        ("Ann", "ann@corp.test")
    );

    // The next route needs no provider, and the provider sees nothing of it.
    let next = browser
        .get(&world.sign_in_url("https://b.corp.test/y"))
        .await
        .location();
    assert_eq!(world.receive(&next).handle.id, session.id);
    assert_eq!(world.receive(&next).handle.audience, ["b.corp.test"]);
    assert_eq!(world.idp.set(|state| state.redeemed), 1);
}

#[tokio::test]
async fn c16_provider_unreachable_at_start() {
    let idp = Idp::new();
    idp.set(|state| state.down = true);
    let world = World::around(|_| {}, idp);
    let mut browser = world.browser();
    let answer = browser.get(&world.sign_in_url(APP)).await;
    assert_eq!(answer.status, 503);
    let id = answer.headers["x-request-id"].to_str().unwrap();
    assert!(
        answer.body.contains("identity provider cannot be reached") && answer.body.contains(id)
    );
    assert!(answer.headers.contains_key(header::RETRY_AFTER));
    assert!(answer.body.contains("Try again"));
    world.idp.set(|state| state.down = false);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    loop {
        let answer = browser.get(&world.sign_in_url(APP)).await;
        if answer.status == 302 {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{}", answer.body);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    browser.sign_in(&world, APP).await;
}

#[tokio::test]
async fn c20_large_claims_stay_out_of_cookies() {
    let world = World::new();
    let groups: Vec<String> = (0..2000)
        .map(|i| format!("a-group-with-a-long-name-{i}"))
        .collect();
    world
        .idp
        .set(|state| state.claims["groups"] = json!(groups));
    let mut browser = world.browser();
    let callback = browser.sign_in(&world, APP).await;
    let own: usize = browser.cookies.iter().map(|(n, v)| n.len() + v.len()).sum();
    let route = world.receive(&callback).token.len();
    assert!(own + route < 2048, "{own} + {route}");
    assert_eq!(
        world.databroker.sessions().await[0].claims["groups"]
            .values
            .len(),
        2000
    );
}

#[tokio::test]
async fn c24_several_tabs_at_once() {
    let world = World::new();
    let mut browser = world.browser();
    let first = browser.get(&world.sign_in_url(APP)).await.location();
    let second = browser
        .get(&world.sign_in_url("https://b.corp.test/y?z=2"))
        .await
        .location();
    // Tab 1 is finished, then tab 2's older form.
    let first_back = world.idp.sign_in(&first);
    let again = browser.get(&first_back).await.location();
    let target = browser.get(&again).await.location();
    assert_eq!(world.receive(&target).redirect, APP);
    let second_back = world.idp.sign_in(&second);
    let again = browser.get(&second_back).await.location();
    let target = browser.get(&again).await.location();
    assert_eq!(world.receive(&target).redirect, "https://b.corp.test/y?z=2");
    // Back in tab 1, its callback is loaded once more: on to its target, by the session there is.
    let again = browser.get(&first_back).await.location();
    let target = browser.get(&again).await.location();
    assert_eq!(world.receive(&target).redirect, APP);
    assert_eq!(world.idp.set(|state| state.redeemed), 2);
}

#[tokio::test]
async fn c24_an_expired_sign_in_can_be_left() {
    let world = World::new();
    let mut browser = world.browser();
    let to_provider = browser.get(&world.sign_in_url(APP)).await.location();
    let mut back = world.idp.sign_in(&to_provider);
    // A state of ten minutes ago, for the same browser.
    let csrf = postern_common::crypto::state::CsrfToken::from_cookie(
        &world.config.secrets.cookie,
        "_pomerium_csrf",
        &browser.cookies["_pomerium_csrf"],
        Timestamp::now(),
    );
    let old = postern_common::crypto::state::SignIn::begin(
        &world.config.secrets.cookie[0],
        csrf.unwrap(),
        world.sign_in_url(APP),
        Timestamp::now() - SignedDuration::from_mins(10),
        [1; 24],
    );
    back.query_pairs_mut()
        .clear()
        .append_pair("code", "x")
        .append_pair("state", &old.state);
    let answer = browser.get(&back).await;
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("Start again"));
    assert!(
        answer
            .body
            .contains("href=\"https://app.corp.test/x?q=1&#38;r=it&#39;s\"")
    );
}

#[tokio::test]
async fn c26_sign_out_by_form() {
    let world = World::new();
    let mut browser = world.browser();
    browser.sign_in(&world, APP).await;
    let url = Url::parse(&format!("https://{HOST}/.pomerium/sign_out")).unwrap();

    // An image on another site: signs nobody out.
    let mut image = browser.clone();
    image
        .headers
        .insert("sec-fetch-mode", "no-cors".parse().unwrap());
    image
        .headers
        .insert("sec-fetch-site", "cross-site".parse().unwrap());
    let answer = image.get(&url).await;
    assert_eq!(answer.status, 200);
    assert_eq!(world.databroker.sessions().await.len(), 1);

    let page = browser.get(&url).await;
    assert!(page.body.contains("<form method=\"post\""));
    let token = page.form_token();
    let session = world.databroker.sessions().await.remove(0);
    browser
        .headers
        .insert("sec-fetch-site", "same-origin".parse().unwrap());
    let answer = browser.post(&url, &[("token", &token)]).await;
    let location = answer.location();
    assert!(
        location
            .as_str()
            .starts_with("https://idp.corp.test/logout?"),
        "{location}"
    );
    let asked: std::collections::BTreeMap<_, _> = location.query_pairs().into_owned().collect();
    assert_eq!(asked["id_token_hint"], session.id_token.unwrap().raw);
    assert_eq!(
        asked["post_logout_redirect_uri"],
        format!("https://{HOST}/.pomerium/signed_out")
    );
    assert!(world.databroker.sessions().await.is_empty());
    assert!(!browser.cookies.contains_key("_pomerium_authenticate"));
    let token = session.oauth_token.unwrap();
    let revoked = world.idp.set(|state| state.revoked.clone());
    assert!(revoked.contains(&token.refresh_token) && revoked.contains(&token.access_token));
    // The next visit goes to the provider again.
    let next = browser.get(&world.sign_in_url(APP)).await.location();
    assert_eq!(next.host_str(), Some("idp.corp.test"));
}

#[tokio::test]
async fn c26_sign_out_by_signed_link_without_end_session() {
    let idp = Idp::new();
    idp.set(|state| state.end_session = false);
    let world = World::around(|_| {}, idp);
    let mut browser = world.browser();
    browser.sign_in(&world, APP).await;
    let session = world.databroker.sessions().await.remove(0);
    let link = world.sign("/.pomerium/sign_out", &[(param::SESSION_ID, &session.id)]);
    let answer = browser.get(&link).await;
    assert_eq!(answer.headers[header::LOCATION], "/.pomerium/signed_out");
    assert!(world.databroker.sessions().await.is_empty());
    assert_eq!(world.idp.set(|state| state.revoked.len()), 2);
    let url = Url::parse(&format!("https://{HOST}/.pomerium/signed_out")).unwrap();
    let page = browser.get(&url).await;
    assert!(page.status == 200 && page.body.contains("You are signed out"));
}

#[tokio::test]
async fn c74_one_quiet_round_trip_with_a_cookie_domain() {
    let world = World::with(|config| config.cookie.domain = Some("corp.test".into()));
    let mut browser = world.browser();
    let callback = browser.sign_in(&world, "https://app.corp.test/").await;
    let handle = world.receive(&callback).handle;
    handle
        .acceptable(Place::Cookie, "app2.corp.test", Some("corp.test"))
        .unwrap();
    let answer = browser
        .get(&world.sign_in_url("https://app2.corp.test/"))
        .await;
    assert_eq!(answer.location().host_str(), Some("app2.corp.test"));
    // Authenticate's own cookies stay on its host all the same.
    assert!(
        answer
            .cookies()
            .iter()
            .all(|cookie| !cookie.contains("Domain"))
    );
}

#[tokio::test]
async fn c77_a_reload_in_the_middle_of_a_sign_in() {
    let world = World::new();
    let mut browser = world.browser();
    let to_provider = browser.get(&world.sign_in_url(APP)).await.location();
    world
        .service
        .configure(std::sync::Arc::clone(&world.config));
    world
        .service
        .configure(std::sync::Arc::clone(&world.config));
    let back = world.idp.sign_in(&to_provider);
    let again = browser.get(&back).await.location();
    let target = browser.get(&again).await.location();
    assert_eq!(world.receive(&target).redirect, APP);
}

#[tokio::test]
async fn c51_another_replica_finishes_a_sign_in() {
    let world = World::new();
    let mut browser = world.browser();
    let to_provider = browser.get(&world.sign_in_url(APP)).await.location();
    browser.router = world.replica();
    let back = world.idp.sign_in(&to_provider);
    let again = browser.get(&back).await.location();
    browser.router = world.replica();
    let target = browser.get(&again).await.location();
    assert_eq!(world.receive(&target).redirect, APP);
    for path in ["/.well-known/pomerium/jwks.json", "/", "/.pomerium/"] {
        let url = Url::parse(&format!("https://{HOST}{path}")).unwrap();
        assert_ne!(browser.get(&url).await.status, 404, "{path}");
    }
    // Under the internal name, URLs signed for the external one hold too.
    let mut internal = world.sign_in_url(APP);
    internal.set_host(Some("authenticate")).unwrap();
    internal.set_port(Some(8443)).unwrap();
    assert_eq!(browser.get(&internal).await.status, 302);
}

#[tokio::test]
async fn c87_the_target_survives_unchanged() {
    let world = World::new();
    for target in [
        "https://app.corp.test/a/%0A/b?q=x%0Ay",
        "https://app.corp.test/%C3%A4/a%20b/a+b?c=%2B+'\"",
        &format!("https://app.corp.test/?q={}", "x".repeat(12_000)),
    ] {
        let mut browser = world.browser();
        let callback = browser.sign_in(&world, target).await;
        assert_eq!(world.receive(&callback).redirect, target);
    }
}

/// A databroker that is killed after it did what it was asked for: asked again, it is all the same.
#[tokio::test]
async fn a_sign_in_outlives_answers_that_are_lost() {
    let world = World::new();
    let mut browser = world.browser();
    let to_provider = browser.get(&world.sign_in_url(APP)).await.location();
    let back = world.idp.sign_in(&to_provider);
    world.databroker.lose_answers(true);
    let answer = browser.get(&back).await;
    world.databroker.lose_answers(false);
    assert_eq!(answer.status, 302, "{}", answer.body);
    let callback = browser.get(&answer.location()).await.location();
    world.receive(&callback);
    assert_eq!(world.databroker.sessions().await.len(), 1);
}

#[tokio::test]
async fn c07_databroker_away() {
    let world = World::new();
    let mut signed_in = world.browser();
    signed_in.sign_in(&world, APP).await;
    let mut under_way = world.browser();
    let to_provider = under_way.get(&world.sign_in_url(APP)).await.location();
    world.databroker.set_down(true);
    // Nobody is sent to the provider, nobody is signed out.
    let answer = world.browser().get(&world.sign_in_url(APP)).await;
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("store of sessions cannot be reached"));
    assert!(answer.headers.contains_key(header::RETRY_AFTER));
    let answer = signed_in.get(&world.sign_in_url(APP)).await;
    assert_eq!(answer.status, 503);
    assert!(signed_in.cookies.contains_key("_pomerium_authenticate"));
    let back = world.idp.sign_in(&to_provider);
    assert_eq!(under_way.get(&back).await.status, 503);
    let url = Url::parse(&format!("https://{HOST}/.pomerium/sign_out")).unwrap();
    assert_eq!(signed_in.get(&url).await.status, 503);
    assert_eq!(world.idp.set(|state| state.redeemed), 1);
    world.databroker.set_down(false);
    assert_eq!(signed_in.get(&world.sign_in_url(APP)).await.status, 302);
    // Its one use was never claimed, so the sign-in that was under way can go on.
    assert_eq!(under_way.get(&back).await.status, 302);
}

/// The only databroker is started again while people sign in: they wait and never learn of it.
#[tokio::test]
async fn a_databroker_that_is_back_in_a_moment_is_waited_for() {
    let world = World::new();
    let mut browser = world.browser();
    world.databroker.fail_next(3);
    let answer = browser.get(&world.sign_in_url(APP)).await;
    assert_eq!(answer.status, 302, "to the provider: {}", answer.body);
    let back = world.idp.sign_in(&answer.location());
    world.databroker.fail_next(3);
    let answer = browser.get(&back).await;
    assert_eq!(answer.status, 302, "back from it: {}", answer.body);
    world.databroker.fail_next(3);
    let answer = browser.get(&answer.location()).await;
    assert_eq!(answer.status, 302, "to the route: {}", answer.body);
    world.receive(&answer.location());
    assert_eq!(world.databroker.sessions().await.len(), 1);
}

#[tokio::test]
async fn claims_are_replaced_and_devices_stay() {
    let world = World::new();
    world.browser().sign_in(&world, APP).await;
    let mut user = world.databroker.users().await.remove(0);
    user.device_credential_ids = vec!["device".into()];
    world.databroker.put(&user).await;
    world
        .idp
        .set(|state| state.claims = json!({"sub": "ann", "email": "ann@new.test"}));
    world.browser().sign_in(&world, APP).await;
    let user = world.databroker.users().await.remove(0);
    assert_eq!(
        (user.name.as_str(), user.email.as_str()),
        ("", "ann@new.test")
    );
    assert!(!user.claims.contains_key("groups"));
    assert_eq!(user.device_credential_ids, ["device"]);
}

#[tokio::test]
async fn programs_get_a_handle_of_their_own_kind() {
    let world = World::new();
    let callback = "https://app.corp.test/.pomerium/callback/?pomerium_redirect_uri=http%3A%2F%2Fevil&pomerium_programmatic=false&mine=1&pomerium_binding=b&pomerium_binding_nonce=n&pomerium_hop_bindings=h";
    let link = world.sign(
        "/.pomerium/sign_in",
        &[
            (param::REDIRECT_URI, "http://127.0.0.1:4000/done?a=1"),
            (param::CALLBACK_URI, callback),
            (param::PROGRAMMATIC, "true"),
            (param::IDP_ID, IDP_ID),
        ],
    );
    let mut browser = world.browser();
    let to_provider = browser.get(&link).await.location();
    let back = world.idp.sign_in(&to_provider);
    let again = browser.get(&back).await.location();
    let callback = browser.get(&again).await.location();
    let received = world.receive(&callback);
    assert_eq!(received.redirect, "http://127.0.0.1:4000/done?a=1");
    assert_eq!(received.handle.purpose, Some(Purpose::Program));
    assert_eq!(received.handle.audience, ["app.corp.test"]);
    for (name, value) in [
        (param::PROGRAMMATIC, "true"),
        ("mine", "1"),
        (param::BINDING, "b"),
        (param::BINDING_NONCE, "n"),
        (param::HOP_BINDINGS, "h"),
    ] {
        assert_eq!(received.parameters[name], value);
    }
}

#[tokio::test]
async fn every_host_of_a_chain_is_in_the_audience() {
    let world = World::new();
    let link = world.sign(
        "/.pomerium/sign_in",
        &[
            (param::REDIRECT_URI, "https://app.corp.test:8443/"),
            (param::ADDITIONAL_HOSTS, "b.corp.test,app2.corp.test:8443"),
            (param::IDP_ID, IDP_ID),
        ],
    );
    let mut browser = world.browser();
    browser.sign_in(&world, APP).await;
    let received = world.receive(&browser.get(&link).await.location());
    assert_eq!(
        received.handle.audience,
        ["app.corp.test:8443", "b.corp.test", "app2.corp.test:8443"]
    );
    assert_eq!(
        received.parameters[param::ADDITIONAL_HOSTS],
        "b.corp.test,app2.corp.test:8443"
    );
}

#[tokio::test]
async fn public_documents() {
    let world = World::new();
    let mut browser = world.browser();
    let get = |path: &str| Url::parse(&format!("https://{HOST}{path}")).unwrap();
    let keys = browser.get(&get("/.well-known/pomerium/jwks.json")).await;
    assert_eq!(keys.body, world.config.signing_keys.jwks().body);
    assert_eq!(keys.headers[header::CACHE_CONTROL], "max-age=60");
    let etag = keys.headers[header::ETAG].clone();
    browser.headers.insert(header::IF_NONE_MATCH, etag);
    assert_eq!(
        browser
            .get(&get("/.well-known/pomerium/jwks.json"))
            .await
            .status,
        304
    );
    let about = browser.get(&get("/.well-known/pomerium")).await;
    assert_eq!(
        about.body,
        r#"{"issuer":"https://auth.corp.test/","authentication_callback_endpoint":"https://auth.corp.test/oauth2/callback","jwks_uri":"https://auth.corp.test/.well-known/pomerium/jwks.json","frontchannel_logout_uri":"https://auth.corp.test/.pomerium/sign_out"}"#
    );
    assert!(
        browser
            .get(&get("/robots.txt"))
            .await
            .body
            .contains("Disallow: /")
    );
    let lost = browser.send(Method::GET, &get("/nothing"), "").await;
    assert_eq!(lost.status, 404);
    // C73: the global headers are on every answer, once.
    assert_eq!(
        lost.headers.get_all(header::X_FRAME_OPTIONS).iter().count(),
        1
    );
}
