//! Following the databroker.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use postern_common::authz::{Authorizer as _, Decision, DenyKind, Revisit};
use postern_common::crypto::handle::Handle;
use postern_common::rpc::stubs::databroker::{PutRequest, Record};
use postern_common::rpc::stubs::{session, user};
use prost::Message as _;
use tokio::sync::broadcast;

use crate::world::{SERVICE_ACCOUNT, SESSION, USER, World, config, list, session as session_of};

const ENG: &str = "- {from: https://app.corp.test, to: http://up, pass_identity_headers: true, \
    policy: [{allow: {and: [{claim/groups: eng}]}}]}\n";

async fn revisit(revisits: &mut broadcast::Receiver<Revisit>, expected: &Revisit) {
    let told = async { while revisits.recv().await.unwrap() != *expected {} };
    tokio::time::timeout(Duration::from_secs(20), told)
        .await
        .unwrap();
}

fn is_sign_in(kind: &DenyKind) -> bool {
    matches!(kind, DenyKind::SignIn { .. })
}

#[tokio::test]
async fn who_just_signed_in_passes_at_once() {
    let world = World::new(ENG).await;
    for n in 0..200 {
        let cookie = world.sign_in(&format!("ann{n}"), &["eng"]).await;
        let allow = world.allowed(&[("cookie", &cookie)]).await;
        assert_eq!(allow.session.unwrap().email, format!("ann{n}@corp.test"));
    }
}

/// No access times: with many people they would be most of what the databroker writes.
#[tokio::test]
async fn a_visit_writes_nothing() {
    let world = World::new(ENG).await;
    let ann = world.sign_in("ann", &["eng"]).await;
    world.until_session("session-ann").await;
    let latest = async || {
        let info = world.databroker().server_info(()).await.unwrap();
        info.into_inner().latest_record_version
    };
    let before = latest().await;
    for _ in 0..20 {
        world.allowed(&[("cookie", &ann)]).await;
    }
    assert_eq!(latest().await, before);
}

#[tokio::test]
async fn s09_c27_a_deleted_session_ends_within_a_second() {
    let world = World::new(ENG).await;
    let (ann, bob) = (
        world.sign_in("ann", &["eng"]).await,
        world.sign_in("bob", &["eng"]).await,
    );
    world.until_session("session-ann").await;
    world.allowed(&[("cookie", &ann)]).await;
    let mut revisits = world.authorize.revisits();
    world.delete(SESSION, "session-ann").await;
    // A second as this machine has it now: a hundred steps of ten milliseconds with a decision each.
    let second = async {
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            world.allowed(&[("cookie", &bob)]).await;
        }
    };
    let told = Revisit::Session("session-ann".into());
    tokio::select! {
        () = revisit(&mut revisits, &told) => {}
        () = second => panic!("nobody was told within a second"),
    }
    assert!(is_sign_in(&world.denied(&[("cookie", &ann)]).await.kind));
    world.allowed(&[("cookie", &bob)]).await;
}

#[tokio::test]
async fn c28_changed_claims_count_with_the_next_request() {
    let world = World::new(ENG).await;
    let ann = world.sign_in("ann", &["eng"]).await;
    world.until_session("session-ann").await;
    world.allowed(&[("cookie", &ann)]).await;
    let mut revisits = world.authorize.revisits();
    world
        .put(SESSION, "session-ann", &session_of("user-ann", &["ops"]))
        .await;
    revisit(&mut revisits, &Revisit::Session("session-ann".into())).await;
    assert_eq!(
        world.denied(&[("cookie", &ann)]).await.kind,
        DenyKind::Forbidden
    );
    // The user's record has it now, and says so.
    let user = user::User {
        email: "ann@corp.test".into(),
        claims: [("department".to_owned(), list(&["x"]))].into(),
        ..user::User::default()
    };
    world.put(USER, "user-ann", &user).await;
    revisit(&mut revisits, &Revisit::User("user-ann".into())).await;
}

#[tokio::test]
async fn c07_signed_in_people_go_on_while_the_databroker_is_away() {
    let world = World::new(ENG).await;
    let ann = world.sign_in("ann", &["eng"]).await;
    let eve = world.encode(&Handle {
        id: "nobody-knows".into(),
        idp_id: world.provider_id(),
        ..Handle::default()
    });
    let eve = format!("_pomerium={eve}");
    world.set_away(true);
    world.until_allowed(&[("cookie", &ann)]).await;
    // c09: whether this session exists, nobody knows just now.
    assert!(world.ask(&[("cookie", &eve)]).await.is_err());
    world.set_away(false);
    assert!(is_sign_in(&world.denied(&[("cookie", &eve)]).await.kind));
}

