mod contract;
mod damaged;
mod full_disk;
mod stopped;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;
use towline::ByteSize;
use towline::engine::message::Entry;

use super::*;
use crate::machine::command::{Blob, Condition, Expiry, KEY_BYTES_MAX, Op, pack};
use crate::machine::overlay::{SWEEP_KEYS_MAX, parse_integer};
use crate::machine::writeback::DEAD_KEYS_MAX;

const MAX: usize = 1 << 20;

/// A disk that never fills up.
fn roomy() -> StoreRoom {
    StoreRoom::new(|| None)
}

struct Harness {
    dir: TempDir,
    machine: KvMachine,
    index: u64,
    /// The monotonic clock of this node.
    passed_ms: Arc<AtomicU64>,
}

impl Harness {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let passed_ms = Arc::default();
        let machine = open(&dir, &passed_ms);
        Self { dir, machine, index: 0, passed_ms }
    }

    /// Applies commands as one batch, with two in each entry.
    fn batch(&mut self, commands: &[Command<'_>]) -> Vec<Answer> {
        let entries: Vec<Entry> = commands
            .chunks(2)
            .map(|commands| {
                self.index += 1;
                entry(self.index, commands)
            })
            .collect();
        let mut replies = Replies::with_capacity(entries.len());
        self.machine.apply(ApplyBatch::new(&entries, at(self.index)), &mut replies).unwrap();
        replies.into_vec().concat()
    }

    /// The leader's check for due keys. Returns whether it proposed its time.
    fn tick(&mut self) -> bool {
        let Some(command) = self.machine.view().tick(1) else { return false };
        let command: Command<'_> = codec::decode(&command, MAX).unwrap();
        self.batch(&[command]);
        true
    }

    fn pass(&self, ms: u64) {
        self.passed_ms.fetch_add(ms, Ordering::Relaxed);
    }

    fn is_there(&self, key: &[u8]) -> bool {
        let view = self.machine.view();
        view.one(key, view.now_ms()).unwrap().is_some()
    }

    fn one(&mut self, now_ms: u64, op: Op<'_>) -> Answer {
        self.batch(&[Command { now_ms, op }]).pop().unwrap()
    }

    fn reopen(self) -> Self {
        let Self { dir, machine, index, .. } = self;
        drop(machine);
        let passed_ms = Arc::default();
        let machine = open(&dir, &passed_ms);
        Self { dir, machine, index, passed_ms }
    }

    fn snapshot(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        self.machine.snapshot().unwrap().write_to(&mut body).unwrap();
        body
    }

    fn digest(&self) -> u64 {
        self.machine.view().digest().unwrap().digest
    }

    fn value(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.machine.view().one(key, 0).unwrap().map(|stored| stored.value.to_vec())
    }
}

fn at(index: u64) -> LogId {
    LogId { index, term: 1 }
}

