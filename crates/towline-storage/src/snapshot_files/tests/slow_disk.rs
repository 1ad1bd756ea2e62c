//! Writing continues during a slow sync, up to a bound.

use std::sync::Condvar;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::*;

const DEADLINE: Duration = Duration::from_secs(30);

/// A disk whose syncs of files wait until they are released.
#[derive(Default)]
struct SlowDisk {
    held: Mutex<bool>,
    let_go: Condvar,
    written: Mutex<usize>,
    more_written: Condvar,
}

impl Hook for SlowDisk {
    fn before(&self, op: Op, path: &Path) -> io::Result<()> {
        if op == Op::Sync && path.is_file() {
            let held = self.held.lock().unwrap();
            let (_held, waited) = self.let_go.wait_timeout_while(held, DEADLINE, |held| *held).unwrap();
            assert!(!waited.timed_out(), "the test did not release the sync");
        }
        Ok(())
    }

    fn room(&self, _: &Path, bytes: usize) -> usize {
        *self.written.lock().unwrap() += bytes;
        self.more_written.notify_all();
        bytes
    }
}

impl SlowDisk {
    /// Whether `bytes` are written by the deadline.
    fn writes(&self, bytes: usize, until: Instant) -> bool {
        let written = self.written.lock().unwrap();
        let left = until.saturating_duration_since(Instant::now());
        let (written, _) =
            self.more_written.wait_timeout_while(written, left, |written| *written < bytes).unwrap();
        *written >= bytes
    }

    fn let_go(&self) {
        *self.held.lock().unwrap() = false;
        self.let_go.notify_all();
    }
}

/// Writing used to wait for each sync. On a shared disk, where a sync sometimes takes a tenth of a second, a transfer lost a
/// fifth of its time.
#[test]
fn writing_continues_during_a_slow_sync_up_to_the_bound() {
    let (first, bound) = (writer::SYNC_BYTES as usize, writer::BEHIND_SYNC_BYTES_MAX as usize);
    let disk = Arc::new(SlowDisk::default());
    let (_dir, files) = hooked(&disk);
    let mut writer = files.create(&head(1)).unwrap();
    *disk.held.lock().unwrap() = true;
    let (done, finished) = channel();
    let writing = std::thread::spawn(move || {
        let chunk = body(CHUNK, 1);
        (0..(first + bound) / CHUNK + 1).for_each(|_| writer.write_all(&chunk).unwrap());
        done.send(()).unwrap();
        writer.verify(None).unwrap();
        writer.commit().unwrap()
    });
    assert!(disk.writes(first + bound, Instant::now() + DEADLINE), "writing stopped before the bound");
    // The next chunk waits. No event shows this, so the test waits for a while.
    assert_eq!(finished.recv_timeout(Duration::from_millis(300)), Err(RecvTimeoutError::Timeout));
    disk.let_go();
    finished.recv_timeout(DEADLINE).unwrap();
    let meta = writing.join().unwrap();
    assert_eq!(meta.length, (first + bound + CHUNK) as u64);
}
