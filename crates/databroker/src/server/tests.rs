//! The service through its generated client, in one process, on memory storage.

use postern_common::crypto::keys::SecretKey;
use postern_common::rpc::stubs::databroker::data_broker_service_client::DataBrokerServiceClient;
use postern_common::rpc::stubs::databroker::{
    Options, Record, sync_latest_response, sync_response,
};
use postern_common::rpc::stubs::session::Session;
use postern_common::rpc::token::{ClientToken, TokenKeys};
use prost::Message as _;
use prost_types::{Any, FieldMask};
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Streaming};

use super::*;
use crate::Databroker;
use crate::storage::local::Local;
use crate::tidy::Housekeeping;

type Client = DataBrokerServiceClient<InterceptedService<tonic::service::Routes, ClientToken>>;

const SESSION: &str = "type.googleapis.com/session.Session";

struct Running {
    client: Client,
    stop: CancellationToken,
    databroker: Databroker,
}

fn start() -> Running {
    let stop = CancellationToken::new();
    let storage = Arc::new(Local::in_memory().unwrap());
    let databroker = Databroker::start(storage, Housekeeping::default(), stop.clone());
    let keys = TokenKeys::new(vec![SecretKey::random()]);
    let client = DataBrokerServiceClient::with_interceptor(
        databroker.routes(keys.clone()),
        keys.for_client(),
    );
    Running {
        client,
        stop,
        databroker,
    }
}

fn record(kind: &str, id: &str, data: &[u8]) -> Record {
    Record {
        r#type: kind.to_owned(),
        id: id.to_owned(),
        data: Some(Any {
            type_url: kind.to_owned(),
            value: data.to_vec(),
        }),
        ..Record::default()
    }
}

fn session(id: &str, user_id: &str) -> Record {
    let session = Session {
        id: id.to_owned(),
        user_id: user_id.to_owned(),
        ..Session::default()
    };
    record(SESSION, id, &session.encode_to_vec())
}

async fn put(client: &mut Client, record: Record) -> Record {
    let request = PutRequest {
        records: vec![record],
    };
    client
        .put(request)
        .await
        .unwrap()
        .into_inner()
        .records
        .remove(0)
}

async fn delete(client: &mut Client, record: Record) -> Record {
    put(
        client,
        Record {
            deleted_at: Some(prost_types::Timestamp::default()),
            ..record
        },
    )
    .await
}

async fn info(client: &mut Client) -> ServerInfoResponse {
    client.server_info(()).await.unwrap().into_inner()
}

async fn follow(client: &mut Client, kind: &str, from: u64) -> Streaming<SyncResponse> {
    let server_version = info(client).await.server_version;
    let request = SyncRequest {
        server_version,
        record_version: from,
        r#type: kind.to_owned(),
        wait: None,
    };
    client.sync(request).await.unwrap().into_inner()
}

