//! Replaces a small file as a whole, across a crash.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What went wrong, with which file.
#[derive(Debug)]
pub(crate) struct ReplaceError {
    pub(crate) path: PathBuf,
    pub(crate) during: &'static str,
    pub(crate) source: io::Error,
}

/// Writes `bytes` under another name, syncs that file, renames it to `path`, and syncs the directory. A crash leaves the
/// old file or the new one.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), ReplaceError> {
    let failed = |path: &Path, during, source| ReplaceError { path: path.into(), during, source };
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    let next = PathBuf::from(next);
    let written = File::create(&next).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|e| failed(&next, "write", e))?;
    fs::rename(&next, path).map_err(|e| failed(path, "rename", e))?;
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|e| failed(path, "sync of the directory", e))
}
