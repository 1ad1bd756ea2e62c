//! File descriptors for the log.
//!
//! While it writes, the log opens files: the next log file, the list of log files, its directory. A process without free
//! descriptors must not lose its log. The log therefore holds some in reserve and frees them for these calls. When the
//! reserve is empty too, the log waits without a limit, as for a slow disk, and counts its waits.
//!
//! raft-engine itself opens the directory of a new log file, and panics if it cannot. The log frees the reserve right
//! before that, in raft-engine's last call of this file system. Other threads can still take the whole reserve first. What
//! happens then depends on the operation:
//!
//! * In a write, nothing of the batch is written yet, and raft-engine still has the previous file. The log encodes the
//!   batch again and repeats the write.
//! * In a purge, raft-engine may have taken the deletions of groups out of memory to move them, and the panic loses them.
//!   Another purge could remove the files that still hold them. So the log purges nothing until it is opened again.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::sync::lock;

/// Descriptors in reserve. A new log file keeps one; the list of log files and the directory need one each for a moment. The
/// rest is for later files.
const HELD: usize = 8;
const RETRY: Duration = Duration::from_millis(20);
const OPEN_TIME: Duration = Duration::from_secs(10);

/// `EMFILE` of the process and `ENFILE` of the system, the same on all supported systems.
const SHORTAGES: [i32; 2] = [24, 23];

pub(crate) fn is_shortage(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|number| SHORTAGES.contains(&number))
}

/// Whether the message of raft-engine's panic shows a shortage of descriptors.
pub(crate) fn is_shortage_panic(text: &str) -> bool {
    SHORTAGES.iter().any(|number| text.contains(&format!("Os {{ code: {number},")))
}

/// Opens a snapshot. Waits up to [`OPEN_TIME`] for a descriptor, because a failed restore ends its group. The wait is bounded,
/// because a failed transfer is repeated.
pub(crate) fn open_in_time(path: &Path) -> io::Result<File> {
    let until = Instant::now() + OPEN_TIME;
    loop {
        match File::open(path) {
            Err(error) if is_shortage(&error) && Instant::now() < until => thread::sleep(RETRY),
            done => return done,
        }
    }
}

/// The descriptors in reserve: see the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Reserve {
    /// Opened several times to hold descriptors; empty until [`fill`](Self::fill).
    dir: Mutex<PathBuf>,
    held: Mutex<Vec<File>>,
    /// The new log files for which the reserve is free now.
    given_up: Mutex<BTreeSet<PathBuf>>,
    waits: AtomicU64,
}

impl Reserve {
    /// Starts to hold descriptors, by opening `dir`.
    pub(crate) fn fill(&self, dir: &Path) {
        *lock(&self.dir) = dir.into();
        self.refill(dir);
    }

    /// Fills the reserve again as far as possible. Called before each write of `file`. Does nothing while raft-engine needs
    /// the reserve for another file.
    pub(crate) fn refill(&self, file: &Path) {
        let mut given_up = lock(&self.given_up);
        given_up.remove(file);
        if !given_up.is_empty() {
            return;
        }
        let mut held = lock(&self.held);
        if held.len() >= HELD {
            return;
        }
        let dir = lock(&self.dir).clone();
        while held.len() < HELD
            && let Ok(file) = File::open(&dir)
        {
            held.push(file);
        }
    }

    /// Calls `open`, which opens files and can be repeated. On a shortage it frees descriptors of the reserve, then waits.
    pub(crate) fn run<T>(&self, path: &Path, mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut waits = false;
        loop {
            match open() {
                // While the log opens, a shortage is an error instead.
                Err(error) if is_shortage(&error) && !lock(&self.dir).as_os_str().is_empty() => {
                    if lock(&self.held).pop().is_some() {
                        continue;
                    }
                    if !waits {
                        waits = true;
                        tracing::error!(file = %path.display(), %error, "the log waits for a file descriptor");
                    }
                    self.waits.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(RETRY);
                }
                done => {
                    if waits {
                        tracing::info!(file = %path.display(), "the log has a file descriptor again");
                    }
                    return done;
                }
            }
        }
    }

    /// The number of pauses of [`RETRY`].
    pub(crate) fn waits(&self) -> u64 {
        self.waits.load(Ordering::Relaxed)
    }

    /// Ends every [`give_up`](Self::give_up): raft-engine no longer needs the reserve.
    pub(crate) fn take_back(&self) {
        lock(&self.given_up).clear();
    }

    /// Counts a shortage that raft-engine met although the reserve was free, and pauses.
    pub(crate) fn lost(&self) {
        tracing::warn!("file descriptors held for the log were taken by other threads");
        self.waits.fetch_add(1, Ordering::Relaxed);
        thread::sleep(RETRY);
    }

    /// Frees the reserve for raft-engine, which next opens the directory of the new log file `file`. The next write of that
    /// file, or the next write after [`take_back`](Self::take_back), fills the reserve again.
    pub(crate) fn give_up(&self, file: &Path) {
        lock(&self.given_up).insert(file.into());
        let dir = lock(&self.dir).clone();
        // Waits until at least one descriptor is free.
        let _ = self.run(&dir, || File::open(&dir));
        lock(&self.held).clear();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn shortage() -> io::Error {
        io::Error::from_raw_os_error(24)
    }

    #[test]
    fn a_panic_without_descriptors_is_recognised() {
        fn failed(number: i32) -> io::Result<()> {
            Err(io::Error::from_raw_os_error(number))
        }
        let panic_of = |number| {
            let panic = std::panic::catch_unwind(|| failed(number).unwrap()).unwrap_err();
            crate::reader::panic_text(&*panic)
        };
        assert!(is_shortage_panic(&panic_of(24)) && is_shortage_panic(&panic_of(23)));
        assert!(!is_shortage_panic(&panic_of(5)) && !is_shortage_panic("code 24"));
    }

    #[test]
    fn a_shortage_frees_the_reserve_first_and_then_waits() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::default();
        let failed = reserve.run(dir.path(), || Err::<(), _>(shortage()));
        assert!(is_shortage(&failed.unwrap_err()), "no wait before the log is open");
        reserve.fill(dir.path());
        let tries = Cell::new(0);
        let open = || {
            tries.set(tries.get() + 1);
            if tries.get() <= HELD + 3 { Err(shortage()) } else { Ok(lock(&reserve.held).len()) }
        };
        assert_eq!(reserve.run(dir.path(), open).unwrap(), 0, "the reserve is empty");
        assert_eq!(reserve.waits(), 3, "no wait while the reserve has descriptors");
        let (new, other) = (Path::new("new"), Path::new("other"));
        reserve.refill(other);
        assert_eq!(lock(&reserve.held).len(), HELD);
        reserve.give_up(new);
        reserve.refill(other);
        assert_eq!(lock(&reserve.held).len(), 0, "raft-engine has not opened the directory yet");
        reserve.refill(new);
        assert_eq!(lock(&reserve.held).len(), HELD);
        reserve.give_up(new);
        reserve.lost();
        reserve.refill(other);
        assert_eq!(lock(&reserve.held).len(), 0, "raft-engine repeats the write of the same file");
        reserve.refill(new);
        assert_eq!(lock(&reserve.held).len(), HELD);
        let other = reserve.run(dir.path(), || Err::<(), _>(io::Error::from_raw_os_error(5)));
        assert_eq!(other.unwrap_err().raw_os_error(), Some(5), "no wait for other errors");
    }
}
