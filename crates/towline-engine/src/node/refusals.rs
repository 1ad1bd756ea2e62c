//! The log level of refused connections. All are counted and few are logged: callers that retry hundreds of times a second
//! must not fill a disk.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::sync::lock;
use crate::transport::Refusal;

/// The length of a period, in election timeouts. Early callers get a warning after one period.
const PATIENCE_ELECTIONS: u32 = 3;
/// The most warnings in one period.
const WARNINGS_MAX: u32 = 20;
/// The refusals that the node remembers to space their lines.
const RECENT_MAX: usize = 64;
/// The wait after the first line about a lasting fault. It doubles after each further line.
const LINE_WAIT: Duration = Duration::from_secs(5);
/// The longest wait between two lines. A refusal that was not seen for so long is new again.
const LINE_WAIT_MAX: Duration = Duration::from_secs(600);

/// Spaces the log lines about one lasting fault: after each line the wait for the next one doubles.
pub(super) struct Spaced {
    from: Instant,
    wait: Duration,
}

impl Spaced {
    /// A fault that begins at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self { from: now, wait: LINE_WAIT }
    }

    /// Whether a further line is due.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let due = now.saturating_duration_since(self.from) >= self.wait;
        if due {
            (self.from, self.wait) = (now, (self.wait * 2).min(LINE_WAIT_MAX));
        }
        due
    }
}

/// The log level of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loudness {
    /// A caller that should not call.
    Warn,
    /// An expected refusal.
    Info,
    /// Logged already in this period, or too many warnings.
    Quiet,
}

/// Chooses the log level of refusals. While a cluster starts, peers call before a group runs here, and nothing is wrong. If
/// that lasts, the node warns: its group may never have been started.
pub(super) struct Refusals {
    patience: Duration,
    early: Mutex<Option<Early>>,
    /// The begin of the present period, and its warnings.
    warned: Mutex<Option<(Instant, u32)>>,
    /// At most [`RECENT_MAX`].
    recent: Mutex<Vec<Recent>>,
}

/// A refusal that was logged.
struct Recent {
    refusal: Refusal,
    last: Instant,
    lines: Spaced,
}

struct Early {
    first: Instant,
    warned: Option<Instant>,
}

impl Refusals {
    /// `election_timeout` is the maximum of the random range.
    pub(super) fn new(election_timeout: Duration) -> Self {
        Self {
            patience: election_timeout * PATIENCE_ELECTIONS,
            early: Mutex::default(),
            warned: Mutex::default(),
            recent: Mutex::default(),
        }
    }

    /// The log level of a refusal at `now`. `runs`: whether the node runs a group.
    pub(super) fn loudness(&self, refusal: &Refusal, runs: bool, now: Instant) -> Loudness {
        match refusal {
            Refusal::UnknownPeer { .. } if !runs => self.early(now),
            // Transports refuse so while this node stops.
            Refusal::ShuttingDown => Loudness::Info,
            _ if !self.is_due(refusal, now) => Loudness::Quiet,
            Refusal::Displaced => Loudness::Info,
            _ => self.warning(now),
        }
    }

    /// Whether a line about this refusal is due: a caller that is refused calls again several times a second.
    fn is_due(&self, refusal: &Refusal, now: Instant) -> bool {
        let mut recent = lock(&self.recent);
        recent.retain(|known| now.saturating_duration_since(known.last) < LINE_WAIT_MAX);
        if let Some(known) = recent.iter_mut().find(|known| known.refusal == *refusal) {
            known.last = now;
            return known.lines.is_due(now);
        }
        if recent.len() >= RECENT_MAX {
            let oldest = recent.iter().enumerate().min_by_key(|(_, known)| known.last).map(|(at, _)| at);
            oldest.into_iter().for_each(|at| drop(recent.swap_remove(at)));
        }
        recent.push(Recent { refusal: refusal.clone(), last: now, lines: Spaced::new(now) });
        true
    }

