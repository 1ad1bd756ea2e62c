//! File descriptors for the log.
//!
//! The log opens files while it writes: the next log file, the list of log files, its directory. A process that has no
//! descriptor left for that must not lose its log, so some are held in reserve and given up for it. When they are used
//! up as well, the log waits without an end, as it does for a slow disk, and counts its waits.
//!
//! One call is out of reach: raft-engine opens the directory of a new log file by itself, and panics if it cannot. The
//! reserve is given up right before that, in the last call that raft-engine makes here. Other threads can still take all
//! of it first. What the log does then depends on who needed the file:
//!
//! * A write. Nothing of the batch is written yet, and raft-engine goes on with the file before. The log encodes the batch
//!   again and repeats the write.
//! * A purge. raft-engine may have taken the deletions of groups out of memory to move them, and the panic loses those. A
//!   further purge could remove the files that still have them, so there is none until the log is opened again.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A new log file takes one for good, the list of log files and the directory one each for a moment. The rest is for the
/// files after that.
const HELD: usize = 8;
const RETRY: Duration = Duration::from_millis(20);
const OPEN_TIME: Duration = Duration::from_secs(10);

/// `EMFILE` of the process and `ENFILE` of the system: the same numbers on all systems this runs on.
const SHORTAGES: [i32; 2] = [24, 23];

/// Whether the process or the system has no file descriptor left.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|number| SHORTAGES.contains(&number))
}

/// Whether a panic of raft-engine shows such an error.
pub(crate) fn is_shortage_panic(text: &str) -> bool {
    SHORTAGES.iter().any(|number| text.contains(&format!("Os {{ code: {number},")))
}

/// Opens a snapshot. A lack of descriptors is waited for, though not for ever: a restore that fails ends its group, while
/// a transfer may as well be tried again.
pub(crate) fn open_in_time(path: &Path) -> io::Result<File> {
    let until = Instant::now() + OPEN_TIME;
    loop {
        match File::open(path) {
            Err(error) if is_shortage(&error) && Instant::now() < until => thread::sleep(RETRY),
            done => return done,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Reserve {
    /// Opened again and again to hold descriptors; empty until [`fill`](Self::fill) names it.
    dir: Mutex<PathBuf>,
    held: Mutex<Vec<File>>,
    /// The new log files for which it is given up now.
    given_up: Mutex<BTreeSet<PathBuf>>,
    waits: AtomicU64,
}

impl Reserve {
    /// Holds descriptors from now on, by opening `dir`.
    pub(crate) fn fill(&self, dir: &Path) {
        *lock(&self.dir) = dir.into();
        self.refill(dir);
    }

    /// Holds as many as there should be, if the system gives them. Called before each write of `file`. The reserve is
    /// not taken back while the library needs it for another file.
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

    /// Does what opens files, and may be done again. Gives up held descriptors for it, then waits for others to do so.
    pub(crate) fn run<T>(&self, path: &Path, mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut waits = false;
        loop {
            match open() {
                // A start fails instead.
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

    /// How many pauses of [`RETRY`] there were.
    pub(crate) fn waits(&self) -> u64 {
        self.waits.load(Ordering::Relaxed)
    }

    /// The library is done with what it was given up for, or will not do it.
    pub(crate) fn take_back(&self) {
        lock(&self.given_up).clear();
    }

    /// The library found none, although the reserve was given up for it.
    pub(crate) fn lost(&self) {
        tracing::warn!("file descriptors held for the log were taken by other threads");
        self.waits.fetch_add(1, Ordering::Relaxed);
        thread::sleep(RETRY);
    }

    /// Makes room for what the library opens by itself next to finish the new log file `file`, and could not do without. It
    /// is held again with the next write of that file, or the next one after [`take_back`](Self::take_back).
    pub(crate) fn give_up(&self, file: &Path) {
        lock(&self.given_up).insert(file.into());
        let dir = lock(&self.dir).clone();
        // There is at least one, if not all that are held.
        let _ = self.run(&dir, || File::open(&dir));
        lock(&self.held).clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn what_is_held_is_given_up_first_and_then_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::default();
        let failed = reserve.run(dir.path(), || Err::<(), _>(shortage()));
        assert!(is_shortage(&failed.unwrap_err()), "nothing is waited for before the log is open");
        reserve.fill(dir.path());
        let tries = Cell::new(0);
        let open = || {
            tries.set(tries.get() + 1);
            if tries.get() <= HELD + 3 { Err(shortage()) } else { Ok(lock(&reserve.held).len()) }
        };
        assert_eq!(reserve.run(dir.path(), open).unwrap(), 0, "all were given up");
        assert_eq!(reserve.waits(), 3, "only what is not held is waited for");
        let (new, other) = (Path::new("new"), Path::new("other"));
        reserve.refill(other);
        assert_eq!(lock(&reserve.held).len(), HELD);
        reserve.give_up(new);
        reserve.refill(other);
        assert_eq!(lock(&reserve.held).len(), 0, "the library has not opened what it needs yet");
        reserve.refill(new);
        assert_eq!(lock(&reserve.held).len(), HELD);
        reserve.give_up(new);
        reserve.lost();
        reserve.refill(other);
        assert_eq!(lock(&reserve.held).len(), 0, "the library repeats the write of the same file");
        reserve.refill(new);
        assert_eq!(lock(&reserve.held).len(), HELD);
        let other = reserve.run(dir.path(), || Err::<(), _>(io::Error::from_raw_os_error(5)));
        assert_eq!(other.unwrap_err().raw_os_error(), Some(5), "other errors are not waited for");
    }
}
