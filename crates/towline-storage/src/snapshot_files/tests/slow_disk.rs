//! A sync that takes long: writing goes on behind it, so far and no further.

use std::sync::Condvar;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::*;

const DEADLINE: Duration = Duration::from_secs(30);

/// Its first sync of a file ends when it is let go.
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
            assert!(!waited.timed_out(), "nobody let the sync go");
        }
        Ok(())
    }

    fn after(&self, _: Op, _: &Path) {}

    fn room(&self, _: &Path, bytes: usize) -> usize {
        *self.written.lock().unwrap() += bytes;
        self.more_written.notify_all();
        bytes
    }
}

impl SlowDisk {
    /// Whether so many bytes are written by then.
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

/// Writing used to wait for each sync before it began the next, so that a disk which now and then takes a tenth of a
/// second for one, as every shared disk does, cost a transfer a fifth of its time.
#[test]
fn writing_goes_on_behind_a_slow_sync_up_to_the_bound() {
    let (first, bound) = (writer::SYNC_BYTES as usize, writer::BEHIND_SYNC_BYTES_MAX as usize);
    let (dir, disk) = (TempDir::new().unwrap(), Arc::new(SlowDisk::default()));
    let files = open_with(dir.path(), FileOps::with_hook(disk.clone()));
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
    assert!(disk.writes(first + bound, Instant::now() + DEADLINE), "it waited before the bound");
    // The next chunk is not taken: for a while, since nothing tells of what does not happen.
    assert_eq!(finished.recv_timeout(Duration::from_millis(300)), Err(RecvTimeoutError::Timeout));
    disk.let_go();
    finished.recv_timeout(DEADLINE).unwrap();
    let meta = writing.join().unwrap();
    assert_eq!(meta.length, (first + bound + CHUNK) as u64);
}
