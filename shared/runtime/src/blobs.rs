//! The object store for what is too large for a queue message or a row. What was put is on the disk when `put` returns:
//! a webhook is answered 200 on the strength of it.

use crate::config::BlobsPlace;
use bytes::Bytes;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

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
    /// put (keys hold a hash), so a key that is there already is left alone.
    /// # Errors
    /// When the key is none, or the disk refuses.
    pub async fn put(&self, key: &str, bytes: Bytes) -> Result<(), BlobError> {
        let path = self.path_of(key)?;
        off_thread(move || put(&path, &bytes)).await
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
        let plain = |segment: &str| {
            !segment.is_empty()
                && !segment.starts_with('.')
                && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
        };
        if key.len() <= 500 && key.split('/').all(plain) {
            Ok(self.root.join(key))
        } else {
            Err(BlobError::BadKey(key.to_owned()))
        }
    }
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
    if !path.exists() {
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
