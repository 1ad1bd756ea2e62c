//! The checker finds each sort of violation, and passes every history that one copy could have answered.

use std::collections::HashSet;

use super::check::{BUDGET, Budget, Verdict, check};
use super::history::{Answer, Call, Kind, Operation, Outcome};

/// A call of client 0 in [from, to].
fn call(from: u64, to: u64, call: Call, outcome: Outcome) -> Operation {
    Operation { client: 0, invoked: from, returned: to, call, outcome }
}

fn set(from: u64, to: u64, value: u32) -> Operation {
    call(from, to, Call::Set(value), Outcome::Answered(Answer::Done))
}

fn saw(from: u64, to: u64, value: Option<u32>) -> Operation {
    call(from, to, Call::Read, Outcome::Answered(Answer::Value(value)))
}

fn appended(from: u64, to: u64, element: u32, length: i64) -> Operation {
    call(from, to, Call::Append(element), Outcome::Answered(Answer::Number(length)))
}

fn listed(from: u64, to: u64, elements: &[u32]) -> Operation {
    call(from, to, Call::Read, Outcome::Answered(Answer::Elements(elements.to_vec())))
}

fn added(from: u64, to: u64, value: i64) -> Operation {
    call(from, to, Call::Increment, Outcome::Answered(Answer::Number(value)))
}

fn uncertain(from: u64, what: Call) -> Operation {
    call(from, from + 1, what, Outcome::Uncertain)
}

#[track_caller]
fn passes(kind: Kind, operations: &[Operation]) {
    let verdict = check(kind, operations, BUDGET);
    assert!(matches!(verdict, Verdict::Linearizable), "{verdict:?}");
}

/// The finding.
#[track_caller]
fn fails(kind: Kind, operations: &[Operation]) -> String {
    match check(kind, operations, BUDGET) {
        Verdict::Violation(stuck) => stuck.to_string(),
        verdict => panic!("{verdict:?}"),
    }
}

#[test]
fn a_stale_read_is_found() {
    let said = fails(Kind::Register, &[set(0, 1, 1), set(2, 3, 2), saw(4, 5, Some(1))]);
    assert!(
        said.starts_with("after 2 of 3 calls the key holds Some(2), and none of these calls fits:\n"),
        "{said}"
    );
    assert!(said.contains("Read: Value(Some(1))"), "{said}");
    passes(Kind::Register, &[set(0, 1, 1), set(2, 5, 2), saw(3, 4, Some(1))]);
    // Two readers one after the other: the second must not see less.
    let two = |second| [set(0, 1, 1), set(2, 9, 2), saw(3, 4, Some(2)), saw(5, 6, Some(second))];
    passes(Kind::Register, &two(2));
    fails(Kind::Register, &two(1));
}

#[test]
fn a_lost_acknowledged_write_is_found() {
    fails(Kind::Register, &[set(0, 1, 1), saw(2, 3, None)]);
    fails(Kind::Log, &[appended(0, 1, 1, 1), appended(2, 3, 2, 2), listed(4, 5, &[1])]);
    fails(Kind::Log, &[appended(0, 1, 1, 1), appended(2, 3, 2, 2), listed(4, 5, &[2])]);
    fails(Kind::Counter, &[added(0, 1, 1), added(2, 3, 1)]);
}

#[test]
fn a_duplicated_append_is_found() {
    fails(Kind::Log, &[appended(0, 1, 1, 1), listed(2, 3, &[1, 1])]);
    fails(Kind::Log, &[appended(0, 1, 1, 1), appended(2, 3, 2, 3)]);
    // An uncertain append takes effect at most once, too.
    fails(Kind::Log, &[uncertain(0, Call::Append(1)), listed(2, 3, &[1, 1])]);
    fails(Kind::Counter, &[uncertain(0, Call::Increment), added(2, 3, 3)]);
}

#[test]
fn a_value_that_was_never_written_is_found() {
    fails(Kind::Register, &[set(0, 1, 1), saw(2, 3, Some(7))]);
    fails(Kind::Log, &[appended(0, 1, 1, 1), listed(2, 3, &[7])]);
    let foreign = call(2, 3, Call::Read, Outcome::Answered(Answer::Foreign("?".to_owned())));
    fails(Kind::Register, &[set(0, 1, 1), foreign]);
}