fn entry(index: u64, commands: &[Command<'_>]) -> Entry {
    let mut data = Vec::new();
    commands.iter().for_each(|command| pack(&mut data, &command.encode(codec::BYTES_MAX).unwrap()));
    Entry { index, term: 1, data: data.into(), ..Entry::default() }
}

fn open(dir: &TempDir, passed_ms: &Arc<AtomicU64>) -> KvMachine {
    let passed_ms = Arc::clone(passed_ms);
    let clock = Clock::new(move || Duration::from_millis(passed_ms.load(Ordering::Relaxed)));
    KvMachine::open_with_clock(&dir.path().join("kv"), &StoreConfig::default(), &roomy(), clock).unwrap()
}

fn set<'a>(key: &'a [u8], value: &'a [u8], expiry: Expiry) -> Op<'a> {
    Op::Set { key: Blob(key), value: Blob(value), expiry, condition: Condition::Always, answer_old: false }
}

/// A node limits its own proposals. Entries in the log may come from another node, or an earlier start, with a higher limit.
#[test]
fn an_entry_larger_than_the_limit_of_proposals_is_applied() {
    let mut h = Harness::new();
    let value = vec![7; 3 << 20];
    assert!(value.len() as u64 > towline::COMMAND_BYTES_MAX);
    assert_eq!(h.one(1, set(b"large", &value, Expiry::Never)), Answer::Done);
    assert_eq!(h.value(b"large"), Some(value));
}

#[test]
fn expiry_is_decided_by_the_clock_in_the_commands_only() {
    let mut h = Harness::new();
    h.one(1_000, set(b"k", b"v", Expiry::After { ttl_ms: 500 }));
    let nx = |value| Op::Set {
        key: Blob(b"k"),
        value: Blob(value),
        expiry: Expiry::Never,
        condition: Condition::IfAbsent,
        answer_old: false,
    };
    assert_eq!(h.one(1_499, nx(b"w")), Answer::Skipped);
    assert_eq!(h.one(1_500, nx(b"w")), Answer::Done);
}

/// The clock of the answering node decided, so nodes disagreed: a key that was gone here was still there at the next leader.
#[test]
fn a_key_expires_for_readers_only_by_the_time_in_the_log() {
    let mut h = Harness::new();
    h.one(h.machine.view().local_ms(), set(b"k", b"v", Expiry::After { ttl_ms: 500 }));
    h.pass(499);
    assert!(!h.tick() && h.is_there(b"k"));
    h.pass(1);
    assert!(h.is_there(b"k"), "time passed on this node only");
    assert!(h.tick());
    assert!(!h.is_there(b"k"));
    assert_eq!((h.machine.view().keys(), h.machine.view().now_ms()), (0, 500));
}

#[test]
fn the_leader_proposes_its_time_only_while_a_key_expires() {
    let mut h = Harness::new();
    h.one(0, set(b"forever", b"v", Expiry::Never));
    h.pass(3_600_000);
    assert!(!h.tick(), "nothing expires");
    let now = h.machine.view().local_ms();
    h.one(now, set(b"k", b"v", Expiry::After { ttl_ms: 5_000 }));
    h.machine.flush().unwrap();
    assert!(h.tick(), "the store is searched once");
    h.pass(999);
    assert!(!h.tick());
    h.pass(1);
    assert!(h.tick(), "a restart loses no more than a second");
    let mut h = h.reopen();
    assert_eq!(h.machine.view().local_ms(), now, "the durable time; the log has the rest");
    h.machine.clock.observe(now + 4_999, 1);
    assert!(h.tick() && h.is_there(b"k"));
    h.pass(1);
    assert!(h.tick() && !h.is_there(b"k"));
    assert!(!h.tick());
}

/// A node had run for longer than the leader. When it led, its clock was ahead, and keys expired early.
#[test]
fn a_node_that_has_run_for_longer_than_the_leader_ends_no_key_early() {
    let mut h = Harness::new();
    h.pass(3_600_000);
    h.one(5_000, set(b"k", b"v", Expiry::After { ttl_ms: 10_000 }));
    h.pass(9_999);
    h.tick();
    assert!(h.is_there(b"k"));
    h.pass(1);
    assert!(h.tick() && !h.is_there(b"k"));
}

#[test]
fn a_snapshot_carries_the_time() {
    let mut from = Harness::new();
    from.one(70_000, set(b"k", b"v", Expiry::After { ttl_ms: 10 }));
    let mut to = Harness::new();
    to.machine.restore_from(at(1), &mut &from.snapshot()[..]).unwrap();
    to.index = 1;
    assert_eq!(to.machine.view().local_ms(), 70_000);
    to.pass(10);
    assert!(to.tick() && !to.is_there(b"k"));
}

#[test]
fn an_earlier_stamp_revives_no_expired_key() {
    let mut h = Harness::new();
    h.one(1_000, set(b"k", b"v", Expiry::After { ttl_ms: 500 }));
    h.one(2_000, set(b"other", b"v", Expiry::Never));
    assert_eq!(h.one(1_100, Op::Append { key: Blob(b"k"), value: Blob(b"x") }), Answer::Integer(1));
}

#[test]
fn due_keys_are_removed_from_memory_and_store() {
    let mut h = Harness::new();
    let many = SWEEP_KEYS_MAX as u64 + 10;
    for i in 0..many {
        h.one(100, set(&i.to_be_bytes(), b"v", Expiry::After { ttl_ms: 10 + i % 3 }));
    }
    h.machine.flush().unwrap();
    assert_eq!(h.machine.store.iter().count() as u64, 2 * many + 1, "keys, expiries and metadata");
    h.one(100, set(b"in memory", b"v", Expiry::After { ttl_ms: 5 }));
    h.one(100, set(&7_u64.to_be_bytes(), b"kept", Expiry::Never));
    h.one(200, set(b"other", b"v", Expiry::Never));
    assert_eq!(h.machine.view().keys(), 2 + 10, "a bounded number a batch");
    h.batch(&[]);
    assert_eq!(h.machine.view().keys(), 2);
    h.machine.flush().unwrap();
    assert_eq!(h.machine.store.iter().count(), 3, "two keys and the metadata");
    assert_eq!(h.value(&7_u64.to_be_bytes()), Some(b"kept".to_vec()));
}

#[test]
fn layers_in_memory_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { memtable_bytes: ByteSize::kib(64), ..StoreConfig::default() };
    let machine = KvMachine::open(&dir.path().join("kv"), &config, &roomy()).unwrap();
    let mut h = Harness { dir, machine, index: 0, passed_ms: Arc::default() };
    for i in 0..2_000_u32 {
        h.one(1, set(&i.to_be_bytes(), &[b'v'; 256], Expiry::Never));
        assert!(h.machine.overlay().bytes() <= (64 << 10) + 1_024);
    }
    let durable = h.machine.durable().index;
    assert!((1_000..2_000).contains(&durable), "{durable}: at most two layers are in memory only");
    let h = h.reopen();
    let reached = h.machine.durable().index;
    assert!(reached >= durable);
    assert_eq!((h.machine.view().keys(), h.value(&0_u32.to_be_bytes())), (reached, Some(vec![b'v'; 256])));
}

