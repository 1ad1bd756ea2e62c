use towline_engine::log_store::GroupWrite;

use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

fn batch(index: u64) -> LogBatch {
    let entries = vec![Entry { index, term: 1, ..Entry::default() }];
    LogBatch { writes: vec![GroupWrite { entries, ..GroupWrite::new(GroupId::DEFAULT) }] }
}

fn last(log: &MemLog) -> u64 {
    log.recover(GroupId::DEFAULT).unwrap().last_index
}

#[test]
fn a_held_append_is_visible_but_a_crash_loses_it() {
    let log = MemLog::new();
    log.append(&mut batch(1)).unwrap();
    let gate = log.hold_syncs();
    let writer = std::thread::spawn({
        let log = log.clone();
        move || log.append(&mut batch(2))
    });
    assert!(gate.wait_held(DEADLINE));
    assert_eq!((last(&log), last(&log.crash())), (2, 1));
    assert!(!writer.is_finished());
    drop(gate);
    writer.join().unwrap().unwrap();
    assert_eq!(last(&log.crash()), 2);
}

#[test]
fn waiting_for_a_held_append_ends_at_its_deadline() {
    assert!(!MemLog::new().hold_syncs().wait_held(Duration::from_millis(1)));
}

#[test]
fn a_failed_append_is_durable_or_not_as_planned_and_poisons() {
    for (fault, durable) in [(AppendFault::BeforeDurable, 1), (AppendFault::AfterDurable, 2)] {
        let log = MemLog::new();
        log.fail_append(2, fault);
        log.append(&mut batch(1)).unwrap();
        assert!(matches!(log.append(&mut batch(2)), Err(LogError::Io { .. })));
        assert!(matches!(log.append(&mut batch(3)), Err(LogError::Poisoned { .. })));
        assert!(matches!(log.compact(GroupId::DEFAULT, 1), Err(LogError::Poisoned { .. })));
        let after = log.crash();
        assert_eq!(last(&after), durable, "{fault:?}");
        after.append(&mut batch(durable + 1)).unwrap();
    }
}
