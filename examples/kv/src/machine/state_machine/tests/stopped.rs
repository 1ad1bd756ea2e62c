//! fjall's own threads end at their first error, and only the writes that wait for them notice.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use super::*;

pub(super) const DEADLINE: Duration = Duration::from_secs(60);
/// More layers than may wait for compaction.
const LAYERS: u32 = 40;

/// Damages every table, so the next compaction fails.
fn damage_tables(dir: &Path) -> usize {
    let mut damaged = 0;
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            damaged += damage_tables(&path);
        } else if dir.ends_with("tables") {
            let bytes = usize::try_from(entry.metadata().unwrap().len()).unwrap();
            OpenOptions::new().write(true).open(&path).unwrap().write_all(&vec![0xaa; bytes / 2]).unwrap();
            damaged += 1;
        }
    }
    damaged
}

/// Writes one layer for each index, in order of keys.
pub(super) fn write_layers(
    machine: &mut KvMachine,
    indices: std::ops::RangeInclusive<u32>,
) -> Result<(), Fatal> {
    for index in indices {
        let (key, value) = (format!("k{index:05}"), vec![index as u8; 4 << 10]);
        let command = Command { now_ms: 1, op: set(key.as_bytes(), &value, Expiry::Never) };
        let entries = [entry(index.into(), &[command])];
        machine.apply(ApplyBatch::new(&entries, at(index.into())), &mut Replies::with_capacity(1))?;
    }
    machine.flush().map(|_| ())
}

#[test]
fn a_store_whose_compaction_failed_fails_the_machine_with_its_cause() {
    stop_a_store(&roomy());
}

/// The threads do not tell their errors, and the machine may notice once there is room again.
#[test]
fn a_full_disk_is_the_cause_if_the_disk_was_low_before_the_store_stopped() {
    let room = StoreRoom::new(|| Some(1 << 40));
    stop_a_store(&room);
    assert!(!room.has_failed());
    assert!(!room.has(1 << 41));
    stop_a_store(&room);
    assert!(room.has_failed());
    room.forget();
    stop_a_store(&room);
    assert!(!room.has_failed());
}

fn stop_a_store(room: &StoreRoom) {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { memtable_bytes: ByteSize::kib(1), ..StoreConfig::default() };
    let mut machine = KvMachine::open(&dir.path().join("kv"), &config, room).unwrap();
    write_layers(&mut machine, 1..=2).unwrap();
    assert!(damage_tables(dir.path()) >= 2);
    let (done, failed) = channel();
    // On another thread, because a regression hangs.
    std::thread::spawn(move || {
        let _ = done.send(write_layers(&mut machine, 3..=LAYERS));
    });
    let error = failed.recv_timeout(DEADLINE).expect("an answer").unwrap_err();
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(cause.contains("the key-value store has stopped"), "{error:?}");
}