#[test]
fn a_flush_empties_at_once_and_removes_keys_in_bounded_steps() {
    let mut h = Harness::new();
    let keys: Vec<Vec<u8>> = (0..DEAD_KEYS_MAX as u32 + 10).map(|i| i.to_be_bytes().to_vec()).collect();
    let pairs = keys.iter().map(|key| (Blob(key), Blob(b"v"))).collect();
    h.one(1, Op::SetMany { pairs });
    h.one(1, set(b"due", b"v", Expiry::After { ttl_ms: 5 }));
    h.machine.flush().unwrap();
    let answers = h.batch(&[
        Command { now_ms: 1, op: Op::Flush },
        Command { now_ms: 1, op: set(b"new", b"v", Expiry::Never) },
    ]);
    assert_eq!(answers, [Answer::Done, Answer::Done]);
    assert_eq!((h.machine.view().keys(), h.value(&keys[0])), (1, None));
    h.machine.flush().unwrap();
    assert_eq!(h.machine.store.iter().count(), 2 + 12, "a bounded number at a time");
    let mut h = h.reopen();
    h.one(1, set(b"new", b"v", Expiry::Never));
    h.machine.flush().unwrap();
    assert_eq!(h.machine.store.iter().count(), 2, "one key and the metadata");
    assert_eq!(h.value(b"new"), Some(b"v".to_vec()));
}

#[test]
fn bad_commands_change_nothing() {
    let mut h = Harness::new();
    h.one(1, set(b"text", b"abc", Expiry::Never));
    h.one(1, set(b"big", b"9223372036854775807", Expiry::Never));
    let before = h.digest();
    assert_eq!(h.one(1, Op::Add { key: Blob(b"text"), delta: 1 }), Answer::NotAnInteger);
    assert_eq!(h.one(1, Op::Add { key: Blob(b"big"), delta: 1 }), Answer::Overflow);
    let long = vec![b'k'; KEY_BYTES_MAX + 1];
    assert_eq!(h.one(1, set(&long, b"v", Expiry::Never)), Answer::TooLong);
    assert_eq!(h.digest(), before);
}

