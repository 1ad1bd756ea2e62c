//! How loudly a refused connection is logged. Every one is counted, and some have a line: strangers who call hundreds of
//! times a second must not fill a disk.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::transport::Refusal;

/// Election timeouts for which callers may come too early before that is a warning.
const PATIENCE_ELECTIONS: u32 = 3;
/// Warnings in such a time.
const WARNINGS_MAX: u32 = 20;

/// How a refusal is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loudness {
    /// Something calls that should not.
    Warn,
    /// As it must be now and then.
    Info,
    /// It was told already, or too many were.
    Quiet,
}

/// Remembers since when callers come before any group runs here. While a cluster starts they all do, again and again, and
/// nothing is wrong; but a node whose group is never started must not stay silent about it.
pub(super) struct Refusals {
    patience: Duration,
    early: Mutex<Option<Early>>,
    /// When the present period began, and warnings since.
    warned: Mutex<Option<(Instant, u32)>>,
}

struct Early {
    first: Instant,
    warned: Option<Instant>,
}

impl Refusals {
    /// `election_timeout` is the longest.
    pub(super) fn new(election_timeout: Duration) -> Self {
        Self {
            patience: election_timeout * PATIENCE_ELECTIONS,
            early: Mutex::default(),
            warned: Mutex::default(),
        }
    }

    /// Of a refusal at `now`, by a node that runs a group or does not yet.
    pub(super) fn loudness(&self, refusal: &Refusal, runs: bool, now: Instant) -> Loudness {
        match refusal {
            Refusal::UnknownPeer { .. } if !runs => self.early(now),
            // Transports say so of what they cut while this node stops.
            Refusal::ShuttingDown => Loudness::Info,
            _ => self.warning(now),
        }
    }

    fn warning(&self, now: Instant) -> Loudness {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, count) = warned
            .filter(|(since, _)| now.saturating_duration_since(*since) < self.patience)
            .unwrap_or((now, 0));
        *warned = Some((since, count.saturating_add(1)));
        if count < WARNINGS_MAX { Loudness::Warn } else { Loudness::Quiet }
    }

    fn early(&self, now: Instant) -> Loudness {
        let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(early) = early.as_mut() else {
            *early = Some(Early { first: now, warned: None });
            return Loudness::Info;
        };
        // A warning a period: peers call several times a second.
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
    fn callers_before_the_first_group_are_told_once_and_warned_of_only_when_it_lasts() {
        let (refusals, start) = (Refusals::new(ELECTION), Instant::now());
        let at = |seconds| {
            let now = start + Duration::from_secs(seconds);
            refusals.loudness(&Refusal::UnknownPeer { peer: 2 }, false, now)
        };
        let heard: Vec<_> = (0..14).map(at).collect();
        let quiet = [Loudness::Quiet; 5];
        assert_eq!((heard[0], &heard[1..6], heard[6]), (Loudness::Info, &quiet[..], Loudness::Warn));
        assert_eq!((&heard[7..12], heard[12], heard[13]), (&quiet[..], Loudness::Warn, Loudness::Quiet));
    }

    #[test]
    fn what_time_does_not_mend_is_a_warning_at_once_and_each_time() {
        let (refusals, now) = (Refusals::new(ELECTION), Instant::now());
        let wrong_cluster = Refusal::WrongCluster { ours: "c".into() };
        for _ in 0..2 {
            assert_eq!(refusals.loudness(&Refusal::UnknownPeer { peer: 2 }, true, now), Loudness::Warn);
            assert_eq!(refusals.loudness(&wrong_cluster, false, now), Loudness::Warn);
        }
        assert_eq!(refusals.loudness(&Refusal::ShuttingDown, true, now), Loudness::Info);
    }

    #[test]
    fn a_flood_has_so_many_lines_a_period_and_no_more() {
        let (refusals, start) = (Refusals::new(ELECTION), Instant::now());
        let warned = |from: Duration| {
            let loud = |n: u32| {
                let now = start + from + Duration::from_millis(n.into());
                refusals.loudness(&Refusal::TooManyConnections, true, now) == Loudness::Warn
            };
            (0..1000).filter(|n| loud(*n)).count() as u32
        };
        assert_eq!(warned(Duration::ZERO), WARNINGS_MAX);
        assert_eq!(warned(ELECTION), 0, "the same period");
        assert_eq!(warned(ELECTION * PATIENCE_ELECTIONS), WARNINGS_MAX, "the next");
    }
}
