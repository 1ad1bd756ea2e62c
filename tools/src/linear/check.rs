//! The search for an order: depth first over the calls that may come next, as Wing and Gong do it, without entering a
//! configuration (which calls are done, what the key holds) a second time, which is Lowe's addition.
//!
//! The search is bounded in steps and in remembered configurations. Where a bound ends it, the verdict is `Unknown`.

use std::collections::HashSet;
use std::fmt;

use super::history::{Answer, Call, Kind, Operation, Outcome, Shortened};

/// What a search may cost. Counted, not timed: a verdict does not depend on the machine.
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
    /// The budget ended first: nothing is proven.
    Unknown {
        steps: u64,
    },
}

/// The longest explanation that was found, and what does not fit behind it.
#[derive(Debug)]
pub(crate) struct Stuck {
    explained: usize,
    of: usize,
    held: State,
    next: Vec<Operation>,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {} of {} calls it holds {}, and none fits of:", self.explained, self.of, self.held)?;
        self.next.iter().try_for_each(|operation| write!(f, "\n    {operation}"))
    }
}

/// What the key holds.
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

    /// What it holds after the call; none if the call could not have been answered so. Without an answer, any is right.
    fn after(&self, call: Call, answer: Option<&Answer>) -> Option<Self> {
        let (next, told) = match (self, call) {
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
        answer.is_none_or(|answer| *answer == told).then_some(next)
    }
}

/// Which calls are done.
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
    /// The next is the last.
    untried: Vec<usize>,
}

/// Stands for any element that no read saw; those that clients append begin at 1.
const UNREAD: u32 = 0;

struct Search<'a> {
    /// By invocation. Their positions come first, those of the uncertain behind them.
    answered: Vec<&'a Operation>,
    uncertain: Vec<&'a Operation>,
    /// The most that any read saw of a log. What it holds is a part of that at first, and begins with it later: elements
    /// are never taken away.
    longest: &'a [u32],
}

/// `operations` are all calls of one key of that kind, in any order.
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
    /// Leaves out what cannot matter: calls that never took effect, reads nobody heard the answer of, and uncertain
    /// writes of a register whose value was never read (an order without it is as good as one with it).
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

    /// Uncertain increments are alike, and so are uncertain appends that no read saw: they make it one more. None of them
    /// has to come before anything, so that the first of them does for all.
    fn is_alike(&self, operation: &Operation) -> bool {
        match operation.call {
            Call::Increment => true,
            Call::Append(element) => !self.longest.contains(&element),
            Call::Read | Call::Set(_) => false,
        }
    }

    /// Whether a log that holds so much may get this element next.
    fn may_follow(&self, held: &State, call: Call) -> bool {
        let (State::Log(elements), Call::Append(element)) = (held, call) else { return true };
        self.longest.get(elements.len()).is_none_or(|seen| *seen == element)
    }

    /// No read saw a log that is longer: of what stands there only the number matters.
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

    /// The calls that may come next: those made before any call that is not done had returned. A read that fits is the
    /// only one: it changes nothing, so that whatever may follow may follow it.
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
        // The uncertain are tried last, so that they take effect only where something needs them.
        let mut alike_before = false;
        let mut untried: Vec<usize> = (self.answered.len()..)
            .zip(&self.uncertain)
            .filter(|(at, operation)| operation.invoked <= earliest_return && !done.has(*at))
            .filter(|(_, operation)| !self.is_alike(operation) || !std::mem::replace(&mut alike_before, true))
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
