//! What every storage promises. Each check gets a storage that nobody has used yet.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use postern_common::rpc::WriteId;
use postern_common::rpc::stubs::databroker::{Options, Record};
use postern_common::rpc::stubs::session::Session;
use postern_databroker::storage::{
    Lookup, Operation, PageStart, RecordKey, Refused, Storage, Tidied,
};
use prost::Message as _;
use prost_types::{Any, Struct, Value, value::Kind};

use crate::Check;

macro_rules! checks {
    ($($name:ident),* $(,)?) => {
        pub const ALL: [(&str, Check); [$(stringify!($name)),*].len()] =
            [$((stringify!($name), |storage| Box::pin($name(storage)))),*];
    };
}

checks![
    a_record_is_as_it_was_put_until_it_is_deleted,
    anything_can_be_a_payload,
    changes_are_told_in_order,
    changes_of_a_kind_leave_the_others_out,
    a_record_may_occur_twice_in_a_request,
    pages_are_ordered_byte_by_byte,
    a_patch_changes_records_that_exist,
    put_if_writes_only_over_the_version_it_knows,
    a_write_with_an_id_is_done_once,
    a_refused_operation_leaves_the_others_alone,
    capacity_evicts_the_oldest_with_a_tombstone,
    a_smaller_capacity_counts_at_once,
    records_past_their_time_are_deleted_with_a_tombstone,
    old_changes_are_forgotten_kind_by_kind,
    records_are_found_by_id_network_and_field,
    indices_follow_their_records_and_options,
    options_are_kept,
    a_lease_has_one_holder,
    a_lease_ends,
    clear_leaves_leases_and_a_new_data_set,
    concurrent_writers_never_share_a_version,
    a_large_request_is_written_at_once,
];

const DAY: Duration = Duration::from_secs(86_400);

