//! The report on all keys of a run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::check::{BUDGET, Verdict, check};
use super::clients::Noted;
use super::history::{Call, Key, Kind, Operation, Outcome};
use super::sizes;
use crate::Result;

/// Further findings are only counted.
const FINDINGS_MAX: usize = 5;

#[derive(Default)]
pub(crate) struct Report {
    answered: u64,
    failed: u64,
    uncertain: u64,
    reads: u64,
    /// Keys of each kind.
    keys: BTreeMap<Kind, u64>,
    linearizable: u64,
    violated: BTreeSet<Key>,
    unknown: BTreeSet<Key>,
    broken: BTreeMap<Key, u64>,
    reads_elsewhere: u64,
    sizes: usize,
    sizes_elsewhere: usize,
    sizes_shrunk: usize,
    findings: Vec<String>,
    took: Duration,
}

impl Report {
    /// Checks every key, on all cores. Writes histories that do not pass to `directory`.
    pub(crate) fn of(noted: &Noted, directory: &Path) -> Result<Self> {
        let begun = Instant::now();
        let mut report = Self { broken: noted.broken.clone(), ..Self::default() };
        for (key, operations) in &noted.histories {
            *report.keys.entry(key.kind).or_default() += 1;
            operations.iter().for_each(|operation| report.count(operation));
        }
        // Of the falsified keys only one is shown.
        let mut expected = None;
        for (key, verdict) in judge_all(&noted.histories)? {
            let said = match verdict {
                Verdict::Linearizable => {
                    report.linearizable += 1;
                    continue;
                }
                Verdict::Violation(stuck) => {
                    report.violated.insert(key);
                    format!("{} is not linearizable: {stuck}", key.name())
                }
                Verdict::Unknown { steps } => {
                    report.unknown.insert(key);
                    format!("{} is not decided after {steps} steps", key.name())
                }
            };
            if let Some(operations) = noted.histories.get(&key) {
                write_history(directory, key, operations)?;
            }
            if report.broken.contains_key(&key) {
                expected.get_or_insert(said);
            } else {
                report.findings.push(said);
            }
        }
        let shrunk = sizes::shrunk(&noted.sizes);
        report.reads_elsewhere = noted.reads_elsewhere;
        report.sizes = noted.sizes.len();
        report.sizes_elsewhere = noted.sizes.iter().filter(|read| read.elsewhere).count();
        report.sizes_shrunk = shrunk.len();
        for (earlier, read) in shrunk {
            report.findings.push(format!("the number of keys shrank: {earlier}, then {read}"));
        }
        report.findings.truncate(FINDINGS_MAX);
        report.findings.extend(expected);
        report.took = begun.elapsed();
        Ok(report)
    }

    fn count(&mut self, operation: &Operation) {
        match operation.outcome {
            Outcome::Answered(_) => {
                self.answered += 1;
                self.reads += u64::from(operation.call == Call::Read);
            }
            Outcome::Failed => self.failed += 1,
            Outcome::Uncertain => self.uncertain += 1,
        }
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        let of = |kind| self.keys.get(&kind).copied().unwrap_or_default();
        let all: u64 = self.keys.values().sum();
        let mut lines: Vec<String> = self.findings.iter().map(|finding| format!("  {finding}")).collect();
        lines.push(format!(
            "{:<26}{} answered ({} reads, {} of them at followers), {} failed, {} uncertain",
            "noted calls", self.answered, self.reads, self.reads_elsewhere, self.failed, self.uncertain
        ));
        lines.push(format!(
            "{:<26}{} registers, {} logs, {} counters",
            "keys",
            of(Kind::Register),
            of(Kind::Log),
            of(Kind::Counter)
        ));
        lines.push(format!(
            "{:<26}{} of {all} keys, {} violated, {} unknown, judged in {:.2} s",
            "linearizable",
            self.linearizable,
            self.violated.len(),
            self.unknown.len(),
            self.took.as_secs_f64()
        ));
        lines.push(format!(
            "{:<26}{} reads, {} of them not at the leader, {} of old state",
            "numbers of keys", self.sizes, self.sizes_elsewhere, self.sizes_shrunk
        ));
        if !self.broken.is_empty() {
            let reads: u64 = self.broken.values().sum();
            let caught = self.broken.keys().filter(|key| self.violated.contains(key)).count();
            lines.push(format!(
                "{:<26}{reads} reads of {} keys, of which the checker found {caught}",
                "falsified",
                self.broken.len()
            ));
        }
        lines
    }

