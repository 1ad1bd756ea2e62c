//! The history of one writer, and its check against the keys that are read back. No network, no time.

/// A writer then overwrites its oldest keys, which bounds its memory.
const KEYS_MAX: usize = 50_000;
/// Values are padded to this length.
const VALUE_BYTES: usize = 64;
/// Further findings are only counted.
const FINDINGS_MAX: usize = 10;

/// One write to a key of this writer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Write {
    Increment,
    Set { key: usize, value: u64 },
}

/// A key that only this writer writes, and never again after an uncertain write. That write could take effect after a
/// newer one, which would look like a loss.
#[derive(Clone, Debug, Default)]
struct WrittenKey {
    acked: Option<u64>,
    uncertain: Option<u64>,
}

pub(crate) struct History {
    writer: usize,
    keys: Vec<WrittenKey>,
    keys_max: usize,
    next_overwritten: usize,
    next_value: u64,
    counter: Counter,
    /// Answers that contradict earlier ones.
    contradictions: Vec<String>,
}

#[derive(Default)]
struct Counter {
    acked: u64,
    uncertain: u64,
    last_reply: i64,
}

/// The values read back: the counter's text, and a value for each of `keys()`.
pub(super) struct Observed {
    pub(super) counter: Option<String>,
    pub(super) values: Vec<Option<String>>,
}

/// The result of the check over all writers.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    /// Acknowledged writes whose effect was looked for.
    pub(crate) checked: u64,
    pub(crate) lost: u64,
    /// Effects without a cause: a write applied twice, a value never written.
    pub(crate) foreign: u64,
    pub(crate) findings: Vec<String>,
}

impl Audit {
    pub(crate) fn clean(&self) -> bool {
        self.lost == 0 && self.foreign == 0
    }

    fn finding(&mut self, text: String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(text);
        }
    }
}

impl History {
    pub(super) fn new(writer: usize) -> Self {
        Self {
            writer,
            keys: Vec::new(),
            keys_max: KEYS_MAX,
            next_overwritten: 0,
            next_value: 1,
            counter: Counter::default(),
            contradictions: Vec::new(),
        }
    }

    pub(super) fn counter_key(&self) -> String {
        format!("counter:{}", self.writer)
    }

    pub(super) fn key(&self, key: usize) -> String {
        format!("key:{}:{key}", self.writer)
    }

    /// Unique among all values of all writers.
    pub(super) fn value(&self, value: u64) -> String {
        format!("{:.<VALUE_BYTES$}", format!("{}:{value}:", self.writer))
    }

    pub(super) fn keys(&self) -> Vec<String> {
        (0..self.keys.len()).map(|key| self.key(key)).collect()
    }

    /// The next write to make: one in four increments the counter.
    pub(super) fn next(&mut self, random: &mut fastrand::Rng) -> Write {
        if random.u8(..4) == 0 {
            return Write::Increment;
        }
        match self.next_key() {
            None => Write::Increment,
            Some(key) => {
                let value = self.next_value;
                self.next_value += 1;
                Write::Set { key, value }
            }
        }
    }

    /// A new key up to the maximum, then the oldest without an uncertain write.
    fn next_key(&mut self) -> Option<usize> {
        if self.keys.len() < self.keys_max {
            self.keys.push(WrittenKey::default());
            return Some(self.keys.len() - 1);
        }
        let count = self.keys.len();
        let from = self.next_overwritten;
        let key = (from..from + count)
            .map(|at| at % count)
            .find(|at| self.keys.get(*at).is_some_and(|key| key.uncertain.is_none()))?;
        self.next_overwritten = (key + 1) % count;
        Some(key)
    }

    /// `reply` is the counter's new value.
    pub(super) fn acked(&mut self, write: &Write, reply: Option<i64>) {
        match write {
            Write::Set { key, value } => {
                if let Some(key) = self.keys.get_mut(*key) {
                    key.acked = Some(*value);
                }
            }
            Write::Increment => {
                let counter = &mut self.counter;
                counter.acked += 1;
                let reply = reply.unwrap_or_default();
                let most = counter.acked + counter.uncertain;
                let possible = reply > counter.last_reply && reply.unsigned_abs() <= most;
                if !possible && self.contradictions.len() < FINDINGS_MAX {
                    self.contradictions.push(format!(
                        "counter:{} answered {reply} after {}, with {} increments acknowledged and {} uncertain",
                        self.writer, counter.last_reply, counter.acked, counter.uncertain
                    ));
                }
                counter.last_reply = counter.last_reply.max(reply);
            }
        }
    }

    pub(super) fn uncertain(&mut self, write: &Write) {
        match write {
            Write::Increment => self.counter.uncertain += 1,
            Write::Set { key, value } => {
                if let Some(key) = self.keys.get_mut(*key) {
                    key.uncertain = Some(*value);
                }
            }
        }
    }

    pub(super) fn check(&self, observed: &Observed, audit: &mut Audit) {
        for finding in &self.contradictions {
            audit.lost += 1;
            audit.finding(finding.clone());
        }
        self.check_counter(observed.counter.as_deref(), audit);
        for (index, key) in self.keys.iter().enumerate() {
            let found = observed.values.get(index).and_then(Option::as_deref);
            self.check_key(index, key, found, audit);
        }
    }