#[test]
fn a_read_of_a_refused_write_is_found() {
    let refused = call(0, 1, Call::Set(1), Outcome::Failed);
    fails(Kind::Register, &[refused.clone(), saw(2, 3, Some(1))]);
    passes(Kind::Register, &[refused, saw(2, 3, None)]);
}

#[test]
fn an_order_against_real_time_is_found() {
    // Each answer is possible alone, but the first append had returned before the second began.
    fails(Kind::Log, &[appended(0, 1, 1, 2), appended(2, 3, 2, 1), listed(4, 5, &[2, 1])]);
    passes(Kind::Log, &[appended(0, 3, 1, 2), appended(2, 3, 2, 1), listed(4, 5, &[2, 1])]);
    // A read of a write that had not begun.
    fails(Kind::Register, &[saw(0, 1, Some(1)), set(2, 3, 1)]);
}

#[test]
fn an_uncertain_write_takes_effect_at_any_later_time_or_never() {
    let write = uncertain(0, Call::Set(1));
    passes(Kind::Register, &[write.clone(), saw(2, 3, None)]);
    passes(Kind::Register, &[write.clone(), saw(2, 3, None), saw(100, 101, Some(1))]);
    fails(Kind::Register, &[write.clone(), saw(2, 3, Some(1)), saw(4, 5, None)]);
    // Late, over a newer write.
    passes(Kind::Register, &[write.clone(), set(2, 3, 2), saw(4, 5, Some(2)), saw(6, 7, Some(1))]);
    // Never before it began.
    fails(Kind::Register, &[saw(0, 1, Some(3)), uncertain(2, Call::Set(3))]);
    // No read saw it, but the length shows it.
    passes(Kind::Log, &[uncertain(0, Call::Append(1)), appended(2, 3, 2, 2)]);
    fails(Kind::Log, &[uncertain(0, Call::Append(1)), appended(2, 3, 2, 3)]);
    passes(Kind::Counter, &[uncertain(0, Call::Increment), added(2, 3, 1), added(4, 5, 3)]);
}

#[test]
fn a_search_that_is_cut_short_proves_nothing() {
    // Sixteen concurrent writes, and a read that fits none: the search must try every order.
    let mut operations: Vec<Operation> = (0..16).map(|value| set(0, 10, value)).collect();
    operations.push(saw(20, 21, Some(99)));
    let little = [
        Budget { steps: 1_000, configurations: usize::MAX },
        Budget { steps: u64::MAX, configurations: 1_000 },
    ];
    for budget in little {
        let verdict = check(Kind::Register, &operations, budget);
        assert!(matches!(verdict, Verdict::Unknown { steps } if steps > 900), "{verdict:?}");
    }
}

/// The history of one copy with random clients. Each call takes effect between its begin and its return.
struct Generated {
    kind: Kind,
    operations: Vec<Operation>,
    /// When each operation took effect, if it did.
    effects: Vec<Option<u64>>,
}

fn generated(seed: u64) -> Generated {
    let mut random = fastrand::Rng::with_seed(seed);
    let kind = match seed % 3 {
        0 => Kind::Register,
        1 => Kind::Log,
        _ => Kind::Counter,
    };
    // (effect, operation without its answer)
    let mut planned: Vec<(Option<u64>, Operation)> = Vec::new();
    let mut value = 0;
    for client in 0..random.u16(1..6) {
        let mut now = random.u64(..40);
        for _ in 0..random.u32(1..25) {
            let invoked = now;
            let returned = invoked + random.u64(1..60);
            now = returned + random.u64(1..20);
            value += 1;
            let what = match (random.bool(), kind) {
                (true, _) => Call::Read,
                (_, Kind::Register) => Call::Set(value),
                (_, Kind::Log) => Call::Append(value),
                (_, Kind::Counter) => Call::Increment,
            };
            let (effect, outcome) = match random.u8(..16) {
                0 => (None, Outcome::Failed),
                1 => (None, Outcome::Uncertain),
                // After its return.
                2 => (Some(random.u64(invoked..=invoked + 500)), Outcome::Uncertain),
                _ => (Some(random.u64(invoked..=returned)), Outcome::Answered(Answer::Done)),
            };
            planned.push((effect, Operation { client, invoked, returned, call: what, outcome }));
        }
    }
    planned.sort_by_key(|(effect, _)| *effect);
    let (mut register, mut log) = (None, Vec::new());
    for (effect, operation) in &mut planned {
        if effect.is_none() {
            continue;
        }
        let answer = match operation.call {
            Call::Set(value) => {
                register = Some(value);
                Answer::Done
            }
            Call::Append(value) => {
                log.push(value);
                Answer::Number(log.len() as i64)
            }
            Call::Increment => {
                log.push(0);
                Answer::Number(log.len() as i64)
            }
            Call::Read => match kind {
                Kind::Register => Answer::Value(register),
                Kind::Log => Answer::Elements(log.clone()),
                Kind::Counter => Answer::Number(log.len() as i64),
            },
        };
        if operation.outcome != Outcome::Uncertain {
            operation.outcome = Outcome::Answered(answer);
        }
    }
    random.shuffle(&mut planned);
    let (effects, operations) = planned.into_iter().unzip();
    Generated { kind, operations, effects }
}

