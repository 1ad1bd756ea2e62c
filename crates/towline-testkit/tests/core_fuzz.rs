//! `step` refuses or takes any message of a peer, and does not panic.

use crate::common::*;
use proptest::prelude::*;
use proptest::test_runner::Config;
use towline_engine::core::Reject;

/// Messages a case, so more than 50,000 in the 256 default cases. `PROPTEST_CASES` sets the number of cases.
const STROKES: usize = 200;

/// One message of an attacker.
#[derive(Debug, Clone)]
struct Stroke {
    /// The message in flight that serves as the pattern. A high number makes a new message.
    pattern: u16,
    /// The receiving node.
    target: u8,
    changes: Vec<(u8, u8)>,
    /// Steps of the honest cluster afterwards.
    steps: u8,
}

fn stroke() -> impl Strategy<Value = Stroke> {
    let changes = prop::collection::vec((any::<u8>(), any::<u8>()), 0..4);
    (any::<u16>(), any::<u8>(), changes, 0..12_u8).prop_map(|(pattern, target, changes, steps)| Stroke {
        pattern,
        target,
        changes,
        steps,
    })
}

/// Values near those of the node, and the extremes.
fn value(how: u8, old: u64, own: [u64; 3]) -> u64 {
    match how % 12 {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => old.wrapping_add(1),
        4 => old.wrapping_sub(1),
        5 => own[0],
        6 => own[1],
        7 => own[2],
        8 => own[0] + 1,
        9 => own[1] + 1,
        10 => own[2] + 1,
        _ => own[usize::from(how) / 12 % 3].saturating_sub(1),
    }
}

fn change(m: &mut Message, field: u8, how: u8, own: [u64; 3]) {
    let place = usize::from(how) % m.entries.len().max(1);
    match field % 16 {
        0 => m.term = value(how, m.term, own),
        1 => m.log_term = value(how, m.log_term, own),
        2 => m.index = value(how, m.index, own),
        3 => m.commit = value(how, m.commit, own),
        4 => m.commit_term = value(how, m.commit_term, own),
        5 => m.request_snapshot = value(how, m.request_snapshot, own),
        6 => m.reject = !m.reject,
        7 => m.reject_hint = value(how, m.reject_hint, own),
        8 => m.priority = [0, 1, -1, i64::MAX, i64::MIN][usize::from(how) % 5],
        9 => m.context = vec![how; [0, 1, 24, 256, 257][usize::from(how) % 5]].into(),
        10 => m.context = b"CampaignTransfer".as_slice().into(),
        11 => m.entries.reverse(),
        12 => m.entries.truncate(place),
        13 => m.entries.push(Entry { index: value(how, m.index, own), term: m.term, ..Entry::default() }),
        14 => {
            if let Some(entry) = m.entries.get_mut(place) {
                entry.term = value(how, entry.term, own);
            }
        }
        _ => {
            m.kind = MessageKind::ALL[usize::from(how) % MessageKind::ALL.len()];
            if let Some(entry) = m.entries.get_mut(place) {
                entry.index = value(how, entry.index, own);
            }
        }
    }
}

fn forge(sim: &Sim, stroke: &Stroke, target: NodeId) -> Message {
    let ids = sim.ids();
    let sender = ids.iter().copied().find(|&id| id != target).unwrap_or(NodeId::new(99).unwrap());
    let own = sim.status(target).map_or([0; 3], |s| [s.state.term, s.last_index, s.state.commit]);
    let under_way = sim.in_flight();
    let pattern = under_way.get(usize::from(stroke.pattern) % (under_way.len() + 8));
    let mut message = pattern.cloned().unwrap_or_else(|| {
        let kind = MessageKind::ALL[usize::from(stroke.pattern) % MessageKind::ALL.len()];
        Message { term: own[0].max(1), ..Message::new(kind, sender, target) }
    });
    message.to = target;
    if message.from == target {
        message.from = sender;
    }
    stroke.changes.iter().for_each(|&(field, how)| change(&mut message, field, how, own));
    message
}

fn options(seed: u64) -> SimOptions {
    SimOptions {
        net: NetOptions { delay: 1..12, silent_drop_permille: 20, ..NetOptions::default() },
        chaos: Chaos { partition_permille: 10, heal_permille: 20, ..Chaos::rough() },
        learners: seed % 2,
        sync_permille: [100, 700][seed as usize / 2 % 2],
        unapplied_bytes_max: [2_000, 64 << 10][seed as usize / 4 % 2],
        history_checked: false,
        ..SimOptions::default()
    }
}

fn config() -> Config {
    Config { failure_persistence: None, ..Config::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn forged_messages_cause_no_panic_in_any_role(
        seed in any::<u64>(),
        strokes in prop::collection::vec(stroke(), STROKES),
    ) {
        let voters = [1, 2, 3, 5][seed as usize / 8 % 4];
        let mut sim = Sim::new(seed, voters, options(seed)).unwrap();
        sim.run(seed % 400).unwrap();
        for stroke in strokes {
            let ids = sim.ids();
            let target = ids[usize::from(stroke.target) % ids.len()];
            if !sim.is_up(target) {
                sim.restart(target).unwrap();
            }
            let message = forge(&sim, &stroke, target);
            let _ = sim.deliver(target, message.from, message).unwrap();
            sim.run(u64::from(stroke.steps)).unwrap();
        }
    }

    #[test]
    fn refused_and_repeated_messages_change_nothing_and_the_cluster_converges(
        seed in any::<u64>(),
        strokes in prop::collection::vec(stroke(), STROKES),
    ) {
        let options = SimOptions { history_checked: true, ..options(seed) };
        let mut sim = Sim::new(seed, [3, 5][seed as usize / 8 % 2], options).unwrap();
        sim.run(300).unwrap();
        let mut seen = sim.in_flight();
        for stroke in strokes {
            seen.extend(sim.in_flight().into_iter().take(4));
            let Some(real) = seen.get(usize::from(stroke.pattern) % seen.len().max(1)).cloned() else {
                sim.run(10).unwrap();
                continue;
            };
            let before = sim.status(real.to);
            let bad = match stroke.target % 4 {
                0 => (Message { term: u64::MAX, ..real.clone() }, real.from),
                1 => (Message { index: u64::MAX, ..real.clone() }, real.from),
                2 => (real.clone(), NodeId::new(77).unwrap()),
                _ => (Message { to: real.from, ..real.clone() }, real.from),
            };
            if before.is_some() {
                prop_assert!(sim.deliver(real.to, bad.1, bad.0).unwrap().is_err());
                prop_assert_eq!(sim.status(real.to), before);
            }
            // The real message again, late and out of order.
            let _ = sim.deliver(real.to, real.from, real).unwrap();
            sim.run(u64::from(stroke.steps)).unwrap();
        }
        prop_assert!(sim.rejected(Reject::WrongSender) > 0);
        sim.converge().unwrap();
    }
}
