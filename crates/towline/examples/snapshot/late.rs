//! How late heartbeats came, with and without the freezes of the machine.

use std::fmt;
use std::time::Duration;

use crate::freezes::{Freezes, Span};

/// The freezes count only if the kernel reports at least this part of them as stolen. Otherwise this program may have
/// delayed the watching threads.
const ADMITTED_MIN: f64 = 0.5;

/// Sorted delays: by the clock, and without the freezes.
pub(crate) struct Late {
    all: Vec<Duration>,
    net: Option<Vec<Duration>>,
    freezes: Option<Freezes>,
}

impl Late {
    pub(crate) fn new(late: &[Span], freezes: Option<Freezes>) -> Self {
        let sorted = |mut all: Vec<Duration>| {
            all.sort_unstable();
            all
        };
        let all = sorted(late.iter().map(|(due, came)| *came - *due).collect());
        let believed = freezes.as_ref().filter(|f| f.stolen >= f.total().mul_f64(ADMITTED_MIN));
        let net = believed.map(|freezes| {
            let own = |span: &Span| (span.1 - span.0).saturating_sub(freezes.within(*span));
            sorted(late.iter().map(own).collect())
        });
        Self { all, net, freezes }
    }

    /// The 99th percentile in milliseconds that the goal applies to, and its description.
    pub(crate) fn p99(&self) -> (f64, &'static str) {
        match &self.net {
            Some(net) => (at(net, 99), "but for the machine's pauses"),
            None => (at(&self.all, 99), "by the clock"),
        }
    }

    pub(crate) fn heartbeats(&self) -> usize {
        self.all.len()
    }
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figures = |all: &[Duration]| {
            format!("p50 {:.2} ms, p99 {:.2} ms, at most {:.2} ms", at(all, 50), at(all, 99), at(all, 100))
        };
        write!(f, "by the clock: {}, of {}", figures(&self.all), self.all.len())?;
        match &self.freezes {
            Some(freezes) => write!(f, "\n  {freezes}")?,
            None => write!(f, "\n  freezes of the machine are unknown")?,
        }
        self.net.as_ref().map_or(Ok(()), |net| write!(f, "\n  without those spans: {}", figures(net)))
    }
}

impl fmt::Display for Freezes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |time: Duration| 100.0 * time.as_secs_f64() / self.watched.as_secs_f64();
        write!(
            f,
            "all processors stood still for {:.1} % of the time, {:.0} ms at once; the host took {:.1} %",
            share(self.total()),
            self.longest().as_secs_f64() * 1000.0,
            share(self.stolen)
        )
    }
}

/// A percentile of sorted durations, in milliseconds.
fn at(all: &[Duration], percent: usize) -> f64 {
    all.get(all.len().saturating_sub(1) * percent / 100).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
}