    /// Returns an error unless every key is linearizable, or exactly the falsified keys are not.
    pub(crate) fn judge(&self, broken: bool) -> Result<()> {
        if self.reads == 0 || self.answered == self.reads {
            return Err("no read or no write was answered: nothing is proven".into());
        }
        if self.sizes_elsewhere == 0 || self.reads_elsewhere == 0 {
            return Err("no follower answered a read: reads at followers are not proven".into());
        }
        let unexpected = self.violated.iter().filter(|key| !self.broken.contains_key(key)).count();
        let mut wrong = Vec::new();
        if unexpected > 0 {
            wrong.push(format!("{unexpected} keys are not linearizable"));
        }
        if self.sizes_shrunk > 0 {
            wrong.push(format!("{} reads of the number of keys were of old state", self.sizes_shrunk));
        }
        if !self.unknown.is_empty() {
            wrong.push(format!("{} keys could not be decided", self.unknown.len()));
        }
        if !wrong.is_empty() {
            return Err(wrong.join("; ").into());
        }
        if broken && self.broken.is_empty() {
            return Err("no note was falsified: the control proves nothing".into());
        }
        let missed = self.broken.keys().filter(|key| !self.violated.contains(key)).count();
        if missed > 0 {
            return Err(format!("the checker passed {missed} keys with falsified notes").into());
        }
        Ok(())
    }
}

fn judge_all(histories: &BTreeMap<Key, Vec<Operation>>) -> Result<Vec<(Key, Verdict)>> {
    let waiting = Mutex::new(histories.iter());
    let work = || {
        let mut judged = Vec::new();
        // A panic ends the run below; the iterator is never half advanced.
        while let Some((key, operations)) =
            waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).next()
        {
            judged.push((*key, check(key.kind, operations, BUDGET)));
        }
        judged
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut judged = Vec::new();
        for thread in threads {
            judged.extend(thread.join().map_err(|_| "the checker panicked")?);
        }
        judged.sort_by_key(|(key, _)| *key);
        Ok(judged)
    })
}

fn write_history(directory: &Path, key: Key, operations: &[Operation]) -> Result<()> {
    let mut operations: Vec<&Operation> = operations.iter().collect();
    operations.sort_by_key(|operation| operation.invoked);
    let mut text = String::new();
    for operation in operations {
        writeln!(text, "{operation:#}")?;
    }
    let file = directory.join(format!("history-{}.txt", key.name().replace(':', "-")));
    Ok(fs::write(file, text)?)
}

#[cfg(test)]
mod tests {
    use super::super::history::Answer;
    use super::*;

    const KEY: Key = Key { index: 0, kind: Kind::Register };

    /// A write and a read of one key, and a read at a follower.
    fn noted(seen: u32) -> Noted {
        let operation = |invoked, call, answer| Operation {
            client: 0,
            invoked,
            returned: invoked + 1,
            call,
            outcome: Outcome::Answered(answer),
        };
        let write = operation(0, Call::Set(1), Answer::Done);
        let read = operation(2, Call::Read, Answer::Value(Some(seen)));
        let size = sizes::SizeRead { node: 1, elsewhere: true, invoked: 0, returned: 1, size: 1 };
        let histories = [(KEY, vec![write, read])].into();
        Noted { histories, sizes: vec![size], reads_elsewhere: 1, broken: BTreeMap::new() }
    }

    fn judged(noted: &Noted, broken: bool) -> std::result::Result<(), String> {
        let directory = tempfile::tempdir().unwrap();
        Report::of(noted, directory.path()).unwrap().judge(broken).map_err(|error| error.to_string())
    }

    #[test]
    fn a_run_passes_if_every_key_does() {
        assert_eq!(judged(&noted(1), false), Ok(()));
        assert_eq!(judged(&noted(2), false), Err("1 keys are not linearizable".to_owned()));
    }

    #[test]
    fn a_control_passes_if_exactly_the_falsified_keys_are_found() {
        let broken = |seen| Noted { broken: [(KEY, 1)].into(), ..noted(seen) };
        assert_eq!(judged(&broken(2), true), Ok(()));
        assert!(judged(&broken(1), true).unwrap_err().contains("passed 1 keys"));
        assert!(judged(&noted(1), true).unwrap_err().contains("no note was falsified"));
        assert!(
            judged(&noted(2), true).unwrap_err().contains("not linearizable"),
            "another key than was broken"
        );
    }

    #[test]
    fn an_undecided_key_or_no_read_at_a_follower_is_an_error() {
        let undecided = Report {
            reads: 1,
            answered: 2,
            reads_elsewhere: 1,
            sizes_elsewhere: 1,
            unknown: [KEY].into(),
            ..Report::default()
        };
        assert!(undecided.judge(false).unwrap_err().to_string().contains("could not be decided"));
        assert!(judged(&Noted { sizes: Vec::new(), ..noted(1) }, false).unwrap_err().contains("no follower"));
        assert!(
            judged(&Noted { reads_elsewhere: 0, ..noted(1) }, false).unwrap_err().contains("no follower")
        );
        assert!(judged(&Noted { histories: BTreeMap::new(), ..noted(1) }, false).is_err());
    }
}
