//! What is put can be got, also by another process, and no key leads out of the store.

use bytes::Bytes;
use runtime::blobs::{BlobError, Blobs};
use runtime::config::BlobsPlace;
use std::path::Path;

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
