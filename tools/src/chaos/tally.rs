//! The table of a run: faults, recoveries and unexplained stalls of each kind.

use std::collections::BTreeMap;
use std::time::Duration;

use super::schedule::{At, Fault, FaultKind};
use crate::Result;

#[derive(Clone, Copy, Default)]
struct Row {
    times: u32,
    /// How often it hit the leader alone, and all nodes.
    leader: u32,
    everyone: u32,
    slowest: Duration,
    late: u32,
    stalls: usize,
}

#[derive(Default)]
pub(super) struct Tally {
    rows: BTreeMap<FaultKind, Row>,
    late: u32,
    stalls: usize,
}

impl Tally {
    /// `slowest` is `None` if a node did not serve again.
    pub(super) fn round<'a>(
        &mut self,
        faults: impl Iterator<Item = &'a Fault>,
        slowest: Option<Duration>,
        stalls: usize,
        most: Duration,
    ) {
        let late = slowest.is_none_or(|took| took > most);
        self.late += u32::from(late);
        self.stalls += stalls;
        for Fault { kind, at, .. } in faults {
            let row = self.rows.entry(*kind).or_default();
            row.times += 1;
            row.leader += u32::from(*at == At::Leader);
            row.everyone += u32::from(*at == At::Everyone);
            row.slowest = row.slowest.max(slowest.unwrap_or(Duration::MAX));
            row.late += u32::from(late);
            row.stalls += stalls;
        }
    }

    pub(super) fn lines(&self) -> Vec<String> {
        let head = ["times", "at leaders", "at all", "slowest recovery", "too late", "unexplained stalls"];
        let mut lines = vec![String::new(), format!("{:<26}{}", "fault", head.join("  "))];
        for (kind, row) in &self.rows {
            let slowest = match row.slowest {
                Duration::MAX => "never".to_owned(),
                slowest => format!("{:.2} s", slowest.as_secs_f64()),
            };
            lines.push(format!(
                "{:<26}{:>5}  {:>10}  {:>6}  {slowest:>16}  {:>8}  {:>18}",
                kind.to_string(),
                row.times,
                row.leader,
                row.everyone,
                row.late,
                row.stalls
            ));
        }
        lines
    }

    /// The control expects stalls without a wait.
    pub(super) fn judge(&self, control: bool) -> Result<()> {
        if self.rows.is_empty() {
            return Err("no fault was made: nothing is proven".into());
        }
        let mut wrong = Vec::new();
        if self.late > 0 {
            wrong.push(format!("nodes served too late after {} faults", self.late));
        }
        if control && self.stalls == 0 {
            wrong.push("no stall was found, although no wait was read".to_owned());
        }
        if !control && self.stalls > 0 {
            wrong.push(format!("{} stalls had no wait in /status", self.stalls));
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ").into()) }
    }
}