pub fn record(kind: &str, id: &str, data: &[u8]) -> Record {
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

fn deletion(kind: &str, id: &str) -> Record {
    let deleted_at = Some(prost_types::Timestamp::default());
    Record {
        r#type: kind.to_owned(),
        id: id.to_owned(),
        deleted_at,
        ..Record::default()
    }
}

fn session(id: &str, user_id: &str) -> Record {
    const TYPE: &str = "type.googleapis.com/session.Session";
    let session = Session {
        id: id.to_owned(),
        user_id: user_id.to_owned(),
        ..Session::default()
    };
    record(TYPE, id, &session.encode_to_vec())
}

fn key(kind: &str, id: &str) -> RecordKey {
    RecordKey {
        kind: kind.to_owned(),
        id: id.to_owned(),
    }
}

async fn write(storage: &Arc<dyn Storage>, operation: Operation) -> Result<Vec<Record>, Refused> {
    storage
        .write(vec![operation])
        .await
        .unwrap()
        .results
        .remove(0)
}

pub async fn put(storage: &Arc<dyn Storage>, records: Vec<Record>) -> Vec<Record> {
    write(storage, Operation::Put(records)).await.unwrap()
}

async fn changes(storage: &Arc<dyn Storage>, kind: Option<&str>, after: u64) -> Vec<Record> {
    storage
        .changes(kind.map(str::to_owned), after, 10_000)
        .await
        .unwrap()
        .records
}

async fn ids(storage: &Arc<dyn Storage>, kind: &str) -> String {
    let page = storage
        .page(Some(kind.to_owned()), PageStart::Offset(0), 10_000)
        .await
        .unwrap();
    page.into_iter()
        .map(|record| record.id)
        .collect::<Vec<_>>()
        .join(" ")
}

async fn a_record_is_as_it_was_put_until_it_is_deleted(storage: Arc<dyn Storage>) {
    let head = storage.head().await.unwrap();
    assert_ne!(head.server_version, 0);
    assert_eq!((head.latest, head.earliest), (0, 0));
    assert_eq!(storage.get(&key("t", "a")).await.unwrap(), None);

    // What a client says about version and time does not count.
    let claimed = Record {
        version: 77,
        ..record("t", "a", b"one")
    };
    let first = put(&storage, vec![claimed]).await.remove(0);
    let second = put(&storage, vec![record("t", "a", b"two")])
        .await
        .remove(0);
    assert_eq!((first.version, second.version), (1, 2));
    assert!(second.modified_at.unwrap().seconds > 1_700_000_000);
    assert_eq!(storage.get(&key("t", "a")).await.unwrap(), Some(second));
    assert_eq!(storage.kinds().await.unwrap(), ["t"]);

    let gone = put(&storage, vec![deletion("t", "a")]).await.remove(0);
    assert_eq!((gone.version, gone.deleted_at), (3, gone.modified_at));
    assert_eq!(storage.get(&key("t", "a")).await.unwrap(), None);
    assert_eq!(storage.kinds().await.unwrap(), Vec::<String>::new());
    assert_eq!(storage.count(None).await.unwrap(), 0);
    let head = storage.head().await.unwrap();
    assert_eq!((head.latest, head.earliest), (3, 1));
}

async fn anything_can_be_a_payload(storage: Arc<dyn Storage>) {
    let all = vec![
        record(
            "type.googleapis.com/unknown.Thing",
            "x",
            &[0xff, 0, 1, 0x80],
        ),
        Record {
            data: None,
            ..record("t", "without", b"")
        },
        record("t", "empty", b""),
        record("t", "ключ/鍵 'quoted\" \\ %", b"x"),
        record("t", &"long".repeat(256), &vec![7; 900_000]),
    ];
    let written = put(&storage, all.clone()).await;
    for (wanted, written) in all.iter().zip(&written) {
        assert_eq!(wanted.data, written.data);
        assert_eq!(
            storage.get(&RecordKey::of(wanted)).await.unwrap().as_ref(),
            Some(written)
        );
    }
    assert_eq!(changes(&storage, None, 0).await, written);
}

async fn changes_are_told_in_order(storage: Arc<dyn Storage>) {
    let mut expected = Vec::new();
    for n in 0..10 {
        expected.extend(put(&storage, vec![record("t", &(n % 3).to_string(), &[n])]).await);
    }
    expected.extend(
        put(
            &storage,
            vec![deletion("t", "0"), deletion("t", "never was")],
        )
        .await,
    );
    assert_eq!(changes(&storage, None, 0).await, expected);
    assert_eq!(changes(&storage, None, 10).await, expected[10..]);
    assert_eq!(changes(&storage, None, 12).await, []);
    let page = storage.changes(None, 4, 3).await.unwrap();
    assert_eq!(page.records, expected[4..7]);
    assert_eq!((page.latest, page.forgotten), (12, 0));
    assert_eq!(
        page.server_version,
        storage.head().await.unwrap().server_version
    );
}

async fn changes_of_a_kind_leave_the_others_out(storage: Arc<dyn Storage>) {
    put(
        &storage,
        vec![
            record("a", "1", b""),
            record("b", "1", b""),
            record("a", "2", b""),
        ],
    )
    .await;
    let of_a = changes(&storage, Some("a"), 0).await;
    assert_eq!(of_a.iter().map(|it| it.version).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(changes(&storage, Some("a"), 1).await, of_a[1..]);
    let none = storage.changes(Some("c".to_owned()), 0, 10).await.unwrap();
    assert_eq!((none.records.len(), none.latest), (0, 3));
}

async fn a_record_may_occur_twice_in_a_request(storage: Arc<dyn Storage>) {
    let again = vec![
        record("t", "a", b"1"),
        deletion("t", "a"),
        record("t", "a", b"2"),
        record("t", "b", b""),
        deletion("t", "b"),
    ];
    let written = put(&storage, again).await;
    assert_eq!(
        written.iter().map(|it| it.version).collect::<Vec<_>>(),
        [1, 2, 3, 4, 5]
    );
    assert_eq!(
        storage.get(&key("t", "a")).await.unwrap(),
        Some(written[2].clone())
    );
    assert_eq!(ids(&storage, "t").await, "a");
    assert_eq!(changes(&storage, None, 0).await.len(), 5);
}

async fn pages_are_ordered_byte_by_byte(storage: Arc<dyn Storage>) {
    let names = ["b", "B", "a", "_", "ä", "aa", "0"];
    put(
        &storage,
        names.iter().map(|id| record("t", id, b"")).collect(),
    )
    .await;
    put(&storage, vec![record("T", "x", b""), record("u", "y", b"")]).await;
    assert_eq!(ids(&storage, "t").await, "0 B _ a aa b ä");
    assert_eq!(storage.kinds().await.unwrap(), ["T", "t", "u"]);
    assert_eq!(storage.count(Some("t".to_owned())).await.unwrap(), 7);
    assert_eq!(storage.count(None).await.unwrap(), 9);

    let page = async |kind: Option<&str>, start, limit| {
        let page = storage
            .page(kind.map(str::to_owned), start, limit)
            .await
            .unwrap();
        page.into_iter()
            .map(|it| it.id)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(page(Some("t"), PageStart::Offset(5), 10).await, "b ä");
    assert_eq!(page(Some("t"), PageStart::Offset(9), 10).await, "");
    assert_eq!(page(None, PageStart::Offset(0), 2).await, "x 0");

    let after = |kind: &str, version| PageStart::After {
        kind: kind.to_owned(),
        version,
    };
    assert_eq!(page(Some("t"), after("", 0), 10).await, "b B a _ ä aa 0");
    assert_eq!(page(Some("t"), after("t", 2), 2).await, "a _");
    assert_eq!(page(Some("t"), after("t", 7), 10).await, "");
    assert_eq!(page(None, after("", 0), 3).await, "x b B");
    assert_eq!(page(None, after("t", 6), 10).await, "0 y");
    // Nobody who copies page by page misses a record that is written meanwhile.
    put(&storage, vec![record("t", "B", b"again")]).await;
    assert_eq!(page(Some("t"), after("t", 1), 10).await, "a _ ä aa 0 B");
}

async fn a_patch_changes_records_that_exist(storage: Arc<dyn Storage>) {
    put(&storage, vec![session("s", "ann")]).await;
    let patch = |mask: &str, records| Operation::Patch {
        records,
        mask: vec![mask.to_owned()],
    };
    let patched = write(
        &storage,
        patch("user_id", vec![session("s", "bob"), session("none", "x")]),
    )
    .await
    .unwrap();
    assert_eq!(patched.len(), 1);
    assert_eq!(
        storage.get(&RecordKey::of(&patched[0])).await.unwrap(),
        Some(patched[0].clone())
    );
    assert_eq!(patched[0].data, session("s", "bob").data);
    // Twice the same record: the second builds on the first.
    let twice = vec![session("s", "cy"), session("s", "dan")];
    let twice = write(&storage, patch("user_id", twice)).await.unwrap();
    assert_eq!(
        twice.iter().map(|it| it.version).collect::<Vec<_>>(),
        [3, 4]
    );

    let bad = write(&storage, patch("nope", vec![session("s", "x")])).await;
    assert!(matches!(bad, Err(Refused::Patch(_))), "{bad:?}");
    assert_eq!(storage.head().await.unwrap().latest, 4);
}

async fn put_if_writes_only_over_the_version_it_knows(storage: Arc<dyn Storage>) {
    let put_if = |data: &[u8], version| Operation::PutIf {
        record: record("t", "a", data),
        version,
    };
    let first = write(&storage, put_if(b"1", None)).await.unwrap().remove(0);
    let again = write(&storage, put_if(b"2", None)).await;
    assert_eq!(
        again,
        Err(Refused::Conflict {
            expected: None,
            found: Some(1)
        })
    );
    write(&storage, put_if(b"3", Some(first.version)))
        .await
        .unwrap();
    let late = write(&storage, put_if(b"4", Some(first.version))).await;
    assert_eq!(
        late,
        Err(Refused::Conflict {
            expected: Some(1),
            found: Some(2)
        })
    );
    assert_eq!(
        storage.get(&key("t", "a")).await.unwrap().unwrap().data,
        record("t", "a", b"3").data
    );
}

/// Asked for again because the answer was lost, or found in a frozen databroker later.
async fn a_write_with_an_id_is_done_once(storage: Arc<dyn Storage>) {
    let id = WriteId::random();
    let once = |operation| Operation::Once {
        id,
        operation: Box::new(operation),
    };
    let both = || Operation::Put(vec![record("t", "b", b"1"), record("t", "a", b"1")]);
    let first = write(&storage, once(both())).await.unwrap();
    put(&storage, vec![record("t", "a", b"2")]).await;
    let again = write(&storage, once(both())).await.unwrap();
    assert_eq!(again[0], first[0]);
    assert_eq!((again[1].id.as_str(), again[1].version), ("a", 3));
    assert_eq!(again[1].data, record("t", "a", b"2").data);
    // What was deleted meanwhile stays so: nobody is signed in again.
    put(&storage, vec![deletion("t", "b")]).await;
    let late = write(&storage, once(both())).await.unwrap();
    assert_eq!(late, again[1..]);
    assert_eq!(ids(&storage, "t").await, "a");
    assert_eq!(storage.head().await.unwrap().latest, 4);
    // Twice in one transaction.
    let twice = WriteId::random();
    let operation = Operation::Once {
        id: twice,
        operation: Box::new(Operation::Put(vec![record("t", "c", b"")])),
    };
    let batch = vec![operation.clone(), operation];
    let written = storage.write(batch).await.unwrap();
    let versions = written
        .results
        .iter()
        .map(|it| it.as_ref().unwrap()[0].version);
    assert_eq!(versions.collect::<Vec<_>>(), [5, 5]);
    // What was refused was not done.
    let refused = WriteId::random();
    let put_if = |version| Operation::Once {
        id: refused,
        operation: Box::new(Operation::PutIf {
            record: record("t", "c", b"2"),
            version,
        }),
    };
    assert!(write(&storage, put_if(Some(1))).await.is_err());
    let done = write(&storage, put_if(Some(5))).await.unwrap();
    assert_eq!(done[0].version, 6);
}

async fn a_refused_operation_leaves_the_others_alone(storage: Arc<dyn Storage>) {
    let written = storage
        .write(vec![
            Operation::Put(vec![record("t", "a", b"")]),
            Operation::PutIf {
                record: record("t", "b", b""),
                version: Some(9),
            },
            Operation::Put(vec![record("t", "c", b"")]),
            // Sees what the batch wrote before it.
            Operation::PutIf {
                record: record("t", "a", b"2"),
                version: Some(1),
            },
        ])
        .await
        .unwrap();
    assert_eq!(
        written
            .results
            .iter()
            .map(Result::is_ok)
            .collect::<Vec<_>>(),
        [true, false, true, true]
    );
    assert_eq!(ids(&storage, "t").await, "a c");
    assert_eq!(storage.head().await.unwrap().latest, 3);
}

async fn capacity_evicts_the_oldest_with_a_tombstone(storage: Arc<dyn Storage>) {
    let options = Options {
        capacity: Some(2),
        ..Options::default()
    };
    storage.set_options("t".to_owned(), options).await.unwrap();
    put(
        &storage,
        vec![
            record("t", "a", b""),
            record("t", "b", b""),
            record("u", "x", b""),
        ],
    )
    .await;
    put(&storage, vec![record("t", "a", b"again")]).await;
    put(&storage, vec![record("t", "c", b"")]).await;
    assert_eq!(ids(&storage, "t").await, "a c");
    let last = changes(&storage, None, 5).await;
    assert_eq!(last.len(), 1);
    assert_eq!(
        (last[0].id.as_str(), last[0].deleted_at.is_some()),
        ("b", true)
    );
}

async fn a_smaller_capacity_counts_at_once(storage: Arc<dyn Storage>) {
    let all = ["a", "b", "c"].map(|id| record("t", id, b""));
    put(&storage, all.to_vec()).await;
    let options = Options {
        capacity: Some(1),
        ..Options::default()
    };
    storage.set_options("t".to_owned(), options).await.unwrap();
    assert_eq!(ids(&storage, "t").await, "c");
    let gone = changes(&storage, None, 3).await;
    let gone: Vec<_> = gone
        .iter()
        .map(|change| (change.id.as_str(), change.deleted_at.is_some()))
        .collect();
    assert_eq!(gone, [("a", true), ("b", true)]);
}

async fn records_past_their_time_are_deleted_with_a_tombstone(storage: Arc<dyn Storage>) {
    let ttl = Some(prost_types::Duration {
        seconds: 0,
        nanos: 400_000_000,
    });
    storage
        .set_options(
            "t".to_owned(),
            Options {
                ttl,
                ..Options::default()
            },
        )
        .await
        .unwrap();
    // No client can set what makes no sense, but an older program may have taken it.
    for (seconds, nanos) in [(i64::MAX, i32::MAX), (300_000_000_000, 0), (-1, 0)] {
        let ttl = Some(prost_types::Duration { seconds, nanos });
        let options = Options {
            ttl,
            ..Options::default()
        };
        storage.set_options("u".to_owned(), options).await.unwrap();
        put(&storage, vec![record("u", "x", b"")]).await;
        assert_eq!(storage.tidy(DAY).await.unwrap(), Tidied::default());
    }
    put(&storage, vec![record("t", "a", b"")]).await;
    assert_eq!(storage.tidy(DAY).await.unwrap(), Tidied::default());
    crate::eventually("the record expired", async || {
        storage.tidy(DAY).await.unwrap().expired == 1
    })
    .await;
    assert_eq!(
        (ids(&storage, "t").await, ids(&storage, "u").await),
        (String::new(), "x".to_owned())
    );
    let last = changes(&storage, Some("t"), 4).await;
    assert!(last[0].deleted_at.is_some());
}

/// A kind that was quiet keeps its place in the log, however much the others changed.
async fn old_changes_are_forgotten_kind_by_kind(storage: Arc<dyn Storage>) {
    put(
        &storage,
        vec![
            record("quiet", "a", b""),
            record("busy", "a", b""),
            record("busy", "b", b""),
        ],
    )
    .await;
    let forget = async || storage.tidy(Duration::ZERO).await.unwrap().forgotten == 0;
    crate::eventually("everything is forgotten", forget).await;
    put(&storage, vec![record("busy", "c", b"")]).await;

    let all = storage.changes(None, 3, 10).await.unwrap();
    assert_eq!((all.forgotten, all.records.len(), all.latest), (3, 1, 4));
    assert_eq!(
        storage
            .changes(Some("quiet".to_owned()), 1, 10)
            .await
            .unwrap()
            .forgotten,
        1
    );
    assert_eq!(
        storage
            .changes(Some("busy".to_owned()), 1, 10)
            .await
            .unwrap()
            .forgotten,
        3
    );
    assert_eq!(
        storage
            .changes(Some("never".to_owned()), 0, 10)
            .await
            .unwrap()
            .forgotten,
        0
    );
    assert_eq!(storage.head().await.unwrap().earliest, 4);
    // The records themselves are all there.
    assert_eq!(storage.count(None).await.unwrap(), 4);
}

fn network(id: &str, cidr: &str) -> Record {
    let text = |text: &str| Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    };
    let inner = Struct {
        fields: [("cidr".to_owned(), text(cidr))].into(),
    };
    let inner = Value {
        kind: Some(Kind::StructValue(inner)),
    };
    let payload = Struct {
        fields: [("$index".to_owned(), inner)].into(),
    };
    let data = Any {
        type_url: "type.googleapis.com/google.protobuf.Struct".to_owned(),
        value: payload.encode_to_vec(),
    };
    Record {
        data: Some(data),
        ..record("net", id, b"")
    }
}

async fn find(storage: &Arc<dyn Storage>, kind: &str, lookups: Vec<Lookup>) -> String {
    let found = storage.find(kind.to_owned(), lookups, 100).await.unwrap();
    found
        .into_iter()
        .map(|it| it.id)
        .collect::<Vec<_>>()
        .join(" ")
}

async fn records_are_found_by_id_network_and_field(storage: Arc<dyn Storage>) {
    let by_network = |text: &str| Lookup::Network(text.parse().unwrap());
    let by_id = |id: &str| Lookup::Id(id.to_owned());
    put(
        &storage,
        vec![
            network("ten", "10.0.0.0/8"),
            network("office", "10.1.2.0/24"),
            network("all", "0.0.0.0/0"),
            network("six", "2001:db8::/32"),
            network("host", "10.1.2.3"),
            network("mapped", "::ffff:192.168.0.0/112"),
        ],
    )
    .await;
    for (asked, found) in [
        ("10.1.2.3/32", "all host office ten"),
        ("10.1.2.0/25", "all office ten"),
        ("10.9.9.9/32", "all ten"),
        ("192.168.4.4/32", "all mapped"),
        ("2001:db8::1/128", "six"),
        ("2001:db9::1/128", ""),
    ] {
        assert_eq!(
            find(&storage, "net", vec![by_network(asked)]).await,
            found,
            "{asked}"
        );
    }
    let both = vec![
        by_id("six"),
        by_id("nothing"),
        by_network("10.9.9.9/32"),
        by_id("ten"),
    ];
    assert_eq!(find(&storage, "net", both).await, "all six ten");
    assert_eq!(find(&storage, "other", vec![by_id("six")]).await, "");
    assert_eq!(find(&storage, "net", vec![]).await, "");
    let limited = storage
        .find("net".to_owned(), vec![by_network("10.1.2.3/32")], 2)
        .await
        .unwrap();
    assert_eq!(limited.len(), 2);
}

async fn indices_follow_their_records_and_options(storage: Arc<dyn Storage>) {
    let of = |value: &str| {
        vec![Lookup::Field {
            path: "user_id".to_owned(),
            value: value.to_owned(),
        }]
    };
    let kind = session("", "").r#type;
    let set = async |fields: &[&str]| {
        let indexable_fields = fields.iter().map(|&it| it.to_owned()).collect();
        storage
            .set_options(
                kind.clone(),
                Options {
                    indexable_fields,
                    ..Options::default()
                },
            )
            .await
            .unwrap();
    };
    put(&storage, vec![session("a", "ann"), session("b", "bob")]).await;
    assert_eq!(find(&storage, &kind, of("ann")).await, "");
    set(&["user_id"]).await;
    assert_eq!(find(&storage, &kind, of("ann")).await, "a");
    put(&storage, vec![session("a", "bob"), session("c", "ann")]).await;
    assert_eq!(find(&storage, &kind, of("ann")).await, "c");
    assert_eq!(find(&storage, &kind, of("bob")).await, "a b");
    put(
        &storage,
        vec![Record {
            r#type: kind.clone(),
            ..deletion("", "b")
        }],
    )
    .await;
    assert_eq!(find(&storage, &kind, of("bob")).await, "a");
    set(&["idp_id"]).await;
    assert_eq!(find(&storage, &kind, of("bob")).await, "");
}

async fn options_are_kept(storage: Arc<dyn Storage>) {
    assert_eq!(storage.options().await.unwrap(), []);
    let options = Options {
        capacity: Some(5),
        indexable_fields: vec!["x".to_owned()],
        ttl: Some(prost_types::Duration {
            seconds: 60,
            nanos: 1,
        }),
    };
    storage
        .set_options(
            "b".to_owned(),
            Options {
                capacity: Some(0),
                ..Options::default()
            },
        )
        .await
        .unwrap();
    storage
        .set_options(
            "a".to_owned(),
            Options {
                capacity: Some(1),
                ..Options::default()
            },
        )
        .await
        .unwrap();
    storage
        .set_options("a".to_owned(), options.clone())
        .await
        .unwrap();
    storage
        .set_options("c".to_owned(), Options::default())
        .await
        .unwrap();
    let zero = Options {
        capacity: Some(0),
        ..Options::default()
    };
    assert_eq!(
        storage.options().await.unwrap(),
        [("a".to_owned(), options), ("b".to_owned(), zero)]
    );
    storage
        .set_options("b".to_owned(), Options::default())
        .await
        .unwrap();
    assert_eq!(storage.options().await.unwrap().len(), 1);
    // Options are no records.
    assert_eq!(storage.head().await.unwrap().latest, 0);
}

async fn a_lease_has_one_holder(storage: Arc<dyn Storage>) {
    let lease = async |holder| storage.lease("l", holder, DAY).await.unwrap();
    assert!(lease("one").await);
    assert!(!lease("two").await);
    assert!(
        lease("one").await,
        "whoever asks again after a lost answer has it"
    );
    storage.release("l", "two").await.unwrap();
    assert!(!lease("two").await);
    assert!(storage.lease("other", "two", DAY).await.unwrap());
    storage.release("l", "one").await.unwrap();
    assert!(lease("two").await);

    // Of many who come at once one wins.
    let race = (0..8).map(|n| {
        let storage = Arc::clone(&storage);
        async move { storage.lease("race", &n.to_string(), DAY).await.unwrap() }
    });
    assert_eq!(
        futures::future::join_all(race)
            .await
            .into_iter()
            .filter(|won| *won)
            .count(),
        1
    );
}

async fn a_lease_ends(storage: Arc<dyn Storage>) {
    assert!(
        storage
            .lease("l", "one", Duration::from_millis(300))
            .await
            .unwrap()
    );
    assert!(!storage.lease("l", "two", DAY).await.unwrap());
    crate::eventually("the lease ended", async || {
        storage.lease("l", "two", DAY).await.unwrap()
    })
    .await;
    assert!(!storage.lease("l", "one", DAY).await.unwrap());
}

async fn clear_leaves_leases_and_a_new_data_set(storage: Arc<dyn Storage>) {
    put(
        &storage,
        vec![network("a", "10.0.0.0/8"), record("t", "b", b"")],
    )
    .await;
    storage
        .set_options(
            "t".to_owned(),
            Options {
                capacity: Some(1),
                ..Options::default()
            },
        )
        .await
        .unwrap();
    assert!(storage.lease("l", "one", DAY).await.unwrap());
    let before = storage.head().await.unwrap();
    let cleared = storage.clear().await.unwrap();
    let after = storage.head().await.unwrap();
    assert_eq!(
        (cleared.old, cleared.new),
        (before.server_version, after.server_version)
    );
    assert_ne!(cleared.old, cleared.new);
    assert_eq!(storage.count(None).await.unwrap(), 0);
    assert_eq!(storage.options().await.unwrap(), []);
    assert_eq!(storage.kinds().await.unwrap(), Vec::<String>::new());
    assert_eq!(changes(&storage, None, 0).await, []);
    assert_eq!(
        find(
            &storage,
            "net",
            vec![Lookup::Network("10.0.0.1/32".parse().unwrap())]
        )
        .await,
        ""
    );
    assert!(!storage.lease("l", "two", DAY).await.unwrap());
    // Versions go on, so that no version of the old data set means something in the new one.
    assert_eq!(
        put(&storage, vec![record("t", "c", b"")]).await[0].version,
        before.latest + 1
    );
}

async fn concurrent_writers_never_share_a_version(storage: Arc<dyn Storage>) {
    let writers = (0..8).map(|writer| {
        let storage = Arc::clone(&storage);
        tokio::spawn(async move {
            let mut versions = Vec::new();
            for n in 0..10 {
                let records = vec![
                    record("t", &format!("{writer}-{n}"), b""),
                    record("t", "same", &[writer, n]),
                ];
                versions.extend(
                    put(&storage, records)
                        .await
                        .into_iter()
                        .map(|it| it.version),
                );
            }
            versions
        })
    });
    let versions = futures::future::join_all(writers)
        .await
        .into_iter()
        .flat_map(Result::unwrap);
    let versions: BTreeSet<_> = versions.collect();
    assert_eq!(versions, (1..=160).collect());
    assert_eq!(changes(&storage, None, 0).await.len(), 160);
    assert_eq!(storage.count(None).await.unwrap(), 81);
}

async fn a_large_request_is_written_at_once(storage: Arc<dyn Storage>) {
    let many = (0..3_000)
        .map(|n| record("t", &format!("{n:05}"), &[1; 200]))
        .collect();
    let written = put(&storage, many).await;
    assert_eq!(written.last().unwrap().version, 3_000);
    assert_eq!(storage.count(Some("t".to_owned())).await.unwrap(), 3_000);
}
