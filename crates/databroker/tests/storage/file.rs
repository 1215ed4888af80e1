//! What only a file has to promise: that it is still there the next time.

use std::sync::Arc;

use postern_common::crypto::keys::SecretKey;
use postern_databroker::storage::local::{Local, OpenError};
use postern_databroker::storage::sealed::Payloads;
use postern_databroker::storage::{RecordKey, Storage, Tidied};

use crate::contract::{put, record};

fn open(directory: &std::path::Path, keys: &[&SecretKey]) -> Result<Arc<dyn Storage>, OpenError> {
    let keys: Vec<_> = keys.iter().map(|&key| key.clone()).collect();
    Ok(Arc::new(Local::open(
        directory,
        Payloads::sealed(&keys, &[]),
    )?))
}

#[tokio::test]
async fn s19_a_file_outlives_its_process_and_tells_nothing_without_the_key() {
    let directory = tempfile::tempdir().unwrap();
    let (key, other) = (SecretKey::random(), SecretKey::random());
    let storage = open(directory.path(), &[&key]).unwrap();
    let secret = b"a refresh token that nobody may read";
    let written = put(&storage, vec![record("t", "a", secret)])
        .await
        .remove(0);
    let head = storage.head().await.unwrap();
    assert!(matches!(
        open(directory.path(), &[&key]),
        Err(OpenError::InUse { .. })
    ));
    drop(storage);

    let bytes = std::fs::read(directory.path().join("postern.redb")).unwrap();
    assert!(!bytes.windows(10).any(|it| it == &secret[..10]));
    let refused = open(directory.path(), &[&other]);
    assert!(matches!(refused, Err(OpenError::Keys { .. })));

    // Nothing was lost by the attempt.
    let storage = open(directory.path(), &[&key]).unwrap();
    assert_eq!(storage.head().await.unwrap(), head);
    assert_eq!(
        storage.get(&RecordKey::of(&written)).await.unwrap(),
        Some(written)
    );
}

#[tokio::test]
async fn s19_after_a_change_of_keys_everything_is_sealed_anew() {
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (SecretKey::random(), SecretKey::random());
    let storage = open(directory.path(), &[&old]).unwrap();
    let written = put(
        &storage,
        (0..5).map(|n| record("t", &n.to_string(), b"x")).collect(),
    )
    .await;
    drop(storage);

    let storage = open(directory.path(), &[&new, &old]).unwrap();
    let day = std::time::Duration::from_secs(86_400);
    assert_ne!(storage.tidy(day).await.unwrap().resealed, 0);
    crate::eventually("nothing is left", async || {
        storage.tidy(day).await.unwrap() == Tidied::default()
    })
    .await;
    drop(storage);

    let storage = open(directory.path(), &[&new]).unwrap();
    for record in &written {
        assert_eq!(
            storage.get(&RecordKey::of(record)).await.unwrap().as_ref(),
            Some(record)
        );
    }
    assert_eq!(storage.changes(None, 0, 10).await.unwrap().records, written);
}
