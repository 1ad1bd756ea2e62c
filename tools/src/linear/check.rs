//! The search for a linearization: the algorithm of Wing and Gong, depth first over the calls that may come next.
//!
//! A configuration is the set of done calls and the value of the key. As Lowe proposes, none is entered twice. Steps and
//! remembered configurations are bounded; at a bound the verdict is `Unknown`.

use std::collections::HashSet;
use std::fmt;

use super::history::{Answer, Call, Kind, Operation, Outcome, Shortened};

/// The bounds of a search. They are counts, so a verdict does not depend on the machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// Calls tried.
    pub(crate) steps: u64,
    /// Configurations remembered: some hundred bytes each.
    pub(crate) configurations: usize,
}

pub(crate) const BUDGET: Budget = Budget { steps: 20_000_000, configurations: 500_000 };

#[derive(Debug)]
pub(crate) enum Verdict {
    Linearizable,
    Violation(Stuck),
    /// The search reached its budget.
    Unknown {
        steps: u64,
    },
}

/// The longest linearization found, and the calls that cannot follow it.
#[derive(Debug)]
pub(crate) struct Stuck {
    explained: usize,
    of: usize,
    held: State,
    next: Vec<Operation>,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "after {} of {} calls the key holds {}, and none of these calls fits:",
            self.explained, self.of, self.held
        )?;
        self.next.iter().try_for_each(|operation| write!(f, "\n    {operation}"))
    }
}

/// The value of a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    Register(Option<u32>),
    Log(Vec<u32>),
    Counter(i64),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Register(value) => write!(f, "{value:?}"),
            Self::Log(elements) => write!(f, "{}", Shortened(elements)),
            Self::Counter(value) => write!(f, "{value}"),
        }
    }
}

impl State {
    fn empty(kind: Kind) -> Self {
        match kind {
            Kind::Register => Self::Register(None),
            Kind::Log => Self::Log(Vec::new()),
            Kind::Counter => Self::Counter(0),
        }
    }

    /// The value after the call; `None` if the answer contradicts the value. Without an answer, any call fits.
    fn after(&self, call: Call, answer: Option<&Answer>) -> Option<Self> {
        let (next, expected) = match (self, call) {
            (Self::Register(value), Call::Read) => {
                return (answer? == &Answer::Value(*value)).then(|| self.clone());
            }
            (Self::Log(elements), Call::Read) => {
                // Compared in place: a log is long.
                let same = matches!(answer?, Answer::Elements(seen) if seen == elements);
                return same.then(|| self.clone());
            }
            (Self::Counter(value), Call::Read) => {
                return (answer? == &Answer::Number(*value)).then(|| self.clone());
            }
            (Self::Register(_), Call::Set(value)) => (Self::Register(Some(value)), Answer::Done),
            (Self::Log(elements), Call::Append(element)) => {
                let length = i64::try_from(elements.len()).ok()? + 1;
                if answer.is_some_and(|answer| *answer != Answer::Number(length)) {
                    return None;
                }
                let mut elements = elements.clone();
                elements.push(element);
                return Some(Self::Log(elements));
            }
            (Self::Counter(value), Call::Increment) => (Self::Counter(value + 1), Answer::Number(value + 1)),
            _ => return None,
        };
        answer.is_none_or(|answer| *answer == expected).then_some(next)
    }
}

/// The set of done calls.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Done(Box<[u64]>);

impl Done {
    fn none(of: usize) -> Self {
        Self(vec![0; of.div_ceil(64)].into())
    }

    fn has(&self, at: usize) -> bool {
        self.0.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }

    fn with(&self, at: usize) -> Self {
        let mut more = self.clone();
        if let Some(word) = more.0.get_mut(at / 64) {
            *word |= 1 << (at % 64);
        }
        more
    }
}

/// A configuration, and what is yet to be tried from it.
struct Frame {
    done: Done,
    held: State,
    /// All answered calls before this one are done.
    first: usize,
    answered_done: usize,
    /// Tried from the end.
    untried: Vec<usize>,
}

/// Stands for any element that no read saw. Elements of clients begin at 1.
const UNREAD: u32 = 0;

struct Search<'a> {
    /// By invocation. Their positions come before those of `uncertain`.
    answered: Vec<&'a Operation>,
    uncertain: Vec<&'a Operation>,
    /// The longest log that a read saw. Elements are never removed, so every value is a prefix of it or begins with it.
    longest: &'a [u32],
}

/// Checks all calls of one key, in any order.
pub(crate) fn check(kind: Kind, operations: &[Operation], budget: Budget) -> Verdict {
    let search = Search::new(operations);
    let mut seen: HashSet<(Done, State)> = HashSet::new();
    let mut steps = 0;
    let mut stuck: Option<Stuck> = None;
    let none = Done::none(search.answered.len() + search.uncertain.len());
    let mut stack = vec![search.frame(none, State::empty(kind), 0, 0)];
    while let Some(frame) = stack.last_mut() {
        if frame.answered_done == search.answered.len() {
            return Verdict::Linearizable;
        }
        let Some(at) = frame.untried.pop() else {
            stack.pop();
            continue;
        };
        steps += 1;
        if steps > budget.steps || seen.len() > budget.configurations {
            return Verdict::Unknown { steps };
        }
        let Some((operation, answer)) = search.at(at) else { continue };
        if !search.may_follow(&frame.held, operation.call) {
            continue;
        }
        let Some(mut held) = frame.held.after(operation.call, answer) else { continue };
        search.forget_unread(&mut held);
        let done = frame.done.with(at);
        if !seen.insert((done.clone(), held.clone())) {
            continue;
        }
        let answered_done = frame.answered_done + usize::from(answer.is_some());
        let first = frame.first;
        let next = search.frame(done, held, first, answered_done);
        if stuck.as_ref().is_none_or(|stuck| stuck.explained < answered_done) {
            stuck = Some(search.stuck(&next));
        }
        stack.push(next);
    }
    Verdict::Violation(
        stuck.unwrap_or_else(|| search.stuck(&search.frame(Done::none(0), State::empty(kind), 0, 0))),
    )
}