/// The next record of a stream, past options and heartbeats.
async fn next(stream: &mut Streaming<SyncResponse>) -> Result<Record, Status> {
    let next = async {
        loop {
            match stream.message().await?.and_then(|it| it.response) {
                Some(sync_response::Response::Record(record)) => return Ok(record),
                Some(_) => {}
                None => return Err(Status::ok("end")),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), next)
        .await
        .expect("nothing came in 5 s")
}

#[tokio::test]
async fn a_record_comes_back_byte_for_byte_until_it_is_deleted() {
    let mut running = start();
    let client = &mut running.client;
    let get = || GetRequest {
        r#type: "t".to_owned(),
        id: "a".to_owned(),
    };
    assert_eq!(client.get(get()).await.unwrap_err().code(), Code::NotFound);

    let first = put(client, record("t", "a", b"one")).await;
    let second = put(client, record("t", "a", b"two")).await;
    assert!(second.version > first.version && second.modified_at.is_some());
    assert_eq!(
        client.get(get()).await.unwrap().into_inner().record,
        Some(second.clone())
    );

    let gone = delete(client, record("t", "a", b"")).await;
    assert!(gone.version > second.version);
    assert_eq!(client.get(get()).await.unwrap_err().code(), Code::NotFound);
}

/// An unknown type, and bytes that are no message at all.
#[tokio::test]
async fn c85_unknown_payloads_pass_through_untouched() {
    let mut running = start();
    let client = &mut running.client;
    let kind = "type.googleapis.com/unknown.Thing";
    let thing = put(client, record(kind, "x", &[0xff, 0x00, 0x13])).await;

    let got = client
        .get(GetRequest {
            r#type: kind.to_owned(),
            id: "x".to_owned(),
        })
        .await
        .unwrap();
    assert_eq!(got.into_inner().record.as_ref(), Some(&thing));
    let query = QueryRequest {
        r#type: kind.to_owned(),
        limit: 10,
        ..QueryRequest::default()
    };
    assert_eq!(
        client.query(query).await.unwrap().into_inner().records,
        std::slice::from_ref(&thing)
    );
    let mut stream = follow(client, "", 0).await;
    assert_eq!(next(&mut stream).await.unwrap(), thing);
}

#[tokio::test]
async fn sync_latest_tells_everything_and_ends_with_the_versions() {
    let mut running = start();
    let client = &mut running.client;
    for n in 0..200 {
        put(client, record("t", &format!("{n:03}"), b"x")).await;
    }
    put(client, record("u", "other", b"x")).await;
    let request = SyncLatestRequest {
        r#type: "t".to_owned(),
    };
    let mut stream = client.sync_latest(request).await.unwrap().into_inner();
    let mut ids = Vec::new();
    let mut versions = None;
    while let Some(message) = stream.message().await.unwrap() {
        assert_eq!(versions, None, "versions come last");
        match message.response.unwrap() {
            sync_latest_response::Response::Record(record) => ids.push(record.id),
            sync_latest_response::Response::Versions(it) => versions = Some(it),
            sync_latest_response::Response::Options(_) => {}
        }
    }
    assert_eq!(ids, (0..200).map(|n| format!("{n:03}")).collect::<Vec<_>>());
    assert_eq!(versions.unwrap().latest_record_version, 201);
}

#[tokio::test]
async fn a_follower_sees_every_change_of_its_type_in_order() {
    let mut running = start();
    let client = &mut running.client;
    let before = put(client, record("t", "before", b"x")).await;
    let mut stream = follow(client, "t", 0).await;
    assert_eq!(next(&mut stream).await.unwrap(), before);
    for n in 0..300 {
        put(
            client,
            record(if n % 2 == 0 { "t" } else { "u" }, &n.to_string(), b"x"),
        )
        .await;
    }
    let gone = delete(client, record("t", "before", b"")).await;
    for n in (0..300).step_by(2) {
        assert_eq!(next(&mut stream).await.unwrap().id, n.to_string());
    }
    let last = next(&mut stream).await.unwrap();
    assert_eq!(
        (last.version, last.deleted_at.is_some()),
        (gone.version, true)
    );
}

#[tokio::test]
async fn a_follower_of_another_data_set_or_of_the_future_starts_again() {
    let mut running = start();
    let client = &mut running.client;
    put(client, record("t", "a", b"x")).await;
    let server_version = info(client).await.server_version;
    for (server_version, record_version) in [(server_version ^ 1, 0), (server_version, 2), (0, 0)] {
        let request = SyncRequest {
            server_version,
            record_version,
            ..SyncRequest::default()
        };
        assert_eq!(
            client.sync(request).await.unwrap_err().code(),
            Code::Aborted
        );
    }
}

#[tokio::test]
async fn clear_begins_a_new_data_set_and_every_follower_hears_of_it() {
    let mut running = start();
    let client = &mut running.client;
    put(client, record("t", "a", b"x")).await;
    let mut streams = [follow(client, "", 1).await, follow(client, "t", 1).await];
    let cleared = client.clear(()).await.unwrap().into_inner();
    assert_ne!(cleared.old_server_version, cleared.new_server_version);
    for stream in &mut streams {
        assert_eq!(next(stream).await.unwrap_err().code(), Code::Aborted);
    }
    assert_eq!(
        info(client).await.server_version,
        cleared.new_server_version
    );
    assert_eq!(
        client.list_types(()).await.unwrap().into_inner().types,
        Vec::<String>::new()
    );
}

#[tokio::test]
async fn a_stream_that_need_not_wait_ends_when_it_has_told_everything() {
    let mut running = start();
    let client = &mut running.client;
    put(client, record("t", "a", b"x")).await;
    let server_version = info(client).await.server_version;
    let request = SyncRequest {
        server_version,
        wait: Some(false),
        ..SyncRequest::default()
    };
    let mut stream = client.sync(request).await.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.unwrap().id, "a");
    assert_eq!(next(&mut stream).await.unwrap_err().code(), Code::Ok);
}

