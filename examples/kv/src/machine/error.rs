//! The errors of the store.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use towline::{Fatal, codec};

#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("the key-value store failed")]
    Fjall(#[from] fjall::Error),
    #[error("a record of the key-value store cannot be decoded")]
    Codec(#[from] codec::CodecError),
    #[error("the {0} in the key-value store is corrupt")]
    Corrupt(&'static str),
    #[error("the directory of the key-value store cannot be read or changed")]
    OpenFailed(#[source] io::Error),
    #[error(
        "the key-value store at {} cannot be opened ({cause}), and no new one can take its place because its directory is \
         a mount point; mount the volume at the data directory above it",
        path.display()
    )]
    MountPoint { path: PathBuf, cause: String },
    #[error("the snapshot cannot be read")]
    Snapshot(#[from] io::Error),
    #[error("the thread that writes to the key-value store cannot be started")]
    NoWriter(#[source] io::Error),
    #[error("the key-value store was closed while a write waited for room on the disk")]
    Closing,
    #[error("the key-value store cannot be opened while its disk is full: {0}")]
    FullDisk(String),
    #[error("the thread that writes to the key-value store panicked")]
    WriterPanicked,
    #[error(
        "the key-value store has stopped after a flush or compaction failed: its disk is full or one of its files is \
         damaged (a line of fjall in the log names the file); if the disk is full, make room: the group then starts again; \
         otherwise replace the disk and restart the node"
    )]
    Stopped,
}

impl StoreError {
    /// Whether a write found no room on the disk.
    pub(super) fn is_full_disk(&self) -> bool {
        let mut cause: Option<&(dyn Error + 'static)> = Some(self);
        while let Some(error) = cause {
            let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
            if matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) {
                return true;
            }
            cause = error.source();
        }
        matches!(self, Self::FullDisk(_))
    }
}

impl From<StoreError> for Fatal {
    fn from(error: StoreError) -> Self {
        Self::new(error)
    }
}
