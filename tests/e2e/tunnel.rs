//! A database behind a `tcp+https` route, as `pomerium-cli` reaches it.

use std::cell::Cell;
use std::fmt::Write as _;
use std::time::Duration;

use http::StatusCode;
use postern_common::crypto::handle::Handle;
use postern_tests::cluster::Layout;
use postern_tests::databroker::{Databroker, shared_secret};
use postern_tests::person::{Person, Tunnel};
use postern_tests::site::Site;
use postern_tests::wait;
use postern_tests::world::{Setting, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const DESTINATION: &str = "db.corp.test:5432";

/// Sends back what it gets.
async fn database() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    format!("tcp://{address}")
}

async fn echoes(tunnel: &mut Tunnel, text: &str) {
    tunnel.write_all(text.as_bytes()).await.unwrap();
    let mut back = vec![0; text.len()];
    tokio::time::timeout(Duration::from_secs(20), tunnel.read_exact(&mut back))
        .await
        .expect("an echo in time")
        .expect("the tunnel is open");
    assert_eq!(back, text.as_bytes());
}

async fn ends(tunnel: &mut Tunnel) {
    let end = tokio::time::timeout(Duration::from_secs(20), tunnel.read(&mut [0; 1])).await;
    assert!(matches!(end, Ok(Ok(0) | Err(_))), "{end:?}");
}

/// Signs in as a program does: it gets a link, the person's browser follows it, and the program
/// gets a token at the address where it waits.
async fn token_of(world: &World, name: &str) -> String {
    let proxy = format!("https://db.corp.test:{}", world.cluster.port);
    let waits = "http://localhost:1/callback";
    let link = world
        .cluster
        .program()
        .get(&format!(
            "{proxy}/.pomerium/api/v1/login?pomerium_redirect_uri={waits}"
        ))
        .await;
    assert_eq!(link.status, StatusCode::OK, "{}", link.text());
    let person = world.cluster.browser();
    let page = person.follow(&link.text()).await.pop().unwrap();
    let mut next = world.choose(&person, &page, name).await;
    while !next.as_str().starts_with(waits) {
        next = person.get(next.as_str()).await.location().unwrap();
    }
    let token = next.query_pairs().find(|(name, _)| name == "pomerium_jwt");
    token.expect("a token").1.into_owned()
}

fn with(token: &str, world: &World) -> Person {
    let header = format!("Pomerium {token}");
    world
        .cluster
        .program()
        .with_header("authorization", &header)
}

#[tokio::test(flavor = "multi_thread")]
async fn c49_a_tunnel_lives_until_its_route_or_session_ends() {
    let routes = format!(
        "- {{from: 'tcp+https://{DESTINATION}', to: '{}', allow_any_authenticated_user: true}}\n",
        database().await
    );
    let world = World::start_with(Setting::new(Layout::Split).routes(routes)).await;
    let proxy = world.cluster.url("db", "/");

    // Without a token: told to sign in, never let through.
    let nobody = world.cluster.program();
    let refused = nobody.tunnel(&proxy, DESTINATION).await.unwrap_err();
    assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");

    // The first connection after the sign-in works.
    let (ann_token, bob_token) = (token_of(&world, "ann").await, token_of(&world, "bob").await);
    let (ann, bob) = (with(&ann_token, &world), with(&bob_token, &world));
    let mut anns = ann.tunnel(&proxy, DESTINATION).await.unwrap();
    let mut bobs = bob.tunnel(&proxy, DESTINATION).await.unwrap();
    echoes(&mut anns, "first").await;
    echoes(&mut bobs, "first").await;

    // Routes come, and a certificate is renewed.
    let file = world.cluster.config_file();
    let mut text = std::fs::read_to_string(&file).unwrap();
    let mut client = nobody;
    for round in 0..20 {
        if round == 10 {
            let renewed = Site::new();
            let (old, new) = (&world.cluster.site.certificates, &renewed.certificates);
            std::fs::copy(&new.key, &old.key).unwrap();
            std::fs::copy(&new.certificate, &old.certificate).unwrap();
            client = Person::program(&new.authority);
        }
        writeln!(
            text,
            "- {{from: 'https://new{round}.corp.test:{}', response: {{status: 200, body: here}}, \
             allow_public_unauthenticated_access: true}}",
            world.cluster.port
        )
        .unwrap();
        std::fs::write(&file, &text).unwrap();
        let url = world.cluster.url(&format!("new{round}"), "/");
        let what = format!("route {round} to be served");
        wait::until(&what, Duration::from_secs(20), async || {
            match client.try_get(&url).await {
                Ok(answer) if answer.status == StatusCode::OK => Ok(()),
                Ok(answer) => Err(answer.status.to_string()),
                Err(error) => Err(error),
            }
        })
        .await;
        echoes(&mut anns, &format!("ann after route {round}")).await;
        echoes(&mut bobs, &format!("bob after route {round}")).await;
    }

    // Her session ends: her tunnel does, his does not, before a second of this machine is over.
    let session = Handle::decode(&[shared_secret()], &ann_token).unwrap().id;
    let mut databroker = Databroker::connect(&world.cluster).await;
    databroker.delete_session(&session).await;
    let over = Cell::new(false);
    let ended = async {
        ends(&mut anns).await;
        over.set(true);
    };
    let second = async {
        for step in (0..100).take_while(|_| !over.get()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
            echoes(&mut bobs, &format!("step {step}")).await;
        }
        assert!(over.get(), "a tunnel outlives its session");
    };
    tokio::join!(ended, second);

    // The route goes: every tunnel of it ends.
    let from = format!("'tcp+https://{DESTINATION}'");
    let others: Vec<_> = text.lines().filter(|line| !line.contains(&from)).collect();
    std::fs::write(&file, others.join("\n")).unwrap();
    ends(&mut bobs).await;
    // Whether authorize or the proxy hears of it first.
    let proxy = world.cluster.processes.last().unwrap();
    wait::until(
        "the causes in the log",
        Duration::from_secs(20),
        async || {
            let log = proxy.output();
            let withdrawn = log.matches("authorization_withdrawn").count();
            match withdrawn + log.matches("route_removed").count() {
                2 if withdrawn > 0 => Ok(()),
                other => Err(other),
            }
        },
    )
    .await;
}