/// The definition of linearizability, without pruning: some order of all answered and some uncertain calls, in which no
/// call precedes another that had returned before it began.
fn by_every_order(left: &[Operation], held: &[u32], kind: Kind) -> bool {
    if left.iter().all(|o| !matches!(o.outcome, Outcome::Answered(_))) {
        return true;
    }
    let returned = |o: &Operation| if o.outcome == Outcome::Uncertain { u64::MAX } else { o.returned };
    let earliest = left.iter().filter(|o| o.outcome != Outcome::Failed).map(returned).min().unwrap();
    (0..left.len()).any(|at| {
        let mut left = left.to_vec();
        let operation = left.remove(at);
        if operation.invoked > earliest || operation.outcome == Outcome::Failed {
            return false;
        }
        let mut held = held.to_vec();
        let expected = match (operation.call, kind) {
            (Call::Read, Kind::Register) => Answer::Value(held.last().copied()),
            (Call::Read, Kind::Log) => Answer::Elements(held.clone()),
            (Call::Read, Kind::Counter) => Answer::Number(held.len() as i64),
            (Call::Set(value), _) => {
                held.push(value);
                Answer::Done
            }
            (Call::Append(element), _) => {
                held.push(element);
                Answer::Number(held.len() as i64)
            }
            (Call::Increment, _) => {
                held.push(0);
                Answer::Number(held.len() as i64)
            }
        };
        let fits = match &operation.outcome {
            Outcome::Answered(answer) => *answer == expected,
            _ => true,
        };
        fits && by_every_order(&left, &held, kind)
    })
}

/// Few calls in a short time with random answers: right and wrong histories are both frequent.
#[test]
fn the_checker_agrees_with_the_definition() {
    let (mut right, mut wrong) = (0, 0);
    for seed in 0..30_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let kind = [Kind::Register, Kind::Log, Kind::Counter][random.usize(..3)];
        let mut operations = Vec::new();
        for value in 1..=random.u32(2..7) {
            let invoked = random.u64(..12);
            let (what, answer) = match (random.u8(..5) < 2, kind) {
                (true, Kind::Register) => {
                    (Call::Read, Answer::Value(random.bool().then(|| random.u32(1..5))))
                }
                (true, Kind::Log) => {
                    let mut elements: Vec<u32> = (1..=random.u32(..4)).collect();
                    random.shuffle(&mut elements);
                    (Call::Read, Answer::Elements(elements))
                }
                (true, Kind::Counter) => (Call::Read, Answer::Number(random.i64(..4))),
                (_, Kind::Register) => (Call::Set(value), Answer::Done),
                (_, Kind::Log) => (Call::Append(value), Answer::Number(random.i64(1..4))),
                (_, Kind::Counter) => (Call::Increment, Answer::Number(random.i64(1..4))),
            };
            let outcome = match random.u8(..8) {
                0 => Outcome::Failed,
                1..=3 if what != Call::Read => Outcome::Uncertain,
                _ => Outcome::Answered(answer),
            };
            operations.push(call(invoked, invoked + random.u64(..12), what, outcome));
        }
        let expected = by_every_order(&operations, &[], kind);
        let verdict = check(kind, &operations, BUDGET);
        assert_eq!(
            matches!(verdict, Verdict::Linearizable),
            expected,
            "seed {seed}: {verdict:?}\n{operations:#?}"
        );
        *(if expected { &mut right } else { &mut wrong }) += 1;
    }
    assert!(right > 5_000 && wrong > 5_000, "{right} right, {wrong} wrong");
}