#[tokio::test]
async fn c08_another_data_set_is_copied_anew() {
    let world = World::new(ENG).await;
    let ann = world.sign_in("ann", &["eng"]).await;
    world.until_session("session-ann").await;
    world.allowed(&[("cookie", &ann)]).await;
    let mut revisits = world.authorize.revisits();
    world.databroker().clear(()).await.unwrap();
    // Spread over a moment, because every follower copies anew. Decided from the old copy meanwhile.
    world.allowed(&[("cookie", &ann)]).await;
    let copied = async { while revisits.recv().await.unwrap() != Revisit::Everything {} };
    tokio::time::timeout(Duration::from_secs(5), copied)
        .await
        .unwrap();
    assert!(is_sign_in(&world.denied(&[("cookie", &ann)]).await.kind));
    let again = world.sign_in("ann", &["eng"]).await;
    world.allowed(&[("cookie", &again)]).await;
    // The feed is followed again, too.
    world.delete(SESSION, "session-ann").await;
    let begun = Instant::now();
    while let Decision::Allow(_) = world.ask(&[("cookie", &again)]).await.unwrap() {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "it stays allowed"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Service accounts are often of nobody who ever signed in.
#[tokio::test]
async fn c07_a_service_account_without_a_user_works_while_the_databroker_is_away() {
    let world = World::new(
        "- {from: https://app.corp.test, to: http://up, policy: [{allow: {and: [{user: robot}]}}]}\n",
    )
    .await;
    let account = user::ServiceAccount {
        user_id: "robot".into(),
        ..user::ServiceAccount::default()
    };
    world.put(SERVICE_ACCOUNT, "account-1", &account).await;
    let handle = Handle {
        id: "account-1".into(),
        ..Handle::default()
    };
    let token = format!("Pomerium {}", world.encode(&handle));
    let headers = [("authorization", token.as_str())];
    world.set_away(true);
    world.until_allowed(&headers).await;
    let session = world.allowed(&headers).await.session.unwrap();
    assert_eq!((&*session.user_id, &*session.email), ("robot", ""));
    world.set_away(false);

    // One whose user is there, but can't be read, is not judged as if there were none.
    let damaged = Damaged {
        id: vec![0xff, 0xfe],
    };
    world.put(USER, "robot", &damaged).await;
    let begun = Instant::now();
    while world.ask(&headers).await.is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(5), "never noticed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Bytes where a `user.User` has a text.
#[derive(Clone, PartialEq, prost::Message)]
struct Damaged {
    #[prost(bytes = "vec", tag = "4")]
    id: Vec<u8>,
}

#[tokio::test]
async fn a_service_account_is_its_record() {
    let world = World::new(
        "- {from: https://app.corp.test, to: http://up, policy: [{allow: {and: [{user: robot}]}}]}\n",
    )
    .await;
    let account = user::ServiceAccount {
        user_id: "robot".into(),
        ..user::ServiceAccount::default()
    };
    world.put(SERVICE_ACCOUNT, "account-1", &account).await;
    let token = world.encode(&Handle {
        id: "account-1".into(),
        subject: "robot".into(),
        ..Handle::default()
    });
    let headers = [("authorization", format!("Pomerium {token}"))];
    let headers = headers
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let allow = world.allowed(&headers).await;
    assert_eq!(allow.session.unwrap().session_id, "account-1");
    let mut revisits = world.authorize.revisits();
    world.delete(SERVICE_ACCOUNT, "account-1").await;
    revisit(&mut revisits, &Revisit::Session("account-1".into())).await;
    // A program is told; it can't follow a redirect.
    let deny = world.denied(&headers).await;
    assert!(matches!(
        deny.kind,
        DenyKind::Unauthenticated {
            sign_in_url: Some(_)
        }
    ));
}

#[tokio::test]
async fn impersonation_takes_claims_and_user_of_the_other_session() {
    let world = World::new(ENG).await;
    world.sign_in("ann", &["eng"]).await;
    let admin = world.sign_in("admin", &["ops"]).await;
    world.until_session("session-admin").await;
    assert_eq!(
        world.denied(&[("cookie", &admin)]).await.kind,
        DenyKind::Forbidden
    );
    let mut revisits = world.authorize.revisits();
    let impersonator = session::Session {
        impersonate_session_id: Some("session-ann".into()),
        ..session_of("user-admin", &["ops"])
    };
    world.put(SESSION, "session-admin", &impersonator).await;
    revisit(&mut revisits, &Revisit::Everything).await;
    let session = world.allowed(&[("cookie", &admin)]).await.session.unwrap();
    assert_eq!(
        (&*session.session_id, &*session.user_id),
        ("session-admin", "user-ann")
    );
    // When the other session ends, so does this.
    world.delete(SESSION, "session-ann").await;
    revisit(&mut revisits, &Revisit::Everything).await;
    assert!(is_sign_in(&world.denied(&[("cookie", &admin)]).await.kind));
}

#[tokio::test]
async fn tokens_are_kept_once_a_route_names_them() {
    let world = World::new(ENG).await;
    world.sign_in("ann", &["eng"]).await;
    let with_token = session::Session {
        oauth_token: Some(session::OAuthToken {
            access_token: "ACCESS".into(),
            refresh_token: "r".into(),
            ..session::OAuthToken::default()
        }),
        ..session_of("user-ann", &["eng"])
    };
    let cookie = world.sign_in("ann", &["eng"]).await;
    world.put(SESSION, "session-ann", &with_token).await;
    let route = "- {from: https://app.corp.test, to: http://up, allow_any_authenticated_user: true, \
        set_request_headers: {X-Token: '${pomerium.access_token}'}}\n";
    world.config.send_replace(config(route));
    let begun = Instant::now();
    loop {
        let decision = world.ask(&[("cookie", &cookie)]).await;
        if let Ok(Decision::Allow(allow)) = &decision
            && allow
                .set_headers
                .iter()
                .any(|(name, value)| name == "x-token" && value == "ACCESS")
        {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{decision:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_age_of_the_data_is_told() {
    let world = World::new(ENG).await;
    world.sign_in("ann", &["eng"]).await;
    crate::world::wait("an age", || {
        let page = world.metrics.page().unwrap();
        page.lines().any(|line| {
            line.strip_prefix("postern_authorize_data_age_seconds ")
                .is_some_and(|age| age.parse::<f64>().is_ok_and(|age| age > 0.0 && age < 5.0))
        })
    })
    .await;
}

const POSTURE: &str = "example.com/Posture";

const HEALTHY: &str = "- {from: https://app.corp.test, to: http://up, \
    policy: [{allow: {and: [{record: {type: example.com/Posture, field: state, is: healthy}}]}}]}\n";

async fn posture(world: &World, state: &str) {
    let text = prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(state.to_owned())),
    };
    let object = prost_types::Struct {
        fields: [("state".to_owned(), text)].into(),
    };
    let record = Record {
        r#type: POSTURE.to_owned(),
        id: "user-ann".to_owned(),
        data: Some(prost_types::Any {
            type_url: "type.googleapis.com/google.protobuf.Struct".to_owned(),
            value: object.encode_to_vec(),
        }),
        ..Record::default()
    };
    let request = PutRequest {
        records: vec![record],
    };
    world.databroker().put(request).await.unwrap();
}

#[tokio::test]
async fn records_that_a_policy_reads_count_as_soon_as_they_change() {
    let world = World::new(HEALTHY).await;
    let ann = world.sign_in("ann", &[]).await;
    let mut revisits = world.authorize.revisits();
    posture(&world, "healthy").await;
    revisit(&mut revisits, &Revisit::Everything).await;
    world.allowed(&[("cookie", &ann)]).await;
    posture(&world, "ill").await;
    revisit(&mut revisits, &Revisit::Everything).await;
    assert_eq!(
        world.denied(&[("cookie", &ann)]).await.kind,
        DenyKind::Forbidden
    );
    world.delete(POSTURE, "user-ann").await;
    revisit(&mut revisits, &Revisit::Everything).await;
    // Types that no route names concern nobody.
    world.config.send_replace(config(ENG));
    revisit(&mut revisits, &Revisit::Everything).await;
    world.config.send_replace(config(&format!("{ENG}\n")));
    revisit(&mut revisits, &Revisit::Everything).await;
    posture(&world, "healthy").await;
    world.delete(SESSION, "session-ann").await;
    revisit_only(&mut revisits, &Revisit::Session("session-ann".into())).await;
}

/// The next one, and no other before it.
async fn revisit_only(revisits: &mut broadcast::Receiver<Revisit>, expected: &Revisit) {
    let next = tokio::time::timeout(Duration::from_secs(20), revisits.recv()).await;
    assert_eq!(next.unwrap().unwrap(), *expected);
}

const TWO_ROUTES: &str = "\
- {from: https://app.corp.test, prefix: /x, to: http://up, max_data_age: 2s, \
    policy: [{allow: {and: [{claim/groups: eng}]}}]}
- {from: https://app.corp.test, to: http://up, policy: [{allow: {and: [{claim/groups: eng}]}}]}
";

/// The databroker is out of sight: a route with a `max_data_age` closes, the others go on, and the process stays
/// ready.
#[tokio::test]
async fn a_route_takes_no_older_data_than_it_says() {
    let world = World::new(TWO_ROUTES).await;
    let ann = world.sign_in("ann", &["eng"]).await;
    world.until_session("session-ann").await;
    let ask = async |route| {
        let request = world.request_to(route, &[("cookie", &ann)]);
        world.authorize.check(Arc::new(request)).await
    };
    let allowed = |decision: Result<Decision, _>| match decision {
        Ok(Decision::Allow(allow)) => allow,
        other => panic!("{other:?}"),
    };
    // What stays open is asked about again before the data is too old.
    let soon = Timestamp::now() + SignedDuration::from_secs(3);
    assert!(
        allowed(ask(0).await)
            .valid_until
            .is_some_and(|it| it < soon)
    );
    assert!(allowed(ask(1).await).valid_until.is_none_or(|it| it > soon));

    world.stop_databrokers();
    let begun = Instant::now();
    let error = loop {
        match ask(0).await {
            Ok(Decision::Allow(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
            Ok(Decision::Deny(deny)) => panic!("{deny:?}"),
            Err(error) => break error,
        }
        allowed(ask(1).await);
        assert!(begun.elapsed() < Duration::from_secs(5));
    };
    assert!(error.to_string().contains("max_data_age"), "{error}");
    // Not a moment too late.
    let age: f64 = world.told("age_seconds").unwrap().parse().unwrap();
    assert!(age < 3.5, "{age}");
    allowed(ask(1).await);
    assert!(world.lifecycle.is_ready());
    let remark = || {
        world
            .remark()
            .is_some_and(|it| it.contains("has not told for"))
    };
    crate::world::wait("a remark in /status", remark).await;
    assert!(world.lifecycle.is_ready());

    world.restart_databrokers();
    let begun = Instant::now();
    while ask(0).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    crate::world::wait("no remark", || world.remark().is_none()).await;
}

/// Two databrokers behind one name, each with its own memory: told aloud, and the copy does not change between them.
#[tokio::test(start_paused = true)]
async fn two_memories_behind_one_name_are_told_and_not_mixed() {
    let world = World::new(ENG).await;
    world.add_databroker();
    let found = || {
        world
            .remark()
            .is_some_and(|it| it.contains("keep different data"))
    };
    crate::world::wait("it is told", found).await;
    let metric = "postern_authorize_databrokers_disagree 1";
    assert!(world.metrics.page().unwrap().contains(metric));

    // Whether there is no such session, none of them can say for the other.
    let nobody = world.encode(&Handle {
        id: "nobody-knows".into(),
        idp_id: world.provider_id(),
        ..Handle::default()
    });
    let nobody = format!("_pomerium={nobody}");
    for _ in 0..4 {
        let error = world.ask(&[("cookie", &nobody)]).await.unwrap_err();
        assert!(error.to_string().contains("different data"), "{error}");
    }

    let followed = world.told("server_version").unwrap();
    let opened = || count(&world, "pomerium_databroker_syncer_sync_total");
    let copied = || count(&world, "pomerium_databroker_syncer_sync_latest_total");
    let copies = copied();
    for _ in 0..6 {
        let before = opened();
        world.restart_databrokers();
        // Whichever it reaches first.
        crate::world::wait("it follows again", || opened() > before).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(world.told("server_version").unwrap(), followed);
        assert_eq!(copied(), copies);
    }
    assert!(found());
}

/// A stream is left for the next one only when that is open.
#[tokio::test(start_paused = true)]
async fn a_stream_of_changes_is_followed_by_another_within_the_hour() {
    let world = World::new(ENG).await;
    let opened = || count(&world, "pomerium_databroker_syncer_sync_total");
    let begun = tokio::time::Instant::now();
    while opened() < 2 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(begun.elapsed() < Duration::from_secs(61 * 60));
    }
    assert!(begun.elapsed() > Duration::from_secs(29 * 60));
    assert_eq!(
        count(&world, "pomerium_databroker_syncer_sync_failures_total"),
        0
    );
    assert_eq!(
        count(&world, "pomerium_databroker_syncer_sync_latest_total"),
        1
    );
    let ann = world.sign_in("ann", &["eng"]).await;
    world.until_session("session-ann").await;
    world.allowed(&[("cookie", &ann)]).await;
}

fn count(world: &World, metric: &str) -> u64 {
    let page = world.metrics.page().unwrap();
    let line = page.lines().find_map(|line| line.strip_prefix(metric));
    line.unwrap().trim().parse().unwrap()
}
