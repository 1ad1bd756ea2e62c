//! The threads of fjall end at the first write without room. So the store waits instead of writing, and readers go on.

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::stopped::{DEADLINE, write_layers};
use super::*;
use crate::machine::room::MARGIN_BYTES;
use crate::machine::space_waits;

/// Fewer layers than may wait for compaction.
const LAYERS: u32 = 16;

/// A disk whose free bytes the test sets.
fn disk(free: u64) -> (StoreRoom, Arc<AtomicU64>) {
    let free = Arc::new(AtomicU64::new(free));
    let asked = Arc::clone(&free);
    (StoreRoom::new(move || Some(asked.load(Ordering::Relaxed))), free)
}

fn open_on(dir: &TempDir, room: &StoreRoom) -> KvMachine {
    let config = StoreConfig { memtable_bytes: ByteSize::kib(1), ..StoreConfig::default() };
    KvMachine::open(&dir.path().join("kv"), &config, room).unwrap()
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < until, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5)); // not synchronisation: poll interval under a deadline
    }
}

#[test]
fn a_layer_without_room_waits_while_readers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (room, free) = disk(MARGIN_BYTES);
    let mut machine = open_on(&dir, &room);
    let (view, before) = (machine.view(), space_waits());
    let (done, written) = channel();
    std::thread::spawn(move || {
        let _ = done.send(write_layers(&mut machine, 1..=3));
    });
    wait_for("the wait for room", || space_waits() > before + 2);
    assert!(view.one(b"k00001", 1).unwrap().is_some());
    assert!(written.try_recv().is_err(), "the write waits");
    free.store(u64::MAX, Ordering::Relaxed);
    written.recv_timeout(DEADLINE).expect("an answer").unwrap();
}

#[test]
fn a_compaction_without_room_waits_and_delays_no_close() {
    let dir = tempfile::tempdir().unwrap();
    // A layer fits, a compaction does not.
    let (room, free) = disk(MARGIN_BYTES + (1 << 20));
    let mut machine = open_on(&dir, &room);
    let before = space_waits();
    write_layers(&mut machine, 1..=LAYERS).unwrap();
    wait_for("the wait for room", || space_waits() > before + 2);
    let waiting = machine.store.l0_table_count();
    assert!(waiting > LAYERS as usize / 2, "{waiting} tables wait");
    let (done, dropped) = channel();
    // On another thread, because a regression hangs.
    std::thread::spawn(move || {
        drop(machine);
        let _ = done.send(());
    });
    dropped.recv_timeout(DEADLINE).expect("the store is closed");
    let machine = open_on(&dir, &room);
    free.store(u64::MAX, Ordering::Relaxed);
    wait_for("the compaction", || machine.store.l0_table_count() < waiting / 2);
    assert_eq!(machine.view().digest().unwrap().keys, u64::from(LAYERS));
}
