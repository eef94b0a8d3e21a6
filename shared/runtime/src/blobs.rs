//! The object store for what is too large for a queue message or a row. What was put is on the disk when `put` returns:
//! a webhook is answered 200 on the strength of it.
//!
//! An object's age counts from when it was last *put*, also when it was there already: whoever has just put one can rely
//! on it for as long as a new one, whatever is being cleared away at that moment. For that, putting and deleting exclude
//! each other by a lock on a file of the store, which holds between processes too.

use crate::config::BlobsPlace;
use bytes::Bytes;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use uuid::Uuid;

/// The file whose lock keeps putting and deleting apart. No key begins with a dot.
const LOCK: &str = ".lock";

/// The object store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Blobs {
    root: Arc<PathBuf>,
}

/// Something could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// There is nothing under this key.
    #[error("there is no object {0}")]
    Missing(String),
    /// A key that could lead out of the store.
    #[error("{0:?} is not a key: use segments of a-z, A-Z, 0-9, `.`, `-` and `_`, separated by /")]
    BadKey(String),
    /// The disk's word.
    #[error("object store: {0}")]
    Io(#[from] io::Error),
}

impl Blobs {
    /// Opens the store; makes its folder if there is none.
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(place: &BlobsPlace) -> Result<Self, BlobError> {
        let BlobsPlace::Folder(root) = place;
        fs::create_dir_all(root)?;
        Ok(Self { root: Arc::new(root.clone()) })
    }

    /// Stores `bytes` under `key` and returns once they survive a power cut. Under one key only ever the same bytes are
    /// put (keys hold a hash), so one that is there already is only made young again.
    /// # Errors
    /// When the key is none, or the disk refuses.
    pub async fn put(&self, key: &str, bytes: Bytes) -> Result<(), BlobError> {
        let (root, path) = (self.root.clone(), self.path_of(key)?);
        off_thread(move || {
            let lock = lock_file(&root)?;
            lock.lock_shared()?;
            put(&path, &bytes)
        })
        .await
    }

    /// Keys right below `folder` that were last put longer ago than `age`, in no order.
    /// # Errors
    /// When `folder` is no key, or the disk refuses. One that is not there holds nothing.
    pub async fn older_than(&self, folder: &str, age: Duration) -> Result<Vec<String>, BlobError> {
        let (path, folder) = (self.path_of(folder)?, folder.to_owned());
        off_thread(move || {
            let entries = match fs::read_dir(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                entries => entries?,
            };
            let mut old = Vec::new();
            for entry in entries {
                let entry = entry?;
                let name = entry.file_name();
                // Not valid as a key: half written, or not ours.
                let Some(name) = name.to_str().filter(|name| is_plain(name)) else { continue };
                match is_older(&entry.path(), age) {
                    Ok(true) => old.push(format!("{folder}/{name}")),
                    Ok(false) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(old)
        })
        .await
    }

    /// Deletes what is under `key` unless it was put within `age`. `false`: it was, or there was nothing.
    /// # Errors
    /// When the key is none, or the disk refuses.
    pub async fn delete_if_older(&self, key: &str, age: Duration) -> Result<bool, BlobError> {
        let (root, path) = (self.root.clone(), self.path_of(key)?);
        off_thread(move || {
            let lock = lock_file(&root)?;
            lock.lock()?;
            let deleted = match is_older(&path, age) {
                Ok(true) => fs::remove_file(&path).map(|()| true),
                other => other,
            };
            match deleted {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                deleted => Ok(deleted?),
            }
        })
        .await
    }

    /// The bytes under `key`.
    /// # Errors
    /// [`BlobError::Missing`] when there are none.
    pub async fn get(&self, key: &str) -> Result<Bytes, BlobError> {
        let path = self.path_of(key)?;
        let key = key.to_owned();
        off_thread(move || match fs::read(path) {
            Ok(bytes) => Ok(Bytes::from(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(BlobError::Missing(key)),
            Err(error) => Err(error.into()),
        })
        .await
    }

    fn path_of(&self, key: &str) -> Result<PathBuf, BlobError> {
        if key.len() <= 500 && key.split('/').all(is_plain) {
            Ok(self.root.join(key))
        } else {
            Err(BlobError::BadKey(key.to_owned()))
        }
    }
}

/// Whether it can be a segment of a key.
fn is_plain(segment: &str) -> bool {
    !segment.is_empty()
        && !segment.starts_with('.')
        && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
}

/// The lock is on what was opened, not on the process: everybody opens it anew, and closing it lets go.
fn lock_file(root: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).open(root.join(LOCK))
}

/// By the clock of files, which is the machine's: a clock that was set for a demonstration moves no file.
#[expect(clippy::disallowed_methods, reason = "it is held against times that the file system wrote")]
fn file_clock() -> SystemTime {
    SystemTime::now()
}

fn is_older(path: &Path, age: Duration) -> io::Result<bool> {
    let put = fs::metadata(path)?.modified()?;
    // One from the future is young.
    Ok(file_clock().duration_since(put).is_ok_and(|since| since > age))
}

/// Makes an object that is there as young as a new one, and that, too, survives a power cut.
fn renew(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    file.set_modified(file_clock())?;
    file.sync_all()
}

async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
) -> Result<T, BlobError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| io::Error::other(error.to_string()))?
}

fn put(path: &Path, bytes: &[u8]) -> Result<(), BlobError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    if !folder.is_dir() {
        fs::create_dir_all(folder)?;
        if let Some(above) = folder.parent() {
            sync_folder(above)?;
        }
    }
    // Whatever keeps it from being made young, a new one in its place is young.
    if renew(path).is_err() {
        let unfinished = folder.join(format!(".{}", Uuid::now_v7()));
        let written = write_synced(&unfinished, bytes).and_then(|()| fs::rename(&unfinished, path));
        if let Err(error) = written {
            let _ = fs::remove_file(&unfinished);
            return Err(error.into());
        }
    }
    // Also for a file that was there: whoever put it may have died between renaming it and this.
    sync_folder(folder)?;
    Ok(())
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    // "" is the parent of a relative name of one segment.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder)?.sync_all()
}