impl<'a> Search<'a> {
    /// Leaves out calls that cannot matter: failed calls, reads without an answer, and uncertain writes of a register whose
    /// value no read saw.
    fn new(operations: &'a [Operation]) -> Self {
        let read: HashSet<u32> = operations
            .iter()
            .filter_map(|operation| match operation.outcome {
                Outcome::Answered(Answer::Value(value)) => value,
                _ => None,
            })
            .collect();
        let mut answered: Vec<&Operation> = Vec::new();
        let mut uncertain: Vec<&Operation> = Vec::new();
        for operation in operations {
            match (&operation.outcome, operation.call) {
                (Outcome::Answered(_), _) => answered.push(operation),
                (Outcome::Failed, _) | (Outcome::Uncertain, Call::Read) => {}
                (Outcome::Uncertain, Call::Set(value)) if !read.contains(&value) => {}
                (Outcome::Uncertain, _) => uncertain.push(operation),
            }
        }
        answered.sort_by_key(|operation| operation.invoked);
        uncertain.sort_by_key(|operation| operation.invoked);
        let longest = answered.iter().filter_map(|operation| match &operation.outcome {
            Outcome::Answered(Answer::Elements(elements)) => Some(elements.as_slice()),
            _ => None,
        });
        let longest = longest.max_by_key(|elements| elements.len()).unwrap_or_default();
        Self { answered, uncertain, longest }
    }

    /// Whether any call of this sort can stand for all: an uncertain increment, or an uncertain append that no read saw.
    /// Each makes the value one longer, and none must precede another call.
    fn is_interchangeable(&self, operation: &Operation) -> bool {
        match operation.call {
            Call::Increment => true,
            Call::Append(element) => !self.longest.contains(&element),
            Call::Read | Call::Set(_) => false,
        }
    }

    /// Whether this element may come next in a log, by the longest log that a read saw.
    fn may_follow(&self, held: &State, call: Call) -> bool {
        let (State::Log(elements), Call::Append(element)) = (held, call) else { return true };
        self.longest.get(elements.len()).is_none_or(|seen| *seen == element)
    }

    /// Beyond the longest log that a read saw, only the number of elements matters.
    fn forget_unread(&self, held: &mut State) {
        if let State::Log(elements) = held
            && elements.len() > self.longest.len()
            && let Some(last) = elements.last_mut()
        {
            *last = UNREAD;
        }
    }

    fn at(&self, at: usize) -> Option<(&'a Operation, Option<&'a Answer>)> {
        if let Some(operation) = self.answered.get(at) {
            let Outcome::Answered(answer) = &operation.outcome else { return None };
            return Some((operation, Some(answer)));
        }
        self.uncertain.get(at - self.answered.len()).map(|operation| (*operation, None))
    }

    /// The calls that may come next: those that began before the earliest return of a call that is not done. If a read
    /// fits, it is the only one to try: it changes nothing, so every other call can follow it.
    fn frame(&self, done: Done, held: State, first: usize, answered_done: usize) -> Frame {
        let first = (first..self.answered.len()).find(|at| !done.has(*at)).unwrap_or(self.answered.len());
        let mut earliest_return = u64::MAX;
        let mut answered = Vec::new();
        for (at, operation) in self.answered.iter().enumerate().skip(first) {
            if operation.invoked > earliest_return {
                break;
            }
            if done.has(at) {
                continue;
            }
            earliest_return = earliest_return.min(operation.returned);
            answered.push(at);
        }
        let fits = |at: &usize| {
            self.at(*at).is_some_and(|(operation, answer)| {
                operation.call == Call::Read && held.after(Call::Read, answer).is_some()
            })
        };
        if let Some(read) = answered.iter().copied().find(fits) {
            return Frame { done, held, first, answered_done, untried: vec![read] };
        }
        // Uncertain calls are tried last: they take effect only where another call needs them.
        let mut one_before = false;
        let mut untried: Vec<usize> = (self.answered.len()..)
            .zip(&self.uncertain)
            .filter(|(at, operation)| operation.invoked <= earliest_return && !done.has(*at))
            .filter(|(_, operation)| {
                !self.is_interchangeable(operation) || !std::mem::replace(&mut one_before, true)
            })
            .map(|(at, _)| at)
            .collect();
        untried.extend(answered.into_iter().rev());
        Frame { done, held, first, answered_done, untried }
    }

    fn stuck(&self, frame: &Frame) -> Stuck {
        let next = frame.untried.iter().filter_map(|at| self.at(*at)).map(|(operation, _)| operation.clone());
        Stuck {
            explained: frame.answered_done,
            of: self.answered.len(),
            held: frame.held.clone(),
            next: next.collect(),
        }
    }
}
