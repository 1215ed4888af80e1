//! Lines of the security checklist that concern signing in and out, by their number.

use http::{Method, header};
use jiff::{SignedDuration, Timestamp};
use postern_common::crypto::handle::{Handle, Place};
use postern_common::crypto::signed_url::param;
use postern_common::rpc::token;
use serde_json::{Value, json};
use url::Url;

use super::support::{HOST, IDP_ID, World};

const APP: &str = "https://app.corp.test/";

fn url(path: &str) -> Url {
    Url::parse(&format!("https://{HOST}{path}")).unwrap()
}

#[tokio::test]
async fn s08_each_handle_in_its_place_only() {
    let world = World::new();
    let mut browser = world.browser();
    let received = world.receive(&browser.sign_in(&world, APP).await);
    // A route's cookie is none of authenticate's.
    let mut thief = world.browser();
    thief
        .cookies
        .insert("_pomerium_authenticate".into(), received.token.clone());
    let answer = thief.get(&world.sign_in_url(APP)).await;
    assert_eq!(answer.location().host_str(), Some("idp.corp.test"));
    // And the other way round.
    let own = Handle::decode(
        &world.config.secrets.shared,
        &browser.cookies["_pomerium_authenticate"],
    )
    .unwrap();
    assert!(
        own.acceptable(Place::Cookie, "app.corp.test", None)
            .is_err()
    );
    assert!(
        own.acceptable(Place::Header, "app.corp.test", None)
            .is_err()
    );
}

#[tokio::test]
async fn s10_a_new_session_id_at_every_sign_in() {
    let world = World::new();
    let mut browser = world.browser();
    browser.sign_in(&world, APP).await;
    browser.cookies.remove("_pomerium_authenticate");
    browser.sign_in(&world, APP).await;
    let sessions = world.databroker.sessions().await;
    assert_eq!(sessions.len(), 2);
    assert_ne!(sessions[0].id, sessions[1].id);
}

#[tokio::test]
async fn s11_state_is_good_in_its_browser_only() {
    let world = World::new();
    let mut browser = world.browser();
    let back = world
        .idp
        .sign_in(&browser.get(&world.sign_in_url(APP)).await.location());
    let mut other = world.browser();
    let answer = other.get(&back).await;
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("Cookies must be allowed"));
    // Also when the other browser has begun a sign-in of its own.
    other.get(&world.sign_in_url(APP)).await;
    assert_eq!(other.get(&back).await.status, 400);
    assert!(world.databroker.sessions().await.is_empty());
    assert_eq!(browser.get(&back).await.status, 302);
}

#[tokio::test]
async fn s11_state_works_once() {
    let world = World::new();
    let mut browser = world.browser();
    let back = world
        .idp
        .sign_in(&browser.get(&world.sign_in_url(APP)).await.location());
    browser.get(&back).await.location();
    let answer = browser.get(&back).await;
    assert_eq!(answer.location().path(), "/.pomerium/sign_in");
    assert!(answer.cookies().is_empty());
    assert_eq!(world.databroker.sessions().await.len(), 1);
    assert_eq!(world.idp.set(|state| state.redeemed), 1);
}

#[tokio::test]
async fn s11_an_invented_answer_is_not_believed() {
    let world = World::new();
    let mut browser = world.browser();
    browser.get(&world.sign_in_url(APP)).await;
    for query in [
        "",
        "code=x",
        "code=x&state=",
        "code=x&state=AAAA",
        "error=access_denied&error_description=%3Cscript%3E",
        "state=a&state=b&code=x",
    ] {
        let answer = browser
            .get(&url(&format!("/oauth2/callback?{query}")))
            .await;
        assert_eq!(answer.status, 400, "{query}");
        assert!(!answer.body.contains("<script"));
    }
}