const SEEDS: u64 = 3_000;

#[test]
fn a_history_of_one_copy_always_passes() {
    for seed in 0..SEEDS {
        let Generated { kind, operations, .. } = generated(seed);
        let verdict = check(kind, &operations, BUDGET);
        assert!(matches!(verdict, Verdict::Linearizable), "seed {seed}: {verdict:?}\n{operations:#?}");
    }
}

#[test]
fn a_last_read_from_before_an_answered_write_never_passes() {
    let mut planted = 0;
    for seed in 0..SEEDS {
        let Generated { kind, mut operations, effects } = generated(seed);
        let end = effects.iter().flatten().chain(operations.iter().map(|o| &o.returned)).max().unwrap() + 1;
        let answered_write =
            |o: &&Operation| o.call != Call::Read && matches!(o.outcome, Outcome::Answered(_));
        let Some(write) = operations.iter().find(answered_write) else { continue };
        let stale = match write.call {
            // No client deletes.
            Call::Set(_) => Answer::Value(None),
            Call::Increment => Answer::Number(0),
            _ => Answer::Elements(Vec::new()),
        };
        planted += 1;
        operations.push(call(end, end + 1, Call::Read, Outcome::Answered(stale)));
        let verdict = check(kind, &operations, BUDGET);
        assert!(matches!(verdict, Verdict::Violation(_)), "seed {seed}: {verdict:?}");
    }
    assert!(planted > SEEDS * 3 / 4, "{planted}");
}

/// Removes one answered element, which a later read saw, from the answers of all reads.
#[test]
fn an_answered_element_that_no_read_has_never_passes() {
    let mut planted = 0;
    for seed in (0..SEEDS).filter(|seed| seed % 3 == 1) {
        let Generated { kind, mut operations, .. } = generated(seed);
        let mut answered: Vec<(u32, u64)> = operations
            .iter()
            .filter_map(|o| match (o.call, &o.outcome) {
                (Call::Append(element), Outcome::Answered(_)) => Some((element, o.returned)),
                _ => None,
            })
            .collect();
        answered.sort_by_key(|(_, returned)| *returned);
        let must_see = |o: &Operation, element: u32, returned: u64| {
            matches!(&o.outcome, Outcome::Answered(Answer::Elements(seen)) if seen.contains(&element))
                && o.invoked > returned
        };
        let Some((lost, _)) = answered
            .into_iter()
            .find(|(element, returned)| operations.iter().any(|o| must_see(o, *element, *returned)))
        else {
            continue;
        };
        planted += 1;
        for operation in &mut operations {
            if let Outcome::Answered(Answer::Elements(seen)) = &mut operation.outcome {
                seen.retain(|element| *element != lost);
            }
        }
        let verdict = check(kind, &operations, BUDGET);
        assert!(matches!(verdict, Verdict::Violation(_)), "seed {seed}: {verdict:?}");
    }
    assert!(planted > SEEDS / 6, "{planted}");
}

/// A shuffled answer is not always provably wrong.
#[test]
fn most_reads_that_are_shuffled_among_themselves_fail() {
    let (mut failed, mut tried) = (0, 0);
    for seed in 0..SEEDS {
        let Generated { kind, mut operations, .. } = generated(seed);
        let mut random = fastrand::Rng::with_seed(seed);
        let reads: Vec<usize> = (0..operations.len())
            .filter(|at| {
                operations[*at].call == Call::Read && matches!(operations[*at].outcome, Outcome::Answered(_))
            })
            .collect();
        let answers: HashSet<String> =
            reads.iter().map(|at| format!("{:?}", operations[*at].outcome)).collect();
        if answers.len() < 8 {
            continue;
        }
        tried += 1;
        let mut outcomes: Vec<Outcome> = reads.iter().map(|at| operations[*at].outcome.clone()).collect();
        random.shuffle(&mut outcomes);
        for (at, outcome) in reads.into_iter().zip(outcomes) {
            operations[at].outcome = outcome;
        }
        failed += usize::from(matches!(check(kind, &operations, BUDGET), Verdict::Violation(_)));
    }
    assert!(tried > 500 && failed * 100 > tried * 98, "{failed} of {tried}");
}