#[test]
fn an_undecodable_command_is_fatal() {
    let mut h = Harness::new();
    for data in [&[0, 0, 0, 2, 0, 99][..], &[0, 0, 0, 3, 0, 5], &[0, 0, 0]] {
        let entry = Entry { term: 1, index: 1, data: Bytes::from_static(data), ..Entry::default() };
        let batch = ApplyBatch::new(std::slice::from_ref(&entry), at(1));
        assert!(h.machine.apply(batch, &mut Replies::with_capacity(1)).is_err(), "{:?}", entry.data);
    }
}

#[test]
fn a_restore_refuses_a_flipped_byte() {
    let mut h = Harness::new();
    h.one(1, set(b"k", b"value", Expiry::Never));
    let mut body = h.snapshot();
    let middle = body.len() / 2;
    body[middle] ^= 1;
    assert!(h.machine.restore_from(at(1), &mut &body[..]).is_err());
}

/// `FLUSHDB` raised the generation in memory, a restore wrote into the one above, and a kill undid the flush. Keys of the
/// restore were then two generations above the live one, and nothing removed them. A later restore and a later `FLUSHDB`
/// made their generation the live one, so they appeared on this replica only.
#[test]
fn keys_of_an_interrupted_restore_never_come_back() {
    let mut from = Harness::new();
    for i in 0..2_000_u32 {
        from.one(1, set(&i.to_be_bytes(), b"value", Expiry::After { ttl_ms: 1_000_000 }));
    }
    let body = from.snapshot();
    let truncated = &body[..body.len() - 100];
    let empty = Harness::new().snapshot();

    let mut to = Harness::new();
    to.one(1, Op::Flush);
    assert!(to.machine.restore_from(at(2_000), &mut &truncated[..]).is_err());
    let mut to = to.reopen();
    assert_eq!(to.machine.store.iter().count(), 0, "the start removed its keys");
    to.machine.restore_from(at(2_001), &mut &empty[..]).unwrap();
    to.index = 2_001;
    to.one(1, Op::Flush);
    let seen = |h: &Harness, when: &str| {
        assert_eq!((h.machine.view().keys(), h.value(&1_u32.to_be_bytes())), (0, None), "{when}");
    };
    seen(&to, "in memory");
    to.machine.flush().unwrap();
    seen(&to.reopen(), "in the store");
}

#[test]
fn a_restore_holds_one_batch_in_memory() {
    let mut from = Harness::new();
    let value = vec![b'v'; 64 << 10];
    for i in 0..100_u32 {
        from.one(1, set(&i.to_be_bytes(), &value, Expiry::Never));
    }
    let (body, mut to) = (from.snapshot(), Harness::new());
    assert!(to.machine.restore_from(at(9), &mut &body[..5 << 20]).is_err());
    assert_eq!(to.machine.store.iter().count(), 64, "the first 4 MiB are in the store");
}

#[derive(Debug, Clone)]
enum Step {
    Set { key: u8, value: u8, ttl_ms: Option<u64> },
    Delete { key: u8 },
    Add { key: u8, delta: i64 },
    Append { key: u8, value: u8 },
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..6_u8, any::<u8>(), prop::option::of(1..40_u64)).prop_map(|(key, value, ttl_ms)| Step::Set { key, value, ttl_ms }),
        2 => (0..6_u8).prop_map(|key| Step::Delete { key }),
        3 => (0..6_u8, -5..5_i64).prop_map(|(key, delta)| Step::Add { key, delta }),
        3 => (0..6_u8, b'0'..=b'9').prop_map(|(key, value)| Step::Append { key, value }),
        1 => Just(Step::Flush),
    ]
}

type Model = BTreeMap<Vec<u8>, (Vec<u8>, u64)>;