#[tokio::test]
async fn s48_an_answer_of_another_provider_is_refused() {
    let world = World::new();
    let mut browser = world.browser();
    let back = world
        .idp
        .sign_in(&browser.get(&world.sign_in_url(APP)).await.location());
    let changed = back
        .as_str()
        .replace("iss=https%3A%2F%2Fidp", "iss=https%3A%2F%2Fevil");
    assert_ne!(changed, back.as_str());
    let answer = browser.get(&Url::parse(&changed).unwrap()).await;
    assert_eq!(answer.status, 502);
    assert!(world.databroker.sessions().await.is_empty());
}

#[tokio::test]
async fn a_refusing_provider_is_told_apart() {
    let world = World::new();
    for (error, status) in [
        ("access_denied", 401),
        ("temporarily_unavailable", 503),
        ("invalid_scope", 400),
    ] {
        let mut browser = world.browser();
        let to_provider = browser.get(&world.sign_in_url(APP)).await.location();
        let state = to_provider
            .query_pairs()
            .find(|(name, _)| name == "state")
            .unwrap()
            .1;
        let mut back = url("/oauth2/callback");
        back.query_pairs_mut()
            .append_pair("state", &state)
            .append_pair("error", error);
        let answer = browser.get(&back).await;
        assert_eq!(answer.status, status, "{error}");
        assert!(answer.body.contains("Start again"));
    }
}

#[tokio::test]
async fn form_post_callbacks_work() {
    let world = World::new();
    let mut browser = world.browser();
    let back = world
        .idp
        .sign_in(&browser.get(&world.sign_in_url(APP)).await.location());
    let fields: Vec<(String, String)> = back.query_pairs().into_owned().collect();
    let fields: Vec<(&str, &str)> = fields
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_str()))
        .collect();
    browser
        .headers
        .insert("sec-fetch-site", "cross-site".parse().unwrap());
    browser
        .headers
        .insert(header::ORIGIN, "https://idp.corp.test".parse().unwrap());
    let answer = browser.post(&url("/oauth2/callback"), &fields).await;
    assert_eq!(answer.location().path(), "/.pomerium/sign_in");
}

#[tokio::test]
async fn s13_redirects_stay_on_known_hosts() {
    let world = World::new();
    let mut browser = world.browser();
    for (name, value) in [
        (param::REDIRECT_URI, "https://evil.test/"),
        (param::REDIRECT_URI, "http://127.0.0.1/"),
        (param::REDIRECT_URI, "javascript:alert(1)"),
        (param::REDIRECT_URI, "https://app.corp.test@evil.test/"),
        (param::CALLBACK_URI, "https://evil.test/.pomerium/callback/"),
        (param::CALLBACK_URI, "https://app.corp.test/other"),
        (param::ADDITIONAL_HOSTS, "b.corp.test,evil.test"),
        (param::ADDITIONAL_HOSTS, "b.corp.test/path"),
        (
            param::ADDITIONAL_HOSTS,
            "b.corp.test,b.corp.test,b.corp.test,b.corp.test,b.corp.test,b.corp.test",
        ),
    ] {
        let mut parameters = vec![(name, value)];
        if name != param::REDIRECT_URI {
            parameters.push((param::REDIRECT_URI, APP));
        }
        let answer = browser
            .get(&world.sign("/.pomerium/sign_in", &parameters))
            .await;
        assert_eq!(answer.status, 400, "{value}");
        assert!(!answer.headers.contains_key(header::LOCATION));
    }
    // What programs may have, browsers may not, and without a callback nobody may.
    let parameters = [
        (param::REDIRECT_URI, "http://127.0.0.1/"),
        (param::PROGRAMMATIC, "true"),
    ];
    let answer = browser
        .get(&world.sign("/.pomerium/sign_in", &parameters))
        .await;
    assert_eq!(answer.status, 400);
}

