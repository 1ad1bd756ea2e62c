//! Which faults a run makes, when, and where: decided by the seed alone. No process, no time.

use std::fmt;
use std::time::Duration;

use crate::cluster::NODES;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum FaultKind {
    /// SIGKILL, then a restart with the same command
    Kill,
    /// SIGSTOP, then SIGCONT: a leader then still believes that it leads
    Stop,
    /// A sync of the log that ends only with the fault
    HangingDisk,
    /// Each sync of the log takes 20 to 200 ms longer
    SlowDisk,
    /// The file system of the data directory has no room
    FullDisk,
    /// What one node sends, or what others send to it, does not arrive
    OneWayLink,
    /// What nodes send arrives 20 to 300 ms later
    SlowLink,
    /// The clock of the day is wrong by up to an hour
    SkewedClock,
}

pub(super) const KINDS: [FaultKind; 8] = [
    FaultKind::Kill,
    FaultKind::Stop,
    FaultKind::HangingDisk,
    FaultKind::SlowDisk,
    FaultKind::FullDisk,
    FaultKind::OneWayLink,
    FaultKind::SlowLink,
    FaultKind::SkewedClock,
];

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "kill -9",
            Self::Stop => "stop",
            Self::HangingDisk => "hanging disk",
            Self::SlowDisk => "slow disk",
            Self::FullDisk => "full disk",
            Self::OneWayLink => "one-way link",
            Self::SlowLink => "slow link",
            Self::SkewedClock => "skewed clock",
        })
    }
}

impl FaultKind {
    /// Whether nodes serve during the fault. Such a fault may accompany another one.
    fn is_mild(self) -> bool {
        matches!(self, Self::SlowDisk | Self::SlowLink | Self::SkewedClock)
    }

    /// Two faults of one part of a node would undo each other.
    fn part(self) -> u8 {
        match self {
            Self::Kill | Self::Stop => 0,
            Self::HangingDisk | Self::SlowDisk => 1,
            Self::FullDisk => 2,
            Self::OneWayLink | Self::SlowLink => 3,
            Self::SkewedClock => 4,
        }
    }
}

/// The nodes of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Leader,
    Node(usize),
    /// More than a minority: the service may stop until the end of the fault.
    Everyone,
}

/// A fault, where it is, and how strong.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) kind: FaultKind,
    pub(super) at: At,
    /// Of a delayed sync or link.
    pub(super) delay: Duration,
    /// Of a clock, in seconds.
    pub(super) skew: i32,
    /// Bytes that a full disk leaves.
    pub(super) left: u64,
    pub(super) way: OneWay,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, delay, skew, left, way, .. } = self;
        write!(f, "{kind}")?;
        match kind {
            FaultKind::Kill | FaultKind::Stop | FaultKind::HangingDisk => Ok(()),
            FaultKind::SlowDisk | FaultKind::SlowLink => write!(f, " ({} ms)", delay.as_millis()),
            FaultKind::FullDisk => write!(f, " ({} KiB left)", left >> 10),
            FaultKind::OneWayLink => write!(f, " ({way:?})"),
            FaultKind::SkewedClock => write!(f, " ({skew:+} s)"),
        }
    }
}

/// What a one-way link loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OneWay {
    ToAll,
    FromAll,
    /// To the next node only.
    ToNext,
    /// From the next node only.
    FromNext,
}

/// One or two faults at a time.
#[derive(Clone, Debug)]
pub(super) struct Round {
    pub(super) fault: Fault,
    /// A mild one, of another part.
    pub(super) beside: Option<Fault>,
    pub(super) lasts: Duration,
    /// Time until the next round, after all nodes serve.
    pub(super) pause: Duration,
}

/// Deals rounds. Each kind comes once before any comes again.
pub(super) struct Schedule {
    random: fastrand::Rng,
    kinds: Vec<FaultKind>,
    deck: Vec<FaultKind>,
    lasts_max: Duration,
}

const LASTS_MIN: Duration = Duration::from_millis(1_300);

impl Schedule {
    /// The longest fault of a run of this length.
    pub(super) fn lasts_max(run: Duration) -> Duration {
        (run / 15).clamp(Duration::from_secs(2), Duration::from_secs(12))
    }

    pub(super) fn new(random: fastrand::Rng, kinds: Vec<FaultKind>, run: Duration) -> Self {
        Self { random, kinds, deck: Vec::new(), lasts_max: Self::lasts_max(run) }
    }

    /// `None` without kinds.
    pub(super) fn next(&mut self) -> Option<Round> {
        if self.deck.is_empty() {
            self.deck.clone_from(&self.kinds);
            self.random.shuffle(&mut self.deck);
        }
        let kind = self.deck.pop()?;
        let fault = self.fault(kind);
        let mild: Vec<FaultKind> = self
            .kinds
            .iter()
            .copied()
            .filter(|other| other.is_mild() && other.part() != kind.part())
            .collect();
        let beside = if self.random.u8(..3) == 0 { self.random.choice(mild) } else { None };
        Some(Round {
            beside: beside.map(|kind| self.fault(kind)),
            lasts: self.between(LASTS_MIN, self.lasts_max),
            pause: self.between(Duration::from_millis(50), self.lasts_max / 6),
            fault,
        })
    }

    fn fault(&mut self, kind: FaultKind) -> Fault {
        // A group without any link in one direction is two cut groups: other tests have those.
        let everyone = kind != FaultKind::OneWayLink && self.random.u8(..5) == 0;
        let at = if everyone {
            At::Everyone
        } else if self.random.bool() {
            At::Leader
        } else {
            At::Node(self.random.usize(..NODES))
        };
        let ways = [OneWay::ToAll, OneWay::FromAll, OneWay::ToNext, OneWay::FromNext];
        Fault {
            kind,
            at,
            delay: self.between(
                Duration::from_millis(20),
                Duration::from_millis(if kind == FaultKind::SlowDisk { 200 } else { 300 }),
            ),
            skew: self.random.i32(-3_600..=3_600),
            left: if self.random.bool() { 0 } else { self.random.u64(..32 << 20) },
            way: self.random.choice(ways).unwrap_or(OneWay::ToAll),
        }
    }

    fn between(&mut self, least: Duration, most: Duration) -> Duration {
        least + most.saturating_sub(least).mul_f64(self.random.f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(seed: u64) -> Schedule {
        Schedule::new(fastrand::Rng::with_seed(seed), KINDS.to_vec(), Duration::from_secs(1_800))
    }

    #[test]
    fn each_kind_comes_once_before_any_comes_again() {
        let mut schedule = schedule(1);
        for _ in 0..20 {
            let mut dealt: Vec<FaultKind> =
                KINDS.iter().map(|_| schedule.next().unwrap().fault.kind).collect();
            dealt.sort();
            assert_eq!(dealt, KINDS);
        }
    }

    #[test]
    fn a_second_fault_is_mild_and_of_another_part() {
        let mut schedule = schedule(2);
        let rounds: Vec<Round> = (0..1_000).filter_map(|_| schedule.next()).collect();
        let both = rounds.iter().filter_map(|round| Some((round.fault.kind, round.beside.as_ref()?.kind)));
        assert!(both.clone().count() > 200);
        for (first, second) in both {
            assert!(second.is_mild() && first.part() != second.part(), "{first} and {second}");
        }
    }
}
