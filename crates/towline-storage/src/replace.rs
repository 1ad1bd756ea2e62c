//! Replaces a small file atomically.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub(crate) struct ReplaceError {
    pub(crate) path: PathBuf,
    pub(crate) during: &'static str,
    /// Whether the file has its new content, which may not be durable.
    pub(crate) renamed: bool,
    pub(crate) source: io::Error,
}

/// Writes `bytes` under another name, syncs that file, renames it to `path`, and syncs the directory. A crash leaves either
/// the old or the new file.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), ReplaceError> {
    let failed =
        |path: &Path, during, source| ReplaceError { path: path.into(), during, renamed: false, source };
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    let next = PathBuf::from(next);
    let written = File::create(&next).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|e| failed(&next, "write", e))?;
    fs::rename(&next, path).map_err(|e| failed(path, "rename", e))?;
    sync_dir(parent(path))
        .map_err(|e| ReplaceError { renamed: true, ..failed(path, "sync of the directory", e) })
}

pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all())
}