#[tokio::test]
async fn s13_sign_out_leads_to_known_hosts_only() {
    let world = World::new();
    world.idp.set(|state| state.end_session = false);
    for (wanted, location) in [
        ("https://app.corp.test/bye", "https://app.corp.test/bye"),
        ("https://evil.test/", "/.pomerium/signed_out"),
        ("//evil.test", "/.pomerium/signed_out"),
    ] {
        let parameters = [(param::REDIRECT_URI, wanted), (param::SESSION_ID, "gone")];
        let link = world.sign("/.pomerium/sign_out", &parameters);
        let answer = world.browser().get(&link).await;
        assert_eq!(answer.headers[header::LOCATION], location, "{wanted}");
    }
    // The confirmation page is no oracle: what it offers is a form of its own.
    let mut browser = world.browser();
    browser.sign_in(&world, APP).await;
    let page = browser
        .get(&url(
            "/.pomerium/sign_out?pomerium_redirect_uri=https%3A%2F%2Fevil.test%2F",
        ))
        .await;
    assert!(!page.body.contains("evil.test") && !page.body.contains("pomerium_signature"));
    // A planted cookie doesn't lead anywhere either.
    browser.cookies.insert(
        "_pomerium_signed_out_redirect_uri".into(),
        "https://evil.test/".into(),
    );
    let answer = browser.get(&url("/.pomerium/signed_out")).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn s14_forged_and_expired_links_begin_nothing() {
    let world = World::new();
    let good = world.sign_in_url(APP);
    let old = world.sign_at(
        "/.pomerium/sign_in",
        &[(param::REDIRECT_URI, APP), (param::IDP_ID, IDP_ID)],
        Timestamp::now() - SignedDuration::from_mins(7),
    );
    let unsigned = url(&format!("/.pomerium/sign_in?pomerium_redirect_uri={APP}"));
    let added = Url::parse(&format!("{good}&pomerium_programmatic=true")).unwrap();
    let moved = {
        let mut moved = good.clone();
        moved.set_host(Some("other.corp.test")).unwrap();
        moved
    };
    for link in [old, unsigned, added, moved] {
        let mut browser = world.browser();
        let answer = browser.get(&link).await;
        assert_eq!(answer.status, 400, "{link}");
        assert!(browser.cookies.is_empty());
    }
    // A body doesn't override what was signed: there is no POST here at all.
    let answer = world
        .browser()
        .post(&good, &[(param::REDIRECT_URI, "https://evil.test")])
        .await;
    assert_eq!(answer.status, 405);
    assert!(answer.body.contains("<html"), "{}", answer.body);
}

#[tokio::test]
async fn s44_forms_need_the_token_of_this_browser() {
    let world = World::new();
    let mut browser = world.browser();
    browser.sign_in(&world, APP).await;
    let mut other = world.browser();
    other.sign_in(&world, APP).await;
    let foreign = other.get(&url("/.pomerium/sign_out")).await.form_token();
    browser.get(&url("/.pomerium/sign_out")).await;
    for fields in [&[][..], &[("token", "")], &[("token", foreign.as_str())]] {
        let answer = browser.post(&url("/.pomerium/sign_out"), fields).await;
        assert_eq!(answer.status, 400);
    }
    assert_eq!(world.databroker.sessions().await.len(), 2);
    // Not from a page of another site either, whatever it holds.
    let token = browser.get(&url("/.pomerium/")).await.form_token();
    for (name, value) in [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("origin", "https://evil.test"),
        ("origin", "null"),
    ] {
        let mut attacked = browser.clone();
        attacked.headers.insert(name, value.parse().unwrap());
        let answer = attacked
            .post(&url("/.pomerium/sign_out"), &[("token", &token)])
            .await;
        assert_eq!(answer.status, 400, "{value}");
    }
    assert_eq!(world.databroker.sessions().await.len(), 2);
    browser
        .headers
        .insert("origin", format!("https://{HOST}").parse().unwrap());
    browser
        .post(&url("/.pomerium/sign_out"), &[("token", &token)])
        .await
        .location();
    assert_eq!(world.databroker.sessions().await.len(), 1);
}

#[tokio::test]
async fn s44_a_link_ends_no_session_of_somebody_else() {
    let world = World::new();
    let mut eve = world.browser();
    world.idp.set(|state| state.claims["sub"] = json!("eve"));
    eve.sign_in(&world, APP).await;
    let eves = world.databroker.sessions().await.remove(0);
    world.idp.set(|state| state.claims["sub"] = json!("ann"));
    let mut ann = world.browser();
    ann.sign_in(&world, APP).await;
    // Links of Eve's, opened in Ann's browser: without a session, with a live one, with one that
    // is gone. Ann is asked.
    let named = [(param::SESSION_ID, eves.id.as_str())];
    for parameters in [&[][..], &[(param::SESSION_ID, "")], &named, &named] {
        let link = world.sign("/.pomerium/sign_out", parameters);
        let answer = ann.get(&link).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert!(answer.body.contains("<form method=\"post\""));
        assert_eq!(
            ann.post(&link, &[]).await.status,
            if parameters == named { 200 } else { 400 }
        );
    }
    let left = world.databroker.sessions().await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].user_id, "ann");
    assert!(ann.cookies.contains_key("_pomerium_authenticate"));
}

