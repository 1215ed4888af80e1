//! One sign-in that is for several hosts: `depends_on`.

use http::StatusCode;
use postern_tests::cluster::Layout;
use postern_tests::person::Answer;
use postern_tests::world::{Setting, World};

/// `hub` brings `wiki` and `chat` with it.
const ROUTES: &str = "
- {from: 'https://hub.corp.test:{PORT}', response: {status: 200, body: hub}, allow_any_authenticated_user: true, depends_on: ['wiki.corp.test:{PORT}', 'chat.corp.test:{PORT}']}
- {from: 'https://wiki.corp.test:{PORT}', response: {status: 200, body: wiki}, allow_any_authenticated_user: true}
- {from: 'https://chat.corp.test:{PORT}', response: {status: 200, body: chat}, allow_any_authenticated_user: true}
";

async fn world(layout: Layout) -> World {
    World::start_with(Setting::new(layout).routes(ROUTES)).await
}

fn hosts(answers: &[Answer]) -> Vec<&str> {
    answers
        .iter()
        .map(|answer| answer.url.host_str().unwrap().split('.').next().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_sign_in_opens_every_host() {
    for layout in [Layout::AllInOne, Layout::Split] {
        let world = world(layout).await;
        let url = |name| world.cluster.url(name, "/x?y=1");
        let ann = world.cluster.browser();
        let mut there = ann.follow(&url("hub")).await;
        assert_eq!(
            hosts(&there)[..4],
            ["hub", "wiki", "chat", "auth"],
            "bound first"
        );
        let form = there.pop().unwrap();
        let next = world.choose(&ann, &form, "ann").await;
        let back = ann.follow(next.as_str()).await;
        let hub = back.last().unwrap();
        assert_eq!((hub.url.as_str(), &*hub.text()), (&*url("hub"), "hub"));
        for name in ["wiki", "chat"] {
            let answer = ann.get(&url(name)).await;
            assert_eq!(
                (answer.status, &*answer.text()),
                (StatusCode::OK, name),
                "at once"
            );
        }

        // s11: somebody else gets the links of ann's way back and begins there too: nobody is
        // signed in as ann, and nobody is signed in at all.
        let eve = world.cluster.browser();
        eve.follow(&url("wiki")).await;
        let hop = back
            .iter()
            .find(|answer| hosts(std::slice::from_ref(answer)) == ["wiki"])
            .unwrap();
        let end = eve.follow(hop.url.as_str()).await.pop().unwrap();
        assert!(end.url.as_str().starts_with(&world.issuer), "{}", end.url);
        assert!(
            eve.cookies("wiki.corp.test")
                .contains_key("_pomerium_binding")
        );
        assert!(!eve.cookies("wiki.corp.test").contains_key("_pomerium"));

        // s11: ann is lured to a beginning of eve's; it ends where ann did not begin.
        let begin = eve.get(&url("hub")).await.location().unwrap();
        let before = ann.cookies("wiki.corp.test");
        let end = ann.follow(begin.as_str()).await.pop().unwrap();
        assert_eq!(
            (end.status, end.url.host_str()),
            (StatusCode::BAD_REQUEST, Some("hub.corp.test"))
        );
        assert_eq!(ann.cookies("wiki.corp.test"), before);
    }
}