#[tokio::test]
async fn a_stop_ends_streams_with_unavailable() {
    let mut running = start();
    let mut stream = follow(&mut running.client, "", 0).await;
    running.stop.cancel();
    assert_eq!(
        next(&mut stream).await.unwrap_err().code(),
        Code::Unavailable
    );
}

#[tokio::test]
async fn heartbeats_come_only_to_those_who_ask() {
    let mut running = start();
    let client = &mut running.client;
    let server_version = info(client).await.server_version;
    let sync = || SyncRequest {
        server_version,
        r#type: "t".to_owned(),
        ..SyncRequest::default()
    };
    let mut asking = Request::new(sync());
    asking
        .metadata_mut()
        .insert(stream::HEARTBEAT, "1".parse().unwrap());
    let mut asking = client.sync(asking).await.unwrap().into_inner();
    let mut quiet = client.sync(sync()).await.unwrap().into_inner();
    for _ in 0..2 {
        let message = tokio::time::timeout(Duration::from_secs(5), asking.message())
            .await
            .unwrap();
        let response = message.unwrap().unwrap().response;
        assert!(
            matches!(response, Some(sync_response::Response::Heartbeat(_))),
            "{response:?}"
        );
    }
    put(client, record("t", "a", b"x")).await;
    let message = quiet.message().await.unwrap().unwrap().response;
    assert!(
        matches!(message, Some(sync_response::Response::Record(_))),
        "{message:?}"
    );
}

#[tokio::test]
async fn patch_changes_named_fields_of_records_that_exist() {
    let mut running = start();
    let client = &mut running.client;
    put(client, session("s", "ann")).await;
    let patch = |mask: &str| PatchRequest {
        records: vec![session("s", "bob"), session("missing", "bob")],
        field_mask: Some(FieldMask {
            paths: vec![mask.to_owned()],
        }),
    };
    let patched = client
        .patch(patch("user_id"))
        .await
        .unwrap()
        .into_inner()
        .records;
    assert_eq!(patched.len(), 1);
    let got = Session::decode(&*patched[0].data.as_ref().unwrap().value).unwrap();
    assert_eq!((got.id.as_str(), got.user_id.as_str()), ("s", "bob"));
    assert_eq!(
        client.patch(patch("nope")).await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn query_pages_counts_filters_and_looks_for_text() {
    let mut running = start();
    let client = &mut running.client;
    for (id, user) in [("a", "ann"), ("b", "Bob"), ("c", "ann"), ("d", "dan")] {
        put(client, session(id, user)).await;
    }
    let mut ask = async |query: QueryRequest| {
        let answer = client
            .query(QueryRequest {
                r#type: SESSION.to_owned(),
                ..query
            })
            .await?
            .into_inner();
        let ids: Vec<_> = answer.records.iter().map(|it| it.id.clone()).collect();
        Ok::<_, Status>((ids.concat(), answer.total_count))
    };
    let all = QueryRequest {
        limit: 10,
        ..QueryRequest::default()
    };
    let filter = |path: &str, value: &str| {
        let value = prost_types::value::Kind::StringValue(value.to_owned());
        let fields = [(path.to_owned(), prost_types::Value { kind: Some(value) })];
        Some(prost_types::Struct {
            fields: fields.into(),
        })
    };
    assert_eq!(ask(all.clone()).await.unwrap(), ("abcd".to_owned(), 4));
    assert_eq!(
        ask(QueryRequest::default()).await.unwrap(),
        (String::new(), 4)
    );
    assert_eq!(
        ask(QueryRequest {
            offset: 1,
            limit: 2,
            ..all.clone()
        })
        .await
        .unwrap(),
        ("bc".to_owned(), 4)
    );
    assert_eq!(
        ask(QueryRequest {
            offset: 9,
            ..all.clone()
        })
        .await
        .unwrap(),
        (String::new(), 4)
    );
    assert_eq!(
        ask(QueryRequest {
            query: "BOB".to_owned(),
            ..all.clone()
        })
        .await
        .unwrap(),
        ("b".to_owned(), 1)
    );
    assert_eq!(
        ask(QueryRequest {
            filter: filter("user_id", "ann"),
            ..all.clone()
        })
        .await
        .unwrap(),
        ("ac".to_owned(), 2)
    );
    assert_eq!(
        ask(QueryRequest {
            filter: filter("id", "d"),
            limit: 1,
            ..all.clone()
        })
        .await
        .unwrap(),
        ("d".to_owned(), 1)
    );
    for bad in [
        QueryRequest {
            limit: -1,
            ..all.clone()
        },
        QueryRequest {
            offset: -1,
            ..all.clone()
        },
    ] {
        assert_eq!(ask(bad).await.unwrap_err().code(), Code::InvalidArgument);
    }
}

fn network(id: &str, cidr: &str) -> Record {
    let text = prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(cidr.to_owned())),
    };
    let value = |fields| prost_types::Value {
        kind: Some(prost_types::value::Kind::StructValue(fields)),
    };
    let of = |name: &str, value| prost_types::Struct {
        fields: [(name.to_owned(), value)].into(),
    };
    let payload = of("$index", value(of("cidr", text)));
    Record {
        data: Some(Any {
            type_url: "type.googleapis.com/google.protobuf.Struct".to_owned(),
            value: payload.encode_to_vec(),
        }),
        ..record("net", id, b"")
    }
}