#[tokio::test]
async fn s49_cookies_are_strict_and_tossing_is_noticed() {
    let world = World::new();
    let mut browser = world.browser();
    let first = browser.get(&world.sign_in_url(APP)).await;
    let back = world.idp.sign_in(&first.location());
    let second = browser.get(&back).await;
    let third = browser.get(&second.location()).await;
    let all = [first.cookies(), second.cookies(), third.cookies()].concat();
    assert!(all.len() >= 4, "{all:?}");
    for cookie in &all {
        assert!(
            cookie.contains("; HttpOnly; Secure; SameSite=Lax"),
            "{cookie}"
        );
        assert!(
            !cookie.contains("Domain") && cookie.contains("Path=/;"),
            "{cookie}"
        );
    }
    // Another valid session cookie, planted by a neighbour: neither counts, both go.
    let mut other = world.browser();
    other.sign_in(&world, APP).await;
    let planted = &other.cookies["_pomerium_authenticate"];
    let own = browser.cookies["_pomerium_authenticate"].clone();
    browser.cookies.insert(
        "_pomerium_authenticate".into(),
        format!("{own}; _pomerium_authenticate={planted}"),
    );
    let answer = browser.get(&world.sign_in_url(APP)).await;
    assert_eq!(answer.location().host_str(), Some("idp.corp.test"));
    assert!(
        answer
            .cookies()
            .iter()
            .any(|c| c.contains("Domain=corp.test") && c.contains("Max-Age=0"))
    );
}

#[tokio::test]
async fn s50_credentials_across_origins_for_signed_urls_only() {
    let world = World::new();
    let mut script = world.browser();
    script.headers.clear();
    script
        .headers
        .insert("sec-fetch-mode", "cors".parse().unwrap());
    script
        .headers
        .insert(header::ORIGIN, "https://app.corp.test".parse().unwrap());
    let answer = script.get(&world.sign_in_url(APP)).await;
    assert_eq!(answer.status, 401);
    script
        .headers
        .insert("access-control-request-headers", "x-a".parse().unwrap());
    let preflight = |signed: bool| {
        let mut link = world.sign_in_url(APP);
        if !signed {
            link.set_query(None);
        }
        let mut script = script.clone();
        async move { script.send(Method::OPTIONS, &link, "").await }
    };
    let allowed = preflight(true).await;
    assert_eq!(
        allowed.headers[header::ACCESS_CONTROL_ALLOW_ORIGIN],
        "https://app.corp.test"
    );
    assert_eq!(allowed.headers[header::ACCESS_CONTROL_ALLOW_HEADERS], "x-a");
    let refused = preflight(false).await;
    assert!(
        !refused
            .headers
            .contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN)
    );
    script
        .headers
        .insert(header::ORIGIN, "https://evil.test".parse().unwrap());
    let foreign = script
        .send(Method::OPTIONS, &world.sign_in_url(APP), "")
        .await;
    assert!(
        !foreign
            .headers
            .contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN)
    );
}

