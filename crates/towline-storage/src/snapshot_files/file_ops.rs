//! Single operations on snapshot files. Tests can watch each one and make it fail. A failure ends one writer; unlike a
//! failure of the log's disk it poisons nothing.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, IoSlice, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use crate::disk::{Hook, Op, free_bytes};

#[derive(Clone, Default)]
pub(crate) struct FileOps {
    hook: Option<Arc<dyn Hook>>,
}

impl fmt::Debug for FileOps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FileOps")
    }
}

impl FileOps {
    #[cfg(any(test, feature = "faults"))]
    pub(crate) fn with_hook(hook: Arc<dyn Hook>) -> Self {
        Self { hook: Some(hook) }
    }

    fn run<T>(&self, op: Op, path: &Path, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match &self.hook {
            None => act(),
            Some(hook) => hook.before(op, path).and_then(|()| act()).inspect(|_| hook.after(op, path)),
        }
    }

    /// The free bytes of the file system of `dir`.
    pub(super) fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        free_bytes(self.hook.as_deref(), dir)
    }

    /// Creates an empty file. Replaces an existing one.
    pub(super) fn create(&self, path: &Path) -> io::Result<File> {
        let options = || File::options().read(true).write(true).create(true).truncate(true).open(path);
        self.run(Op::Create, path, options)
    }

    /// Writes the parts one after the other, without a copy, and in one system call if possible.
    pub(super) fn write_at<const N: usize>(
        &self,
        file: &mut File,
        path: &Path,
        at: u64,
        parts: [&[u8]; N],
    ) -> io::Result<()> {
        file.seek(SeekFrom::Start(at))?;
        let bytes = parts.iter().map(|part| part.len()).sum();
        let room = self.hook.as_ref().map_or(bytes, |hook| hook.room(path, bytes));
        self.run(Op::Write, path, || {
            if room >= bytes {
                return write_parts(file, parts);
            }
            let fits = parts.concat();
            file.write_all(fits.get(..room).unwrap_or(&fits)).and(Err(io::ErrorKind::StorageFull.into()))
        })
    }

    /// Syncs the data, and only the metadata that reading them needs.
    pub(super) fn sync_data(&self, file: &File, path: &Path) -> io::Result<()> {
        self.run(Op::Sync, path, || file.sync_data())
    }

    pub(super) fn sync(&self, file: &File, path: &Path) -> io::Result<()> {
        self.run(Op::Sync, path, || file.sync_all())
    }

    pub(super) fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.run(Op::Sync, dir, || File::open(dir)?.sync_all())
    }

    pub(super) fn truncate(&self, file: &File, path: &Path, bytes: u64) -> io::Result<()> {
        self.run(Op::Truncate, path, || file.set_len(bytes))
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.run(Op::Rename, to, || fs::rename(from, to))
    }

    /// Removes a file. A missing file is not an error.
    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        self.run(Op::Delete, path, || match fs::remove_file(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        })
    }
}

fn write_parts<const N: usize>(file: &mut File, parts: [&[u8]; N]) -> io::Result<()> {
    let mut slices = parts.map(IoSlice::new);
    let mut left = slices.as_mut_slice();
    IoSlice::advance_slices(&mut left, 0); // skips empty slices
    while !left.is_empty() {
        match file.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