fn model_step(model: &mut Model, now: u64, step: &Step) -> Answer {
    model.retain(|_, (_, expiry)| *expiry == 0 || *expiry > now);
    match step {
        Step::Set { key, value, ttl_ms } => {
            model.insert(vec![*key], (vec![*value], ttl_ms.map_or(0, |ttl| now + ttl)));
            Answer::Done
        }
        Step::Delete { key } => Answer::Integer(model.remove(&vec![*key]).is_some().into()),
        Step::Add { key, delta } => {
            let slot = model.get(&vec![*key]).cloned().unwrap_or((b"0".to_vec(), 0));
            match parse_integer(&slot.0) {
                None => Answer::NotAnInteger,
                Some(old) => match old.checked_add(*delta) {
                    None => Answer::Overflow,
                    Some(sum) => {
                        model.insert(vec![*key], (sum.to_string().into_bytes(), slot.1));
                        Answer::Integer(sum)
                    }
                },
            }
        }
        Step::Append { key, value } => {
            let slot = model.entry(vec![*key]).or_default();
            slot.0.push(*value);
            Answer::Integer(slot.0.len() as i64)
        }
        Step::Flush => {
            model.clear();
            Answer::Done
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Compares a replica with a map, with a replica of other batches and write times, and with a restored one.
    #[test]
    fn replicas_agree_with_a_model_however_entries_are_batched(
        steps in prop::collection::vec((step(), 0..8_u64), 1..60),
        cut in 1..9_usize,
    ) {
        let (mut a, mut b, mut model) = (Harness::new(), Harness::new(), Model::new());
        let mut now = 0;
        let (mut commands, mut expected) = (Vec::new(), Vec::new());
        let keys: Vec<[u8; 1]> = (0..=255).map(|k| [k]).collect();
        for (step, passed) in &steps {
            now += passed;
            expected.push(model_step(&mut model, now, step));
            let blob = |k: &u8| Blob(&keys[usize::from(*k)]);
            let op = match step {
                Step::Set { key, value, ttl_ms } => Op::Set {
                    key: blob(key), value: blob(value),
                    expiry: ttl_ms.map_or(Expiry::Never, |ttl_ms| Expiry::After { ttl_ms }),
                    condition: Condition::Always, answer_old: false,
                },
                Step::Delete { key } => Op::Delete { keys: vec![blob(key)] },
                Step::Add { key, delta } => Op::Add { key: blob(key), delta: *delta },
                Step::Append { key, value } => Op::Append { key: blob(key), value: blob(value) },
                Step::Flush => Op::Flush,
            };
            commands.push(Command { now_ms: now, op });
        }
        let from_a = a.batch(&commands);
        let mut from_b = Vec::new();
        for (at, chunk) in commands.chunks(cut).enumerate() {
            from_b.extend(b.batch(chunk));
            if at % 3 == 0 {
                b.machine.settle().unwrap();
                b.machine.write_back.start().unwrap();
            }
        }
        prop_assert_eq!(&from_a, &expected);
        prop_assert_eq!(&from_b, &expected);
        prop_assert_eq!(a.digest(), b.digest());
        let mut c = Harness::new();
        let (body, applied) = (b.snapshot(), b.machine.meta().applied());
        c.machine.restore_from(applied, &mut &body[..]).unwrap();
        prop_assert_eq!(c.digest(), b.digest());
        for key in 0..6_u8 {
            let found = b.machine.view().one(&[key], now).unwrap().map(|s| (s.value.to_vec(), s.expiry_ms));
            prop_assert_eq!(found.as_ref(), model.get(&vec![key]));
        }
        let live = model.len() as u64;
        b.batch(&[]);
        prop_assert_eq!(b.machine.view().keys(), live);
        b.machine.flush().unwrap();
        let b = b.reopen();
        prop_assert_eq!((b.machine.view().keys(), b.digest()), (live, a.digest()));
    }
}

/// fjall marks a directory as its own before it has finished it. After a kill in between it refused the directory for ever.
#[test]
fn an_unfinished_store_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kv");
    let unfinished = dir.path().join("kv.new");
    std::fs::create_dir_all(unfinished.join("keyspaces")).unwrap();
    std::fs::write(unfinished.join("version"), "").unwrap();
    drop(KvMachine::open(&path, &StoreConfig::default(), &roomy()).unwrap());
    assert!(!unfinished.exists());
    drop(KvMachine::open(&path, &StoreConfig::default(), &roomy()).unwrap());
}