    fn check_counter(&self, found: Option<&str>, audit: &mut Audit) {
        let Counter { acked, uncertain, .. } = self.counter;
        audit.checked += acked;
        let Ok(value) = found.unwrap_or("0").parse::<u64>() else {
            audit.foreign += 1;
            audit.finding(format!("{} holds {found:?}, not a number", self.counter_key()));
            return;
        };
        if value < acked {
            audit.lost += acked - value;
            audit.finding(format!(
                "{} is {value}, but {acked} increments were acknowledged",
                self.counter_key()
            ));
        }
        if value > acked + uncertain {
            audit.foreign += value - acked - uncertain;
            audit.finding(format!(
                "{} is {value}, but only {} were sent",
                self.counter_key(),
                acked + uncertain
            ));
        }
    }

    fn check_key(&self, index: usize, key: &WrittenKey, found: Option<&str>, audit: &mut Audit) {
        audit.checked += u64::from(key.acked.is_some());
        let is = |value: Option<u64>| value.is_some_and(|value| found == Some(self.value(value).as_str()));
        let right = is(key.acked) || is(key.uncertain) || (key.acked.is_none() && found.is_none());
        if right {
            return;
        }
        let acked = key.acked.map(|value| self.value(value));
        if acked.is_some() {
            audit.lost += 1;
        } else {
            audit.foreign += 1;
        }
        audit.finding(format!("{} holds {found:?}, acknowledged was {acked:?}", self.key(index)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(key: usize, value: u64) -> Write {
        Write::Set { key, value }
    }

    /// A writer with three acknowledged SETs and two acknowledged increments, and what an honest cluster returns.
    fn honest() -> (History, Observed) {
        let mut history = History::new(3);
        for value in 1..=3 {
            let key = history.next_key().unwrap();
            history.acked(&set(key, value), None);
        }
        history.acked(&Write::Increment, Some(1));
        history.acked(&Write::Increment, Some(2));
        let values = (1..=3).map(|value| Some(history.value(value))).collect();
        (history, Observed { counter: Some("2".to_owned()), values })
    }

    fn judged(history: &History, observed: &Observed) -> Audit {
        let mut audit = Audit::default();
        history.check(observed, &mut audit);
        audit
    }

    #[test]
    fn an_honest_cluster_is_clean_and_everything_was_checked() {
        let (history, observed) = honest();
        let audit = judged(&history, &observed);
        assert!(audit.clean(), "{audit:?}");
        assert_eq!(audit.checked, 5);
    }

    #[test]
    fn a_lost_set_is_found() {
        let (history, mut observed) = honest();
        observed.values[1] = None;
        let audit = judged(&history, &observed);
        assert_eq!((audit.lost, audit.foreign), (1, 0));
        assert!(audit.findings[0].starts_with("key:3:1 holds None"), "{audit:?}");
    }

    #[test]
    fn an_older_value_in_place_of_an_acknowledged_one_is_a_loss() {
        let (mut history, observed) = honest();
        history.acked(&set(0, 9), None);
        assert_eq!(judged(&history, &observed).lost, 1);
    }

    #[test]
    fn a_lost_increment_is_found() {
        let (history, mut observed) = honest();
        observed.counter = Some("1".to_owned());
        assert_eq!(judged(&history, &observed).lost, 1);
        observed.counter = None;
        assert_eq!(judged(&history, &observed).lost, 2);
    }

    #[test]
    fn a_write_applied_twice_is_found() {
        let (history, mut observed) = honest();
        observed.counter = Some("3".to_owned());
        let audit = judged(&history, &observed);
        assert_eq!((audit.lost, audit.foreign), (0, 1));
    }

    #[test]
    fn an_uncertain_write_may_be_there_or_not() {
        let (mut history, mut observed) = honest();
        history.uncertain(&Write::Increment);
        let fresh = history.next_key().unwrap();
        history.uncertain(&set(fresh, 8));
        history.uncertain(&set(0, 9));
        observed.values.push(None);
        assert!(judged(&history, &observed).clean());

        observed.counter = Some("3".to_owned());
        observed.values[fresh] = Some(history.value(8));
        observed.values[0] = Some(history.value(9));
        assert!(judged(&history, &observed).clean());

        observed.values[0] = Some(history.value(2));
        assert_eq!(judged(&history, &observed).lost, 1, "any other value is a loss");
    }

    #[test]
    fn a_refused_write_that_is_there_is_foreign() {
        let (mut history, mut observed) = honest();
        history.next_key().unwrap();
        observed.values.push(Some(history.value(8)));
        assert_eq!(judged(&history, &observed).foreign, 1);
    }

    #[test]
    fn a_counter_that_goes_back_while_the_load_runs_is_a_loss() {
        let (mut history, mut observed) = honest();
        history.acked(&Write::Increment, Some(2));
        history.acked(&Write::Increment, Some(4));
        observed.counter = Some("4".to_owned());
        assert_eq!(judged(&history, &observed).lost, 1);
    }

    #[test]
    fn memory_is_bounded_and_an_uncertain_key_is_never_written_again() {
        let mut history = History::new(0);
        history.keys_max = 3;
        let mut random = fastrand::Rng::with_seed(1);
        history.keys.resize(3, WrittenKey::default());
        history.uncertain(&set(1, 77));
        for _ in 0..1_000 {
            if let Write::Set { key, .. } = history.next(&mut random) {
                assert_ne!(key, 1);
            }
        }
        assert_eq!(history.keys.len(), 3);
    }
}
