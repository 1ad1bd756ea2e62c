//! How late heartbeats were, and how much of that the machine is to blame for.

use std::fmt;
use std::time::Duration;

use crate::freezes::{self, Span};

/// How late heartbeats came, in order: as the clock has it, and without the spans in which the machine stood still.
pub(crate) struct Late {
    all: Vec<Duration>,
    net: Option<Vec<Duration>>,
    frozen: Duration,
}

impl Late {
    pub(crate) fn new(late: &[Span], freezes: Option<&[Span]>) -> Self {
        let sorted = |mut all: Vec<Duration>| {
            all.sort_unstable();
            all
        };
        let all = sorted(late.iter().map(|(due, came)| *came - *due).collect());
        let net = freezes.map(|freezes| {
            let own = |span: &Span| (span.1 - span.0).saturating_sub(freezes::within(*span, freezes));
            sorted(late.iter().map(own).collect())
        });
        Self { all, net, frozen: freezes.unwrap_or_default().iter().map(|(from, to)| *to - *from).sum() }
    }

    /// What the product answers for, at the 99th percentile.
    pub(crate) fn p99(&self) -> f64 {
        at(self.net.as_ref().unwrap_or(&self.all), 99)
    }
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figures = |all: &[Duration]| {
            format!("p50 {:.2} ms, p99 {:.2} ms, at most {:.2} ms", at(all, 50), at(all, 99), at(all, 100))
        };
        write!(f, "{} of {}", figures(&self.all), self.all.len())?;
        match &self.net {
            Some(net) => {
                write!(
                    f,
                    "; but for the {} ms in which no processor ran: {}",
                    self.frozen.as_millis(),
                    figures(net)
                )
            }
            None => write!(f, "; whether the machine stood still is not known"),
        }
    }
}

/// Of durations in order, in milliseconds.
fn at(all: &[Duration], percent: usize) -> f64 {
    all.get(all.len().saturating_sub(1) * percent / 100).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
}
