//! A disk of bounded size for one node: a tmpfs at its data directory, which is made smaller while the disk is full.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Result;

/// Room for the log before it is purged, the store, a snapshot, and what the node keeps free. Memory is used only for
/// data.
const DISK_BYTES: u64 = 3 << 30;
/// A node may write between the look at its data and the change of size.
const ATTEMPTS_MAX: u32 = 20;
/// The size of a tmpfs is a number of pages.
const PAGE_BYTES: u64 = 64 << 10;

/// Whether this process may mount.
pub(super) fn can_mount() -> bool {
    tempfile::tempdir().is_ok_and(|directory| Room::mount(directory.path()).is_ok())
}

/// The disk of one node. Its drop takes the disk away, with all data.
pub(super) struct Room {
    directory: PathBuf,
}

impl Room {
    /// Makes the directory as well.
    pub(super) fn mount(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let size = format!("size={DISK_BYTES}");
        command("mount", &["-t", "tmpfs", "-o", &size, "tmpfs"], directory)?;
        Ok(Self { directory: directory.to_path_buf() })
    }

    /// Leaves that many free bytes, or a few less.
    pub(super) fn fill(&self, left: u64) -> Result<FullDisk> {
        let mut attempt = 0;
        loop {
            let full = FullDisk { directory: self.directory.clone() };
            let used = fs4::total_space(&self.directory)?.saturating_sub(fs4::free_space(&self.directory)?);
            // Below the used space the kernel refuses; a node that writes meanwhile takes part of what is left.
            let size = (used + left).next_multiple_of(PAGE_BYTES);
            match full.resize(size) {
                Err(error) if attempt == ATTEMPTS_MAX => return Err(error),
                Err(_) => attempt += 1,
                Ok(()) => return Ok(full),
            }
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // Lazily: a process that still ends must not keep it.
        let _ = command("umount", &["--lazy"], &self.directory);
    }
}

/// A disk without room. Its drop makes room.
pub(super) struct FullDisk {
    directory: PathBuf,
}

impl FullDisk {
    fn resize(&self, bytes: u64) -> Result<()> {
        command("mount", &["-o", &format!("remount,size={bytes}")], &self.directory)
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        let _ = self.resize(DISK_BYTES);
    }
}

fn command(program: &str, arguments: &[&str], directory: &Path) -> Result<()> {
    let done = Command::new(program).args(arguments).arg(directory).stdin(Stdio::null()).output()?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    Err(format!("{program} {}: {}", directory.display(), said.trim()).into())
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn a_full_disk_takes_nothing_until_the_fault_ends() {
        if !can_mount() {
            eprintln!("skipped: this process cannot mount");
            return;
        }
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("disk");
        let room = Room::mount(&directory).unwrap();
        let write = |bytes: usize| fs::write(directory.join("file"), vec![1; bytes]).map_err(|e| e.kind());
        write(1 << 20).unwrap();
        let full = room.fill(1 << 20).unwrap();
        assert_eq!(write(8 << 20), Err(ErrorKind::StorageFull));
        drop(full);
        write(8 << 20).unwrap();
        drop(room);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    }
}