/// Who asks about an address takes the first record, and a policy decides on it.
#[tokio::test]
async fn the_network_that_says_the_most_about_an_address_comes_first() {
    let mut running = start();
    let client = &mut running.client;
    for (id, cidr) in [
        ("all", "0.0.0.0/0"),
        ("corp", "10.0.0.0/8"),
        ("office", "10.1.2.0/24"),
        ("desk", "10.1.2.3"),
        ("also-a-desk", "10.1.2.3/32"),
        ("10.1.2.3", "10.1.0.0/16"),
        ("elsewhere", "192.0.2.0/24"),
    ] {
        put(client, network(id, cidr)).await;
    }
    let text = |text: &str| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(text.to_owned())),
    };
    let field = |name: &str, value| prost_types::Struct {
        fields: [(name.to_owned(), value)].into(),
    };
    let either = prost_types::ListValue {
        values: ["id", "$index"]
            .map(|name| prost_types::Value {
                kind: Some(prost_types::value::Kind::StructValue(field(
                    name,
                    text("10.1.2.3"),
                ))),
            })
            .into(),
    };
    let either = prost_types::Value {
        kind: Some(prost_types::value::Kind::ListValue(either)),
    };
    let all = "also-a-desk desk office 10.1.2.3 corp all";
    for (kind, filter, limit, expected) in [
        ("net", field("$index", text("10.1.2.3")), 10, all),
        ("", field("$index", text("10.1.2.3")), 10, all),
        ("net", field("$index", text("10.1.2.9")), 1, "office"),
        ("net", field("$index", text("10.1.2.0/23")), 1, "10.1.2.3"),
        (
            "net",
            field("$or", either),
            10,
            "10.1.2.3 also-a-desk desk office corp all",
        ),
    ] {
        let request = QueryRequest {
            r#type: kind.to_owned(),
            filter: Some(filter),
            limit,
            ..QueryRequest::default()
        };
        let found = client.query(request).await.unwrap().into_inner().records;
        let ids: Vec<_> = found.iter().map(|it| it.id.as_str()).collect();
        assert_eq!(ids.join(" "), expected);
    }
}

