//! What is put can be got, also by another process, and no key leads out of the store.

use bytes::Bytes;
use runtime::blobs::{BlobError, Blobs};
use runtime::config::BlobsPlace;
use std::path::Path;
use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn open(folder: &Path) -> Blobs {
    Blobs::open(&BlobsPlace::Folder(folder.join("media"))).unwrap()
}

#[tokio::test]
async fn what_was_put_is_there_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let body = Bytes::from((0..=255u8).cycle().take(3_000_000).collect::<Vec<_>>());
    open(folder.path()).put("raw/0a1b", body.clone()).await.unwrap();
    assert_eq!(open(folder.path()).get("raw/0a1b").await.unwrap(), body);
}

#[tokio::test]
async fn putting_twice_and_at_once_is_fine_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = open(folder.path());
    let put = || blobs.put("raw/0a1b", Bytes::from_static(b"the same bytes"));
    let (a, b, c) = tokio::join!(put(), put(), put());
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    put().await.unwrap();
    let files = std::fs::read_dir(folder.path().join("media/raw")).unwrap().map(|file| file.unwrap().file_name());
    assert_eq!(files.collect::<Vec<_>>(), ["0a1b"]);
}

#[tokio::test]
async fn what_is_not_there_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let error = open(folder.path()).get("raw/none").await.unwrap_err();
    assert!(matches!(error, BlobError::Missing(key) if key == "raw/none"));
}

#[tokio::test]
async fn no_key_leads_out_of_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = open(folder.path());
    for key in ["", "/etc/passwd", "../x", "raw/../../x", "raw//x", "raw/.hidden", "raw/x\0", "raw/a b", "raw\\x"] {
        assert!(matches!(blobs.put(key, Bytes::new()).await, Err(BlobError::BadKey(_))), "{key:?}");
        assert!(matches!(blobs.get(key).await, Err(BlobError::BadKey(_))), "{key:?}");
    }
}

#[tokio::test]
async fn a_store_that_cannot_be_written_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = open(folder.path());
    // A file where a folder would have to be: refused for every user, root included.
    std::fs::write(folder.path().join("media/raw"), b"").unwrap();
    assert!(matches!(blobs.put("raw/0a1b", Bytes::from_static(b"x")).await, Err(BlobError::Io(_))));
}

/// As if it had been put so long ago.
fn age(folder: &Path, key: &str, by: Duration) {
    let file = std::fs::File::open(folder.join("media").join(key)).unwrap();
    #[expect(clippy::disallowed_methods, reason = "files are as old as the machine's clock says")]
    file.set_modified(SystemTime::now() - by).unwrap();
}

#[tokio::test]
async fn what_is_old_can_be_listed_and_deleted_and_what_was_put_again_is_young() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = open(folder.path());
    assert_eq!(blobs.older_than("raw", DAY).await.unwrap(), [""; 0], "no folder yet");
    for key in ["raw/old", "raw/again", "raw/young"] {
        blobs.put(key, Bytes::from_static(b"x")).await.unwrap();
    }
    age(folder.path(), "raw/old", 2 * DAY);
    age(folder.path(), "raw/again", 2 * DAY);
    std::fs::write(folder.path().join("media/raw/.unfinished"), b"x").unwrap();
    let mut old = blobs.older_than("raw", DAY).await.unwrap();
    old.sort();
    assert_eq!(old, ["raw/again", "raw/old"]);
    assert_eq!(blobs.older_than("raw", 3 * DAY).await.unwrap(), [""; 0]);

    blobs.put("raw/again", Bytes::from_static(b"x")).await.unwrap();
    for (key, deleted) in [("raw/old", true), ("raw/again", false), ("raw/young", false), ("raw/none", false)] {
        assert_eq!(blobs.delete_if_older(key, DAY).await.unwrap(), deleted, "{key}");
    }
    assert!(matches!(blobs.get("raw/old").await, Err(BlobError::Missing(_))));
    assert!(!blobs.delete_if_older("raw/old", DAY).await.unwrap(), "it is gone, which is fine");
    assert_eq!(blobs.get("raw/again").await.unwrap(), "x");
    assert!(matches!(blobs.delete_if_older("../x", DAY).await, Err(BlobError::BadKey(_))));
    assert!(matches!(blobs.older_than("..", DAY).await, Err(BlobError::BadKey(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_just_put_is_there_whoever_deletes_at_the_same_moment() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..300 {
        let key = format!("raw/{round}");
        open(folder.path()).put(&key, Bytes::from_static(b"x")).await.unwrap();
        age(folder.path(), &key, 2 * DAY);
        // Two processes, as it were.
        let (putting, deleting) = (open(folder.path()), open(folder.path()));
        let (one, other) = (key.clone(), key.clone());
        let put = tokio::spawn(async move { putting.put(&one, Bytes::from_static(b"x")).await });
        let delete = tokio::spawn(async move { deleting.delete_if_older(&other, DAY).await });
        put.await.unwrap().unwrap();
        // Either is right: it was deleted before it was put, or left alone after.
        delete.await.unwrap().unwrap();
        assert_eq!(open(folder.path()).get(&key).await.unwrap(), "x", "round {round}");
    }
}