#[tokio::test]
async fn scripts_and_prefetching_begin_no_sign_in() {
    let world = World::new();
    for (name, value) in [
        ("x-requested-with", "XMLHttpRequest"),
        ("sec-purpose", "prefetch"),
        ("accept", "application/json"),
    ] {
        let mut browser = world.browser();
        if name == "accept" {
            browser.headers.remove("sec-fetch-mode");
        }
        browser.headers.insert(name, value.parse().unwrap());
        let answer = browser.get(&world.sign_in_url(APP)).await;
        assert_eq!(answer.status, 401, "{value}");
        assert!(browser.cookies.is_empty());
    }
}

#[tokio::test]
async fn s46_refusals_tell_a_request_id_and_nothing_internal() {
    let world = World::new();
    world.databroker.set_down(true);
    let answer = world.browser().get(&world.sign_in_url(APP)).await;
    let id = answer.headers["x-request-id"].to_str().unwrap();
    assert!(answer.body.contains(id));
    assert!(!answer.body.contains("down, as the test wants it"));
    let mut behind_proxy = world.browser();
    behind_proxy
        .headers
        .insert("accept", "application/json".parse().unwrap());
    let given = "0195a000-a000-7000-8000-00000000a01a";
    behind_proxy
        .headers
        .insert("x-request-id", given.parse().unwrap());
    let answer = behind_proxy.get(&url("/nothing")).await;
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(
        (body["Status"].as_u64(), body["RequestID"].as_str()),
        (Some(404), Some(given))
    );
}

#[tokio::test]
async fn only_our_services_may_have_tokens_verified() {
    let world = World::new();
    let key = &world.config.secrets.shared[0];
    let mut browser = world.browser();
    let callback = browser.sign_in(&world, APP).await;
    let id_token = world
        .databroker
        .sessions()
        .await
        .remove(0)
        .id_token
        .unwrap()
        .raw;
    let question = json!({"identityToken": id_token, "identityProviderId": IDP_ID}).to_string();
    let path = "/.pomerium/verify-identity-token";
    let mut caller = world.browser();
    caller.headers.clear();
    for refused in ["", &world.receive(&callback).token, "a.b.c"] {
        caller.headers.insert("jwt", refused.parse().unwrap());
        assert_eq!(
            caller
                .send(Method::POST, &url(path), &question)
                .await
                .status,
            401
        );
    }
    let jwt = token::sign(key, Timestamp::now());
    caller.headers.insert("jwt", jwt.parse().unwrap());
    let answer = caller.send(Method::POST, &url(path), &question).await;
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(
        (&body["valid"], &body["claims"]["sub"]),
        (&json!(true), &json!("ann"))
    );
    let wrong = question.replace("ey", "eX");
    let answer = caller.send(Method::POST, &url(path), &wrong).await;
    assert_eq!(answer.body, r#"{"valid":false}"#);
    assert_eq!(caller.send(Method::POST, &url(path), "{").await.status, 400);
}

#[tokio::test]
async fn the_account_page_needs_a_session_and_tells_no_token() {
    let world = World::new();
    let mut browser = world.browser();
    let to_provider = browser.get(&url("/.pomerium/")).await.location();
    let back = world.idp.sign_in(&to_provider);
    let again = browser.get(&back).await.location();
    assert_eq!(again, url("/.pomerium/"));
    let page = browser.get(&again).await;
    assert!(page.body.contains("ann@corp.test") && page.body.contains("eng, ops"));
    let session = world.databroker.sessions().await.remove(0);
    let tokens = session.oauth_token.unwrap();
    for secret in [
        tokens.access_token,
        tokens.refresh_token,
        session.id_token.unwrap().raw,
    ] {
        assert!(!page.body.contains(&secret));
    }
}