/// Postgres can't be asked for it, so that nobody is: the same on every storage.
#[tokio::test]
async fn nothing_has_a_name_with_nul() {
    let mut running = start();
    let client = &mut running.client;
    for (kind, id) in [("t\0", "a"), ("t", "a\0")] {
        let request = GetRequest {
            r#type: kind.to_owned(),
            id: id.to_owned(),
        };
        assert_eq!(
            client.get(request).await.unwrap_err().code(),
            Code::NotFound
        );
    }
    let kind = || "t\0".to_owned();
    let server_version = info(client).await.server_version;
    let sync = client.sync(SyncRequest {
        server_version,
        r#type: kind(),
        ..SyncRequest::default()
    });
    assert_eq!(sync.await.unwrap_err().code(), Code::InvalidArgument);
    let latest = client.sync_latest(SyncLatestRequest { r#type: kind() });
    assert_eq!(latest.await.unwrap_err().code(), Code::InvalidArgument);
    for (kind, filter) in [
        (kind(), None),
        ("t".to_owned(), Some("id")),
        ("t".to_owned(), Some("type")),
    ] {
        let filter = filter.map(|name| prost_types::Struct {
            fields: [(
                name.to_owned(),
                prost_types::Value {
                    kind: Some(prost_types::value::Kind::StringValue("a\0".to_owned())),
                },
            )]
            .into(),
        });
        let query = client.query(QueryRequest {
            r#type: kind,
            filter,
            limit: 1,
            ..QueryRequest::default()
        });
        assert_eq!(query.await.unwrap_err().code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn checkpoints_are_those_of_a_leader_that_follows_nobody() {
    use postern_common::rpc::stubs::databroker::checkpoint_service_client::CheckpointServiceClient;
    use postern_common::rpc::stubs::databroker::{
        Checkpoint, GetCheckpointRequest, GetCheckpointResponse, SetCheckpointRequest,
    };
    let running = start();
    let keys = TokenKeys::new(vec![SecretKey::random()]);
    let routes = running.databroker.routes(keys.clone());
    let mut client = CheckpointServiceClient::with_interceptor(routes.clone(), keys.for_client());
    let answer = client.get_checkpoint(GetCheckpointRequest {}).await;
    let expected = GetCheckpointResponse {
        checkpoint: Some(Checkpoint::default()),
        is_leader: true,
    };
    assert_eq!(answer.unwrap().into_inner(), expected);
    let set = client.set_checkpoint(SetCheckpointRequest::default()).await;
    assert_eq!(set.unwrap_err().code(), Code::Unimplemented);
    let without = CheckpointServiceClient::new(routes)
        .get_checkpoint(GetCheckpointRequest {})
        .await;
    assert_eq!(without.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn leases_have_one_holder_and_may_be_renewed_again_and_again() {
    let mut running = start();
    let client = &mut running.client;
    let duration = Some(prost_types::Duration {
        seconds: 30,
        nanos: 0,
    });
    let acquire = || AcquireLeaseRequest {
        name: "l".to_owned(),
        duration,
    };
    let renew = |id: &str| RenewLeaseRequest {
        name: "l".to_owned(),
        id: id.to_owned(),
        duration,
    };
    let id = client
        .acquire_lease(acquire())
        .await
        .unwrap()
        .into_inner()
        .id;
    assert_eq!(
        client.acquire_lease(acquire()).await.unwrap_err().code(),
        Code::AlreadyExists
    );
    client.renew_lease(renew(&id)).await.unwrap();
    client.renew_lease(renew(&id)).await.unwrap();
    assert_eq!(
        client.renew_lease(renew("other")).await.unwrap_err().code(),
        Code::AlreadyExists
    );
    // Not the holder: nothing happens.
    client
        .release_lease(ReleaseLeaseRequest {
            name: "l".to_owned(),
            id: "other".to_owned(),
        })
        .await
        .unwrap();
    assert_eq!(
        client.renew_lease(renew("other")).await.unwrap_err().code(),
        Code::AlreadyExists
    );
    client
        .release_lease(ReleaseLeaseRequest {
            name: "l".to_owned(),
            id,
        })
        .await
        .unwrap();
    client.renew_lease(renew("other")).await.unwrap();
    let endless = AcquireLeaseRequest {
        name: "m".to_owned(),
        duration: None,
    };
    assert_eq!(
        client.acquire_lease(endless).await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn options_are_set_told_and_removed() {
    let mut running = start();
    let client = &mut running.client;
    let get = || GetOptionsRequest {
        r#type: "t".to_owned(),
    };
    let set = |options| SetOptionsRequest {
        r#type: "t".to_owned(),
        options,
    };
    assert_eq!(
        client.get_options(get()).await.unwrap_err().code(),
        Code::NotFound
    );
    let options = Options {
        capacity: Some(2),
        ..Options::default()
    };
    client
        .set_options(set(Some(options.clone())))
        .await
        .unwrap();
    assert_eq!(
        client
            .get_options(get())
            .await
            .unwrap()
            .into_inner()
            .options,
        Some(options.clone())
    );
    let mut stream = follow(client, "t", 0).await;
    let first = stream.message().await.unwrap().unwrap().response.unwrap();
    assert!(matches!(first, sync_response::Response::Options(it) if it.options == Some(options)));
    let endless = Options {
        ttl: Some(prost_types::Duration {
            seconds: i64::MAX,
            nanos: i32::MAX,
        }),
        ..Options::default()
    };
    assert_eq!(
        client
            .set_options(set(Some(endless)))
            .await
            .unwrap_err()
            .code(),
        Code::InvalidArgument
    );
    client.set_options(set(None)).await.unwrap();
    assert_eq!(
        client.get_options(get()).await.unwrap_err().code(),
        Code::NotFound
    );
    let nameless = GetOptionsRequest {
        r#type: String::new(),
    };
    assert_eq!(
        client.get_options(nameless).await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn what_is_too_large_or_nameless_is_refused() {
    let mut running = start();
    let client = &mut running.client;
    let mut try_put = async |record| {
        client
            .put(PutRequest {
                records: vec![record],
            })
            .await
            .unwrap_err()
            .code()
    };
    assert_eq!(
        try_put(record("t", "a", &vec![0; 1 << 20])).await,
        Code::ResourceExhausted
    );
    assert_eq!(try_put(record("", "a", b"")).await, Code::InvalidArgument);
    assert_eq!(try_put(record("t", "", b"")).await, Code::InvalidArgument);
}

#[tokio::test]
async fn c63_without_a_valid_token_nothing_is_answered() {
    let running = start();
    let stop = CancellationToken::new();
    let storage = Arc::new(Local::in_memory().unwrap());
    let databroker = Databroker::start(storage, Housekeeping::default(), stop);
    let routes = databroker.routes(TokenKeys::new(vec![SecretKey::random()]));
    let other = TokenKeys::new(vec![SecretKey::random()]);
    let mut with_other_key =
        DataBrokerServiceClient::with_interceptor(routes.clone(), other.for_client());
    let mut without = DataBrokerServiceClient::new(routes);
    let get = || GetRequest {
        r#type: "t".to_owned(),
        id: "a".to_owned(),
    };
    assert_eq!(
        with_other_key.get(get()).await.unwrap_err().code(),
        Code::Unauthenticated
    );
    assert_eq!(
        without.get(get()).await.unwrap_err().code(),
        Code::Unauthenticated
    );
    assert_eq!(
        without.put(PutRequest::default()).await.unwrap_err().code(),
        Code::Unauthenticated
    );
    assert_eq!(
        without
            .sync_latest(SyncLatestRequest::default())
            .await
            .unwrap_err()
            .code(),
        Code::Unauthenticated
    );
    drop(running);
}

/// Streams don't last for ever, so that databrokers that came later get their share. Our own followers, who ask for
/// heartbeats, leave by themselves before.
#[tokio::test(start_paused = true)]
async fn streams_end_within_the_hour() {
    let mut running = start();
    for (ours, minutes) in [(false, 29..61), (true, 64..66)] {
        let mut request = Request::new(SyncRequest {
            server_version: info(&mut running.client).await.server_version,
            ..SyncRequest::default()
        });
        if ours {
            let metadata = request.metadata_mut();
            metadata.insert(stream::HEARTBEAT, "1".parse().unwrap());
        }
        let begun = tokio::time::Instant::now();
        let mut stream = running.client.sync(request).await.unwrap().into_inner();
        let ended = loop {
            if let Err(status) = stream.message().await {
                break status;
            }
        };
        assert_eq!(ended.code(), Code::Unavailable);
        let lasted = begun.elapsed().as_secs() / 60;
        assert!(minutes.contains(&lasted), "{lasted} minutes");
    }
}