    fn warning(&self, now: Instant) -> Loudness {
        let mut warned = lock(&self.warned);
        let (since, count) = warned
            .filter(|(since, _)| now.saturating_duration_since(*since) < self.patience)
            .unwrap_or((now, 0));
        *warned = Some((since, count.saturating_add(1)));
        if count < WARNINGS_MAX { Loudness::Warn } else { Loudness::Quiet }
    }

    fn early(&self, now: Instant) -> Loudness {
        let mut early = lock(&self.early);
        let Some(early) = early.as_mut() else {
            *early = Some(Early { first: now, warned: None });
            return Loudness::Info;
        };
        // One warning in a period, because peers call several times a second.
        if now.saturating_duration_since(early.warned.unwrap_or(early.first)) < self.patience {
            return Loudness::Quiet;
        }
        early.warned = Some(now);
        Loudness::Warn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ELECTION: Duration = Duration::from_secs(2);

    #[test]
    fn callers_before_the_first_group_are_logged_once_then_warned_about_once_a_period() {
        let (refusals, start) = (Refusals::new(ELECTION), Instant::now());
        let at = |seconds| {
            let now = start + Duration::from_secs(seconds);
            refusals.loudness(&Refusal::UnknownPeer { peer: 2, founded: Vec::new() }, false, now)
        };
        let heard: Vec<_> = (0..14).map(at).collect();
        let quiet = [Loudness::Quiet; 5];
        assert_eq!((heard[0], &heard[1..6], heard[6]), (Loudness::Info, &quiet[..], Loudness::Warn));
        assert_eq!((&heard[7..12], heard[12], heard[13]), (&quiet[..], Loudness::Warn, Loudness::Quiet));
    }

    #[test]
    fn other_refusals_are_warnings_at_once() {
        let (refusals, now) = (Refusals::new(ELECTION), Instant::now());
        let wrong_cluster = Refusal::WrongCluster { ours: "c".into() };
        assert_eq!(
            refusals.loudness(&Refusal::UnknownPeer { peer: 2, founded: Vec::new() }, true, now),
            Loudness::Warn
        );
        assert_eq!(refusals.loudness(&wrong_cluster, false, now), Loudness::Warn);
        for expected in [Refusal::ShuttingDown, Refusal::Displaced] {
            assert_eq!(refusals.loudness(&expected, true, now), Loudness::Info);
        }
    }

    /// A wiped node that kept calling gave four lines a second for ever.
    #[test]
    fn a_caller_that_keeps_calling_gets_ever_fewer_warnings() {
        let (refusals, start) = (Refusals::new(ELECTION), Instant::now());
        let wiped = Refusal::WrongIncarnation { peer: 2 };
        let warned = |seconds: std::ops::Range<u64>| {
            let at = |n| start + Duration::from_secs(seconds.start) + Duration::from_millis(250 * n);
            let calls = (0..4 * (seconds.end - seconds.start)).map(at);
            calls.filter(|now| refusals.loudness(&wiped, true, *now) == Loudness::Warn).count()
        };
        let (first, later) = (warned(0..600), warned(600..7_200));
        assert!((3..10).contains(&first) && later <= 12, "{first} in ten minutes, then {later}");
        let other = Refusal::WrongIncarnation { peer: 3 };
        assert_eq!(refusals.loudness(&other, true, start), Loudness::Warn, "another caller");
    }

    #[test]
    fn a_flood_gets_a_bounded_number_of_warnings_a_period() {
        let (refusals, start) = (Refusals::new(ELECTION), Instant::now());
        let warned = |from: Duration| {
            let loud = |n: u32| {
                let now = start + from + Duration::from_millis(n.into());
                let other = Refusal::Malformed { detail: n.to_string() };
                refusals.loudness(&other, true, now) == Loudness::Warn
            };
            (0..1000).filter(|n| loud(*n)).count() as u32
        };
        assert_eq!(warned(Duration::ZERO), WARNINGS_MAX);
        assert_eq!(warned(ELECTION), 0, "the same period");
        assert_eq!(warned(ELECTION * PATIENCE_ELECTIONS), WARNINGS_MAX, "the next");
    }
}
